//! The system calls.
#![allow(
    unsafe_code,
    reason = "TUN and control messages have no safe form; each block says why it is sound"
)]

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::mem;
use std::net::{SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;

/// Bytes of the virtio-net header.
pub(crate) const HEADER: usize = 10;

const UDP_SEGMENT: libc::c_int = 103;
const UDP_GRO: libc::c_int = 104;
const SOCKET_BUFFER: libc::c_int = 7 << 20;

/// A TUN device with TCP segmentation left to us.
pub(crate) struct Tun(File);

/// A connected UDP socket.
pub(crate) struct Socket(UdpSocket);

/// A control message with room for four bytes.
#[repr(C, align(8))]
struct Control {
    header: libc::cmsghdr,
    value: [u8; 4],
}

impl Tun {
    pub(crate) fn open(name: &str) -> io::Result<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .open("/dev/net/tun")?;
        // SAFETY: `ifreq` is plain memory for which zeroes are valid.
        let mut request: libc::ifreq = unsafe { mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().take(15).zip(name.bytes()) {
            *to = libc::c_char::from_ne_bytes([from]);
        }
        request.ifr_ifru.ifru_flags =
            (libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
        let length: libc::c_int = 10;
        let offloads = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
        let fd = file.as_raw_fd();
        // SAFETY: the calls read one `ifreq`, one int, and an argument by value; all outlive them.
        unsafe {
            check(libc::ioctl(fd, libc::TUNSETIFF, &raw mut request))?;
            check(libc::ioctl(fd, libc::TUNSETVNETHDRSZ, &raw const length))?;
            check(libc::ioctl(
                fd,
                libc::TUNSETOFFLOAD,
                libc::c_ulong::from(offloads),
            ))?;
        }
        Ok(Self(file))
    }

    /// Reads one packet with its header; nothing on an error.
    pub(crate) fn read(&self, piece: &mut [u8]) -> usize {
        (&self.0).read(piece).unwrap_or(0)
    }

    pub(crate) fn write(&self, parts: &[IoSlice<'_>]) {
        // What the kernel doesn't take is lost, as on any link.
        let _ = (&self.0).write_vectored(parts);
    }
}

impl Socket {
    pub(crate) fn connect(local: SocketAddrV4, remote: SocketAddrV4) -> io::Result<Self> {
        let socket = UdpSocket::bind(local)?;
        socket.connect(remote)?;
        let set = |level, name, value: libc::c_int| {
            let value = (&raw const value).cast();
            // SAFETY: the value is one int that outlives the call.
            check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value, 4) })
        };
        set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, SOCKET_BUFFER)?;
        set(libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, SOCKET_BUFFER)?;
        set(libc::SOL_UDP, UDP_GRO, 1)?;
        Ok(Self(socket))
    }

    /// Sends `parts`, in datagrams of `segment` bytes if there are several.
    pub(crate) fn send(&self, parts: &[IoSlice<'_>], segment: Option<u16>) {
        // SAFETY: plain memory for which zeroes are valid.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        message.msg_iov = parts.as_ptr().cast_mut().cast();
        message.msg_iovlen = parts.len() as _;
        // SAFETY: as above.
        let mut control: Control = unsafe { mem::zeroed() };
        if let Some(segment) = segment {
            control.header.cmsg_level = libc::SOL_UDP;
            control.header.cmsg_type = UDP_SEGMENT;
            control.header.cmsg_len = (mem::offset_of!(Control, value) + 2) as _;
            let [low, high] = segment.to_ne_bytes();
            control.value = [low, high, 0, 0];
            message.msg_control = (&raw mut control).cast();
            message.msg_controllen = size_of::<Control>() as _;
        }
        // SAFETY: `IoSlice` is laid out as `iovec`; everything outlives the call.
        let _ = unsafe { libc::sendmsg(self.0.as_raw_fd(), &raw const message, 0) };
    }

    /// Receives a datagram or several in one piece: all bytes, and those of each.
    pub(crate) fn receive(&self, piece: &mut [u8]) -> (usize, usize) {
        let mut vector = libc::iovec {
            iov_base: piece.as_mut_ptr().cast(),
            iov_len: piece.len(),
        };
        // SAFETY: plain memory for which zeroes are valid.
        let (mut message, mut control): (libc::msghdr, Control) = unsafe { mem::zeroed() };
        message.msg_iov = &raw mut vector;
        message.msg_iovlen = 1;
        message.msg_control = (&raw mut control).cast();
        message.msg_controllen = size_of::<Control>() as _;
        // SAFETY: one vector over one exclusive buffer, and room for a control message.
        let received = unsafe { libc::recvmsg(self.0.as_raw_fd(), &raw mut message, 0) };
        let length = usize::try_from(received).unwrap_or(0);
        let several = message.msg_controllen > 0 && control.header.cmsg_type == UDP_GRO;
        let segment = usize::try_from(i32::from_ne_bytes(control.value)).unwrap_or(0);
        (
            length,
            if several {
                segment.max(1)
            } else {
                length.max(1)
            },
        )
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
