//! Fragments: the first one decides and is remembered, the others follow.

use samport_common::conntrack::State;
use samport_common::family::Family;
use samport_common::flow::{FRAGMENT_TICKS, Flow, FlowWord, FragmentKey, Fragmented, ReplyPath};
use samport_common::packet::{self, FragmentId, Packet, Part, Special};
use samport_common::rewrite::{self, End};
use samport_common::source::Side;
use samport_common::verdict::Verdict;

use crate::context::{Context as _, Hook};
use crate::exit;
use crate::flows;
use crate::forward;
use crate::maps::{self, Tables};
use crate::nat;
use crate::redirect;
use crate::reverse;
use crate::skb::Skb;
use crate::source;
use crate::{Next, Outcome};

/// An address that stays.
const STAYS: [u8; 16] = [0; 16];

/// Backend to client.
#[inline(always)]
pub fn reverse<P: Tables>(skb: &Skb) -> Next {
    let hook = skb.hook();
    let packet = match nat::parse_subprog::<P>(skb) {
        Ok(packet) => packet,
        Err(Special::Leave(verdict)) => return verdict.into(),
        Err(Special::Icmp | Special::First | Special::Later) => return Verdict::Malformed.into(),
    };
    let found = reverse::find_subprog::<P>(packet);
    let Some(reply) = found else {
        return reverse::no_reply(hook, packet);
    };
    if !reverse::is_by_backend::<P>(skb, hook, &reply) {
        return reverse::no_answer(hook);
    }
    let exit = match exit::of::<P>(skb, &packet.destination.addr, reply.entry) {
        Ok(exit) => exit,
        Err(verdict) => return verdict.into(),
    };
    if let Some(next) = reverse::too_big_for_tunnel::<P>(skb, exit) {
        return next;
    }
    if reverse::is_too_big(skb, hook, exit) {
        // The later ones follow it into the host's stack, as orphans.
        return reverse::too_big::<P>(skb);
    }
    remember_reverse::<P>(
        packet,
        reply.entry.pointer(),
        skb.came_in_by(hook),
        exit.reply_path().to_bits(),
    );
    reverse::advance(skb, packet, &reply);
    if reverse::restore_subprog::<P>(skb, packet, &reply).is_none() {
        return Verdict::RewriteFailed.into();
    }
    Next::Outcome(reverse::leave(skb, hook, &reply, exit, packet.flags.syn()))
}

/// The new form of an address, or [`STAYS`].
#[inline(always)]
fn changed<P: Family>(changes: bool, addr: P::Addr) -> [u8; 16] {
    if changes { P::to_mapped(addr) } else { STAYS }
}

/// Remembers that a first fragment goes to a backend. If that fails, the later ones are orphans, and
/// counted as such.
#[inline(always)]
pub fn remember_forward<P: Tables>(skb: &Skb, packet: &'static Packet<P::Addr>, chosen: u32) {
    if matches!(packet.part, Part::First(_)) {
        let too_big =
            maps::backend(chosen).is_some_and(|backend| redirect::is_too_big(skb, backend));
        let reply_path = if too_big { Fragmented::BY_STACK } else { 0 };
        remember_forward_apart::<P>(packet, chosen, skb.ifindex(), reply_path);
    }
}

#[inline(never)]
fn remember_forward_apart<P: Tables>(
    packet: &'static Packet<P::Addr>,
    chosen: u32,
    came_in_by: u32,
    reply_path: u32,
) -> i32 {
    let (Some(id), Some(backend), Some(draft)) =
        (packet::first_of::<P>(packet), maps::backend(chosen), maps::scratch::fragment_draft())
    else {
        return 0;
    };
    let to = maps::endpoint::<P>(backend).addr;
    let is_rewritten = !(maps::is_clustered() && redirect::is_node(backend));
    let is_itself = is_rewritten && to == packet.source.addr;
    draft.source = changed::<P>(is_itself, packet.destination.addr);
    draft.destination = changed::<P>(is_rewritten, to);
    draft.backend = chosen;
    draft.generation = backend.generation;
    draft.is_reply = 0;
    draft.reply_path = reply_path;
    draft.seen_tick = flows::now_tick();
    draft.came_in_by = came_in_by;
    let _ = P::remember(&FragmentKey::new(&id), draft);
    0
}

