//! Network interfaces: find, configure, delete.

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkMessage};

use crate::netlink::{Mode, Netlink, NetlinkError};
use crate::tun;

/// One network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its index, which stays when it is renamed.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What it is ("veth", "tun", "bridge"); `None` for hardware.
    pub kind: Option<String>,
    /// What it is in words, if it can't be a mesh interface: no TUN with several queues.
    pub unfit: Option<String>,
    /// Its MTU, in bytes.
    pub mtu: u32,
    /// Packets that may wait per queue.
    pub tx_queue_length: u32,
    /// Segments that a packet which the interface is given in one piece may stand for.
    pub most_segments: u32,
    /// Whether it was set up by the administrator.
    pub up: bool,
    /// Whether it has a carrier: a cable, a peer, a process that holds a queue.
    pub carrier: bool,
    /// Whether it is the loopback.
    pub loopback: bool,
    /// Index of the bridge, bond or virtual router that it is a part of.
    pub master: Option<u32>,
}

/// What to change of an interface; `None` leaves as is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkChange {
    /// Set it up, or down.
    pub up: Option<bool>,
    /// Its MTU, in bytes.
    pub mtu: Option<u32>,
    /// Packets that may wait per queue.
    pub tx_queue_length: Option<u32>,
    /// Segments that a packet which the interface is given in one piece may stand for.
    pub most_segments: Option<u32>,
    /// Take it out of what it is a part of.
    pub released: bool,
    /// Switch its carrier on.
    pub carrier: bool,
}

impl Netlink {
    /// The interface `name`, `None` if there is none.
    ///
    /// # Errors
    ///
    /// When the kernel can't be asked.
    pub async fn link(&self, name: &str) -> Result<Option<Link>, NetlinkError> {
        let mut question = LinkMessage::default();
        question
            .attributes
            .push(LinkAttribute::IfName(name.to_owned()));
        match self.get(RouteNetlinkMessage::GetLink(question)).await {
            Ok(answers) => Ok(answers.into_iter().find_map(read_answer)),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(NetlinkError::new(
                format_args!("look up interface {name}"),
                error,
            )),
        }
    }

    /// All interfaces.
    ///
    /// # Errors
    ///
    /// When the kernel can't be asked.
    pub async fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        let question = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let answers = self.dump(question, "list the interfaces").await?;
        Ok(answers.into_iter().filter_map(read_answer).collect())
    }

    /// Changes the interface with this index.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub async fn change_link(&self, index: u32, change: LinkChange) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        if let Some(up) = change.up {
            message.header.change_mask = LinkFlags::Up;
            message.header.flags = if up {
                LinkFlags::Up
            } else {
                LinkFlags::empty()
            };
        }
        message
            .attributes
            .extend(change.mtu.map(LinkAttribute::Mtu));
        message
            .attributes
            .extend(change.tx_queue_length.map(LinkAttribute::TxQueueLen));
        message
            .attributes
            .extend(change.most_segments.map(LinkAttribute::GsoMaxSegs));
        if change.released {
            message.attributes.push(LinkAttribute::Controller(0));
        }
        if change.carrier {
            message.attributes.push(LinkAttribute::Carrier(1));
        }
        let step = format_args!("configure the interface with index {index}");
        self.change(RouteNetlinkMessage::SetLink(message), Mode::Existing, step)
            .await
    }

    /// Gives the interface with this index another name. Older kernels rename only what is down,
    /// so it may be down afterwards.
    ///
    /// # Errors
    ///
    /// When the kernel refuses, for instance because the name is taken.
    pub async fn rename_link(&self, index: u32, name: &str) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message
            .attributes
            .push(LinkAttribute::IfName(name.to_owned()));
        let message = RouteNetlinkMessage::SetLink(message);
        let step = format!("rename the interface with index {index} to {name}");
        match self.change(message.clone(), Mode::Existing, &step).await {
            Err(error) if error.errno() == Some(libc::EBUSY) => {
                let down = LinkChange {
                    up: Some(false),
                    ..LinkChange::default()
                };
                self.change_link(index, down).await?;
                self.change(message, Mode::Existing, &step).await
            }
            result => result,
        }
    }

    /// Deletes the interface with this index.
    ///
    /// # Errors
    ///
    /// When the kernel refuses, also when there is none.
    pub async fn delete_link(&self, index: u32) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        let step = format_args!("delete the interface with index {index}");
        self.change(RouteNetlinkMessage::DelLink(message), Mode::Existing, step)
            .await
    }
}

fn read_answer(answer: RouteNetlinkMessage) -> Option<Link> {
    match answer {
        RouteNetlinkMessage::NewLink(message) => Some(read(&message)),
        _ => None,
    }
}

fn read(message: &LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        kind: None,
        unfit: tun::unfit(message),
        mtu: 0,
        tx_queue_length: 0,
        most_segments: 0,
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp),
        loopback: flags.contains(LinkFlags::Loopback),
        master: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::TxQueueLen(length) => link.tx_queue_length = *length,
            LinkAttribute::Controller(index) => {
                link.master = Some(*index).filter(|index| *index > 0);
            }
            LinkAttribute::GsoMaxSegs(number) => link.most_segments = *number,
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    link
}
