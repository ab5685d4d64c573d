//! Random bytes from the system.

use ring::rand::{SecureRandom as _, SystemRandom};

/// `N` bytes fit for keys.
///
/// # Errors
/// The system gives none, which it does only very early during boot.
pub(crate) fn bytes<const N: usize>() -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| std::io::Error::other("the system has no random numbers"))?;
    Ok(bytes)
}

/// A number below `end`; 0 if there are no random numbers. For delays and ports, not for secrets.
pub(crate) fn below(end: u64) -> u64 {
    let number = bytes::<8>().map_or(0, u64::from_le_bytes);
    // The remainder's bias is far below what a delay can show.
    number.checked_rem(end).unwrap_or(0)
}
