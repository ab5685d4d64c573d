//! The program's own memory: how much it holds, and giving back what it has no use for.
#![allow(
    unsafe_code,
    reason = "madvise, mallopt and malloc_trim have no safe form"
)]

use std::{fs, io};

/// How much memory the program holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// Bytes that are in the machine's memory.
    pub resident: u64,
    /// The most that it has been.
    pub peak: u64,
}

/// How much memory this program holds.
///
/// # Errors
///
/// When the kernel doesn't tell.
pub fn in_use() -> io::Result<MemoryUse> {
    let status = fs::read_to_string("/proc/self/status")?;
    let bytes = |name| bytes_of(&status, name);
    let both = bytes("VmRSS:").zip(bytes("VmHWM:"));
    let (resident, peak) = both.ok_or(io::ErrorKind::InvalidData)?;
    // The kernel brings the peak up to date later.
    let peak = peak.max(resident);
    Ok(MemoryUse { resident, peak })
}

/// A number of `/proc/PID/status` (proc(5)).
fn bytes_of(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let number = line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?;
    number.checked_mul(1_024)
}

/// Bytes from which on a piece of memory is one of the kernel's own.
#[cfg(target_env = "gnu")]
const LARGE: libc::c_int = 64 << 10;

/// Has the allocator take large pieces from the kernel one by one and give them back as soon as they are
/// freed. By itself it does so until the first large piece is freed; from then on it keeps such pieces
/// (mallopt(3), `M_MMAP_THRESHOLD`), and what is prepared from them is written to from end to end, so that
/// whoever starts anew within one process would hold all that it might ever need. Other C libraries than
/// glibc don't learn such things.
pub fn keep_large_apart() {
    // SAFETY: sets a number of the allocator's; a refusal changes nothing.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
    }
}

/// Bytes of the machine's memory that this program holds though there is nothing in them: the allocator keeps them for
/// later. None where the kernel or the C library doesn't tell.
#[must_use]
pub fn freed() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let held = bytes_of(&status, "RssAnon:").unwrap_or_default();
    held.saturating_sub(allocated().unwrap_or(held))
}

/// Bytes that the program has from the allocator, which counts no further than 4 GiB (`mallinfo(3)`; its
/// successor came with glibc 2.33).
fn allocated() -> Option<u64> {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: nobody's memory is touched; the allocator counts.
        let counted = unsafe { libc::mallinfo() };
        let pieces = [counted.uordblks, counted.hblkhd];
        Some(
            pieces
                .map(|bytes| u64::from(bytes.cast_unsigned()))
                .iter()
                .sum(),
        )
    }
    #[cfg(not(target_env = "gnu"))]
    None
}

/// Has the allocator give back every whole page that it keeps for later (`malloc_trim(3)`): of what many small pieces
/// needed that are freed since, it gives back by itself no more than what lies at the very end. Other threads
/// wait for memory meanwhile, about a millisecond for each 10 MiB. Other C libraries than glibc have no such call.
pub fn give_back_freed() {
    // SAFETY: nobody's memory is touched but the allocator's own.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Lets the kernel use the pages that lie within `bytes` for something else. What they held is gone: they
/// read as zeroes, and are the program's again as soon as it writes to them.
pub fn give_back(bytes: &mut [u8]) {
    // SAFETY: the call has no memory to do with.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4_096);
    let before = bytes.as_ptr().align_offset(page);
    let Some(rest) = bytes.get_mut(before..) else {
        return;
    };
    let whole = rest.len() / page * page;
    if whole == 0 {
        return;
    }
    // SAFETY: these are whole pages that nobody else has a reference into, of memory that the allocator
    // has from the kernel for this program alone. Any bytes are valid ones, so that it doesn't matter
    // which they are afterwards. A refusal changes nothing.
    unsafe { libc::madvise(rest.as_mut_ptr().cast(), whole, libc::MADV_DONTNEED) };
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, PoisonError};

    use super::*;

    /// Both count what the whole program holds.
    static ALONE: Mutex<()> = Mutex::new(());

    #[test]
    fn pages_that_are_given_back_are_held_no_more() {
        const SIZE: usize = 32 << 20;
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bytes = vec![0x55_u8; SIZE].into_boxed_slice();
        let full = in_use().unwrap();
        give_back(&mut bytes);
        let empty = in_use().unwrap();
        let freed = full.resident.saturating_sub(empty.resident);
        assert!(freed > (SIZE as u64) / 2, "{full:?} {empty:?}");
        assert!(empty.peak > empty.resident);
        // The ends lie on pages that others use, too.
        assert!(bytes[SIZE / 2..][..8_192].iter().all(|byte| *byte == 0));
        bytes.fill(0xaa);
        assert!(bytes.iter().all(|byte| *byte == 0xaa));
    }

    #[test]
    fn what_many_small_pieces_needed_is_given_back() {
        const PIECES: usize = 200_000;
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut pieces: Vec<Box<[u8; 200]>> = (0..PIECES).map(|_| Box::new([1; 200])).collect();
        let before = freed();
        // One in a hundred stays, so that nothing lies free at the end.
        let mut number = 0;
        pieces.retain(|_| {
            number += 1;
            number % 100 == 0
        });
        let kept = freed().saturating_sub(before);
        assert!(kept > 30 << 20, "{kept} bytes are kept");
        give_back_freed();
        let left = freed().saturating_sub(before);
        assert!(left < kept / 2, "{left} of {kept} bytes are still kept");
        assert!(pieces.iter().all(|piece| piece[199] == 1));
    }

    #[test]
    fn less_than_a_page_stays_as_it_is() {
        let mut bytes = [7_u8; 100];
        give_back(&mut bytes);
        give_back(&mut []);
        assert_eq!(bytes, [7; 100]);
    }
}
