//! Everything that people get wrong: each mistake is answered by one clear sentence, the next step
//! and the documented exit code, and nothing is lost by it.
#![allow(
    clippy::print_stdout,
    reason = "what each mistake was answered with is shown when a scenario is read"
)]

mod disks;
mod joins;
mod pings;
mod ranges;
mod stand;
mod starts;

use std::time::Instant;

use anyhow::Result;
use podmesh_lab::ping::PairReport;

use stand::{Said, Stand};

/// A mistake, and what it must be answered with.
struct Row {
    mistake: &'static str,
    make: fn(&Stand<'_>) -> Result<Said>,
    code: i32,
    cause: &'static [&'static str],
    next: &'static str,
}

const fn row(
    mistake: &'static str,
    make: fn(&Stand<'_>) -> Result<Said>,
    code: i32,
    cause: &'static [&'static str],
    next: &'static str,
) -> Row {
    Row {
        mistake,
        make,
        code,
        cause,
        next,
    }
}

#[rustfmt::skip]
const ROWS: &[Row] = &[
    row("a token with a wrong letter", joins::wrong_letter, 3, &["join token can't be used"], "copy the file again"),
    row("half a token", joins::half, 3, &["join token can't be used"], "copy the file again"),
    row("another file in the token's place", joins::no_token, 3, &["join token can't be used"], "copy the file again"),
    row("no file in the token's place", joins::no_file, 6, &["can't read", "no-such-file"], "check the path"),
    row("the token itself as an argument", joins::as_argument, 3, &["on the command line"], "revoke it"),
    row("a token that expired yesterday", joins::expired_yesterday, 3, &["expired at 20"], "meshctl token create"),
    row("a token that expired a moment ago", joins::expired_just_now, 1, &["expired at 20"], "new token"),
    row("a token that is used up", joins::used_up, 1, &["the one use", "is spent"], "new token"),
    row("a token for another network", joins::other_network, 1, &["the planet refused", "network"], "use a token of the network"),
    row("a name that another node has", joins::taken_name, 1, &["has the name member-1", "meshctl token create --for member-1 --replaces"], "--name"),
    row("a second network on one node", joins::second_network, 1, &["already a member of network lab"], "meshctl leave"),
    row("a planet that nothing reaches", joins::planet_unreachable, 7, &["203.0.113.99:7077"], "firewall"),
    row("a planet with another key", joins::planet_with_another_key, 7, &["203.0.113.10:7077", "another key"], "check the address"),
    row("a ping of nobody", pings::of_nobody, 6, &["no peer", "'nobody-1'"], "meshctl peers"),
    row("a ping of the node itself", pings::of_itself, 3, &["'member-1' is this node itself"], "meshctl peers"),
    row("a ping on a node in no network", pings::without_a_network, 2, &["not joined a network"], "meshctl join"),
    row("a route inside the pod range", ranges::inside_pods, 1, &["pod range 10.42.0.0/16", "route 10.42.7.0/24 of eth0", "an administrator"], "take this node off that range"),
    row("a bridge in the pod range", ranges::bridge_in_pods, 1, &["pod range 10.42.0.0/16", "route 10.42.9.0/24 of bridge9", "an interface's address"], "take this node off that range"),
    row("a VPN inside the overlay range", ranges::vpn_in_overlay, 1, &["overlay range 10.77.0.0/16", "route 10.77.3.0/24 of eth0", "DHCP, table 52"], "take this node off that range"),
    row("a route around the overlay range", ranges::around_overlay, 1, &["overlay range 10.77.0.0/16", "route 10.64.0.0/11 of eth0"], "create the network with another one"),
    row("a route inside the IPv6 pod range", ranges::inside_pods6, 1, &["pod range fd", "of bridge9"], "take this node off that range"),
    row("a service range over the home LAN", ranges::services_over_lan, 1, &["service range 192.168.0.0/16", "route 192.168.", "of eth0", "an interface's address"], "create the network with another one"),
    row("overlapping ranges of a new network", ranges::of_new_network, 3, &["overlay range 10.42.0.0/17", "pod range 10.42.0.0/16"], "no address in common"),
    row("a configuration key that does not exist", starts::unknown_key, 3, &["wrong.toml", "unknown key 'prot'"], "did you mean 'port'"),
    row("a configuration value that can't be", starts::bad_value, 3, &["wrong.toml", "mtu = 100 is not possible"], "use 1280 to"),
    row("a configuration that is no TOML", starts::no_toml, 3, &["wrong.toml", "line 2"], "mtu"),
    row("a configuration that is not there", starts::no_configuration, 3, &["can't read the configuration", "no-such-file"], "--config"),
    row("a state folder that others can read", starts::open_folder, 5, &["state has mode 0755"], "chmod 700"),
    row("a state folder of somebody else", starts::foreign_folder, 5, &["belongs to user 65534"], "chown"),
    row("a key file that others can read", starts::open_file, 5, &["identity has mode 0644"], "chmod 600"),
    row("the socket without the right to it", starts::closed_socket, 5, &["may not use the socket"], "run it as root"),
    row("an open socket without the right to it", starts::open_socket, 5, &["this user may not"], "run it as root"),
    row("a join without the right to it", starts::join_of_a_stranger, 5, &["may not"], "run it as root"),
    row("no meshd to talk to", starts::no_daemon, 4, &["meshd is not running"], "systemctl start meshd"),
    row("a second meshd", starts::second_meshd, 1, &["another meshd uses the state folder"], "take over from it with --replace"),
    row("a second meshd with its own state", starts::second_meshd_elsewhere, 1, &["held by another process"], "stop it first"),
    row("a join on a full disk", disks::join_when_full, 1, &["not joining", "No space left on device"], "make room on the disk"),
    row("a disk that fills up under meshd", disks::filling_up, 0, &["can't be written", "No space left on device"], "make room on the disk"),
    row("an operator's folder on a full disk", disks::operators_folder, 1, &["No space left on device"], "free some space; nothing was changed"),
    row("two torn key files", disks::torn_identities, 1, &["identity is damaged", "no good generation"], "restore the file from a backup"),
    row("a torn key file", disks::torn_identity, 0, &["the identity file is damaged"], "its previous generation is used"),
    row("two torn state files", disks::torn_generations, 1, &["state is damaged", "no good generation"], "restore the file from a backup"),
    row("a torn state file", disks::torn_state, 0, &["the state file is damaged"], "its previous generation is used"),
];

