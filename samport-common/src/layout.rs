//! What stands in the maps besides flows (`flow`) and traces (`trace`), and how large the maps are.
//!
//! No enum, bool or Option crosses a map: bytes with total decoders.

mod clock;
mod devices;
mod nodes;
mod ports;
mod room;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::failover;
use crate::family::Address;
use crate::wire::protocol::Protocol;

pub use clock::Clock;
pub use devices::{DeviceInfo, DeviceSet, MAX_DEVICES, MAX_SOURCES, device};
pub use nodes::{MAX_NODES, Node};
pub use ports::{CachedPort, PORT_CACHE_LEN, PORT_WORDS, PortService, port_bit};
pub use room::{HELD_LEN, Held, RoomLimits, UNPROVEN, held_by, is_nearly_full};

/// Version of every key and value layout together. A change to any of them raises it.
pub const LAYOUT_VERSION: u32 = 6;

/// Indices of `PROGRAMS`: programs reached by tail call.
pub mod program {
    /// `samport_slow_path`: forward, the slow path, and first fragments.
    pub const SLOW_PATH: u32 = 0;
    /// `samport_icmp`: forward, ICMP errors.
    pub const ICMP: u32 = 1;
    /// `samport_hairpin`: forward, for what a container sends that is no reply.
    pub const HAIRPIN: u32 = 2;
    /// `samport_reverse_first`: reverse, first fragments.
    pub const REVERSE_FIRST: u32 = 3;
    /// `samport_reverse_icmp`: reverse, ICMP errors.
    pub const REVERSE_ICMP: u32 = 4;
    /// `samport_later`: later fragments, either way.
    pub const LATER: u32 = 5;
    /// `samport_reset`: forward, what is answered with a reset.
    pub const RESET: u32 = 6;
    /// `samport_refused`: reverse, a backend that refuses a connection.
    pub const REFUSED: u32 = 7;
    /// `samport_open`: forward, opening a flow that `samport_slow_path` has looked for.
    pub const OPEN: u32 = 8;
    /// `samport_choose`: forward, what is no packet of an open flow, or a service's that has no shortcut.
    pub const CHOOSE: u32 = 9;
    /// `samport_answer`: reverse, likewise.
    pub const ANSWER: u32 = 10;
    /// `samport_forward6`: forward, IPv6.
    pub const FORWARD6: u32 = 11;
    /// `samport_reverse6`: reverse, IPv6.
    pub const REVERSE6: u32 = 12;
    /// `samport_make_way`: forward, for a client's port all of whose flows may be somebody else's.
    pub const MAKE_WAY: u32 = 13;
    /// `samport_unwrap`: what comes in by the tunnel.
    pub const UNWRAP: u32 = 14;
    /// `samport_inner`: the packet that was inside.
    pub const INNER: u32 = 15;
    /// `samport_wrap`: what leaves by the tunnel.
    pub const WRAP: u32 = 16;
    /// `samport_probe`: another node's probe.
    pub const PROBE: u32 = 17;
    /// `samport_too_big`: what does not fit through the tunnel.
    pub const TOO_BIG: u32 = 18;
    /// Length of the array.
    pub const COUNT: u32 = 19;
}

/// Most backends of one samport. Id 0 is never used: maps by backend have one entry more.
pub const MAX_BACKENDS: u32 = 16_384;
/// Default number of backends there is room for.
pub const DEFAULT_BACKENDS: u32 = 4_096;
/// Slots of `TABLE`, shared by all services and by the old and the new table during a swap. The kernel
/// takes 8 bytes for each.
pub const TABLE_SLOTS: u32 = 1 << 20;
/// Frontends: addresses times ports, for each family.
pub const MAX_FRONTENDS: u32 = 4_096;
/// Endpoints that backends answer from, for each family: those of new backends are there before those of
/// old ones go.
pub const MAX_REVERSE_NAT: u32 = 2 * MAX_BACKENDS;
/// Services that may share one backend endpoint.
pub const SHARED_BY: usize = 4;
/// Datagrams in fragments that are remembered, for each family.
pub const MAX_FRAGMENTED: u32 = 4_096;
/// Entries of the tables for flows that find no room in the others: an eighth of those, and no fewer than this.
pub const MIN_OVERFLOW: u32 = 4_096;

