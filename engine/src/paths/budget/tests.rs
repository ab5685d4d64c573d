use super::*;

fn at(millis: u64) -> Moment {
    Moment::from_start(Duration::from_millis(millis))
}

fn member(number: u16) -> NodeId {
    let mut id = [7; 32];
    id[..2].copy_from_slice(&number.to_be_bytes());
    NodeId(id)
}

/// An address in one IPv4 /24 or IPv6 /64.
fn neighbour(number: u8, v6: bool) -> IpAddr {
    if v6 {
        IpAddr::from([0x2001, 0xdb8, 0, 5, 0, 0, u16::from(number), 1])
    } else {
        IpAddr::from([198, 51, 100, number])
    }
}

/// At most `limit` of the moments, in milliseconds, lie in any 30 s.
fn assert_spread(sent: &[u64], limit: usize) {
    for start in sent {
        let within = sent
            .iter()
            .filter(|other| (*start..start + 30_000).contains(other));
        assert!(within.count() <= limit);
    }
}

#[test]
fn an_address_gets_seventeen_probes_in_any_thirty_seconds() {
    let mut budget = ProbeBudget::new(Moment::ZERO);
    let victim = neighbour(7, false);
    let sent: Vec<u64> = (0..120_000)
        .step_by(7)
        .filter(|millis| budget.take(member(1), victim, Evidence::Claimed, at(*millis)))
        .collect();
    assert!(sent.len() >= 4 * 17);
    assert_spread(&sent, 17);
    let other = budget.take(member(2), victim, Evidence::Claimed, at(120_000));
    assert!(other, "another member's are its own");
}

#[test]
fn a_network_gets_no_more_however_many_addresses_and_members_are_named() {
    for v6 in [false, true] {
        for (members, nodes, limit) in [(1, 10, 34), (30, 10, 68), (30, 250, 68), (30, 1_000, 17)] {
            let mut budget = ProbeBudget::new(Moment::ZERO);
            budget.set_nodes(nodes);
            let sent: Vec<u64> = (0..90_000_u64)
                .step_by(5)
                .filter(|millis| {
                    let number = u8::try_from(millis / 5 % 250).unwrap();
                    let liar = member(u16::from(number) % members);
                    let target = neighbour(number, v6);
                    budget.take(liar, target, Evidence::Claimed, at(*millis))
                })
                .collect();
            assert_spread(&sent, limit);
            // Each is 116 bytes long.
            assert!(limit * nodes * 116 <= 2_000_000);
        }
    }
}

#[test]
fn a_member_whose_word_is_false_everywhere_has_a_bound_of_its_own() {
    let mut budget = ProbeBudget::new(Moment::ZERO);
    let place = |n: u64| IpAddr::V4((0x0b00_0000 + (u32::try_from(n).unwrap() << 8)).into());
    let sent: Vec<u64> = (0..60_000)
        .step_by(4)
        .filter(|millis| {
            let evidence = [Evidence::Claimed, Evidence::Heard];
            let evidence = evidence[usize::from(millis % 8 == 0)];
            budget.take(member(1), place(*millis), evidence, at(*millis))
        })
        .collect();
    assert_spread(&sent, 16 * 17);
    let honest = budget.take(
        member(2),
        neighbour(1, false),
        Evidence::Claimed,
        at(60_000),
    );
    assert!(honest, "what a liar spends is missing to nobody else");
}

/// Each of 250 members in one network has a burst of six pings; who gets one answers at once.
#[test]
fn a_rack_of_250_in_one_network_comes_up_at_once() {
    for v6 in [false, true] {
        let mut budget = ProbeBudget::new(Moment::ZERO);
        budget.set_nodes(250);
        let mut direct = vec![None; 250];
        for millis in [0, 50, 150, 350, 750, 1_550] {
            for (number, direct) in (0_u8..250).zip(&mut direct) {
                // One in ten is off.
                let (id, address) = (member(number.into()), neighbour(number, v6));
                let sent =
                    direct.is_none() && budget.take(id, address, Evidence::Claimed, at(millis));
                if sent && number % 10 != 3 {
                    *direct = Some(millis);
                    budget.answered(id, address, at(millis));
                }
            }
        }
        for (number, direct) in direct.iter().enumerate() {
            let soon = direct.is_some_and(|millis| millis <= 50);
            assert!(soon || number % 10 == 3, "{number}: {direct:?}");
        }
    }
}

#[test]
fn who_is_alone_in_its_network_has_a_burst_to_an_address_in_a_mesh_of_any_size() {
    for nodes in [10, 250, 1_000, 10_000] {
        let mut budget = ProbeBudget::new(Moment::ZERO);
        budget.set_nodes(nodes);
        let target = neighbour(7, false);
        let sent = (0..100)
            .filter(|millis| budget.take(member(1), target, Evidence::Claimed, at(*millis)));
        assert_eq!(sent.count(), 17, "{nodes} nodes");
    }
}

