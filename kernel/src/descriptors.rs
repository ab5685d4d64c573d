//! Descriptors that outlive the process that opened them: handed to another one over a Unix socket
//! (unix(7), `SCM_RIGHTS`), each with a name.
#![allow(
    unsafe_code,
    reason = "descriptors that were passed are numbers at first"
)]

use std::collections::BTreeMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Descriptors in one message, a limit of the kernel's (`SCM_MAX_FD`).
pub const MAX_DESCRIPTORS: usize = 253;
/// The first descriptor that a service manager passes (`SD_LISTEN_FDS_START`).
const FIRST_PASSED: RawFd = 3;
/// Bytes of all their names.
const MAX_NAMES: usize = 16 * 1024;

/// Open descriptors by name. Closed when dropped, unless they are taken.
#[derive(Debug, Default)]
pub struct Descriptors(BTreeMap<String, OwnedFd>);

impl Descriptors {
    /// Those with these names; of two with one name the later.
    #[must_use]
    pub fn new(named: impl IntoIterator<Item = (String, OwnedFd)>) -> Self {
        Self(named.into_iter().collect())
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The same open files again, under numbers of their own.
    ///
    /// # Errors
    ///
    /// No descriptor is left.
    pub fn try_clone(&self) -> io::Result<Self> {
        let all = self.0.iter();
        all.map(|(name, open)| Ok((name.clone(), open.try_clone()?)))
            .collect::<io::Result<_>>()
            .map(Self)
    }

    /// Takes the one of this name.
    pub fn take(&mut self, name: &str) -> Option<OwnedFd> {
        self.0.remove(name)
    }

    /// Takes all whose names are `stem` and a number, from 0 on without a gap.
    pub fn take_row(&mut self, stem: &str) -> Vec<OwnedFd> {
        (0_usize..)
            .map_while(|number| self.0.remove(&format!("{stem}{number}")))
            .collect()
    }

    /// Those that were passed to this process at its start, from number 3 on, in this order
    /// (sd_listen_fds(3)). To be called once; the numbers are theirs, whatever was opened since.
    #[must_use]
    pub fn passed_at_start(names: &[&str]) -> Self {
        let numbers = FIRST_PASSED..FIRST_PASSED + names.len() as RawFd;
        let open = numbers.zip(names).filter_map(|(number, name)| {
            // SAFETY: asks about a number; whether it is open is what the call tells.
            let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
            if flags < 0 {
                return None;
            }
            // SAFETY: changes one flag of a descriptor that is open.
            unsafe { libc::fcntl(number, libc::F_SETFD, flags | libc::FD_CLOEXEC) };
            // SAFETY: it is open, and nobody else in this process owns it: whoever passed it gave it
            // to the first who asks, which the caller promises to be.
            Some(((*name).to_owned(), unsafe { OwnedFd::from_raw_fd(number) }))
        });
        Self::new(open)
    }

    /// The names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Receives what [`send`] has sent over `socket`, which keeps messages apart or carries this one
    /// alone. Waits as long as the socket does.
    ///
    /// # Errors
    ///
    /// The kernel's answer; `UnexpectedEof` if the other end has closed; `InvalidData` if names and
    /// descriptors don't go together.
    pub fn receive(socket: impl AsFd) -> io::Result<Self> {
        let mut names = vec![0; MAX_NAMES];
        let mut space =
            vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            socket,
            &mut [IoSliceMut::new(&mut names)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        if received.bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        names.truncate(received.bytes);
        let names = String::from_utf8(names).map_err(|_| io::ErrorKind::InvalidData)?;
        let names: Vec<String> = names.lines().map(str::to_owned).collect();
        if names.len() != descriptors.len() {
            // The kernel hands over as many as the process may still open.
            let (came, sent) = (descriptors.len(), names.len());
            let words =
                format!("{came} of {sent} descriptors came; is the limit of open files too low?");
            return Err(io::Error::new(io::ErrorKind::InvalidData, words));
        }
        Ok(Self::new(names.into_iter().zip(descriptors)))
    }
}

/// Sends descriptors with their names in one message; they stay open here. Names have no line ends.
///
/// # Errors
///
/// The kernel's answer; `InvalidInput` for more than [`MAX_DESCRIPTORS`].
pub fn send(socket: impl AsFd, named: &[(String, BorrowedFd<'_>)]) -> io::Result<()> {
    let names: Vec<&str> = named.iter().map(|(name, _)| name.as_str()).collect();
    send_with(socket, names.join("\n").as_bytes(), named)
}

/// Sends descriptors with some other words.
///
/// # Errors
///
/// As [`send`].
pub fn send_with(
    socket: impl AsFd,
    words: &[u8],
    named: &[(String, BorrowedFd<'_>)],
) -> io::Result<()> {
    let rights: Vec<BorrowedFd<'_>> = named.iter().map(|(_, descriptor)| *descriptor).collect();
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !rights.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&rights)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    sendmsg(
        socket,
        &[IoSlice::new(words)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read as _, Seek as _, Write as _};
    use std::os::unix::net::UnixStream;

    #[test]
    fn descriptors_arrive_with_their_names_and_are_the_same_files() {
        let (one, other) = UnixStream::pair().expect("a pair");
        let mut file = tempfile();
        let named = [
            ("tun-0".to_owned(), file.as_fd()),
            ("tun-1".to_owned(), file.as_fd()),
            ("spare4".to_owned(), one.as_fd()),
        ];
        send(&one, &named).expect("sent");
        let mut received = Descriptors::receive(&other).expect("received");
        let row = received.take_row("tun-");
        assert_eq!(row.len(), 2);
        assert!(received.take("spare4").is_some() && received.is_empty());
        let mut same = File::from(row.into_iter().next().expect("one"));
        same.write_all(b"written by the heir").expect("written");
        let mut text = String::new();
        file.rewind().expect("rewound");
        file.read_to_string(&mut text).expect("read");
        assert_eq!(text, "written by the heir");
    }

    #[test]
    fn whoever_sends_something_else_is_not_believed() {
        let (mut one, other) = UnixStream::pair().expect("a pair");
        one.write_all(b"tun-0\ntun-1").expect("sent");
        let kind = Descriptors::receive(&other).map(drop).unwrap_err().kind();
        assert_eq!(kind, io::ErrorKind::InvalidData);
        drop(one);
        let kind = Descriptors::receive(&other).map(drop).unwrap_err().kind();
        assert_eq!(kind, io::ErrorKind::UnexpectedEof);
    }

    fn tempfile() -> File {
        let path = std::env::temp_dir().join(format!("podmesh-fd-{}", std::process::id()));
        let file = File::options()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .open(&path)
            .expect("a file");
        let _ = std::fs::remove_file(path);
        file
    }
}
