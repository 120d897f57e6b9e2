//! The kernel side of samport: entry points only.
//!
//! Attached at tc: `samport_forward` at ingress of the interfaces clients come in by, `samport_bridge` at ingress of the containers'
//! bridges, `samport_reverse` at ingress of the backends' host-side veths, `samport_device` at ingress of other devices that backends
//! answer by, `samport_egress` and `samport_outbound` at egress. `samport_xdp` is at XDP of the interfaces, if asked for. Those of
//! sockets (`connect`, `sendmsg`, `recvmsg`, `getpeername`, close, states) are at the root of the control groups, for clients on the
//! machine itself. The others go on with what these begin, by tail call (`samport_common::layout::program`). ARCHITECTURE.md has a
//! table of all of them. All are thin: what is decided is decided in `samport-common`.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]
#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_possible_truncation
)]
#![allow(missing_docs, reason = "aya's macro repeats each entry point without its docs")]

mod affinity;
mod atomic;
mod choice;
mod context;
mod exit;
mod flood;
mod flows;
mod forward;
mod fragment;
mod icmp;
mod load_store;
mod maps;
mod nat;
mod outbound;
mod outlier;
mod redirect;
mod reset;
mod reverse;
mod room;
mod skb;
mod slow_path;
mod sock_lb;
mod sock_ops;
mod sockaddr;
mod source;
mod trace;
mod tunnel;
mod xdp;

use aya_ebpf::bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::macros::{cgroup_sock, cgroup_sock_addr, classifier, sock_ops, xdp};
use aya_ebpf::programs::{SockAddrContext, SockContext, SockOpsContext, TcContext, XdpContext};
use aya_log_ebpf::debug;
use samport_common::failover;
use samport_common::family::{Family, V4, V6};
use samport_common::frame::Frame as _;
use samport_common::layout::program;
use samport_common::verdict::{Action, Verdict};
use samport_common::wire::ethernet;

use crate::context::{Context as _, Hook};
use crate::skb::Skb;
use crate::sock_lb::{Restored, Syscall};
use crate::sock_ops::SockOps;
use crate::sockaddr::{Closed, Inet, Inet6, SockAddr, SockFamily};

/// What tells the kernel to go on with a system call. We forbid none.
const SYS_PROCEED: i32 = 1;

/// What a program does with a packet: why, and where the redirect helper has sent it.
pub struct Outcome {
    verdict: Verdict,
    /// What the redirect helper returned, for verdicts that redirect.
    redirect: i32,
}

impl Outcome {
    /// The same under another name, that says more.
    #[inline(always)]
    fn with_verdict(self, to: Verdict) -> Self {
        match self.verdict.action() {
            // What is left to do for it goes by the verdict.
            Action::Redirect if is_for_node(self.verdict) => self,
            Action::Redirect => Self { verdict: to, redirect: self.redirect },
            Action::Pass
                if matches!(
                    self.verdict,
                    Verdict::ForwardStack | Verdict::ForwardChild | Verdict::ReplyStack
                ) =>
            {
                Self { verdict: to, redirect: TC_ACT_UNSPEC }
            }
            Action::Pass | Action::Drop => self,
        }
    }
}

impl Outcome {
    /// As a function of its own can return it.
    #[inline(always)]
    fn to_bits(&self) -> u64 {
        u64::from(self.verdict as u32) << 32 | u64::from(self.redirect.cast_unsigned())
    }

    /// What [`Self::to_bits`] was given.
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation, reason = "the lower half is what is wanted")]
    fn from_bits(bits: u64) -> Self {
        Self {
            verdict: Verdict::from_number((bits >> 32) as u32).unwrap_or(Verdict::RewriteFailed),
            redirect: (bits as u32).cast_signed(),
        }
    }
}

impl From<Verdict> for Outcome {
    #[inline(always)]
    fn from(verdict: Verdict) -> Self {
        Self { verdict, redirect: TC_ACT_SHOT }
    }
}

/// How a program ends.
pub enum Next {
    /// The packet leaves.
    Outcome(Outcome),
    /// Another program goes on: one of `samport_common::layout::program`.
    TailCall(u32),
}

impl Next {
    const TAIL_CALL: u64 = 1 << 63;

    /// As a function of its own can return it.
    #[inline(always)]
    fn to_bits(&self) -> u64 {
        match self {
            Self::Outcome(outcome) => outcome.to_bits(),
            Self::TailCall(index) => Self::TAIL_CALL | u64::from(*index),
        }
    }

