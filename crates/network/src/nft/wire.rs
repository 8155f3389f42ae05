//! The netlink wire format: messages and attributes, written and read.

/// Length of a netlink header followed by an nfnetlink header.
pub(crate) const HEADER: usize = 20;
/// Set in an attribute's type when it contains attributes.
const NESTED: u16 = 0x8000;

/// Appends an attribute, padded to four bytes.
pub(crate) fn attribute(out: &mut Vec<u8>, kind: u16, data: &[u8]) {
    let length = u16::try_from(data.len() + 4).unwrap_or(u16::MAX);
    out.extend_from_slice(&length.to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(4), 0);
}

/// Appends a text with its closing zero.
pub(crate) fn text(out: &mut Vec<u8>, kind: u16, text: &str) {
    let mut data = Vec::with_capacity(text.len() + 1);
    data.extend_from_slice(text.as_bytes());
    data.push(0);
    attribute(out, kind, &data);
}

/// Appends a number in network order, as nf_tables wants its own fields.
pub(crate) fn number(out: &mut Vec<u8>, kind: u16, value: u32) {
    attribute(out, kind, &value.to_be_bytes());
}

/// Appends an attribute that contains what `fill` writes. Callers keep it below 64 KiB.
pub(crate) fn nested(out: &mut Vec<u8>, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; 2]);
    out.extend_from_slice(&(kind | NESTED).to_ne_bytes());
    fill(out);
    let length = u16::try_from(out.len() - start).unwrap_or(u16::MAX);
    out[start..start + 2].copy_from_slice(&length.to_ne_bytes());
}

/// Appends a message: netlink header, nfnetlink header, and the attributes that `fill` writes.
pub(crate) fn message(out: &mut Vec<u8>, head: MessageHead, sequence: u32, fill: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&head.kind.to_ne_bytes());
    out.extend_from_slice(&(head.flags | 1).to_ne_bytes());
    out.extend_from_slice(&sequence.to_ne_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&[head.family, 0]);
    out.extend_from_slice(&head.resource.to_be_bytes());
    fill(out);
    let length = u32::try_from(out.len() - start).unwrap_or(u32::MAX);
    out[start..start + 4].copy_from_slice(&length.to_ne_bytes());
}

/// A request without attributes.
pub(crate) fn request_bytes(head: MessageHead) -> Vec<u8> {
    let mut out = Vec::new();
    message(&mut out, head, 1, |_| {});
    out
}

/// The parts of a message's headers that differ from message to message.
#[derive(Clone, Copy)]
pub(crate) struct MessageHead {
    /// Subsystem and command.
    pub kind: u16,
    /// `NLM_F_…` beside `NLM_F_REQUEST`.
    pub flags: u16,
    /// Protocol family.
    pub family: u8,
    /// `res_id`.
    pub resource: u16,
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// A received message.
pub(crate) struct Message<'a> {
    pub kind: u16,
    pub sequence: u32,
    /// What follows the netlink header.
    pub payload: &'a [u8],
}

impl Message<'_> {
    /// The error number of an `NLMSG_ERROR`; 0 is an acknowledgement.
    pub fn error(&self) -> Option<i32> {
        (self.kind == 2).then(|| u32_at(self.payload, 0).unwrap_or(0).cast_signed())
    }
    /// The attributes after the nfnetlink header.
    pub fn attributes(&self) -> Attributes<'_> {
        Attributes(self.payload.get(4..).unwrap_or(&[]))
    }
    /// The protocol family in the nfnetlink header.
    pub fn family(&self) -> u8 {
        self.payload.first().copied().unwrap_or(0)
    }
}

/// The messages in a received buffer.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = u32_at(bytes, 0)? as usize;
        if length < 16 || length > bytes.len() {
            return None;
        }
        let one = &bytes[..length];
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some(Message { kind: u16_at(one, 4)?, sequence: u32_at(one, 8)?, payload: &one[16..] })
    })
}

/// A run of attributes.
#[derive(Clone, Copy)]
pub(crate) struct Attributes<'a>(pub &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);
    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16_at(self.0, 0)?);
        let kind = u16_at(self.0, 2)? & 0x3fff;
        let data = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, data))
    }
}

impl<'a> Attributes<'a> {
    /// The first attribute of a kind.
    pub fn find(self, kind: u16) -> Option<&'a [u8]> {
        let mut all = self;
        all.find_map(|(k, data)| (k == kind).then_some(data))
    }
    /// The first attribute of a kind, as attributes.
    pub fn nested(self, kind: u16) -> Option<Attributes<'a>> {
        self.find(kind).map(Attributes)
    }
    /// The first attribute of a kind as text.
    pub fn text(self, kind: u16) -> Option<&'a str> {
        let data = self.find(kind)?;
        std::str::from_utf8(data.strip_suffix(&[0]).unwrap_or(data)).ok()
    }
    /// The first attribute of a kind as a number in network order.
    pub fn number(self, kind: u16) -> Option<u32> {
        Some(u32::from_be_bytes(self.find(kind)?.try_into().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_written_are_read_back_with_padding_and_nesting() {
        let mut out = Vec::new();
        text(&mut out, 1, "abc");
        nested(&mut out, 2, |out| {
            attribute(out, 7, &[1, 2, 3, 4, 5]);
            number(out, 8, 9);
        });
        let all = Attributes(&out);
        assert_eq!(all.text(1), Some("abc"));
        let inner = all.nested(2).expect("nested attribute");
        assert_eq!(inner.find(7), Some(&[1, 2, 3, 4, 5][..]));
        assert_eq!(inner.number(8), Some(9));
        assert_eq!(out.len() % 4, 0);
    }

    #[test]
    fn a_cut_off_message_ends_the_iteration() {
        let mut out = Vec::new();
        let head = MessageHead { kind: 5, flags: 0, family: 2, resource: 0 };
        message(&mut out, head, 3, |out| text(out, 1, "x"));
        assert_eq!(messages(&out).count(), 1);
        assert_eq!(messages(&out[..out.len() - 1]).count(), 0);
    }
}
