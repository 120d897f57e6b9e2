//! What identifies a flow and what is remembered of it.
//!
//! One entry serves both directions. The client's packet finds it by (client, service); the reply
//! finds the service by its own source in `REV_NAT`, and then the same entry by the same key.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::conntrack::State;
use crate::family::Address;
use crate::packet::FragmentId;

/// An address and a port, both in network order.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Endpoint<A: Address> {
    /// The address.
    pub addr: A,
    /// The port.
    pub port: [u8; 2],
}

/// Key of `SERVICES` (what a client dials) and of `REV_NAT` (what a backend answers from).
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct EndpointKey<A: Address> {
    /// Address and port.
    pub endpoint: Endpoint<A>,
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub pad: u8,
}

impl<A: Address> EndpointKey<A> {
    /// The key of an endpoint under an IP protocol.
    #[must_use]
    #[inline(always)]
    pub const fn new(endpoint: Endpoint<A>, protocol: u8) -> Self {
        Self { endpoint, protocol, pad: 0 }
    }

    /// Its 16-bit words, combined by exclusive or, and never 0: what a value of `SERVICES` says of its key. Keys that differ
    /// in one word differ in it.
    #[must_use]
    #[inline(always)]
    pub fn fold(&self) -> u16 {
        let mut fold = 0;
        for word in self.as_bytes().chunks_exact(4) {
            fold ^= word.try_into().map_or(0, u32::from_ne_bytes);
        }
        let [low, high, ..] = (fold ^ fold >> 16).to_ne_bytes();
        u16::from_ne_bytes([low, high]).max(1)
    }
}

/// Number of the service as the kernel knows it: one per port, protocol and family. Below
/// [`ServiceId::LIMIT`], so that two bits of the flow key are left for the probe slot.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ServiceId(u16);

impl ServiceId {
    /// The smallest id.
    pub const FIRST: Self = Self(0);
    /// One above the largest id.
    pub const LIMIT: u16 = 1 << 14;

    /// The id, if it is below the limit.
    #[must_use]
    pub const fn new(id: u16) -> Option<Self> {
        if id < Self::LIMIT { Some(Self(id)) } else { None }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }
}

/// Which of several entries of the same client port at the same service: a client may use one port
/// towards two addresses of the machine at once. The first probe slot is enough for nearly everybody.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProbeSlot(u8);

impl ProbeSlot {
    /// The probe slot tried first.
    pub const FIRST: Self = Self(0);
    /// All probe slots, in the order they are tried.
    pub const ALL: [Self; 4] = [Self(0), Self(1), Self(2), Self(3)];

    /// Its number, below 4.
    #[must_use]
    #[inline(always)]
    pub const fn number(self) -> u8 {
        self.0
    }

    /// The probe slot with this number, of which two bits count.
    #[must_use]
    #[inline(always)]
    pub const fn from_number(number: u8) -> Self {
        Self(number & 3)
    }
}

/// Key of `FLOWS4` and `FLOWS6`: 8 and 20 bytes.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct FlowKey<A: Address> {
    /// The client.
    pub client: Endpoint<A>,
    /// Service id in the lower 14 bits, probe slot in the upper 2; the machine's own order.
    service_and_slot: [u8; 2],
}

impl<A: Address> FlowKey<A> {
    /// The key of a client's flow at a service.
    #[must_use]
    #[inline(always)]
    pub const fn new(client: Endpoint<A>, service: ServiceId, probe_slot: ProbeSlot) -> Self {
        Self { client, service_and_slot: Self::word(service, probe_slot) }
    }

    /// Makes it the key of another probe slot, or service. One key that changes takes less of the kernel's
    /// stack than several.
    #[inline(always)]
    pub const fn set(&mut self, service: ServiceId, probe_slot: ProbeSlot) {
        self.service_and_slot = Self::word(service, probe_slot);
    }

    #[inline(always)]
    const fn word(service: ServiceId, probe_slot: ProbeSlot) -> [u8; 2] {
        (service.0 | ((probe_slot.0 as u16) << 14)).to_ne_bytes()
    }

    /// The probe slot.
    #[must_use]
    pub const fn probe_slot(&self) -> ProbeSlot {
        let [upper, _] = u16::from_ne_bytes(self.service_and_slot).to_be_bytes();
        ProbeSlot::from_number(upper >> 6)
    }