    /// What [`Self::to_bits`] was given.
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation, reason = "the lower half is what is wanted")]
    fn from_bits(bits: u64) -> Self {
        if bits & Self::TAIL_CALL == 0 {
            Self::Outcome(Outcome::from_bits(bits))
        } else {
            Self::TailCall(bits as u32)
        }
    }
}

impl From<Verdict> for Next {
    #[inline(always)]
    fn from(verdict: Verdict) -> Self {
        Self::Outcome(verdict.into())
    }
}

/// Runs the function for IPv4 and ends; IPv6 goes on in another program. Both together need more than
/// the 512 bytes of stack there are, and neither is in the other's way.
macro_rules! run {
    ($skb:ident, $name:literal, $module:ident::$function:ident, $hook:expr, $six:expr) => {{
        let next = match ether_type(&$skb) {
            Ok(V4::ETHER_TYPE) => $module::$function::<V4>(&$skb, $hook),
            Ok(V6::ETHER_TYPE) => Next::TailCall($six),
            Ok(_) => Verdict::NotIp.into(),
            Err(verdict) => verdict.into(),
        };
        finish_logged(&$skb, $name, next)
    }};
}

/// [`run`] with a function of its own for each family, for programs that are not in a hurry. They have no
/// stack left for a line in the log.
macro_rules! run_subprog {
    ($skb:ident, $module:ident::$function:ident) => {{
        #[inline(never)]
        fn v4(ctx: *mut __sk_buff) -> u64 {
            $module::$function::<V4>(&Skb::new(TcContext::new(ctx))).to_bits()
        }
        #[inline(never)]
        fn v6(ctx: *mut __sk_buff) -> u64 {
            $module::$function::<V6>(&Skb::new(TcContext::new(ctx))).to_bits()
        }
        let ctx = $skb.pointer_to_context();
        let next = match ether_type(&$skb) {
            Ok(V4::ETHER_TYPE) => Next::from_bits(v4(ctx)),
            Ok(V6::ETHER_TYPE) => Next::from_bits(v6(ctx)),
            Ok(_) => Verdict::NotIp.into(),
            Err(verdict) => verdict.into(),
        };
        finish(&$skb, &tail_call_or(&$skb, next))
    }};
}

/// Whether a packet is to leave by the tunnel.
#[inline(always)]
fn is_for_node(verdict: Verdict) -> bool {
    maps::is_clustered() && matches!(verdict, Verdict::ForwardNode | Verdict::ReplyNode)
}

/// Goes on in the other program, if one is to.
#[inline(always)]
fn tail_call_or(skb: &Skb, next: Next) -> Outcome {
    match next {
        Next::Outcome(outcome) if is_for_node(outcome.verdict) => {
            maps::tail_call(skb, program::WRAP);
            Verdict::MissedTailCall.into()
        }
        Next::Outcome(outcome) => outcome,
        Next::TailCall(index) => {
            maps::tail_call(skb, index);
            if index == program::OPEN && skb.attempt() >= failover::MAX_RETRIES {
                // The kernel ends a packet's run after 33 tail calls, and every selection has failed.
                Verdict::FlowAmbiguous.into()
            } else {
                Verdict::MissedTailCall.into()
            }
        }
    }
}

/// Goes on in the other program, or counts the verdict and turns it into what the kernel is told.
#[inline(always)]
fn finish_logged(skb: &Skb, name: &str, next: Next) -> i32 {
    let outcome = tail_call_or(skb, next);
    let action = finish(skb, &outcome);
    debug!(skb.context(), "{}: {}", name, outcome.verdict.name());
    action
}

/// Client to backend, at ingress of the interfaces outside clients come in by.
#[classifier]
pub fn samport_forward(ctx: TcContext) -> i32 {
    let skb = Skb::new(ctx);
    skb.set_hook(Hook::Interface);
    run!(skb, "forward", forward::run, Hook::Interface, program::FORWARD6)
}

/// Client to backend, where frames enter the machine: what goes into containers, and the allow-list.
#[xdp]
pub fn samport_xdp(ctx: XdpContext) -> u32 {
    xdp::run(ctx)
}

/// Client to backend, at ingress of the bridges: containers that dial an address of the host.
#[classifier]
pub fn samport_bridge(ctx: TcContext) -> i32 {
    let skb = Skb::new(ctx);
    skb.set_hook(Hook::Bridge);
    run!(skb, "bridge", forward::run, Hook::Bridge, program::FORWARD6)
}

