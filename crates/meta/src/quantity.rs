//! `resource.Quantity`: fixed-point numbers with SI suffixes. Parsing, rounding and canonical form equal
//! Go's.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::iter::Sum;
use std::ops::{Add, AddAssign, Neg, Sub, SubAssign};

use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Api;

const NANO: i128 = 1_000_000_000;
const WRONG: &str =
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";
const SUFFIX: &str = "unable to parse quantity's suffix";

/// The family of suffixes a quantity prints with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    DecimalExponent,
    BinarySi,
    DecimalSi,
}

/// An amount with nano precision and the suffix family it was written in. Comparison ignores the family.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nano: i128,
    format: Format,
}

impl Quantity {
    /// Zero, printed `0`.
    pub const ZERO: Self = Self { nano: 0, format: Format::DecimalSi };

    /// Parses text such as `1`, `100m`, `1.5Gi`, `2e3`.
    ///
    /// # Errors
    /// Upstream's message.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (negative, unsigned) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            Some(_) => (false, text),
            None => return Err(WRONG.to_owned()),
        };
        let number_end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(number_end);
        if number.is_empty() || !suffix_well_formed(suffix) || number.matches('.').count() > 1 {
            return Err(WRONG.to_owned());
        }
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let (base2, exponent, format) = interpret(suffix)?;
        let nano = if base2 { binary(whole, fraction, exponent) } else { decimal(whole, fraction, exponent) };
        let (mut nano, mut format) = (nano, format);
        if format == Format::BinarySi {
            nano = nano.min(i128::from(i64::MAX) * NANO);
            if nano > 0 && nano < NANO {
                format = Format::DecimalSi;
            }
        }
        Ok(Self { nano: if negative { -nano } else { nano }, format })
    }

    /// Reads the API type; text that does not parse counts as zero (the decoder has refused it before).
    pub fn from_api(api: &Api) -> Self {
        Self::parse(&api.0).unwrap_or(Self::ZERO)
    }

    /// The API type in canonical form.
    pub fn to_api(self) -> Api {
        Api(self.to_string())
    }

    /// A decimal quantity of thousandths.
    pub const fn from_milli(milli: i128) -> Self {
        Self { nano: milli * 1_000_000, format: Format::DecimalSi }
    }

    /// A quantity of bytes that prints with binary suffixes.
    pub fn from_bytes(bytes: i64) -> Self {
        Self { nano: i128::from(bytes) * NANO, format: Format::BinarySi }
    }

    /// The same amount, which prints with binary suffixes where Go's would: a whole number of at least 1024.
    pub const fn binary(self) -> Self {
        Self { format: Format::BinarySi, ..self }
    }

    /// In thousandths, rounded up.
    pub fn milli(self) -> i128 {
        ceil(self.nano, 1_000_000)
    }

    /// In whole units, rounded up, capped to the range of `i64`.
    pub fn value(self) -> i64 {
        let value = ceil(self.nano, NANO);
        i64::try_from(value).unwrap_or(if value > 0 { i64::MAX } else { i64::MIN })
    }

    /// As a float, for arithmetic where precision does not matter.
    #[expect(clippy::cast_precision_loss, reason = "callers ask for an approximation")]
    pub fn as_f64(self) -> f64 {
        self.nano as f64 / 1e9
    }

    /// Whether the amount is zero.
    pub fn is_zero(self) -> bool {
        self.nano == 0
    }

    /// -1, 0 or 1.
    pub fn sign(self) -> i32 {
        i32::try_from(self.nano.signum()).unwrap_or(0)
    }

    /// Whether the amount is a whole number.
    pub fn is_whole(self) -> bool {
        self.nano % NANO == 0
    }

    /// Whether upstream takes it for a whole number of bytes. It counts thousandths, of which it has no more than fit
    /// into 64 bits.
    pub fn is_whole_bytes(self) -> bool {
        self.is_whole() && self.nano / (NANO / 1000) <= i128::from(i64::MAX)
    }

    fn combine(self, other: Self, nano: i128) -> Self {
        Self { nano, format: if self.nano == 0 { other.format } else { self.format } }
    }
}

fn ceil(value: i128, unit: i128) -> i128 {
    value.div_euclid(unit) + i128::from(value.rem_euclid(unit) != 0)
}

