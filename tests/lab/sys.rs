//! The system calls that the standard library has no door for.
//!
//! This is the only file of the lab with `unsafe` in it: entering a network namespace, packet
//! and ICMP sockets, polling many descriptors, offload switches, signals. It holds no lab logic.
#![allow(
    unsafe_code,
    reason = "the lab's one file of raw system calls; each block says why it is sound"
)]

use std::fs::File;
use std::io;
use std::mem;
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use libc::{c_int, c_void, socklen_t};

/// Moves the calling thread, and only it, into the network namespace behind `namespace`.
pub(crate) fn enter_net_namespace(namespace: &File) -> io::Result<()> {
    // SAFETY: setns takes a descriptor that lives as long as the borrow and touches no memory.
    check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) }).map(drop)
}

/// Sends `signal` to the process `pid`.
pub(crate) fn kill(pid: u32, signal: c_int) -> io::Result<()> {
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    // SAFETY: kill touches no memory of this process.
    check(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// Gives the calling thread a real-time priority and exact timers, as far as it is allowed to.
pub(crate) fn run_punctually() {
    // SAFETY: both calls change the scheduling of the calling thread only; `param` outlives the
    // call that reads it, and a refusal leaves everything as it was.
    unsafe {
        libc::prctl(libc::PR_SET_TIMERSLACK, 1_000, 0, 0, 0);
        let param = libc::sched_param { sched_priority: 1 };
        libc::sched_setscheduler(
            0,
            libc::SCHED_RR | libc::SCHED_RESET_ON_FORK,
            &raw const param,
        );
    }
}

/// A readable end that yields one byte per SIGINT, SIGTERM or SIGHUP that this process gets.
///
/// From the first call on these signals no longer end the process by themselves.
pub(crate) fn termination_signals() -> io::Result<File> {
    static WRITE_END: AtomicI32 = AtomicI32::new(-1);

    extern "C" fn note(signal: c_int) {
        let byte = u8::try_from(signal).unwrap_or(u8::MAX);
        // SAFETY: write is async-signal-safe; the descriptor is never closed; one byte is read.
        unsafe {
            libc::write(
                WRITE_END.load(Ordering::Relaxed),
                (&raw const byte).cast(),
                1,
            )
        };
    }

    let mut ends = [0; 2];
    // SAFETY: pipe2 fills the two descriptors of `ends`.
    check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) })?;
    WRITE_END.store(ends[1], Ordering::Relaxed);
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: `note` has the signature of a signal handler and does nothing but write.
        unsafe { libc::signal(signal, note as extern "C" fn(c_int) as libc::sighandler_t) };
    }
    // SAFETY: pipe2 has just given this descriptor to us and nobody else knows it.
    Ok(unsafe { File::from_raw_fd(ends[0]) })
}

/// Lets the calling process end by `signal` the way it would have without a handler.
pub(crate) fn die_of(signal: c_int) {
    // SAFETY: restoring the default action and raising touch no memory.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
}

/// Switches segmentation, receive coalescing and checksum offload of `interface` off.
///
/// A frame that a packet socket reads is then exactly what a cable would carry.
pub(crate) fn disable_offloads(interface: &str) -> io::Result<()> {
    const SIOCETHTOOL: libc::c_ulong = 0x8946;
    // ETHTOOL_STXCSUM, ETHTOOL_STSO, ETHTOOL_SGSO, ETHTOOL_SGRO of linux/ethtool.h.
    const SWITCHES: [u32; 4] = [0x17, 0x1f, 0x24, 0x2c];

    let socket = UdpSocket::bind("0.0.0.0:0")?;
    for switch in SWITCHES {
        let mut value = [switch, 0_u32];
        // SAFETY: an all-zero ifreq is a valid value of that plain C struct.
        let mut request: libc::ifreq = unsafe { mem::zeroed() };
        for (place, byte) in request.ifr_name.iter_mut().take(15).zip(interface.bytes()) {
            *place = byte.cast_signed();
        }
        request.ifr_ifru.ifru_data = value.as_mut_ptr().cast();
        // SAFETY: the request names the interface, NUL-terminated, and points at an ethtool_value
        // (two u32) that outlives the call.
        check(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) })?;
    }
    Ok(())
}

