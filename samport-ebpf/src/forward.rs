//! The way in: client to backend.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::programs::TcContext;
use samport_common::conntrack::{self, Decision, Known, Openers, Sender, State};
use samport_common::failover;
use samport_common::family::Address;
use samport_common::flow::{EndpointKey, FlowKey, FlowWord, ProbeSlot, ReplyPath, ServiceId};
use samport_common::layout::{
    Backend, BackendState, PortService, Scope, Service, failure, flow_hint, program, service,
};
use samport_common::outbound;
use samport_common::packet::{self, Packet, Special};
use samport_common::rewrite::{self, End};
use samport_common::source::Move;
use samport_common::verdict::Verdict;
use samport_common::wire::ethernet;
use samport_common::wire::protocol::Protocol;

use crate::choice::{self, NewFlow, OpenError};
use crate::context::{Context, Hook};
use crate::flood;
use crate::flows::{self, FlowRef, FlowSlot, Probe};
use crate::maps::{self, Insert, Tables};
use crate::nat;
use crate::outlier;
use crate::redirect;
use crate::reverse;
use crate::room;
use crate::skb::{Skb, Unserved};
use crate::tunnel;
use crate::{Next, Outcome};

/// Sends a packet of an open flow to its backend, and leaves what is not ours alone: enough for nearly
/// every packet. The others are [`choose_one`]'s, in a program of its own that is not in these ones' way.
#[inline(always)]
pub fn run<P: Tables>(skb: &Skb, hook: Hook) -> Next {
    match nat::parse::<P, _>(skb) {
        Ok(packet) => run_fast_path::<P>(skb, hook, &packet),
        Err(special) => dispatch_special(special),
    }
}

/// [`run`] with a parser that has a stack of its own: IPv6 needs it.
#[inline(always)]
pub fn run_at_hook<P: Tables>(skb: &Skb) -> Next {
    match nat::parse_whole_subprog::<P>(skb) {
        Ok(packet) => run_fast_path::<P>(skb, skb.hook(), packet),
        Err(special) => dispatch_special(special),
    }
}

#[inline(always)]
fn run_fast_path<P: Tables>(skb: &Skb, hook: Hook, packet: &Packet<P::Addr>) -> Next {
    if !maps::is_listened_on(packet.protocol, packet.destination.port) {
        return if hook == Hook::Bridge {
            reverse::at_bridge::<P>(packet)
        } else {
            Verdict::NotOurs.into()
        };
    }
    match fast_path::<P, _>(skb, hook, packet) {
        Some(hit) => Next::Outcome(send_hit::<P>(skb, packet, &hit, hook.into())),
        // What passes by on its way to another machine's port is dismissed here.
        None if service_of::<P>(hook, packet).is_none() => of_no_service(hook, packet),
        None => Next::TailCall(program::CHOOSE),
    }
}

/// What becomes of a packet for a port that is looked at, but for no service: it may be the tunnel's.
#[inline(always)]
fn of_no_service<A: Address>(hook: Hook, packet: &Packet<A>) -> Next {
    if maps::is_clustered() && hook == Hook::Interface && tunnel::is_of_tunnel(packet) {
        return Next::TailCall(program::UNWRAP);
    }
    Verdict::NotOurs.into()
}

/// Finds the packet's backend and sends it there: one look-up, one selection.
#[inline(always)]
pub fn choose_one<P: Tables>(skb: &Skb) -> Next {
    let packet = match nat::parse_subprog::<P>(skb) {
        Ok(packet) => packet,
        Err(special) => return dispatch_special(special),
    };
    let chosen = choose_packed::<P>(skb.pointer_to_context(), packet);
    if chosen & (SLOW_PATH | REFUSED) == 0 {
        if chosen & SILENT != 0 {
            note_silence(chosen);
        }
        #[allow(clippy::cast_possible_truncation, reason = "the lower half is what is wanted")]
        return Next::Outcome(send_subprog::<P>(skb, packet, chosen as u32));
    }
    if chosen & SLOW_PATH != 0 {
        return Next::TailCall(program::SLOW_PATH);
    }
    #[allow(clippy::cast_possible_truncation, reason = "the lower half is what is wanted")]
    let verdict = Verdict::from_number(chosen as u32).unwrap_or(Verdict::BackendUnset);
    give_up(skb, verdict)
}

