//! Two processes that pass each other messages, each of them whole (unix(7), `SOCK_SEQPACKET`).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::sockopt::{
    Timeout, set_socket_send_buffer_size, set_socket_send_buffer_size_force, set_socket_timeout,
};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};

/// Bytes that may wait.
const BUFFER: usize = 4 << 20;

/// One end.
#[derive(Debug)]
pub struct MessageSocket(OwnedFd);

impl MessageSocket {
    /// Both ends.
    ///
    /// # Errors
    ///
    /// No descriptor is left.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (one, other) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        for end in [&one, &other] {
            // Beyond the system's limit only with CAP_NET_ADMIN.
            set_socket_send_buffer_size_force(end, BUFFER)
                .or_else(|_| set_socket_send_buffer_size(end, BUFFER))?;
        }
        Ok((Self(one), Self(other)))
    }

    /// Sends a message, without waiting.
    ///
    /// # Errors
    ///
    /// The kernel's answer: `WouldBlock` if too much waits, `BrokenPipe` if the other end is gone.
    pub fn send(&self, message: &[u8]) -> io::Result<()> {
        send(&self.0, message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Waits at most `patience` for a message, and returns its length; 0 if the other end is gone. What
    /// doesn't fit is cut off.
    ///
    /// # Errors
    ///
    /// The kernel's answer: `WouldBlock` if nothing came.
    pub fn receive(&self, buffer: &mut [u8], patience: Duration) -> io::Result<usize> {
        set_socket_timeout(&self.0, Timeout::Recv, Some(patience))?;
        loop {
            match recv(&self.0, &mut *buffer, RecvFlags::empty()) {
                Err(rustix::io::Errno::INTR) => {}
                received => return Ok(received.map(|(length, _)| length)?),
            }
        }
    }
}

impl From<OwnedFd> for MessageSocket {
    fn from(descriptor: OwnedFd) -> Self {
        Self(descriptor)
    }
}

impl AsFd for MessageSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_stay_whole_and_an_end_is_seen() {
        let (one, other) = MessageSocket::pair().expect("a pair");
        one.send(b"first").expect("sent");
        one.send(b"second message").expect("sent");
        let mut buffer = [0; 64];
        let patience = Duration::from_millis(20);
        assert_eq!(other.receive(&mut buffer, patience).expect("received"), 5);
        assert_eq!(other.receive(&mut buffer, patience).expect("received"), 14);
        assert_eq!(&buffer[..14], b"second message");
        let nothing = other.receive(&mut buffer, patience).expect_err("nothing");
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
        drop(one);
        assert_eq!(other.receive(&mut buffer, patience).expect("the end"), 0);
        let gone = other.send(b"x").expect_err("nobody");
        assert_eq!(gone.kind(), io::ErrorKind::BrokenPipe);
    }
}
