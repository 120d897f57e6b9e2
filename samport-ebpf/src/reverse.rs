//! The way back: a backend's reply gets the address the client dialled.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::programs::TcContext;
use samport_common::conntrack::{self, Sender, State};
use samport_common::failover::{self, Refusals};
use samport_common::family::{Address, Family as _, V4};
use samport_common::flow::{Endpoint, EndpointKey, Flow, FlowKey, FlowWord, ProbeSlot, ServiceId};
use samport_common::frame::Frame as _;
use samport_common::layout::{
    Backend, BackendState, DeviceInfo, DeviceSet, ForwardMode, PortService, ReverseNat, failure,
    program,
};
use samport_common::packet::{self, Packet, Special};
use samport_common::rewrite::{self, End};
use samport_common::source;
use samport_common::verdict::Verdict;
use samport_common::wire::ethernet;
use samport_common::wire::protocol::Protocol;
use samport_common::wire::tcp;

use crate::choice;
use crate::context::Hook;
use crate::exit::{self, Exit};
use crate::flows::{self, FlowRef};
use crate::maps::{self, Tables};
use crate::nat;
use crate::outlier;
use crate::redirect;
use crate::room;
use crate::skb::{Ends, Skb, ToNode};
use crate::tunnel;
use crate::{Next, Outcome};

/// Restores a reply of an open flow and sends it to the client: nearly all are of that kind. A
/// container's other traffic is dismissed by its source port.
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

/// The program for what is no simple packet.
#[inline(always)]
fn dispatch_special(special: Special) -> Next {
    match special {
        Special::Leave(verdict) => verdict.into(),
        Special::Icmp => Next::TailCall(program::REVERSE_ICMP),
        Special::First => Next::TailCall(program::REVERSE_FIRST),
        Special::Later => Next::TailCall(program::LATER),
    }
}

#[inline(always)]
fn run_fast_path<P: Tables>(skb: &Skb, hook: Hook, packet: &Packet<P::Addr>) -> Next {
    let service = match maps::answers::<P>(packet.protocol, packet.source.port) {
        PortService::One(service) => service,
        PortService::Several => return Next::TailCall(program::ANSWER),
        PortService::None => return no_reply(hook, packet),
    };
    let key = FlowKey::new(packet.destination, service, ProbeSlot::FIRST);
    let Some(entry) = flows::find_fast::<P>(key) else {
        return of_no_flow::<P>(hook, packet, service);
    };
    let Some(reply) = fast_path::<P>(skb, hook, packet, entry) else {
        return Next::TailCall(program::ANSWER);
    };
    let exit = Exit::from(reply.entry.reply_path());
    if let Some(next) = too_big_for_tunnel::<P>(skb, exit) {
        return next;
    }
    if is_too_big(skb, hook, exit) {
        return too_big::<P>(skb);
    }
    pass(skb, reply.entry, packet);
    reply.entry.touch(flows::now_tick_fast());
    if restore::<P>(skb, packet, &reply, hook.into()).is_none() {
        return Verdict::RewriteFailed.into();
    }
    Next::Outcome(leave(skb, hook, &reply, exit, packet.flags.syn()))
}

/// What a bridge hands to the host's stack. A container's replies are taken at its veth; until there is a program on
/// one that is new, they get here, and must not go on: their client has dialled another address, and would reset the
/// connection. TCP sends them again.
#[inline(always)]
pub fn at_bridge<P: Tables>(packet: &Packet<P::Addr>) -> Next {
    match maps::answers::<P>(packet.protocol, packet.source.port) {
        PortService::None => Verdict::NotOurs.into(),
        PortService::One(service)
            if maps::flow_hints() == 0
                && flows::find_fast::<P>(FlowKey::new(
                    packet.destination,
                    service,
                    ProbeSlot::FIRST,
                ))
                .is_none() =>
        {
            Verdict::NotOurs.into()
        }
        PortService::One(_) | PortService::Several => Next::TailCall(program::ANSWER),
    }
}

