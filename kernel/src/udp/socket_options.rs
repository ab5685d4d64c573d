//! Making and configuring a UDP socket.
#![allow(
    unsafe_code,
    reason = "socket, setsockopt and bind have no safe form for these options"
)]

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::control::{UDP_GRO, UDP_SEGMENT};
use super::{Options, PathMtu, sieve};

/// Bytes of the longest address we hand to the kernel, a `sockaddr_in6`.
pub(super) const ADDRESS_LENGTH: usize = size_of::<libc::sockaddr_in6>();

/// Room for an address of either family, as the kernel reads and writes it.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) union RawAddress {
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

impl RawAddress {
    pub(super) const EMPTY: Self = Self {
        v6: libc::sockaddr_in6 {
            sin6_family: 0,
            sin6_port: 0,
            sin6_flowinfo: 0,
            sin6_addr: libc::in6_addr { s6_addr: [0; 16] },
            sin6_scope_id: 0,
        },
    };

    pub(super) fn set(&mut self, address: SocketAddr) -> libc::socklen_t {
        *self = Self::EMPTY;
        match address {
            SocketAddr::V4(v4) => {
                self.v4 = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: v4.port().to_be(),
                    sin_addr: libc::in_addr {
                        s_addr: u32::from_ne_bytes(v4.ip().octets()),
                    },
                    sin_zero: [0; 8],
                };
                size_of::<libc::sockaddr_in>() as libc::socklen_t
            }
            SocketAddr::V6(v6) => {
                self.v6 = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: v6.port().to_be(),
                    sin6_flowinfo: v6.flowinfo(),
                    sin6_addr: libc::in6_addr {
                        s6_addr: v6.ip().octets(),
                    },
                    sin6_scope_id: v6.scope_id(),
                };
                ADDRESS_LENGTH as libc::socklen_t
            }
        }
    }

    /// The address, `None` if it is of another family.
    pub(super) fn get(&self) -> Option<SocketAddr> {
        // SAFETY: every field of both variants is an integer for which all bits are valid, and all
        // bytes were initialised by `EMPTY`; the family lies at the same place in both.
        let (v4, v6) = unsafe { (self.v4, self.v6) };
        match libc::c_int::from(v4.sin_family) {
            libc::AF_INET => {
                let ip = v4.sin_addr.s_addr.to_ne_bytes();
                Some(SocketAddr::from((ip, u16::from_be(v4.sin_port))))
            }
            libc::AF_INET6 => Some(SocketAddr::V6(std::net::SocketAddrV6::new(
                v6.sin6_addr.s6_addr.into(),
                u16::from_be(v6.sin6_port),
                v6.sin6_flowinfo,
                v6.sin6_scope_id,
            ))),
            _ => None,
        }
    }
}

/// A nonblocking socket of the family of `address`, not bound.
pub(super) fn create(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    // SAFETY: no memory is involved.
    let fd = unsafe {
        libc::socket(
            family,
            libc::SOCK_DGRAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
            0,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was just created and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sets everything that can be set at any time; of a socket that is to be bound, before that.
pub(super) fn apply(
    socket: &impl AsRawFd,
    address: SocketAddr,
    options: &Options,
) -> Result<(), (&'static str, io::Error)> {
    let step = |step: &'static str| move |source| (step, source);
    if let Some(mark) = options.mark {
        set(socket, libc::SOL_SOCKET, libc::SO_MARK, mark.cast_signed()).map_err(step("mark"))?;
    }
    if options.reuse_port {
        set(socket, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1).map_err(step("share the port of"))?;
    }
    set_buffer(
        socket,
        libc::SO_RCVBUFFORCE,
        libc::SO_RCVBUF,
        options.receive_buffer,
    )
    .map_err(step("set the receive buffer of"))?;
    set_buffer(
        socket,
        libc::SO_SNDBUFFORCE,
        libc::SO_SNDBUF,
        options.send_buffer,
    )
    .map_err(step("set the send buffer of"))?;
    set_path_mtu(socket, address.is_ipv4(), options.path_mtu)
        .map_err(step("set fragmentation of"))?;
    let (level, name) = if address.is_ipv4() {
        (libc::IPPROTO_IP, libc::IP_RECVTOS)
    } else {
        (libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS)
    };
    set(socket, level, name, 1).map_err(step("read congestion marks of"))?;
    if let Some(only) = options.only_from {
        sieve::attach(socket, only).map_err(step("keep strangers from"))?;
    }
    Ok(())
}

/// Keeps a socket that is not bound yet to its own family.
pub(super) fn separate(socket: &OwnedFd, address: SocketAddr) -> io::Result<()> {
    if address.is_ipv4() {
        return Ok(());
    }
    set(socket, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)
}

/// What happens to long datagrams from now on.
pub(super) fn set_path_mtu(
    socket: &impl AsRawFd,
    is_ipv4: bool,
    path_mtu: PathMtu,
) -> io::Result<()> {
    let (level, name) = if is_ipv4 {
        (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER)
    } else {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER)
    };
    let value = match (is_ipv4, path_mtu) {
        // Not DONT, which believes whoever says that the path carries less.
        (true, PathMtu::Fragment) => libc::IP_PMTUDISC_OMIT,
        (true, PathMtu::Probe) => libc::IP_PMTUDISC_PROBE,
        (false, PathMtu::Fragment) => libc::IPV6_PMTUDISC_OMIT,
        (false, PathMtu::Probe) => libc::IPV6_PMTUDISC_PROBE,
    };
    set(socket, level, name, value)
}

/// Whether datagrams that came together arrive in one piece from now on; false if the kernel doesn't
/// know how.
pub(super) fn merge(socket: &impl AsRawFd, wanted: bool) -> bool {
    // A socket that is taken over has it as the former owner wanted it.
    set(socket, UDP_GRO.0, UDP_GRO.1, wanted.into()).is_ok() && wanted
}

/// Whether the kernel can cut runs. One before Linux 4.18 would take a run for one long datagram.
pub(super) fn segments(socket: &impl AsRawFd) -> bool {
    let mut value: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel writes at most one int, which outlives the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            UDP_SEGMENT.0,
            UDP_SEGMENT.1,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    result == 0
}

/// Binds the socket.
pub(super) fn bind(socket: &OwnedFd, address: SocketAddr) -> io::Result<()> {
    let mut raw = RawAddress::EMPTY;
    let length = raw.set(address);
    // SAFETY: `raw` holds an address of `length` bytes and outlives the call.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const raw).cast(), length) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Beyond the system's limit if that is permitted, otherwise as much as it allows.
fn set_buffer(
    socket: &impl AsRawFd,
    force: libc::c_int,
    limited: libc::c_int,
    bytes: usize,
) -> io::Result<()> {
    let bytes = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    set(socket, libc::SOL_SOCKET, force, bytes)
        .or_else(|_| set(socket, libc::SOL_SOCKET, limited, bytes))
}

fn set(
    socket: &impl AsRawFd,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the option value is one int that outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_survives_its_raw_form() {
        for text in ["192.0.2.7:51820", "[2001:db8::7]:51820", "[fe80::1%3]:9"] {
            let address: SocketAddr = text.parse().expect("an address");
            let mut raw = RawAddress::EMPTY;
            raw.set(address);
            assert_eq!(raw.get(), Some(address));
        }
        assert_eq!(RawAddress::EMPTY.get(), None);
    }
}
