//! A socket that hears one endpoint and nobody else.
#![allow(unsafe_code, reason = "setsockopt has no safe form for classic BPF")]

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const LOAD_HALF: u16 = (libc::BPF_LD | libc::BPF_H | libc::BPF_ABS) as u16;
const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const RETURN_CONSTANT: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
/// Added to an offset, it counts from the IP header (`SKF_NET_OFF`); a UDP socket's datagram begins
/// with the UDP header otherwise.
const FROM_IP_HEADER: u32 = (-0x10_0000_i32).cast_unsigned();
/// Where the source address is in an IPv4 header (RFC 791 §3.1) and an IPv6 header (RFC 8200 §3).
const SOURCE_V4: u32 = 12;
const SOURCE_V6: u32 = 8;
/// Where the source port is in a UDP header (RFC 768).
const SOURCE_PORT: u32 = 0;

/// Makes the kernel drop whatever comes from anywhere but `only`, without a word. `connect` would do so,
/// too, but tie the socket to this machine's present address: it has to live on when the machine moves.
pub(super) fn attach(socket: &impl AsRawFd, only: SocketAddr) -> io::Result<()> {
    let address = match only.ip() {
        IpAddr::V4(ip) => vec![(SOURCE_V4, ip.to_bits())],
        IpAddr::V6(ip) => (0..4)
            .zip(ip.octets().chunks_exact(4))
            .filter_map(|(word, bytes)| {
                let bytes = u32::from_be_bytes(*bytes.first_chunk()?);
                Some((SOURCE_V6 + 4 * word, bytes))
            })
            .collect(),
    };
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let equal = |value| {
        [
            step(JUMP_IF_EQUAL, 1, 0, value),
            step(RETURN_CONSTANT, 0, 0, 0),
        ]
    };
    let mut program = Vec::new();
    for (offset, value) in address {
        let offset = FROM_IP_HEADER.wrapping_add(offset);
        program.push(step(LOAD_WORD, 0, 0, offset));
        program.extend(equal(value));
    }
    program.push(step(LOAD_HALF, 0, 0, SOURCE_PORT));
    program.extend(equal(only.port().into()));
    program.push(step(RETURN_CONSTANT, 0, 0, u32::MAX));
    let description = libc::sock_fprog {
        len: libc::c_ushort::try_from(program.len()).map_err(io::Error::other)?,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the description points to a program of the length it says; both outlive the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const description).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