/// [`run`] for whatever is otherwise in any way: in a program of its own, not in the others' way.
#[inline(always)]
pub fn answer<P: Tables>(skb: &Skb) -> Next {
    let Ok(packet) = nat::parse_subprog::<P>(skb) else {
        // It has been parsed before.
        return Verdict::RewriteFailed.into();
    };
    let hook = skb.hook();
    let Some(reply) = find_subprog::<P>(packet) else {
        return no_reply(hook, packet);
    };
    // Its own address looks like the host's to it, whose clients may use the same port.
    if reply.to_itself && is_the_hosts::<P>(skb.pointer_to_context(), packet) != 0 {
        return no_reply(hook, packet);
    }
    let word = reply.entry.word();
    if is_late::<P>(packet.source, &reply, word) {
        return Verdict::LateAnswer.into();
    }
    if !is_by_backend::<P>(skb, hook, &reply) {
        // What was too big at the veth is on its way to the stack, which tells the backend.
        if hook == Hook::Bridge && !skb.fits(reply.entry.reply_path().ifindex()) {
            return Verdict::NotAReply.into();
        }
        return no_answer(hook);
    }
    if hook == Hook::Bridge {
        // It is for the program on the bridge's own replies, or for that at egress.
        return Verdict::NotAReply.into();
    }
    if failover::refuses(word.state(), &packet::segment(skb, packet), reply.entry.sequences()) {
        return Next::TailCall(program::REFUSED);
    }
    let exit = match exit::of::<P>(skb, &packet.destination.addr, reply.entry) {
        Ok(exit) => exit,
        Err(verdict) => return verdict.into(),
    };
    if let Some(next) = too_big_for_tunnel::<P>(skb, exit) {
        return next;
    }
    if is_too_big(skb, hook, exit) {
        return too_big::<P>(skb);
    }
    advance(skb, packet, &reply);
    if restore_subprog::<P>(skb, packet, &reply).is_none() {
        return Verdict::RewriteFailed.into();
    }
    Next::Outcome(leave(skb, hook, &reply, exit, packet.flags.syn()))
}

/// 1 if a socket of this machine waits for the packet.
#[inline(never)]
fn is_the_hosts<P: Tables>(ctx: *mut __sk_buff, packet: &'static Packet<P::Addr>) -> u32 {
    let skb = Skb::new(TcContext::new(ctx));
    u32::from(skb.is_for_socket(packet.protocol, &Ends::of(packet)))
}

/// What becomes of a packet without a flow in the first probe slot. Most of them are answers to clients on this
/// machine, whose sockets were given the backend's address: dismissed here, if there can be no flow elsewhere.
#[inline(always)]
fn of_no_flow<P: Tables>(hook: Hook, packet: &Packet<P::Addr>, service: ServiceId) -> Next {
    let itself = Endpoint { addr: packet.source.addr, port: packet.destination.port };
    let key = FlowKey::new(itself, service, ProbeSlot::FIRST);
    if maps::flow_hints() == 0 && flows::find_fast::<P>(key).is_none() {
        return no_reply(hook, packet);
    }
    Next::TailCall(program::ANSWER)
}

/// The reply of a flow that just goes on. Whatever is otherwise in any way is left to the long way,
/// which says the same of such a packet.
#[inline(always)]
fn fast_path<P: Tables>(
    skb: &Skb,
    hook: Hook,
    packet: &Packet<P::Addr>,
    entry: FlowRef,
) -> Option<Reply> {
    let word = entry.word();
    let backend = maps::backend(word.backend())?;
    if maps::endpoint::<P>(backend) != packet.source
        || !is_by_usual_device(skb, hook, backend)
        || backend.generation != word.generation()
        || (hook != Hook::Egress && !exit::is_settled(entry))
        || !BackendState::from_byte(backend.state).serves()
        || !conntrack::goes_on(word.state(), packet.flags)
    {
        return None;
    }
    Some(Reply { entry, backend: word.backend(), to_itself: false })
}

/// Whether what comes from a backend's endpoint is that one's which has failed this flow: it is another's now or
/// nobody's.
#[inline(always)]
pub fn is_late<P: Tables>(from: Endpoint<P::Addr>, reply: &Reply, word: FlowWord) -> bool {
    if matches!(word.state(), State::Failed) {
        return true;
    }
    reply.entry.failed() != 0
        && maps::backend(word.backend()).is_none_or(|backend| maps::endpoint::<P>(backend) != from)
}

/// Whether a reply has come in by the device that its backend's replies usually come in by.
#[inline(always)]
fn is_by_usual_device(skb: &Skb, hook: Hook, backend: &'static Backend) -> bool {
    if hook == Hook::Egress
        && matches!(ForwardMode::from_byte(backend.forward_mode), ForwardMode::Child)
    {
        // All children of a macvlan parent leave by it.
        return skb.read(ethernet::SOURCE.start) == Some(backend.mac);
    }
    let [usual, ..] = backend.answers_on.ifindex;
    usual == skb.came_in_by(hook)
}

