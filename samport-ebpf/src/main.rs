//! The kernel side of samport: entry points only.
//!
//! `samport_forward` runs at tc ingress of the interfaces clients come in by, `samport_reverse` at
//! tc ingress of the backends' host-side veths. The others are at the root of the control groups, for
//! clients on the machine itself. All are thin: what is decided is decided in `samport-common`.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]
#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_possible_truncation
)]
#![allow(missing_docs, reason = "aya's macro repeats each entry point without its docs")]

mod apply;
mod atomic;
mod choice;
mod flows;
mod forward;
mod local;
mod maps;
mod reverse;
mod skb;
mod sockaddr;

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::macros::{cgroup_sock, cgroup_sock_addr, classifier};
use aya_ebpf::programs::{SockAddrContext, SockContext, TcContext};
use aya_log_ebpf::debug;
use samport_common::family::{Family, V4, V6};
use samport_common::frame::Frame as _;
use samport_common::layout::program;
use samport_common::verdict::{Action, Verdict};
use samport_common::wire::ethernet;

use crate::forward::Search;
use crate::local::{Call, Named};
use crate::reverse::Exit;
use crate::skb::Skb;
use crate::sockaddr::{Closed, Four, Hook, Six, SockAddr};

/// What tells the kernel to go on with a system call. We forbid none.
const GO_ON: i32 = 1;

/// What a program does with a packet: why, and where the redirect helper has sent it.
pub struct Outcome {
    verdict: Verdict,
    /// What the redirect helper returned, for verdicts that redirect.
    redirect: i32,
}

impl From<Verdict> for Outcome {
    fn from(verdict: Verdict) -> Self {
        Self { verdict, redirect: TC_ACT_SHOT }
    }
}

/// Client to backend.
#[classifier]
pub fn samport_forward(ctx: TcContext) -> i32 {
    forward(&Skb::new(ctx), Search::Quick)
}

/// Client to backend, for the few packets `samport_forward` leaves over: a program of its own,
/// because the verifier takes the thorough search only alone. It calls itself for another draw; the
/// kernel ends that after 33 calls.
#[classifier]
pub fn samport_crowded(ctx: TcContext) -> i32 {
    forward(&Skb::new(ctx), Search::Thorough)
}

#[inline(always)]
fn forward(skb: &Skb, search: Search) -> i32 {
    let outcome = match ether_type(skb) {
        Some(V4::ETHER_TYPE) => forward::run::<V4>(skb, search),
        Some(V6::ETHER_TYPE) => forward::run::<V6>(skb, search),
        _ => Some(Verdict::NotIp.into()),
    };
    let outcome = outcome.unwrap_or_else(|| {
        maps::tail_call(skb, program::CROWDED);
        Verdict::FlowAmbiguous.into()
    });
    let action = leave(&outcome);
    debug!(skb.context(), "forward: {}", outcome.verdict.name());
    action
}

/// Backend to client, at ingress of the backend's host-side veth.
#[classifier]
pub fn samport_reverse(ctx: TcContext) -> i32 {
    reverse(&Skb::new(ctx), Exit::Redirect)
}

/// Backend to client, at egress of the interface clients come in by: for backends whose packets go
/// through the host's stack.
#[classifier]
pub fn samport_egress(ctx: TcContext) -> i32 {
    reverse(&Skb::new(ctx), Exit::GoOn)
}

#[inline(always)]
fn reverse(skb: &Skb, exit: Exit) -> i32 {
    let outcome = match ether_type(skb) {
        Some(V4::ETHER_TYPE) => reverse::run::<V4>(skb, exit),
        Some(V6::ETHER_TYPE) => reverse::run::<V6>(skb, exit),
        _ => Verdict::NotIp.into(),
    };
    let action = leave(&outcome);
    debug!(skb.context(), "reverse: {}", outcome.verdict.name());
    action
}

/// The frame's `EtherType`, or `None` for what carries a VLAN tag outside of its bytes: such a
/// packet belongs to a VLAN device above the one we are attached to.
#[inline(always)]
fn ether_type(skb: &Skb) -> Option<[u8; 2]> {
    if skb.is_vlan_tagged() { None } else { skb.read(ethernet::TYPE.start) }
}

/// Counts the verdict and turns it into what the kernel is told. A packet we let pass goes on to
/// the next program on the hook, as if we were not there.
#[inline(always)]
fn leave(outcome: &Outcome) -> i32 {
    maps::count(outcome.verdict);
    match outcome.verdict.action() {
        Action::Pass => TC_ACT_UNSPEC,
        Action::Redirect => outcome.redirect,
        Action::Drop => TC_ACT_SHOT,
    }
}

/// A local client connects over IPv4.
#[cgroup_sock_addr(connect4)]
pub fn samport_connect4(ctx: SockAddrContext) -> i32 {
    dial::<Four>(&SockAddr::new(ctx), Call::Connect)
}

/// A local client connects over IPv6, or with a socket for IPv6 over IPv4.
#[cgroup_sock_addr(connect6)]
pub fn samport_connect6(ctx: SockAddrContext) -> i32 {
    dial::<Six>(&SockAddr::new(ctx), Call::Connect)
}

/// A local client sends a datagram to an address, over IPv4.
#[cgroup_sock_addr(sendmsg4)]
pub fn samport_sendmsg4(ctx: SockAddrContext) -> i32 {
    dial::<Four>(&SockAddr::new(ctx), Call::Send)
}

/// A local client sends a datagram to an address, over IPv6.
#[cgroup_sock_addr(sendmsg6)]
pub fn samport_sendmsg6(ctx: SockAddrContext) -> i32 {
    dial::<Six>(&SockAddr::new(ctx), Call::Send)
}

/// A local client has received a datagram with a socket for IPv4.
#[cgroup_sock_addr(recvmsg4)]
pub fn samport_recvmsg4(ctx: SockAddrContext) -> i32 {
    restore::<Four>(&SockAddr::new(ctx), Named::Sender)
}

/// A local client has received a datagram with a socket for IPv6.
#[cgroup_sock_addr(recvmsg6)]
pub fn samport_recvmsg6(ctx: SockAddrContext) -> i32 {
    restore::<Six>(&SockAddr::new(ctx), Named::Sender)
}

/// A local client asks for the other end of its socket for IPv4.
#[cgroup_sock_addr(getpeername4)]
pub fn samport_getpeername4(ctx: SockAddrContext) -> i32 {
    restore::<Four>(&SockAddr::new(ctx), Named::Peer)
}

/// A local client asks for the other end of its socket for IPv6.
#[cgroup_sock_addr(getpeername6)]
pub fn samport_getpeername6(ctx: SockAddrContext) -> i32 {
    restore::<Six>(&SockAddr::new(ctx), Named::Peer)
}

/// A socket is closed.
#[cgroup_sock(sock_release)]
pub fn samport_close(ctx: SockContext) -> i32 {
    local::forget(&Closed::new(ctx));
    GO_ON
}

#[inline(always)]
fn dial<H: Hook>(sock: &SockAddr, call: Call) -> i32 {
    if let Some(verdict) = local::dial::<H>(sock, call) {
        maps::count_in_call(verdict);
        debug!(sock.context(), "local: {}", verdict.name());
    }
    GO_ON
}

#[inline(always)]
fn restore<H: Hook>(sock: &SockAddr, named: Named) -> i32 {
    if let Some(verdict) = local::restore::<H>(sock, named) {
        maps::count_in_call(verdict);
        debug!(sock.context(), "local: {}", verdict.name());
    }
    GO_ON
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
