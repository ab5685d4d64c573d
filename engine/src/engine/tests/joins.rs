//! What a join that doesn't go as wanted says.

use super::*;

#[test]
fn a_join_that_reaches_no_planet_says_so() {
    let mut world = World::new(1);
    let token = world.authority.token(1);
    let (now, planet) = (world.now, world.planet_id());
    let engine = &mut world.engines[0];
    engine.handle_join(&token, name("n1"), now).unwrap();
    assert!(
        engine.status(now).health.is_empty(),
        "nothing was tried yet"
    );
    let reason = "can't resolve planet.example.org:7077".to_owned();
    engine.handle_planet(planet, PlanetEvent::Disconnected { reason }, now);
    let [entry] = engine.status(now).health.try_into().unwrap();
    assert!(entry.message.contains("can't resolve"), "{}", entry.message);
    assert!(entry.next.unwrap().contains("new token"));
    // A planet that is there and shows how wrong the clock is.
    let remote = "192.0.2.1:7077".parse().unwrap();
    let rtt = Duration::from_millis(5);
    engine.handle_planet(planet, PlanetEvent::Connected { remote, rtt }, now);
    world.planet_says(0, PlanetMessage::Clock(now.unix.plus(10_800)));
    let health = world.engines[0].status(now).health;
    assert!(
        health.iter().any(|entry| entry.code == "MESH-CLOCK-001"),
        "{health:?}"
    );
}

#[test]
fn a_token_that_is_over_by_this_clock_says_what_the_clock_says() {
    let mut world = World::new(1);
    let token = world.authority.token(1);
    let (_, grant) = token.verify().unwrap();
    let mut now = world.now;
    now.unix = grant.expires.plus(3_600);
    let error = world.engines[0]
        .handle_join(&token, name("n1"), now)
        .unwrap_err();
    let said = error.to_string();
    for word in [grant.expires, now.unix] {
        assert!(said.contains(&word.to_string()), "{said}");
    }
    assert!(error.next().unwrap().contains("clock"));
}

#[test]
fn a_join_that_is_refused_says_why_and_one_that_is_put_off_goes_on() {
    let mut world = World::new(1);
    let token = world.authority.token(1);
    let now = world.now;
    let planet = world.planet_id();
    let refusal = |code| {
        let reason = "because".to_owned();
        PlanetMessage::Refused(Refusal {
            code,
            reason,
            retry_in: None,
        })
    };
    world.engines[0]
        .handle_join(&token, name("n1"), now)
        .unwrap();
    assert!(
        world.engines[0]
            .handle_join(&token, name("n1"), now)
            .is_err()
    );
    assert!(world.engines[0].hello(planet, b"x").is_some());
    world.drain(0);
    assert!(world.stored[0].as_ref().unwrap().joining.is_some());
    let remote = "192.0.2.1:7077".parse().unwrap();
    let rtt = Duration::from_millis(5);
    world.engines[0].handle_planet(planet, PlanetEvent::Connected { remote, rtt }, now);
    world.planet_says(0, refusal(RefusalCode::Relearning));
    let status = world.engines[0].status(now);
    assert_eq!(status.state, NodeState::Joining);
    assert_eq!(status.health[0].code, "MESH-JOIN-001");
    // The process dies in the middle: the join goes on from disk.
    world.restart(0);
    world.run(Duration::from_secs(1));
    assert_eq!(world.notes, ["join 0 Ok(())"]);

    let mut other = World::new(1);
    other.engines[0]
        .handle_join(&token, name("n1"), now)
        .unwrap();
    let event = PlanetEvent::Connected { remote, rtt };
    other.engines[0].handle_planet(planet, event, now);
    other.planet_says(0, refusal(RefusalCode::TokenUsedUp));
    assert!(other.notes[0].contains("TokenUsedUp"), "{:?}", other.notes);
    assert_eq!(other.engines[0].status(now).state, NodeState::NotJoined);
    assert!(other.stored[0].as_ref().unwrap().joining.is_none());
}

#[test]
fn a_token_that_cant_be_used_is_refused_before_anything_happens() {
    let mut world = World::new(1);
    let now = world.now;
    let mut token = world.authority.token(1);
    let (grant, _) = world.authority.grant(1);
    let old = Grant {
        expires: START.minus(1_000),
        ..grant.clone()
    };
    token.grant = Signed::seal(&old, &world.authority.root).unwrap();
    let error = world.engines[0]
        .handle_join(&token, name("n1"), now)
        .unwrap_err();
    assert!(error.to_string().contains("expired at"), "{error}");
    let other = Grant {
        for_name: Some(name("n7")),
        ..grant.clone()
    };
    token.grant = Signed::seal(&other, &world.authority.root).unwrap();
    let error = world.engines[0]
        .handle_join(&token, name("n1"), now)
        .unwrap_err();
    assert!(error.to_string().contains("named n7, not n1"), "{error}");
    token.grant = Signed::seal(&grant, &world.authority.planet).unwrap();
    let error = world.engines[0]
        .handle_join(&token, name("n1"), now)
        .unwrap_err();
    assert!(
        error.to_string().contains("not signed by the root"),
        "{error}"
    );
    assert!(world.engines[0].poll_output().is_none());
}

/// It was off, or its planet was, for longer than the membership lasts that it asked for.
#[test]
fn a_join_that_is_answered_after_its_time_ends_as_an_ended_membership() {
    let mut world = World::new(1);
    let token = world.authority.token_for(1, Some(600));
    let now = world.now;
    world.engines[0]
        .handle_join(&token, name("n1"), now)
        .unwrap();
    world.drain(0);
    world.run(Duration::from_secs(1_200));
    world.restart(0);
    world.run(Duration::from_secs(10));
    let status = world.engines[0].status(world.now);
    assert_eq!(status.state, NodeState::Ended, "{:?}", status.health);
    assert_eq!(world.notes, ["join 0 Ok(())"]);
    let now = world.now;
    world.engines[0].handle_leave(now).unwrap();
    world.drain(0);
    assert_eq!(world.engines[0].status(now).state, NodeState::NotJoined);
}

/// What it had claimed before, its disk has forgotten: a planet takes no claim that isn't later.
#[test]
fn a_claim_is_dated_by_a_planet_where_the_clock_is_behind() {
    for behind in [3 * 3_600, 40 * 365 * 86_400] {
        let mut world = World::new(1);
        world.clocks.insert(0, -behind);
        let begun = world.now.unix;
        world.join_all();
        let own = world.engines[0]
            .members
            .as_ref()
            .and_then(|members| members.own());
        let serial = own.expect("a member").member.serial;
        assert!(serial >= begun.0, "{serial} by a clock {behind} s behind");
    }
}