/// Whether the reply has come in by a device of its backend.
#[inline(always)]
pub fn is_by_backend<P: Tables>(skb: &Skb, hook: Hook, reply: &Reply) -> bool {
    let Some(backend) = maps::backend(reply.entry.word().backend()) else { return false };
    // All children of a macvlan parent leave by it. This one may have a veth too.
    if hook == Hook::Egress
        && matches!(ForwardMode::from_byte(backend.forward_mode), ForwardMode::Child)
    {
        return is_by_usual_device(skb, hook, backend);
    }
    let came_in_by = skb.came_in_by(hook);
    backend.answers_on.contains(came_in_by) || is_by_another_route::<P>(hook, backend, came_in_by)
}

/// Whether a reply of a backend on another machine may have come in by another device than the one the route
/// to it leads to: not from inside, and not where the kernel's filter is strict. What is seen at egress has
/// passed that filter.
#[inline(always)]
fn is_by_another_route<P: Tables>(hook: Hook, backend: &'static Backend, came_in_by: u32) -> bool {
    let [usual, ..] = backend.answers_on.ifindex;
    if !matches!(
        ForwardMode::from_byte(backend.forward_mode),
        ForwardMode::Neighbour | ForwardMode::Stack
    ) || usual == DeviceSet::HOST
        || came_in_by == DeviceSet::HOST
        || maps::device(usual).is_some_and(DeviceInfo::is_internal)
    {
        return false;
    }
    maps::device(came_in_by).is_none_or(|device| {
        let rp_filter = P::of_two([device.rp_filter, 0]);
        !device.is_internal() && (hook == Hook::Egress || rp_filter != source::STRICT)
    })
}

/// What becomes of a packet with a backend's source that is not that backend's. At egress the host has
/// forwarded it, by rules of its own, and it leaves as it came.
#[inline(always)]
pub fn no_answer(hook: Hook) -> Next {
    match hook {
        Hook::Egress => Verdict::NotAReply.into(),
        _ => Verdict::SpoofedSource.into(),
    }
}

/// A backend that refuses a connection: its client is not told while there is another to try.
#[inline(always)]
pub fn refused<P: Tables>(skb: &Skb) -> Next {
    let Ok(packet) = nat::parse_subprog::<P>(skb) else {
        // It has been parsed before.
        return Verdict::RewriteFailed.into();
    };
    let Some(reply) = find_subprog::<P>(packet) else {
        return Verdict::NotAReply.into();
    };
    if is_held_back::<P>(skb.pointer_to_context(), packet, reply.entry.pointer()) != 0 {
        return Verdict::RefusalHeld.into();
    }
    let exit = match exit::of::<P>(skb, &packet.destination.addr, reply.entry) {
        Ok(exit) => exit,
        Err(verdict) => return verdict.into(),
    };
    advance(skb, packet, &reply);
    if restore_subprog::<P>(skb, packet, &reply).is_none() {
        return Verdict::RewriteFailed.into();
    }
    Next::Outcome(leave(skb, skb.hook(), &reply, exit, packet.flags.syn()))
}

/// Takes note of the refusal. 1 if the flow's client is to try another backend.
#[inline(never)]
pub fn is_held_back<P: Tables>(
    ctx: *mut __sk_buff,
    packet: &'static Packet<P::Addr>,
    flow: *mut Flow,
) -> u32 {
    let Some(entry) = FlowRef::new(flow) else { return 0 };
    let skb = Skb::new(TcContext::new(ctx));
    let word = entry.word();
    if !failover::refuses(word.state(), &packet::segment(&skb, packet), entry.sequences()) {
        return 0;
    }
    maps::count_backend(word.backend(), |stats| stats.refused += 1);
    if !entry.fails_over() {
        return 0;
    }
    let (now_tick, client) = (flows::now_tick(), outlier::client::<P>(packet.destination.addr));
    let service = maps::service_dialled::<P>(entry.vip::<P>(), packet.protocol);
    let has_other = service.is_some_and(|service| {
        let nobody = Refusals::default();
        choice::has_other(service, word.backend(), nobody, client, now_tick)
    });
    let failed = word.with_state(State::Failed);
    if has_other && entry.exchange(word, failed).is_ok() {
        outlier::moves(word, failed);
        room::moves(entry, word, failed);
        // Evidence when the client asks again: only its SYN says what it has asked for.
        outlier::ask_for_check(word.to_bits(), failure::REFUSED, now_tick);
        1
    } else {
        outlier::add_evidence(word.to_bits(), client, failure::REFUSED, now_tick);
        0
    }
}

