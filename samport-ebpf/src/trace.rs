//! Telling of single packets, while somebody watches. Nobody pays for it otherwise but by one look at a
//! word.
//!
//! At tc the packet is kept as it came; when it leaves, another program is called that compares the two and
//! gives the kernel the answer it was handed. That one has a stack and a verifier's patience of its own.

use aya_ebpf::bindings::{__sk_buff, bpf_sock_addr};
use aya_ebpf::helpers::{bpf_ktime_get_coarse_ns, bpf_ktime_get_ns, bpf_skb_load_bytes};
use aya_ebpf::programs::{SockAddrContext, TcContext};
use samport_common::family::{Family, V4, V6};
use samport_common::frame::Frame;
use samport_common::packet::Packet;
use samport_common::sock_lb::SocketKey;
use samport_common::trace::{self, KEPT_BYTES, KEPT_LEN, KEPT_SPARE, Kept, Seen, Traced, Watch};
use samport_common::verdict::Verdict;
use samport_common::wire::ethernet;

use crate::context::Context as _;
use crate::maps::{self, Tables, sockets, traces};
use crate::skb::Skb;
use crate::sockaddr::{SockAddr, SockFamily};

/// Nothing is shorter than an Ethernet header.
const LEAST: u32 = 14;
const _: () = assert!(ethernet::LEN == LEAST as usize);

/// The lowest byte of a number that has no other.
#[inline(always)]
fn lowest(number: u32) -> u8 {
    let [lowest, ..] = number.to_le_bytes();
    lowest
}

/// Whether somebody may be watching.
#[inline(always)]
pub fn is_watched() -> bool {
    match traces::watch() {
        // SAFETY: an aligned word of an array that is never freed.
        Some(watch) => unsafe { (&raw const (*watch).until_ns).read_volatile() != 0 },
        None => false,
    }
}

/// What is watched, unless it is nothing. Who watched and was killed is forgotten.
#[inline(always)]
fn watch() -> Option<&'static Watch> {
    let watch = traces::watch()?;
    // SAFETY: as in `is_watched`. A watch is written again with the same words while it lasts, and its
    // first words before there is a time.
    unsafe {
        if (&raw const (*watch).until_ns).read_volatile() > bpf_ktime_get_coarse_ns() {
            return Some(&*watch);
        }
        (&raw mut (*watch).until_ns).write_volatile(0);
    }
    None
}

/// Keeps a packet as it comes, if somebody watches. 1 if it was kept.
#[inline(always)]
pub fn begin(ctx: *mut __sk_buff) -> u32 {
    if is_watched() { keep(ctx) } else { 0 }
}

#[inline(never)]
fn keep(ctx: *mut __sk_buff) -> u32 {
    let (Some(_), Some(kept)) = (watch(), traces::kept_packet()) else { return 0 };
    let skb = Skb::new(TcContext::new(ctx));
    let len = skb.len().min(KEPT_LEN);
    if len < LEAST {
        return 0;
    }
    kept.len = len;
    // SAFETY: the context is valid, and the room is as long as the length can be.
    let loaded = unsafe { bpf_skb_load_bytes(ctx.cast(), 0, kept.bytes.as_mut_ptr().cast(), len) };
    u32::from(loaded == 0)
}

/// The packet as it came.
struct AsItCame(&'static Kept);

impl Frame for AsItCame {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        const { assert!(N <= KEPT_SPARE) };
        let Self(kept) = self;
        if offset >= KEPT_BYTES || offset + N > kept.len as usize {
            return None;
        }
        // The compiler would leave out the mask, which the verifier needs.
        let at = core::hint::black_box(offset) & (KEPT_BYTES - 1);
        // SAFETY: at..at+N is inside of the bytes: it begins below KEPT_BYTES, and is no longer than what
        // is spare behind them.
        Some(unsafe { kept.bytes.as_ptr().add(at).cast::<[u8; N]>().read() })
    }

    #[inline(always)]
    fn reconsider(&self, offset: usize) -> usize {
        maps::scratch::opaque(offset)
    }
}

/// Goes on in the program that tells. Returns only if that is not possible.
#[inline(always)]
pub fn end(skb: &Skb, verdict: Verdict, action: i32) {
    skb.set_trace_end(verdict, action);
    traces::call_tracer(skb);
    traces::count_untold();
}

/// Tells of a packet at tc.
#[inline(always)]
pub fn emit(skb: &Skb, verdict: u32) {
    let (Some(watch), Some(kept), Some(draft)) = (watch(), traces::kept_packet(), traces::traced())
    else {
        return;
    };
    if !watch.wants_verdict(verdict) {
        return;
    }
    *draft = Traced::default();
    let ctx = skb.pointer_to_context();
    match AsItCame(kept).read(ethernet::TYPE.start) {
        Some(V4::ETHER_TYPE) => look_twice::<V4>(ctx),
        Some(V6::ETHER_TYPE) => look_twice::<V6>(ctx),
        _ => {}
    }
    submit(watch, verdict, skb.hook() as u32, skb.ifindex(), skb.len());
}

