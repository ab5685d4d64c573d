//! What strangers cost a planet.

use std::time::{Duration, Instant};

use podmesh_proto::id::PlanetId;
use tokio::task::JoinSet;

use super::Place;
use crate::story::Operator;
use crate::story::client::Client;

/// Bytes that everybody who isn't a member may cost together.
const STRANGERS: u64 = 16 << 20;

/// For the planet to see that they are gone.
const PATIENCE: Duration = Duration::from_secs(20);

/// Many at once, of several networks, who say nothing until they are shown out.
async fn come_and_go(place: &Place, planet: PlanetId) -> usize {
    let mut dialling = JoinSet::new();
    for number in 0..480_u16 {
        let (address, from) = (
            place.address,
            format!("127.0.{}.{}", number % 8, 1 + number / 8),
        );
        dialling.spawn(async move {
            let client = Client::dial_from(&from, (address, planet), None)
                .await
                .ok()?;
            Some(client.connection.closed().await)
        });
    }
    let gone = dialling.join_all().await;
    gone.iter().flatten().count()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_strangers_have_cost_is_given_back_when_they_are_gone() {
    let operator = Operator::new(207);
    let mut place = Place::found(&operator);
    tokio::task::block_in_place(|| place.start());
    let planet = operator.planet_key().planet_id();
    let before = place.resident();
    for _ in 0..2 {
        let came = come_and_go(&place, planet).await;
        assert!(came > 240, "{came} were let in");
    }
    let started = Instant::now();
    let grown = || place.resident().saturating_sub(before);
    while grown() > STRANGERS && started.elapsed() < PATIENCE {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    println!("figure {} bytes more after 960 strangers", grown());
    assert!(grown() <= STRANGERS, "{} bytes are kept", grown());
}