fn suffix_well_formed(suffix: &str) -> bool {
    let rest = suffix.trim_start_matches(|c| "eEinumkKMGTP".contains(c));
    let rest = rest.strip_prefix(['-', '+']).unwrap_or(rest);
    rest.bytes().all(|c| c.is_ascii_digit())
}

/// Base two?, exponent, format.
fn interpret(suffix: &str) -> Result<(bool, i32, Format), String> {
    let decimal = |exponent| Ok((false, exponent, Format::DecimalSi));
    let binary = |exponent| Ok((true, exponent, Format::BinarySi));
    match suffix {
        "" => decimal(0),
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(10),
        "Mi" => binary(20),
        "Gi" => binary(30),
        "Ti" => binary(40),
        "Pi" => binary(50),
        "Ei" => binary(60),
        _ => match suffix.strip_prefix(['e', 'E']).map(str::parse::<i32>) {
            Some(Ok(exponent)) => Ok((false, exponent, Format::DecimalExponent)),
            _ => Err(SUFFIX.to_owned()),
        },
    }
}

fn pow10(exponent: i32) -> i128 {
    u32::try_from(exponent).ok().and_then(|e| 10_i128.checked_pow(e)).unwrap_or(i128::MAX)
}

/// Digits as nano units scaled by `10^exponent`, rounded away from zero, saturating.
fn decimal(whole: &str, fraction: &str, exponent: i32) -> i128 {
    let fraction = fraction.trim_end_matches('0');
    let scale = exponent.saturating_add(9).saturating_sub(i32::try_from(fraction.len()).unwrap_or(i32::MAX));
    let digits: Vec<u8> =
        whole.bytes().chain(fraction.bytes()).map(|c| c - b'0').skip_while(|d| *d == 0).collect();
    if digits.is_empty() {
        return 0;
    }
    let sum = |digits: &[u8]| {
        digits.iter().fold(0_i128, |acc, d| acc.saturating_mul(10).saturating_add(i128::from(*d)))
    };
    if scale >= 0 {
        return sum(&digits).saturating_mul(pow10(scale)).min(i128::MAX / 4);
    }
    let drop = usize::try_from(scale.unsigned_abs()).unwrap_or(usize::MAX);
    let (kept, dropped) = digits.split_at(digits.len().saturating_sub(drop));
    (sum(kept) + i128::from(dropped.iter().any(|d| *d != 0))).min(i128::MAX / 4)
}

