//! The wrapping of every file of ours: `podmesh\0 | version 2 | length 8 | content | checksum 32`,
//! numbers in little endian. It tells a whole file from a torn, short or zeroed one.

use podmesh_proto::key::digest;

const MAGIC: &[u8; 8] = b"podmesh\0";
const HEADER: usize = 18;
const CHECKSUM: usize = 32;

/// Why a file is not one of ours, or not whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Damage {
    /// Cut, zeroed or changed; with a word for people.
    Broken(&'static str),
    /// Whole, but of a later format.
    Newer(u16),
}

/// Wraps `content`; `kind` keeps one file from passing as another.
pub(super) fn seal(kind: &str, version: u16, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + content.len() + CHECKSUM);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&version.to_le_bytes());
    bytes.extend_from_slice(&(content.len() as u64).to_le_bytes());
    bytes.extend_from_slice(content);
    let checksum = digest(kind, &bytes);
    bytes.extend_from_slice(&checksum);
    bytes
}

/// The content of a whole file of at most format `version`.
pub(super) fn open<'a>(kind: &str, version: u16, bytes: &'a [u8]) -> Result<&'a [u8], Damage> {
    let short = Damage::Broken("it is cut short");
    let split = bytes.len().checked_sub(CHECKSUM).ok_or(short)?;
    let (sealed, checksum) = bytes.split_at(split);
    let (header, content) = sealed.split_first_chunk::<HEADER>().ok_or(short)?;
    let (magic, rest) = header.split_first_chunk::<8>().ok_or(short)?;
    let (found, length) = rest.split_first_chunk::<2>().ok_or(short)?;
    let length = length.first_chunk::<8>().ok_or(short)?;
    if magic != MAGIC {
        return Err(Damage::Broken("it doesn't start as it should"));
    }
    if u64::from_le_bytes(*length) != content.len() as u64 {
        return Err(short);
    }
    if digest(kind, sealed) != checksum {
        return Err(Damage::Broken("its checksum is wrong"));
    }
    match u16::from_le_bytes(*found) {
        found if found > version => Err(Damage::Newer(found)),
        _ => Ok(content),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_changed_bit_and_no_cut_passes() {
        let whole = seal("test", 1, b"something worth keeping");
        assert_eq!(
            open("test", 1, &whole),
            Ok(b"something worth keeping".as_slice())
        );
        assert!(open("other", 1, &whole).is_err());
        for bit in 0..whole.len() * 8 {
            let mut changed = whole.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(open("test", 1, &changed).is_err(), "bit {bit}");
        }
        for length in 0..whole.len() {
            assert!(
                open("test", 1, &whole[..length]).is_err(),
                "length {length}"
            );
        }
    }

    #[test]
    fn a_newer_format_is_told_from_damage() {
        assert_eq!(
            open("test", 1, &seal("test", 2, b"x")),
            Err(Damage::Newer(2))
        );
    }
}