/// An ICMP (or ICMPv6) echo socket: the kernel fills in identifier and checksum, and hands over
/// only replies to this socket's own requests. `net.ipv4.ping_group_range` must allow it.
pub(crate) fn echo_socket(ipv6: bool) -> io::Result<UdpSocket> {
    let (family, protocol) = if ipv6 {
        (libc::AF_INET6, libc::IPPROTO_ICMPV6)
    } else {
        (libc::AF_INET, libc::IPPROTO_ICMP)
    };
    let flags = libc::SOCK_DGRAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: socket touches no memory; the descriptor it returns is ours alone.
    unsafe {
        let descriptor = check(libc::socket(family, flags, protocol))?;
        Ok(UdpSocket::from_raw_fd(descriptor))
    }
}

/// A raw Ethernet socket of the namespace that the opening thread is in.
#[derive(Debug)]
pub(crate) struct PacketSocket(OwnedFd);

/// One instruction of a socket filter, as the kernel's interpreter runs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FilterStep {
    pub(crate) code: u16,
    /// Steps to leap over if a comparison holds.
    pub(crate) jump_true: u8,
    /// Steps to leap over if it does not.
    pub(crate) jump_false: u8,
    pub(crate) k: u32,
}

/// What one receive call found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ReceivedFrame {
    /// Bytes of the frame in the caller's buffer.
    pub(crate) len: usize,
    /// Index of the interface it came in by.
    pub(crate) interface: u32,
}

impl PacketSocket {
    /// Opens a socket for every frame that comes in by `interface`.
    ///
    /// Frames going out are not shown.
    pub(crate) fn open(interface: &str) -> io::Result<Self> {
        let socket = Self::unbound()?;
        socket.bind(interface_index(interface)?)?;
        Ok(socket)
    }

    /// Opens a socket for the frames that come in by any interface and that `program` lets pass.
    pub(crate) fn open_filtered(program: &[FilterStep]) -> io::Result<Self> {
        let step = |step: &FilterStep| libc::sock_filter {
            code: step.code,
            jt: step.jump_true,
            jf: step.jump_false,
            k: step.k,
        };
        let mut program: Vec<libc::sock_filter> = program.iter().map(step).collect();
        let filter = libc::sock_fprog {
            len: u16::try_from(program.len()).map_err(io::Error::other)?,
            filter: program.as_mut_ptr(),
        };
        let socket = Self::unbound()?;
        socket.set(libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &filter)?;
        socket.bind(0)?;
        Ok(socket)
    }

