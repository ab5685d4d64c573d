//! Notices when somebody changes links, addresses, routes, rules, forwarding, nftables or policies of `IPsec`.
#![allow(
    unsafe_code,
    reason = "forcing a buffer size and registering a foreign socket have no safe form"
)]

use std::io;
use std::mem;
use std::os::fd::AsRawFd;
use std::time::Duration;

use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE, NETLINK_XFRM};
use netlink_sys::{Socket, SocketAddr};
use tokio::io::Interest;
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};

use crate::blocking_netlink::Attributes;
use crate::nft;

const MESSAGE_HEADER: usize = 16;
/// Room for the notices of a few ten thousand changes.
const RECEIVE_BUFFER: libc::c_int = 8 << 20;

const LINK: u32 = 1;
const IPV4_ADDRESS: u32 = 5;
const IPV4_ROUTE: u32 = 7;
const IPV4_RULE: u32 = 8;
const IPV6_ADDRESS: u32 = 9;
const IPV6_ROUTE: u32 = 11;
const IPV6_RULE: u32 = 19;
const IPV4_SETTINGS: u32 = 24;
const IPV6_SETTINGS: u32 = 25;

const NEW_SETTINGS: u16 = 80;
const DELETED_SETTINGS: u16 = 81;

const NFTABLES: u32 = 7;
const NFTABLES_SUBSYSTEM: u16 = 10;
const NFTABLES_HEADER: usize = 4;
/// Ends every transaction and names no table.
const NEW_GENERATION: u16 = NFTABLES_SUBSYSTEM << 8 | 15;
/// The table's name in notices about tables, chains and rules.
const TABLE_NAME: u16 = 1;

/// `XFRMNLGRP_POLICY`. Kinds of its messages have numbers that other kinds have in other families.
const IPSEC_POLICIES: u32 = 4;

/// What was changed since the last notice, whoever did it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Change {
    /// Interfaces.
    pub links: bool,
    /// Addresses.
    pub addresses: bool,
    /// Routes.
    pub routes: bool,
    /// Rules.
    pub rules: bool,
    /// Settings of interfaces or of the machine that the kernel tells of: forwarding and the filter by
    /// return paths, but not whether a family is off or advertisements are heard.
    pub settings: bool,
    /// The nftables table of podmesh.
    pub guard: bool,
    /// Nftables tables of others.
    pub firewall: bool,
    /// Policies of `IPsec`.
    pub policies: bool,
    /// Notices were lost, so anything may have changed.
    pub overrun: bool,
}

impl Change {
    /// Whether nothing has changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether nothing has changed but the nftables tables of others.
    #[must_use]
    pub fn is_firewall_alone(&self) -> bool {
        let firewall = Self {
            firewall: true,
            ..Self::default()
        };
        *self == firewall
    }

    fn add(&mut self, message_type: u16, payload: &[u8]) {
        match message_type {
            NEW_GENERATION => {}
            _ if message_type >> 8 == NFTABLES_SUBSYSTEM => {
                let attributes = payload.get(NFTABLES_HEADER..).unwrap_or_default();
                let table = Attributes::of(attributes).text(TABLE_NAME);
                if table.as_deref() == Some(nft::TABLE) {
                    self.guard = true;
                } else {
                    self.firewall = true;
                }
            }
            libc::RTM_NEWLINK | libc::RTM_DELLINK => self.links = true,
            libc::RTM_NEWADDR | libc::RTM_DELADDR => self.addresses = true,
            libc::RTM_NEWROUTE | libc::RTM_DELROUTE => self.routes = true,
            libc::RTM_NEWRULE | libc::RTM_DELRULE => self.rules = true,
            NEW_SETTINGS | DELETED_SETTINGS => self.settings = true,
            _ => {}
        }
    }
}

/// Listens to the kernel's notices in one network namespace.
#[derive(Debug)]
pub struct Watcher {
    socket: AsyncFd<Socket>,
    /// Absent where the kernel has no nftables, or the caller may not listen to it.
    guard: Option<AsyncFd<Socket>>,
    /// Absent where the kernel has no `IPsec`, or the caller may not listen to it.
    policies: Option<AsyncFd<Socket>>,
    settle: Duration,
    buffer: Vec<u8>,
    pending: Change,
}

impl Watcher {
    /// Listens in the calling thread's network namespace, from now on. Changes that follow each
    /// other within `settle` are reported together. Needs a tokio runtime with I/O and time.
    ///
    /// # Errors
    ///
    /// When the socket can't be made.
    pub fn start(settle: Duration) -> io::Result<Self> {
        let groups = [
            LINK,
            IPV4_ADDRESS,
            IPV4_ROUTE,
            IPV4_RULE,
            IPV6_ADDRESS,
            IPV6_ROUTE,
            IPV6_RULE,
            IPV4_SETTINGS,
            IPV6_SETTINGS,
        ];
        let socket = listen(NETLINK_ROUTE, &groups)?;
        let guard = listen(NETLINK_NETFILTER, &[NFTABLES]);
        if let Err(error) = &guard {
            tracing::debug!(%error, "changes of nftables are not noticed");
        }
        let policies = listen(NETLINK_XFRM, &[IPSEC_POLICIES]);
        if let Err(error) = &policies {
            tracing::debug!(%error, "changes of IPsec policies are not noticed");
        }
        Ok(Self {
            socket,
            guard: guard.ok(),
            policies: policies.ok(),
            settle,
            buffer: Vec::with_capacity(1 << 16),
            pending: Change::default(),
        })
    }