/// Client to backend, for what a backend's container sends that is no reply. By tail call.
#[classifier]
pub fn samport_hairpin(ctx: TcContext) -> i32 {
    let skb = Skb::new(ctx);
    run!(skb, "inside", forward::run, Hook::Container, program::FORWARD6)
}

/// Client to backend over IPv6, from any hook. By tail call.
#[classifier]
pub fn samport_forward6(ctx: TcContext) -> i32 {
    let skb = Skb::new(ctx);
    finish(&skb, &tail_call_or(&skb, forward::run_at_hook::<V6>(&skb)))
}

/// Client to backend, for what is no packet of an open flow. By tail call.
#[classifier]
pub fn samport_choose(ctx: TcContext) -> i32 {
    let skb = Skb::new(ctx);
    run_subprog!(skb, forward::choose_one)
}

/// Client to backend, for first fragments and the packets the quick search leaves over: a program of its own,
/// because the verifier takes the slow path only alone.
#[classifier]
pub fn samport_slow_path(ctx: TcContext) -> i32 {
    let skb = Skb::new(ctx);
    run_subprog!(skb, slow_path::run)
}

/// Client to backend, opening a flow after the slow path. It calls itself for another selection; the
/// kernel ends that after 33 calls.
#[classifier]
pub fn samport_open(ctx: TcContext) -> i32 {
    let skb = Skb::new(ctx);
    run_subprog!(skb, slow_path::open)
}

/// Client to backend, when other flows of the client's port are in the way that nothing has proven to be the
/// client's. By tail call.
#[classifier]
pub fn samport_make_way(ctx: TcContext) -> i32 {
    let skb = Skb::new(ctx);
    run_subprog!(skb, slow_path::make_way)
}

/// Later fragments, either way. By tail call.
#[classifier]
pub fn samport_later(ctx: TcContext) -> i32 {
    let skb = Skb::new(ctx);
    run_subprog!(skb, fragment::later)
}

/// Client to backend, ICMP errors. By tail call.
#[classifier]
pub fn samport_icmp(ctx: TcContext) -> i32 {
    let skb = Skb::new(ctx);
    run_subprog!(skb, icmp::forward)
}

/// What comes in by the tunnel. By tail call.
#[classifier]
pub fn samport_unwrap(ctx: TcContext) -> i32 {
    let skb = Skb::new(ctx);
    run_subprog!(skb, tunnel::unwrap)
}

/// Another node's probe. By tail call.
#[classifier]
pub fn samport_probe(ctx: TcContext) -> i32 {
    let skb = Skb::new(ctx);
    run_subprog!(skb, tunnel::probe)
}

/// What does not fit through the tunnel. By tail call.
#[classifier]
pub fn samport_too_big(ctx: TcContext) -> i32 {
    let skb = Skb::new(ctx);
    run_subprog!(skb, tunnel::too_big)
}

/// The packet that was inside: a client's for this machine's backends, or a reply of the node that it has come from. By
/// tail call.
#[classifier]
pub fn samport_inner(ctx: TcContext) -> i32 {
    let skb = Skb::new(ctx);
    run_subprog!(skb, tunnel::inner)
}

/// What leaves by the tunnel, whatever it is. By tail call.
#[classifier]
pub fn samport_wrap(ctx: TcContext) -> i32 {
    #[inline(never)]
    fn v4(ctx: *mut __sk_buff) -> u64 {
        tunnel::wrap::<V4>(&Skb::new(TcContext::new(ctx))).to_bits()
    }
    #[inline(never)]
    fn v6(ctx: *mut __sk_buff) -> u64 {
        tunnel::wrap::<V6>(&Skb::new(TcContext::new(ctx))).to_bits()
    }
    let skb = Skb::new(ctx);
    let context = skb.pointer_to_context();
    // Anything else would not have got here.
    let is_v4 = skb.read(ethernet::TYPE.start) == Some(V4::ETHER_TYPE);
    let outcome = match Next::from_bits(if is_v4 { v4(context) } else { v6(context) }) {
        Next::Outcome(outcome) => outcome,
        // Not in the functions: what is called there would return to them.
        Next::TailCall(index) => {
            maps::tail_call(&skb, index);
            Verdict::MissedTailCall.into()
        }
    };
    finish(&skb, &outcome)
}

/// Backend to client, at ingress of the host's side of a backend's veth; what is no reply goes on
/// in `samport_hairpin`.
#[classifier]
pub fn samport_reverse(ctx: TcContext) -> i32 {
    let skb = Skb::new(ctx);
    skb.set_hook(Hook::Container);
    run!(skb, "reverse", reverse::run, Hook::Container, program::REVERSE6)
}

