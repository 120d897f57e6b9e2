//! The way in before there is an skb: what is not allowed is dropped, and what goes into a container is
//! rewritten and sent there. Everything else is left to `samport_forward`, which finds the flow that
//! was opened here.

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_REDIRECT};
use aya_ebpf::helpers::{bpf_fib_lookup, bpf_redirect};
use aya_ebpf::programs::XdpContext;
use samport_common::checksum;
use samport_common::family::{Family, V4, V6};
use samport_common::frame::Frame;
use samport_common::layout::{Backend, ForwardMode, XdpDevice};
use samport_common::packet::{MAX_OFFSET, Packet};
use samport_common::rewrite::{self, End, Rewrite};
use samport_common::source::REFUSED;
use samport_common::verdict::{Action, Verdict};
use samport_common::wire::ethernet;
use samport_common::wire::protocol::Protocol;
use zerocopy::IntoBytes as _;

use crate::choice::OpenError;
use crate::context::{Context, Hook};
use crate::forward;
use crate::load_store;
use crate::maps::{self, Tables};
use crate::nat;
use crate::skb::{self, Ends};
use crate::source::FibLookup;
use crate::trace;

/// A packet at XDP.
pub struct Xdp {
    ctx: XdpContext,
    ifindex: u32,
    device: &'static XdpDevice,
}

/// A device before it is asked for.
static UNKNOWN: XdpDevice = XdpDevice { mac: [0; 6], generic: 0, pad: 0 };

/// What the kernel is told about a packet. What is passed on is counted where it goes.
#[inline(always)]
pub fn run(ctx: XdpContext) -> u32 {
    let xdp = Xdp::new(ctx);
    let verdict = match xdp.read(ethernet::TYPE.start) {
        Some(V4::ETHER_TYPE) => forward::<V4>(xdp),
        Some(V6::ETHER_TYPE) => forward::<V6>(xdp),
        _ => None,
    };
    let Some(verdict) = verdict else { return XDP_PASS };
    maps::count(verdict);
    match verdict.action() {
        Action::Redirect => XDP_REDIRECT,
        Action::Drop => XDP_DROP,
        Action::Pass => XDP_PASS,
    }
}

/// The verdict, or `None` for what others are to look at.
#[inline(always)]
fn forward<P: Tables>(mut xdp: Xdp) -> Option<Verdict> {
    let packet = nat::parse::<P, _>(&xdp).ok()?;
    if !maps::is_listened_on(packet.protocol, packet.destination.port) {
        return None;
    }
    // Nobody here can tell whether it is finished; at tc the kernel can.
    if rewrite::may_come_unfinished::<P>(&packet, xdp.read(rewrite::checksum_at(&packet))?) {
        return None;
    }
    // Unset for the moment in which the program is attached already.
    xdp.device = maps::xdp_device(xdp.ifindex)?;
    let xdp = &xdp;
    // IPv6 would not have the stack for both ways; the long one says the same.
    if P::ETHER_TYPE == V4::ETHER_TYPE
        && let Some(hit) = forward::fast_path::<P, _>(xdp, Hook::Interface, &packet)
    {
        return send_to::<P>(xdp, &packet, hit.id, hit.backend);
    }
    let word = match forward::choose::<P, _>(xdp, Hook::Interface, &packet) {
        Ok(hit) => hit.word,
        // The rest is counted, and told to the log, where skbs are.
        Err(OpenError::Verdict(Verdict::NotAllowed)) => {
            return Some(told::<P>(xdp, &packet, Verdict::NotAllowed, 0));
        }
        Err(OpenError::Verdict(_) | OpenError::SlowPath) => return None,
    };
    send_to::<P>(xdp, &packet, word.backend(), maps::backend(word.backend())?)
}

/// Sends a packet to its backend, if that takes frames.
#[inline(always)]
fn send_to<P: Tables>(
    xdp: &Xdp,
    packet: &Packet<P::Addr>,
    id: u32,
    backend: &'static Backend,
) -> Option<Verdict> {
    if !takes_frames(xdp.device, backend) {
        return None;
    }
    let to = maps::endpoint::<P>(backend);
    let plan = rewrite::plan::<P>(packet, End::Destination, to);
    if send::<P>(xdp, &plan, backend).is_none() {
        return Some(told::<P>(xdp, packet, Verdict::RewriteFailed, 0));
    }
    maps::count_backend(id, |stats| {
        stats.packets_in += 1;
        stats.bytes_in += u64::from(xdp.len());
    });
    Some(told::<P>(xdp, packet, Verdict::ForwardXdp, id))
}

/// The verdict, after whoever watches was told of it.
#[inline(always)]
fn told<P: Tables>(xdp: &Xdp, packet: &Packet<P::Addr>, verdict: Verdict, backend: u32) -> Verdict {
    if trace::is_watched() {
        trace::draft_frame::<P>(packet, backend);
        trace::tell_of_frame(verdict as u32, xdp.ifindex, xdp.len());
    }
    verdict
}

