use std::{fs, path::PathBuf, process};

use super::*;

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("podmesh-ledger-{}-{name}", process::id()));
        let _ = fs::remove_dir_all(&path);
        Self(path)
    }

    fn open(&self, boot: &str, now: u64) -> Ledger {
        self.open_with(boot, now, &[])
    }

    fn open_with(&self, boot: &str, now: u64, interfaces: &[String]) -> Ledger {
        let moment = Moment {
            boot: boot.to_owned(),
            now,
        };
        Ledger::open(&self.0, moment, interfaces).unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn attachment(id: &str) -> Attachment {
    Attachment {
        container_id: id.to_owned(),
        ifname: "eth0".to_owned(),
    }
}

fn reserve(ledger: &mut Ledger, id: &str, cidr: &str) -> Result<IpAddr, Failure> {
    let supply = Supply {
        cidrs: &[cidr.parse().unwrap()],
        present: &[],
    };
    let record = ledger.reserve("net", &attachment(id), &supply)?;
    Ok(record.addresses[0])
}

#[test]
fn an_attachment_keeps_its_address_until_it_is_released() {
    let scratch = Scratch::new("keep");
    let first = reserve(&mut scratch.open("b", 1), "a", "10.0.0.0/29").unwrap();
    assert_eq!(
        reserve(&mut scratch.open("b", 2), "a", "10.0.0.0/29").unwrap(),
        first
    );
    let second = reserve(&mut scratch.open("b", 3), "b", "10.0.0.0/29").unwrap();
    assert_ne!(first, second);
    let mut ledger = scratch.open("b", 4);
    assert!(ledger.release(&attachment("a").host_name()).unwrap());
    assert!(!ledger.release(&attachment("a").host_name()).unwrap());
    assert_ne!(reserve(&mut ledger, "c", "10.0.0.0/29").unwrap(), first);
}

#[test]
fn an_attachment_follows_its_node_to_another_cidr() {
    let scratch = Scratch::new("move");
    let mut ledger = scratch.open("b", 1);
    reserve(&mut ledger, "a", "10.0.0.0/29").unwrap();
    let moved = reserve(&mut ledger, "a", "10.1.0.0/29").unwrap();
    assert!(moved.to_string().starts_with("10.1.0."));
}

#[test]
fn what_the_kernel_routes_is_not_given_away() {
    let scratch = Scratch::new("routed");
    let supply = Supply {
        cidrs: &["10.0.0.0/29".parse().unwrap()],
        present: &["10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()],
    };
    let record = scratch
        .open("b", 1)
        .reserve("net", &attachment("a"), &supply)
        .unwrap();
    assert_eq!(record.addresses, ["10.0.0.3".parse::<IpAddr>().unwrap()]);
}

#[test]
fn fifty_boots_with_a_full_house_use_no_address_up() {
    let scratch = Scratch::new("boots");
    for boot in 0..50 {
        let mut ledger = scratch.open(&format!("boot-{boot}"), 5);
        for pod in 0..6 {
            reserve(&mut ledger, &format!("{boot}-{pod}"), "10.0.0.0/29").unwrap();
        }
        assert_eq!(ledger.records().count(), 6);
    }
}

#[test]
fn a_full_pool_says_so_and_abandoned_records_refill_it() {
    let scratch = Scratch::new("full");
    let mut ledger = scratch.open("b", 100);
    for pod in ["a", "b"] {
        reserve(&mut ledger, pod, "10.0.0.0/30").unwrap();
    }
    let refused = reserve(&mut ledger, "c", "10.0.0.0/30").unwrap_err();
    assert_eq!(refused.code(), Code::NoAddressLeft);
    drop(ledger);
    let mut later = scratch.open("b", 161);
    let alive = [attachment("a").host_name()];
    assert!(later.release_abandoned(&alive).unwrap());
    assert_eq!(
        reserve(&mut later, "c", "10.0.0.0/30").unwrap().to_string(),
        "10.0.0.2"
    );
}

#[test]
fn spoiled_files_cost_no_more_than_their_own_record() {
    let scratch = Scratch::new("spoiled");
    let kept = reserve(&mut scratch.open("b", 1), "kept", "10.0.0.0/24").unwrap();
    let spoiled = [
        ("empty", b"" as &[u8]),
        ("torn", b"{\"schema\":\"podm"),
        ("binary", &[0xff; 300]),
        ("other", b"{}"),
    ];
    for (id, _) in spoiled {
        reserve(&mut scratch.open("b", 1), id, "10.0.0.0/24").unwrap();
    }
    for (id, spoil) in spoiled {
        let file = scratch
            .0
            .join(format!("{}.json", attachment(id).host_name()));
        fs::write(file, spoil).unwrap();
    }
    fs::create_dir(scratch.0.join("pm00000000000.json")).unwrap();
    fs::write(scratch.0.join("released.json"), "[").unwrap();
    fs::write(scratch.0.join("pm1.json.unfinished"), "{").unwrap();
    let alive = [attachment("torn").host_name()];
    let ledger = scratch.open_with("b", 2, &alive);
    let left: Vec<_> = ledger
        .records()
        .map(|(_, record)| record.cloned())
        .collect();
    assert_eq!(left.iter().flatten().count(), 1);
    assert_eq!(left.iter().flatten().next().unwrap().addresses, [kept]);
    assert_eq!(
        left.len(),
        2,
        "the one whose interface exists is kept in mind"
    );
    assert!(!scratch.0.join("pm1.json.unfinished").exists());
}

#[test]
fn a_record_that_is_used_again_does_not_count_as_abandoned() {
    let scratch = Scratch::new("again");
    let first = reserve(&mut scratch.open("b", 0), "a", "10.0.0.0/30").unwrap();
    // Two minutes later the same pod is tried again; its interface is still to be made when
    // another pod needs an address.
    let again = reserve(&mut scratch.open("b", 120), "a", "10.0.0.0/30").unwrap();
    assert_eq!(again, first);
    assert!(!scratch.open("b", 121).release_abandoned(&[]).unwrap());
}

#[test]
fn the_folder_and_its_files_are_for_root_alone() {
    use std::os::unix::fs::PermissionsExt;
    let scratch = Scratch::new("mode");
    reserve(&mut scratch.open("b", 1), "a", "10.0.0.0/29").unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&scratch.0), 0o700);
    for entry in fs::read_dir(&scratch.0).unwrap() {
        assert_eq!(mode(&entry.unwrap().path()), 0o600);
    }
}