/// Bits of what [`choose_packed`] returns.
const REFUSED: u64 = 1 << 32;
const SLOW_PATH: u64 = 1 << 33;
/// Beside a backend's number: it has not answered this flow's datagrams yet.
const SILENT: u64 = 1 << 34;

/// Asks for a check of a backend that does not answer datagrams. Many a protocol has no answers, and many a server
/// answers no more than so often: the flow stays.
#[inline(always)]
#[allow(clippy::cast_possible_truncation, reason = "the lower half is what is wanted")]
fn note_silence(chosen: u64) {
    let id = chosen as u32;
    if let Some(backend) = maps::backend(id) {
        let word = FlowWord::new(id, backend.generation, State::Unanswered);
        outlier::ask_for_check(word.to_bits(), failure::SILENT, flows::now_tick());
    }
}

/// [`choose`] in a function of its own: the backend's number, or [`REFUSED`] and the verdict's, or
/// [`SLOW_PATH`].
#[inline(never)]
fn choose_packed<P: Tables>(ctx: *mut __sk_buff, packet: &'static Packet<P::Addr>) -> u64 {
    let skb = Skb::new(TcContext::new(ctx));
    match choose::<P, _>(&skb, skb.hook(), packet) {
        Ok(hit) => u64::from(hit.word.backend()) | if hit.is_silent { SILENT } else { 0 },
        Err(OpenError::Verdict(verdict)) => REFUSED | verdict as u64,
        Err(OpenError::SlowPath) => SLOW_PATH,
    }
}

/// What becomes of a packet for a service that nobody serves: its client is told.
#[inline(always)]
pub fn give_up(skb: &Skb, verdict: Verdict) -> Next {
    let why = match verdict {
        Verdict::NoBackend => Unserved::NoBackend,
        Verdict::BackendGone => Unserved::BackendGone,
        other => return other.into(),
    };
    skb.set_unserved(why);
    Next::TailCall(program::RESET)
}

/// [`send`] in a function of its own.
#[inline(always)]
pub fn send_subprog<P: Tables>(
    skb: &Skb,
    packet: &'static Packet<P::Addr>,
    backend: u32,
) -> Outcome {
    Outcome::from_bits(send_packed::<P>(skb.pointer_to_context(), packet, backend))
}

#[inline(never)]
fn send_packed<P: Tables>(
    ctx: *mut __sk_buff,
    packet: &'static Packet<P::Addr>,
    backend: u32,
) -> u64 {
    send::<P>(&Skb::new(TcContext::new(ctx)), packet, backend).to_bits()
}

/// The program for what is no simple packet.
#[inline(always)]
pub fn dispatch_special(special: Special) -> Next {
    match special {
        Special::Leave(verdict) => verdict.into(),
        Special::Icmp => Next::TailCall(program::ICMP),
        Special::First => Next::TailCall(program::SLOW_PATH),
        Special::Later => Next::TailCall(program::LATER),
    }
}

/// The backend the packet belongs to: its flow's, or a new one if it opens a flow.
#[inline(always)]
pub fn choose<P: Tables, C: Context>(
    context: &C,
    hook: Hook,
    packet: &Packet<P::Addr>,
) -> Result<ExistingFlow, OpenError> {
    let mut new_flow = classify::<P, C>(context, hook, packet)?;
    let own = match flows::lookup::<P>(packet.source, packet.destination, new_flow.id) {
        Probe::Hit(entry) => Some(entry),
        Probe::Free => None,
        Probe::Collision => return Err(OpenError::SlowPath),
    };
    let judged = match use_flow::<P, C>(context, packet, own, &new_flow)? {
        Lookup::Forward(hit) => return Ok(hit),
        // The port may have a living flow in another probe slot: its backend must not get this one.
        Lookup::Create(_) if own.is_some() && maps::flow_hints() & flow_hint::PROBE_SLOTS != 0 => {
            return Err(OpenError::SlowPath);
        }
        Lookup::Create(judged) => judged,
        Lookup::Retry(_) => return Err(OpenError::SlowPath),
    };
    if answers_outbound::<P, C>(context, packet) {
        return Err(Verdict::OutboundAnswer.into());
    }
    let chosen = choice::select(&new_flow)?;
    // Last of what may send the packet on to the slow path, which counts those it gets.
    if new_flow.protocol == Protocol::Tcp && flood::begins(new_flow.now_tick) {
        return Err(OpenError::SlowPath);
    }
    let slot = match own {
        Some(entry) => FlowSlot::Existing(entry, judged),
        None if room::has_room::<P>(new_flow.id) => FlowSlot::New(ProbeSlot::FIRST, Insert::New),
        None => return Err(OpenError::SlowPath),
    };
    new_flow.validate(context.source_marks::<P>(packet))?;
    match choice::store::<P, C>(context, packet, slot, &new_flow, chosen) {
        Err(Verdict::FlowInsertFailed) => Err(OpenError::SlowPath),
        result => Ok(result?.into()),
    }
}

