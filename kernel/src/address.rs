//! Addresses of interfaces.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressProtocol, AddressScope,
};

use crate::netlink::{Mode, Netlink, NetlinkError, family};
use crate::route::PROTOCOL;

/// One address of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// Index of the interface.
    pub index: u32,
    /// The address with the length of its prefix.
    pub address: IpNet,
    /// Whether it carries our protocol number. Kernels before 5.18 keep none.
    pub ours: bool,
    /// Duplicate detection is not over or has failed: not usable.
    pub tentative: bool,
    /// Not to be used for anything new.
    pub deprecated: bool,
}

impl Netlink {
    /// The addresses of all interfaces.
    ///
    /// # Errors
    ///
    /// When the kernel can't be asked.
    pub async fn addresses(&self) -> Result<Vec<InterfaceAddress>, NetlinkError> {
        let question = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let answers = self.dump(question, "list the addresses").await?;
        let read_answer = |answer| match answer {
            RouteNetlinkMessage::NewAddress(message) => read(&message),
            _ => None,
        };
        Ok(answers.into_iter().filter_map(read_answer).collect())
    }

    /// Adds an address, marked as ours, usable at once and without a route to its prefix.
    ///
    /// # Errors
    ///
    /// When the kernel refuses, also when the interface has it already.
    pub async fn add_address(&self, index: u32, address: IpNet) -> Result<(), NetlinkError> {
        let mut message = describe(index, address);
        message.attributes.push(AddressAttribute::Flags(
            AddressFlags::Noprefixroute | AddressFlags::Nodad,
        ));
        message
            .attributes
            .push(AddressAttribute::Protocol(AddressProtocol::Other(PROTOCOL)));
        let step = format_args!("add address {address}");
        self.change(RouteNetlinkMessage::NewAddress(message), Mode::Create, step)
            .await
    }

    /// Removes an address.
    ///
    /// # Errors
    ///
    /// When the kernel refuses, also when the interface does not have it.
    pub async fn remove_address(&self, index: u32, address: IpNet) -> Result<(), NetlinkError> {
        let message = RouteNetlinkMessage::DelAddress(describe(index, address));
        self.change(
            message,
            Mode::Existing,
            format_args!("remove address {address}"),
        )
        .await
    }
}

fn describe(index: u32, address: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.family = family(address.addr().is_ipv4());
    message.header.prefix_len = address.prefix_len();
    message.header.scope = AddressScope::Universe;
    message
        .attributes
        .push(AddressAttribute::Local(address.addr()));
    message
        .attributes
        .push(AddressAttribute::Address(address.addr()));
    message
}

fn read(message: &AddressMessage) -> Option<InterfaceAddress> {
    let (mut local, mut remote, mut ours) = (None, None, false);
    // Newer flags don't fit the header's byte.
    let mut flags = AddressFlags::from_bits_retain(message.header.flags.bits().into());
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => local = Some(*address),
            AddressAttribute::Address(address) => remote = Some(*address),
            AddressAttribute::Flags(all) => flags = *all,
            AddressAttribute::Protocol(protocol) => ours = u8::from(*protocol) == PROTOCOL,
            _ => {}
        }
    }
    // On a point-to-point interface the address is the peer's and "local" is ours.
    let address: IpAddr = local.or(remote)?;
    Some(InterfaceAddress {
        index: message.header.index,
        address: IpNet::new(address, message.header.prefix_len).ok()?,
        ours,
        tentative: flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed)
            && !flags.contains(AddressFlags::Optimistic),
        deprecated: flags.contains(AddressFlags::Deprecated),
    })
}