#[test]
fn a_folder_that_is_no_ledger_is_refused_and_left_as_it_is() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    let set =
        |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    let parent = Scratch::new("refused");
    fs::create_dir_all(&parent.0).unwrap();
    let attempt = |name: &str| {
        let moment = Moment {
            boot: "b".to_owned(),
            now: 1,
        };
        Ledger::open(&parent.0.join(name), moment, &[]).map(|_| ())
    };
    let refused = |name: &str, words: &str| {
        let before = mode(&parent.0.join(name));
        let failure = attempt(name).unwrap_err();
        assert_eq!(failure.code(), Code::Ledger);
        let text = failure.to_string();
        assert!(text.contains(words), "{text}");
        assert!(text.contains("dataDir"), "{text}");
        assert_eq!(mode(&parent.0.join(name)), before, "{name}");
        assert!(!parent.0.join(name).join("lock").exists(), "{name}");
    };
    let make = |name: &str, bits| {
        let path = parent.0.join(name);
        fs::create_dir(&path).unwrap();
        set(&path, bits);
        path
    };
    make("target", 0o755);
    symlink("target", parent.0.join("link")).unwrap();
    refused("link", "symbolic link");
    fs::write(parent.0.join("file"), "x").unwrap();
    refused("file", "no folder");
    make("open", 0o777);
    refused("open", "chmod go-w");
    make("group", 0o770);
    refused("group", "chmod go-w");
    fs::write(make("foreign", 0o755).join("passwd"), "x").unwrap();
    refused("foreign", "\"passwd\"");
    // As in many folders of a package manager's.
    let locked = make("locked", 0o755);
    fs::write(locked.join("pm-utils.json"), "x").unwrap();
    refused("locked", "pm-utils.json");
    if podmesh_kernel::process::effective_uid() == 0 {
        chown(make("stranger", 0o700), Some(65_533), None).unwrap();
        refused("stranger", "belongs to user 65533");
    }
    make("empty", 0o755);
    attempt("empty").unwrap();
    assert_eq!(mode(&parent.0.join("empty")), 0o755);
    attempt("new").unwrap();
    assert_eq!(mode(&parent.0.join("new")), 0o700);
    // What somebody left beside the files of a ledger does not stop the pods.
    let used = make("used", 0o700);
    fs::write(used.join("notes"), "x").unwrap();
    fs::write(used.join(RELEASED), "{}").unwrap();
    attempt("used").unwrap();
}
