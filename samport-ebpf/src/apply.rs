//! A packet in, a rewritten packet out: the core's parser and plan on an skb.

use samport_common::checksum;
use samport_common::family::Family;
use samport_common::frame::Frame as _;
use samport_common::packet::{self, Packet};
use samport_common::rewrite::Rewrite;
use samport_common::verdict::Verdict;
use zerocopy::IntoBytes as _;

use crate::maps;
use crate::skb::Skb;

/// Parses the packet, bringing its headers into the linear part if a driver has left them outside.
#[inline(always)]
pub fn parse<P: Family>(skb: &Skb) -> Result<Packet<P::Addr>, Verdict> {
    let mut packet = match packet::parse::<P, _>(skb) {
        Err(Verdict::Truncated) if skb.pull_headers() => packet::parse::<P, _>(skb)?,
        result => result?,
    };
    if packet.l4 != packet.l3 + P::HEADER_LEN {
        packet.l4 = maps::forget(packet.l4);
    }
    Ok(packet)
}

/// Applies a rewrite. `None` if the packet is shorter than its plan or the kernel refuses.
///
/// Everything but the TCP checksum is written directly; that one goes through the kernel's helper
/// and comes last, because the helper invalidates every pointer into the packet.
#[inline(always)]
pub fn apply<P: Family>(skb: &Skb, rewrite: &Rewrite<P>) -> Option<()> {
    if let Some(at) = rewrite.l3_checksum_at {
        let field: [u8; 2] = skb.read(at)?;
        skb.write(at, checksum::update(field, rewrite.addr_difference))?;
    }
    match rewrite.addr.as_bytes() {
        [a, b, c, d] => skb.write(rewrite.addr_at, [*a, *b, *c, *d])?,
        bytes => skb.write::<16>(rewrite.addr_at, *bytes.first_chunk()?)?,
    }
    skb.write(rewrite.port_at, rewrite.port)?;
    skb.update_l4_checksum(rewrite.l4_checksum_at, rewrite.addr_difference, true)?;
    if P::CHECKSUM.is_none() {
        // The helper takes the address for covered by a header checksum, as it is in IPv4: it has
        // taken the difference out of the device's sum, where address and TCP checksum had already
        // made up for each other.
        skb.update_device_sum(rewrite.addr_difference);
    }
    if rewrite.port_difference != 0 {
        skb.update_l4_checksum(rewrite.l4_checksum_at, rewrite.port_difference, false)?;
    }
    Some(())
}
