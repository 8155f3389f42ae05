//! How calls fail: gRPC's codes, and how they stand in headers and trailers.

use http::{HeaderMap, HeaderValue};

/// gRPC's status codes; see <https://grpc.io/docs/guides/status-codes/>.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "gRPC's own names")]
pub enum Code {
    Ok = 0,
    Cancelled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Aborted = 10,
    OutOfRange = 11,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    DataLoss = 15,
    Unauthenticated = 16,
}

impl Code {
    /// The code of a number; unknown numbers are [`Code::Unknown`].
    pub fn of(number: u32) -> Self {
        const ALL: [Code; 17] = [
            Code::Ok,
            Code::Cancelled,
            Code::Unknown,
            Code::InvalidArgument,
            Code::DeadlineExceeded,
            Code::NotFound,
            Code::AlreadyExists,
            Code::PermissionDenied,
            Code::ResourceExhausted,
            Code::FailedPrecondition,
            Code::Aborted,
            Code::OutOfRange,
            Code::Unimplemented,
            Code::Internal,
            Code::Unavailable,
            Code::DataLoss,
            Code::Unauthenticated,
        ];
        ALL.get(number as usize).copied().unwrap_or(Self::Unknown)
    }
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Status {
    /// What kind of failure.
    pub code: Code,
    /// What a person is told.
    pub message: String,
}

impl Status {
    /// A failure.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// Writes it where a call's end is told.
    pub(crate) fn write(&self, headers: &mut HeaderMap) {
        headers.insert("grpc-status", HeaderValue::from(self.code as u32));
        if let Ok(message) = HeaderValue::from_str(&escape(&self.message))
            && !message.is_empty()
        {
            headers.insert("grpc-message", message);
        }
    }
}

/// A message in header form: percent-encoded UTF-8.
fn escape(text: &str) -> String {
    let plain = |b: &u8| matches!(b, b' '..=b'~') && *b != b'%';
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if plain(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// The reverse of [`escape`]; what is not encoded is left.
fn unescape(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let code = text.get(i + 1..i + 3).filter(|_| bytes[i] == b'%');
        match code.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                i += 3;
            }
            None => {
                out.push(bytes[i]);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The failure in a response's headers or trailers, if they tell of one.
pub fn failure(headers: &HeaderMap) -> Option<Status> {
    let text = |name| headers.get(name).and_then(|v: &HeaderValue| v.to_str().ok());
    let code = Code::of(text("grpc-status")?.parse().unwrap_or(2));
    (code != Code::Ok).then(|| Status::new(code, unescape(text("grpc-message").unwrap_or("no message"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_come_through_headers_whole() {
        let status = Status::new(Code::NotFound, "50% of \"käse\"\nis gone");
        let mut headers = HeaderMap::new();
        status.write(&mut headers);
        assert_eq!(failure(&headers), Some(status));
        headers.insert("grpc-status", HeaderValue::from(0));
        assert_eq!(failure(&headers), None);
        assert_eq!(unescape("%zz%4"), "%zz%4");
    }

    #[test]
    fn every_code_has_its_number() {
        for number in 0..17 {
            assert_eq!(Code::of(number) as u32, number);
        }
        assert_eq!(Code::of(99), Code::Unknown);
    }
}
