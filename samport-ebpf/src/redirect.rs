//! The last step: a rewritten packet leaves for a backend or a client.

use samport_common::flow::ReplyPath;
use samport_common::layout::{Backend, ForwardMode};
use samport_common::verdict::Verdict;
use samport_common::wire::ethernet;

use crate::Outcome;
use crate::context::{Context as _, Hook};
use crate::maps;
use crate::skb::{self, Skb, ToNode};

/// Counts a packet for a backend and sends it there.
#[inline(always)]
pub fn to_backend(skb: &Skb, id: u32, backend: &'static Backend) -> Outcome {
    count(skb, id);
    if skb.is_vlan_tagged() {
        // A priority, for a network card that the packet has left behind.
        skb.pop_vlan();
    }
    match ForwardMode::from_byte(backend.forward_mode) {
        // The helper leaves the MAC alone, and a bridge inside of a container would drop it.
        ForwardMode::Peer => match skb.write(ethernet::DESTINATION.start, backend.mac) {
            Some(()) => Outcome {
                verdict: Verdict::ForwardPeer,
                redirect: skb::redirect_peer(skb, backend.ifindex),
            },
            None => Verdict::RewriteFailed.into(),
        },
        ForwardMode::Neighbour if is_too_big(skb, backend) => Verdict::ForwardTooBig.into(),
        ForwardMode::Neighbour => Outcome {
            verdict: Verdict::ForwardNeighbour,
            redirect: skb::redirect_neigh(backend.ifindex),
        },
        ForwardMode::Stack => Verdict::ForwardStack.into(),
        // The macvlan handler comes after us and looks for the child by the MAC.
        ForwardMode::Child => match skb.write(ethernet::DESTINATION.start, backend.mac) {
            Some(()) => Verdict::ForwardChild.into(),
            None => Verdict::RewriteFailed.into(),
        },
        // Whoever has rewritten it was not to.
        ForwardMode::Node => Verdict::RewriteFailed.into(),
    }
}

/// Whether a backend is another node.
#[inline(always)]
pub fn is_node(backend: &Backend) -> bool {
    matches!(ForwardMode::from_byte(backend.forward_mode), ForwardMode::Node)
}

/// Counts a packet for a node; another program sends it there. What has come by the tunnel goes to no other node.
#[inline(always)]
pub fn to_node(skb: &Skb, id: u32, backend: &'static Backend, is_syn: bool) -> Outcome {
    if skb.hook() == Hook::Tunnel {
        return Verdict::TunnelNested.into();
    }
    count(skb, id);
    skb.set_to_node(ToNode::forward(backend.ifindex, is_syn));
    Verdict::ForwardNode.into()
}

/// Leaves a fragment to the host's stack, which has the first one.
#[inline(always)]
pub fn after_the_first(skb: &Skb, id: u32) -> Outcome {
    count(skb, id);
    Verdict::ForwardTooBig.into()
}

/// Whether the device towards a backend does not take a packet. What goes into a container is not asked about: its
/// device takes it all the same.
#[inline(always)]
pub fn is_too_big(skb: &Skb, backend: &Backend) -> bool {
    matches!(ForwardMode::from_byte(backend.forward_mode), ForwardMode::Neighbour)
        && !skb.fits(backend.ifindex)
}

#[inline(always)]
fn count(skb: &Skb, id: u32) {
    maps::count_backend(id, |stats| {
        stats.packets_in += 1;
        stats.bytes_in += u64::from(skb.len());
    });
}

/// Counts a reply of a backend and sends it to the client; `is_syn` if it is a segment of a handshake.
#[inline(always)]
pub fn to_client(
    skb: &Skb,
    hook: Hook,
    backend: u32,
    reply_path: ReplyPath,
    is_syn: bool,
    mac: impl FnOnce() -> [u8; 6],
) -> Outcome {
    maps::count_backend(backend, |stats| {
        stats.packets_out += 1;
        stats.bytes_out += u64::from(skb.len());
    });
    if maps::is_clustered()
        && let Some(node) = reply_path.node()
    {
        skb.set_to_node(ToNode::reply(node, is_syn));
        return Verdict::ReplyNode.into();
    }
    if hook == Hook::Egress {
        return Verdict::ReplyStack.into();
    }
    if reply_path.is_container() {
        return match skb.write(ethernet::DESTINATION.start, mac()) {
            Some(()) => Outcome {
                verdict: Verdict::Reply,
                redirect: skb::redirect_peer(skb, reply_path.ifindex()),
            },
            None => Verdict::RewriteFailed.into(),
        };
    }
    skb.mark_reply();
    Outcome { verdict: Verdict::Reply, redirect: skb::redirect_neigh(reply_path.ifindex()) }
}
