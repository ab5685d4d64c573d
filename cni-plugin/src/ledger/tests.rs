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
    reserve_in(ledger, id, cidr, None)
}

fn reserve_in(
    ledger: &mut Ledger,
    id: &str,
    cidr: &str,
    sandbox: Option<Sandbox>,
) -> Result<IpAddr, Failure> {
    let supply = Supply {
        cidrs: &[cidr.parse().unwrap()],
        present: &[],
        own: &[],
        interfaces: &[],
    };
    let attachment = attachment(id);
    let claim = Claim {
        network: "net",
        attachment: &attachment,
        sandbox,
        destinations: Vec::new(),
        mac: None,
    };
    let record = ledger.reserve(claim, &supply)?;
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
        own: &[],
        interfaces: &[],
    };
    let attachment = attachment("a");
    let claim = Claim {
        network: "net",
        attachment: &attachment,
        sandbox: None,
        destinations: Vec::new(),
        mac: None,
    };
    let record = scratch.open("b", 1).reserve(claim, &supply).unwrap();
    assert_eq!(record.addresses, ["10.0.0.3".parse::<IpAddr>().unwrap()]);
}

#[test]
fn a_living_pod_keeps_its_addresses_without_a_record_unless_they_are_anothers_by_now() {
    let scratch = Scratch::new("living");
    let own = |text: &str| text.parse::<IpAddr>().unwrap();
    let ask = |ledger: &mut Ledger, id: &str, cidr: &str, own: &[IpAddr]| {
        let attachment = attachment(id);
        let claim = Claim {
            network: "net",
            attachment: &attachment,
            sandbox: None,
            destinations: Vec::new(),
            mac: None,
        };
        let supply = Supply {
            cidrs: &[cidr.parse().unwrap()],
            present: own,
            own,
            interfaces: &[],
        };
        ledger.reserve(claim, &supply).unwrap().addresses[0]
    };
    let mut ledger = scratch.open("b", 1);
    let five = [own("10.0.0.5")];
    assert_eq!(ask(&mut ledger, "a", "10.0.0.0/29", &five), five[0]);
    // What a record says counts for more than what an interface says.
    assert_eq!(
        ask(&mut ledger, "a", "10.0.0.0/29", &[own("10.0.0.4")]),
        five[0]
    );
    assert_ne!(ask(&mut ledger, "b", "10.0.0.0/29", &five), five[0]);
    // The node has moved to another range.
    let moved = ask(&mut ledger, "c", "10.1.0.0/29", &[own("10.0.0.3")]);
    assert!(moved.to_string().starts_with("10.1.0."));
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
    assert!(
        refused
            .to_string()
            .contains("2 by pods without an interface")
    );
    drop(ledger);
    let mut later = scratch.open("b", 161);
    let alive = [attachment("a").host_name()];
    later.release_dead(&alive, || Ok(alive.to_vec())).unwrap();
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
    let mut other = scratch.open("b", 121);
    other.release_dead(&[], || Ok(Vec::new())).unwrap();
    assert_eq!(other.records().count(), 1);
}

#[test]
fn a_lease_whose_sandbox_has_gone_is_free_at_once() {
    let scratch = Scratch::new("sandbox");
    let sandboxes = Scratch::new("sandboxes");
    fs::create_dir_all(&sandboxes.0).unwrap();
    let mut ledger = scratch.open("b", 100);
    for id in ["gone", "replaced", "alive"] {
        let path = sandboxes.0.join(id);
        fs::write(&path, "").unwrap();
        let sandbox = Sandbox::at(&path).unwrap();
        reserve_in(&mut ledger, id, "10.0.0.0/29", Some(sandbox)).unwrap();
    }
    let other = sandboxes.0.join("another");
    fs::write(&other, "").unwrap();
    fs::rename(&other, sandboxes.0.join("replaced")).unwrap();
    fs::remove_file(sandboxes.0.join("gone")).unwrap();
    drop(ledger);
    let mut ledger = scratch.open("b", 101);
    // An interface that appeared since the first look belongs to an ADD that is still going on.
    let late = vec![attachment("gone").host_name()];
    ledger.release_dead(&[], || Ok(late)).unwrap();
    let left = |ledger: &Ledger| {
        let mut ids: Vec<_> = ledger
            .records()
            .map(|(_, record)| record.unwrap().attachment.container_id.clone())
            .collect();
        ids.sort();
        ids
    };
    assert_eq!(left(&ledger), ["alive", "gone"]);
    ledger.release_dead(&[], || Ok(Vec::new())).unwrap();
    assert_eq!(left(&ledger), ["alive"]);
}

#[test]
fn an_add_finds_out_that_its_lease_was_taken_for_dead() {
    let scratch = Scratch::new("lost");
    let mut ledger = scratch.open("b", 1);
    reserve(&mut ledger, "a", "10.0.0.0/29").unwrap();
    let record = ledger.records().next().unwrap().1.unwrap().clone();
    drop(ledger);
    assert!(still_holds(&scratch.0, &record).unwrap());
    let mut ledger = scratch.open("b", 2);
    ledger.release(&record.attachment.host_name()).unwrap();
    drop(ledger);
    assert!(!still_holds(&scratch.0, &record).unwrap());
    // The same pod, by a later ADD: that one has them.
    reserve(&mut scratch.open("b", 3), "a", "10.0.0.0/29").unwrap();
    assert!(!still_holds(&scratch.0, &record).unwrap());
}

#[test]
fn a_record_of_an_older_version_is_read() {
    let text = r#"{"schema":"podmesh.attachment/v1","network":"net","containerID":"a",
        "ifname":"eth0","addresses":["10.0.0.1"],"boot":"b","since":7}"#;
    let record: Record = serde_json::from_str(text).unwrap();
    assert_eq!(record.destinations.len(), 2);
    assert!(record.destinations.iter().all(|one| one.prefix_len() == 0));
}

#[test]
fn an_attachment_that_stands_needs_nothing_written() {
    let scratch = Scratch::new("standing");
    fs::create_dir_all(&scratch.0).unwrap();
    let here = Sandbox::at(&std::env::temp_dir()).unwrap();
    let elsewhere = Sandbox::at(Path::new("/")).unwrap();
    let mut ledger = scratch.open("b", 1);
    reserve_in(&mut ledger, "a", "10.0.0.0/29", Some(here.clone())).unwrap();
    let attachment = attachment("a");
    let stands = |interfaces: &[String], sandbox: &Sandbox, cidr: &str| {
        let supply = Supply {
            cidrs: &[cidr.parse().unwrap()],
            present: &[],
            own: &[],
            interfaces,
        };
        ledger.standing(&attachment, sandbox, &supply).is_some()
    };
    let there = [attachment.host_name()];
    assert!(stands(&there, &here, "10.0.0.0/29"));
    assert!(!stands(&[], &here, "10.0.0.0/29"));
    assert!(!stands(&there, &elsewhere, "10.0.0.0/29"));
    assert!(!stands(&there, &here, "10.1.0.0/29"));
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
