//! Valid bytes with a few edits that an input names: what a fuzzer finds only after very long by itself.

/// The most that edits make of them.
const LONGEST: usize = 40_000;

/// Applies the edits in `input`, four bytes each.
pub(crate) fn edited(valid: &[u8], mut input: &[u8]) -> Vec<u8> {
    let mut bytes = valid.to_vec();
    while let [kind, high, low, what, rest @ ..] = input {
        input = rest;
        let at = usize::from(u16::from_be_bytes([*high, *low])) % (bytes.len() + 1);
        let end = (at + usize::from(*what)).min(bytes.len());
        match kind % 6 {
            0 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << (what % 8);
                }
            }
            1 => bytes.insert(at, *what),
            2 => drop(bytes.drain(at..end)),
            3 => {
                let copy = bytes[at..end].to_vec();
                bytes.splice(at..at, copy);
            }
            4 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = *what;
                }
            }
            _ => bytes.extend_from_within(at..end),
        }
        if bytes.len() > LONGEST {
            break;
        }
    }
    bytes
}