/// The flow of a packet that just goes on with it. Whatever is otherwise in any way is left to the
/// long way, which says the same of such a packet.
///
/// Who opened the flow was allowed to; a service that allows only some has no shortcut, because they
/// may be others by now. Only the flow's own device counts, because not every device leads to every
/// frontend.
#[inline(always)]
pub fn fast_path<P: Tables, C: Context>(
    context: &C,
    hook: Hook,
    packet: &Packet<P::Addr>,
) -> Option<FastHit> {
    let service = match maps::listens::<P>(packet.protocol, packet.destination.port) {
        PortService::One(service) => service,
        PortService::None | PortService::Several => return None,
    };
    let entry = flows::find_fast::<P>(FlowKey::new(packet.source, service, ProbeSlot::FIRST))?;
    let word = entry.word();
    if entry.vip::<P>() != packet.destination
        || entry.reply_path() != reply_path_of(context, hook)
        || !conntrack::goes_on(word.state(), packet.flags)
        || (hook != Hook::Container && !context.is_for_host())
    {
        return None;
    }
    let backend = maps::backend(word.backend())?;
    // A backend that has dialled itself is another thing to be told from others by.
    if !serves_in(packet.protocol, word, backend)
        || maps::endpoint::<P>(backend).addr == packet.source.addr
    {
        return None;
    }
    let now_tick = flows::now_tick_fast();
    // A datagram that comes too late begins another flow.
    if packet.protocol == Protocol::Udp && entry.is_over(word, now_tick) {
        return None;
    }
    pass(context, entry, word, packet, now_tick);
    Some(FastHit { id: word.backend(), backend })
}

/// Where a packet of an open flow goes.
pub struct FastHit {
    pub id: u32,
    pub backend: &'static Backend,
}

/// Rewrites a packet of an open flow for its backend and sends it off.
#[inline(always)]
fn send_hit<P: Tables>(
    skb: &Skb,
    packet: &Packet<P::Addr>,
    hit: &FastHit,
    from: nat::Sender,
) -> Outcome {
    if maps::is_clustered() && redirect::is_node(hit.backend) {
        return redirect::to_node(skb, hit.id, hit.backend, false);
    }
    let plan = rewrite::plan::<P>(packet, End::Destination, maps::endpoint::<P>(hit.backend));
    if nat::apply(skb, &plan.bounded(), from).is_none() {
        return Verdict::RewriteFailed.into();
    }
    redirect::to_backend(skb, hit.id, hit.backend)
}

/// Takes note of a client's packet in its flow.
#[inline(always)]
fn pass<A: Address, C: Context>(
    context: &C,
    entry: FlowRef,
    word: FlowWord,
    packet: &Packet<A>,
    now_tick: u32,
) {
    if !conntrack::is_plain(word.state(), packet.flags, Sender::Client) {
        let next = entry.advance(word, &packet::segment(context, packet), Sender::Client);
        if matches!(word.state(), State::SynReceived) && !matches!(next, State::SynReceived) {
            flood::ends();
        }
    }
    entry.touch(now_tick);
}

/// How replies get to who sends packets that come in here.
#[inline(always)]
pub fn reply_path_of<C: Context>(context: &C, hook: Hook) -> ReplyPath {
    match hook {
        Hook::Container => ReplyPath::into_container(context.ifindex()),
        Hook::Tunnel if maps::is_clustered() => ReplyPath::through_tunnel(context.node()),
        _ => ReplyPath::out_of(context.ifindex()),
    }
}

/// A value of `SERVICES`, and the fold of its key, which says whether it is still that.
pub struct Dialled {
    pub service: &'static Service,
    pub key_fold: u16,
}