#[inline(always)]
fn look_twice<P: Family>(ctx: *mut __sk_buff) {
    as_it_came::<P>(ctx);
    as_it_leaves::<P>(ctx);
}

/// A function of its own, with a stack of its own, like the next. What they return says nothing; the kernel
/// wants every function to return something.
#[inline(never)]
fn as_it_came<P: Family>(_: *mut __sk_buff) -> u32 {
    if let (Some(kept), Some(draft)) = (traces::kept_packet(), traces::traced()) {
        trace::look::<P, _>(&AsItCame(kept), &mut draft.came);
    }
    0
}

#[inline(never)]
fn as_it_leaves<P: Family>(ctx: *mut __sk_buff) -> u32 {
    if let Some(draft) = traces::traced() {
        trace::look::<P, _>(&Skb::new(TcContext::new(ctx)), &mut draft.left);
    }
    0
}

/// Hands over the draft, if it is of a packet that is watched.
#[inline(always)]
fn submit(watch: &Watch, verdict: u32, seen: u32, ifindex: u32, len: u32) {
    let Some(draft) = traces::traced() else { return };
    if watch.wants(&draft.came, &draft.left) {
        draft.at_ns = now_ns();
        draft.ifindex = ifindex;
        draft.len = len;
        draft.verdict = lowest(verdict);
        draft.seen = lowest(seen);
        traces::set_unserved(draft);
    }
}

#[inline(always)]
fn now_ns() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_ktime_get_ns() }
}

/// Drafts what is told of a frame at XDP: as it came, and the backend it was sent to, 0 for none. Apart from
/// the telling: before Linux 6.x counted more finely, the stacks of both did not fit beside the caller's.
#[inline(never)]
pub fn draft_frame<P: Tables>(packet: &Packet<P::Addr>, backend: u32) -> u32 {
    let Some(draft) = traces::traced() else { return 0 };
    *draft = Traced::default();
    trace::set::<P>(&mut draft.came, packet);
    trace::set::<P>(&mut draft.left, packet);
    if backend != 0
        && let Some(backend) = maps::backend(backend)
    {
        draft.left.destination = backend.addr;
        draft.left.destination_port = backend.port;
    }
    0
}

/// Tells of the frame that was drafted.
#[inline(never)]
pub fn tell_of_frame(verdict: u32, ifindex: u32, len: u32) -> u32 {
    if let Some(watch) = watch()
        && watch.wants_verdict(verdict)
    {
        submit(watch, verdict, Seen::Xdp as u32, ifindex, len);
    }
    0
}

/// Tells of a system call of a client on this machine. It may be interrupted by another one on the same CPU:
/// nothing is drafted.
#[inline(never)]
pub fn tell_of_call<H: SockFamily>(ctx: *mut bpf_sock_addr, verdict: u32) -> u32 {
    let Some(watch) = watch() else { return 0 };
    if !watch.wants_verdict(verdict) {
        return 0;
    }
    let Some(mut room) = traces::reserve_traced() else { return 0 };
    let traced = room.write(Traced::default());
    let sock = SockAddr::new(SockAddrContext::new(ctx));
    write_call::<H>(&sock, verdict, traced);
    if watch.wants(&traced.came, &traced.left) {
        traced.at_ns = now_ns();
        traced.verdict = lowest(verdict);
        traced.seen = Seen::Call as u8;
        room.submit(0);
    } else {
        room.discard(0);
    }
    0
}

#[inline(always)]
fn write_call<H: SockFamily>(sock: &SockAddr, verdict: u32, traced: &mut Traced) {
    traced.came.source = H::source(sock);
    traced.came.source_port = sock.own_port();
    traced.came.protocol = lowest(sock.protocol());
    let (named, port) = (H::addr(sock), sock.port());
    if verdict == Verdict::LocalRestored as u32 {
        traced.left.source = named;
        traced.left.source_port = port;
        return;
    }
    if verdict == Verdict::LocalForward as u32 || verdict == Verdict::LocalUnremembered as u32 {
        // What is named now is the backend; what was dialled is remembered by it.
        traced.left.destination = named;
        traced.left.destination_port = port;
        let key = SocketKey::new(sock.cookie(), named, port);
        let dialled = match sockets::local_peer(key.cookie) {
            Some(connected) if connected.is_with(&named, port) => Some(&connected.dialled),
            _ => sockets::local_sender(&key),
        };
        if let Some(dialled) = dialled {
            traced.came.destination = dialled.addr;
            traced.came.destination_port = dialled.port;
        }
        return;
    }
    traced.came.destination = named;
    traced.came.destination_port = port;
}