/// Backend to client, at ingress of another device that backends answer on.
#[classifier]
pub fn samport_device(ctx: TcContext) -> i32 {
    let skb = Skb::new(ctx);
    skb.set_hook(Hook::Device);
    run!(skb, "device", reverse::run, Hook::Device, program::REVERSE6)
}

/// Backend to client, at egress of the interface clients come in by: for backends whose packets go
/// through the host's stack.
#[classifier]
pub fn samport_egress(ctx: TcContext) -> i32 {
    let skb = Skb::new(ctx);
    skb.set_hook(Hook::Egress);
    run!(skb, "egress", reverse::run, Hook::Egress, program::REVERSE6)
}

/// What leaves the host, at egress of the interfaces and bridges: nothing is done to it, but what was begun from a
/// served port is remembered.
#[classifier]
pub fn samport_outbound(ctx: TcContext) -> i32 {
    #[inline(never)]
    fn v4(ctx: *mut __sk_buff) {
        outbound::note::<V4>(&Skb::new(TcContext::new(ctx)));
    }
    #[inline(never)]
    fn v6(ctx: *mut __sk_buff) {
        outbound::note::<V6>(&Skb::new(TcContext::new(ctx)));
    }
    let skb = Skb::new(ctx);
    if !skb.is_reply() {
        match ether_type(&skb) {
            Ok(V4::ETHER_TYPE) => v4(skb.pointer_to_context()),
            Ok(V6::ETHER_TYPE) => v6(skb.pointer_to_context()),
            _ => {}
        }
    }
    TC_ACT_UNSPEC
}

/// Backend to client over IPv6, from any hook. By tail call.
#[classifier]
pub fn samport_reverse6(ctx: TcContext) -> i32 {
    let skb = Skb::new(ctx);
    finish(&skb, &tail_call_or(&skb, reverse::run_at_hook::<V6>(&skb)))
}

/// Backend to client, for what is no packet of an open flow. By tail call.
#[classifier]
pub fn samport_answer(ctx: TcContext) -> i32 {
    let skb = Skb::new(ctx);
    run_subprog!(skb, reverse::answer)
}

/// Backend to client, first fragments. By tail call.
#[classifier]
pub fn samport_reverse_first(ctx: TcContext) -> i32 {
    let skb = Skb::new(ctx);
    run_subprog!(skb, fragment::reverse)
}

/// Backend to client, ICMP errors. By tail call.
#[classifier]
pub fn samport_reverse_icmp(ctx: TcContext) -> i32 {
    let skb = Skb::new(ctx);
    run_subprog!(skb, icmp::reverse)
}

/// Backend to client, a backend that refuses a connection. By tail call.
#[classifier]
pub fn samport_refused(ctx: TcContext) -> i32 {
    let skb = Skb::new(ctx);
    run_subprog!(skb, reverse::refused)
}

/// Client to nobody: what is answered with a reset. By tail call.
#[classifier]
pub fn samport_reset(ctx: TcContext) -> i32 {
    let skb = Skb::new(ctx);
    run_subprog!(skb, reset::run)
}

/// Sets the clock of all others. The loader runs it once, on no packet of anybody's.
#[classifier]
pub fn samport_clock(_ctx: TcContext) -> i32 {
    flows::set_clock();
    TC_ACT_UNSPEC
}

/// Tells whoever watches of a packet that leaves, and says what the program before has said. By tail call.
#[classifier]
pub fn samport_trace(ctx: TcContext) -> i32 {
    let skb = Skb::new(ctx);
    let (verdict, action) = skb.trace_end();
    trace::emit(&skb, verdict);
    action
}

/// The frame's `EtherType`. What carries a VLAN tag belongs to a VLAN device above the one we are
/// attached to, unless the tag carries only a priority.
#[inline(always)]
fn ether_type(skb: &Skb) -> Result<[u8; 2], Verdict> {
    if skb.is_on_vlan() {
        return Err(Verdict::Vlan);
    }
    match skb.read(ethernet::TYPE.start) {
        // The kernel has taken the first tag out of the bytes; this is a second one.
        Some(ethernet::VLAN | ethernet::SERVICE_VLAN) => Err(Verdict::Vlan),
        Some(other) => Ok(other),
        None => Err(Verdict::NotIp),
    }
}

