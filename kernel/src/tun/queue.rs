//! One queue of a TUN device: a nonblocking descriptor that one thread owns.
#![allow(
    unsafe_code,
    reason = "ioctl, read and writev on the TUN descriptor have no safe form"
)]

use std::ffi::CString;
use std::io::{self, IoSlice};
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use super::{TunBatch, TunError};
use crate::release;

/// Most parts that one packet may be gathered from: as many segments as the kernel makes of one.
pub const MAX_PARTS: usize = 64;

/// As a C short, which the kernel takes; all bits lie below the sign.
const FLAGS: libc::c_short =
    (libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_MULTI_QUEUE | libc::IFF_VNET_HDR) as libc::c_short;

/// Why a TUN queue can't be used at the moment, or at all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TunIoError {
    /// The interface was deleted. The queue is dead; open the device again.
    #[error("the TUN device was deleted")]
    DeviceLost,
    /// Any other answer of the kernel.
    #[error("can't use the TUN device: {0}")]
    Io(#[from] io::Error),
}

/// What the kernel may leave to us: packets come without checksums, and uncut; and it takes such.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Checksums, and TCP of up to 64 KiB in one packet.
    pub tcp: bool,
    /// The same with UDP (Linux 6.2).
    pub udp: bool,
}

impl Offloads {
    /// All that are known.
    pub const ALL: Self = Self {
        tcp: true,
        udp: true,
    };

    /// What kernels before Linux 6.2 know of them.
    pub(super) fn without_udp(self) -> Self {
        Self { udp: false, ..self }
    }

    fn bits(self) -> libc::c_ulong {
        // Without TSO_ECN the kernel cuts whatever carries a congestion mark; USO for one address
        // family alone is refused.
        let tcp = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
        let udp = libc::TUN_F_USO4 | libc::TUN_F_USO6;
        let bits = if self.tcp { tcp } else { 0 } | if self.udp { udp } else { 0 };
        libc::c_ulong::from(bits)
    }
}

/// What became of packets that were written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WriteCounts {
    /// Packets that the kernel took.
    pub written: usize,
    /// Packets lost because the interface is down (EIO). It works again once it is set up.
    pub device_down: usize,
    /// Packets that are no IP packets, or whose header the kernel refused.
    pub invalid: usize,
    /// Runs among them.
    pub refused_runs: usize,
    /// Packets lost for lack of memory.
    pub no_memory: usize,
}

/// The virtio-net header without the count of merged buffers (virtio 1.2, 5.1.6), in the byte order
/// of the machine, as TUN devices of Linux have it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VnetHeader {
    /// `VIRTIO_NET_HDR_F_*`.
    pub flags: u8,
    /// `VIRTIO_NET_HDR_GSO_*`, 0 for a single packet.
    pub gso_type: u8,
    /// Bytes of the headers in front of the first segment.
    pub header_length: u16,
    /// Payload bytes per segment.
    pub segment_size: u16,
    /// Where the checksum begins to count.
    pub checksum_start: u16,
    /// Where it is put, counted from `checksum_start`.
    pub checksum_offset: u16,
}

impl VnetHeader {
    /// Bytes in front of each packet.
    pub const LENGTH: usize = 10;

    /// Reads the header.
    #[must_use]
    pub fn from_bytes(bytes: [u8; Self::LENGTH]) -> Self {
        let [flags, gso_type, h0, h1, s0, s1, c0, c1, o0, o1] = bytes;
        Self {
            flags,
            gso_type,
            header_length: u16::from_ne_bytes([h0, h1]),
            segment_size: u16::from_ne_bytes([s0, s1]),
            checksum_start: u16::from_ne_bytes([c0, c1]),
            checksum_offset: u16::from_ne_bytes([o0, o1]),
        }
    }

    /// Writes the header.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::LENGTH] {
        let [h0, h1] = self.header_length.to_ne_bytes();
        let [s0, s1] = self.segment_size.to_ne_bytes();
        let [c0, c1] = self.checksum_start.to_ne_bytes();
        let [o0, o1] = self.checksum_offset.to_ne_bytes();
        [self.flags, self.gso_type, h0, h1, s0, s1, c0, c1, o0, o1]
    }
}

/// One queue of a [`TunDevice`](super::TunDevice). Dropping it detaches it.
#[derive(Debug)]
pub struct TunQueue {
    fd: OwnedFd,
    offloads: Offloads,
}

impl TunQueue {
    /// What the kernel leaves to us on this queue.
    #[must_use]
    pub fn offloads(&self) -> Offloads {
        self.offloads
    }

