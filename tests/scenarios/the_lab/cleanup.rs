//! Nothing outlives its lab: not after a panic, a signal, or a kill.

use std::io::{BufRead, BufReader};
use std::panic::{self, AssertUnwindSafe};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use podmesh_lab::{Lab, Nat, registry};

const LAB: &str = env!("CARGO_BIN_EXE_lab");

fn small_lab(name: &str) -> Lab {
    let mut plan = Lab::plan(name);
    plan.site("home").nat(Nat::Symmetric);
    plan.site("cloud");
    plan.node("home-1").at("home");
    plan.node("cloud-1").at("cloud");
    plan.up().unwrap()
}

/// Names of this process's namespaces that belong to the same lab as the given one.
fn namespaces_like(name: &str) -> Vec<String> {
    let lab = name
        .rsplit_once("home-1")
        .expect("a node's namespace")
        .0
        .to_owned();
    let mut names = registry::namespaces_of(std::process::id());
    names.retain(|name| name.starts_with(&lab));
    names
}

/// A `lab up` of its own process, standing.
fn run_of_its_own() -> Child {
    let mut child = Command::new(LAB)
        .arg("up")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = String::new();
    BufReader::new(child.stdout.as_mut().unwrap())
        .read_line(&mut first)
        .unwrap();
    assert!(first.contains("stands"), "{first}");
    assert!(!registry::namespaces_of(child.id()).is_empty());
    child
}

#[test]
fn a_panic_leaves_nothing_behind_but_the_logs() {
    let mut name = String::new();
    let mut folder = std::path::PathBuf::new();
    let panicked = panic::catch_unwind(AssertUnwindSafe(|| {
        let lab = small_lab("panicking");
        name = lab.node("home-1").unwrap().namespace().name().to_owned();
        folder = lab.folder().to_owned();
        std::fs::write(folder.join("log"), "last words").unwrap();
        assert!(namespaces_like(&name).len() >= 4);
        panic!("on purpose");
    }));
    assert!(panicked.is_err());
    assert_eq!(namespaces_like(&name), Vec::<String>::new());
    assert!(!folder.exists());
    let prefix = format!("podmesh-kept-panicking-{}", std::process::id());
    let kept = std::env::temp_dir().join(prefix);
    assert_eq!(std::fs::read(kept.join("log")).unwrap(), b"last words");
    std::fs::remove_dir_all(kept).unwrap();
}

#[test]
fn a_lab_that_ends_well_leaves_nothing_at_all() {
    let lab = small_lab("ending");
    let name = lab.node("home-1").unwrap().namespace().name().to_owned();
    let folder = lab.folder().to_owned();
    drop(lab);
    assert_eq!(namespaces_like(&name), Vec::<String>::new());
    assert!(!folder.exists());
}

#[test]
fn an_interrupted_run_cleans_up_and_says_that_it_was_interrupted() {
    use std::os::unix::process::ExitStatusExt;
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let mut child = run_of_its_own();
        let pid = child.id();
        Command::new("kill")
            .args([format!("-{signal}"), pid.to_string()])
            .status()
            .unwrap();
        let start = Instant::now();
        let status = child.wait().unwrap();
        assert_eq!(status.signal(), Some(signal));
        assert!(
            start.elapsed() < Duration::from_secs(5),
            "{:?}",
            start.elapsed()
        );
        assert_eq!(registry::namespaces_of(pid), Vec::<String>::new());
        assert!(
            !std::env::temp_dir()
                .join(format!("podmesh-lab-{pid}-1"))
                .exists()
        );
    }
}

#[test]
fn what_a_killed_run_leaves_is_removed_by_the_next_one() {
    let mut child = run_of_its_own();
    let namespaces = registry::namespaces_of(child.id());
    let orphan = Command::new("ip")
        .args(["netns", "exec", &namespaces[0], "sleep", "600"])
        .spawn()
        .map(|mut orphan| std::thread::spawn(move || orphan.wait()))
        .unwrap();
    std::thread::sleep(Duration::from_millis(100));
    child.kill().unwrap();
    child.wait().unwrap();
    let output = Command::new(LAB).arg("clean").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(registry::namespaces_of(child.id()), Vec::<String>::new());
    let status = orphan.join().unwrap().unwrap();
    assert!(!status.success(), "the process inside was ended");
}

/// The tests of the crates make namespaces and folders of their own, and nobody is told when they are killed.
#[test]
fn what_a_killed_test_of_a_crate_leaves_is_removed_and_of_a_living_one_is_not() {
    let mut dead = Command::new("true").spawn().unwrap();
    dead.wait().unwrap();
    let living = std::process::id();
    for (prefix, has_folder) in [("pmc", true), ("pmd", true), ("pmk", false)] {
        let [left, used] = [dead.id(), living].map(|pid| format!("{prefix}{pid}-cleanup"));
        for name in [&left, &used] {
            let made = Command::new("ip").args(["netns", "add", name]).status();
            assert!(made.unwrap().success());
            std::fs::create_dir(std::env::temp_dir().join(name)).unwrap();
        }
        let mut orphan = Command::new("ip")
            .args(["netns", "exec", &left, "sleep", "600"])
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(100));
        registry::remove_leftovers();
        assert!(!orphan.wait().unwrap().success(), "{left} has a process");
        let netns = std::path::Path::new(registry::NAMESPACE_FOLDER);
        let is_there = |name: &String| {
            (
                netns.join(name).exists(),
                std::env::temp_dir().join(name).exists(),
            )
        };
        let found = [&left, &used].map(is_there);
        let _ = Command::new("ip").args(["netns", "delete", &used]).status();
        for name in [&left, &used] {
            let _ = std::fs::remove_dir(std::env::temp_dir().join(name));
        }
        assert_eq!(found, [(false, !has_folder), (true, true)], "{prefix}");
    }
}

#[test]
fn two_labs_with_the_same_names_do_not_meet() {
    let labs = [small_lab("twin"), small_lab("twin")];
    let [one, other] = labs
        .each_ref()
        .map(|lab| lab.node("home-1").unwrap().namespace());
    assert_ne!(one.name(), other.name());
    for lab in &labs {
        let cloud = lab.node("cloud-1").unwrap().public_address().to_string();
        let home = lab.node("home-1").unwrap().namespace();
        home.run(&["ping", "-c", "1", "-W", "2", &cloud])
            .expect("each lab works for itself");
    }
}
