//! The way in: client to backend.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::programs::TcContext;
use samport_common::conntrack::{self, Decision, Known, State};
use samport_common::flow::{ClientWay, EndpointKey, FlowKey, FlowWord, Lane, ServiceId};
use samport_common::layout::{Life, Scope, program, service, unusual};
use samport_common::packet::{Aside, Packet};
use samport_common::rewrite::{self, End};
use samport_common::verdict::Verdict;
use samport_common::wire::ethernet;
use samport_common::wire::protocol::Protocol;
use samport_common::wire::tcp::Flags;

use crate::apply;
use crate::choice::{self, Opening, Trouble};
use crate::context::{Context, Seat};
use crate::deliver;
use crate::flood;
use crate::flows::{self, Entry, First, Place};
use crate::fragment;
use crate::maps::{self, Insert, Tables};
use crate::skb::Skb;
use crate::{Done, Outcome};

/// Finds the packet's backend and sends it there: one look, one draw, enough for nearly every packet.
#[inline(always)]
pub fn run<P: Tables>(skb: &Skb, seat: Seat) -> Done {
    let packet = match apply::parse::<P, _>(skb) {
        Ok(packet) => packet,
        Err(aside) => return step_aside(aside),
    };
    match choose::<P, _>(skb, seat, &packet) {
        Ok(word) => Done::Outcome(send::<P>(skb, &packet, word.backend())),
        Err(Trouble::Verdict(verdict)) => verdict.into(),
        Err(Trouble::Crowded) => Done::GoOn(program::CROWDED),
    }
}

/// The same with all lanes looked at, the check that replies will not be ambiguous, and the flood's
/// table: for clients with one port towards several addresses of a service, backends behind several
/// services, a backend taken down this instant, floods, and first fragments. Asks to be called again for
/// another draw.
#[inline(always)]
pub fn run_thoroughly<P: Tables>(skb: &Skb) -> Done {
    let packet = match apply::parse_apart::<P>(skb) {
        Ok(packet) => packet,
        Err(aside) => return step_aside(aside),
    };
    match choose_apart::<P>(skb, packet) {
        Ok(Chosen { backend, flooded }) => {
            fragment::remember_forward::<P>(packet, backend);
            let outcome = send_apart::<P>(skb, packet, backend);
            Done::Outcome(if flooded { outcome.renamed(Verdict::ForwardFlood) } else { outcome })
        }
        Err(Trouble::Verdict(verdict)) => verdict.into(),
        Err(Trouble::Crowded) => Done::GoOn(program::CROWDED),
    }
}

/// What a thorough choice has come to.
pub struct Chosen {
    /// The backend's id.
    pub backend: u32,
    /// Whether the flow has just been put into the flood's table.
    pub flooded: bool,
}

/// [`choose_thoroughly`] in a function of its own.
#[inline(always)]
pub fn choose_apart<P: Tables>(
    skb: &Skb,
    packet: &'static Packet<P::Addr>,
) -> Result<Chosen, Trouble> {
    let number = choose_by_number::<P>(skb.pointer_to_context(), packet);
    if number & CHOSEN != 0 {
        let backend = number & !(CHOSEN | FLOODED);
        return Ok(Chosen { backend, flooded: number & FLOODED != 0 });
    }
    // Whatever is no verdict's number.
    Err(Verdict::from_number(number).map_or(Trouble::Crowded, Trouble::Verdict))
}

/// Bits of what [`choose_by_number`] returns besides a backend's id, which is below 4,096.
const CHOSEN: u32 = 1 << 31;
const FLOODED: u32 = 1 << 30;

#[inline(never)]
fn choose_by_number<P: Tables>(ctx: *mut __sk_buff, packet: &'static Packet<P::Addr>) -> u32 {
    let skb = Skb::new(TcContext::new(ctx));
    match choose_thoroughly::<P>(&skb, skb.seat(), packet) {
        Ok((word, flooded)) => {
            CHOSEN | if flooded { FLOODED } else { 0 } | (word.backend() & !(CHOSEN | FLOODED))
        }
        Err(Trouble::Verdict(verdict)) => verdict as u32,
        Err(Trouble::Crowded) => !(CHOSEN | FLOODED),
    }
}

