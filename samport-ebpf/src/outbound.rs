//! What the host or a container begins itself from a port that is served: the look-ups around
//! `samport_common::outbound`.

use aya_ebpf::bindings::{__sk_buff, xdp_md};
use aya_ebpf::programs::{TcContext, XdpContext};
use samport_common::choose::Balance;
use samport_common::family::{Family, V4, V6};
use samport_common::flow::{EndpointKey, ServiceId};
use samport_common::outbound::{self, Outbound, OutboundKey};
use samport_common::packet::Packet;

use crate::context::Context;
use crate::flows;
use crate::maps::{self, Tables};
use crate::nat;
use crate::skb::{Ends, Skb};
use crate::xdp::Xdp;

/// Takes note of a packet that leaves the host from an address and port that are served and is no reply to a client.
#[inline(always)]
pub fn note<P: Tables>(skb: &Skb) {
    if let Ok(packet) = nat::parse_subprog::<P>(skb)
        && maps::is_listened_on(packet.protocol, packet.source.port)
        && is_begun_here::<P>(packet)
    {
        remember::<P>(packet);
    }
}

/// Whether a packet that leaves from a served port belongs to no client of the service.
#[inline(always)]
fn is_begun_here<P: Tables>(packet: &Packet<P::Addr>) -> bool {
    let key = EndpointKey::new(packet.source, packet.protocol.number());
    let Some(service) = P::service(&key) else { return false };
    let is_by_hash = Balance::from_byte(service.balance).is_by_hash();
    if !outbound::is_of_concern(packet.protocol, is_by_hash) {
        return false;
    }
    let Some(id) = ServiceId::new(service.id) else { return false };
    match flows::find_own::<P>(packet.destination, packet.source, id) {
        Some(entry) => entry.is_over(entry.word(), flows::now_tick()),
        None => true,
    }
}

#[inline(always)]
fn remember<P: Tables>(packet: &Packet<P::Addr>) {
    let key = OutboundKey::new(packet.source, packet.destination, packet.protocol);
    let now_tick = flows::now_tick();
    if let Some(known) = P::outbound(&key) {
        // SAFETY: map memory that may be given to another while it is touched, which then is remembered for longer.
        let value = unsafe { known.read_volatile() };
        if value.is_alive(now_tick, maps::timeout(value.state(packet.protocol))) {
            if value.seen_tick != now_tick {
                // SAFETY: likewise.
                unsafe { (&raw mut (*known).seen_tick).write_volatile(now_tick) };
            }
            return;
        }
    }
    P::remember_outbound(&key, Outbound { seen_tick: now_tick, answered: 0 });
}

/// What is asked of the packet that was kept in this run. Exported: see `source::global`.
macro_rules! global {
    ($name:ident, $family:ty, $ctx:ty, $context:expr) => {
        /// 1 if the packet, which would open a flow, answers what was begun here: as was seen when that left, or because a
        /// socket of the host is connected to its sender, which may have been before samport was here.
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $name(ctx: *mut $ctx) -> u32 {
            /// One after the other on the stack: XDP has little left.
            #[inline(never)]
            fn is_for_connected_socket(ctx: *mut $ctx, packet: &Packet<Addr>) -> u32 {
                u32::from($context(ctx).has_connection(packet.protocol, &Ends::of(packet)))
            }
            type Addr = <$family as Family>::Addr;

            // SAFETY: the caller has kept such a packet.
            let Some(packet) = (unsafe { maps::scratch::get::<Packet<Addr>>() }) else { return 0 };
            match answers_seen::<$family>(packet) {
                0 => is_for_connected_socket(ctx, packet),
                yes => yes,
            }
        }
    };
}

global!(samport_outbound_of_skb4, V4, __sk_buff, |ctx| Skb::new(TcContext::new(ctx)));
global!(samport_outbound_of_skb6, V6, __sk_buff, |ctx| Skb::new(TcContext::new(ctx)));
global!(samport_outbound_of_frame4, V4, xdp_md, |ctx| Xdp::new(XdpContext::new(ctx)));
global!(samport_outbound_of_frame6, V6, xdp_md, |ctx| Xdp::new(XdpContext::new(ctx)));

/// 1 if a packet answers what was seen to leave.
#[inline(never)]
fn answers_seen<P: Tables>(packet: &Packet<P::Addr>) -> u32 {
    let key = OutboundKey::new(packet.destination, packet.source, packet.protocol);
    let Some(known) = P::outbound(&key) else { return 0 };
    // SAFETY: as in `remember`.
    let value = unsafe { known.read_volatile() };
    let now_tick = flows::now_tick();
    if !value.is_alive(now_tick, maps::timeout(value.state(packet.protocol))) {
        return 0;
    }
    if value.answered == 0 || value.seen_tick != now_tick {
        // SAFETY: likewise.
        unsafe { known.write_volatile(Outbound { seen_tick: now_tick, answered: 1 }) };
    }
    1
}
