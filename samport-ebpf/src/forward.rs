//! The way in: client to backend.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::programs::TcContext;
use samport_common::conntrack::{self, Decision, Known, Openers, Sender, State};
use samport_common::failover;
use samport_common::family::Address;
use samport_common::flow::{ClientWay, EndpointKey, FlowKey, FlowWord, Lane, ServiceId};
use samport_common::layout::{Backend, Life, Scope, Service, Stands, program, service};
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

/// Sends a packet of an open flow to its backend, and leaves what is not ours alone: enough for nearly
/// every packet. The others are [`choose_one`]'s, in a program of its own that is not in these ones' way.
#[inline(always)]
pub fn run<P: Tables>(skb: &Skb, seat: Seat) -> Done {
    match apply::parse::<P, _>(skb) {
        Ok(packet) => follow_on::<P>(skb, seat, &packet),
        Err(aside) => step_aside(aside),
    }
}

/// [`run`] with a parser that has a stack of its own: IPv6 needs it.
#[inline(always)]
pub fn run_wide<P: Tables>(skb: &Skb) -> Done {
    match apply::parse_whole_apart::<P>(skb) {
        Ok(packet) => follow_on::<P>(skb, skb.seat(), packet),
        Err(aside) => step_aside(aside),
    }
}

#[inline(always)]
fn follow_on<P: Tables>(skb: &Skb, seat: Seat, packet: &Packet<P::Addr>) -> Done {
    if !maps::is_listened_on(packet.protocol, packet.destination.port) {
        return Verdict::NotOurs.into();
    }
    match go_on::<P, _>(skb, seat, packet) {
        Some(on) => Done::Outcome(send_on::<P>(skb, packet, &on, seat.into())),
        // What passes by on its way to another machine's port is dismissed here.
        None if service_of::<P>(packet).is_none() => Verdict::NotOurs.into(),
        None => Done::GoOn(program::CHOOSE),
    }
}

/// Finds the packet's backend and sends it there: one look, one draw.
#[inline(always)]
pub fn choose_one<P: Tables>(skb: &Skb) -> Done {
    let packet = match apply::parse_apart::<P>(skb) {
        Ok(packet) => packet,
        Err(aside) => return step_aside(aside),
    };
    let chosen = choose_by_number::<P>(skb.pointer_to_context(), packet);
    if chosen & (CROWDED | REFUSED) == 0 {
        #[allow(clippy::cast_possible_truncation, reason = "the lower half is what is wanted")]
        return Done::Outcome(send_apart::<P>(skb, packet, chosen as u32));
    }
    if chosen & CROWDED != 0 {
        return Done::GoOn(program::CROWDED);
    }
    #[allow(clippy::cast_possible_truncation, reason = "the lower half is what is wanted")]
    let verdict = Verdict::from_number(chosen as u32).unwrap_or(Verdict::BackendUnset);
    give_up(skb, verdict)
}

/// Bits of what [`choose_by_number`] returns.
const REFUSED: u64 = 1 << 32;
const CROWDED: u64 = 1 << 33;

