//! GC: frees what belongs to no pod any more, and what crashes and reboots have left behind.

use std::collections::{HashMap, HashSet};

use podmesh_kernel::veth::{self, HostEnd};

use crate::{
    add,
    attachment::{HOST_PREFIX, is_host_name},
    del,
    ledger::{self, Ledger, Moment},
    reply::{Code, Failure},
    request::{Config, Request},
    warn,
};

/// Removes every attachment of this network that the runtime does not list, and every interface
/// of this network in this ledger that no record knows. What other networks and ledgers have made
/// stays, whatever this call lists.
pub(crate) fn run(request: &Request) -> Result<(), Failure> {
    let config = &request.config;
    let valid = config.valid_attachments.as_ref().ok_or_else(|| {
        Failure::new(
            Code::InvalidConfig,
            "cni.dev/valid-attachments is missing: without it every pod would be removed",
        )
    })?;
    let valid: HashSet<_> = valid
        .iter()
        .map(|attachment| attachment.host_name())
        .collect();
    // In this order: an ADD that runs meanwhile has its record before it has its interface.
    let ends = veth::host_ends(HOST_PREFIX)
        .map_err(|error| Failure::new(Code::Kernel, error.to_string()))?;
    let names: Vec<_> = ends.iter().map(|end| end.name.clone()).collect();
    let mut ledger = Ledger::open(&config.data_dir, Moment::read()?, &names)?;
    ledger.release_dead(&names, add::interfaces)?;
    let owners: HashMap<_, _> = ends
        .iter()
        .map(|end| (end.name.as_str(), end.owner.as_deref()))
        .collect();
    let mut known = HashSet::new();
    let mut stale = Vec::new();
    for (name, record) in ledger.records() {
        known.insert(name.to_owned());
        let ours = match record {
            Some(record) => record.network == config.name,
            // The disk has spoiled the record; the interface tells whose it is.
            None => owners
                .get(name)
                .copied()
                .flatten()
                .is_none_or(|made_by| ledger::is_owner(config, made_by)),
        };
        if ours && !valid.contains(name) {
            stale.push(name.to_owned());
        }
    }
    drop(ledger);
    let orphans = ends
        .iter()
        .filter(|end| is_host_name(&end.name) && is_of(end, config))
        .map(|end| end.name.clone())
        .filter(|name| !known.contains(name) && !valid.contains(name));
    let mut result = Ok(());
    for name in stale.into_iter().chain(orphans) {
        // One that resists must not keep the others.
        if let Err(failure) = del::remove(config, &name) {
            warn(&format!("{name} is left: {failure}"));
            result = Err(failure);
        }
    }
    result
}

/// Whether an interface that no record knows is this call's to remove. One that is up without
/// naming anybody was made before interfaces named their ledger, so it counts as the default
/// ledger's. One that is not up is being made, or was left in the making: the record of its own
/// ledger, which is older than the interface, finds it.
fn is_of(end: &HostEnd, config: &Config) -> bool {
    match &end.owner {
        Some(made_by) => ledger::is_owner(config, made_by),
        None => end.is_up && config.data_dir == Config::default_data_dir(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_names_nobody_is_the_default_ledgers_once_it_is_up() {
        let config = |text: &str| serde_json::from_str::<Config>(text).unwrap();
        let default = config(r#"{"name":"n"}"#);
        let other = config(r#"{"name":"n","dataDir":"/somewhere/else"}"#);
        let owner = ledger::owner(&default);
        let end = |made_by: Option<&str>, is_up| HostEnd {
            name: "pm0123456789a".to_owned(),
            owner: made_by.map(str::to_owned),
            is_up,
            addresses: Vec::new(),
        };
        for (made_by, is_up, config, expected) in [
            (Some(owner.as_str()), true, &default, true),
            (
                Some("podmesh m /var/lib/cni/podmesh"),
                true,
                &default,
                false,
            ),
            (Some("podmesh n /somewhere/else"), true, &default, false),
            (Some("somebody's own words"), true, &default, false),
            (None, true, &default, true),
            (None, true, &other, false),
            (None, false, &default, false),
            (None, false, &other, false),
        ] {
            let end = end(made_by, is_up);
            assert_eq!(is_of(&end, config), expected, "{end:?}");
        }
    }

    #[test]
    fn an_owner_fits_an_interface_and_stays_distinct() {
        let owner = |length: usize| {
            let folder = "x".repeat(length);
            let text = format!(r#"{{"name":"n","dataDir":"/{folder}"}}"#);
            ledger::owner(&serde_json::from_str(&text).unwrap())
        };
        assert!(owner(20).ends_with('x'));
        assert!(owner(4000).len() <= veth::MAX_OWNER_BYTES);
        assert_ne!(owner(4000), owner(4001));
    }

    #[test]
    fn an_owner_in_the_words_of_an_older_version_is_known() {
        let folder = "x".repeat(200);
        let text = format!(r#"{{"name":"n","dataDir":"/{folder}"}}"#);
        let config = serde_json::from_str::<Config>(&text).unwrap();
        let whole = format!("podmesh n /{folder}");
        assert!(ledger::is_owner(&config, &whole));
        assert!(ledger::is_owner(&config, &whole[..150]));
        assert!(ledger::is_owner(&config, &ledger::owner(&config)));
        assert!(!ledger::is_owner(&config, &whole[..40]));
        assert!(!ledger::is_owner(&config, &whole.replace('x', "y")));
    }
}