/// Whether a frame of this device can be redirected to the backend's veth: an skb always, a bare
/// frame only if the container's side polls for it. See docs/concepts/xdp.md.
#[inline(always)]
fn takes_frames(device: &XdpDevice, backend: &'static Backend) -> bool {
    matches!(ForwardMode::from_byte(backend.forward_mode), ForwardMode::Peer)
        && (device.generic != 0 || backend.takes_frames != 0)
}

/// Rewrites the frame, whose checksums are complete, and redirects it.
#[inline(always)]
fn send<P: Tables>(xdp: &Xdp, rewrite: &Rewrite<P>, backend: &'static Backend) -> Option<()> {
    if let Some(at) = rewrite.ip.l3_checksum_at {
        let field: [u8; 2] = xdp.read(at)?;
        xdp.write(at, checksum::update(field, rewrite.ip.addr_csum_diff))?;
    }
    match rewrite.ip.addr.as_bytes() {
        [a, b, c, d] => xdp.write(rewrite.ip.addr_at, [*a, *b, *c, *d])?,
        bytes => xdp.write::<16>(rewrite.ip.addr_at, *bytes.first_chunk()?)?,
    }
    xdp.write(rewrite.port_at, rewrite.port)?;
    let field: [u8; 2] = xdp.read(rewrite.l4_checksum_at)?;
    xdp.write(rewrite.l4_checksum_at, rewrite::updated(rewrite, field))?;
    xdp.write(ethernet::DESTINATION.start, backend.mac)?;
    // SAFETY: no pointers; the kernel checks the index.
    let redirected = unsafe { bpf_redirect(backend.ifindex, 0) };
    if redirected == i64::from(XDP_REDIRECT) { Some(()) } else { None }
}

impl Xdp {
    /// A frame of a device that was not asked for yet.
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation, reason = "aya makes a usize of the kernel's u32")]
    pub fn new(ctx: XdpContext) -> Self {
        let ifindex = ctx.ingress_ifindex() as u32;
        Self { ctx, ifindex, device: &UNKNOWN }
    }

    /// Overwrites the bytes at `offset`; `None` if the frame ends before.
    #[inline(always)]
    fn write<const N: usize>(&self, offset: usize, bytes: [u8; N]) -> Option<()> {
        let at = self.pointer::<N>(offset)?;
        // SAFETY: at..at+N is inside the packet, checked by `pointer`.
        unsafe { load_store::store(at, bytes) };
        Some(())
    }

    #[inline(always)]
    fn pointer<const N: usize>(&self, offset: usize) -> Option<usize> {
        if offset > MAX_OFFSET {
            return None;
        }
        let at = self.ctx.data() + offset;
        if at + N > self.ctx.data_end() { None } else { Some(at) }
    }
}

impl Frame for Xdp {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let at = self.pointer::<N>(offset)?;
        // SAFETY: at..at+N is below data_end, checked by `pointer`.
        Some(unsafe { load_store::load(at) })
    }

    #[inline(always)]
    fn reconsider(&self, offset: usize) -> usize {
        maps::scratch::opaque(offset)
    }
}

impl Context for Xdp {
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation, reason = "a frame is shorter than 4 GiB")]
    fn len(&self) -> u32 {
        (self.ctx.data_end() - self.ctx.data()) as u32
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        self.ifindex
    }

    #[inline(always)]
    fn fib_lookup(&self, question: *mut FibLookup, flags: u32) -> i64 {
        // SAFETY: the context is valid, and so is the question, which the kernel checks by its length.
        unsafe { bpf_fib_lookup(self.ctx.ctx.cast(), question.cast(), FibLookup::LEN, flags) }
    }

    #[inline(always)]
    fn source_marks<P: Tables>(&self, packet: &Packet<P::Addr>) -> u32 {
        if maps::scratch::put(*packet) { P::marks_of_frame(self.ctx.ctx) } else { REFUSED }
    }

    #[inline(always)]
    fn source_move<P: Tables>(&self, packet: &Packet<P::Addr>, reply_path: u32, flow: u32) -> u32 {
        let packet = self.source_marks::<P>(packet);
        P::move_of(Hook::Interface, reply_path, flow, packet)
    }

    #[inline(always)]
    fn answers_outbound<P: Tables>(&self, packet: &Packet<P::Addr>) -> bool {
        maps::scratch::put(*packet) && P::answers_outbound_of_frame(self.ctx.ctx) != 0
    }

    #[inline(always)]
    fn has_connection<A>(&self, protocol: Protocol, ends: &Ends<A>) -> bool {
        skb::is_connected(skb::socket_state(self.ctx.ctx.cast(), protocol, ends))
    }

    #[inline(always)]
    fn attempt(&self) -> u32 {
        0
    }

    #[inline(always)]
    fn is_for_host(&self) -> bool {
        self.read(ethernet::DESTINATION.start) == Some(self.device.mac)
    }

    #[inline(always)]
    fn node(&self) -> u32 {
        0
    }

    #[inline(always)]
    fn pull_headers(&self) -> bool {
        false
    }
}
