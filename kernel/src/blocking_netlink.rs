//! A plain, blocking conversation with the kernel over netlink.
//!
//! The CNI plugin lives for milliseconds and works inside threads that have entered another
//! network namespace, and nftables wants many messages in one datagram: neither fits an async
//! connection. The kernel answers every one of these requests before `send` returns, so that no
//! call here waits for anything but the kernel itself.

mod message;

use std::{collections::VecDeque, io};

use netlink_sys::{Socket, SocketAddr, protocols};

pub(crate) use message::{Attributes, Message, Reply};

use message::{NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, Replies};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;
/// Errno and the header of the refused message precede the explanation.
const REFUSAL_HEADER_BYTES: usize = 4 + 16;
const DUMP_ATTEMPTS: u32 = 8;

/// An open socket to one netlink family, in the namespace of the thread that opened it.
pub(crate) struct Conversation {
    socket: Socket,
    sequence: u32,
    /// Replies that came in the same datagram as an awaited one.
    unread: VecDeque<Reply>,
}

impl Conversation {
    /// Talks about links, addresses, routes and neighbours.
    pub(crate) fn route() -> io::Result<Self> {
        Self::open(protocols::NETLINK_ROUTE)
    }

    /// The same, where filters of a question count: without this the kernel passes over them.
    pub(crate) fn route_with_filters() -> io::Result<Self> {
        let conversation = Self::route()?;
        conversation.socket.set_netlink_get_strict_chk(true)?;
        Ok(conversation)
    }

    /// Talks about netfilter, nftables among it.
    pub(crate) fn netfilter() -> io::Result<Self> {
        Self::open(protocols::NETLINK_NETFILTER)
    }

    /// Talks about `IPsec`.
    pub(crate) fn ipsec() -> io::Result<Self> {
        Self::open(protocols::NETLINK_XFRM)
    }

    fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // Both only make error messages shorter and clearer; old kernels lack them.
        let _ = socket.set_cap_ack(true);
        let _ = socket.set_ext_ack(true);
        Ok(Self {
            socket,
            sequence: 0,
            unread: VecDeque::new(),
        })
    }

    /// Sends one request and waits for its acknowledgement.
    pub(crate) fn request(&mut self, mut message: Message) -> io::Result<()> {
        message.add_flags(NLM_F_REQUEST | NLM_F_ACK);
        let sequence = self.next_sequence();
        self.send(&message.finish(sequence))?;
        self.read_until(sequence, |_| {})
    }

    /// Sends several changes in one go, each with its own outcome. Later ones are tried also when
    /// an earlier one was refused; the first refusal is returned with its position.
    pub(crate) fn requests(&mut self, messages: Vec<Message>) -> Result<(), (usize, io::Error)> {
        let mut datagram = Vec::new();
        let mut awaited = Vec::new();
        for mut message in messages {
            message.add_flags(NLM_F_REQUEST | NLM_F_ACK);
            let sequence = self.next_sequence();
            awaited.push(sequence);
            datagram.extend_from_slice(&message.finish(sequence));
        }
        self.send(&datagram).map_err(|error| (0, error))?;
        let mut first = Ok(());
        for (position, sequence) in awaited.into_iter().enumerate() {
            let outcome = self.read_until(sequence, |_| {});
            if let (Ok(()), Err(error)) = (&first, outcome) {
                first = Err((position, error));
            }
        }
        first
    }

    /// Asks for one object.
    pub(crate) fn get(&mut self, mut message: Message) -> io::Result<Vec<Reply>> {
        message.add_flags(NLM_F_REQUEST | NLM_F_ACK);
        let sequence = self.next_sequence();
        self.send(&message.finish(sequence))?;
        let mut found = Vec::new();
        self.read_until(sequence, |reply| found.push(reply))?;
        Ok(found)
    }

    /// Asks for every object that the message describes; starts again when they changed meanwhile.
    pub(crate) fn dump(&mut self, mut message: Message) -> io::Result<Vec<Reply>> {
        message.add_flags(NLM_F_REQUEST | NLM_F_DUMP);
        for _ in 0..DUMP_ATTEMPTS {
            let sequence = self.next_sequence();
            self.send(&message.clone().finish(sequence))?;
            let mut found = Vec::new();
            let mut torn = false;
            self.read_until(sequence, |reply| {
                torn |= reply.flags & NLM_F_DUMP_INTR != 0;
                found.push(reply);
            })?;
            if !torn {
                return Ok(found);
            }
        }
        Err(io::Error::new(
            io::ErrorKind::WouldBlock,
            "the kernel's tables changed during every attempt to read them",
        ))
    }

    /// As [`dump`](Self::dump), one object after the other, for tables too large to be held as a
    /// whole. What changes meanwhile may be missing or come twice.
    pub(crate) fn walk(
        &mut self,
        mut message: Message,
        found: impl FnMut(Reply),
    ) -> io::Result<()> {
        message.add_flags(NLM_F_REQUEST | NLM_F_DUMP);
        let sequence = self.next_sequence();
        self.send(&message.finish(sequence))?;
        self.read_until(sequence, found)
    }

    /// Sends several messages as one datagram; the kernel takes all of them or none.
    pub(crate) fn transaction(&mut self, mut messages: Vec<Message>) -> io::Result<()> {
        let Some(last) = messages.len().checked_sub(2) else {
            return Ok(());
        };
        // The kernel reports each refused message and the last one before the end mark.
        if let Some(message) = messages.get_mut(last) {
            message.add_flags(NLM_F_ACK);
        }
        let first_sequence = self.sequence.wrapping_add(1);
        let mut awaited = first_sequence;
        let mut datagram = Vec::new();
        for (position, mut message) in messages.into_iter().enumerate() {
            message.add_flags(NLM_F_REQUEST);
            let sequence = self.next_sequence();
            if position == last {
                awaited = sequence;
            }
            datagram.extend_from_slice(&message.finish(sequence));
        }
        self.send(&datagram)?;
        loop {
            let received = self.receive()?;
            for reply in Replies::of(&received) {
                if reply.kind != NLMSG_ERROR
                    || reply.sequence.wrapping_sub(first_sequence) > u32::MAX / 2
                {
                    continue;
                }
                acknowledged(&reply)?;
                if reply.sequence == awaited {
                    return Ok(());
                }
            }
        }
    }

    fn read_until(&mut self, sequence: u32, mut found: impl FnMut(Reply)) -> io::Result<()> {
        loop {
            let Some(reply) = self.unread.pop_front() else {
                let received = self.receive()?;
                self.unread.extend(Replies::of(&received));
                continue;
            };
            if reply.sequence != sequence {
                continue;
            }
            match reply.kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => return acknowledged(&reply),
                _ => found(reply),
            }
        }
    }

    fn receive(&self) -> io::Result<Vec<u8>> {
        loop {
            match self.socket.recv_from_full() {
                Ok((bytes, _)) => return Ok(bytes),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let sent = self.socket.send(bytes, 0)?;
        if sent == bytes.len() {
            Ok(())
        } else {
            Err(io::ErrorKind::WriteZero.into())
        }
    }

    fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }
}