/// A reply's flow.
pub struct Reply {
    pub entry: FlowRef,
    pub backend: u32,
    /// Whether the backend has dialled itself: see `forward::send`.
    pub to_itself: bool,
}

/// What becomes of a packet that is no reply: a container may be a client too.
#[inline(always)]
pub fn no_reply<A: Address>(hook: Hook, packet: &Packet<A>) -> Next {
    if hook == Hook::Container && maps::is_listened_on(packet.protocol, packet.destination.port) {
        Next::TailCall(program::HAIRPIN)
    } else {
        Verdict::NotAReply.into()
    }
}

/// Where a reply goes on that does not fit through the tunnel to its client's node: before it is restored, because its
/// sender is to be told of the packet it has sent.
#[inline(always)]
pub fn too_big_for_tunnel<P: Tables>(skb: &Skb, exit: Exit) -> Option<Next> {
    if !maps::is_clustered() {
        return None;
    }
    let node = exit.reply_path().node()?;
    if tunnel::reply_fits::<P>(skb, node) {
        return None;
    }
    skb.set_to_node(ToNode::reply(node, false));
    Some(Next::TailCall(program::TOO_BIG))
}

/// Whether the client's side does not take a packet of this size.
#[inline(always)]
pub fn is_too_big(skb: &Skb, hook: Hook, exit: Exit) -> bool {
    if maps::is_clustered() && exit.reply_path().node().is_some() {
        return false;
    }
    hook != Hook::Egress && !skb.fits(exit.reply_path().ifindex())
}

/// What becomes of a reply that the client's side does not take: the host's stack, given it as it came, tells the
/// backend what size is right. Not where it may make fragments of it, which would leave with the backend's own address:
/// so it may not.
#[inline(always)]
pub fn too_big<P: Tables>(skb: &Skb) -> Next {
    if P::ETHER_TYPE == V4::ETHER_TYPE && skb.forbid_fragments().is_none() {
        return Verdict::RewriteFailed.into();
    }
    Verdict::ReplyTooBig.into()
}

/// Takes note of the reply in its flow.
#[inline(always)]
pub fn advance<A: Address>(skb: &Skb, packet: &Packet<A>, reply: &Reply) {
    let (before, state) = pass(skb, reply.entry, packet);
    if matches!((before.state(), state), (State::SynSent, State::SynReceived)) {
        outlier::accepts(before, reply.entry.age());
    }
    reply.entry.touch(flows::now_tick());
}

/// Takes note of what a backend's packet says; the word before and the state after.
#[inline(always)]
fn pass<A: Address>(skb: &Skb, entry: FlowRef, packet: &Packet<A>) -> (FlowWord, State) {
    let word = entry.word();
    if !conntrack::is_plain(word.state(), packet.flags, Sender::Backend) {
        return (word, entry.advance(word, &packet::segment(skb, packet), Sender::Backend));
    }
    if packet.flags.ack()
        && let Some(number) = skb.read(packet.l4 + tcp::ACKNOWLEDGEMENT.start)
    {
        entry.acknowledge(u32::from_be_bytes(number));
    }
    (word, word.state())
}

/// Gives the packet the source its client has dialled.
#[inline(always)]
pub fn restore<P: Tables>(
    skb: &Skb,
    packet: &Packet<P::Addr>,
    reply: &Reply,
    from: nat::Sender,
) -> Option<()> {
    let plan = rewrite::plan::<P>(packet, End::Source, reply.entry.vip::<P>()).bounded();
    nat::apply(skb, &plan, from)?;
    if reply.to_itself {
        let itself = Endpoint { addr: packet.source.addr, port: packet.destination.port };
        let plan = rewrite::plan::<P>(packet, End::Destination, itself).bounded();
        nat::apply(skb, &plan.after_another(), from)?;
    }
    Some(())
}

/// [`restore`] in a function of its own.
#[inline(always)]
pub fn restore_subprog<P: Tables>(
    skb: &Skb,
    packet: &'static Packet<P::Addr>,
    reply: &Reply,
) -> Option<()> {
    let flow = reply.entry.pointer();
    if restore_packed::<P>(skb.pointer_to_context(), packet, flow) == 0 { None } else { Some(()) }
}

/// 1 if it was done, 0 if not.
#[inline(never)]
fn restore_packed<P: Tables>(
    ctx: *mut __sk_buff,
    packet: &'static Packet<P::Addr>,
    flow: *mut Flow,
) -> u32 {
    let skb = Skb::new(TcContext::new(ctx));
    match found::<P>(flow, packet.destination.addr) {
        Some(reply) if restore::<P>(&skb, packet, &reply, nat::Sender::Anybody).is_some() => 1,
        _ => 0,
    }
}

