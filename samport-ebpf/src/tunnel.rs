//! The tunnel between nodes: what leaves by it, and what comes in. The bytes are `samport_common::encap`'s.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::programs::TcContext;
use samport_common::checksum;
use samport_common::conntrack::State;
use samport_common::encap::{self, Payload};
use samport_common::failover;
use samport_common::family::{Address, Family, V4, V6};
use samport_common::flow::{EndpointKey, Flow, FlowWord, ServiceId};
use samport_common::frame::Frame as _;
use samport_common::layout::{Node, Scope, program};
use samport_common::packet::{self, L3, Packet, Part, Special};
use samport_common::source;
use samport_common::verdict::Verdict;
use samport_common::wire::protocol::Protocol;
use samport_common::wire::{ethernet, ipv6, tcp, udp};
use zerocopy::IntoBytes as _;

use crate::context::{Context as _, Hook};
use crate::exit;
use crate::flows::{self, FlowRef};
use crate::forward;
use crate::fragment;
use crate::maps::{self, Tables};
use crate::nat;
use crate::redirect;
use crate::reverse::{self, Reply};
use crate::skb::{self, Covers, LinkEnds, Skb};
use crate::{Next, Outcome};

/// Whether a packet is one of the tunnel, as far as its port says.
#[inline(always)]
pub fn is_of_tunnel<A: Address>(packet: &Packet<A>) -> bool {
    packet.protocol == Protocol::Udp
        && u32::from(u16::from_be_bytes(packet.destination.port)) == maps::tunnel_port()
}

/// Takes the outer headers off a packet of a node's.
#[inline(always)]
pub fn unwrap<P: Tables>(skb: &Skb) -> Next {
    let Ok(packet) = nat::parse_whole_subprog::<P>(skb) else {
        return Verdict::TunnelMalformed.into();
    };
    let index = match sender::<P>(skb, packet) {
        Ok(index) => index,
        Err(verdict) => return verdict.into(),
    };
    let at = packet.l4 + udp::LEN;
    let first = match skb.read(at) {
        None if skb.pull_headers() => skb.read(at),
        first => first,
    };
    let Some([first, _]) = first else { return Verdict::TunnelMalformed.into() };
    let ether_type = match Payload::of(first) {
        Some(Payload::Ipv4) => V4::ETHER_TYPE,
        Some(Payload::Ipv6) => V6::ETHER_TYPE,
        Some(Payload::Control) => return Next::TailCall(program::PROBE),
        None => return Verdict::TunnelMalformed.into(),
    };
    let changes_to = if ether_type == P::ETHER_TYPE { None } else { Some(ether_type) };
    if skb.strip(encap::outer_len(packet.l4), changes_to).is_none() {
        return Verdict::RewriteFailed.into();
    }
    skb.set_from_node(index);
    Next::TailCall(program::INNER)
}

/// Answers a probe of a node. The program that has called this one has found that it is a node's.
#[inline(always)]
pub fn probe<P: Tables>(skb: &Skb) -> Next {
    let Ok(packet) = nat::parse_subprog::<P>(skb) else {
        return Verdict::TunnelMalformed.into();
    };
    let Some(ends) = skb.link_ends() else { return Verdict::TunnelMalformed.into() };
    let drains = own_drains::<P>(packet) != 0;
    let Some(answer) = encap::answer::<P, _>(skb, packet, drains) else {
        return Verdict::TunnelMalformed.into();
    };
    if turn_round::<P>(skb, packet, &answer, &ends).is_none() {
        return Verdict::RewriteFailed.into();
    }
    Next::Outcome(Outcome { verdict: Verdict::TunnelProbe, redirect: skb::redirect(skb.ifindex()) })
}

/// 1 if the node that a packet comes from is told that this one is drained, else 0.
#[inline(never)]
fn own_drains<P: Tables>(packet: &'static Packet<P::Addr>) -> u32 {
    let node = maps::node_at(&P::to_mapped(packet.source.addr)).and_then(maps::node);
    u32::from(node.is_some_and(Node::own_drains))
}

#[inline(always)]
fn turn_round<P: Tables>(
    skb: &Skb,
    packet: &'static Packet<P::Addr>,
    answer: &encap::Answer,
    ends: &LinkEnds,
) -> Option<()> {
    skb.cut(answer.frame_len)?;
    skb.send_back(ends)?;
    skb.write(answer.length_at, answer.length)?;
    if let Some(at) = P::CHECKSUM {
        let field: [u8; 2] = skb.read(L3 + at)?;
        skb.write(L3 + at, checksum::update(field, answer.csum_diff))?;
    }
    nat::write_address(skb, L3 + P::SOURCE, packet.destination.addr.as_bytes())?;
    nat::write_address(skb, L3 + P::DESTINATION, packet.source.addr.as_bytes())?;
    skb.write(packet.l4, answer.udp)?;
    skb.write(packet.l4 + udp::LEN, answer.control)
}