/// Remembers that a first fragment was a reply in this flow. What it returns says nothing; the kernel
/// wants every function to return something.
#[inline(never)]
pub fn remember_reverse<P: Tables>(
    packet: &'static Packet<P::Addr>,
    flow: *mut Flow,
    came_in_by: u32,
    reply_path: u32,
) -> i32 {
    let (Some(id), Some(draft), Some(reply)) = (
        packet::first_of::<P>(packet),
        maps::scratch::fragment_draft(),
        reverse::found::<P>(flow, packet.destination.addr),
    ) else {
        return 0;
    };
    draft.source = P::to_mapped(reply.entry.vip::<P>().addr);
    draft.destination = changed::<P>(reply.to_itself, packet.source.addr);
    draft.backend = reply.backend;
    draft.generation = 0;
    draft.is_reply = 1;
    draft.reply_path = reply_path;
    draft.seen_tick = flows::now_tick();
    draft.mac = reply.entry.mac();
    draft.came_in_by = came_in_by;
    let _ = P::remember(&FragmentKey::new(&id), draft);
    0
}

/// Sends a later fragment after the first, whichever way that went.
#[inline(always)]
pub fn later<P: Tables>(skb: &Skb) -> Next {
    skb.pull_headers();
    let id = match packet::parse_later::<P, _>(skb) {
        Ok(id) => id,
        Err(verdict) => return verdict.into(),
    };
    let Some(first) = find::<P>(&id) else {
        return Verdict::FragmentOrphan.into();
    };
    if !follows_first(first.came_in_by, skb.came_in_by(skb.hook())) {
        return Verdict::SpoofedSource.into();
    }
    match send::<P>(skb, skb.hook(), &id, first) {
        Ok(outcome) => Next::Outcome(outcome),
        Err(verdict) => verdict.into(),
    }
}

/// Whether a later fragment may have come in by this device, if the first has come in by that one: by the same,
/// or by another that outside clients come in by. The first one's source was validated, the others' is not.
#[inline(always)]
fn follows_first(first: u32, later: u32) -> bool {
    let is_outside = |ifindex| source::side_of(ifindex) == Some(Side::External);
    first == later || (is_outside(first) && is_outside(later))
}

/// What was done with the first fragment, not too long ago.
#[inline(always)]
fn find<P: Tables>(id: &FragmentId<P::Addr>) -> Option<&'static Fragmented> {
    let first = P::fragmented(&FragmentKey::new(id))?;
    if flows::now_tick().saturating_sub(first.seen_tick) > FRAGMENT_TICKS {
        None
    } else {
        Some(first)
    }
}

#[inline(always)]
fn send<P: Tables>(
    skb: &Skb,
    hook: Hook,
    id: &FragmentId<P::Addr>,
    first: &Fragmented,
) -> Result<Outcome, Verdict> {
    let is_reply = first.is_reply != 0;
    let word = FlowWord::new(first.backend, first.generation, State::Unanswered);
    if !is_reply && !forward::takes_packets(word) {
        return Err(Verdict::BackendGone);
    }
    let reply_path = ReplyPath::from_bits(first.reply_path);
    if is_reply && reverse::is_too_big(skb, hook, reply_path.into()) {
        // On its way through the host's stack, which makes smaller ones of it.
        return Err(Verdict::ReplyTooBig);
    }
    if first.source != STAYS {
        let plan = rewrite::plan_later::<P>(id, End::Source, P::from_mapped(&first.source));
        nat::apply_address(skb, &plan).ok_or(Verdict::RewriteFailed)?;
    }
    if first.destination != STAYS {
        let plan =
            rewrite::plan_later::<P>(id, End::Destination, P::from_mapped(&first.destination));
        nat::apply_address(skb, &plan).ok_or(Verdict::RewriteFailed)?;
    }
    if !is_reply {
        let backend = maps::backend(first.backend).ok_or(Verdict::BackendUnset)?;
        if first.reply_path == Fragmented::BY_STACK {
            return Ok(redirect::after_the_first(skb, first.backend));
        }
        if maps::is_clustered() && redirect::is_node(backend) {
            return Ok(redirect::to_node(skb, first.backend, backend, false));
        }
        return Ok(redirect::to_backend(skb, first.backend, backend));
    }
    // No handshake is in fragments.
    Ok(redirect::to_client(skb, hook, first.backend, reply_path, false, || first.mac))
}
