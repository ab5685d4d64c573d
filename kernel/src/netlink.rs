//! The async connection over which links, addresses, routes and rules are read and changed.

use std::fmt::Display;
use std::io;

use futures_util::StreamExt;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use tokio::task::JoinHandle;

/// How often a list is asked for again because it changed while the kernel wrote it.
const DUMP_ATTEMPTS: usize = 5;

/// A step that the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("can't {step}: {source}")]
pub struct NetlinkError {
    step: String,
    #[source]
    source: io::Error,
}

impl NetlinkError {
    pub(crate) fn new(step: impl Display, source: io::Error) -> Self {
        Self {
            step: step.to_string(),
            source,
        }
    }

    /// The kernel's error number, if the kernel gave one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }
}

/// A connection to the kernel's routing tables of one network namespace.
#[derive(Debug)]
pub struct Netlink {
    handle: rtnetlink::Handle,
    connection: JoinHandle<()>,
}

/// What a change may do when the object exists, or does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Make it; an equal one is an error.
    Create,
    /// Make it in place of the equal one.
    Replace,
    /// Change or remove what exists.
    Existing,
}

impl Netlink {
    /// Connects to the network namespace of the calling thread; later calls stay with it. Needs a
    /// tokio runtime with I/O.
    ///
    /// # Errors
    ///
    /// When the socket can't be made.
    pub fn connect() -> Result<Self, NetlinkError> {
        let (connection, handle, _) = rtnetlink::new_connection()
            .map_err(|source| NetlinkError::new("open a netlink connection", source))?;
        Ok(Self {
            handle,
            connection: tokio::spawn(connection),
        })
    }

    /// Sends one change and waits for the kernel's answer.
    pub(crate) async fn change(
        &self,
        message: RouteNetlinkMessage,
        mode: Mode,
        step: impl Display,
    ) -> Result<(), NetlinkError> {
        let flags = match mode {
            Mode::Create => NLM_F_CREATE | NLM_F_EXCL,
            Mode::Replace => NLM_F_CREATE | NLM_F_REPLACE,
            Mode::Existing => 0,
        };
        self.ask(message, NLM_F_REQUEST | NLM_F_ACK | flags)
            .await
            .map(drop)
            .map_err(|source| NetlinkError::new(step, source))
    }

    /// Asks for one object.
    pub(crate) async fn get(
        &self,
        message: RouteNetlinkMessage,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        Ok(self.ask(message, NLM_F_REQUEST).await?.messages)
    }

    /// Asks for all objects of a kind.
    pub(crate) async fn dump(
        &self,
        message: RouteNetlinkMessage,
        step: &str,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        for _ in 0..DUMP_ATTEMPTS {
            let answer = self
                .ask(message.clone(), NLM_F_REQUEST | NLM_F_DUMP)
                .await
                .map_err(|source| NetlinkError::new(step, source))?;
            if !answer.torn {
                return Ok(answer.messages);
            }
        }
        let busy = io::Error::other("it changed during each attempt, try again");
        Err(NetlinkError::new(step, busy))
    }

    async fn ask(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Answer> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = flags;
        let mut answers = self
            .handle
            .clone()
            .request(request)
            .map_err(|_| io::Error::other("the netlink connection is closed"))?;
        let mut answer = Answer::default();
        while let Some(part) = answers.next().await {
            answer.torn |= part.header.flags & NLM_F_DUMP_INTR != 0;
            match part.payload {
                NetlinkPayload::InnerMessage(message) => answer.messages.push(message),
                NetlinkPayload::Error(error) if error.code.is_some() => {
                    return Err(error.to_io());
                }
                _ => {}
            }
        }
        Ok(answer)
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

#[derive(Default)]
struct Answer {
    messages: Vec<RouteNetlinkMessage>,
    /// The kernel's tables changed while it wrote them down.
    torn: bool,
}

/// The netlink family of an address.
pub(crate) fn family(is_ipv4: bool) -> AddressFamily {
    if is_ipv4 {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    }
}