/// Sends the restored packet off; `is_syn` if it is a segment of a handshake.
#[inline(always)]
pub fn leave(skb: &Skb, hook: Hook, reply: &Reply, exit: Exit, is_syn: bool) -> Outcome {
    let (backend, reply_path) = (reply.backend, exit.reply_path());
    let outcome = redirect::to_client(skb, hook, backend, reply_path, is_syn, || reply.entry.mac());
    if exit.is_unresolved() { outcome.with_verdict(Verdict::ReplyUnresolved) } else { outcome }
}

/// [`find`] as functions of their own, with a stack of their own: for programs that have not enough.
/// `packet` goes from backend to client.
#[inline(always)]
pub fn find_subprog<P: Tables>(packet: &'static Packet<P::Addr>) -> Option<Reply> {
    let to = packet.destination.addr;
    found::<P>(find_flow::<P>(packet, 0), to).or_else(|| found::<P>(find_flow::<P>(packet, 1), to))
}

/// The reply whose flow's entry was found, unless it is null.
#[inline(always)]
pub fn found<P: Tables>(flow: *mut Flow, to: P::Addr) -> Option<Reply> {
    let entry = FlowRef::new(flow)?;
    let to_itself = entry.vip::<P>().addr == to;
    Some(Reply { entry, backend: entry.word().backend(), to_itself })
}

/// The flow's entry, or null. `to_itself` is 1 for a backend that may have dialled itself.
#[inline(never)]
fn find_flow<P: Tables>(packet: &'static Packet<P::Addr>, to_itself: u32) -> *mut Flow {
    let (source, client) = (packet.source, packet.destination);
    let found =
        reverse_nat_of::<P>(packet.protocol, source).and_then(|reverse_nat| match to_itself {
            0 => find_as::<P>(reverse_nat, client),
            _ => find_to_itself::<P>(reverse_nat, source, client),
        });
    match found {
        Some(entry) => entry.pointer(),
        None => core::ptr::null_mut(),
    }
}

/// The flow of what a backend sends from `source` to `client`.
#[inline(always)]
pub fn find<P: Tables>(
    protocol: Protocol,
    source: Endpoint<P::Addr>,
    client: Endpoint<P::Addr>,
) -> Option<Reply> {
    let reverse_nat = reverse_nat_of::<P>(protocol, source)?;
    if let Some(entry) = find_as::<P>(reverse_nat, client) {
        return Some(Reply { entry, backend: entry.word().backend(), to_itself: false });
    }
    let entry = find_to_itself::<P>(reverse_nat, source, client)?;
    Some(Reply { entry, backend: entry.word().backend(), to_itself: true })
}

/// The flow of a backend that has dialled itself: it answers to what it has dialled, see
/// `forward::send`.
#[inline(always)]
fn find_to_itself<P: Tables>(
    reverse_nat: &ReverseNat,
    source: Endpoint<P::Addr>,
    client: Endpoint<P::Addr>,
) -> Option<FlowRef> {
    let itself = Endpoint { addr: source.addr, port: client.port };
    find_as::<P>(reverse_nat, itself).filter(|entry| entry.vip::<P>().addr == client.addr)
}

/// The services a backend answers for from this endpoint.
#[inline(always)]
fn reverse_nat_of<P: Tables>(
    protocol: Protocol,
    source: Endpoint<P::Addr>,
) -> Option<&'static ReverseNat> {
    P::reverse_nat(&EndpointKey::new(source, protocol.number()))
}

/// The flow of this client with one of these backends.
#[inline(always)]
fn find_as<P: Tables>(reverse_nat: &ReverseNat, client: Endpoint<P::Addr>) -> Option<FlowRef> {
    let mut key = FlowKey::new(client, ServiceId::FIRST, ProbeSlot::FIRST);
    // A plain loop: the iterator's try_fold is not inlined, and the verifier does not follow a None
    // that is returned through memory (docs/internals/verifier.md).
    for (index, entry) in (0u32..).zip(&reverse_nat.of) {
        if index >= reverse_nat.len {
            break;
        }
        let Some(service) = ServiceId::new(entry.service) else { continue };
        let (backend, generation) = (entry.backend, entry.generation);
        let found = flows::find_by_backend::<P>(&mut key, service, backend, generation);
        if found.is_some() {
            return found;
        }
    }
    None
}