/// The index of the node that a packet comes from: by its address, and by a device that may lead there.
#[inline(always)]
fn sender<P: Tables>(skb: &Skb, packet: &Packet<P::Addr>) -> Result<u32, Verdict> {
    if !skb.is_for_host() {
        return Err(Verdict::OtherHost);
    }
    let from = P::to_mapped(packet.source.addr);
    let index = maps::node_at(&from).ok_or(Verdict::TunnelUnknownNode)?;
    let node = maps::node(index).ok_or(Verdict::TunnelUnknownNode)?;
    if node.own != P::to_mapped(packet.destination.addr) {
        return Err(Verdict::NotOurs);
    }
    let rp_filter = maps::device(skb.ifindex()).map_or(0, |device| device.rp_filter);
    // As the kernel's own filter, which IPv6 has none of.
    if node.addr != from
        || (P::of_two([rp_filter, 0]) == source::STRICT && node.ifindex != skb.ifindex())
    {
        return Err(Verdict::TunnelUnknownNode);
    }
    Ok(index)
}

/// Sends what was inside of a packet of the tunnel to a backend of this machine or, if it is a reply, to the client.
#[inline(always)]
pub fn inner<P: Tables>(skb: &Skb) -> Next {
    let parsed = match nat::parse_whole_subprog::<P>(skb) {
        Err(Special::First) => nat::parse_subprog::<P>(skb),
        parsed => parsed,
    };
    let packet = match parsed {
        Ok(packet) => packet,
        Err(Special::Icmp) => return Next::TailCall(program::ICMP),
        Err(Special::Later) => return Next::TailCall(program::LATER),
        Err(Special::First | Special::Leave(_)) => return Verdict::TunnelMalformed.into(),
    };
    if is_of_tunnel(packet) {
        return Verdict::TunnelNested.into();
    }
    if let Some(service) = answering::<P>(packet) {
        return reply::<P>(skb, packet, service);
    }
    if !maps::is_listened_on(packet.protocol, packet.destination.port) {
        return Verdict::TunnelNotServed.into();
    }
    if matches!(packet.part, Part::First(_)) {
        return Next::TailCall(program::SLOW_PATH);
    }
    let hit = find_hit::<P>(skb.pointer_to_context(), packet);
    if hit & HIT != 0 {
        #[allow(clippy::cast_possible_truncation, reason = "the lower half is what is wanted")]
        return Next::Outcome(forward::send_subprog::<P>(skb, packet, hit as u32));
    }
    match forward::service_of::<P>(Hook::Tunnel, packet) {
        Some(_) => Next::TailCall(program::CHOOSE),
        None => Verdict::TunnelNotServed.into(),
    }
}

/// Beside a backend's number, in what [`find_hit`] returns.
const HIT: u64 = 1 << 32;

/// The backend of a packet of an open flow that just goes on with it, or 0. A function with a stack of its own: with
/// that of the other way, the programs would have more than the 512 bytes there are.
#[inline(never)]
fn find_hit<P: Tables>(ctx: *mut __sk_buff, packet: &'static Packet<P::Addr>) -> u64 {
    let skb = Skb::new(TcContext::new(ctx));
    match forward::fast_path::<P, _>(&skb, Hook::Tunnel, packet) {
        Some(hit) => HIT | u64::from(hit.id),
        None => 0,
    }
}

/// The service that the packet's source is a frontend of: then it is a reply, which has the address that was dialled here.
#[inline(always)]
fn answering<P: Tables>(packet: &Packet<P::Addr>) -> Option<ServiceId> {
    if !maps::is_listened_on(packet.protocol, packet.source.port) {
        return None;
    }
    let service = P::service(&EndpointKey::new(packet.source, packet.protocol.number()))?;
    match Scope::from_byte(service.scope) {
        Scope::External | Scope::Internal => ServiceId::new(service.id),
        Scope::Local => None,
    }
}

