//! One control connection: from its first packet to its last.
//!
//! Two loops per connection, one that reads and one that writes. The planet's mind never waits for
//! either: what it says goes into a bounded queue, and who doesn't empty it is cut.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use podmesh_proto::frame::{self, FrameDecoder};
use podmesh_proto::planet_api::{EXPORTER_LABEL, NodeMessage, PlanetMessage};
use quinn::{Connection, Incoming, RecvStream, SendStream, VarInt};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::rules::{ConnectionId, HELLO_DEADLINE, Input};
use crate::server::doorway::Passage;
use crate::server::mind::{Arrival, Message};
use crate::server::tls::RECEIVE_WINDOW;

/// For the handshake, and again for the node to open its stream.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// A node that takes no byte for this long is cut.
const STALLED: Duration = Duration::from_secs(20);
/// For the last words to arrive.
const FAREWELL: Duration = Duration::from_secs(1);
/// Between two measurements of the round trip time.
const MEASURE: Duration = Duration::from_secs(5);
/// Messages and bytes that may wait for one node.
const QUEUE: usize = 256;
const QUEUE_BYTES: usize = 4 * 1024 * 1024;
/// Messages of one node that are read before the mind has heard them. Whoever says more at once waits, and
/// doesn't keep what others say from being heard.
const UNHEARD: usize = 8;
const CHUNK: usize = 64 * 1024;

/// The planet's side of a connection's queue.
pub struct Outbox {
    sender: mpsc::Sender<Outgoing>,
    waiting_bytes: Arc<AtomicUsize>,
    connection: Connection,
}

enum Outgoing {
    Frame(Vec<u8>),
    Close(&'static str),
}

impl Outbox {
    /// Queues a message; `false` if the node is too slow and was cut.
    pub fn send(&self, message: &PlanetMessage) -> bool {
        let bytes = match frame::encode(message, "message to a node") {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::warn!(reason = %error, "a message to a node was not sent");
                return true;
            }
        };
        let length = bytes.len();
        let waiting = self.waiting_bytes.fetch_add(length, Ordering::Relaxed);
        let fits = waiting.saturating_add(length) <= QUEUE_BYTES
            && self.sender.try_send(Outgoing::Frame(bytes)).is_ok();
        if !fits {
            self.connection.close(VarInt::from_u32(2), b"too slow");
        }
        fits
    }

    /// Closes the connection after what was queued before.
    pub fn close(&self, reason: &'static str) {
        if self.sender.try_send(Outgoing::Close(reason)).is_err() {
            self.connection
                .close(VarInt::from_u32(1), reason.as_bytes());
        }
    }
}

/// Sees one connection attempt through: proof of address, handshake, messages, end. It stays in the
/// doorway until it speaks, and takes one of the places then.
pub async fn serve(
    incoming: Incoming,
    id: ConnectionId,
    mind: mpsc::Sender<Message>,
    (passage, places): (Passage, Arc<Semaphore>),
) {
    let entered = tokio::select! {
        entered = enter(incoming) => entered,
        () = passage.shown_out() => None,
    };
    let Some((connection, exported, (sending, receiving))) = entered else {
        return;
    };
    let Ok(place) = places.try_acquire_owned() else {
        connection.close(VarInt::from_u32(1), b"no place left");
        return;
    };
    drop(passage);
    let (sender, queue) = mpsc::channel(QUEUE);
    let waiting_bytes = Arc::new(AtomicUsize::new(0));
    let outbox = Outbox {
        sender,
        waiting_bytes: Arc::clone(&waiting_bytes),
        connection: connection.clone(),
    };
    let arrival = Arrival {
        id,
        remote: connection.remote_address(),
        rtt: connection.rtt(),
        exported,
        outbox,
    };
    if mind
        .send(Message::Arrived(Box::new(arrival)))
        .await
        .is_err()
    {
        return;
    }
    tokio::select! {
        () = write(sending, queue, &waiting_bytes, &connection) => {}
        () = read(receiving, id, &mind) => {}
        () = measure(&connection, id, &mind) => {}
    }
    connection.close(VarInt::from_u32(0), b"");
    let gone = Input::Disconnected { connection: id };
    let _ = mind.send(Message::Input(gone)).await;
    drop(place);
}

/// The handshake, and the node's stream. Who has not spoken has little room for what it sends.
async fn enter(incoming: Incoming) -> Option<(Connection, Vec<u8>, (SendStream, RecvStream))> {
    let accepting = incoming.accept().ok()?;
    let connection = timeout(HANDSHAKE, accepting).await.ok()?.ok()?;
    let mut exported = vec![0; 32];
    let material = connection.export_keying_material(&mut exported, EXPORTER_LABEL, b"");
    let streams = timeout(HELLO_DEADLINE, connection.accept_bi()).await;
    let (Ok(()), Ok(Ok(streams))) = (material, streams) else {
        connection.close(VarInt::from_u32(1), b"no control stream");
        return None;
    };
    connection.set_receive_window(VarInt::from_u32(RECEIVE_WINDOW));
    Some((connection, exported, streams))
}

async fn write(
    mut stream: SendStream,
    mut queue: mpsc::Receiver<Outgoing>,
    waiting_bytes: &AtomicUsize,
    connection: &Connection,
) {
    while let Some(outgoing) = queue.recv().await {
        match outgoing {
            Outgoing::Frame(bytes) => {
                let written = timeout(STALLED, stream.write_all(&bytes)).await;
                waiting_bytes.fetch_sub(bytes.len(), Ordering::Relaxed);
                if !matches!(written, Ok(Ok(()))) {
                    return;
                }
            }
            Outgoing::Close(reason) => {
                if stream.finish().is_ok() {
                    let _ = timeout(FAREWELL, stream.stopped()).await;
                }
                connection.close(VarInt::from_u32(1), reason.as_bytes());
                return;
            }
        }
    }
    // The mind has let go of the connection.
    if stream.finish().is_ok() {
        let _ = timeout(FAREWELL, stream.stopped()).await;
    }
}

async fn read(mut stream: RecvStream, id: ConnectionId, mind: &mpsc::Sender<Message>) {
    let mut decoder = FrameDecoder::default();
    let room = Arc::new(Semaphore::new(UNHEARD));
    while let Ok(Some(chunk)) = stream.read_chunk(CHUNK, true).await {
        decoder.push(&chunk.bytes);
        loop {
            match decoder.next::<NodeMessage>("message of a node") {
                Ok(Some(message)) => {
                    let input = Input::Message {
                        connection: id,
                        message: Box::new(message),
                    };
                    let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
                        return;
                    };
                    if mind.send(Message::Said(id, input, permit)).await.is_err() {
                        return;
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::debug!(connection = id.0, reason = %error, "a connection is given up");
                    return;
                }
            }
        }
    }
}

async fn measure(connection: &Connection, id: ConnectionId, mind: &mpsc::Sender<Message>) {
    let mut ticks = interval(MEASURE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let input = Input::Rtt {
            connection: id,
            rtt: connection.rtt(),
        };
        if mind.send(Message::Input(input)).await.is_err() {
            return;
        }
    }
}
