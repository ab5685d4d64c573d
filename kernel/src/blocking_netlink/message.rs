//! The bytes of netlink: a header, then attributes, some of them nested.

pub(super) const NLM_F_REQUEST: u16 = 0x1;
pub(super) const NLM_F_ACK: u16 = 0x4;
pub(super) const NLM_F_DUMP_INTR: u16 = 0x10;
pub(super) const NLM_F_DUMP: u16 = 0x300;

const HEADER_BYTES: usize = 16;
const ATTRIBUTE_HEADER_BYTES: usize = 4;
const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;

/// A message under construction.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// Replaces what is there, if the kind of object knows replacing.
    pub(crate) const REPLACE: u16 = 0x100;
    /// Fails when the object exists already.
    pub(crate) const EXCLUSIVE: u16 = 0x200;
    /// Creates the object.
    pub(crate) const CREATE: u16 = 0x400;
    /// Puts it behind those that exist.
    pub(crate) const APPEND: u16 = 0x800;

    /// A message of that kind whose family-specific header is `header`.
    pub(crate) fn new(kind: u16, flags: u16, header: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER_BYTES];
        bytes.extend_from_slice(header);
        let mut message = Self { bytes };
        message.patch(4, &kind.to_ne_bytes());
        message.patch(6, &flags.to_ne_bytes());
        message.pad();
        message
    }

    /// Adds an attribute with these bytes.
    pub(crate) fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let length = u16::try_from(ATTRIBUTE_HEADER_BYTES + value.len()).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
        self
    }

    /// Adds a NUL-terminated text.
    pub(crate) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    /// Adds a number in the machine's byte order, as routing wants it.
    pub(crate) fn number(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// Adds a number in network byte order, as netfilter wants it.
    pub(crate) fn be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Adds an attribute that holds what `fill` adds.
    pub(crate) fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.bytes.len();
        self.bytes(kind | NLA_F_NESTED, &[]);
        fill(self);
        let length = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        self.patch(start, &length.to_ne_bytes());
        self
    }

    /// Adds bytes outside any attribute, for the headers that some attributes begin with.
    pub(crate) fn raw(&mut self, value: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(value);
        self.pad();
        self
    }

    /// Adds to the flags that it was made with.
    pub(crate) fn add_flags(&mut self, flags: u16) {
        let present = self.bytes.get(6..8).and_then(|bytes| bytes.first_chunk());
        let present = present.map_or(0, |bytes| u16::from_ne_bytes(*bytes));
        self.patch(6, &(present | flags).to_ne_bytes());
    }

    /// The attributes so far, behind a family-specific header of `header` bytes.
    pub(crate) fn attributes(&self, header: usize) -> Attributes<'_> {
        Attributes(self.bytes.get(HEADER_BYTES + header..).unwrap_or_default())
    }

    /// The message as the kernel reads it.
    pub(crate) fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.patch(0, &length.to_ne_bytes());
        self.patch(8, &sequence.to_ne_bytes());
        self.bytes
    }

    fn patch(&mut self, at: usize, value: &[u8]) {
        if let Some(place) = self.bytes.get_mut(at..at + value.len()) {
            place.copy_from_slice(value);
        }
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// One message from the kernel, without its netlink header.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(super) sequence: u32,
    pub(crate) payload: Vec<u8>,
}

impl Reply {
    /// The attributes behind a family-specific header of `header` bytes.
    pub(crate) fn attributes(&self, header: usize) -> Attributes<'_> {
        Attributes(self.payload.get(header..).unwrap_or_default())
    }

    /// The family-specific header's 32-bit number at that place, in the machine's byte order.
    pub(crate) fn header_number(&self, at: usize) -> Option<u32> {
        number_at(&self.payload, at)
    }
}

/// The messages of one received datagram.
pub(super) struct Replies<'a>(&'a [u8]);

impl<'a> Replies<'a> {
    pub(super) fn of(datagram: &'a [u8]) -> Self {
        Self(datagram)
    }
}

