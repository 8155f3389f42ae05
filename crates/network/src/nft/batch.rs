//! One transaction: tables, chains, sets and elements to make and to remove.

use super::expr::{Rule, Verdict};
use super::wire::{HEADER, MessageHead, attribute, message, nested, number, text};

const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
const IPV4: u8 = 2;
/// Elements per message: keeps the nest below 64 KiB with the largest element we have (about 100 bytes).
const PORTION: usize = 400;

/// Data types with the ids that `nft` gives them; a concatenation packs six bits each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "nft's type names")]
pub enum Type {
    Ipv4Address,
    InetProto,
    InetService,
    Mark,
}

impl Type {
    fn id(self) -> u32 {
        match self {
            Self::Ipv4Address => 7,
            Self::InetProto => 12,
            Self::InetService => 13,
            Self::Mark => 19,
        }
    }
}

fn concatenated(types: &[Type]) -> (u32, u32) {
    let id = types.iter().fold(0, |id, t| (id << 6) | t.id());
    (id, 4 * u32::try_from(types.len()).unwrap_or(0))
}

/// What a set holds beside its keys.
#[derive(Clone, Copy, Debug)]
pub enum SetKind {
    /// Keys alone.
    Set,
    /// A verdict per key.
    Verdicts,
    /// Data of these types per key.
    Map(&'static [Type]),
    /// As `Map`; filled by rules, elements expire.
    DynamicMap(&'static [Type], u32),
}

/// A named set or map.
#[derive(Clone, Copy, Debug)]
pub struct SetSpec {
    /// Its name, unique in the table.
    pub name: &'static str,
    /// The parts of its key.
    pub key: &'static [Type],
    /// What it holds.
    pub kind: SetKind,
}

/// An element's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    /// None: a plain set.
    None,
    /// A verdict.
    Verdict(Verdict),
    /// Bytes in register layout.
    Bytes(Vec<u8>),
}

/// An element of a set or map. Keys and bytes are in register layout: every part padded to four bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element {
    /// The key.
    pub key: Vec<u8>,
    /// The value.
    pub data: Data,
}

/// Where in the packet's way a base chain sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "netfilter's hooks")]
pub enum Hook {
    Prerouting = 0,
    Input = 1,
    Forward = 2,
    Output = 3,
    Postrouting = 4,
}

/// What a base chain may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "netfilter's chain types")]
pub enum ChainKind {
    Filter,
    Nat,
}

/// A chain; without a hook it is reached by jumps only.
#[derive(Clone, Debug)]
pub struct Chain {
    /// Its name, unique in the table.
    pub name: String,
    /// Type, hook and priority of a base chain. The policy is accept.
    pub base: Option<(ChainKind, Hook, i32)>,
}

impl Chain {
    /// A chain reached by jumps.
    pub fn regular(name: impl Into<String>) -> Self {
        Self { name: name.into(), base: None }
    }
    /// A base chain.
    pub fn base(name: &str, kind: ChainKind, hook: Hook, priority: i32) -> Self {
        Self { name: name.into(), base: Some((kind, hook, priority)) }
    }
}

/// Commands that take effect together. All concern one table of family `ip`, unless they say otherwise.
#[derive(Debug)]
pub struct Batch {
    table: String,
    bytes: Vec<u8>,
    sequence: u32,
    last: usize,
    sets: u32,
    /// What each command is about, for error messages; index = sequence - 1.
    what: Vec<&'static str>,
}

impl Batch {
    /// An empty batch for a table.
    pub fn new(table: &str) -> Self {
        let mut bytes = Vec::with_capacity(4096);
        message(&mut bytes, MessageHead { kind: 0x10, flags: 0, family: 0, resource: 10 }, 0, |_| {});
        Self { table: table.to_owned(), bytes, sequence: 0, last: 0, sets: 0, what: Vec::new() }
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.sequence == 0
    }

    fn push(
        &mut self,
        what: &'static str,
        command: u16,
        flags: u16,
        family: u8,
        fill: impl FnOnce(&mut Vec<u8>),
    ) {
        self.sequence += 1;
        self.last = self.bytes.len();
        self.what.push(what);
        let head = MessageHead { kind: (10 << 8) | command, flags, family, resource: 0 };
        message(&mut self.bytes, head, self.sequence, fill);
    }

    fn command(
        &mut self,
        what: &'static str,
        command: u16,
        flags: u16,
        fill: impl FnOnce(&str, &mut Vec<u8>),
    ) {
        let table = self.table.clone();
        self.push(what, command, flags, IPV4, |out| {
            text(out, 1, &table);
            fill(&table, out);
        });
    }