    /// The service.
    #[must_use]
    pub const fn service(&self) -> ServiceId {
        ServiceId(u16::from_ne_bytes(self.service_and_slot) & (ServiceId::LIMIT - 1))
    }
}

/// The part of a flow that is decided and changed as one: backend, its generation, the state.
///
/// One 64-bit word, so that a single compare-and-exchange settles races between CPUs. The
/// generation (24 bits) keeps a recycled backend id from inheriting flows. The tag (16 bits) keeps a packet that
/// has found an entry from changing the flow that was stored there since: the kernel uses an element again while
/// others still look at it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlowWord(u64);

impl FlowWord {
    /// Largest generation; counting wraps to 0 after it.
    pub const MAX_GENERATION: u32 = (1 << 24) - 1;

    /// Largest id of a backend.
    pub const MAX_BACKEND: u32 = (1 << 16) - 1;

    /// Packs the three parts, with tag 0. Ids above [`Self::MAX_BACKEND`] are cut to 16 bits, generations above
    /// [`Self::MAX_GENERATION`] to 24.
    #[must_use]
    #[inline(always)]
    pub const fn new(backend: u32, generation: u32, state: State) -> Self {
        let generation = (generation & Self::MAX_GENERATION) as u64;
        let backend = backend & Self::MAX_BACKEND;
        Self(((backend as u64) << 32) | (generation << 8) | state.to_byte() as u64)
    }

    /// The word as a map holds it.
    #[must_use]
    #[inline(always)]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The word as a map holds it.
    #[must_use]
    #[inline(always)]
    pub const fn to_bits(self) -> u64 {
        self.0
    }

    /// Index into `BACKENDS`.
    #[must_use]
    #[inline(always)]
    pub const fn backend(self) -> u32 {
        (self.0 >> 32) as u32 & Self::MAX_BACKEND
    }

    /// The same flow with another tag.
    #[must_use]
    #[inline(always)]
    pub const fn with_tag(self, tag: u16) -> Self {
        Self(self.0 & !(0xffff << 48) | (tag as u64) << 48)
    }

    /// Generation of the backend when the flow was opened.
    #[must_use]
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation, reason = "masked to 24 bits")]
    pub const fn generation(self) -> u32 {
        (self.0 >> 8) as u32 & Self::MAX_GENERATION
    }

    /// State of the connection.
    #[must_use]
    #[inline(always)]
    pub const fn state(self) -> State {
        State::from_byte(self.0.to_le_bytes()[0])
    }

    /// Whether both are of one flow, in whatever states: backend, generation and tag are the same.
    #[must_use]
    #[inline(always)]
    pub const fn is_same_flow(self, other: Self) -> bool {
        self.with_state(State::Closed).0 == other.with_state(State::Closed).0
    }

    /// The same flow in another state.
    #[must_use]
    #[inline(always)]
    pub const fn with_state(self, state: State) -> Self {
        Self(self.0 & !0xff | state.to_byte() as u64)
    }
}

/// Value of `FLOWS4` and `FLOWS6`: 56 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Flow {
    /// A [`FlowWord`]; only ever changed by compare-and-exchange.
    pub word: u64,
    /// A [`ReplyPath`].
    pub reply_path: u32,
    /// When the last packet passed, in [ticks](crate::conntrack::TICK_SHIFT). Written at most once
    /// a tick.
    pub seen_tick: u32,
    /// The address the client dialled, in its 16-byte form.
    pub vip: [u8; 16],
    /// The port the client dialled, network order.
    pub port: [u8; 2],
    /// The client's side of the last hop: the source MAC of its packets. For a client that is not in a container the
    /// first two bytes become an [`CachedExit`](crate::exit::Asked), lower byte first.
    pub mac: [u8; 6],
    /// When the flow was opened, in units of 1.024 µs; wraps after 73 minutes.
    pub opened: u32,
    /// The backend that failed before this one, whose late answers are dropped; 0 for none.
    pub failed: u16,
    /// Bits of [`marks`].
    pub flags: u16,
    /// What the backend has acknowledged last: see [`Sequences`](crate::conntrack::Sequences).
    pub acknowledged: u32,
    /// The number that is waited for: likewise.
    pub awaited: u32,
}

