//! Rule expressions: what a packet is loaded from, compared with, looked up in, and what happens to it.

use super::wire::{attribute, nested, number, text};

/// One of the sixteen 32-bit registers. A concatenation occupies neighbouring registers, four bytes (or a
/// multiple) per part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reg(u32);

impl Reg {
    /// Register `n` of 0 to 15.
    pub const fn new(n: u32) -> Self {
        assert!(n < 16, "there are 16 registers");
        Self(8 + n)
    }
}

/// Where a rule or a map element sends the packet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "nf_tables' verdicts")]
pub enum Verdict {
    Accept,
    Drop,
    Return,
    Jump(String),
    Goto(String),
}

impl Verdict {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let (code, chain) = match self {
            Self::Accept => (1, None),
            Self::Drop => (0, None),
            Self::Return => (-5, None),
            Self::Jump(chain) => (-3, Some(chain)),
            Self::Goto(chain) => (-4, Some(chain)),
        };
        nested(out, 2, |out| {
            number(out, 1, i32::cast_unsigned(code));
            if let Some(chain) = chain {
                text(out, 2, chain);
            }
        });
    }
}

/// One step of a rule. A comparison or lookup that fails ends the rule.
#[derive(Clone, Debug)]
pub enum Expr {
    /// Loads the IPv4 source address.
    SourceAddress(Reg),
    /// Loads the IPv4 destination address.
    DestinationAddress(Reg),
    /// Loads the transport header's destination port.
    DestinationPort(Reg),
    /// Loads the transport protocol's number.
    Protocol(Reg),
    /// Loads the packet mark.
    Mark(Reg),
    /// Stores a register as the packet mark.
    SetMark(Reg),
    /// Loads the conntrack status bits.
    ConntrackStatus(Reg),
    /// Loads the connection's mark.
    ConntrackMark(Reg),
    /// Stores a register as the connection's mark.
    SetConntrackMark(Reg),
    /// Loads the routing type of the destination address; 2 is local.
    DestinationType(Reg),
    /// The rule goes on if the input interface's name begins with the text.
    InputInterfacePrefix(String),
    /// The rule goes on if the output interface's name begins with the text.
    OutputInterfacePrefix(String),
    /// `dst = (src & mask) ^ xor` on four bytes, in memory order.
    Bitwise {
        /// Read and written.
        reg: Reg,
        /// Kept bits.
        mask: [u8; 4],
        /// Turned bits.
        xor: [u8; 4],
    },
    /// The rule goes on if the register equals the bytes.
    Equal(Reg, Vec<u8>),
    /// The rule goes on if the register differs from the bytes.
    NotEqual(Reg, Vec<u8>),
    /// The rule goes on if the register's key is in the set.
    InSet(Reg, String),
    /// Loads the map's value for the key.
    Map {
        /// Where the key begins.
        key: Reg,
        /// The map.
        map: String,
        /// Where the value goes.
        value: Reg,
    },
    /// Goes where the verdict map says.
    VerdictMap(Reg, String),
    /// Loads a random number below the modulus.
    Random(Reg, u32),
    /// Adds or refreshes an element of a dynamic map.
    Update {
        /// Where the key begins.
        key: Reg,
        /// Where the value begins.
        value: Reg,
        /// The map.
        map: String,
        /// Life of the element.
        timeout_ms: u64,
    },
    /// Changes the destination to the address and port in the registers.
    Dnat(Reg, Reg),
    /// Changes the source to the outgoing interface's address and a random port.
    Masquerade,
    /// Answers TCP with a reset.
    RejectTcp,
    /// Answers with ICMP port unreachable.
    RejectIcmp,
    /// Ends the rule with a verdict.
    Verdict(Verdict),
}

fn payload(out: &mut Vec<u8>, reg: Reg, base: u32, offset: u32, length: u32) {
    number(out, 1, reg.0);
    number(out, 2, base);
    number(out, 3, offset);
    number(out, 4, length);
}

fn value(out: &mut Vec<u8>, kind: u16, data: &[u8]) {
    nested(out, kind, |out| attribute(out, 1, data));
}