/// The service that a packet is for. What comes out of the tunnel was for an address of another node, and is for the
/// backends of this one, as is what a container of this machine dials.
#[inline(always)]
pub fn service_of<P: Tables>(hook: Hook, packet: &Packet<P::Addr>) -> Option<Dialled> {
    let key = EndpointKey::new(packet.destination, packet.protocol.number());
    if !maps::is_clustered() || hook == Hook::Interface {
        return found::<P>(&key);
    }
    if hook != Hook::Tunnel {
        let own = found::<P>(&key)?;
        if own.service.flags & service::NODES == 0 {
            return Some(own);
        }
    }
    found::<P>(&maps::local_key::<P>(&key))
}

#[inline(always)]
fn found<P: Tables>(key: &EndpointKey<P::Addr>) -> Option<Dialled> {
    P::service(key).map(|service| Dialled { service, key_fold: key.fold() })
}

/// Finds the service a packet is for, and whether it may be. That its port is one of ours was asked
/// before.
#[inline(always)]
pub fn classify<P: Tables, C: Context>(
    context: &C,
    hook: Hook,
    packet: &Packet<P::Addr>,
) -> Result<NewFlow, Verdict> {
    let dialled = service_of::<P>(hook, packet).ok_or(Verdict::NotOurs)?;
    let service = dialled.service;
    if !may_dial(Scope::from_byte(service.scope), hook) {
        return Err(Verdict::NotOurs);
    }
    // A container's frames are addressed to its bridge, which is not where we look.
    if hook != Hook::Container && !context.is_for_host() {
        return Err(Verdict::OtherHost);
    }
    if service.flags & service::RESTRICTED != 0 && !P::is_allowed(service.id, packet.source.addr) {
        return Err(Verdict::NotAllowed);
    }
    new_flow_of(context, hook, packet, &dialled)
}

/// What is known of a packet that a service may have.
#[inline(always)]
pub fn new_flow_of<A: Address, C: Context>(
    context: &C,
    hook: Hook,
    packet: &Packet<A>,
    &Dialled { service, key_fold }: &Dialled,
) -> Result<NewFlow, Verdict> {
    let protocol = packet.protocol;
    let id = ServiceId::new(service.id).ok_or(Verdict::BackendUnset)?;
    Ok(NewFlow {
        service,
        id,
        key_fold,
        protocol,
        flags: packet.flags,
        reply_path: reply_path_of(context, hook),
        marks: 0,
        now_tick: flows::now_tick(),
        attempt: context.attempt(),
    })
}

/// Whether a frontend of this scope serves packets that come in here.
#[inline(always)]
pub fn may_dial(scope: Scope, hook: Hook) -> bool {
    matches!(scope, Scope::External) || hook != Hook::Interface
}

/// Where a packet goes.
pub struct ExistingFlow {
    /// Its flow's word.
    pub word: FlowWord,
    /// Whether the backend should have answered its datagrams by now.
    pub is_silent: bool,
}

impl From<FlowWord> for ExistingFlow {
    #[inline(always)]
    fn from(word: FlowWord) -> Self {
        Self { word, is_silent: false }
    }
}

/// What a packet does with its flow.
pub enum Lookup {
    /// Goes on in it, to this backend.
    Forward(ExistingFlow),
    /// Opens it; over its entry, if what stands there is still this word, which was judged to be over.
    /// All zero without an entry, which is no flow's word: an option would be one more thing that the
    /// verifier does not know to go with another.
    Create(FlowWord),
    /// Asks again, because this flow's backend keeps silent or has refused: it goes to another, if there is one.
    Retry(FlowWord),
}

