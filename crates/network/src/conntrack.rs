//! Forgets UDP flows whose endpoint is gone. A UDP flow has no end, so conntrack would send its packets to
//! the old endpoint for as long as they keep coming.

use std::collections::HashSet;
use std::net::Ipv4Addr;

use crate::nft::{Attributes, MessageHead, NftError, Socket, request_bytes};

/// Flows to forget: those to a frontend (`None`: any local address) that go to one of these backends, or to
/// none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stale {
    pub address: Option<Ipv4Addr>,
    pub port: u16,
    pub backends: HashSet<(Ipv4Addr, u16)>,
}

const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
const DUMP: u16 = 0x300;
const UDP: u8 = 17;
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const NESTED: u16 = 0x8000;

/// One direction of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tuple {
    source: (Ipv4Addr, u16),
    destination: (Ipv4Addr, u16),
    protocol: u8,
}

fn tuple(attributes: Attributes<'_>) -> Option<Tuple> {
    let (ip, proto) = (attributes.nested(1)?, attributes.nested(2)?);
    let address = |kind| Some(Ipv4Addr::from(<[u8; 4]>::try_from(ip.find(kind)?).ok()?));
    let port = |kind| Some(u16::from_be_bytes(proto.find(kind)?.try_into().ok()?));
    Some(Tuple {
        source: (address(1)?, port(2)?),
        destination: (address(2)?, port(3)?),
        protocol: *proto.find(1)?.first()?,
    })
}

fn is_stale(original: Tuple, reply: Tuple, stale: &[Stale]) -> bool {
    let (address, port) = original.destination;
    original.protocol == UDP
        && stale.iter().any(|s| {
            s.port == port
                && s.address.is_none_or(|a| a == address)
                && (s.backends.contains(&reply.source) || reply.source == original.destination)
        })
}

/// Forgets the flows; returns how many.
pub(crate) fn forget(socket: &Socket, stale: &[Stale]) -> Result<usize, NftError> {
    let mut found = Vec::new();
    let head = MessageHead { kind: GET, flags: DUMP, family: 2, resource: 0 };
    socket.exchange(&request_bytes(head), &mut |message| {
        let all = message.attributes();
        let (Some(raw), Some(reply)) = (all.find(ORIGINAL), all.nested(REPLY)) else { return };
        if let (Some(original), Some(reply)) = (tuple(Attributes(raw)), tuple(reply))
            && is_stale(original, reply, stale)
        {
            found.push(raw.to_vec());
        }
    })?;
    let count = found.len();
    for raw in found {
        let head = MessageHead { kind: DELETE, flags: 0, family: 2, resource: 0 };
        match socket.request("forget a flow", head, &[(ORIGINAL | NESTED, raw)]) {
            Err(e) if !e.is_absent() => return Err(e),
            _ => {}
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_flows_to_gone_backends_or_to_nobody_are_stale() {
        let vip = (Ipv4Addr::new(10, 96, 0, 5), 53);
        let (gone, kept) = ((Ipv4Addr::new(10, 244, 0, 2), 53), (Ipv4Addr::new(10, 244, 0, 3), 53));
        let client = (Ipv4Addr::new(10, 244, 0, 9), 40_000);
        let stale = [Stale { address: Some(vip.0), port: 53, backends: [gone].into() }];
        let flow = |backend, protocol| {
            let original = Tuple { source: client, destination: vip, protocol };
            (original, Tuple { source: backend, destination: client, protocol })
        };
        let check = |(original, reply)| is_stale(original, reply, &stale);
        assert!(check(flow(gone, UDP)));
        assert!(check(flow(vip, UDP)), "never translated");
        assert!(!check(flow(kept, UDP)));
        assert!(!check(flow(gone, 6)), "TCP flows end by themselves");
    }
}
