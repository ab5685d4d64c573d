//! The underlay's UDP sockets: batches in, batches out, and steering between the shards.
//!
//! Each shard has a socket per address family on the node's one port. The kernel spreads datagrams
//! over the sockets of a port; [`steer_by_receiver`] makes it follow the receiver index instead, so
//! that one WireGuard session stays on one shard and in order.

mod control;
mod receive;
mod runs;
mod segmentation;
mod send;
mod sieve;
mod socket_options;
mod steering;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use self::segmentation::Segmentation;

pub use self::receive::{Datagram, ReceiveBatch};
pub use self::runs::{Blocked, MAX_RUN, MAX_SEGMENTS, SendRun, SentRuns};
pub use self::send::{BatchFull, HopLimit, SendBatch, SendCounts};
pub use self::steering::steer_by_receiver;

/// Datagrams that one call receives or sends at most.
pub const BATCH_SLOTS: usize = 64;

/// What the kernel may do with a datagram that is longer than the path carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathMtu {
    /// Fragment it: at the source if it is longer than the device carries, or (IPv4) on the way, as
    /// "don't fragment" is never set. What anybody says about the path is not heard.
    Fragment,
    /// Drop it: "don't fragment" is set and a size over that of the device is refused, whatever
    /// the kernel has heard about the path. For probing the path's size by ourselves.
    Probe,
}

/// How a socket is set up.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// The firewall mark of what it sends, `None` for none. A routing rule sends marked packets past our
    /// own routes, so that our datagrams can't enter the tunnel again. Needs CAP_NET_ADMIN.
    pub mark: Option<u32>,
    /// Whether several sockets share the port.
    pub reuse_port: bool,
    /// Bytes that may wait to be received. Above the system's limit only with CAP_NET_ADMIN;
    /// without it the limit is taken.
    pub receive_buffer: usize,
    /// Bytes that may wait to be sent, with the same limit.
    pub send_buffer: usize,
    /// What happens to long datagrams.
    pub path_mtu: PathMtu,
    /// Whether the kernel cuts runs of datagrams on their way out (UDP_SEGMENT).
    pub segment: bool,
    /// Whether the kernel gives datagrams that came together in one piece (UDP_GRO).
    pub merge: bool,
    /// Whom the socket hears, `None` for everybody: what comes from elsewhere is dropped by the kernel,
    /// so that nobody can tell that there is a socket.
    pub only_from: Option<SocketAddr>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            mark: None,
            reuse_port: false,
            receive_buffer: 7 << 20,
            send_buffer: 2 << 20,
            path_mtu: PathMtu::Fragment,
            segment: true,
            merge: false,
            only_from: None,
        }
    }
}

/// The step at which a socket could not be made.
#[derive(Debug, thiserror::Error)]
#[error("can't {step} the UDP socket {address}: {source}")]
pub struct BindError {
    /// What was tried, as a verb.
    pub step: &'static str,
    /// The address asked for.
    pub address: SocketAddr,
    /// The kernel's answer.
    #[source]
    pub source: io::Error,
}

/// A nonblocking UDP socket of one address family.
#[derive(Debug)]
pub struct UdpSocket {
    inner: std::net::UdpSocket,
    segmentation: Segmentation,
    merges: bool,
    path_mtu: PathMtu,
}

impl UdpSocket {
    /// Binds to `address`; port 0 takes any free one. An IPv6 socket does not take IPv4, so both
    /// families can use the same port.
    ///
    /// # Errors
    ///
    /// When the port is taken, the family is off, or the process may not set the mark.
    pub fn bind(address: SocketAddr, options: &Options) -> Result<Self, BindError> {
        let failed = |step| {
            move |source| BindError {
                step,
                address,
                source,
            }
        };
        let inner = socket_options::create(address).map_err(failed("create"))?;
        socket_options::apply(&inner, address, options)
            .map_err(|(step, source)| failed(step)(source))?;
        socket_options::separate(&inner, address).map_err(failed("separate"))?;
        socket_options::bind(&inner, address).map_err(failed("bind"))?;
        Ok(Self::with(inner.into(), options))
    }

    /// Takes over a socket that another process has bound, and sets it up anew.
    ///
    /// # Errors
    ///
    /// When the descriptor is no UDP socket, or the process may not set the mark.
    pub fn adopt(descriptor: OwnedFd, options: &Options) -> Result<Self, BindError> {
        let inner = std::net::UdpSocket::from(descriptor);
        let unknown = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0);
        let address = inner.local_addr();
        let failed = |step, address| {
            move |source| BindError {
                step,
                address,
                source,
            }
        };
        let address = address.map_err(failed("take over", unknown))?;
        inner
            .set_nonblocking(true)
            .map_err(failed("take over", address))?;
        socket_options::apply(&inner, address, options)
            .map_err(|(step, source)| failed(step, address)(source))?;
        Ok(Self::with(inner, options))
    }

    fn with(inner: std::net::UdpSocket, options: &Options) -> Self {
        Self {
            merges: socket_options::merge(&inner, options.merge),
            segmentation: Segmentation::new(options.segment && socket_options::segments(&inner)),
            path_mtu: options.path_mtu,
            inner,
        }
    }

    /// Binds to all addresses of the family of `like`.
    ///
    /// # Errors
    ///
    /// As [`Self::bind`].
    pub fn bind_any(like: IpAddr, port: u16, options: &Options) -> Result<Self, BindError> {
        let any: IpAddr = match like {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        Self::bind(SocketAddr::new(any, port), options)
    }

    /// Whether the kernel cuts runs, where the devices let it.
    #[must_use]
    pub fn segments(&self) -> bool {
        self.segmentation.is_wanted()
    }

    /// Whether datagrams may arrive in one piece.
    #[must_use]
    pub fn merges(&self) -> bool {
        self.merges
    }

    /// The address and port it is bound to.
    ///
    /// # Errors
    ///
    /// Only if the descriptor is no socket any more.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    /// Gives the socket away, with all its options, to a library that brings its own batches.
    #[must_use]
    pub fn into_std(self) -> std::net::UdpSocket {
        self.inner
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

impl AsRawFd for UdpSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.inner.as_raw_fd()
    }
}
