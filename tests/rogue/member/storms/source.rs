//! Where datagrams of a storm seem to come from.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result};
use ipnet::IpNet;
use tokio::net::UdpSocket;

use crate::random;

/// Sockets that a storm uses by turns.
const SOCKETS: usize = 64;

/// Sockets at addresses of a network, which the host lets this program take.
pub(super) struct Sources {
    sockets: Vec<UdpSocket>,
    next: usize,
}

impl Sources {
    /// At `from`, or at one port of this host's own address.
    pub(super) async fn open(from: Option<IpNet>) -> Result<Self> {
        let mut sockets = Vec::new();
        let wanted = from.map_or(1, |_| SOCKETS);
        for _ in 0..wanted {
            let address = from.map_or(Ok(Ipv4Addr::UNSPECIFIED.into()), anywhere_in)?;
            let socket = UdpSocket::bind((address, 0)).await;
            sockets.push(socket.with_context(|| format!("cannot be at {address}"))?);
        }
        Ok(Self { sockets, next: 0 })
    }

    /// Sends from the next one; a datagram that the host has no room for is lost.
    pub(super) fn send(&mut self, datagram: &[u8], to: SocketAddr) {
        self.next = (self.next + 1) % self.sockets.len().max(1);
        if let Some(socket) = self.sockets.get(self.next) {
            let _ = socket.try_send_to(datagram, to);
        }
    }

    /// The first of them.
    pub(super) fn first(&self) -> Result<&UdpSocket> {
        self.sockets.first().context("no socket")
    }

    /// Takes what has come back: datagrams and bytes.
    pub(super) fn drain(&self) -> (u64, u64) {
        let mut buffer = [0; 2_048];
        let (mut datagrams, mut bytes) = (0, 0);
        for socket in &self.sockets {
            while let Ok(length) = socket.try_recv(&mut buffer) {
                datagrams += 1;
                bytes += length as u64;
            }
        }
        (datagrams, bytes)
    }
}

/// An address in a network, at random.
pub(super) fn anywhere_in(range: IpNet) -> Result<IpAddr> {
    let host = u128::from(random::number()?) << 64 | u128::from(random::number()?);
    Ok(match range {
        IpNet::V4(range) => {
            let host = u32::try_from(host >> 96)? & !range.netmask().to_bits();
            Ipv4Addr::from_bits(range.network().to_bits() | host).into()
        }
        IpNet::V6(range) => {
            let host = host & !range.netmask().to_bits();
            Ipv6Addr::from_bits(range.network().to_bits() | host).into()
        }
    })
}
