use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicU32, Ordering};

use podmesh_proto::id::{NodeId, TokenId};

use super::*;

const PLANET: PlanetId = PlanetId([7; 32]);

struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("podmesh-store-{}-{count}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self) -> PathBuf {
        self.0.join(FILE)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn spent(token: u8, number: u32) -> Record {
    Record::Use {
        token: TokenId([token; 16]),
        number,
        node: NodeId([token; 32]),
    }
}

fn sorted(mut records: Vec<Record>) -> Vec<Record> {
    records.sort_by_key(|record| record.key().unwrap());
    records
}

#[test]
fn what_was_committed_is_there_after_a_start() {
    let folder = Folder::new();
    let missing = DiskStore::open(&folder.0).unwrap_err().to_string();
    assert!(missing.contains("planet init"), "{missing}");
    let mut store = DiskStore::create(&folder.0, Origin::Fresh).unwrap();
    let mode = fs::metadata(folder.file()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    store
        .commit(&[Change::Put(spent(1, 1)), Change::Put(spent(2, 1))])
        .unwrap();
    let key = spent(1, 1).key().unwrap();
    store
        .commit(&[Change::Remove(key), Change::Put(spent(3, 7))])
        .unwrap();
    let in_use = DiskStore::open(&folder.0).unwrap_err();
    assert!(matches!(in_use, StoreError::InUse { .. }), "{in_use}");
    let exists = DiskStore::create(&folder.0, Origin::Fresh).unwrap_err();
    assert!(matches!(exists, StoreError::Exists { .. }));
    drop(store);
    let records = DiskStore::open(&folder.0).unwrap().load().unwrap();
    let expected = [Record::Origin(Origin::Fresh), spent(2, 1), spent(3, 7)];
    assert_eq!(sorted(records), sorted(expected.to_vec()));
}

#[test]
fn a_torn_store_is_an_older_one_or_an_error_but_never_another() {
    let folder = Folder::new();
    let mut store = DiskStore::create(&folder.0, Origin::Fresh).unwrap();
    let mut states = vec![sorted(store.load().unwrap())];
    for number in 1..40 {
        store.commit(&[Change::Put(spent(9, number))]).unwrap();
        states.push(sorted(store.load().unwrap()));
    }
    drop(store);
    let whole = fs::read(folder.file()).unwrap();
    let judge = |content: &[u8], what: &str| {
        let torn = Folder::new();
        fs::write(torn.file(), content).unwrap();
        let read = || DiskStore::open(&torn.0).and_then(|mut store| store.load());
        // The database gives up on some damage by a panic, which the program puts into words.
        let Ok(read) = std::panic::catch_unwind(read) else {
            return;
        };
        match read {
            Ok(records) => assert!(states.contains(&sorted(records)), "{what}"),
            Err(StoreError::Damaged { .. } | StoreError::Io { .. } | StoreError::Format { .. }) => {
            }
            Err(other) => panic!("{what}: {other}"),
        }
    };
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut roll = move |bound: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        usize::try_from(state >> 33).unwrap() % bound
    };
    for length in [
        0,
        1,
        63,
        64,
        320,
        4_096,
        8_191,
        whole.len() / 2,
        whole.len() - 1,
    ] {
        judge(&whole[..length], &format!("cut to {length}"));
    }
    for _ in 0..150 {
        // Where something is written, so that the flip means something.
        let at = loop {
            let at = roll(whole.len());
            if whole[at] != 0 {
                break at;
            }
        };
        let mut flipped = whole.clone();
        flipped[at] ^= 1 << roll(8);
        judge(&flipped, &format!("bit flipped in byte {at}"));
    }
    for _ in 0..20 {
        let at = roll(whole.len() / 4_096) * 4_096;
        let mut zeroed = whole.clone();
        zeroed[at..at + 4_096].fill(0);
        judge(&zeroed, &format!("page at {at} is empty"));
    }
}

#[test]
fn a_backup_comes_back_marked_and_a_damaged_one_is_refused() {
    let (folder, other) = (Folder::new(), Folder::new());
    let mut store = DiskStore::create(&folder.0, Origin::Fresh).unwrap();
    store.commit(&[Change::Put(spent(1, 1))]).unwrap();
    let backup = store.backup(&PLANET).unwrap();
    store.commit(&[Change::Put(spent(2, 1))]).unwrap();
    let in_use = DiskStore::restore(&folder.0, &backup).unwrap_err();
    assert!(matches!(in_use, StoreError::InUse { .. }));
    drop(store);
    for at in (0..backup.len()).step_by(3) {
        let mut damaged = backup.clone();
        damaged[at] ^= 1;
        assert!(DiskStore::restore(&other.0, &damaged).is_err());
        assert!(DiskStore::restore(&other.0, &backup[..at]).is_err());
    }
    for folder in [&folder, &other] {
        DiskStore::restore(&folder.0, &backup).unwrap();
        let records = DiskStore::open(&folder.0).unwrap().load().unwrap();
        let expected = [Record::Origin(Origin::Restored), spent(1, 1)];
        assert_eq!(sorted(records), sorted(expected.to_vec()));
    }
}

#[test]
fn a_commit_that_failed_is_undone_by_the_next_one() {
    let folder = Folder::new();
    let mut store = DiskStore::create(&folder.0, Origin::Fresh).unwrap();
    store.commit(&[Change::Put(spent(1, 1))]).unwrap();
    // As if the disk had failed after the transaction had reached it.
    let writes = [
        encode(&Change::Put(spent(2, 1))).unwrap(),
        encode(&Change::Remove(spent(1, 1).key().unwrap())).unwrap(),
    ];
    let before = store.before(&writes).unwrap();
    store.write(&writes).unwrap();
    store.undo = before;
    store.database = None;
    store.commit(&[Change::Put(spent(3, 1))]).unwrap();
    drop(store);
    let records = DiskStore::open(&folder.0).unwrap().load().unwrap();
    let expected = [Record::Origin(Origin::Fresh), spent(1, 1), spent(3, 1)];
    assert_eq!(sorted(records), sorted(expected.to_vec()));
}

#[test]
fn no_restore_destroys_what_was_there() {
    let folder = Folder::new();
    let mut store = DiskStore::create(&folder.0, Origin::Fresh).unwrap();
    let backup = store.backup(&PLANET).unwrap();
    store.commit(&[Change::Put(spent(1, 1))]).unwrap();
    drop(store);
    for number in 1_u8..4 {
        let aside = DiskStore::restore(&folder.0, &backup).unwrap().unwrap();
        assert!(aside.ends_with(format!("{FILE}.before-restore-{number}")));
        let mut store = DiskStore::open(&folder.0).unwrap();
        assert_eq!(
            sorted(store.load().unwrap()),
            [Record::Origin(Origin::Restored)]
        );
        store
            .commit(&[Change::Put(spent(2, number.into()))])
            .unwrap();
    }
    // Each of the former books can be put back, with what came into it until then.
    let kept = |number: u8| {
        let elsewhere = Folder::new();
        let aside = folder.0.join(format!("{FILE}.before-restore-{number}"));
        fs::copy(aside, elsewhere.file()).unwrap();
        DiskStore::open(&elsewhere.0).unwrap().load().unwrap()
    };
    assert!(kept(1).contains(&spent(1, 1)));
    assert!(kept(2).contains(&spent(2, 1)));
    assert!(kept(3).contains(&spent(2, 2)));
    // Where nothing is in the way, nothing is kept.
    let empty = Folder::new();
    assert_eq!(DiskStore::restore(&empty.0, &backup).unwrap(), None);
    // One that fails leaves all as it was.
    let books = || DiskStore::open(&folder.0).unwrap().load().unwrap();
    let before = books();
    fs::create_dir_all(folder.0.join(format!("{FILE}.new/in-the-way"))).unwrap();
    assert!(DiskStore::restore(&folder.0, &backup).is_err());
    assert_eq!(books(), before);
    let aside = folder.0.join(format!("{FILE}.before-restore-4"));
    assert!(!aside.exists());
}

#[test]
fn a_store_that_was_taken_away_is_written_anew_before_anything_is_granted() {
    let folder = Folder::new();
    let dir = folder.0.join("state");
    fs::create_dir(&dir).unwrap();
    let file = dir.join(FILE);
    let mut store = DiskStore::create(&dir, Origin::Fresh).unwrap();
    let mut all = vec![Record::Origin(Origin::Fresh)];
    let damages: [&dyn Fn(); 3] = [
        &|| fs::rename(&file, folder.0.join("away")).unwrap(),
        &|| fs::remove_file(&file).unwrap(),
        &|| fs::remove_dir_all(&dir).unwrap(),
    ];
    for (number, damage) in (1_u8..).zip(damages) {
        all.push(spent(number, 1));
        store.commit(&[Change::Put(spent(number, 1))]).unwrap();
        damage();
        if number == 1 {
            assert!(store.stand().unwrap(), "a look alone writes it");
        }
        all.push(spent(number + 10, 1));
        store.commit(&[Change::Put(spent(number + 10, 1))]).unwrap();
        assert!(!store.stand().unwrap());
        drop(store);
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        store = DiskStore::open(&dir).unwrap();
        assert_eq!(sorted(store.load().unwrap()), sorted(all.clone()));
    }
    fs::rename(&dir, folder.0.join("moved")).unwrap();
    fs::write(&dir, "in the way").unwrap();
    store.commit(&[Change::Put(spent(50, 1))]).unwrap_err();
    fs::remove_file(&dir).unwrap();
    store.commit(&[Change::Put(spent(51, 1))]).unwrap();
    all.push(spent(51, 1));
    assert_eq!(sorted(store.load().unwrap()), sorted(all));
}

#[test]
fn a_store_in_whose_place_is_another_one_takes_nothing() {
    let folder = Folder::new();
    let mut store = DiskStore::create(&folder.0, Origin::Fresh).unwrap();
    let away = folder.0.join("away");
    fs::rename(folder.file(), &away).unwrap();
    let mut other = DiskStore::create(&folder.0, Origin::Restored).unwrap();
    other.commit(&[Change::Put(spent(1, 1))]).unwrap();
    let error = store.commit(&[Change::Put(spent(2, 1))]).unwrap_err();
    assert!(matches!(error, StoreError::Displaced { .. }), "{error}");
    assert_eq!(other.load().unwrap().len(), 2);
    assert_eq!(store.load().unwrap(), [Record::Origin(Origin::Fresh)]);
    fs::rename(&away, folder.file()).unwrap();
    store.commit(&[Change::Put(spent(2, 1))]).unwrap();
}

#[test]
fn a_store_that_was_closed_and_taken_away_is_written_anew_from_what_is_open() {
    let folder = Folder::new();
    let mut store = DiskStore::create(&folder.0, Origin::Fresh).unwrap();
    let mut all = vec![Record::Origin(Origin::Fresh)];
    for number in 1_u8..4 {
        store.commit(&[Change::Put(spent(number, 1))]).unwrap();
        all.push(spent(number, 1));
        // A commit that nobody was told of reached the disk, which then failed.
        let half = [encode(&Change::Put(spent(99, 1))).unwrap()];
        let before = store.before(&half).unwrap();
        store.write(&half).unwrap();
        store.undo = before;
        store.database = None;
        let said = store.load().unwrap_err().to_string();
        assert!(said.contains("tried again"), "{said}");
        fs::remove_file(folder.file()).unwrap();
        if number == 1 {
            assert!(store.stand().unwrap(), "a look alone writes it");
        }
        store.commit(&[Change::Put(spent(number + 10, 1))]).unwrap();
        all.push(spent(number + 10, 1));
        drop(store);
        // As a start finds it.
        store = DiskStore::open(&folder.0).unwrap();
        assert_eq!(sorted(store.load().unwrap()), sorted(all.clone()));
    }
    // What is left of a file that was emptied before is no store.
    store.database = None;
    fs::write(folder.file(), []).unwrap();
    fs::remove_file(folder.file()).unwrap();
    store.commit(&[Change::Put(spent(50, 1))]).unwrap_err();
    assert!(!folder.file().exists());
}

#[test]
fn a_backup_says_whose_it_is_and_one_of_the_first_format_is_read() {
    let folder = Folder::new();
    let mut store = DiskStore::create(&folder.0, Origin::Fresh).unwrap();
    let backup = store.backup(&PLANET).unwrap();
    let records = store.load().unwrap();
    let read = Backup::read(&backup).unwrap();
    assert_eq!((read.planet, &read.records), (Some(PLANET), &records));
    let body = postcard::to_allocvec(&records).unwrap();
    let sum = digest("podmesh planet backup v1", &body);
    let first = [b"podmesh planet backup v1\n", sum.as_slice(), &body].concat();
    let read = Backup::read(&first).unwrap();
    assert_eq!((read.planet, read.records), (None, records));
    let later = [b"podmesh planet backup v3\n", sum.as_slice(), &body].concat();
    let said = Backup::read(&later).unwrap_err().to_string();
    assert!(said.contains("newer"), "{said}");
}
