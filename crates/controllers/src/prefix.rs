//! Ranges of addresses, as `10.0.0.0/8` and `fd00::/48`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A range of addresses. Bits behind the prefix do not matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// An address of the range.
    pub address: IpAddr,
    /// How many leading bits all its addresses share.
    pub bits: u32,
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

impl Prefix {
    /// Reads a range; `None` if it is none.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, bits) = text.split_once('/')?;
        let (address, bits): (IpAddr, u32) = (address.parse().ok()?, bits.parse().ok()?);
        let width = if address.is_ipv4() { 32 } else { 128 };
        (bits <= width).then_some(Self { address, bits })
    }

    /// Bits of an address of its family.
    pub fn width(&self) -> u32 {
        if self.address.is_ipv4() { 32 } else { 128 }
    }

    /// The address as a number.
    fn number(address: IpAddr) -> u128 {
        match address {
            IpAddr::V4(address) => u128::from(u32::from(address)),
            IpAddr::V6(address) => u128::from(address),
        }
    }

    /// Whether an address belongs to it.
    pub fn contains(&self, other: IpAddr) -> bool {
        let top = |address| Self::number(address).checked_shr(self.width() - self.bits).unwrap_or(0);
        self.address.is_ipv4() == other.is_ipv4() && top(self.address) == top(other)
    }

    /// Whether another range lies in it.
    pub fn holds(&self, other: &Self) -> bool {
        self.bits <= other.bits && self.contains(other.address)
    }

    /// How many ranges of `bits` leading bits it consists of; 0 if they are larger than it.
    pub fn parts(&self, bits: u32) -> u64 {
        match bits.checked_sub(self.bits) {
            Some(shift @ 0..64) if bits <= self.width() => 1 << shift,
            _ => 0,
        }
    }

    /// The `index`-th of its ranges of `bits` leading bits.
    pub fn part(&self, bits: u32, index: u64) -> Self {
        let wide = |shift: u32, number: u128| number.checked_shl(shift).unwrap_or(0);
        let own = self.width() - self.bits;
        let start = wide(own, Self::number(self.address).checked_shr(own).unwrap_or(0));
        let number = start | wide(self.width() - bits, u128::from(index));
        let address = match self.address {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX))),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from(number)),
        };
        Self { address, bits }
    }

    /// Which of its ranges of `bits` leading bits a range touches: from the first to the last.
    pub fn touched(&self, bits: u32, other: &Self) -> Option<(u64, u64)> {
        if other.holds(self) {
            return Some((0, self.parts(bits).checked_sub(1)?));
        }
        if !self.holds(other) {
            return None;
        }
        let inside = Self::number(other.address) - Self::number(self.part(bits, 0).address);
        let size = self.width() - bits;
        let first = inside.checked_shr(size).unwrap_or(0);
        let length = 1_u128.checked_shl(self.width() - other.bits).unwrap_or(u128::MAX);
        let last = (inside | (length - 1)).checked_shr(size).unwrap_or(0);
        Some((u64::try_from(first).ok()?, u64::try_from(last).ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn p(text: &str) -> Prefix {
        Prefix::parse(text).expect("a range")
    }

    #[test]
    fn parts_lie_side_by_side_and_fill_the_range() {
        let range = p("10.244.0.0/16");
        assert_eq!((range.parts(24), range.parts(16), range.parts(8)), (256, 1, 0));
        assert_eq!(range.part(24, 0).to_string(), "10.244.0.0/24");
        assert_eq!(range.part(24, 255).to_string(), "10.244.255.0/24");
        assert_eq!(p("fd00:1::/48").part(64, 258).to_string(), "fd00:1:0:102::/64");
        assert!((0..256).all(|i| range.holds(&range.part(24, i))));
    }

    #[test]
    fn a_range_touches_the_parts_that_share_an_address_with_it() {
        let range = p("10.0.0.0/8");
        assert_eq!(range.touched(24, &p("10.0.1.128/25")), Some((1, 1)));
        assert_eq!(range.touched(24, &p("10.0.4.0/22")), Some((4, 7)));
        assert_eq!(range.touched(24, &p("0.0.0.0/0")), Some((0, 65_535)));
        assert_eq!(range.touched(24, &p("11.0.0.0/24")), None);
        assert_eq!(range.touched(24, &p("fd00::/64")), None);
    }

    #[test]
    fn what_is_no_range_is_refused() {
        assert!(["10.0.0.0", "10.0.0.0/33", "x/8", "::/129", ""].iter().all(|t| Prefix::parse(t).is_none()));
    }
}
