//! The way in: client to backend.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::programs::TcContext;
use samport_common::conntrack::{self, Decision, Known, Openers, Sender, State};
use samport_common::failover;
use samport_common::family::Address;
use samport_common::flow::{ClientWay, EndpointKey, FlowWord, Lane, ServiceId};
use samport_common::layout::{Life, Scope, Service, program, service};
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
use crate::maps::{self, Insert, Tables};
use crate::skb::{Skb, Unserved};
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
        Err(Trouble::Verdict(verdict)) => give_up(skb, verdict),
        Err(Trouble::Crowded) => Done::GoOn(program::CROWDED),
    }
}

/// What becomes of a packet for a service that nobody serves: its client is told.
#[inline(always)]
pub fn give_up(skb: &Skb, verdict: Verdict) -> Done {
    let why = match verdict {
        Verdict::NoBackend => Unserved::NoBackend,
        Verdict::BackendGone => Unserved::BackendGone,
        other => return other.into(),
    };
    skb.hand_over(why);
    Done::GoOn(program::RESET)
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
pub fn step_aside(aside: Aside) -> Done {
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
        Next::Ask(_) => return Err(Trouble::Crowded),
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

/// Finds the service a packet is for, and whether it may be.
#[inline(always)]
pub fn classify<P: Tables, C: Context>(
    context: &C,
    seat: Seat,
    packet: &Packet<P::Addr>,
) -> Result<Opening, Verdict> {
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
    opening_of(context, seat, packet, service)
}

/// What is known of a packet that a service may have.
#[inline(always)]
pub fn opening_of<A: Address, C: Context>(
    context: &C,
    seat: Seat,
    packet: &Packet<A>,
    service: &'static Service,
) -> Result<Opening, Verdict> {
    let protocol = packet.protocol;
    let id = ServiceId::new(service.id).ok_or(Verdict::BackendUnset)?;
    let way = match seat {
        Seat::Container => ClientWay::into_container(context.ifindex()),
        _ => ClientWay::out_of(context.ifindex()),
    };
    Ok(Opening {
        service,
        id,
        protocol,
        flags: packet.flags,
        way,
        now_tick: flows::now_tick(),
        attempt: context.attempt(),
    })
}

/// Whether a frontend of this scope serves packets that come in here.
#[inline(always)]
pub fn may_dial(scope: Scope, seat: Seat) -> bool {
    matches!(scope, Scope::Everybody) || seat != Seat::Interface
}

/// What a packet does with its flow.
pub enum Next {
    /// Goes on in it, to this backend.
    Follow(FlowWord),
    /// Opens it; over this entry, if what stands there is still what was judged to be over.
    Open(Option<(Entry, FlowWord)>),
    /// Asks again, because this flow's backend keeps silent: it goes to another, if there is one.
    Ask(FlowWord),
}

/// Advances the packet's flow, or says that it opens one.
#[inline(always)]
pub fn follow<C: Context>(
    context: &C,
    own: Option<Entry>,
    flags: Flags,
    opening: &Opening,
) -> Result<Next, Verdict> {
    let protocol = opening.protocol;
    let openers = if opening.balance().is_by_hash() { Openers::Any } else { Openers::First };
    let Some(entry) = own else {
        return match conntrack::decide(None, protocol, flags, openers) {
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
    match conntrack::decide(Some(known), protocol, flags, openers) {
        Decision::Refuse(verdict) => Err(verdict),
        Decision::Choose => Ok(Next::Open(Some((entry, word)))),
        Decision::Stay(State::SynSent)
            if opening.fails_over() && failover::is_silent(word.state(), flags, entry.age()) =>
        {
            Ok(Next::Ask(word))
        }
        Decision::Stay(state) => {
            if matches!(word.state(), State::SynReceived) && !matches!(state, State::SynReceived) {
                flood::ends();
            }
            entry.advance(word, state, flags, Sender::Client);
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
