//! Validating sources: the look-ups around `samport_common::source`.

use aya_ebpf::bindings::{__sk_buff, xdp_md};
use aya_ebpf::programs::{TcContext, XdpContext};
use samport_common::family::{Family, V4, V6};
use samport_common::flow::{ReplyPath, marks};
use samport_common::layout::DeviceInfo;
use samport_common::packet::Packet;
use samport_common::source::{
    self, Arrival, Detour, From, Ingress, Known, Move, NextHop, Route, Side, Validity,
};
use samport_common::wire::protocol::Protocol;

use crate::context::{Context, Hook};
use crate::maps::{self, Tables};
use crate::skb::Skb;
use crate::xdp::Xdp;

/// `struct bpf_fib_lookup` of linux/bpf.h, 64 bytes.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct FibLookup {
    family: u8,
    protocol: u8,
    /// Both ports, and a length that is not to be checked.
    ports_and_length: [u16; 3],
    /// In: the device packets come in by. Out: the device of the route.
    ifindex: u32,
    tos: u32,
    source: [u8; 16],
    destination: [u8; 16],
    /// VLAN tag and MAC addresses that the kernel may fill in.
    filled: [u32; 4],
}

impl FibLookup {
    /// Its length, as the kernel wants to be told.
    pub const LEN: i32 = 64;

    /// The same question about another device.
    #[inline(always)]
    pub fn by(self, ifindex: u32) -> Self {
        Self { ifindex, ..self }
    }

    /// Out: the device of the route.
    #[inline(always)]
    pub fn ifindex(&self) -> u32 {
        self.ifindex
    }
}

const _: () = assert!(size_of::<FibLookup>() == 64);

/// `AF_INET` and `AF_INET6`.
const ADDRESS_FAMILIES: [u8; 2] = [2, 10];

/// What is asked of the packet that was kept in this run, for programs of one type and packets of one family.
///
/// Exported, which makes them functions that the verifier walks by themselves, once, whatever their callers
/// know (global functions, Linux 5.6). Inlined they double what `samport_choose` takes: docs/internals/verifier.md.
macro_rules! global {
    (marks $name:ident, $family:ty, $ctx:ty, $context:expr) => {
        /// The marks of a flow that the packet opens, or [`source::REFUSED`].
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $name(ctx: *mut $ctx) -> u32 {
            let (context, hook) = $context(ctx);
            // SAFETY: the caller has kept such a packet.
            let packet = unsafe { maps::scratch::get::<Packet<<$family as Family>::Addr>>() };
            let Some(packet) = packet else { return source::REFUSED };
            let side = side(&context, hook);
            validity::<$family, _>(&context, hook, packet).marks(side)
        }
    };
    (moves $name:ident, $family:ty) => {
        /// The number of the [`Move`] for a packet of a flow with this way and these marks, that has come in by
        /// another device; `packet` are its own marks. Asking for those here would take too much stack.
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $name(hook: u32, reply_path: u32, flow: u32, packet: u32) -> u32 {
            // SAFETY: as above.
            let kept = unsafe { maps::scratch::get::<Packet<<$family as Family>::Addr>>() };
            let Some(kept) = kept else { return Move::Refuse as u32 };
            let (hook, reply_path) = (Hook::from_number(hook), ReplyPath::from_bits(reply_path));
            moves::<$family>(hook, kept, reply_path, flow, packet) as u32
        }
    };
}

global!(marks samport_source_of_skb4, V4, __sk_buff, skb);
global!(marks samport_source_of_skb6, V6, __sk_buff, skb);
global!(marks samport_source_of_frame4, V4, xdp_md, frame);
global!(marks samport_source_of_frame6, V6, xdp_md, frame);
global!(moves samport_move4, V4);
global!(moves samport_move6, V6);

#[inline(always)]
fn skb(ctx: *mut __sk_buff) -> (Skb, Hook) {
    let skb = Skb::new(TcContext::new(ctx));
    let hook = skb.hook();
    (skb, hook)
}

#[inline(always)]
fn frame(ctx: *mut xdp_md) -> (Xdp, Hook) {
    (Xdp::new(XdpContext::new(ctx)), Hook::Interface)
}

