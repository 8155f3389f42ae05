//! The wire format, writing.

const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const BYTES: u8 = 2;

fn tag(out: &mut Vec<u8>, number: u32, wire: u8) {
    varint(out, u64::from(number) << 3 | u64::from(wire));
}

fn varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n.to_le_bytes()[0] | 0x80);
        n >>= 7;
    }
    out.push(n.to_le_bytes()[0]);
}

/// A number.
pub(crate) fn integer(out: &mut Vec<u8>, number: u32, n: i64) {
    tag(out, number, VARINT);
    varint(out, n.cast_unsigned());
}

/// A float.
pub(crate) fn double(out: &mut Vec<u8>, number: u32, x: f64) {
    tag(out, number, FIXED64);
    out.extend(x.to_le_bytes());
}

/// A text.
pub(crate) fn text(out: &mut Vec<u8>, number: u32, text: &str) {
    bytes(out, number, text.as_bytes());
}

/// Bytes.
pub(crate) fn bytes(out: &mut Vec<u8>, number: u32, content: &[u8]) {
    tag(out, number, BYTES);
    varint(out, content.len() as u64);
    out.extend_from_slice(content);
}

/// A field whose length is known when it is written.
pub(crate) fn nested(out: &mut Vec<u8>, number: u32, write: impl FnOnce(&mut Vec<u8>)) {
    tag(out, number, BYTES);
    let start = out.len();
    write(out);
    let mut size = Vec::with_capacity(5);
    varint(&mut size, (out.len() - start) as u64);
    out.splice(start..start, size);
}