/// A node whose NAT gives every destination another port tries four such peers and one it can reach, all of
/// one provider.
#[test]
fn peers_that_are_out_of_reach_leave_something_to_their_neighbour() {
    for v6 in [false, true] {
        let mut budget = ProbeBudget::new(Moment::ZERO);
        let mut claim = |number: u8, millis| {
            let target = neighbour(number, v6);
            budget.take(member(number.into()), target, Evidence::Claimed, at(millis))
        };
        for millis in 0..100 {
            for number in 0..5 {
                claim(number, millis);
            }
        }
        let sent = (100..200).filter(|millis| claim(9, *millis)).count();
        assert_eq!(sent, 4);
    }
}

#[test]
fn who_knocks_or_has_worked_before_is_answered_in_a_network_that_is_used_up() {
    let mut budget = ProbeBudget::new(Moment::ZERO);
    for number in 0..200 {
        let (liar, target) = (member(number), neighbour(9, false));
        budget.take(liar, target, Evidence::Claimed, at(0));
    }
    // Its own false candidates don't count against a place that it knocks from.
    let (honest, place) = (member(500), neighbour(10, false));
    for _ in 0..100 {
        budget.take(honest, place, Evidence::Claimed, at(0));
    }
    assert!(!budget.take(honest, place, Evidence::Claimed, at(1)));
    assert!(budget.take(honest, place, Evidence::Heard, at(1)));
    assert!(budget.take(honest, place, Evidence::Answers, at(1)));
}

#[test]
fn an_answer_speaks_for_its_network_for_a_time_and_as_long_as_its_member_is_one() {
    let used_up = |budget: &mut ProbeBudget, millis: u64| {
        let mut refused = |n: &u16| {
            !budget.take(
                member(*n),
                neighbour(1, false),
                Evidence::Claimed,
                at(millis),
            )
        };
        (0..100).any(|n| refused(&n))
    };
    let mut budget = ProbeBudget::new(Moment::ZERO);
    budget.answered(member(500), neighbour(2, false), at(0));
    assert!(!used_up(&mut budget, 10));
    assert!(used_up(&mut budget, 700_000), "that was long ago");
    budget.answered(member(500), neighbour(2, false), at(800_000));
    budget.forget(&member(500));
    assert!(used_up(&mut budget, 800_010), "it has left");
}

#[test]
fn who_leaves_and_joins_again_sends_a_victim_no_more() {
    let mut budget = ProbeBudget::new(Moment::ZERO);
    let victim = neighbour(7, false);
    let mut sent = Vec::new();
    for millis in (0..90_000).step_by(7) {
        if millis % 5_005 == 0 {
            budget.leave(at(millis));
        }
        if budget.take(member(1), victim, Evidence::Claimed, at(millis)) {
            sent.push(millis);
        }
    }
    assert!(sent.len() >= 3 * 17);
    assert_spread(&sent, 17);
    budget.answered(member(2), neighbour(8, false), at(90_000));
    budget.leave(at(200_000));
    assert!(budget.members.is_empty() && budget.proven.is_empty());
}

#[test]
fn the_node_as_a_whole_and_its_memory_are_bounded() {
    let mut budget = ProbeBudget::new(Moment::ZERO);
    let sent = (0..100_000_u32)
        .filter(|n| {
            let target = IpAddr::V4((0x0b00_0000 + (n << 8)).into());
            let liar = member(u16::try_from(n % 500).unwrap());
            let now = at(u64::from(*n));
            budget.answered(liar, target, now);
            budget.take(liar, target, Evidence::Claimed, now)
        })
        .count();
    assert!(sent <= 400 + 100 * 200, "{sent} probes in 100 s");
    assert!(budget.sent.len() <= MAX_PAIRS);
    assert!(budget.claimed.len() <= MAX_PAIRS);
    assert!(budget.proven.len() <= 500 * MAX_PROVEN);
}

/// What a peer that comes and goes causes until it has answered, each time.
#[test]
fn what_went_to_who_answers_is_given_back_and_what_went_to_its_neighbour_is_not() {
    let mut budget = ProbeBudget::new(Moment::ZERO);
    let (home, victim) = (neighbour(7, false), neighbour(8, false));
    let (full, short) = (1_280, 64);
    let take = |budget: &mut ProbeBudget, target, length| {
        budget.take_answer(member(1).into(), (target, length), Evidence::Heard, at(0))
    };
    for _ in 0..100 {
        assert!(take(&mut budget, home, full) && take(&mut budget, home, short));
        budget.answered(member(1), home, at(0));
    }
    let mut sent = [0; 2];
    for _ in 0..100 {
        for (length, sent) in [232, short].into_iter().zip(&mut sent) {
            *sent += u32::from(take(&mut budget, victim, length));
        }
        budget.answered(member(1), home, at(0));
    }
    // Long ones, of two units each here, leave room for short ones.
    assert_eq!(sent, [9, 34 - 2 * 9]);
}