/// Bits of [`Flow::flags`].
pub mod marks {
    /// If the backend refuses, another is tried.
    pub const FAILOVER: u16 = 1;
    /// The client is inside of this host ([`Side::Internal`](crate::source::Side)).
    pub const INTERNAL: u16 = 2;
    /// Nothing has said that the client's address is its own
    /// ([`Validity::Unproven`](crate::source::Validity)).
    pub const UNPROVEN: u16 = 4;
    /// The entry is in the table for flows that find no room in the other.
    pub const OVERFLOW: u16 = 8;
}

/// Key of `AFFINITY4` and `AFFINITY6`: 8 and 20 bytes.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct AffinityKey<A: Address> {
    /// The client.
    pub client: A,
    /// A [`ServiceId`], the machine's own order.
    pub service: [u8; 2],
    /// Zero.
    pub pad: [u8; 2],
}

/// Value of `AFFINITY4` and `AFFINITY6`: the backend a client's address got. 12 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Affinity {
    /// Index into `BACKENDS`.
    pub backend: u32,
    /// Its generation.
    pub generation: u32,
    /// When the client last opened a flow, in ticks.
    pub seen_tick: u32,
}

/// How replies get to a flow's client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReplyPath(u32);

impl ReplyPath {
    /// Device indices are positive `int`s, and do not get near 2³⁰: a network namespace counts them from 1.
    const CONTAINER: u32 = 1 << 31;
    const TUNNEL: u32 = 1 << 30;

    /// Out of the device its packets come in by, by route and neighbour.
    #[must_use]
    #[inline(always)]
    pub const fn out_of(ifindex: u32) -> Self {
        Self(ifindex & !(Self::CONTAINER | Self::TUNNEL))
    }

    /// Through the tunnel to the node with this index, whose client it is.
    #[must_use]
    #[inline(always)]
    pub const fn through_tunnel(node: u32) -> Self {
        Self(node | Self::TUNNEL)
    }

    /// The index of the node whose client it is, if it is one's.
    #[must_use]
    #[inline(always)]
    pub const fn node(self) -> Option<u32> {
        if self.0 & Self::TUNNEL != 0 { Some(self.0 & !Self::TUNNEL) } else { None }
    }

    /// Into the container whose veth's host side this is.
    #[must_use]
    #[inline(always)]
    pub const fn into_container(ifindex: u32) -> Self {
        Self(ifindex | Self::CONTAINER)
    }

    /// As a map holds it.
    #[must_use]
    #[inline(always)]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// As a map holds it.
    #[must_use]
    #[inline(always)]
    pub const fn to_bits(self) -> u32 {
        self.0
    }

    /// The device; of [`Self::node`]'s clients nothing.
    #[must_use]
    #[inline(always)]
    pub const fn ifindex(self) -> u32 {
        self.0 & !(Self::CONTAINER | Self::TUNNEL)
    }

    /// Whether the client is the container behind the device.
    #[must_use]
    #[inline(always)]
    pub const fn is_container(self) -> bool {
        self.0 & Self::CONTAINER != 0
    }
}

/// Key of `FRAGMENTS4` and `FRAGMENTS6`: 16 and 40 bytes.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct FragmentKey<A: Address> {
    /// Sender.
    pub source: A,
    /// Receiver.
    pub destination: A,
    /// The datagram's identification, network order.
    pub id: [u8; 4],
    /// IP protocol number, in IPv4.
    pub protocol: u8,
    /// Zero.
    pub pad: [u8; 3],
}

impl<A: Address> FragmentKey<A> {
    /// The key of a datagram's fragments.
    #[must_use]
    #[inline(always)]
    pub const fn new(of: &FragmentId<A>) -> Self {
        let FragmentId { source, destination, id, protocol } = *of;
        Self { source, destination, id: id.to_be_bytes(), protocol, pad: [0; 3] }
    }
}

/// Value of `FRAGMENTS4` and `FRAGMENTS6`: what was done with a datagram's first fragment. 60 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Fragmented {
    /// The new source, in its 16-byte form; all zero if it stays.
    pub source: [u8; 16],
    /// The new destination, likewise.
    pub destination: [u8; 16],
    /// The backend it goes to, or that sent it.
    pub backend: u32,
    /// The generation of that backend; 0 for a reply, which nobody asks for it.
    pub generation: u32,
    /// For a reply, a [`ReplyPath`]; else [`Self::BY_STACK`] or 0.
    pub reply_path: u32,
    /// When the first fragment passed, in ticks.
    pub seen_tick: u32,
    /// For a reply into a container, its MAC.
    pub mac: [u8; 6],
    /// 1 for a reply, 0 for what goes to the backend.
    pub is_reply: u8,
    /// Zero.
    pub pad: u8,
    /// The device the first fragment came in by.
    pub came_in_by: u32,
}