    /// Waits for the next change. Dropping the future loses nothing.
    ///
    /// # Errors
    ///
    /// When the socket fails. An overrun is no error.
    pub async fn next(&mut self) -> io::Result<Change> {
        while self.pending.is_empty() {
            tokio::select! {
                ready = self.socket.readable() => ready?.clear_ready(),
                ready = readable(self.guard.as_ref()) => ready?.clear_ready(),
                ready = readable(self.policies.as_ref()) => ready?.clear_ready(),
            }
            self.take()?;
        }
        tokio::time::sleep(self.settle).await;
        self.take()?;
        Ok(mem::take(&mut self.pending))
    }

    /// Takes all notices that wait.
    fn take(&mut self) -> io::Result<()> {
        for socket in [Some(&self.socket), self.guard.as_ref()]
            .into_iter()
            .flatten()
        {
            take_from(socket.get_ref(), &mut self.buffer, &mut self.pending)?;
        }
        if let Some(socket) = &self.policies {
            let mut all = Change::default();
            self.pending.policies |= take_from(socket.get_ref(), &mut self.buffer, &mut all)?;
        }
        Ok(())
    }
}

/// Whether there were any, be it that they were lost.
fn take_from(socket: &Socket, buffer: &mut Vec<u8>, pending: &mut Change) -> io::Result<bool> {
    let mut is_news = false;
    loop {
        buffer.clear();
        match socket.recv(buffer, libc::MSG_DONTWAIT) {
            Ok(_) => {
                is_news = true;
                note_all(buffer, pending);
            }
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN) => return Ok(is_news),
                Some(libc::EINTR) => {}
                Some(libc::ENOBUFS) => {
                    is_news = true;
                    pending.overrun = true;
                }
                _ => return Err(error),
            },
        }
    }
}

/// Never ends for a socket that does not exist.
async fn readable(socket: Option<&AsyncFd<Socket>>) -> io::Result<AsyncFdReadyGuard<'_, Socket>> {
    match socket {
        Some(socket) => socket.readable().await,
        None => std::future::pending().await,
    }
}

fn listen(protocol: isize, groups: &[u32]) -> io::Result<AsyncFd<Socket>> {
    let mut socket = Socket::new(protocol)?;
    enlarge(&socket);
    let groups = groups.iter().fold(0, |all, group| all | 1 << (group - 1));
    socket.bind(&SocketAddr::new(0, groups))?;
    socket.set_non_blocking(true)?;
    // SAFETY: the socket keeps its one descriptor open until it is dropped, which happens only
    // together with its registration.
    Ok(unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE)? })
}

/// Adds the messages of one datagram.
fn note_all(mut datagram: &[u8], change: &mut Change) {
    while let Some((header, _)) = datagram.split_first_chunk::<MESSAGE_HEADER>() {
        let [l0, l1, l2, l3, t0, t1, ..] = *header;
        let length = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
        let payload = datagram.get(MESSAGE_HEADER..length).unwrap_or_default();
        change.add(u16::from_ne_bytes([t0, t1]), payload);
        let Some(rest) = length
            .max(MESSAGE_HEADER)
            .checked_next_multiple_of(4)
            .and_then(|length| datagram.get(length..))
        else {
            return;
        };
        datagram = rest;
    }
}

/// As large as permitted; a smaller buffer only makes overruns more likely.
fn enlarge(socket: &Socket) {
    for option in [libc::SO_RCVBUFFORCE, libc::SO_RCVBUF] {
        let value = RECEIVE_BUFFER;
        // SAFETY: the option value is one int that outlives the call.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                (&raw const value).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        if result == 0 {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cut_and_odd_datagrams_are_read_as_far_as_they_go() {
        let message = |kind: u16, length: u32, bytes: usize| {
            let mut message = length.to_ne_bytes().to_vec();
            message.extend(kind.to_ne_bytes());
            message.resize(bytes, 0);
            message
        };
        let mut change = Change::default();
        note_all(&[], &mut change);
        note_all(&[1; 15], &mut change);
        assert!(change.is_empty());
        let two = [
            message(libc::RTM_NEWADDR, 22, 24),
            message(libc::RTM_DELRULE, 16, 16),
        ]
        .concat();
        note_all(&two, &mut change);
        assert_eq!(
            change,
            Change {
                addresses: true,
                rules: true,
                ..Change::default()
            }
        );
        for length in [0, 1, u32::MAX] {
            note_all(&message(libc::RTM_NEWLINK, length, 40), &mut change);
        }
        assert!(change.links && !change.routes && !change.overrun);
    }
}
