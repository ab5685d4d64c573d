//! What an interface of some name is, asked before a queue is attached to it.

use std::io;

use netlink_packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload, Nla};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoTun, LinkAttribute, LinkInfo, LinkMessage,
};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

/// `IFLA_TUN_TYPE`, u8: 1 for a TUN, 2 for a TAP.
const TUN_TYPE: u16 = 3;
/// `IFLA_TUN_MULTI_QUEUE`, u8.
const TUN_MULTI_QUEUE: u16 = 7;
/// `IFLA_TUN_NUM_QUEUES`, u32: attached queues.
const TUN_NUM_QUEUES: u16 = 8;
/// `IFLA_TUN_NUM_DISABLED_QUEUES`, u32: queues that a process keeps open but detached.
const TUN_NUM_DISABLED_QUEUES: u16 = 9;

/// What has the name.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Existing {
    Absent,
    Tun { multi_queue: bool, queues: u32 },
    Tap,
    Other(String),
}

impl Existing {
    /// In words, what it is that no queues can be attached to.
    pub(super) fn unfit(self) -> Option<String> {
        match self {
            Self::Absent
            | Self::Tun {
                multi_queue: true, ..
            } => None,
            Self::Tun {
                multi_queue: false, ..
            } => Some("a TUN with a single queue".to_owned()),
            Self::Tap => Some("a TAP".to_owned()),
            Self::Other(kind) => Some(kind),
        }
    }
}

/// Looks `name` up in the calling thread's network namespace.
pub(super) fn inspect(name: &str) -> io::Result<Existing> {
    match request_link(name)?.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => Ok(classify(&link)),
        NetlinkPayload::Error(error) => match error.to_io() {
            error if error.raw_os_error() == Some(libc::ENODEV) => Ok(Existing::Absent),
            error => Err(error),
        },
        other => Err(io::Error::other(format!(
            "unexpected netlink answer {other:?}"
        ))),
    }
}

fn request_link(name: &str) -> io::Result<NetlinkMessage<RouteNetlinkMessage>> {
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::IfName(name.to_owned()));
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetLink(link));
    request.header.flags = NLM_F_REQUEST;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);

    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&bytes, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    NetlinkMessage::deserialize(&answer)
        .map_err(|error| io::Error::other(format!("can't read the netlink answer: {error}")))
}

pub(super) fn classify(link: &LinkMessage) -> Existing {
    let infos = link
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::LinkInfo(infos) => Some(infos.as_slice()),
            _ => None,
        });
    let infos = infos.unwrap_or_default();
    let kind = infos.iter().find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind),
        _ => None,
    });
    match kind {
        Some(InfoKind::Tun) => classify_tun(infos),
        Some(kind) => Existing::Other(format!("a {kind}")),
        None => Existing::Other("a plain device".to_owned()),
    }
}

fn classify_tun(infos: &[LinkInfo]) -> Existing {
    let attributes = infos.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Tun(attributes)) => Some(attributes.as_slice()),
        _ => None,
    });
    let (mut tap, mut multi_queue, mut queues) = (false, false, 0);
    for attribute in attributes.unwrap_or_default() {
        match attribute.kind() {
            TUN_TYPE => tap = number(attribute) == 2,
            TUN_MULTI_QUEUE => multi_queue = number(attribute) != 0,
            TUN_NUM_QUEUES | TUN_NUM_DISABLED_QUEUES => queues += number(attribute),
            _ => {}
        }
    }
    if tap {
        Existing::Tap
    } else {
        Existing::Tun {
            multi_queue,
            queues,
        }
    }
}

/// The value of an attribute of one or four bytes, 0 for any other.
fn number(attribute: &InfoTun) -> u32 {
    let mut value = [0; 4];
    match attribute.value_len() {
        1 => {
            let mut byte = [0];
            attribute.emit_value(&mut byte);
            u32::from(byte[0])
        }
        4 => {
            attribute.emit_value(&mut value);
            u32::from_ne_bytes(value)
        }
        _ => 0,
    }
}
