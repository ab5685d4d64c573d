//! The tunnels' own messages: echoes, and news that members tell each other when planets can't.
//!
//! One version byte, then the message in postcard, then zeros up to the size that was asked for.

use serde::{Deserialize, Serialize};

use podmesh_proto::candidate::EndpointRecord;
use podmesh_proto::certificate::Departure;
use podmesh_proto::id::NodeId;
use podmesh_proto::network::RootStatement;
use podmesh_proto::renewal::Renewed;
use podmesh_proto::signed::Signed;
use podmesh_proto::statements::{Held, Summary};

const VERSION: u8 = 1;
/// Bytes. Longer messages don't go through tunnels: every path carries this much.
pub const MAX_CONTROL: usize = 1_200;

/// A message between two members.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ControlMessage {
    /// Answer me, by the same path.
    EchoRequest {
        /// Repeated by the answer.
        id: u64,
    },
    /// The answer.
    EchoReply {
        /// Of the request.
        id: u64,
    },
    /// Where a member may be reached, by its own word.
    Endpoints(Box<Signed<EndpointRecord>>),
    /// Something the root said.
    Statement(Box<Signed<RootStatement>>),
    /// A member has left, by its own word.
    Left(Box<Signed<Departure>>),
    /// How a member's certificate goes on; the rest of its membership is known.
    Renewed {
        /// The member.
        node: NodeId,
        /// By it and a planet.
        renewed: Box<Renewed>,
    },
    /// Tell me that a packet as long as this one has arrived.
    SizeRequest {
        /// Repeated by the answer.
        id: u64,
    },
    /// The answer, as short as can be.
    SizeReply {
        /// Of the request.
        id: u64,
    },
    /// What I hold of what the root said, to compare with. Older programs ignore this and what follows.
    Summary(Box<Summary>),
    /// What I hold of it in a part that differs: tell me the rest.
    Held(Box<Held>),
    /// Statements of the root that I was asked for.
    Statements(Vec<Signed<RootStatement>>),
    /// Your probes are of a life of yours that is over: the last one I know of is this, and only a later one
    /// counts.
    LaterLife {
        /// Of the last life.
        incarnation: u64,
    },
}

impl ControlMessage {
    /// The payload of a control packet, at least `length` bytes long; `None` if the message is
    /// longer than [`MAX_CONTROL`].
    #[must_use]
    pub fn encode(&self, length: usize) -> Option<Vec<u8>> {
        let body = postcard::to_allocvec(self).ok()?;
        if body.len() > MAX_CONTROL {
            return None;
        }
        let mut payload = Vec::with_capacity(length.max(body.len() + 1));
        payload.push(VERSION);
        payload.extend(body);
        let padded = payload.len().max(length);
        payload.resize(padded, 0);
        Some(payload)
    }

    /// Reads a payload.
    #[must_use]
    pub fn decode(payload: &[u8]) -> Option<Self> {
        let (version, body) = payload.split_first()?;
        if *version != VERSION {
            return None;
        }
        let (message, padding) = postcard::take_from_bytes(body).ok()?;
        (body.len() - padding.len() <= MAX_CONTROL).then_some(message)
    }
}

#[cfg(test)]
mod tests {
    use podmesh_proto::statements::Statements;

    use super::*;

    #[test]
    fn messages_survive_padding_and_nothing_else_is_one() {
        let echo = ControlMessage::EchoRequest { id: u64::MAX };
        for length in [0, 12, 1_240, 8_000] {
            let payload = echo.encode(length).unwrap();
            assert!(payload.len() >= length);
            assert_eq!(ControlMessage::decode(&payload), Some(echo.clone()));
        }
        let fullest = Held {
            bucket: 127,
            ids: vec![[0xff; 8]; 140],
        };
        assert!(ControlMessage::Held(Box::new(fullest)).encode(0).is_some());
        let summary = Statements::default().summary(podmesh_proto::statements::Edition {
            version: u64::MAX,
            document: [0xff; 8],
        });
        let summary = ControlMessage::Summary(Box::new(summary));
        assert!(summary.encode(0).is_some(), "fits any tunnel");
        assert_eq!(ControlMessage::decode(&[]), None);
        assert_eq!(ControlMessage::decode(&[2, 0, 1]), None);
        assert_eq!(ControlMessage::decode(&[1, 200]), None);
    }
}