    /// Whether runs of UDP may be written, too. Kernels before Linux 6.8.5 (and 6.6.26) spoil what goes on
    /// into a tunnel of their own, such as VXLAN.
    #[must_use]
    pub fn takes_udp_runs(&self) -> bool {
        self.offloads.udp && release::at_least(&[(6, 6, 26), (6, 8, 5)])
    }

    /// Fills `batch` with the packets that wait, without blocking, and returns how many there are.
    /// Packets longer than a slot are dropped and counted in [`TunBatch::oversized`].
    ///
    /// # Errors
    ///
    /// [`TunIoError::DeviceLost`] when the interface is gone. Packets read before an error stay in
    /// the batch and are lost with its next filling, so look at it also after an error.
    pub fn read_batch(&self, batch: &mut TunBatch) -> Result<usize, TunIoError> {
        batch.clear();
        while let Some(space) = batch.next_space() {
            // SAFETY: `space` is a live, exclusively borrowed buffer of the length given.
            let read =
                unsafe { libc::read(self.fd.as_raw_fd(), space.as_mut_ptr().cast(), space.len()) };
            match usize::try_from(read) {
                Ok(length) => batch.commit(length),
                Err(_) => match last_errno() {
                    libc::EAGAIN => break,
                    libc::EINTR => {}
                    // EFAULT is what a queue says whose device is being taken down right now.
                    libc::EBADFD | libc::EFAULT => return Err(TunIoError::DeviceLost),
                    errno => return Err(io::Error::from_raw_os_error(errno).into()),
                },
            }
        }
        Ok(batch.len())
    }

    /// Writes single packets, each with an empty virtio-net header. One packet's failure does not
    /// stop the others.
    ///
    /// # Errors
    ///
    /// [`TunIoError::DeviceLost`] when the interface is gone.
    pub fn write_batch<P: AsRef<[u8]>>(
        &self,
        packets: impl IntoIterator<Item = P>,
    ) -> Result<WriteCounts, TunIoError> {
        let mut counts = WriteCounts::default();
        for packet in packets {
            let vectors = [
                IoSlice::new(&[0; VnetHeader::LENGTH]),
                IoSlice::new(packet.as_ref()),
            ];
            self.write_counted(&vectors, 1, &mut counts)?;
        }
        Ok(counts)
    }

