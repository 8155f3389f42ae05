//! Numbers that may be written as percentages (`maxSurge: 25%`).

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// The number meant by `value`, where percentages are of `total` and are rounded up or down.
///
/// # Errors
/// A message when the text is not a percentage.
pub fn int_or_percent(value: &IntOrString, total: i64, round_up: bool) -> Result<i64, String> {
    match value {
        IntOrString::Int(number) => Ok(i64::from(*number)),
        IntOrString::String(text) => {
            let percent = percent(text).ok_or_else(|| {
                "invalid value for IntOrString: invalid type: string is not a percentage".to_owned()
            })?;
            let product = percent.saturating_mul(total);
            Ok(if round_up {
                product.div_euclid(100) + i64::from(product.rem_euclid(100) != 0)
            } else {
                product / 100
            })
        }
    }
}

/// The number before the percent sign, if `text` is a percentage.
pub fn percent(text: &str) -> Option<i64> {
    text.strip_suffix('%').and_then(|digits| digits.parse().ok())
}

/// A port or number written as text or number: `80`, `"http"`.
pub fn to_text(value: &IntOrString) -> String {
    match value {
        IntOrString::Int(number) => number.to_string(),
        IntOrString::String(text) => text.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_round_as_asked() {
        let value = IntOrString::String("25%".into());
        assert_eq!(int_or_percent(&value, 10, true), Ok(3));
        assert_eq!(int_or_percent(&value, 10, false), Ok(2));
        assert_eq!(int_or_percent(&IntOrString::Int(4), 10, false), Ok(4));
        assert!(int_or_percent(&IntOrString::String("x".into()), 10, false).is_err());
    }
}