impl Expr {
    fn name(&self) -> &'static str {
        match self {
            Self::SourceAddress(_) | Self::DestinationAddress(_) | Self::DestinationPort(_) => "payload",
            Self::Protocol(_) | Self::Mark(_) | Self::SetMark(_) => "meta",
            Self::ConntrackStatus(_) | Self::ConntrackMark(_) | Self::SetConntrackMark(_) => "ct",
            Self::DestinationType(_) => "fib",
            Self::InputInterfacePrefix(_) | Self::OutputInterfacePrefix(_) => "meta",
            Self::Bitwise { .. } => "bitwise",
            Self::Equal(..) | Self::NotEqual(..) => "cmp",
            Self::InSet(..) | Self::Map { .. } | Self::VerdictMap(..) => "lookup",
            Self::Random(..) => "numgen",
            Self::Update { .. } => "dynset",
            Self::Dnat(..) => "nat",
            Self::Masquerade => "masq",
            Self::RejectTcp | Self::RejectIcmp => "reject",
            Self::Verdict(_) => "immediate",
        }
    }

    fn body(&self, out: &mut Vec<u8>) {
        match self {
            Self::SourceAddress(reg) => payload(out, *reg, 1, 12, 4),
            Self::DestinationAddress(reg) => payload(out, *reg, 1, 16, 4),
            Self::DestinationPort(reg) => payload(out, *reg, 2, 2, 2),
            Self::Protocol(reg) => [reg.0, 16].iter().zip(1..).for_each(|(v, k)| number(out, k, *v)),
            Self::Mark(reg) => [reg.0, 3].iter().zip(1..).for_each(|(v, k)| number(out, k, *v)),
            Self::SetMark(reg) => [3, reg.0].iter().zip(2..).for_each(|(v, k)| number(out, k, *v)),
            Self::ConntrackStatus(reg) => [reg.0, 2].iter().zip(1..).for_each(|(v, k)| number(out, k, *v)),
            Self::ConntrackMark(reg) => [reg.0, 3].iter().zip(1..).for_each(|(v, k)| number(out, k, *v)),
            Self::SetConntrackMark(reg) => {
                number(out, 2, 3);
                number(out, 4, reg.0);
            }
            Self::DestinationType(reg) => [reg.0, 3, 2].iter().zip(1..).for_each(|(v, k)| number(out, k, *v)),
            Self::InputInterfacePrefix(_) => {
                [SCRATCH.0, 6].iter().zip(1..).for_each(|(v, k)| number(out, k, *v))
            }
            Self::OutputInterfacePrefix(_) => {
                [SCRATCH.0, 7].iter().zip(1..).for_each(|(v, k)| number(out, k, *v))
            }
            Self::Bitwise { reg, mask, xor } => {
                [reg.0, reg.0, 4].iter().zip(1..).for_each(|(v, k)| number(out, k, *v));
                value(out, 4, mask);
                value(out, 5, xor);
            }
            Self::Equal(reg, data) | Self::NotEqual(reg, data) => {
                number(out, 1, reg.0);
                number(out, 2, u32::from(matches!(self, Self::NotEqual(..))));
                value(out, 3, data);
            }
            Self::InSet(reg, set) => {
                text(out, 1, set);
                number(out, 2, reg.0);
            }
            Self::Map { key, map, value } => {
                text(out, 1, map);
                number(out, 2, key.0);
                number(out, 3, value.0);
            }
            Self::VerdictMap(reg, map) => {
                text(out, 1, map);
                number(out, 2, reg.0);
                number(out, 3, 0);
            }
            Self::Random(reg, modulus) => {
                [reg.0, *modulus, 1, 0].iter().zip(1..).for_each(|(v, k)| number(out, k, *v));
            }
            Self::Update { key, value, map, timeout_ms } => {
                text(out, 1, map);
                number(out, 3, 1);
                number(out, 4, key.0);
                number(out, 5, value.0);
                attribute(out, 6, &timeout_ms.to_be_bytes());
            }
            Self::Dnat(address, port) => {
                number(out, 1, 1);
                number(out, 2, 2);
                number(out, 3, address.0);
                number(out, 5, port.0);
            }
            Self::Masquerade => number(out, 1, 0x10),
            Self::RejectTcp => {
                number(out, 1, 1);
                attribute(out, 2, &[0]);
            }
            Self::RejectIcmp => {
                number(out, 1, 0);
                attribute(out, 2, &[3]);
            }
            Self::Verdict(verdict) => {
                number(out, 1, 0);
                nested(out, 2, |out| verdict.encode(out));
            }
        }
    }

    /// Appends the expression as a list element.
    fn encode(&self, out: &mut Vec<u8>) {
        nested(out, 1, |out| {
            text(out, 1, self.name());
            nested(out, 2, |out| self.body(out));
        });
        if let Self::InputInterfacePrefix(prefix) | Self::OutputInterfacePrefix(prefix) = self {
            Self::Equal(SCRATCH, prefix.as_bytes().to_vec()).encode(out);
        }
    }
}

/// Interface names take four registers; rules that test them use no others beside.
const SCRATCH: Reg = Reg::new(0);

/// A rule: expressions in order.
#[derive(Clone, Debug, Default)]
pub struct Rule {
    exprs: Vec<Expr>,
    tag: Option<String>,
}

impl Rule {
    /// A rule of these expressions.
    pub fn new(exprs: Vec<Expr>) -> Self {
        Self { exprs, tag: None }
    }

    /// The same rule with a comment that `nft list` shows and by which it is found again.
    #[must_use]
    pub fn tagged(mut self, tag: impl Into<String>) -> Self {
        self.tag = Some(tag.into());
        self
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        nested(out, 4, |out| self.exprs.iter().for_each(|expr| expr.encode(out)));
        if let Some(tag) = &self.tag {
            attribute(out, 7, &comment(tag));
        }
    }
}

/// The user data by which libnftnl stores a comment: type 0, length, text with its closing zero.
pub(super) fn comment(tag: &str) -> Vec<u8> {
    let mut data = vec![0, u8::try_from(tag.len() + 1).unwrap_or(u8::MAX)];
    data.extend_from_slice(tag.as_bytes());
    data.push(0);
    data
}
