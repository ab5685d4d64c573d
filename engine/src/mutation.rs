//! Deliberate mistakes, to prove that the simulator would notice them.
//!
//! Without the feature `virtual-time`, which no shipped program has, there is no switch: no rule is
//! ever broken.

/// A rule that is broken on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// Endpoints behind a NAT are pinged at once, not at the instant of a punch.
    NoHold,
    /// A path counts as proven when the peer's ping came over it.
    NoEcho,
    /// A path that is doubted is left before another is proven.
    BreakBeforeMake,
    /// A peer may use any source inside its tunnel.
    NoOwnerCheck,
    /// A member needs no planet's receipt.
    NoReceiptCheck,
    /// Probes may be replayed.
    NoReplayCheck,
    /// Relays are preferred to direct paths.
    RelayFirst,
    /// A silent path is never given up.
    NeverDead,
    /// An unexpected endpoint of the peer is not pinged back.
    NoTriggeredCheck,
    /// A revoked node stays a member.
    RevokedStays,
    /// A new claim takes what a known member holds.
    NewestClaimWins,
    /// Probes are not bounded, and bursts of them don't end.
    NoBudget,
    /// A renewal is told before it is on disk.
    RenewalUnsaved,
    /// A renewal is asked for before that is on disk.
    RequestUnsaved,
    /// New keys are asked for though the disk refuses to write that down.
    RotationUnsaved,
    /// New keys that the last life could not ask for are not asked for.
    RotationForgotten,
    /// Old keys are wiped before the membership that names the new ones is on disk.
    KeysWipedEarly,
    /// The stored floor of the incarnation is ignored.
    FloorIgnored,
    /// Probes of a peer's former life are taken.
    FormerLifeProbes,
    /// Peers that were dropped with this node's standing are not taken up again.
    StandingForgotten,
    /// What is known of a member goes when it isn't routed to for a while.
    RestForgets,
    /// A member that a wrong clock has ended doesn't begin again.
    EndedForGood,
    /// What was refused because of the time is never asked for again.
    UntimelyForgotten,
    /// In a large mesh a peer is let go after a second of silence.
    SleepsEarly,
    /// In a large mesh traffic for a peer that was let go doesn't wake it.
    NeverWakes,
    /// A node that hears of a later life of its own doesn't go beyond it.
    TwinUnheard,
    /// A later life of its own that a node hears of soon after another is forgotten.
    TwinForgotten,
    /// What peers have to know of lives that are over is said once, whether or not it is heard.
    LivesSaidOnce,
    /// A record by an identity that its node has replaced stands against those by the present one.
    FormerRecordStands,
    /// Of two machines of one identity that began in the same second, the one that has said less isn't shown
    /// what is believed in the place of its own word.
    SameLifeUnshown,
    /// That another machine has this node's identity is not said.
    TwinUnsaid,
    /// Each life of a node begins with the same random numbers.
    SeedRepeats,
    /// Now and then two packets of a session have the same number.
    CounterRepeats,
    /// A silent path is given up after half a minute.
    LateDead,
    /// Nobody is reached by IPv6.
    NoV6,
    /// A node dates its departure by its own clock.
    LeavesByClock,
    /// A node that hears that it has left doesn't believe it.
    DepartureUnheard,
    /// Who is told of the very life in which it speaks goes beyond it.
    ReplaysRaise,
    /// A peer's echo over another path than the one in use is a reason to ask for one.
    EchoesAreTraffic,
    /// A session of boringtun's that the peer has begun may be sent on before the peer is known to have it.
    SendsUnconfirmed,
    /// What a tunnel remembers of a peer's former life counts against the one after, once this node has begun a
    /// session with it.
    FormerLifeRemembered,
    /// What a peer's probes say of a later life of this node's isn't heard.
    LifeUnnamed,
    /// That a peer answers a handshake doesn't show that it is where the handshake went.
    HandshakeProvesNothing,
    /// A later life of a peer's that has no way to this node isn't told to others.
    LifeNotPassedOn,
    /// A new life tries the former path again whenever the peer begins a handshake.
    GoesBackAgain,
    /// A path whose other end the peer has left, by its own word, is asked until it is known to be dead.
    WithdrawnStays,
}

#[cfg(feature = "virtual-time")]
pub use switch::{ALL, set, set_rogue};
#[cfg(feature = "virtual-time")]
pub(crate) use switch::{is, is_rogue, receiptless};