impl Fragmented {
    /// The first one was too large for the device to its backend: the host's stack gets all of them.
    pub const BY_STACK: u32 = 1;
}

/// Fragments further apart than this are of two datagrams: what Linux waits before it gives up
/// (`IP_FRAG_TIME`, 30 s).
pub const FRAGMENT_TICKS: u32 = 28;

const _: () = assert!(size_of::<FragmentKey<[u8; 4]>>() == 16);
const _: () = assert!(size_of::<FragmentKey<[u8; 16]>>() == 40);
const _: () = assert!(size_of::<Fragmented>() == 60);
const _: () = assert!(size_of::<EndpointKey<[u8; 4]>>() == 8);
const _: () = assert!(size_of::<EndpointKey<[u8; 16]>>() == 20);
const _: () = assert!(size_of::<FlowKey<[u8; 4]>>() == 8);
const _: () = assert!(size_of::<FlowKey<[u8; 16]>>() == 20);
const _: () = assert!(size_of::<AffinityKey<[u8; 4]>>() == 8);
const _: () = assert!(size_of::<AffinityKey<[u8; 16]>>() == 20);
const _: () = assert!(size_of::<Affinity>() == 12);
const _: () = assert!(size_of::<Flow>() == 56);
const _: () = assert!(crate::layout::MAX_BACKENDS <= FlowWord::MAX_BACKEND);

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever reads another frontend's value knows by the fold that it is not the one it has looked for.
    #[test]
    fn keys_that_differ_in_one_word_have_another_fold() {
        let key = |addr: [u8; 4], port: u16, protocol| {
            EndpointKey::new(Endpoint { addr, port: port.to_be_bytes() }, protocol)
        };
        let fold = key([192, 0, 2, 1], 80, 6).fold();
        assert_ne!(fold, key([192, 0, 2, 1], 81, 6).fold());
        assert_ne!(fold, key([192, 0, 2, 1], 80, 17).fold());
        assert_ne!(fold, key([192, 0, 2, 2], 80, 6).fold());
        assert_ne!(fold, key([192, 1, 2, 1], 80, 6).fold());
        // Never the one that says nothing.
        assert_ne!(key([0; 4], 0, 0).fold(), 0);
        let key6 = |last| EndpointKey::new(Endpoint { addr: [last; 16], port: [0, 80] }, 6).fold();
        assert_eq!(key6(0), key6(7), "equal words cancel each other");
    }

    #[test]
    fn a_flow_word_gives_back_what_was_put_in() {
        for state in State::ALL {
            let word = FlowWord::new(0xbeef, 0x00ab_cdef, state);
            let tagged = word.with_tag(0xffff).with_tag(0xdead);
            assert_ne!(word, tagged);
            for word in [word, tagged] {
                assert_eq!(word.backend(), 0xbeef);
                assert_eq!(word.generation(), 0x00ab_cdef);
                assert_eq!(word.state(), state);
            }
            assert_eq!(tagged.with_tag(0), word);
            for other in State::ALL {
                assert_eq!(word.with_state(other), FlowWord::new(0xbeef, 0x00ab_cdef, other));
                assert_eq!(tagged.with_state(other), word.with_state(other).with_tag(0xdead));
            }
        }
    }

    #[test]
    fn lanes_and_services_never_share_a_key() {
        let client = Endpoint { addr: [10, 0, 0, 1], port: [1, 2] };
        let mut seen = std::collections::HashSet::new();
        for id in [0, 1, ServiceId::LIMIT - 1] {
            let service = ServiceId::new(id).unwrap();
            for probe_slot in ProbeSlot::ALL {
                let key = FlowKey::new(client, service, probe_slot);
                assert_eq!((key.service(), key.probe_slot()), (service, probe_slot));
                assert!(seen.insert(key.as_bytes().to_vec()));
            }
        }
        assert_eq!(ServiceId::new(ServiceId::LIMIT), None);
    }
}