/// [`choose`] in a function of its own: the backend's number, or [`REFUSED`] and the verdict's, or
/// [`CROWDED`].
#[inline(never)]
fn choose_by_number<P: Tables>(ctx: *mut __sk_buff, packet: &'static Packet<P::Addr>) -> u64 {
    let skb = Skb::new(TcContext::new(ctx));
    match choose::<P, _>(&skb, skb.seat(), packet) {
        Ok(word) => u64::from(word.backend()),
        Err(Trouble::Verdict(verdict)) => REFUSED | verdict as u64,
        Err(Trouble::Crowded) => CROWDED,
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
    let place = match own {
        Some(entry) => Place::Entry(entry, judged),
        None => Place::Lane(Lane::FIRST, Insert::New),
    };
    Ok(choice::store::<P, C>(context, packet, place, &opening, chosen)?)
}

/// The flow of a packet that just goes on with it. Whatever is otherwise in any way is left to the
/// long way, which says the same of such a packet.
///
/// Who opened the flow was allowed to; a service that allows only some has no shortcut, because they
/// may be others by now. Only the flow's own device counts, because not every device leads to every
/// frontend.
#[inline(always)]
pub fn go_on<P: Tables, C: Context>(
    context: &C,
    seat: Seat,
    packet: &Packet<P::Addr>,
) -> Option<GoingOn> {
    let service = match maps::listens::<P>(packet.protocol, packet.destination.port) {
        Stands::For(service) => service,
        Stands::ForNone | Stands::ForSeveral => return None,
    };
    let entry = flows::find_at_once::<P>(FlowKey::new(packet.source, service, Lane::FIRST))?;
    let word = entry.word();
    if entry.vip::<P>() != packet.destination
        || entry.way() != way_of(context, seat)
        || !conntrack::goes_on(word.state(), packet.flags)
        || (seat != Seat::Container && !context.is_for_host())
    {
        return None;
    }
    let backend = maps::backend(word.backend())?;
    // A backend that has dialled itself is another thing to be told from others by.
    if !serves_in(word, backend) || maps::endpoint::<P>(backend).addr == packet.source.addr {
        return None;
    }
    let now_tick = flows::now_tick_at_once();
    // A datagram that comes too late begins another flow.
    if packet.protocol == Protocol::Udp && entry.is_over(word, now_tick) {
        return None;
    }
    let next = conntrack::step(word.state(), packet.flags, Sender::Client);
    pass(entry, word, next, packet.flags, now_tick);
    Some(GoingOn { id: word.backend(), backend })
}

/// Where a packet of an open flow goes.
pub struct GoingOn {
    pub id: u32,
    pub backend: &'static Backend,
}

/// Rewrites a packet of an open flow for its backend and sends it off.
#[inline(always)]
fn send_on<P: Tables>(
    skb: &Skb,
    packet: &Packet<P::Addr>,
    on: &GoingOn,
    from: apply::Sender,
) -> Outcome {
    let plan = rewrite::plan::<P>(packet, End::Destination, maps::endpoint::<P>(on.backend));
    if apply::apply(skb, &plan.bounded(), from).is_none() {
        return Verdict::RewriteFailed.into();
    }
    deliver::to_backend(skb, on.id, on.backend)
}

/// Takes note of a client's packet in its flow.
#[inline(always)]
fn pass(entry: Entry, word: FlowWord, next: State, flags: Flags, now_tick: u32) {
    if matches!(word.state(), State::SynReceived) && !matches!(next, State::SynReceived) {
        flood::ends();
    }
    entry.advance(word, next, flags, Sender::Client);
    entry.touch(now_tick);
}

/// How replies get to who sends packets that come in here.
#[inline(always)]
fn way_of<C: Context>(context: &C, seat: Seat) -> ClientWay {
    match seat {
        Seat::Container => ClientWay::into_container(context.ifindex()),
        _ => ClientWay::out_of(context.ifindex()),
    }
}

/// The service that a packet is for.
#[inline(always)]
fn service_of<P: Tables>(packet: &Packet<P::Addr>) -> Option<&'static Service> {
    P::service(&EndpointKey::new(packet.destination, packet.protocol.number()))
}

/// Finds the service a packet is for, and whether it may be. That its port is one of ours was asked
/// before.
#[inline(always)]
pub fn classify<P: Tables, C: Context>(
    context: &C,
    seat: Seat,
    packet: &Packet<P::Addr>,
) -> Result<Opening, Verdict> {
    let service = service_of::<P>(packet).ok_or(Verdict::NotOurs)?;
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
    Ok(Opening {
        service,
        id,
        protocol,
        flags: packet.flags,
        way: way_of(context, seat),
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
    /// Opens it; over its entry, if what stands there is still this word, which was judged to be over.
    /// All zero without an entry, which is no flow's word: an option would be one more thing that the
    /// verifier does not know to go with another.
    Open(FlowWord),
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
            Decision::Choose | Decision::Stay(_) => Ok(Next::Open(FlowWord::from_bits(0))),
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
        Decision::Choose => Ok(Next::Open(word)),
        Decision::Stay(State::SynSent)
            if opening.fails_over() && failover::is_silent(word.state(), flags, entry.age()) =>
        {
            Ok(Next::Ask(word))
        }
        Decision::Stay(state) => {
            pass(entry, word, state, flags, opening.now_tick);
            // Replies follow the client when it comes in by another device.
            entry.follow_to(opening.way, || context.read(ethernet::SOURCE.start));
            Ok(Next::Follow(word))
        }
    }
}

/// Whether the backend a flow was opened to still takes its packets.
#[inline(always)]
pub fn serves(word: FlowWord) -> bool {
    maps::backend(word.backend()).is_some_and(|backend| serves_in(word, backend))
}

#[inline(always)]
fn serves_in(word: FlowWord, backend: &'static Backend) -> bool {
    Life::from_byte(backend.life).serves() && backend.generation == word.generation()
}

/// Rewrites the packet for a backend and sends it off.
#[inline(always)]
pub fn send<P: Tables>(skb: &Skb, packet: &Packet<P::Addr>, id: u32) -> Outcome {
    let Some(backend) = maps::backend(id) else {
        return Verdict::BackendUnset.into();
    };
    let to = maps::endpoint::<P>(backend);
    let plan = rewrite::plan::<P>(packet, End::Destination, to).bounded();
    if apply::apply(skb, &plan, apply::Sender::Anybody).is_none() {
        return Verdict::RewriteFailed.into();
    }
    if to.addr == packet.source.addr {
        // A backend that dials its own service and gets itself: from its own address it would take
        // nothing. The address it has dialled is one it knows the way to.
        let disguised = samport_common::flow::Endpoint {
            addr: packet.destination.addr,
            port: packet.source.port,
        };
        let plan = rewrite::plan::<P>(packet, End::Source, disguised).bounded().after_another();
        if apply::apply(skb, &plan, apply::Sender::Anybody).is_none() {
            return Verdict::RewriteFailed.into();
        }
    }
    deliver::to_backend(skb, id, backend)
}
