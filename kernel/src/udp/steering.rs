//! Which of the sockets on one port gets a datagram.
#![allow(unsafe_code, reason = "setsockopt has no safe form for classic BPF")]

use std::io;
use std::os::fd::AsRawFd;

use super::UdpSocket;

/// First byte of a WireGuard transport message.
const TRANSPORT: u32 = 4;
/// The receiver index of a transport message is in bytes 4 to 7, the lowest first. Its lowest byte
/// counts the sessions of a peer, the next one names the shard.
const SHARD_BYTE: u32 = 5;

const LOAD_BYTE: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const MODULO: u16 = (libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K) as u16;
const RETURN_CONSTANT: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
const RETURN_RESULT: u16 = (libc::BPF_RET | libc::BPF_A) as u16;

/// Makes the kernel give each WireGuard transport message to the socket number `byte[5] mod N`, and
/// all other datagrams to the first one. A datagram too short for that byte goes to the first one
/// as well.
///
/// `sockets` are all sockets of one port and family, in the order in which they were bound; closing
/// one of them renumbers the rest.
///
/// # Errors
///
/// When the kernel refuses the program, or `sockets` is empty or too long.
pub fn steer_by_receiver(sockets: &[UdpSocket]) -> io::Result<()> {
    let first = sockets.first().ok_or(io::ErrorKind::InvalidInput)?;
    let count = u32::try_from(sockets.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut program = [
        step(LOAD_BYTE, 0, 0, 0),
        step(JUMP_IF_EQUAL, 0, 3, TRANSPORT),
        step(LOAD_BYTE, 0, 0, SHARD_BYTE),
        step(MODULO, 0, 0, count),
        step(RETURN_RESULT, 0, 0, 0),
        step(RETURN_CONSTANT, 0, 0, 0),
    ];
    let description = libc::sock_fprog {
        len: program.len() as libc::c_ushort,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the description points to a program of the length it says; both outlive the call.
    let result = unsafe {
        libc::setsockopt(
            first.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
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