impl Iterator for Replies<'_> {
    type Item = Reply;

    fn next(&mut self) -> Option<Reply> {
        let length = usize::try_from(number_at(self.0, 0)?).ok()?;
        let message = self.0.get(..length)?;
        let kinds = message.get(4..8)?;
        let (kind, flags) = (kinds.first_chunk::<2>()?, kinds.last_chunk::<2>()?);
        let reply = Reply {
            kind: u16::from_ne_bytes(*kind),
            flags: u16::from_ne_bytes(*flags),
            sequence: number_at(message, 8)?,
            payload: message.get(HEADER_BYTES..)?.to_vec(),
        };
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(reply)
    }
}

/// One attribute.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attribute<'a> {
    pub(crate) kind: u16,
    /// Whether its value is a run of attributes; the kernel does not say so of all its own.
    pub(crate) is_nested: bool,
    pub(crate) value: &'a [u8],
}

/// A run of attributes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    /// The attributes that a value or the rest of a message consists of.
    pub(crate) fn of(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The bytes of the first attribute of that kind.
    pub(crate) fn find(mut self, wanted: u16) -> Option<&'a [u8]> {
        self.find_map(|one| (one.kind == wanted).then_some(one.value))
    }

    /// The attributes inside the first attribute of that kind.
    pub(crate) fn nested(self, wanted: u16) -> Self {
        Self(self.find(wanted).unwrap_or_default())
    }

    /// A NUL-terminated text.
    pub(crate) fn text(self, wanted: u16) -> Option<String> {
        let bytes = self.find(wanted)?;
        let end = bytes.iter().position(|byte| *byte == 0);
        let text = bytes.get(..end.unwrap_or(bytes.len()))?;
        Some(String::from_utf8_lossy(text).into_owned())
    }

    /// A 32-bit number in the machine's byte order.
    pub(crate) fn number(self, wanted: u16) -> Option<u32> {
        number_at(self.find(wanted)?, 0)
    }

    /// A 32-bit number in network byte order.
    pub(crate) fn be32(self, wanted: u16) -> Option<u32> {
        self.number(wanted).map(u32::from_be)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Attribute<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16::from_ne_bytes(*self.0.first_chunk()?));
        let kind = u16::from_ne_bytes(*self.0.get(2..4)?.first_chunk()?);
        let value = self.0.get(ATTRIBUTE_HEADER_BYTES..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Attribute {
            kind: kind & NLA_TYPE_MASK,
            is_nested: kind & NLA_F_NESTED != 0,
            value,
        })
    }
}

fn number_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk::<4>()?;
    Some(u32::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_back() {
        let mut message = Message::new(7, Message::CREATE, &[9, 0, 0, 0]);
        message.text(1, "abc").nested(2, |inner| {
            inner.be32(1, 0xdead_beef).bytes(2, &[1, 2, 3]);
        });
        let bytes = message.finish(42);
        let replies: Vec<_> = Replies::of(&bytes).collect();
        assert_eq!(replies.len(), 1);
        let reply = &replies[0];
        assert_eq!((reply.kind, reply.flags, reply.sequence), (7, 0x400, 42));
        let attributes = reply.attributes(4);
        assert_eq!(attributes.text(1).as_deref(), Some("abc"));
        let inner = attributes.nested(2);
        assert_eq!(inner.be32(1), Some(0xdead_beef));
        assert_eq!(inner.find(2), Some(&[1, 2, 3][..]));
    }

    #[test]
    fn cut_and_lying_bytes_end_the_iteration() {
        let mut message = Message::new(7, 0, &[]);
        message.text(1, "some text").number(2, 5);
        let bytes = message.finish(1);
        for cut in 0..bytes.len() {
            assert_eq!(Replies::of(&bytes[..cut]).count(), 0);
            assert!(Attributes(&bytes[HEADER_BYTES.min(cut)..cut]).count() <= 2);
        }
        for length in [0_u16, 1, 3, 5, u16::MAX] {
            let lying = [length.to_ne_bytes(), [1, 0]].concat();
            assert_eq!(Attributes(&lying).count(), 0);
        }
    }
}
