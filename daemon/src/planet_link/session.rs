//! One connection from its first byte to its last.

use std::time::Duration;

use podmesh_proto::frame::{self, FrameDecoder};
use podmesh_proto::planet_api::{EXPORTER_LABEL, NodeMessage, PlanetMessage};
use quinn::{Connection, RecvStream, SendStream, VarInt};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, timeout};
use zeroize::Zeroizing;

use super::dial::Dialed;
use super::{Connected, LinkNews, OUTGOING, Reporter};

/// Between two measurements of the round trip time.
const MEASURE: Duration = Duration::from_secs(5);
/// For the last message to arrive.
const FAREWELL: Duration = Duration::from_secs(1);
/// Bytes taken from the stream at once.
const CHUNK: usize = 64 * 1024;

/// How a connection ended.
pub(super) struct Ended {
    /// One sentence.
    pub(super) reason: String,
    /// Whether the planet had greeted us before.
    pub(super) was_welcome: bool,
    /// When the planet wants us back.
    pub(super) retry_in: Option<Duration>,
}

impl Ended {
    /// Without a greeting.
    pub(super) fn before_welcome(reason: String) -> Self {
        Self {
            reason,
            was_welcome: false,
            retry_in: None,
        }
    }
}

/// Carries messages in both directions until the connection ends.
pub(super) async fn run(dialed: Dialed, reporter: &Reporter) -> Ended {
    let connection = &dialed.connection;
    let (outgoing, waiting) = mpsc::channel(OUTGOING);
    let mut exported = Zeroizing::new([0; 32]);
    if connection
        .export_keying_material(exported.as_mut_slice(), EXPORTER_LABEL, b"")
        .is_err()
    {
        return Ended::before_welcome("the connection gives no keying material".to_owned());
    }
    let (sending, receiving) = match connection.open_bi().await {
        Ok(streams) => streams,
        Err(error) => return Ended::before_welcome(error.to_string()),
    };
    let connected = Connected {
        remote: connection.remote_address(),
        rtt: connection.rtt(),
        exported,
        outgoing,
    };
    reporter.report(LinkNews::Connected(connected)).await;
    let mut greeting = Greeting::default();
    let reason = tokio::select! {
        reason = send_all(sending, waiting) => reason,
        reason = receive_all(receiving, reporter, &mut greeting) => reason,
        () = measure(connection, reporter) => String::new(),
    };
    connection.close(VarInt::from_u32(0), b"");
    // The close is worth a moment on the wire, not more.
    let _ = timeout(Duration::from_millis(100), dialed.endpoint.wait_idle()).await;
    Ended {
        reason,
        was_welcome: greeting.was_welcome,
        retry_in: greeting.retry_in,
    }
}

#[derive(Default)]
struct Greeting {
    was_welcome: bool,
    retry_in: Option<Duration>,
}

async fn send_all(mut stream: SendStream, mut waiting: mpsc::Receiver<NodeMessage>) -> String {
    while let Some(message) = waiting.recv().await {
        let bytes = match frame::encode(&message, "message to a planet") {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::debug!(reason = %error, "a message to a planet is not sent");
                continue;
            }
        };
        if let Err(error) = stream.write_all(&bytes).await {
            return error.to_string();
        }
    }
    // Nobody will send any more. What was sent is to arrive before the connection is closed.
    if stream.finish().is_ok() {
        let _ = timeout(FAREWELL, stream.stopped()).await;
    }
    "the connection was given up".to_owned()
}

async fn receive_all(
    mut stream: RecvStream,
    reporter: &Reporter,
    greeting: &mut Greeting,
) -> String {
    let mut decoder = FrameDecoder::default();
    loop {
        match stream.read_chunk(CHUNK, true).await {
            Ok(Some(chunk)) => decoder.push(&chunk.bytes),
            Ok(None) => return "the planet ended the connection".to_owned(),
            Err(error) => return error.to_string(),
        }
        loop {
            match decoder.next::<PlanetMessage>("message of a planet") {
                Ok(Some(message)) => {
                    greeting.note(&message);
                    reporter.report(LinkNews::Message(Box::new(message))).await;
                }
                Ok(None) => break,
                Err(error) => return error.to_string(),
            }
        }
    }
}

impl Greeting {
    fn note(&mut self, message: &PlanetMessage) {
        match message {
            PlanetMessage::Welcome(_) => self.was_welcome = true,
            PlanetMessage::Draining { retry_in } => self.retry_in = Some(*retry_in),
            _ => {}
        }
    }
}

async fn measure(connection: &Connection, reporter: &Reporter) {
    let mut ticks = interval(MEASURE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        reporter.report(LinkNews::Rtt(connection.rtt())).await;
    }
}
