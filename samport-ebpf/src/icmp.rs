//! ICMP errors: whoever is told must find its own addresses in the packet that is quoted.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::programs::TcContext;
use samport_common::conntrack::{Sequences, State};
use samport_common::failover::{self, Refusals};
use samport_common::flow::{EndpointKey, Flow, ServiceId};
use samport_common::frame::Frame as _;
use samport_common::layout::{DeviceSet, Scope, failure, program};
use samport_common::packet::{self, IcmpError, Special};
use samport_common::rewrite::{self, End, IcmpRewrite};
use samport_common::source::Side;
use samport_common::verdict::Verdict;

use crate::choice;
use crate::context::{Context as _, Hook};
use crate::exit;
use crate::flows::{self, FlowRef};
use crate::forward;
use crate::maps::{self, Tables};
use crate::nat::{self, packed};
use crate::outlier;
use crate::redirect;
use crate::reverse;
use crate::room;
use crate::skb::Skb;
use crate::source;
use crate::tunnel;
use crate::{Next, Outcome};

/// An error about a reply, for the backend that has sent it.
#[inline(always)]
pub fn forward<P: Tables>(skb: &Skb) -> Next {
    let hook = skb.hook();
    if maps::is_clustered()
        && hook == Hook::Tunnel
        && let Some(outcome) = of_node::<P>(skb)
    {
        return outcome;
    }
    match to_backend::<P>(skb, hook) {
        Ok(outcome) => Next::Outcome(outcome.with_verdict(Verdict::IcmpForward)),
        Err(verdict) => verdict.into(),
    }
}

/// An error of a node's backend about a packet of a client here, for that client: the node has translated it. `None` if it
/// is about no such packet.
#[inline(always)]
fn of_node<P: Tables>(skb: &Skb) -> Option<Next> {
    let error = parse::<P>(skb).ok()?;
    let entry = FlowRef::new(find_flow_to_node::<P>(error, skb.node()))?;
    let exit = match exit::of::<P>(skb, &error.quoted.source.addr, entry) {
        Ok(exit) => exit,
        Err(verdict) => return Some(verdict.into()),
    };
    let reply = reverse::Reply { entry, backend: entry.word().backend(), to_itself: false };
    let outcome = reverse::leave(skb, Hook::Tunnel, &reply, exit, false);
    Some(Next::Outcome(outcome.with_verdict(Verdict::IcmpReply)))
}

/// The entry of the flow to this node whose client's packet is quoted, or null.
#[inline(never)]
fn find_flow_to_node<P: Tables>(error: &'static IcmpError<P::Addr>, node: u32) -> *mut Flow {
    let quoted = &error.quoted;
    let key = EndpointKey::new(quoted.destination, quoted.protocol.number());
    let found = P::service(&key)
        .and_then(|service| ServiceId::new(service.id))
        .and_then(|id| flows::find_own::<P>(quoted.source, quoted.destination, id))
        .filter(|entry| tunnel::is_of_node(entry.word(), node));
    match found {
        Some(entry) => entry.pointer(),
        None => core::ptr::null_mut(),
    }
}

#[inline(always)]
fn to_backend<P: Tables>(skb: &Skb, hook: Hook) -> Result<Outcome, Verdict> {
    let error = parse::<P>(skb)?;
    let entry = own_flow::<P>(skb, hook, error)?;
    let word = entry.word();
    if !forward::serves(error.quoted.protocol, word) {
        return Err(Verdict::BackendGone);
    }
    let id = word.backend();
    let backend = maps::backend(id).ok_or(Verdict::BackendUnset)?;
    if maps::is_clustered() && redirect::is_node(backend) {
        return Ok(redirect::to_node(skb, id, backend, false));
    }
    if !translate::<P>(skb, error, id, core::ptr::null_mut()) {
        return Err(Verdict::RewriteFailed);
    }
    Ok(redirect::to_backend(skb, id, backend))
}

/// The flow whose reply is quoted. The quoted packet went the other way: its source is what the
/// client has dialled.
#[inline(always)]
fn own_flow<P: Tables>(
    skb: &Skb,
    hook: Hook,
    error: &'static IcmpError<P::Addr>,
) -> Result<FlowRef, Verdict> {
    if error.told != error.quoted.source.addr {
        return Err(Verdict::IcmpOther);
    }
    let service = find_service::<P>(error, hook);
    let Ok(service) = u16::try_from(service) else {
        return Err(Verdict::IcmpOther);
    };
    if hook != Hook::Container && !skb.is_for_host() {
        return Err(Verdict::OtherHost);
    }
    let entry = FlowRef::new(find_own_flow::<P>(error, service)).ok_or(Verdict::IcmpOther)?;
    // No router inside of the host is on the way to an outside client, nor the other way round; and only one
    // device leads to a client inside.
    let is_internal = source::side(skb, hook) == Side::Internal;
    if entry.is_internal() != is_internal
        || (is_internal && entry.reply_path() != forward::reply_path_of(skb, hook))
    {
        return Err(Verdict::SpoofedSource);
    }
    Ok(entry)
}