    /// Makes the table if it is not there.
    pub fn add_table(&mut self) {
        self.command("add table", 0, CREATE, |_, _| {});
    }

    /// Removes the table with all it contains; an error if it is not there.
    pub fn delete_table(&mut self) {
        self.command("delete table", 2, 0, |_, _| {});
    }

    /// Empties the table, which exists afterwards: what follows in this batch replaces what was.
    pub fn replace_table(&mut self) {
        self.add_table();
        self.delete_table();
        self.add_table();
    }

    /// Makes a chain.
    pub fn add_chain(&mut self, chain: &Chain) {
        self.command("add chain", 3, CREATE, |_, out| {
            text(out, 3, &chain.name);
            if let Some((kind, hook, priority)) = chain.base {
                nested(out, 4, |out| {
                    number(out, 1, hook as u32);
                    number(out, 2, priority.cast_unsigned());
                });
                number(out, 5, 1);
                text(out, 7, if kind == ChainKind::Nat { "nat" } else { "filter" });
            }
        });
    }

    /// Appends a rule to a chain.
    pub fn add_rule(&mut self, chain: &str, rule: &Rule) {
        self.command("add rule", 6, CREATE | APPEND, |_, out| {
            text(out, 2, chain);
            rule.encode(out);
        });
    }

    /// Puts a rule at the head of a chain of another table.
    pub fn insert_foreign_rule(&mut self, family: u8, table: &str, chain: &str, rule: &Rule) {
        self.push("insert rule into another table", 6, CREATE, family, |out| {
            text(out, 1, table);
            text(out, 2, chain);
            rule.encode(out);
        });
    }

    /// Removes a rule of another table.
    pub fn delete_foreign_rule(&mut self, family: u8, table: &str, chain: &str, handle: &[u8]) {
        self.push("delete rule of another table", 8, 0, family, |out| {
            text(out, 1, table);
            text(out, 2, chain);
            attribute(out, 3, handle);
        });
    }

    /// Makes a set or map.
    pub fn add_set(&mut self, spec: &SetSpec) {
        self.sets += 1;
        let id = self.sets;
        let (key, length) = concatenated(spec.key);
        let (flags, data, limit) = match spec.kind {
            SetKind::Set => (0, None, None),
            SetKind::Verdicts => (8, Some((0xffff_ff00, 0)), None),
            SetKind::Map(types) => (8, Some(concatenated(types)), None),
            SetKind::DynamicMap(types, limit) => (8 | 0x10 | 0x20, Some(concatenated(types)), Some(limit)),
        };
        self.command("add set", 9, CREATE, |_, out| {
            text(out, 2, spec.name);
            number(out, 3, flags);
            number(out, 4, key);
            number(out, 5, length);
            if let Some((data, length)) = data {
                number(out, 6, data);
                if length > 0 {
                    number(out, 7, length);
                }
            }
            if let Some(limit) = limit {
                nested(out, 9, |out| number(out, 1, limit));
            }
            number(out, 10, id);
        });
    }

    /// Adds elements to a set or map. An element that is there with the same value is no error.
    pub fn add_elements(&mut self, set: &str, elements: &[Element]) {
        self.elements("add elements", 12, CREATE, set, elements);
    }

    /// Removes elements; one that is not there is an error.
    pub fn delete_elements(&mut self, set: &str, elements: &[Element]) {
        self.elements("delete elements", 14, 0, set, elements);
    }

    fn elements(&mut self, what: &'static str, command: u16, flags: u16, set: &str, elements: &[Element]) {
        for portion in elements.chunks(PORTION) {
            self.command(what, command, flags, |_, out| {
                text(out, 2, set);
                nested(out, 3, |out| portion.iter().for_each(|element| encode_element(out, element)));
            });
        }
    }

    /// The finished transaction, asking for an answer to its last command, and that command's sequence
    /// number.
    pub(super) fn finish(mut self) -> (Vec<u8>, u32, Vec<&'static str>) {
        let at = self.last + 6;
        self.bytes[at] |= 4;
        let head = MessageHead { kind: 0x11, flags: 0, family: 0, resource: 10 };
        message(&mut self.bytes, head, self.sequence + 1, |_| {});
        debug_assert!(self.bytes.len() >= 2 * HEADER);
        (self.bytes, self.sequence, self.what)
    }
}

fn encode_element(out: &mut Vec<u8>, element: &Element) {
    nested(out, 1, |out| {
        nested(out, 1, |out| attribute(out, 1, &element.key));
        match &element.data {
            Data::None => {}
            Data::Verdict(verdict) => nested(out, 2, |out| verdict.encode(out)),
            Data::Bytes(bytes) => nested(out, 2, |out| attribute(out, 1, bytes)),
        }
    });
}