    fn unbound() -> io::Result<Self> {
        let flags = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: socket touches no memory; the descriptor it returns is ours alone.
        let socket = unsafe {
            let descriptor = check(libc::socket(libc::AF_PACKET, flags, 0))?;
            Self(OwnedFd::from_raw_fd(descriptor))
        };
        socket.set(libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &1_i32)?;
        socket.set(libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, &1_i32)?;
        socket.set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &RECEIVE_BUFFER)?;
        Ok(socket)
    }

    /// Takes the next frame, or nothing if none waits. A longer frame is cut to the buffer.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<ReceivedFrame>> {
        // SAFETY: an all-zero sockaddr_ll is a valid value of that plain C struct.
        let mut from: libc::sockaddr_ll = unsafe { mem::zeroed() };
        let mut from_len = size_of_val(&from) as socklen_t;
        // SAFETY: buffer and address are writable for the lengths that are passed.
        let received = unsafe {
            libc::recvfrom(
                self.0.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                0,
                (&raw mut from).cast(),
                &raw mut from_len,
            )
        };
        match usize::try_from(received) {
            Ok(len) => {
                let interface = u32::try_from(from.sll_ifindex).unwrap_or(0);
                Ok(Some(ReceivedFrame { len, interface }))
            }
            Err(_) => match io::Error::last_os_error() {
                nothing if nothing.kind() == io::ErrorKind::WouldBlock => Ok(None),
                error => Err(error),
            },
        }
    }

    /// Sends one whole frame.
    pub(crate) fn send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: `frame` is readable for its length.
        let sent = unsafe {
            libc::send(
                self.0.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                libc::MSG_DONTWAIT,
            )
        };
        if sent < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }

    /// Frames that the kernel dropped since the last call because this socket was not read fast
    /// enough.
    pub(crate) fn take_dropped(&self) -> io::Result<u64> {
        // SAFETY: an all-zero tpacket_stats is a valid value of that plain C struct.
        let mut stats: libc::tpacket_stats = unsafe { mem::zeroed() };
        let mut len = size_of_val(&stats) as socklen_t;
        // SAFETY: the kernel writes at most `len` bytes into `stats`.
        check(unsafe {
            libc::getsockopt(
                self.0.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut stats).cast(),
                &raw mut len,
            )
        })?;
        Ok(u64::from(stats.tp_drops))
    }

    fn bind(&self, interface: u32) -> io::Result<()> {
        // SAFETY: an all-zero sockaddr_ll is a valid value of that plain C struct.
        let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = i32::try_from(interface).map_err(io::Error::other)?;
        let len = size_of_val(&address) as socklen_t;
        // SAFETY: `address` is readable for the length that is passed.
        check(unsafe { libc::bind(self.0.as_raw_fd(), (&raw const address).cast(), len) }).map(drop)
    }

    fn set<T>(&self, level: c_int, option: c_int, value: &T) -> io::Result<()> {
        let len = size_of::<T>() as socklen_t;
        let value: *const c_void = (&raw const *value).cast();
        // SAFETY: `value` is readable for its own size; the kernel copies it.
        check(unsafe { libc::setsockopt(self.0.as_raw_fd(), level, option, value, len) }).map(drop)
    }
}

impl AsRawFd for PacketSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Waits for the first of many descriptors to become readable.
#[derive(Debug, Default)]
pub(crate) struct Poller(Vec<libc::pollfd>);

impl Poller {
    /// Watches exactly these descriptors from now on; [`Poller::ready`] speaks of their places.
    pub(crate) fn watch(&mut self, descriptors: impl Iterator<Item = RawFd>) {
        self.0.clear();
        self.0.extend(descriptors.map(|fd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        }));
    }

    /// Blocks until a descriptor is readable, `timeout` is over, or a signal came.
    pub(crate) fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let time = timeout.map(|timeout| libc::timespec {
            tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        let time = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        let count = self.0.len() as libc::nfds_t;
        // SAFETY: the array is writable for `count` entries; `time` is null or outlives the call.
        match check(unsafe { libc::ppoll(self.0.as_mut_ptr(), count, time, std::ptr::null()) }) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            Err(_) => {
                self.0.iter_mut().for_each(|entry| entry.revents = 0);
                Ok(())
            }
            Ok(_) => Ok(()),
        }
    }

    /// Whether the descriptor at `place` had something (or an error) in the last wait.
    pub(crate) fn ready(&self, place: usize) -> bool {
        self.0.get(place).is_some_and(|entry| entry.revents != 0)
    }
}

/// The index of `interface` in the namespace of the calling thread.
pub(crate) fn interface_index(interface: &str) -> io::Result<u32> {
    let name = std::ffi::CString::new(interface).map_err(io::Error::other)?;
    // SAFETY: `name` is NUL-terminated and outlives the call.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Bytes. Holds about a second of a busy link, so that a starved reader loses nothing.
const RECEIVE_BUFFER: c_int = 64 << 20;
