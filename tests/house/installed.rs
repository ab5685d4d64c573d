//! `make install` puts files where the programs that read them look, whatever the prefix is.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const UNITS: [&str; 2] = ["meshd", "planet"];

/// Installs empty programs with the packaging of this checkout below a folder of the test.
fn install(prefix: &str, sysconf: &str) -> PathBuf {
    let name = format!(
        "podmesh-install-{}{}",
        std::process::id(),
        prefix.replace('/', "-")
    );
    let folder = std::env::temp_dir().join(name);
    let made = folder.join("checkout");
    for part in [
        "packaging",
        "target/release",
        "target/man",
        "target/completions",
    ] {
        fs::create_dir_all(made.join(part)).expect("a folder");
    }
    copy(&super::top().join("packaging"), &made.join("packaging"));
    for program in ["meshd", "meshctl", "planet", "podmesh"] {
        fs::write(made.join("target/release").join(program), "").expect("a program");
    }
    fs::write(made.join("target/man/meshd.8"), "").expect("a page");
    for shell in ["bash", "zsh", "fish"] {
        let script = made
            .join("target/completions")
            .join(format!("meshctl.{shell}"));
        fs::write(script, "").expect("a script");
    }
    let units = format!("{prefix}/lib/systemd/system");
    let status = Command::new("sh")
        .arg(made.join("packaging/install.sh"))
        .arg("install")
        .arg(folder.join("dest"))
        .args([prefix, sysconf, &units, "/opt/cni/bin"])
        .status();
    assert!(status.expect("a shell").success());
    folder
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder").flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("a copy");
        }
    }
}

#[test]
fn units_start_the_programs_that_were_installed_and_others_find_their_files() {
    for (prefix, sysconf) in [("/usr", "/etc"), ("/usr/local", "/usr/local/etc")] {
        let folder = install(prefix, sysconf);
        let dest = folder.join("dest");
        let below = |path: &str| dest.join(path.trim_start_matches('/'));
        for unit in UNITS {
            let shipped = super::top().join(format!("packaging/systemd/{unit}.service"));
            let shipped = fs::read_to_string(shipped).expect("the unit");
            let wanted = shipped
                .replace("ExecStart=/usr/bin/", &format!("ExecStart={prefix}/bin/"))
                .replace(
                    ":/etc/podmesh/join-token",
                    &format!(":{sysconf}/podmesh/join-token"),
                );
            let put = below(&format!("{prefix}/lib/systemd/system/{unit}.service"));
            let put = fs::read_to_string(put).expect("the installed unit");
            let differ: Vec<_> = put
                .lines()
                .zip(wanted.lines())
                .filter(|(a, b)| a != b)
                .collect();
            let comments_alone = differ.iter().all(|(line, _)| line.starts_with('#'));
            assert!(
                comments_alone && put.lines().count() == wanted.lines().count(),
                "{differ:?}"
            );
            let start = put.lines().find_map(|line| line.strip_prefix("ExecStart="));
            let program = start
                .and_then(|start| start.split(' ').next())
                .expect("a program");
            assert!(below(program).exists(), "{unit}.service starts {program}");
        }
        for file in [
            "sysusers.d/podmesh.conf",
            "sysctl.d/90-podmesh.conf",
            "systemd/networkd.conf.d/90-podmesh.conf",
            "NetworkManager/conf.d/90-podmesh.conf",
        ] {
            assert!(
                below("/usr/lib").join(file).exists(),
                "{file} with {prefix}"
            );
        }
        fs::remove_dir_all(folder).expect("an end");
    }
}