/// Entries of the table for flows that find no room in a table of so many.
#[must_use]
pub const fn overflow_of(flows: u32) -> u32 {
    let eighth = flows / 8;
    if eighth < MIN_OVERFLOW { MIN_OVERFLOW } else { eighth }
}
/// Networks in all allow-lists together, for each family.
pub const MAX_ALLOWED: u32 = 16_384;
/// Clients' addresses that are remembered with their backend, for each family.
pub const MAX_AFFINITY: u32 = 32_768;
/// What the host and its containers have begun themselves from served ports, for each family.
pub const MAX_OUTBOUND: u32 = 8_192;
/// Bytes of the ring of [`Event`]s.
pub const EVENT_BYTES: u32 = 65_536;
/// Default number of entries of each flow table.
pub const DEFAULT_FLOWS: u32 = 131_072;

/// Bytes the kernel locks for one flow, by length of the address in the key (4 or 16): the
/// hash element's header (48 in Linux 5.x to 6.x), key and value rounded up to 8, and a bucket of 16.
#[must_use]
pub const fn bytes_per_flow(address_len: u64) -> u64 {
    let key = (address_len + 4).next_multiple_of(8);
    48 + key + size_of::<crate::flow::Flow>() as u64 + 16
}

/// Value of `SERVICES`: 24 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Service {
    /// A [`Slots`]: one word, so that nobody reads the base of one table and the length of another, and the first, so that
    /// it is the first to be another frontend's.
    pub slots: u64,
    /// Seconds, in ticks, for which a client's address stays with its backend; 0 for not at all.
    pub affinity_ticks: u32,
    /// A `ServiceId`.
    pub id: u16,
    /// A [`Scope`].
    pub scope: u8,
    /// A [`Balance`](crate::choose::Balance).
    pub balance: u8,
    /// Bits of [`service`].
    pub flags: u32,
    /// Zero.
    pub pad: u32,
}

/// Bits of [`Service::flags`].
pub mod service {
    /// Only clients in `ALLOWED` are served.
    pub const RESTRICTED: u32 = 1;
    /// A backend that refuses or is silent is exchanged for another.
    pub const FAILOVER: u32 = 2;
    /// Without a backend, packets are dropped rather than refused.
    pub const DROP: u32 = 4;
    /// Some backend's endpoint is other services' too: only the slow path can choose.
    pub const SHARED: u32 = 8;
    /// Some backend is another node. What containers of this machine dial is served by the others only: it would leave
    /// with an address that means another container there.
    pub const NODES: u32 = 16;
}

/// Where in `TABLE` a service's slots are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slots {
    /// The first one. Less than 2^24.
    pub base: u32,
    /// How many there are; 0 while the service has no backend. Less than 2^24.
    pub len: u32,
    /// [`EndpointKey::fold`](crate::flow::EndpointKey::fold) of the frontend; 0 if that is not said. The kernel may use the
    /// memory of a value for the next frontend at once: by this a program knows that it is still the value it has found.
    pub key_fold: u16,
}

const _: () = assert!(TABLE_SLOTS < 1 << 24);

impl Slots {
    /// As a map holds it.
    #[must_use]
    #[inline(always)]
    pub const fn to_bits(self) -> u64 {
        let [low, high] = self.key_fold.to_le_bytes();
        (high as u64) << 56 | (self.base as u64) << 32 | (low as u64) << 24 | self.len as u64
    }

    /// As a map holds it.
    #[must_use]
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation, reason = "24 and 16 bits")]
    pub const fn from_bits(bits: u64) -> Self {
        const MASK: u64 = (1 << 24) - 1;
        Self {
            base: (bits >> 32 & MASK) as u32,
            len: (bits & MASK) as u32,
            key_fold: (bits >> 48 & 0xff00 | bits >> 24 & 0xff) as u16,
        }
    }

    /// Whether the value may be that of the frontend with this [fold](crate::flow::EndpointKey::fold).
    #[must_use]
    #[inline(always)]
    pub const fn is_of(self, key_fold: u16) -> bool {
        self.key_fold == key_fold || self.key_fold == 0
    }

    /// The index in `TABLE` of one of them.
    #[must_use]
    #[inline(always)]
    pub const fn index(self, slot: u32) -> u32 {
        self.base.wrapping_add(slot)
    }
}

/// Who may dial a frontend.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Scope {
    /// Everybody: an address of an interface that is served.
    External = 0,
    /// Only the host itself and its containers: any other address of the host.
    Internal = 1,
    /// Nobody: it stands for whatever address a packet of the tunnel is for, and is served by this machine's own
    /// backends. Its address is the unspecified one.
    Local = 2,
}