fn acknowledged(reply: &Reply) -> io::Result<()> {
    let code = reply
        .payload
        .first_chunk::<4>()
        .map_or(-libc::EBADMSG, |bytes| i32::from_ne_bytes(*bytes));
    if code == 0 {
        return Ok(());
    }
    let errno = code.wrapping_neg();
    let error = io::Error::from_raw_os_error(errno);
    let explanation = (reply.flags & NLM_F_ACK_TLVS != 0)
        .then(|| reply.attributes(REFUSAL_HEADER_BYTES))
        .and_then(|attributes| attributes.text(NLMSGERR_ATTR_MSG));
    // "No such device" and "no such process" are how links and routes say that they are absent.
    let kind = match errno {
        libc::ENODEV | libc::ESRCH | libc::EADDRNOTAVAIL => io::ErrorKind::NotFound,
        _ if explanation.is_none() => return Err(error),
        _ => error.kind(),
    };
    Err(match explanation {
        Some(text) => io::Error::new(kind, format!("{error}: {text}")),
        None => io::Error::new(kind, error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RTM_GETLINK: u16 = 18;
    const IFLA_IFNAME: u16 = 3;

    #[test]
    fn a_dump_of_the_links_has_the_loopback_in_it() {
        let mut conversation = Conversation::route().unwrap();
        let links = conversation
            .dump(Message::new(RTM_GETLINK, 0, &[0; 16]))
            .unwrap();
        let names: Vec<_> = links
            .iter()
            .filter_map(|link| link.attributes(16).text(IFLA_IFNAME))
            .collect();
        assert!(names.iter().any(|name| name == "lo"), "{names:?}");
    }

    #[test]
    fn a_question_about_an_absent_link_is_answered_by_not_found() {
        let mut conversation = Conversation::route().unwrap();
        let mut message = Message::new(RTM_GETLINK, 0, &[0; 16]);
        message.text(IFLA_IFNAME, "no-such-device");
        let error = conversation.get(message).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::NotFound, "{error}");
    }
}
