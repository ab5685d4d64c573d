//! How long two nodes may hear nothing of each other, by what has gone wrong: one fault at a time, and only
//! while there is a way between the two.

use std::time::Duration;

use crate::faults::Fault;

/// The longest time between two packets of a pair, which sends one each half second.
pub struct Bound {
    pub fault: Fault,
    pub seconds: u64,
    pub why: &'static str,
}

/// Of two whom the fault is not about.
pub const ASIDE: Duration = Duration::from_secs(4);

const fn bound(fault: Fault, seconds: u64, why: &'static str) -> Bound {
    Bound {
        fault,
        seconds,
        why,
    }
}

const NOTHING: &str = "nothing that carries packets is touched";
const SILENT: &str =
    "a path is given up after a second of silence and seven echoes, and another proves itself";
const REDIALED: &str =
    "a relay needs the control connection, which is dialed again up to 16 s after the way is open";
const BEGUN: &str = "a life begins with its last paths, a handshake and an echo";
const OUTBID: &str = "who is left hears of the other's life when it connects, up to 16 s later, and goes beyond it, once in 10 s";

/// From the fault on, or from when there is a way again.
pub const BOUNDS: [Bound; 26] = [
    bound(Fault::NodeRestart, 6, BEGUN),
    bound(Fault::NatReboot, 9, SILENT),
    bound(Fault::NatMoves, 9, SILENT),
    bound(Fault::HostMoves, 9, SILENT),
    bound(Fault::Cut, 25, REDIALED),
    bound(Fault::OneWayCut, 25, REDIALED),
    bound(Fault::Loss, 9, SILENT),
    bound(Fault::PlanetRestart, 25, REDIALED),
    bound(Fault::DelayChange, 4, NOTHING),
    bound(Fault::Replay, 4, NOTHING),
    bound(Fault::ForeignSource, 4, NOTHING),
    bound(Fault::ForgedMember, 4, NOTHING),
    bound(Fault::StolenClaim, 4, NOTHING),
    bound(
        Fault::ClockJump,
        9,
        "whom its clock had ended begins anew with its last paths",
    ),
    bound(
        Fault::ClockRestart,
        9,
        "whom its clock had ended begins anew with its last paths",
    ),
    bound(
        Fault::PlanetClock,
        20,
        "a planet that took members for strangers greets them within 6 s",
    ),
    bound(Fault::DiskRefuses, 4, NOTHING),
    bound(
        Fault::DiskForgets,
        12,
        "a life begins with paths that may be of former places, and finds others",
    ),
    bound(
        Fault::Keys,
        4,
        "sessions go on until those of the new keys stand",
    ),
    bound(
        Fault::Identity,
        4,
        "sessions go on until those of the new keys stand",
    ),
    bound(
        Fault::Rejoin,
        9,
        "planets tell others of an admission, and a path is found as for the first time",
    ),
    bound(
        Fault::LongOff,
        9,
        "who was away for longer than a NAT remembers finds a path as for the first time",
    ),
    bound(Fault::V6Flips, 9, SILENT),
    bound(Fault::Copied, 30, OUTBID),
    bound(Fault::CopiedLive, 30, OUTBID),
    bound(Fault::PutBack, 6, BEGUN),
];

/// The bound of a fault.
pub fn most(fault: Fault) -> Duration {
    let row = BOUNDS.iter().find(|row| row.fault == fault).unwrap();
    Duration::from_secs(row.seconds)
}

#[test]
fn every_fault_has_a_bound_and_a_reason() {
    for fault in Fault::ALL {
        let rows = BOUNDS.iter().filter(|row| row.fault == fault);
        assert_eq!(rows.count(), 1, "{fault:?}");
    }
    assert!(BOUNDS.iter().all(|row| !row.why.is_empty()));
}
