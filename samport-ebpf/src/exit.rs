//! By which device a reply leaves: the look-ups around `samport_common::exit`.

use aya_ebpf::bindings::{__sk_buff, BPF_FIB_LOOKUP_OUTPUT};
use aya_ebpf::programs::TcContext;
use samport_common::exit::{CachedExit, Leaves};
use samport_common::flow::{Flow, ReplyPath};
use samport_common::source::{NextHop, Route};
use samport_common::verdict::Verdict;
use samport_common::wire::protocol::Protocol;

use crate::context::{Context as _, Hook};
use crate::flows::FlowRef;
use crate::maps::{self, Tables};
use crate::skb::Skb;
use crate::source;

/// How a reply leaves: a [`ReplyPath`] and the bits below. One number, so that the verifier follows what comes after
/// once, and not for each way to find it.
#[derive(Clone, Copy)]
pub struct Exit(u64);

/// Bits beside the [`ReplyPath`]; above them what [`samport_exit`] returns has an [`CachedExit`] to be kept, if it is not 0.
const UNRESOLVED: u64 = 1 << 32;
const NO_ROUTE: u64 = 1 << 33;
const ASKED_SHIFT: u32 = 48;

impl From<ReplyPath> for Exit {
    #[inline(always)]
    fn from(reply_path: ReplyPath) -> Self {
        Self(u64::from(reply_path.to_bits()))
    }
}

impl Exit {
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation, reason = "the lower half is what is wanted")]
    pub fn reply_path(self) -> ReplyPath {
        ReplyPath::from_bits(self.0 as u32)
    }

    /// Whether the next hop's address on the link is not known.
    #[inline(always)]
    pub fn is_unresolved(self) -> bool {
        self.0 & UNRESOLVED != 0
    }
}

/// How a reply of this flow leaves for its client.
#[inline(always)]
pub fn of<P: Tables>(skb: &Skb, client: &'static P::Addr, entry: FlowRef) -> Result<Exit, Verdict> {
    let found = find::<P>(skb.pointer_to_context(), client, entry.pointer());
    if found & NO_ROUTE != 0 { Err(Verdict::ReplyNoRoute) } else { Ok(Exit(found)) }
}

/// [`of`] in a function of its own.
#[inline(never)]
#[allow(clippy::cast_possible_truncation, reason = "halves of 64 bits")]
fn find<P: Tables>(ctx: *mut __sk_buff, client: &'static P::Addr, flow: *mut Flow) -> u64 {
    let Some(entry) = FlowRef::new(flow) else { return NO_ROUTE };
    let skb = Skb::new(TcContext::new(ctx));
    let reply_path = entry.reply_path();
    if maps::is_clustered() && reply_path.node().is_some() {
        return u64::from(reply_path.to_bits());
    }
    if skb.hook() == Hook::Egress && !reply_path.is_container() {
        // The kernel has decided that already. Fragments that follow are met earlier.
        return u64::from(ReplyPath::out_of(skb.ifindex()).to_bits());
    }
    let Some(question) = maps::scratch::route_question() else { return NO_ROUTE };
    if is_settled(entry) {
        return u64::from(reply_path.to_bits());
    }
    // Rules by protocol or port are not gone by: a flow's replies all leave by one device.
    let vip = P::in_lookup(entry.vip::<P>().addr);
    source::ask_for::<P>(question, 0, Protocol::Tcp, vip, *client);
    let found = samport_exit(ctx, reply_path.to_bits(), u32::from(entry.cached_exit().0));
    let cached_exit = (found >> ASKED_SHIFT) as u16;
    if cached_exit != 0 {
        entry.set_cached_exit(CachedExit(cached_exit));
    }
    let found = found & !(0xffff << ASKED_SHIFT);
    if found & NO_ROUTE != 0 {
        // IPv4 takes a client that no route leads to for a neighbour.
        return P::of_two([found & !NO_ROUTE | UNRESOLVED, NO_ROUTE]);
    }
    found
}

/// Whether the flow's replies leave as they did before: into a container, through the tunnel to its client's node, or by
/// the device its client comes in by.
#[inline(always)]
pub fn is_settled(entry: FlowRef) -> bool {
    let reply_path = entry.reply_path();
    if maps::is_clustered() && reply_path.node().is_some() {
        return true;
    }
    reply_path.is_container() || entry.cached_exit().is_settled(maps::route_generation())
}

/// Asks the kernel [`maps::scratch::route_question`]; `reply_path` and `cached_exit` are the flow's.
///
/// Exported, so that the verifier walks it by itself, once: docs/internals/verifier.md.
#[unsafe(no_mangle)]
#[inline(never)]
#[allow(clippy::cast_possible_truncation, reason = "the lower half is meant")]
pub extern "C" fn samport_exit(ctx: *mut __sk_buff, reply_path: u32, cached_exit: u32) -> u64 {
    let skb = Skb::new(TcContext::new(ctx));
    let (uplink, generation) =
        (ReplyPath::from_bits(reply_path).ifindex(), maps::route_generation());
    let device = maps::device(uplink).copied().unwrap_or_default();
    let mut keep = 0;
    if device.is_internal() {
        // A container behind its bridge: rules for the host's addresses are not meant for it.
        let cached_exit = CachedExit::at(generation, Leaves::ByUplink);
        return u64::from(cached_exit.0) << ASKED_SHIFT | u64::from(reply_path);
    }
    if CachedExit(cached_exit as u16).found(generation) != Some(Leaves::ByRoutes) {
        let (route, is_unresolved) = look_up(&skb, uplink, BPF_FIB_LOOKUP_OUTPUT);
        let leaves = Leaves::of(route, uplink);
        if leaves == Leaves::ByUplink && is_unresolved {
            // And asked again next time.
            return u64::from(reply_path) | UNRESOLVED;
        }
        keep = u64::from(CachedExit::at(generation, leaves).0) << ASKED_SHIFT;
        if leaves == Leaves::ByUplink {
            return keep | u64::from(reply_path);
        }
    }
    keep | match look_up(&skb, device.lookup_ifindex, 0) {
        (Route::Unknown, _) => u64::from(reply_path),
        (Route::None, _) => u64::from(reply_path) | NO_ROUTE,
        (Route::Via(ifindex, _), is_unresolved) => {
            let reply_path = ReplyPath::out_of(ifindex).to_bits();
            u64::from(reply_path) | if is_unresolved { UNRESOLVED } else { 0 }
        }
    }
}

/// The route that is asked for, of packets that come in or go out by this device, and whether its next hop's address on
/// the link is not known.
#[inline(always)]
fn look_up(skb: &Skb, ifindex: u32, flags: u32) -> (Route, bool) {
    /// `BPF_FIB_LKUP_RET_NO_NEIGH` of linux/bpf.h.
    const NO_NEIGHBOUR: i64 = 7;
    let (Some(question), Some(cached_exit)) =
        (maps::scratch::fib_lookup(), maps::scratch::route_question())
    else {
        return (Route::Unknown, false);
    };
    if ifindex == 0 {
        return (Route::Unknown, false);
    }
    *question = cached_exit.by(ifindex);
    let answer = skb.fib_lookup(question, flags);
    let route = Route::of_fib_lookup(answer, question.ifindex(), || NextHop::OnLink);
    (route, answer == NO_NEIGHBOUR)
}
