//! Leases whose pods have gone without a DEL, or whose DEL couldn't write.

use crate::{
    reply::{Code, Failure},
    warn,
};

use super::{Ledger, Record};

/// A record without an interface counts as abandoned after this many seconds, three times as
/// long as an ADD may take.
pub(crate) const ABANDONED_AFTER_SECONDS: u64 = 60;

impl Ledger {
    /// Frees what has no interface and whose sandbox has gone, or whose ADD is over for long.
    /// `present` are the node's ends that exist; `look` lists them again, under the lock: an ADD
    /// that has just made its interface keeps its record, and one that hasn't yet finds that it
    /// has lost it ([`super::still_holds`]).
    ///
    /// # Errors
    ///
    /// What `look` says. A ledger that can't be written keeps the record for the next time.
    pub(crate) fn release_dead(
        &mut self,
        present: &[String],
        look: impl FnOnce() -> Result<Vec<String>, Failure>,
    ) -> Result<(), Failure> {
        let suspects: Vec<_> = self
            .records
            .iter()
            .filter(|(name, _)| !present.contains(name))
            .filter(|(_, record)| record.as_ref().is_none_or(|record| self.is_dead(record)))
            .map(|(name, _)| name.clone())
            .collect();
        if suspects.is_empty() {
            return Ok(());
        }
        let present = look()?;
        for name in suspects.iter().filter(|name| !present.contains(name)) {
            if let Err(failure) = self.release(name) {
                warn(&format!("{name} is left for later: {failure}"));
            }
        }
        Ok(())
    }

    /// Whether somebody's sandbox has gone and the interface is still to follow: the kernel clears
    /// a namespace away some time after its last user.
    pub(crate) fn has_dying(&self, present: &[String]) -> bool {
        let is_dying = |record: &Record| record.sandbox.as_ref().is_some_and(|one| one.is_gone());
        let mut records = self.records.iter();
        records
            .any(|(name, record)| present.contains(name) && record.as_ref().is_some_and(is_dying))
    }

    fn is_dead(&self, record: &Record) -> bool {
        let age = self.moment.now.saturating_sub(record.since);
        age > ABANDONED_AFTER_SECONDS
            || record.boot != self.moment.boot
            || record.sandbox.as_ref().is_some_and(|one| one.is_gone())
    }

    /// Why there is no address, with what helps.
    pub(super) fn full(&self, cidr: &ipnet::IpNet, supply: &super::Supply<'_>) -> Failure {
        let has_one_there = |record: &Record| record.addresses.iter().any(|a| cidr.contains(a));
        let holders = self
            .records
            .iter()
            .filter(|(_, record)| record.as_ref().is_some_and(has_one_there));
        let (living, waiting): (Vec<_>, Vec<_>) =
            holders.partition(|(name, _)| supply.interfaces.contains(name));
        let known = |address: &std::net::IpAddr| {
            let mut records = self.records.values().flatten();
            records.any(|record| record.addresses.contains(address))
        };
        let strangers = supply.present.iter();
        let strangers = strangers.filter(|address| cidr.contains(*address) && !known(address));
        let mut holders = vec![format!("{} by pods of this node", living.len())];
        let strangers = strangers.count();
        if strangers > 0 {
            holders.push(format!(
                "{strangers} by pods that this ledger does not know"
            ));
        }
        let next = if waiting.is_empty() {
            "give this node a larger pod CIDR"
        } else {
            holders.push(format!(
                "{} by pods without an interface, which are being attached or were never taken off",
                waiting.len()
            ));
            "those without an interface are free after a minute at most: try again then, or give \
             this node a larger pod CIDR"
        };
        Failure::new(
            Code::NoAddressLeft,
            format!(
                "all addresses of {cidr} are taken, {}: {next}",
                holders.join(", ")
            ),
        )
    }
}