impl Scope {
    /// Total decoder: an unknown byte is [`Scope::Internal`], the narrower one.
    #[must_use]
    #[inline(always)]
    pub const fn from_byte(byte: u8) -> Self {
        match byte {
            0 => Self::External,
            2 => Self::Local,
            _ => Self::Internal,
        }
    }
}

/// Value of `BACKENDS`: 72 bytes. All but `weight`, `state`, `shared` and `answers_on` never change while an
/// id is in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Backend {
    /// Address in its 16-byte form.
    pub addr: [u8; 16],
    /// Port, network order.
    pub port: [u8; 2],
    /// MAC of the container, for [`ForwardMode::Peer`] and [`ForwardMode::Child`].
    pub mac: [u8; 6],
    /// Device to redirect to: the host's end of the veth, or the one the route names.
    pub ifindex: u32,
    /// Counts the users of this id (24 bits).
    pub generation: u32,
    /// Its share relative to the others of its service.
    pub weight: u32,
    /// A [`BackendState`].
    pub state: u8,
    /// A [`ForwardMode`].
    pub forward_mode: u8,
    /// 1 if other services use the same endpoint: their flows must not be mixed up with ours.
    pub shared: u8,
    /// 1 if the container's side of its veth takes bare frames that XDP redirects.
    pub takes_frames: u8,
    /// The devices its replies may come in by. What comes from its address by another device is no reply.
    pub answers_on: DeviceSet,
}

/// Value of `XDP_DEVICES`, by device index: 8 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct XdpDevice {
    /// The device's own address.
    pub mac: [u8; 6],
    /// 1 if the program runs on skbs (generic mode), 0 if on the driver's frames (native).
    pub generic: u8,
    /// Zero.
    pub pad: u8,
}

/// Devices that XDP can be attached to.
pub const MAX_XDP_DEVICES: u32 = 256;

/// Whether a backend may be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum BackendState {
    /// The id is not in use. Must never be met in a table.
    Unset = 0,
    /// Serves: its flows go on. Whether new ones come is up to the table.
    Serving = 1,
    /// Gone: its flows are refused.
    Down = 2,
    /// Its flows go on; a client that stayed with it goes to another with its next one. A table names
    /// it only if there is no other.
    Draining = 3,
    /// Fails its health checks, and a table names others: its connections go on, but its clients' next datagrams
    /// go to others, which have no connection to lose.
    Unhealthy = 4,
}

impl BackendState {
    /// Total decoder: an unknown byte is [`BackendState::Unset`].
    #[must_use]
    #[inline(always)]
    pub const fn from_byte(byte: u8) -> Self {
        match byte {
            1 => Self::Serving,
            2 => Self::Down,
            3 => Self::Draining,
            4 => Self::Unhealthy,
            _ => Self::Unset,
        }
    }

    /// Whether it takes packets at all.
    #[must_use]
    #[inline(always)]
    pub const fn serves(self) -> bool {
        matches!(self, Self::Serving | Self::Draining | Self::Unhealthy)
    }

    /// Whether flows of this protocol go on.
    #[must_use]
    #[inline(always)]
    pub const fn keeps(self, protocol: Protocol) -> bool {
        match protocol {
            Protocol::Tcp => self.serves(),
            Protocol::Udp => matches!(self, Self::Serving | Self::Draining),
        }
    }
}

/// How a packet gets to a backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum ForwardMode {
    /// Routed by the host's stack, through its firewall.
    Stack = 0,
    /// Out of a device by the neighbour table.
    Neighbour = 1,
    /// Straight into the network namespace at the other end of a veth.
    Peer = 2,
    /// To the macvlan child of the interface clients come in by, found by its MAC.
    Child = 3,
    /// Unchanged, through the tunnel to another node, which has containers of its own.
    Node = 4,
}

impl ForwardMode {
    /// Total decoder: an unknown byte is [`ForwardMode::Stack`].
    #[must_use]
    #[inline(always)]
    pub const fn from_byte(byte: u8) -> Self {
        match byte {
            1 => Self::Neighbour,
            2 => Self::Peer,
            3 => Self::Child,
            4 => Self::Node,
            _ => Self::Stack,
        }
    }
}

/// Value of `REV_NAT`: which services a backend's endpoint belongs to, 52 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ReverseNat {
    /// Number of entries in use.
    pub len: u32,
    /// The entries.
    pub of: [ReverseNatEntry; SHARED_BY],
}

/// One service that uses a backend's endpoint.
#[derive(
    Clone, Copy, PartialEq, Eq, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct ReverseNatEntry {
    /// The backend's id within that service.
    pub backend: u32,
    /// The generation of that id.
    pub generation: u32,
    /// A `ServiceId`.
    pub service: u16,
    /// Zero.
    pub pad: u16,
}

