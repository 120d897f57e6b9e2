//! The way back at once: a segment that nobody is there for is answered with a reset.

use samport_common::checksum;
use samport_common::frame::Frame as _;
use samport_common::reset::{self, Reset};
use samport_common::verdict::Verdict;
use samport_common::wire::protocol::Protocol;
use samport_common::wire::tcp;
use zerocopy::IntoBytes as _;

use crate::context::{Context as _, Hook};
use crate::maps::{self, Tables};
use crate::nat;
use crate::skb::{self, Covers, LinkEnds, Skb, ToNode, Unserved};
use crate::{Next, Outcome};

/// Answers the packet, for the reason that was handed over. What cannot be answered is left to the
/// host's stack.
#[inline(always)]
pub fn run<P: Tables>(skb: &Skb) -> Next {
    let (left, answered) = match skb.unserved() {
        Unserved::NoBackend => (Verdict::NoBackend, Verdict::NoBackendReset),
        Unserved::BackendGone => (Verdict::BackendGone, Verdict::GoneReset),
    };
    let packet = match nat::parse_subprog::<P>(skb) {
        Ok(packet) if packet.protocol == Protocol::Tcp => packet,
        _ => return left.into(),
    };
    let Some(ends) = skb.link_ends() else { return left.into() };
    let Some(reset) = reset::plan::<P, _>(skb, packet) else {
        return left.into();
    };
    if turn_round(skb, &reset, &ends).is_none() {
        return Verdict::RewriteFailed.into();
    }
    if maps::is_clustered() && skb.hook() == Hook::Tunnel {
        // The client is another node's, which may have somebody else.
        skb.set_to_node(ToNode::reply(skb.node(), false));
        return Verdict::ReplyNode.into();
    }
    Next::Outcome(Outcome { verdict: answered, redirect: skb::redirect(skb.ifindex()) })
}

/// Makes the packet its own answer.
#[inline(always)]
fn turn_round<P: Tables>(skb: &Skb, reset: &Reset<P>, ends: &LinkEnds) -> Option<()> {
    // The kernel does not cut what it has marked as encapsulated on this machine; the IP header says where it ends.
    if skb.cut(reset.frame_len).is_none() && skb.hook() != Hook::Tunnel {
        return None;
    }
    skb.send_back(ends)?;
    skb.write(reset.length_at, reset.length)?;
    skb.write(reset.hops_at, reset.hops)?;
    if let Some(at) = reset.l3_checksum_at {
        let field: [u8; 2] = skb.read(at)?;
        skb.write(at, checksum::update(field, reset.l3_csum_diff))?;
    }
    nat::write_address(skb, reset.source_at, reset.source.as_bytes())?;
    nat::write_address(skb, reset.destination_at, reset.destination.as_bytes())?;
    skb.write(reset.l4, reset.header)?;
    // In two parts, because only the kernel knows whether the device is to add the second.
    let at = reset.l4 + tcp::CHECKSUM.start;
    let pseudo = Covers { pseudo_header: true, zero_is_none: false };
    skb.update_l4_csum(at, reset.pseudo, pseudo)?;
    skb.update_l4_csum(at, reset.sum, Covers { pseudo_header: false, ..pseudo })
}