/// A node's reply, for the client.
#[inline(always)]
fn reply<P: Tables>(skb: &Skb, packet: &'static Packet<P::Addr>, service: ServiceId) -> Next {
    let flow = find_flow::<P>(packet, u32::from(service.get()), skb.node());
    let Some(entry) = FlowRef::new(flow) else { return Verdict::TunnelNoFlow.into() };
    let word = entry.word();
    if matches!(word.state(), State::Failed) {
        return Verdict::LateAnswer.into();
    }
    if failover::refuses(word.state(), &packet::segment(skb, packet), entry.sequences())
        && reverse::is_held_back::<P>(skb.pointer_to_context(), packet, flow) != 0
    {
        return Verdict::RefusalHeld.into();
    }
    let exit = match exit::of::<P>(skb, &packet.destination.addr, entry) {
        Ok(exit) => exit,
        Err(verdict) => return verdict.into(),
    };
    if reverse::is_too_big(skb, Hook::Tunnel, exit) {
        return Verdict::ReplyTooBig.into();
    }
    let reply = Reply { entry, backend: word.backend(), to_itself: false };
    fragment::remember_reverse::<P>(packet, flow, skb.ifindex(), exit.reply_path().to_bits());
    reverse::advance(skb, packet, &reply);
    Next::Outcome(reverse::leave(skb, Hook::Tunnel, &reply, exit, packet.flags.syn()))
}

/// The flow that a packet of this node's is a reply of, or null.
#[inline(never)]
fn find_flow<P: Tables>(packet: &'static Packet<P::Addr>, service: u32, node: u32) -> *mut Flow {
    let service = u16::try_from(service).ok().and_then(ServiceId::new);
    let entry = service
        .and_then(|id| flows::find_own::<P>(packet.destination, packet.source, id))
        .filter(|entry| is_of_node(entry.word(), node));
    match entry {
        Some(entry) => entry.pointer(),
        None => core::ptr::null_mut(),
    }
}

/// Whether a flow's backend is this node.
#[inline(always)]
pub fn is_of_node(word: FlowWord, node: u32) -> bool {
    maps::backend(word.backend()).is_some_and(|backend| {
        redirect::is_node(backend)
            && backend.ifindex == node
            && backend.generation == word.generation()
    })
}

/// Puts a packet into one to a node, and sends it there. Its connection is told what fits, while it is opened.
#[inline(always)]
pub fn wrap<P: Tables>(skb: &Skb) -> Next {
    let to = skb.to_node();
    let Some(node) = maps::node(to.node()) else { return Verdict::BackendUnset.into() };
    if to.is_syn() && clamp::<P>(skb.pointer_to_context(), to.node()) == 0 {
        return Verdict::RewriteFailed.into();
    }
    let len = ip_len(skb);
    if !encap::fits(node, len, skb.gso_size(), segment_headers::<P>()) {
        return Next::TailCall(program::TOO_BIG);
    }
    if skb.is_vlan_tagged() {
        skb.pop_vlan();
    }
    let Some(start) = skb.read(L3) else { return Verdict::RewriteFailed.into() };
    if put_in(skb, node, len as usize, encap::tos(start)).is_none() {
        return Verdict::RewriteFailed.into();
    }
    skb.mark_reply();
    let verdict = if to.is_reply() { Verdict::ReplyNode } else { Verdict::ForwardNode };
    Next::Outcome(Outcome { verdict, redirect: skb::redirect_neigh(node.ifindex) })
}

/// Whether a reply that has not been restored fits through the tunnel to the node whose client it is for.
#[inline(always)]
pub fn reply_fits<P: Family>(skb: &Skb, node: u32) -> bool {
    let len = ip_len(skb);
    maps::node(node)
        .is_none_or(|node| encap::fits(node, len, skb.gso_size(), segment_headers::<P>()))
}

/// Tells the sender of a packet that does not fit through the tunnel what does. The packet is as it has come in.
#[inline(always)]
pub fn too_big<P: Tables>(skb: &Skb) -> Next {
    let to = skb.to_node();
    let packet = match nat::parse_subprog::<P>(skb) {
        // What has options or extensions is told nothing, and neither is one behind another node.
        Ok(packet) if packet.l4 == L3 + P::HEADER_LEN && skb.hook() != Hook::Tunnel => packet,
        _ => return Verdict::TunnelTooBigDrop.into(),
    };
    let Some(ends) = skb.link_ends() else { return Verdict::RewriteFailed.into() };
    if make_error::<P>(skb.pointer_to_context(), packet, to.node()) == 0
        || skb.send_back(&ends).is_none()
    {
        return Verdict::RewriteFailed.into();
    }
    Next::Outcome(Outcome {
        verdict: Verdict::TunnelTooBig,
        redirect: skb::redirect(skb.ifindex()),
    })
}

/// Makes an error of the packet to its sender: 1, or 0 if that fails.
#[inline(never)]
fn make_error<P: Tables>(ctx: *mut __sk_buff, packet: &'static Packet<P::Addr>, node: u32) -> u32 {
    let skb = Skb::new(TcContext::new(ctx));
    let Some(node) = maps::node(node) else { return 0 };
    let made = if P::CHECKSUM.is_some() {
        make_error_v4::<P>(&skb, packet, node)
    } else {
        make_error_v6::<P>(&skb, packet, node)
    };
    u32::from(made.is_some())
}