/// [`send`] in a function of its own.
#[inline(always)]
pub fn send_apart<P: Tables>(skb: &Skb, packet: &'static Packet<P::Addr>, backend: u32) -> Outcome {
    Outcome::from_bits(send_by_number::<P>(skb.pointer_to_context(), packet, backend))
}

#[inline(never)]
fn send_by_number<P: Tables>(
    ctx: *mut __sk_buff,
    packet: &'static Packet<P::Addr>,
    backend: u32,
) -> u64 {
    send::<P>(&Skb::new(TcContext::new(ctx)), packet, backend).to_bits()
}

/// The program for what is no simple packet.
#[inline(always)]
fn step_aside(aside: Aside) -> Done {
    match aside {
        Aside::Leave(verdict) => verdict.into(),
        Aside::Icmp => Done::GoOn(program::ICMP),
        Aside::First => Done::GoOn(program::CROWDED),
        Aside::Later => Done::GoOn(program::LATER),
    }
}

/// The backend the packet belongs to: its flow's, or a new one if it opens a flow.
#[inline(always)]
pub fn choose<P: Tables, C: Context>(
    context: &C,
    seat: Seat,
    packet: &Packet<P::Addr>,
) -> Result<FlowWord, Trouble> {
    let opening = classify::<P, C>(context, seat, packet)?;
    let own = match flows::look::<P>(packet.source, packet.destination, opening.id) {
        First::Own(entry) => Some(entry),
        First::Free => None,
        First::Crowded => return Err(Trouble::Crowded),
    };
    let judged = match follow(context, own, packet.flags, &opening)? {
        Next::Follow(word) => return Ok(word),
        Next::Open(judged) => judged,
    };
    let chosen = choice::draw(&opening)?;
    // Last of what may send the packet on to the thorough search, which counts those it gets.
    if opening.protocol == Protocol::Tcp && flood::begins(opening.now_tick) {
        return Err(Trouble::Crowded);
    }
    let place = match judged {
        Some((entry, word)) => Place::Entry(entry, word),
        None => Place::Lane(Lane::FIRST, Insert::New),
    };
    Ok(choice::store::<P, C>(context, packet, place, &opening, chosen)?)
}

/// [`choose`] with everything looked at; and whether the flow has just been put into the flood's
/// table.
#[inline(always)]
pub fn choose_thoroughly<P: Tables>(
    skb: &Skb,
    seat: Seat,
    packet: &Packet<P::Addr>,
) -> Result<(FlowWord, bool), Trouble> {
    let opening = classify::<P, _>(skb, seat, packet)?;
    let (client, vip) = (packet.source, packet.destination);
    let lanes = flows::look_thoroughly::<P>(client, vip, opening.id, opening.now_tick);
    let judged = match follow(skb, lanes.own, packet.flags, &opening)? {
        Next::Follow(word) => {
            if lanes.own_in_flood
                && let Some(entry) = lanes.own
                && matches!(entry.word().state(), State::Established)
            {
                flood::promote::<P>(&FlowKey::new(client, opening.id, Lane::FIRST), entry);
            }
            return Ok((word, false));
        }
        Next::Open(judged) => judged,
    };
    let chosen = choice::draw_thoroughly::<P>(client, &lanes, &opening)?;
    // With a flow ever seen in the flood's table or in another lane, all that open a flow come here,
    // and only here. What the quick search has found to be a flood counts twice, and is one.
    let is_flood = opening.protocol == Protocol::Tcp && flood::begins(opening.now_tick);
    if judged.is_none() && is_flood {
        let word = choice::store_flood::<P, _>(skb, packet, &opening, chosen)?;
        return Ok((word, true));
    }
    let place = match (judged, lanes.free) {
        (Some((entry, word)), _) => Place::Entry(entry, word),
        (None, Some((lane, how))) => {
            if lane != Lane::FIRST {
                maps::set_unusual(unusual::LANES);
            }
            Place::Lane(lane, how)
        }
        (None, None) => return Err(Verdict::FlowAmbiguous.into()),
    };
    Ok((choice::store::<P, _>(skb, packet, place, &opening, chosen)?, false))
}