/// The number of the service at the source of the quoted packet, or -1.
#[inline(never)]
fn find_service<P: Tables>(error: &'static IcmpError<P::Addr>, hook: Hook) -> i32 {
    let quoted = &error.quoted;
    if !maps::is_listened_on(quoted.protocol, quoted.source.port) {
        return -1;
    }
    let service = if hook == Hook::Tunnel {
        maps::service_dialled::<P>(quoted.source, quoted.protocol)
    } else {
        P::service(&EndpointKey::new(quoted.source, quoted.protocol.number()))
    };
    match service {
        Some(service) if forward::may_dial(Scope::from_byte(service.scope), hook) => {
            service.id.into()
        }
        _ => -1,
    }
}

/// The entry of the flow from the quoted packet's destination to its source, or null.
#[inline(never)]
fn find_own_flow<P: Tables>(error: &'static IcmpError<P::Addr>, service: u16) -> *mut Flow {
    let quoted = &error.quoted;
    let found = ServiceId::new(service)
        .and_then(|id| flows::find_own::<P>(quoted.destination, quoted.source, id));
    match found {
        Some(entry) => entry.pointer(),
        None => core::ptr::null_mut(),
    }
}

/// An error about a client's packet, from the backend or from where it was on its way there.
#[inline(always)]
pub fn reverse<P: Tables>(skb: &Skb) -> Next {
    let hook = skb.hook();
    let error = match parse::<P>(skb) {
        Ok(error) => error,
        Err(verdict) => return verdict.into(),
    };
    let Some(reply) = reverse::found::<P>(find_flow::<P>(error), error.quoted.source.addr) else {
        // A container may be a client too.
        return match hook {
            Hook::Container => Next::TailCall(program::ICMP),
            _ => Verdict::IcmpOther.into(),
        };
    };
    if reverse::is_late::<P>(error.quoted.destination, &reply, reply.entry.word()) {
        return Verdict::LateAnswer.into();
    }
    // From the backend, or from the host, which could not send it the client's packet.
    if skb.came_in_by(hook) != DeviceSet::HOST && !reverse::is_by_backend::<P>(skb, hook, &reply) {
        return reverse::no_answer(hook);
    }
    let flow = reply.entry.pointer();
    if note_unreachable::<P>(skb.pointer_to_context(), error, flow) != 0 {
        return Verdict::RefusalHeld.into();
    }
    let exit = match exit::of::<P>(skb, &error.quoted.source.addr, reply.entry) {
        Ok(exit) => exit,
        Err(verdict) => return verdict.into(),
    };
    if reply.to_itself || !translate::<P>(skb, error, 0, flow) {
        return Verdict::RewriteFailed.into();
    }
    Next::Outcome(reverse::leave(skb, hook, &reply, exit, false).with_verdict(Verdict::IcmpReply))
}

/// Takes note of an error that says that a client's packet has not reached the backend, which is nothing that other
/// clients are spared: most of them are a firewall's word about one client. 1 if the client is not told, because its
/// next datagram goes to another.
#[inline(never)]
fn note_unreachable<P: Tables>(
    ctx: *mut __sk_buff,
    error: &'static IcmpError<P::Addr>,
    flow: *mut Flow,
) -> u32 {
    let Some(entry) = FlowRef::new(flow) else { return 0 };
    let word = entry.word();
    if !failover::is_about_an_opening(word.state()) {
        return 0;
    }
    let kind = Skb::new(TcContext::new(ctx)).read(error.icmp);
    if kind.is_some_and(|[kind, code]| P::is_icmp_unreachable(kind, code)) {
        maps::count_backend(word.backend(), |stats| stats.unreachable += 1);
        outlier::ask_for_check(word.to_bits(), failure::UNREACHABLE, flows::now_tick());
        if failover::is_datagrams(word.state()) && entry.fails_over() {
            return leave_backend::<P>(error, flow);
        }
    }
    0
}