#[test]
fn each_mistake_is_named_with_its_next_step_and_loses_nothing() {
    let lab = stand::plan().up().unwrap();
    let stand = Stand::build(&lab).unwrap();
    let start = Instant::now();
    let mut wrong = Vec::new();
    for row in ROWS {
        let before = stand.belongings().unwrap();
        let said = (row.make)(&stand).unwrap_or_else(|error| Said::nothing(&error));
        println!("{}\n    exit {:?}: {}", row.mistake, said.code, said.words);
        wrong.extend(row.faults(&said));
        match stand.belongings() {
            Ok(after) if after == before => {}
            other => wrong.push(format!("{}: {before:?} became {other:?}", row.mistake)),
        }
    }
    let pairs = stand.pings().report(start, Instant::now());
    let lost = PairReport::lost_in(&pairs);
    println!(
        "figure {} mistakes in {:.0} s, {lost} of {} pings lost",
        ROWS.len(),
        start.elapsed().as_secs_f32(),
        PairReport::sent_in(&pairs)
    );
    if lost > 0 {
        wrong.push(format!("pings were lost: {pairs:?}"));
    }
    wrong.extend(stand.goes_on().err().map(|error| format!("{error:#}")));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

impl Row {
    /// What is wrong with an answer.
    fn faults(&self, said: &Said) -> Vec<String> {
        let mut faults = Vec::new();
        if said.code != Some(self.code) {
            faults.push(format!("exit {:?} instead of {}", said.code, self.code));
        }
        for words in self.cause.iter().chain([&self.next]) {
            if !said.words.contains(words) {
                faults.push(format!("does not say '{words}'"));
            }
        }
        // Progress of a join may come before the sentence.
        let sentences = said.words.lines().filter(|line| Said::is_sentence(line));
        if self.code != 0 && sentences.count() != 1 {
            faults.push("is not told in one sentence".to_owned());
        }
        if ["panicked", "Error {", "Custom {"]
            .iter()
            .any(|mark| said.words.contains(mark))
        {
            faults.push("shows its inside".to_owned());
        }
        let whole = |fault| format!("{}: {fault}: {}", self.mistake, said.words);
        faults.into_iter().map(whole).collect()
    }
}
