//! Numbers as Go's encoder writes them: floats in digits between 10⁻⁶ and 10²¹, with an exponent beyond.

use std::io::{self, Write};

use serde::Serialize as _;
use serde_json::Value;
use serde_json::ser::{Formatter, Serializer};

struct Numbers;

impl Formatter for Numbers {
    fn write_f64<W: ?Sized + Write>(&mut self, out: &mut W, value: f64) -> io::Result<()> {
        if value == 0.0 || (1e-6..1e21).contains(&value.abs()) {
            return write!(out, "{value}");
        }
        let text = format!("{value:e}");
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let plus = if exponent.starts_with('-') { "" } else { "+" };
        write!(out, "{mantissa}e{plus}{exponent}")
    }
}

/// Appends the JSON form of a value on one line.
pub fn write(value: &Value, out: &mut Vec<u8>) {
    // Writing to a Vec does not fail.
    let _ = value.serialize(&mut Serializer::with_formatter(out, Numbers));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_written_as_go_writes_them() {
        let check = |value: Value, wanted: &str| {
            let mut out = Vec::new();
            write(&value, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), wanted);
        };
        for (float, wanted) in [
            (1.0, "1"),
            (-0.0, "-0"),
            (0.1, "0.1"),
            (1e16, "10000000000000000"),
            (18_446_744_073_709_551_616.0, "18446744073709552000"),
            (1.5e20, "150000000000000000000"),
            (1e21, "1e+21"),
            (-1.5e300, "-1.5e+300"),
            (1e-6, "0.000001"),
            (1e-7, "1e-7"),
        ] {
            check(float.into(), wanted);
        }
        check(
            serde_json::json!({ "a": [1, "x", null, 2.5], "b": {} }),
            "{\"a\":[1,\"x\",null,2.5],\"b\":{}}",
        );
    }
}