/// Makes the next datagram of a flow go to another backend than that which has refused it: 1. Without another that has
/// not refused it too, the client is to be told, and the next round begins: 0.
#[inline(never)]
fn leave_backend<P: Tables>(error: &'static IcmpError<P::Addr>, flow: *mut Flow) -> u32 {
    let Some(entry) = FlowRef::new(flow) else { return 0 };
    let word = entry.word();
    let refusals = Refusals::of(entry.sequences()).with(word.backend());
    let client = outlier::client::<P>(error.quoted.source.addr);
    let service = maps::service_dialled::<P>(entry.vip::<P>(), error.quoted.protocol);
    let has_other = service.is_some_and(|service| {
        choice::has_other(service, word.backend(), refusals, client, flows::now_tick())
    });
    if !has_other {
        entry.keep(Sequences::default());
        return 0;
    }
    entry.keep(refusals.sequences());
    let failed = word.with_state(State::Failed);
    if entry.exchange(word, failed).is_err() {
        return 0;
    }
    outlier::moves(word, failed);
    room::moves(entry, word, failed);
    1
}

/// Translates the error for this backend, or for the client of this flow if it is not null.
#[inline(always)]
fn translate<P: Tables>(
    skb: &Skb,
    error: &'static IcmpError<P::Addr>,
    backend: u32,
    flow: *mut Flow,
) -> bool {
    let ctx = skb.pointer_to_context();
    let csum_diff = translate_quoted::<P>(ctx, error, backend, flow);
    csum_diff >= 0 && translate_outer::<P>(ctx, error, csum_diff, backend, flow) == 0
}

/// The part within the quoted packet: what it adds to ICMP's checksum, or -1 if it fails. A function
/// with a stack of its own, like those that follow: all together needs more than 512 bytes.
#[inline(never)]
fn translate_quoted<P: Tables>(
    ctx: *mut __sk_buff,
    error: &'static IcmpError<P::Addr>,
    backend: u32,
    flow: *mut Flow,
) -> i32 {
    let Some(plan) = plan::<P>(error, backend, flow) else { return -1 };
    match nat::apply_quoted(&Skb::new(TcContext::new(ctx)), &plan.quoted.bounded()) {
        Some(csum_diff) => i32::from(csum_diff),
        None => -1,
    }
}

/// The part outside of it, and ICMP's checksum: 0, or -1 if it fails.
#[inline(never)]
fn translate_outer<P: Tables>(
    ctx: *mut __sk_buff,
    error: &'static IcmpError<P::Addr>,
    csum_diff: i32,
    backend: u32,
    flow: *mut Flow,
) -> i32 {
    let Some(plan) = plan::<P>(error, backend, flow) else { return -1 };
    let csum_diff = csum_diff.cast_unsigned();
    match nat::rewrite_outer(&Skb::new(TcContext::new(ctx)), &plan, csum_diff) {
        Some(()) => 0,
        None => -1,
    }
}

#[inline(always)]
fn plan<P: Tables>(
    error: &'static IcmpError<P::Addr>,
    backend: u32,
    flow: *mut Flow,
) -> Option<IcmpRewrite<P>> {
    let (end, to) = match FlowRef::new(flow) {
        Some(entry) => (End::Source, entry.vip::<P>()),
        None => (End::Destination, maps::endpoint::<P>(maps::backend(backend)?)),
    };
    Some(rewrite::plan_error::<P>(error, end, to))
}

/// The entry of the flow whose client's packet is quoted, or null.
#[inline(never)]
fn find_flow<P: Tables>(error: &'static IcmpError<P::Addr>) -> *mut Flow {
    let quoted = &error.quoted;
    match reverse::find::<P>(quoted.protocol, quoted.destination, quoted.source) {
        Some(reply) => reply.entry.pointer(),
        None => core::ptr::null_mut(),
    }
}

/// Parses the error in a function of its own.
#[inline(always)]
fn parse<P: Tables>(skb: &Skb) -> Result<&'static IcmpError<P::Addr>, Verdict> {
    let number = parse_and_keep::<P>(skb.pointer_to_context());
    // SAFETY: it is of such an error.
    match unsafe { packed::result(number) } {
        Ok(error) => Ok(error),
        Err(Special::Leave(verdict)) => Err(verdict),
        Err(Special::Icmp | Special::First | Special::Later) => Err(Verdict::IcmpOther),
    }
}

#[inline(never)]
fn parse_and_keep<P: Tables>(ctx: *mut __sk_buff) -> u32 {
    let skb = Skb::new(TcContext::new(ctx));
    // Errors are rare: better always than a second try, which the stack would pay for.
    skb.pull_headers();
    packed::number(packet::parse_error::<P, _>(&skb).map_err(Special::Leave))
}