/// Value of `BACKEND_LOAD`, by backend id: how busy a backend is, shared by all CPUs. 24 bytes.
#[derive(
    Clone, Copy, PartialEq, Eq, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct BackendLoad {
    /// Flows opened in this generation.
    pub opened: u64,
    /// Flows seen to end. Flows that expire or make room are not; the loader counts those in `OPEN_CORRECTION`.
    pub ended: u64,
    /// Zero. In layout 3 a value had 16 bytes, of which two numbers are no such counters: a size of its own tells
    /// whoever takes over which of the two it is.
    pub pad: u64,
}

/// Value of `EVIDENCE`, by backend id: connections that have failed since the last one the backend took. Written by
/// the kernel; the loader clears it when a check has refuted it. 24 bytes.
#[derive(
    Clone, Copy, PartialEq, Eq, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Evidence {
    /// [Fingerprints](failover::fingerprint) of the clients, the last one first; 0 for none.
    pub clients: [u32; failover::CLIENTS],
    /// When the last of them failed.
    pub last_tick: u32,
    /// When the loader was last asked to check the backend.
    pub check_tick: u32,
    /// When it was last asked to confirm that the backend fails.
    pub confirm_tick: u32,
}

/// Value of `SUSPECTS`, by backend id: what the loader's checks on evidence have found. Written by the loader; the
/// kernel clears `until` when the backend takes a connection. 16 bytes.
#[derive(
    Clone, Copy, PartialEq, Eq, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Suspicion {
    /// Until when new flows avoid the backend, in ticks. Stays when that has passed; 0 if it has taken a
    /// connection since.
    pub until: u32,
    /// Checks in a row that have confirmed it, with no connection taken in between.
    pub in_a_row: u32,
    /// Checks that have confirmed the evidence.
    pub confirmed: u32,
    /// Checks that have refuted it.
    pub refuted: u32,
}

/// Value of `SCRATCH_FLOW`, for each CPU: what one program has found out about a flow for the next, which is to
/// open it. 24 bytes.
#[derive(
    Clone, Copy, PartialEq, Eq, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct FlowDraft {
    /// Backends it must not get, 16 bits each.
    pub taken: u64,
    /// The [`FlowWord`](crate::flow::FlowWord) of the entry it takes the place of; 0 for none.
    pub judged: u64,
    /// Where that entry is, or where it is to be stored: of [`slot`].
    pub slot: u32,
    /// The backend that keeps silent, or has refused; 0 for none.
    pub unwanted: u32,
    /// The [`Refusals`](crate::failover::Refusals) of a flow of datagrams.
    pub refusals: u64,
}

/// Places of flows.
pub mod flow_slot {
    /// The bits that say in which probe slot it is.
    pub const PROBE_SLOT: u32 = 3;
    /// Added to a probe slot that holds another entry, which is over.
    pub const REPLACE: u32 = 4;
    /// In the table for those that find no room.
    pub const OVERFLOW: u32 = 8;
    /// Nowhere.
    pub const NONE: u32 = 16;
}

/// What the kernel tells the loader at once: 16 bytes.
#[derive(
    Clone, Copy, PartialEq, Eq, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Event {
    /// What is asked for: of [`event`].
    pub kind: u32,
    /// The backend it is about.
    pub backend: u32,
    /// The generation of that id.
    pub generation: u32,
    /// What the last connection came to: of [`failure`].
    pub failure: u32,
}

/// Kinds of [`Event`].
pub mod event {
    /// A connection has failed: the backend's active health check is to be run now.
    pub const CHECK: u32 = 1;
    /// Connections of several clients have failed: whether the backend fails is to be confirmed now.
    pub const CONFIRM: u32 = 2;
}

/// How a connection fails before its backend has taken it.
pub mod failure {
    /// A RST that acknowledges the SYN.
    pub const REFUSED: u32 = 1;
    /// No answer, and the client has asked again.
    pub const SILENT: u32 = 2;
    /// An ICMP error.
    pub const UNREACHABLE: u32 = 3;
}

/// Upper bounds of the classes of a [`Handshakes`], each twice the one before; the last has none. From
/// 16 µs to 0.26 s.
pub const HANDSHAKE_CLASSES: usize = 16;

