//! A throw-away network namespace per test.
#![allow(unsafe_code, reason = "unshare has no safe form")]

use std::io;
use std::panic;
use std::process::Command;
use std::thread;

/// Runs `test` on a thread of its own in a new network namespace with only `lo`, which is up.
/// Says so and does nothing when not root.
pub(crate) fn isolated(test: impl FnOnce() + Send + 'static) {
    // SAFETY: no memory is involved.
    if unsafe { libc::geteuid() } != 0 {
        println!("SKIPPED: needs root for its own network namespace");
        return;
    }
    let thread = thread::spawn(move || {
        // SAFETY: changes only the namespace of this thread.
        let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        assert_eq!(result, 0, "unshare: {}", io::Error::last_os_error());
        ip("link set lo up");
        test();
    });
    if let Err(failure) = thread.join() {
        panic::resume_unwind(failure);
    }
}

/// As [`isolated`], with an async test on a runtime that does not leave the thread.
pub(crate) fn isolated_async<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    isolated(|| {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime")
            .block_on(test());
    });
}

/// Runs `ip` in the test's namespace and returns what it printed.
pub(crate) fn ip(arguments: &str) -> String {
    try_ip(arguments).unwrap_or_else(|error| panic!("ip {arguments}: {error}"))
}

/// From now on nobody can change a setting under `/proc/sys` in this thread, as in many containers.
pub(crate) fn make_settings_read_only() {
    // SAFETY: changes only the mounts that this thread sees.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNS) };
    assert_eq!(result, 0, "unshare: {}", io::Error::last_os_error());
    for arguments in [
        "--make-rprivate /",
        "--bind /proc/sys /proc/sys",
        "-o remount,ro,bind /proc/sys",
    ] {
        attempt("mount", arguments).unwrap_or_else(|error| panic!("mount {arguments}: {error}"));
    }
}

/// Runs `tc` in this thread's namespace.
pub(crate) fn tc(arguments: &str) -> String {
    attempt("tc", arguments).unwrap_or_else(|error| panic!("tc {arguments}: {error}"))
}

/// As [`ip`], with its complaint as an error.
pub(crate) fn try_ip(arguments: &str) -> Result<String, String> {
    attempt("ip", arguments)
}

fn attempt(program: &str, arguments: &str) -> Result<String, String> {
    let output = Command::new(program)
        .args(arguments.split_whitespace())
        .output()
        .expect(program);
    let text = |bytes| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(text(&output.stderr))
    }
}
