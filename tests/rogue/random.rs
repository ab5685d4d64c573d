//! Random bytes of the system.

use anyhow::{Result, anyhow};
use ring::rand::{SecureRandom, SystemRandom};

/// `N` bytes fit for keys.
pub(crate) fn bytes<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| anyhow!("the system gives no random bytes"))?;
    Ok(bytes)
}

/// A random number.
pub(crate) fn number() -> Result<u64> {
    Ok(u64::from_le_bytes(bytes()?))
}