/// Advances the packet's flow, or says that it opens one.
#[inline(always)]
pub fn use_flow<P: Tables, C: Context>(
    context: &C,
    packet: &Packet<P::Addr>,
    own: Option<FlowRef>,
    new_flow: &NewFlow,
) -> Result<Lookup, Verdict> {
    let (protocol, flags) = (new_flow.protocol, packet.flags);
    let openers = if new_flow.balance().is_by_hash() { Openers::Any } else { Openers::First };
    let Some(entry) = own else {
        return match conntrack::decide(None, protocol, flags, openers) {
            Decision::Refuse(verdict) => Err(verdict),
            Decision::Choose | Decision::Stay => Ok(Lookup::Create(FlowWord::from_bits(0))),
        };
    };
    let word = entry.word();
    let known = Known {
        state: word.state(),
        over: entry.is_over(word, new_flow.now_tick),
        backend_serves: serves(protocol, word),
    };
    match conntrack::decide(Some(known), protocol, flags, openers) {
        Decision::Refuse(verdict) => return Err(verdict),
        Decision::Choose if is_refused(entry, word, new_flow) => return Ok(Lookup::Retry(word)),
        Decision::Choose => return Ok(Lookup::Create(word)),
        Decision::Stay => {}
    }
    // Before anything of the flow is changed by a packet that may be anybody's.
    let reply_path = entry.reply_path();
    let moved = if reply_path == new_flow.reply_path {
        Move::Stay
    } else {
        Move::from_number(context.source_move::<P>(packet, reply_path.to_bits(), entry.marks()))
    };
    match moved {
        Move::Refuse => return Err(Verdict::SpoofedSource),
        Move::Reopen => return Ok(Lookup::Create(word)),
        Move::Stay | Move::Follow => {}
    }
    if new_flow.fails_over() && failover::is_silent(word.state(), flags, entry.age()) {
        return Ok(Lookup::Retry(word));
    }
    pass(context, entry, word, packet, new_flow.now_tick);
    if moved == Move::Follow {
        entry.set_reply_path(new_flow.reply_path, || context.read(ethernet::SOURCE.start));
    }
    let is_silent = failover::is_silent_to_datagrams(word.state(), entry.age());
    Ok(Lookup::Forward(ExistingFlow { word, is_silent }))
}

/// Whether a packet that would open a flow answers what the host or a container has begun.
#[inline(always)]
pub fn answers_outbound<P: Tables, C: Context>(context: &C, packet: &Packet<P::Addr>) -> bool {
    outbound::may_be_answer(packet.protocol, packet.flags) && context.answers_outbound::<P>(packet)
}

/// Whether the flow's client asks again because a refusal was held back.
#[inline(always)]
fn is_refused(entry: FlowRef, word: FlowWord, new_flow: &NewFlow) -> bool {
    matches!(word.state(), State::Failed)
        && entry.idle_ticks(new_flow.now_tick) <= maps::timeout(State::Failed)
}

/// Whether the backend that a fragment's first went to still takes packets.
#[inline(always)]
pub fn takes_packets(word: FlowWord) -> bool {
    maps::backend(word.backend()).is_some_and(|backend| {
        BackendState::from_byte(backend.state).serves() && backend.generation == word.generation()
    })
}

/// Whether the backend a flow was opened to still takes its packets.
#[inline(always)]
pub fn serves(protocol: Protocol, word: FlowWord) -> bool {
    maps::backend(word.backend()).is_some_and(|backend| serves_in(protocol, word, backend))
}

#[inline(always)]
fn serves_in(protocol: Protocol, word: FlowWord, backend: &'static Backend) -> bool {
    BackendState::from_byte(backend.state).keeps(protocol)
        && backend.generation == word.generation()
}

/// Rewrites the packet for a backend and sends it off.
#[inline(always)]
pub fn send<P: Tables>(skb: &Skb, packet: &Packet<P::Addr>, id: u32) -> Outcome {
    let Some(backend) = maps::backend(id) else {
        return Verdict::BackendUnset.into();
    };
    if maps::is_clustered() && redirect::is_node(backend) {
        return redirect::to_node(skb, id, backend, packet.flags.syn());
    }
    let to = maps::endpoint::<P>(backend);
    let plan = rewrite::plan::<P>(packet, End::Destination, to).bounded();
    if nat::apply(skb, &plan, nat::Sender::Anybody).is_none() {
        return Verdict::RewriteFailed.into();
    }
    if to.addr == packet.source.addr {
        if !backend.answers_on.contains(skb.ifindex()) {
            // From elsewhere it would come in the name of what it has dialled.
            return Verdict::SpoofedSource.into();
        }
        // A backend that dials its own service and gets itself: from its own address it would take
        // nothing. The address it has dialled is one it knows the way to.
        let disguised = samport_common::flow::Endpoint {
            addr: packet.destination.addr,
            port: packet.source.port,
        };
        let plan = rewrite::plan::<P>(packet, End::Source, disguised).bounded().after_another();
        if nat::apply(skb, &plan, nat::Sender::Anybody).is_none() {
            return Verdict::RewriteFailed.into();
        }
    }
    redirect::to_backend(skb, id, backend)
}