fn binary(whole: &str, fraction: &str, exponent: i32) -> i128 {
    let factor = 1_i128 << exponent.clamp(0, 60);
    let units = decimal(whole, "", -9).saturating_mul(factor);
    // The fraction has at most 18 digits that matter: 2^60 is below 10^19.
    let fraction = fraction.trim_end_matches('0');
    let fraction = &fraction[..fraction.len().min(18)];
    let parts = decimal("", fraction, i32::try_from(fraction.len()).unwrap_or(0) - 9);
    let scale = pow10(i32::try_from(fraction.len()).unwrap_or(0));
    let tail = match parts.checked_mul(factor) {
        // Nano units: multiply before dividing where it fits, else lose digits below 10^-9 only.
        Some(product) => match product.checked_mul(NANO) {
            Some(nano) => ceil(nano, scale),
            None => (product / scale) * NANO + ceil((product % scale).saturating_mul(NANO), scale),
        },
        None => (parts / scale).saturating_mul(factor).saturating_mul(NANO),
    };
    units.saturating_mul(NANO).saturating_add(tail).min(i128::MAX / 4)
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nano == 0 {
            return f.write_str("0");
        }
        let small = self.nano.abs() < 1024 * NANO;
        if self.format == Format::BinarySi && !small && self.nano % NANO == 0 {
            let (mut number, mut power) = (self.nano / NANO, 0);
            while number % 1024 == 0 && power < 6 {
                number /= 1024;
                power += 1;
            }
            return write!(f, "{number}{}", ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][power]);
        }
        let (mut number, mut exponent) = (self.nano, -9_i32);
        while number % 1000 == 0 && (exponent < 18 || self.format == Format::DecimalExponent) {
            number /= 1000;
            exponent += 3;
        }
        match self.format {
            Format::DecimalExponent if exponent == 0 => write!(f, "{number}"),
            Format::DecimalExponent => write!(f, "{number}e{exponent}"),
            _ => {
                let suffixes = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
                let index = usize::try_from((exponent + 9) / 3).unwrap_or(3);
                write!(f, "{number}{}", suffixes[index.min(9)])
            }
        }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nano == other.nano
    }
}
impl Eq for Quantity {}
impl Hash for Quantity {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.nano.hash(state);
    }
}
impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nano.cmp(&other.nano)
    }
}
impl Default for Quantity {
    fn default() -> Self {
        Self::ZERO
    }
}
impl From<i64> for Quantity {
    fn from(value: i64) -> Self {
        Self { nano: i128::from(value) * NANO, format: Format::DecimalSi }
    }
}
impl From<&Api> for Quantity {
    fn from(api: &Api) -> Self {
        Self::from_api(api)
    }
}
impl Add for Quantity {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        self.combine(other, self.nano.saturating_add(other.nano))
    }
}
impl Sub for Quantity {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        self.combine(other, self.nano.saturating_sub(other.nano))
    }
}
impl AddAssign for Quantity {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}
impl SubAssign for Quantity {
    fn sub_assign(&mut self, other: Self) {
        *self = *self - other;
    }
}
impl Neg for Quantity {
    type Output = Self;
    fn neg(self) -> Self {
        Self { nano: -self.nano, ..self }
    }
}
impl Sum for Quantity {
    fn sum<I: Iterator<Item = Self>>(items: I) -> Self {
        items.fold(Self::ZERO, Add::add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, canonical: &str, milli: i128) {
        let quantity = Quantity::parse(text).expect(text);
        assert_eq!(quantity.to_string(), canonical, "{text}");
        assert_eq!(quantity.milli(), milli, "{text}");
    }

    #[test]
    fn canonical_form_equals_go() {
        check("0", "0", 0);
        check("1.5", "1500m", 1500);
        check("1500m", "1500m", 1500);
        check("1000m", "1", 1000);
        check("0.5", "500m", 500);
        check(".5", "500m", 500);
        check("1.5Gi", "1536Mi", 1536 * 1024 * 1024 * 1000);
        check("1024Mi", "1Gi", 1024 * 1024 * 1024 * 1000);
        check("512", "512", 512_000);
        check("1000Ki", "1000Ki", 1_024_000_000);
        check("0.5Ki", "512", 512_000);
        check("1e3", "1e3", 1_000_000);
        check("12e6", "12e6", 12_000_000_000);
        check("1000000", "1M", 1_000_000_000);
        check("100000", "100k", 100_000_000);
        check("0.0000000001", "1n", 1);
        check("100u", "100u", 1);
        check("-1.5k", "-1500", -1_500_000);
        check("+3", "3", 3000);
        check("00012", "12", 12_000);
        check("9223372036854775807Ei", "9223372036854775807", 9_223_372_036_854_775_807_000);
        check("0.1Gi", "107374182400m", 107_374_182_400);
    }

    #[test]
    fn malformed_text_has_upstream_message() {
        for text in ["", "abc", "1.2.3", "1x", "--1", "1 Gi"] {
            assert_eq!(Quantity::parse(text).expect_err(text), WRONG);
        }
        assert_eq!(Quantity::parse("1kk").expect_err("suffix"), SUFFIX);
    }

    #[test]
    fn bytes_are_whole_as_far_as_their_thousandths_can_be_counted() {
        let whole = |text: &str| Quantity::parse(text).expect("a quantity").is_whole_bytes();
        assert_eq!((whole("1Gi"), whole("1.5"), whole("1Ei")), (true, false, false));
    }

    #[test]
    fn sums_keep_the_first_format_and_compare_by_amount() {
        let parse = |s| Quantity::parse(s).expect(s);
        assert_eq!((parse("1Gi") + parse("1024")).to_string(), "1048577Ki");
        assert_eq!((Quantity::ZERO + parse("1Gi")).to_string(), "1Gi");
        assert_eq!(parse("1Ki"), parse("1024"));
        assert!(parse("999m") < parse("1"));
        assert_eq!(parse("1001m").value(), 2);
    }
}