/// Finds the service a packet is for, and whether it may be.
#[inline(always)]
fn classify<P: Tables, C: Context>(
    context: &C,
    seat: Seat,
    packet: &Packet<P::Addr>,
) -> Result<Opening<'static>, Verdict> {
    let protocol = packet.protocol;
    if !maps::is_listened_on(protocol, packet.destination.port) {
        return Err(Verdict::NotOurs);
    }
    let key = EndpointKey::new(packet.destination, protocol.number());
    let service = P::service(&key).ok_or(Verdict::NotOurs)?;
    if !may_dial(Scope::from_byte(service.scope), seat) {
        return Err(Verdict::NotOurs);
    }
    // A container's frames are addressed to its bridge, which is not where we look.
    if seat != Seat::Container && !context.is_for_host() {
        return Err(Verdict::OtherHost);
    }
    if service.flags & service::RESTRICTED != 0 && !P::is_allowed(service.id, packet.source.addr) {
        return Err(Verdict::NotAllowed);
    }
    let id = ServiceId::new(service.id).ok_or(Verdict::BackendUnset)?;
    let way = match seat {
        Seat::Container => ClientWay::into_container(context.ifindex()),
        _ => ClientWay::out_of(context.ifindex()),
    };
    Ok(Opening { service, id, protocol, way, now_tick: flows::now_tick() })
}

/// Whether a frontend of this scope serves packets that come in here.
#[inline(always)]
pub fn may_dial(scope: Scope, seat: Seat) -> bool {
    matches!(scope, Scope::Everybody) || seat != Seat::Interface
}

/// What a packet does with its flow.
enum Next {
    /// Goes on in it, to this backend.
    Follow(FlowWord),
    /// Opens it; over this entry, if what stands there is still what was judged to be over.
    Open(Option<(Entry, FlowWord)>),
}

/// Advances the packet's flow, or says that it opens one.
#[inline(always)]
fn follow<C: Context>(
    context: &C,
    own: Option<Entry>,
    flags: Flags,
    opening: &Opening<'_>,
) -> Result<Next, Verdict> {
    let protocol = opening.protocol;
    let Some(entry) = own else {
        return match conntrack::decide(None, protocol, flags) {
            Decision::Refuse(verdict) => Err(verdict),
            Decision::Choose | Decision::Stay(_) => Ok(Next::Open(None)),
        };
    };
    let word = entry.word();
    let known = Known {
        state: word.state(),
        over: entry.is_over(word, opening.now_tick),
        backend_serves: serves(word),
    };
    match conntrack::decide(Some(known), protocol, flags) {
        Decision::Refuse(verdict) => Err(verdict),
        Decision::Choose => Ok(Next::Open(Some((entry, word)))),
        Decision::Stay(state) => {
            if matches!(word.state(), State::SynReceived) && !matches!(state, State::SynReceived) {
                flood::ends();
            }
            entry.advance(word, state);
            entry.touch(opening.now_tick);
            // Replies follow the client when it comes in by another device.
            entry.follow_to(opening.way, || context.read(ethernet::SOURCE.start));
            Ok(Next::Follow(word))
        }
    }
}

/// Whether the backend a flow was opened to still takes its packets.
#[inline(always)]
pub fn serves(word: FlowWord) -> bool {
    maps::backend(word.backend()).is_some_and(|backend| {
        Life::from_byte(backend.life).serves() && backend.generation == word.generation()
    })
}

/// Rewrites the packet for a backend and sends it off.
#[inline(always)]
pub fn send<P: Tables>(skb: &Skb, packet: &Packet<P::Addr>, id: u32) -> Outcome {
    let Some(backend) = maps::backend(id) else {
        return Verdict::BackendUnset.into();
    };
    let to = maps::endpoint::<P>(backend);
    let plan = rewrite::plan::<P>(packet, End::Destination, to).bounded();
    if apply::apply(skb, &plan).is_none() {
        return Verdict::RewriteFailed.into();
    }
    if to.addr == packet.source.addr {
        // A backend that dials its own service and gets itself: from its own address it would take
        // nothing. The address it has dialled is one it knows the way to.
        let disguised = samport_common::flow::Endpoint {
            addr: packet.destination.addr,
            port: packet.source.port,
        };
        let plan = rewrite::plan::<P>(packet, End::Source, disguised).bounded();
        if apply::apply(skb, &plan).is_none() {
            return Verdict::RewriteFailed.into();
        }
    }
    deliver::to_backend(skb, id, backend)
}
