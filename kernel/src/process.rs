//! What a program asks of the kernel about itself: who it runs as, the boot clock, file locks.
#![allow(
    unsafe_code,
    reason = "these system calls have no safe form in the standard library"
)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

/// The user that the process acts as.
#[must_use]
pub fn effective_uid() -> u32 {
    // SAFETY: the call has no arguments and can't fail.
    unsafe { libc::geteuid() }
}

/// Time since the machine was booted, also counting suspend.
#[must_use]
pub fn since_boot() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is room for one timespec. The clock exists since Linux 2.6.39.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

/// The machine's host name as the kernel has it.
///
/// # Errors
///
/// When it can't be read.
pub fn host_name() -> io::Result<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/hostname")?;
    Ok(text.trim().to_owned())
}

/// Keeps the process from being traced and its memory from being written to a core file, so that
/// its secrets stay inside.
///
/// # Errors
///
/// When the kernel refuses.
pub fn forbid_dumps() -> io::Result<()> {
    // SAFETY: the call takes its arguments by value.
    match unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Takes the exclusive lock of an open file without waiting; `false` if another process holds it.
/// The lock is given back when the file is closed, however the process ends.
///
/// # Errors
///
/// When the file can't be locked at all.
pub fn try_lock(file: &File) -> io::Result<bool> {
    // SAFETY: the descriptor is open, and no memory is involved.
    match unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } {
        0 => Ok(true),
        _ => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            error => Err(error),
        },
    }
}

/// Lets others lock a file that [`try_lock`] has locked.
///
/// # Errors
///
/// The kernel's answer.
pub fn unlock(file: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open, and no memory is involved.
    match unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_UN) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_clock_runs_and_the_machine_has_a_name() {
        assert!(since_boot() > Duration::ZERO);
        assert!(!host_name().expect("a host name").is_empty());
    }

    #[test]
    fn a_lock_is_held_by_one_open_file_at_a_time() {
        let path = std::env::temp_dir().join(format!("podmesh-lock-{}", std::process::id()));
        let (first, second) = (File::create(&path), File::create(&path));
        let (first, second) = (first.expect("a file"), second.expect("a file"));
        assert!(try_lock(&first).expect("a lock"));
        assert!(!try_lock(&second).expect("an answer"));
        drop(first);
        assert!(try_lock(&second).expect("a lock"));
        std::fs::remove_file(path).expect("removable");
    }
}