/// What the packet's source is worth.
#[inline(always)]
fn validity<P: Tables, C: Context>(context: &C, hook: Hook, packet: &Packet<P::Addr>) -> Validity {
    let ifindex = context.ifindex();
    // Without an entry, which the loader makes before it attaches a program there, nothing is held against
    // a source but what is known of the address itself.
    let device = maps::device(ifindex).copied().unwrap_or_default();
    let ingress = match hook {
        Hook::Interface => Ingress::Interface,
        Hook::Bridge => Ingress::Bridge,
        Hook::Container | Hook::Device | Hook::Egress => Ingress::Container,
        Hook::Tunnel => Ingress::Tunnel,
    };
    source::validate::<P>(
        &packet.source.addr,
        known::<P>(&packet.source.addr, ifindex),
        &Arrival { ingress, ifindex, device },
        #[inline(always)]
        |from| route_back::<P, C>(context, packet, device, from),
        |ifindex| maps::device(ifindex).copied(),
    )
}

#[inline(always)]
fn known<P: Tables>(addr: &P::Addr, ifindex: u32) -> Known {
    Known::of(P::source_devices(addr), ifindex)
}

/// The side that packets come in from here. A container's veth is outside if its bridge is an interface that
/// clients come in by.
#[inline(always)]
pub fn side<C: Context>(context: &C, hook: Hook) -> Side {
    match hook {
        Hook::Interface | Hook::Tunnel => Side::External,
        Hook::Bridge => Side::Internal,
        Hook::Container | Hook::Device | Hook::Egress => {
            side_of(context.ifindex()).unwrap_or(Side::Internal)
        }
    }
}

/// What becomes of a packet of an open flow that has come in by another device; `flow` and `packet` are the
/// marks of the flow, and of one that the packet would open.
#[inline(always)]
fn moves<P: Tables>(
    hook: Hook,
    packet: &Packet<P::Addr>,
    reply_path: ReplyPath,
    flow: u32,
    of_packet: u32,
) -> Move {
    let is = |marks: u32, mark: u16| marks & u32::from(mark) != 0;
    let side = |marks| if is(marks, marks::INTERNAL) { Side::Internal } else { Side::External };
    if of_packet == source::REFUSED {
        return Move::Refuse;
    }
    Detour {
        from: side(flow),
        to: side(of_packet),
        validity: Validity::Proven,
        is_link_local: P::is_link_local(&packet.source.addr),
        is_unproven: is(flow, marks::UNPROVEN),
        opens: packet.protocol == Protocol::Udp || packet.flags.opens(),
        is_old_device_hooked: side_of(reply_path.ifindex()).is_some(),
        is_from_veth_to_bridge: reply_path.is_container() && hook == Hook::Bridge,
    }
    .decide()
}

#[inline(always)]
pub fn side_of(ifindex: u32) -> Option<Side> {
    maps::device(ifindex).and_then(|device| Side::from_byte(device.side))
}

/// Writes the question for the route of a packet that the host sends: `source` as the kernel wants it, all zero for
/// none in particular.
#[inline(always)]
pub fn ask_for<P: Tables>(
    question: &mut FibLookup,
    ifindex: u32,
    protocol: Protocol,
    source: [u8; 16],
    destination: P::Addr,
) {
    *question = FibLookup {
        family: P::of_two(ADDRESS_FAMILIES),
        protocol: protocol.number(),
        ports_and_length: [0; 3],
        ifindex,
        tos: 0,
        source,
        destination: P::in_lookup(destination),
        filled: [0; 4],
    };
}

/// Where the route back to the packet's source leads: a packet from its destination to it, sent by the host,
/// is what the kernel's own filter asks about.
#[inline(always)]
fn route_back<P: Tables, C: Context>(
    context: &C,
    packet: &Packet<P::Addr>,
    device: DeviceInfo,
    from: From,
) -> Route {
    let Some(question) = maps::scratch::fib_lookup() else { return Route::Unknown };
    if device.lookup_ifindex == 0 {
        return Route::Unknown;
    }
    let service = match from {
        From::Service => P::in_lookup(packet.destination.addr),
        From::Anywhere => [0; 16],
    };
    ask_for::<P>(question, device.lookup_ifindex, packet.protocol, service, packet.source.addr);
    let answer = context.fib_lookup(question, 0);
    // The kernel puts the gateway in the place of the destination, if there is one.
    let next_hop = || {
        // SAFETY: an address is plain bytes, 16 at most. It stays where it is: the stack has no room.
        let hop = unsafe { &*question.destination.as_ptr().cast::<P::Addr>() };
        if *hop == packet.source.addr {
            NextHop::OnLink
        } else {
            NextHop::Gateway(known::<P>(hop, context.ifindex()))
        }
    };
    Route::of_fib_lookup(answer, question.ifindex, next_hop)
}