/// Whether this rule is broken on this thread.
#[cfg(not(feature = "virtual-time"))]
pub(crate) const fn is(_mutant: Mutant) -> bool {
    false
}

/// Whether nodes on this thread lie about their sources.
#[cfg(not(feature = "virtual-time"))]
pub(crate) const fn is_rogue() -> bool {
    false
}

#[cfg(feature = "virtual-time")]
mod switch {
    use std::cell::Cell;

    use podmesh_proto::certificate::{Member, Membership};
    use podmesh_proto::network::Network;

    use super::Mutant;

    /// Every mutant.
    pub const ALL: [Mutant; 46] = [
        Mutant::NoHold,
        Mutant::NoEcho,
        Mutant::BreakBeforeMake,
        Mutant::NoOwnerCheck,
        Mutant::NoReceiptCheck,
        Mutant::NoReplayCheck,
        Mutant::RelayFirst,
        Mutant::NeverDead,
        Mutant::NoTriggeredCheck,
        Mutant::RevokedStays,
        Mutant::NewestClaimWins,
        Mutant::NoBudget,
        Mutant::RenewalUnsaved,
        Mutant::RequestUnsaved,
        Mutant::RotationUnsaved,
        Mutant::RotationForgotten,
        Mutant::KeysWipedEarly,
        Mutant::FloorIgnored,
        Mutant::FormerLifeProbes,
        Mutant::StandingForgotten,
        Mutant::RestForgets,
        Mutant::EndedForGood,
        Mutant::UntimelyForgotten,
        Mutant::SleepsEarly,
        Mutant::NeverWakes,
        Mutant::TwinUnheard,
        Mutant::TwinForgotten,
        Mutant::LivesSaidOnce,
        Mutant::FormerRecordStands,
        Mutant::SameLifeUnshown,
        Mutant::TwinUnsaid,
        Mutant::SeedRepeats,
        Mutant::CounterRepeats,
        Mutant::LateDead,
        Mutant::NoV6,
        Mutant::LeavesByClock,
        Mutant::DepartureUnheard,
        Mutant::ReplaysRaise,
        Mutant::EchoesAreTraffic,
        Mutant::SendsUnconfirmed,
        Mutant::FormerLifeRemembered,
        Mutant::LifeUnnamed,
        Mutant::HandshakeProvesNothing,
        Mutant::LifeNotPassedOn,
        Mutant::GoesBackAgain,
        Mutant::WithdrawnStays,
    ];

    thread_local! {
        static MUTANT: Cell<Option<Mutant>> = const { Cell::new(None) };
        static ROGUE: Cell<bool> = const { Cell::new(false) };
    }

    /// Breaks one rule on this thread, or none.
    pub fn set(mutant: Option<Mutant>) {
        MUTANT.set(mutant);
    }

    /// Lets nodes on this thread send with sources that are not theirs, as a rogue would.
    pub fn set_rogue(rogue: bool) {
        ROGUE.set(rogue);
    }

    pub(crate) fn is(mutant: Mutant) -> bool {
        MUTANT.get() == Some(mutant)
    }

    pub(crate) fn is_rogue() -> bool {
        ROGUE.get()
    }

    /// A member whose certificate holds, whatever its receipts say.
    pub(crate) fn receiptless(membership: &Membership, network: &Network) -> Option<Member> {
        let (grant, certificate) = membership.application.verify(network).ok()?;
        let receipt = membership.receipt.unverified().ok()?;
        let claim = membership.claim.unverified().ok()?;
        Some(Member {
            node: certificate.node,
            overlay6: network.overlay6(&certificate.node),
            name: certificate.name,
            wireguard: certificate.wireguard,
            probe: certificate.probe,
            site: certificate.site,
            groups: certificate.groups,
            relay: certificate.relay,
            overlay4: claim.overlay4,
            pod_cidrs: claim.pod_cidrs,
            admitted_by: (grant.token, receipt.use_number),
            replaces: grant.replaces,
            serial: claim.serial,
            sequence: receipt.sequence,
            admitted: receipt.time,
            issued: certificate.issued,
            expires: certificate.expires,
            certificate: membership.application.certificate.hash(),
            renewal: 0,
            document: membership.application.certificate.hash(),
            follows: None,
            identities: vec![certificate.node.into()],
        })
    }
}
