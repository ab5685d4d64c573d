//! Everything that others write and a node or a planet reads.

use podmesh_engine::control::ControlMessage;
use podmesh_engine::packet::{Header, control_payload};
use podmesh_engine::tunnel::{ephemeral_of, receiver_of};
use podmesh_proto::armor::decode_statement;
use podmesh_proto::datagram::DatagramKind;
use podmesh_proto::frame::FrameDecoder;
use podmesh_proto::planet_api::{NodeMessage, PlanetMessage};
use podmesh_proto::probe::tag_of;
use podmesh_proto::relayed::RelayHeader;
use podmesh_proto::spki;
use podmesh_proto::token::JoinToken;

use super::Bytes;

/// What says in its first byte what it is, and what has a meaning only to the right reader.
pub(crate) fn words(input: &[u8]) {
    let _ = (
        DatagramKind::of(input),
        receiver_of(input),
        ephemeral_of(input),
        tag_of(input),
    );
    let _ = (
        RelayHeader::parse(input),
        spki::decode(input),
        control_payload(input),
    );
    if let Some(header) = Header::parse(input) {
        assert!(header.length <= input.len());
    }
    if let Some(message) = ControlMessage::decode(input) {
        // What came from a longer packet may be padded, but never says more than can be said.
        let again = message.encode(0).expect("what was read can be written");
        let twice = ControlMessage::decode(&again).and_then(|message| message.encode(0));
        assert_eq!(twice, Some(again));
    }
    if let Ok(text) = str::from_utf8(input) {
        let _ = (decode_statement(text), text.parse::<JoinToken>());
    }
    stream::<NodeMessage>(input);
    stream::<PlanetMessage>(input);
}

/// A control stream that arrives in pieces of any length says the same as in one piece.
fn stream<T: serde::de::DeserializeOwned + serde::Serialize>(input: &[u8]) {
    let mut bytes = Bytes(input);
    let step = usize::from(bytes.byte()).max(1);
    let count = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let mut decoder = FrameDecoder::default();
        let mut messages = 0_usize;
        for piece in pieces {
            decoder.push(piece);
            loop {
                match decoder.next::<T>("message") {
                    Ok(Some(_)) => messages += 1,
                    Ok(None) => break,
                    Err(_) => return (messages, false),
                }
            }
        }
        (messages, true)
    };
    let whole = count(&mut std::iter::once(bytes.0));
    assert_eq!(count(&mut bytes.0.chunks(step)), whole);
}