/// Counts the verdict and turns it into what the kernel is told. A packet we let pass goes on to
/// the next program on the hook, as if we were not there.
#[inline(always)]
fn finish(skb: &Skb, outcome: &Outcome) -> i32 {
    maps::count(outcome.verdict);
    let action = match outcome.verdict.action() {
        // The host's stack would take it for a packet of nobody's.
        Action::Pass
            if maps::is_clustered()
                && skb.hook() == Hook::Tunnel
                && !outcome.verdict.may_leave_tunnel() =>
        {
            TC_ACT_SHOT
        }
        Action::Pass => TC_ACT_UNSPEC,
        Action::Redirect => outcome.redirect,
        Action::Drop => TC_ACT_SHOT,
    };
    if skb.is_traced() {
        trace::end(skb, outcome.verdict, action);
    }
    action
}

/// A local client connects over IPv4.
#[cgroup_sock_addr(connect4)]
pub fn samport_connect4(ctx: SockAddrContext) -> i32 {
    translate::<Inet>(&SockAddr::new(ctx), Syscall::Connect)
}

/// A local client connects over IPv6, or with a socket for IPv6 over IPv4.
#[cgroup_sock_addr(connect6)]
pub fn samport_connect6(ctx: SockAddrContext) -> i32 {
    translate::<Inet6>(&SockAddr::new(ctx), Syscall::Connect)
}

/// A local client sends a datagram to an address, over IPv4.
#[cgroup_sock_addr(sendmsg4)]
pub fn samport_sendmsg4(ctx: SockAddrContext) -> i32 {
    translate::<Inet>(&SockAddr::new(ctx), Syscall::Sendmsg)
}

/// A local client sends a datagram to an address, over IPv6.
#[cgroup_sock_addr(sendmsg6)]
pub fn samport_sendmsg6(ctx: SockAddrContext) -> i32 {
    translate::<Inet6>(&SockAddr::new(ctx), Syscall::Sendmsg)
}

/// A local client has received a datagram with a socket for IPv4.
#[cgroup_sock_addr(recvmsg4)]
pub fn samport_recvmsg4(ctx: SockAddrContext) -> i32 {
    restore::<Inet>(&SockAddr::new(ctx), Restored::Sender)
}

/// A local client has received a datagram with a socket for IPv6.
#[cgroup_sock_addr(recvmsg6)]
pub fn samport_recvmsg6(ctx: SockAddrContext) -> i32 {
    restore::<Inet6>(&SockAddr::new(ctx), Restored::Sender)
}

/// A local client asks for the other end of its socket for IPv4.
#[cgroup_sock_addr(getpeername4)]
pub fn samport_getpeername4(ctx: SockAddrContext) -> i32 {
    restore::<Inet>(&SockAddr::new(ctx), Restored::Peer)
}

/// A local client asks for the other end of its socket for IPv6.
#[cgroup_sock_addr(getpeername6)]
pub fn samport_getpeername6(ctx: SockAddrContext) -> i32 {
    restore::<Inet6>(&SockAddr::new(ctx), Restored::Peer)
}

/// A socket is closed.
#[cgroup_sock(sock_release)]
pub fn samport_close(ctx: SockContext) -> i32 {
    sock_lb::close(&Closed::new(ctx));
    SYS_PROCEED
}

/// A TCP socket connects, or a connection of a local client changes its state.
#[sock_ops]
pub fn samport_sockops(ctx: SockOpsContext) -> u32 {
    sock_lb::track(&SockOps::new(ctx));
    SYS_PROCEED.cast_unsigned()
}

#[inline(always)]
fn translate<H: SockFamily>(sock: &SockAddr, call: Syscall) -> i32 {
    if let Some(verdict) = sock_lb::translate::<H>(sock, call) {
        leave_call::<H>(sock, verdict);
    }
    SYS_PROCEED
}

#[inline(always)]
fn restore<H: SockFamily>(sock: &SockAddr, named: Restored) -> i32 {
    if let Some(verdict) = sock_lb::restore::<H>(sock, named) {
        leave_call::<H>(sock, verdict);
    }
    SYS_PROCEED
}

/// Counts the verdict of a system call.
#[inline(always)]
fn leave_call<H: SockFamily>(sock: &SockAddr, verdict: Verdict) {
    maps::sockets::count_in_call(verdict);
    if trace::is_watched() {
        trace::tell_of_call::<H>(sock.context().sock_addr, verdict as u32);
    }
    debug!(sock.context(), "local: {}", verdict.name());
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Never reached: the verifier refuses a program that could get here.
    loop {}
}

/// GPL-only helpers are refused to programs of another licence.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
pub static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// The host only checks this crate; the program runs in the kernel.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
