//! Asking the kernel for a table.
#![allow(
    unsafe_code,
    reason = "getsockopt of another level than the socket's has no safe form"
)]

use std::{
    ffi::c_int,
    fs, io,
    net::UdpSocket,
    os::{
        fd::{AsFd as _, AsRawFd, BorrowedFd},
        unix::fs::MetadataExt as _,
    },
};

use super::{Family, Outline, TABLES};

/// `IPT_SO_GET_INFO` and `IPT_SO_GET_ENTRIES`; those of IPv6 have the same numbers.
const GET_INFO: c_int = 64;
const GET_ENTRIES: c_int = 65;
const TABLE_NAME_BYTES: usize = 32;
/// `struct ipt_getinfo`: the name and thirteen numbers.
const INFO_BYTES: usize = TABLE_NAME_BYTES + 13 * 4;
/// `struct ipt_get_entries` up to the entries, which are aligned to eight bytes.
const ENTRIES_HEADER_BYTES: usize = TABLE_NAME_BYTES + 8;
/// Longer tables are not judged, in bytes: some 20,000 rules.
const MOST_BYTES: usize = 8 << 20;

/// The tables that exist, with the priorities of their hooks. A table is made by the first question for
/// it, and nothing that isn't podmesh's is to be made: only those are asked for that are there already.
///
/// Not seen are the tables of a kernel that has them built in (`CONFIG_IP_NF_FILTER=y`), where the caller isn't
/// root: it tells their names to root alone, has no module that would be loaded for them, and every question that
/// `CAP_NET_ADMIN` is enough for makes them. A kernel that lists its hooks (`CONFIG_NETFILTER_NETLINK_HOOK`)
/// would tell, but loads a module for that.
pub(super) fn present(family: Family) -> Vec<(&'static str, i32)> {
    let (names, modules) = match family {
        Family::IpLegacy => ("/proc/thread-self/net/ip_tables_names", "iptable_"),
        _ => ("/proc/thread-self/net/ip6_tables_names", "ip6table_"),
    };
    let Ok(status) = fs::metadata(names) else {
        return Vec::new();
    };
    let is_there: Box<dyn Fn(&str) -> bool> = if may_read(&status) {
        let told = fs::read_to_string(names).unwrap_or_default();
        Box::new(move |table| told.lines().any(|name| name == table))
    } else {
        // Root alone is told. The module of a table is loaded by whoever first uses it.
        let loaded = fs::read_to_string("/proc/modules").unwrap_or_default();
        Box::new(move |table| {
            let module = format!("{modules}{table}");
            loaded
                .lines()
                .any(|line| line.split(' ').next() == Some(&module))
        })
    };
    TABLES
        .into_iter()
        .filter(|(table, _)| is_there(table))
        .collect()
}

/// Asked beforehand: an attempt each time that is refused each time is what auditd fills its log with.
fn may_read(status: &fs::Metadata) -> bool {
    let user = rustix::process::geteuid().as_raw();
    user == 0 || status.uid() == user || status.mode() & 0o004 != 0
}

/// What the kernel says of a table, and its entries.
pub(super) fn table(family: Family, name: &str) -> io::Result<(Outline, Vec<u8>)> {
    let (socket, level) = match family {
        Family::IpLegacy => (UdpSocket::bind("0.0.0.0:0")?, libc::SOL_IP),
        _ => (UdpSocket::bind("[::]:0")?, libc::SOL_IPV6),
    };
    let mut info = vec![0; INFO_BYTES];
    put_name(&mut info, name);
    ask(socket.as_fd(), (level, GET_INFO), &mut info)?;
    let numbers: Vec<u32> = info
        .get(TABLE_NAME_BYTES..)
        .unwrap_or_default()
        .chunks_exact(4)
        .filter_map(|bytes| Some(u32::from_ne_bytes(*bytes.first_chunk()?)))
        .collect();
    let [hooks, b0, b1, b2, b3, b4, p0, p1, p2, p3, p4, _, size] = numbers[..] else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let outline = Outline {
        hooks,
        begins: [b0, b1, b2, b3, b4],
        policies: [p0, p1, p2, p3, p4],
    };
    let length = usize::try_from(size).map_err(io::Error::other)?;
    if length > MOST_BYTES {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let mut entries = vec![0; ENTRIES_HEADER_BYTES + length];
    put_name(&mut entries, name);
    if let Some(place) = entries.get_mut(TABLE_NAME_BYTES..TABLE_NAME_BYTES + 4) {
        place.copy_from_slice(&size.to_ne_bytes());
    }
    ask(socket.as_fd(), (level, GET_ENTRIES), &mut entries)?;
    Ok((outline, entries.split_off(ENTRIES_HEADER_BYTES)))
}

fn put_name(bytes: &mut [u8], name: &str) {
    for (place, byte) in bytes
        .iter_mut()
        .take(TABLE_NAME_BYTES - 1)
        .zip(name.bytes())
    {
        *place = byte;
    }
}

/// Has the kernel fill in what it is asked with.
fn ask(socket: BorrowedFd<'_>, (level, what): (c_int, c_int), bytes: &mut [u8]) -> io::Result<()> {
    let mut length = libc::socklen_t::try_from(bytes.len()).map_err(io::Error::other)?;
    // SAFETY: the kernel writes at most `length` bytes, which the slice has, and it outlives the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            what,
            bytes.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