    /// Writes one packet, or one run of segments that `header` describes, gathered from `parts`, one per
    /// packet, and adds the outcome to `counts`. More than 64 parts count as invalid.
    ///
    /// # Errors
    ///
    /// [`TunIoError::DeviceLost`] when the interface is gone.
    pub fn write_gathered(
        &self,
        header: VnetHeader,
        parts: &[IoSlice<'_>],
        counts: &mut WriteCounts,
    ) -> Result<(), TunIoError> {
        let header_is_run = header.gso_type != 0;
        let header = header.to_bytes();
        // What is prepared is touched whole, and after a sleep none of it is in the processor's caches.
        if let ([packet], false) = (parts, header_is_run) {
            return self.write_counted(&[IoSlice::new(&header), *packet], 1, counts);
        }
        let mut gathered = [IoSlice::new(&[]); MAX_PARTS + 1];
        let Some((vectors, _)) = gathered.split_at_mut_checked(parts.len() + 1) else {
            counts.invalid += parts.len();
            return Ok(());
        };
        for (vector, part) in vectors
            .iter_mut()
            .zip([IoSlice::new(&header)].iter().chain(parts))
        {
            *vector = *part;
        }
        let refused = counts.invalid;
        self.write_counted(vectors, parts.len(), counts)?;
        if header_is_run && counts.invalid > refused {
            counts.refused_runs += 1;
        }
        Ok(())
    }

    fn write_counted(
        &self,
        vectors: &[IoSlice<'_>],
        packets: usize,
        counts: &mut WriteCounts,
    ) -> Result<(), TunIoError> {
        loop {
            match self.writev(vectors) {
                Ok(()) => counts.written += packets,
                Err(libc::EINTR) => continue,
                Err(libc::EIO) => counts.device_down += packets,
                Err(libc::EINVAL | libc::EFAULT) => counts.invalid += packets,
                Err(libc::ENOMEM | libc::ENOBUFS | libc::EAGAIN) => counts.no_memory += packets,
                Err(libc::EBADFD) => return Err(TunIoError::DeviceLost),
                Err(errno) => return Err(io::Error::from_raw_os_error(errno).into()),
            }
            return Ok(());
        }
    }

    fn writev(&self, vectors: &[IoSlice<'_>]) -> Result<(), libc::c_int> {
        let count = libc::c_int::try_from(vectors.len()).map_err(|_| libc::EINVAL)?;
        // SAFETY: `IoSlice` has the layout of `iovec`, and the slices outlive the call.
        let written = unsafe { libc::writev(self.fd.as_raw_fd(), vectors.as_ptr().cast(), count) };
        if written < 0 {
            Err(last_errno())
        } else {
            Ok(())
        }
    }

    /// Makes `fd`, freshly opened and nonblocking, a queue of the device `name`, with the first of
    /// `wanted` that the kernel takes.
    pub(super) fn attach(fd: OwnedFd, name: &str, wanted: &[Offloads]) -> io::Result<Self> {
        let mut request = interface_request(name);
        request.ifr_ifru.ifru_flags = FLAGS;
        // SAFETY: TUNSETIFF reads and writes one `ifreq`, which `request` is.
        check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
        let header_length: libc::c_int = 10;
        // SAFETY: TUNSETVNETHDRSZ reads one int.
        check(unsafe {
            libc::ioctl(
                fd.as_raw_fd(),
                libc::TUNSETVNETHDRSZ,
                &raw const header_length,
            )
        })?;
        let offloads = set_offloads(&fd, wanted)?;
        Ok(Self { fd, offloads })
    }

    /// Takes over a queue of the device `name` that another process has attached.
    pub(super) fn adopt(fd: OwnedFd, name: &str, wanted: &[Offloads]) -> io::Result<Self> {
        let mut request = interface_request("");
        // SAFETY: TUNGETIFF writes one `ifreq`, which `request` is.
        check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETIFF, &raw mut request) })?;
        // SAFETY: the kernel has filled the flags in; any bits are a valid short.
        let flags = unsafe { request.ifr_ifru.ifru_flags };
        let same_name = request
            .ifr_name
            .iter()
            .map(|byte| byte.to_ne_bytes()[0])
            .take_while(|byte| *byte != 0)
            .eq(name.bytes());
        if !same_name || flags & FLAGS != FLAGS {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let offloads = set_offloads(&fd, wanted)?;
        Ok(Self { fd, offloads })
    }

    /// Lets the device live on when its last queue is closed.
    pub(super) fn set_persistent(&self) -> io::Result<()> {
        let on: libc::c_ulong = 1;
        // SAFETY: TUNSETPERSIST takes its argument by value.
        check(unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::TUNSETPERSIST, on) })
    }
}

/// Sets the best of `wanted` that the kernel takes; none at all if it takes none.
fn set_offloads(fd: &OwnedFd, wanted: &[Offloads]) -> io::Result<Offloads> {
    let none = Offloads::default();
    for offloads in wanted.iter().copied().chain([none]) {
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        let set =
            check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, offloads.bits()) });
        match set {
            Err(error) if offloads != none && error.raw_os_error() == Some(libc::EINVAL) => {}
            result => return result.map(|()| offloads),
        }
    }
    Ok(none)
}

impl AsFd for TunQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for TunQueue {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// The index of the interface `name` in the calling thread's network namespace.
pub(super) fn index_of(name: &str) -> Result<u32, TunError> {
    let text = CString::new(name).map_err(|_| TunError::Name(name.to_owned()))?;
    // SAFETY: `text` is a terminated string that outlives the call.
    match unsafe { libc::if_nametoindex(text.as_ptr()) } {
        0 => Err(super::system("find", name, io::Error::last_os_error())),
        index => Ok(index),
    }
}

fn interface_request(name: &str) -> libc::ifreq {
    // SAFETY: `ifreq` is plain memory for which zeroes are valid.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    // One short, so that the name stays terminated.
    for (to, from) in request
        .ifr_name
        .iter_mut()
        .take(libc::IFNAMSIZ - 1)
        .zip(name.bytes())
    {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn last_errno() -> libc::c_int {
    io::Error::last_os_error()
        .raw_os_error()
        .unwrap_or(libc::EIO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_its_bytes() {
        let header = VnetHeader {
            flags: 1,
            gso_type: 5,
            header_length: 40,
            segment_size: 1368,
            checksum_start: 20,
            checksum_offset: 16,
        };
        assert_eq!(VnetHeader::from_bytes(header.to_bytes()), header);
        assert_eq!(VnetHeader::default().to_bytes(), [0; 10]);
    }
}