#[inline(always)]
fn make_error_v4<P: Tables>(skb: &Skb, packet: &Packet<P::Addr>, node: &Node) -> Option<()> {
    const LEN: usize = V4::HEADER_LEN + encap::QUOTED;
    skb.cut(L3 + LEN)?;
    let quoted: [u8; LEN] = skb.read(L3)?;
    let icmp = encap::too_big_v4(node, checksum::csum(&quoted));
    skb.make_room_for_error(V4::HEADER_LEN + icmp.len())?;
    let (from, to) = (P::to_mapped(packet.destination.addr), P::to_mapped(packet.source.addr));
    skb.write(L3, encap::error_v4(V4::from_mapped(&from), V4::from_mapped(&to)))?;
    skb.write(L3 + V4::HEADER_LEN, icmp)
}

#[inline(always)]
fn make_error_v6<P: Tables>(skb: &Skb, packet: &Packet<P::Addr>, node: &Node) -> Option<()> {
    const LEN: usize = V6::HEADER_LEN + encap::QUOTED;
    skb.cut(L3 + LEN)?;
    let quoted: [u8; LEN] = skb.read(L3)?;
    let sums = (P::csum(&packet.source.addr), P::csum(&packet.destination.addr));
    let length = encap::ERROR_V6.to_be();
    let pseudo = checksum::pseudo_header(sums.0, sums.1, V6::ICMP, length);
    let icmp = encap::too_big_v6(node, checksum::csum(&quoted), pseudo);
    skb.make_room_for_error(V6::HEADER_LEN + icmp.len())?;
    skb.write(L3, encap::error_v6())?;
    nat::write_address(skb, L3 + V6::SOURCE, packet.destination.addr.as_bytes())?;
    nat::write_address(skb, L3 + V6::DESTINATION, packet.source.addr.as_bytes())?;
    skb.write(L3 + V6::HEADER_LEN, icmp)
}

/// Bytes of an IP packet, without the Ethernet header.
#[inline(always)]
#[allow(clippy::cast_possible_truncation, reason = "a small constant")]
fn ip_len(skb: &Skb) -> u32 {
    skb.len().saturating_sub(const { L3 as u32 })
}

/// Bytes that each segment of a packet begins with that offload will cut, TCP options left out: those of IP and TCP.
#[inline(always)]
#[allow(clippy::cast_possible_truncation, reason = "60 at most")]
const fn segment_headers<P: Family>() -> u32 {
    (P::HEADER_LEN + tcp::MIN_LEN) as u32
}

#[inline(always)]
fn put_in(skb: &Skb, node: &Node, len: usize, tos: u8) -> Option<()> {
    let hash = skb.hash();
    let udp = encap::outer_udp(node, len, hash);
    if node.is_ipv6() {
        skb.make_room(encap::OUTER_V6, true)?;
        skb.write(ethernet::TYPE.start, V6::ETHER_TYPE)?;
        skb.write(L3, encap::outer_v6(len, tos))?;
        skb.write(L3 + ipv6::SOURCE.start, node.own)?;
        skb.write(L3 + ipv6::DESTINATION.start, node.addr)?;
        return skb.write(L3 + ipv6::LEN, udp);
    }
    skb.make_room(encap::OUTER_V4, false)?;
    skb.write(ethernet::TYPE.start, V4::ETHER_TYPE)?;
    skb.write(L3, encap::outer_v4(node, len, tos))?;
    skb.write(L3 + V4::HEADER_LEN, udp)
}

/// Makes the maximum segment size of a handshake small enough for the tunnel: 1, or 0 if that fails.
#[inline(never)]
fn clamp<P: Tables>(ctx: *mut __sk_buff, node: u32) -> u32 {
    let skb = Skb::new(TcContext::new(ctx));
    let Some(node) = maps::node(node) else { return 0 };
    let packet = match nat::parse_subprog::<P>(&skb) {
        Ok(packet) if packet.protocol == Protocol::Tcp && packet.flags.syn() => packet,
        _ => return 1,
    };
    let Some(clamp) = encap::clamp(&skb, packet, node, P::HEADER_LEN) else { return 1 };
    if skb.write(clamp.at, clamp.size).is_none() {
        return 0;
    }
    let covers = Covers { pseudo_header: false, zero_is_none: false };
    u32::from(
        skb.update_l4_csum(packet.l4 + tcp::CHECKSUM.start, clamp.csum_diff, covers).is_some(),
    )
}