/// Value of `HANDSHAKES`, for each CPU, by backend id: how long it took from a client's SYN to the
/// backend's SYN-ACK. 136 bytes.
#[derive(
    Clone, Copy, PartialEq, Eq, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Handshakes {
    /// How many took less than 2^(4 + n) units of 1.024 µs, and no less than the class before; the
    /// last class has the rest.
    pub classes: [u64; HANDSHAKE_CLASSES],
    /// The sum of all of them, in units of 1.024 µs.
    pub sum: u64,
}

/// Value of `BACKEND_STATS`, for each CPU: 72 bytes.
#[derive(
    Clone, Copy, PartialEq, Eq, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct BackendStats {
    /// Flows opened.
    pub flows: u64,
    /// Packets towards the backend, after receive offload has merged them.
    pub packets_in: u64,
    /// Bytes towards the backend, Ethernet header included.
    pub bytes_in: u64,
    /// Packets from the backend.
    pub packets_out: u64,
    /// Bytes from the backend.
    pub bytes_out: u64,
    /// Connections it has refused with a reset.
    pub refused: u64,
    /// Connections whose client had to ask again because it was silent.
    pub silent: u64,
    /// Connections of which an ICMP error has said that it cannot be reached.
    pub unreachable: u64,
    /// Of `refused` and `silent`, those whose SYN has asked for what only one certain peer can give.
    pub for_one_peer: u64,
}

/// Value of `SYN_RATE`, for each CPU: 16 bytes.
#[derive(
    Clone, Copy, PartialEq, Eq, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct SynRate {
    /// Entries made in the flow tables.
    pub inserts: u64,
    /// When `unanswered` was last halved, in ticks.
    pub tick: u32,
    /// Handshakes begun less those finished; halved every tick, so that old ones do not count.
    pub unanswered: u32,
}

/// Value of `GC_STATS`, written by the loader: 40 bytes.
#[derive(
    Clone, Copy, PartialEq, Eq, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct GcStats {
    /// Flows that were over and have been taken out of the tables.
    pub removed: u64,
    /// Flows in the table for IPv4 after the last round.
    pub left4: u64,
    /// Flows in the table for IPv6 after the last round.
    pub left6: u64,
    /// Open flows that had to make room for others.
    pub evicted: u64,
    /// Flows of both families in the tables for those that find no room, after the last round.
    pub overflow: u64,
}

/// Key data of `ALLOWED4` and `ALLOWED6`: a network of a service. The prefix covers the service's 16
/// bits first.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct AllowedKey<A: Address> {
    /// A `ServiceId`, network order.
    pub service: [u8; 2],
    /// The client, or its network.
    pub addr: A,
}

/// Bits of `FLOW_HINTS`: what a look-up that finds nothing has to consider besides.
pub mod flow_hint {
    /// A flow was stored outside of the first probe slot.
    pub const PROBE_SLOTS: u32 = 1;
    /// Flows were stored in the tables for those that find no room.
    pub const OVERFLOW: u32 = 2;
}

const _: () = assert!(size_of::<SynRate>() == 16);
const _: () = assert!(size_of::<Service>() == 24);
const _: () = assert!(size_of::<Backend>() == 72);
const _: () = assert!(size_of::<BackendLoad>() == 24);
const _: () = assert!(size_of::<Evidence>() == 24);
const _: () = assert!(size_of::<Suspicion>() == 16);
const _: () = assert!(size_of::<Event>() == 16);
const _: () = assert!(size_of::<FlowDraft>() == 32);
const _: () = assert!(HANDSHAKE_CLASSES.is_power_of_two());
const _: () = assert!(size_of::<Handshakes>() == 136);
const _: () = assert!(size_of::<ReverseNat>() == 52);
const _: () = assert!(size_of::<BackendStats>() == 72);
// The kernel swaps a SERVICES value as one; a table must fit twice for the swap.
const _: () = assert!(MAX_BACKENDS * 2 <= TABLE_SLOTS);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_one_word_which_older_versions_wrote_without_the_fold() {
        let most = (1 << 24) - 1;
        for (base, len, key_fold) in [
            (0, 0, 0),
            (most, 0, 0),
            (0, most, 0),
            (0, 0, u16::MAX),
            (0x0012_3456, 0x0065_4321, 0xabcd),
        ] {
            let slots = Slots { base, len, key_fold };
            assert_eq!(Slots::from_bits(slots.to_bits()), slots);
            assert_eq!(
                Slots::from_bits(u64::from(base) << 32 | u64::from(len)),
                Slots { key_fold: 0, ..slots }
            );
        }
        let of = |key_fold| Slots { base: 1, len: 2, key_fold };
        assert!(of(7).is_of(7) && of(0).is_of(7) && !of(8).is_of(7));
    }
}
