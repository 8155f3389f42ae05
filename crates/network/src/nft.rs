//! nf_tables over netlink, without `nft` and without libnftnl: a typed encoder for the part that a service
//! proxy needs.
//!
//! [`Batch`] gathers commands and is applied by [`Socket::commit`] as one transaction: all or nothing, and
//! packets see either the old or the new state. Names and numbers are those of
//! `linux/netfilter/nf_tables.h`; what the commands mean is told in <https://wiki.nftables.org>. Sets carry
//! the type ids that `nft` knows, so `nft list` prints our tables in its own syntax.
//!
//! Two facts of the kernel shape this module. A nested attribute is at most 64 KiB long, so elements are
//! sent in portions. Anonymous sets cost O(n²) in one transaction, so there are none: rules look up named
//! maps.

mod batch;
mod expr;
mod socket;
mod wire;

pub use batch::{Batch, Chain, ChainKind, Data, Element, Hook, SetKind, SetSpec, Type};
pub use expr::{Expr, Reg, Rule, Verdict};
pub use socket::{ForeignChain, NftError, Socket};
pub(crate) use wire::{Attributes, MessageHead, request_bytes};
