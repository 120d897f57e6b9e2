//! Every map, with typed accessors. Keys and values are `samport-common`'s; sizes that are flags are
//! set by the loader before the maps are made.

pub mod scratch;
pub mod sockets;
pub mod traces;

use aya_ebpf::bindings::{__sk_buff, BPF_F_NO_PREALLOC, BPF_NOEXIST, xdp_md};
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::{Key, LpmTrie};
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, ProgramArray, RingBuf};
use samport_common::conntrack::{Seconds, State, Timeouts};
use samport_common::exit::Generation;
use samport_common::family::{Address, Family, V4, V6};
use samport_common::flow::{
    Affinity, AffinityKey, Endpoint, EndpointKey, Flow, FlowKey, FragmentKey, Fragmented, ServiceId,
};
use samport_common::layout::{
    AllowedKey, Backend, BackendLoad, BackendStats, CachedPort, Clock, DEFAULT_FLOWS, DeviceInfo,
    DeviceSet, EVENT_BYTES, Event, Evidence, GcStats, HANDSHAKE_CLASSES, HELD_LEN, Handshakes,
    Held, MAX_AFFINITY, MAX_ALLOWED, MAX_BACKENDS, MAX_DEVICES, MAX_FRAGMENTED, MAX_FRONTENDS,
    MAX_NODES, MAX_OUTBOUND, MAX_REVERSE_NAT, MAX_SOURCES, MAX_XDP_DEVICES, Node, PORT_CACHE_LEN,
    PORT_WORDS, PortService, ReverseNat, RoomLimits, Service, Suspicion, SynRate, TABLE_SLOTS,
    XdpDevice, flow_hint, overflow_of, port_bit, program,
};
use samport_common::outbound::{Outbound, OutboundKey};
use samport_common::seed::Seed;
use samport_common::verdict::Verdict;
use samport_common::wire::protocol::Protocol;

use crate::atomic;
use crate::context::Hook;
use crate::load_store;
use crate::outbound;
use crate::skb::Skb;
use crate::source;

/// One bit for each port that any service listens on: nearly all traffic that is not ours is
/// dismissed by it.
#[map]
static PORTS: Array<u64> = Array::with_max_entries(PORT_WORDS, 0);

/// What ports stand for: spares packets of open flows the look-up of their service.
#[map]
static PORT_CACHE: Array<CachedPort> = Array::with_max_entries(PORT_CACHE_LEN, 0);

#[map]
static SERVICES4: HashMap<EndpointKey<[u8; 4]>, Service> =
    HashMap::with_max_entries(MAX_FRONTENDS, 0);
#[map]
static SERVICES6: HashMap<EndpointKey<[u8; 16]>, Service> =
    HashMap::with_max_entries(MAX_FRONTENDS, 0);

/// Slot to backend id. A service's table is never changed in place: a new one is written elsewhere
/// and the `SERVICES` values are switched to it.
#[map]
static TABLE: Array<u32> = Array::with_max_entries(TABLE_SLOTS, 0);

#[map]
static BACKENDS: Array<Backend> = Array::with_max_entries(MAX_BACKENDS, 0);

#[map]
static REV_NAT4: HashMap<EndpointKey<[u8; 4]>, ReverseNat> =
    HashMap::with_max_entries(MAX_REVERSE_NAT, 0);
#[map]
static REV_NAT6: HashMap<EndpointKey<[u8; 16]>, ReverseNat> =
    HashMap::with_max_entries(MAX_REVERSE_NAT, 0);

/// Flows. Nothing is ever driven out of these tables: who finds no room goes to the next two.
#[map]
static FLOWS4: HashMap<FlowKey<[u8; 4]>, Flow> = HashMap::with_max_entries(DEFAULT_FLOWS, 0);
#[map]
static FLOWS6: HashMap<FlowKey<[u8; 16]>, Flow> = HashMap::with_max_entries(DEFAULT_FLOWS, 0);

/// Flows that find no room in the tables above, or are of a flood of SYNs, until their clients are proven and
/// there is room: the oldest make way here.
#[map]
static OVERFLOW4: LruHashMap<FlowKey<[u8; 4]>, Flow> =
    LruHashMap::with_max_entries(overflow_of(DEFAULT_FLOWS), 0);
#[map]
static OVERFLOW6: LruHashMap<FlowKey<[u8; 16]>, Flow> =
    LruHashMap::with_max_entries(overflow_of(DEFAULT_FLOWS), 0);

/// Who holds how much of `FLOWS4` and `FLOWS6`.
#[map]
static HELD: Array<Held> = Array::with_max_entries(HELD_LEN, 0);

/// Entries counted in `HELD` that the loader has taken out. Written by the loader.
#[map]
static FREED: Array<u64> = Array::with_max_entries(HELD_LEN, 0);

/// Whether `FLOWS4` and `FLOWS6` are nearly full. Written by the loader.
#[map]
static NEARLY_FULL: Array<[u32; 2]> = Array::with_max_entries(1, 0);

/// What was done with the first fragment of a datagram.
#[map]
static FRAGMENTS4: LruHashMap<FragmentKey<[u8; 4]>, Fragmented> =
    LruHashMap::with_max_entries(MAX_FRAGMENTED, 0);
#[map]
static FRAGMENTS6: LruHashMap<FragmentKey<[u8; 16]>, Fragmented> =
    LruHashMap::with_max_entries(MAX_FRAGMENTED, 0);

/// Which backend a client's address got.
#[map]
static AFFINITY4: LruHashMap<AffinityKey<[u8; 4]>, Affinity> =
    LruHashMap::with_max_entries(MAX_AFFINITY, 0);
#[map]
static AFFINITY6: LruHashMap<AffinityKey<[u8; 16]>, Affinity> =
    LruHashMap::with_max_entries(MAX_AFFINITY, 0);

/// What the host and its containers have begun themselves from served ports.
#[map]
static OUTBOUND4: LruHashMap<OutboundKey<[u8; 4]>, Outbound> =
    LruHashMap::with_max_entries(MAX_OUTBOUND, 0);
#[map]
static OUTBOUND6: LruHashMap<OutboundKey<[u8; 16]>, Outbound> =
    LruHashMap::with_max_entries(MAX_OUTBOUND, 0);

/// Whose turn it is, by service id.
#[map]
static RR_COUNTERS: Array<u64> = Array::with_max_entries(ServiceId::LIMIT as u32, 0);

/// How busy backends are.
#[map]
static BACKEND_LOAD: Array<BackendLoad> = Array::with_max_entries(MAX_BACKENDS, 0);

/// Flows that `BACKEND_LOAD` counts as open though they have expired or made room. Written by the loader.
#[map]
static OPEN_CORRECTION: Array<u64> = Array::with_max_entries(MAX_BACKENDS, 0);

/// Connections that have failed since the last one a backend took.
#[map]
static EVIDENCE: Array<Evidence> = Array::with_max_entries(MAX_BACKENDS, 0);

/// Backends that a check of the loader has confirmed to fail. Written by the loader.
#[map]
static SUSPECTS: Array<Suspicion> = Array::with_max_entries(MAX_BACKENDS, 0);

#[map]
static HANDSHAKES: PerCpuArray<Handshakes> = PerCpuArray::with_max_entries(MAX_BACKENDS, 0);

/// What the loader is told at once.
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(EVENT_BYTES, 0);

/// Networks whose clients a restricted service takes.
#[map]
static ALLOWED4: LpmTrie<AllowedKey<[u8; 4]>, u8> = LpmTrie::with_max_entries(MAX_ALLOWED, 0);
#[map]
static ALLOWED6: LpmTrie<AllowedKey<[u8; 16]>, u8> = LpmTrie::with_max_entries(MAX_ALLOWED, 0);

/// Bits of `samport_common::layout::flow_hints`. Until the first is set, a missing first probe slot means
/// that there is no flow.
#[map]
static FLOW_HINTS: Array<u32> = Array::with_max_entries(1, 0);

/// The generation of the host's routes: `samport_common::exit`. Raised by the loader.
#[map]
static ROUTES: Array<u32> = Array::with_max_entries(1, 0);

#[map]
static SYN_RATE: PerCpuArray<SynRate> = PerCpuArray::with_max_entries(1, 0);

/// What the loader's collector has done, for whoever asks. No program reads it.
#[map]
static GC_STATS: Array<GcStats> = Array::with_max_entries(1, 0);

/// When flows count as closed. Set by the loader.
#[unsafe(no_mangle)]
static TIMEOUTS: Timeouts = Timeouts::new(&Seconds::DEFAULT);

/// Unanswered handshakes in a tick on one CPU that are a flood. Set by the loader.
#[unsafe(no_mangle)]
static FLOOD_LIMIT: u32 = 1_024;

/// Who may hold how much of the tables of flows. Set by the loader.
#[unsafe(no_mangle)]
static ROOM_LIMITS: RoomLimits = RoomLimits::new([DEFAULT_FLOWS; 2], 50);
/// What choices by hash are keyed by. Written by the loader before anything is attached; a run that takes over has
/// its own.
#[map]
static HASH_SEED: Array<Seed> = Array::with_max_entries(1, 0);

/// The time, for who cannot wait for the kernel's clock.
#[map]
static CLOCK: Array<Clock> = Array::with_max_entries(1, 0);

#[map]
static VERDICTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Verdict::COUNT, 0);
#[map]
static BACKEND_STATS: PerCpuArray<BackendStats> = PerCpuArray::with_max_entries(MAX_BACKENDS, 0);

/// Programs reached by tail call, by the numbers in `samport_common::layout::program`.
#[map]
static PROGRAMS: ProgramArray = ProgramArray::with_max_entries(program::COUNT, 0);

/// The devices `samport_xdp` is attached to.
#[map]
static XDP_DEVICES: HashMap<u32, XdpDevice> = HashMap::with_max_entries(MAX_XDP_DEVICES, 0);

/// Devices that have a hook of ours. Memory is taken as entries come: most hosts have few.
#[map]
static DEVICES: HashMap<u32, DeviceInfo> =
    HashMap::with_max_entries(MAX_DEVICES, BPF_F_NO_PREALLOC);

/// Addresses of which the devices are known.
#[map]
static SOURCES4: HashMap<[u8; 4], DeviceSet> =
    HashMap::with_max_entries(MAX_SOURCES, BPF_F_NO_PREALLOC);
#[map]
static SOURCES6: HashMap<[u8; 16], DeviceSet> =
    HashMap::with_max_entries(MAX_SOURCES, BPF_F_NO_PREALLOC);

/// The other nodes, by their indices. Written by the loader.
#[map]
static NODES: Array<Node> = Array::with_max_entries(MAX_NODES, 0);

/// The index of the node at an address, in its 16-byte form. Written by the loader.
#[map]
static NODE_IDS: HashMap<[u8; 16], u32> = HashMap::with_max_entries(MAX_NODES, BPF_F_NO_PREALLOC);

/// The UDP port of this machine's end of the tunnel; 0 without a cluster, and then the verifier leaves out whatever is
/// for one. Set by the loader.
#[unsafe(no_mangle)]
static TUNNEL_PORT: u32 = 0;

/// A family with the maps that hold its addresses.
pub trait Tables: Family {
    /// The service at an address and port of the machine.
    fn service(key: &EndpointKey<Self::Addr>) -> Option<&'static Service>;
    /// The services a backend answers for from this endpoint.
    fn reverse_nat(key: &EndpointKey<Self::Addr>) -> Option<&'static ReverseNat>;
    /// A flow, to be changed in place through atomics and single words.
    fn flow(key: &FlowKey<Self::Addr>) -> Option<*mut Flow>;
    /// The same with the key in whole words: the kernel hashes it by words, and would have to wait for
    /// bytes that were just stored one by one.
    fn flow_fast(key: FlowKey<Self::Addr>) -> Option<*mut Flow>;
    /// Stores a new flow. The error is the kernel's negative errno.
    fn insert(key: &FlowKey<Self::Addr>, flow: &Flow, how: Insert) -> Result<(), i32>;
    /// A flow for which there was no room, like [`Self::flow`].
    fn overflow(key: &FlowKey<Self::Addr>) -> Option<*mut Flow>;
    /// Stores a flow for which there is no room, like [`Self::insert`].
    fn insert_overflow(key: &FlowKey<Self::Addr>, flow: &Flow) -> Result<(), i32>;
    /// Forgets such a flow.
    fn remove_overflow(key: &FlowKey<Self::Addr>);
    /// What was done with the first fragment.
    fn fragmented(key: &FragmentKey<Self::Addr>) -> Option<&'static Fragmented>;
    /// Remembers what is done with the first fragment.
    fn remember(key: &FragmentKey<Self::Addr>, value: &Fragmented) -> Result<(), i32>;
    /// The backend a client's address got, to be touched in place.
    fn affinity(key: &AffinityKey<Self::Addr>) -> Option<*mut Affinity>;
    /// Remembers the backend of a client's address.
    fn remember_affinity(key: &AffinityKey<Self::Addr>, value: &Affinity);
    /// What was begun here with a remote end, to be touched in place.
    fn outbound(key: &OutboundKey<Self::Addr>) -> Option<*mut Outbound>;
    /// Remembers what was begun here.
    fn remember_outbound(key: &OutboundKey<Self::Addr>, value: Outbound);
    /// Whether the packet that was kept in this run answers what was begun here: 0 or 1.
    fn answers_outbound_of_skb(ctx: *mut __sk_buff) -> u32;
    /// [`Self::answers_outbound_of_skb`] of a frame.
    fn answers_outbound_of_frame(ctx: *mut xdp_md) -> u32;
    /// Whether a client is in one of the networks of a service.
    fn is_allowed(service: u16, client: Self::Addr) -> bool;
    /// The devices packets with this source may come in by, if that is known.
    fn source_devices(source: &Self::Addr) -> Option<&'static DeviceSet>;
    /// The marks of a flow that the packet opens that was kept in this run, or that its source is refused.
    fn marks_of_skb(ctx: *mut __sk_buff) -> u32;
    /// The same at XDP.
    fn marks_of_frame(ctx: *mut xdp_md) -> u32;
    /// The number of what becomes of the packet that was kept in this run, which has come in by another device
    /// than its flow.
    fn move_of(hook: Hook, reply_path: u32, flow: u32, packet: u32) -> u32;
    /// The address in the place that `struct bpf_fib_lookup` has for it.
    fn in_lookup(addr: Self::Addr) -> [u8; 16];
}

/// Whether an insert may replace what is there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Insert {
    /// Fails with `EEXIST` if another CPU was faster.
    New,
    /// Replaces what is there.
    Replace,
}

impl Insert {
    fn flags(self) -> u64 {
        match self {
            Self::New => u64::from(BPF_NOEXIST),
            Self::Replace => 0,
        }
    }
}

/// The key of a whole client address: the service's 16 bits, and all of the address's.
#[inline(always)]
#[allow(clippy::cast_possible_truncation, reason = "an address has 16 bytes at most")]
fn allowed_key<A: Address>(service: u16, addr: A) -> Key<AllowedKey<A>> {
    let bits = const { (16 + 8 * size_of::<A>()) as u32 };
    Key::new(bits, AllowedKey { service: service.to_be_bytes(), addr })
}

macro_rules! tables {
    ($family:ty, $words:ty, $services:ident, $reverse_nat:ident, $flows:ident, $overflow:ident, $fragments:ident, $affinity:ident, $outbound:ident, $allowed:ident, $sources:ident, $marks_of_skb:path, $marks_of_frame:path, $outbound_of_skb:path, $outbound_of_frame:path, $move_of:path, $in_lookup:expr) => {
        impl Tables for $family {
            #[inline(always)]
            fn service(key: &EndpointKey<Self::Addr>) -> Option<&'static Service> {
                // SAFETY: map memory, which is never unmapped while the program runs; plain bytes, any of which
                // are a value. The loader replaces a frontend by another element, and the kernel may use the one
                // before for the next frontend at once: what is chosen by it is read once, and its service is
                // compared afterwards (`choice::select`).
                unsafe { $services.get(key) }
            }

            #[inline(always)]
            fn reverse_nat(key: &EndpointKey<Self::Addr>) -> Option<&'static ReverseNat> {
                // SAFETY: as in `service`. Of another endpoint's owners the packet is no reply.
                unsafe { $reverse_nat.get(key) }
            }

            #[inline(always)]
            fn flow(key: &FlowKey<Self::Addr>) -> Option<*mut Flow> {
                $flows.get_ptr_mut(key)
            }

            #[inline(always)]
            fn flow_fast(key: FlowKey<Self::Addr>) -> Option<*mut Flow> {
                let words: $words = load_store::in_words(zerocopy::transmute!(key));
                $flows.get_ptr_mut(zerocopy::transmute_ref!(&words))
            }

            #[inline(always)]
            fn insert(key: &FlowKey<Self::Addr>, flow: &Flow, how: Insert) -> Result<(), i32> {
                $flows.insert(key, flow, how.flags())
            }

            #[inline(always)]
            fn overflow(key: &FlowKey<Self::Addr>) -> Option<*mut Flow> {
                $overflow.get_ptr_mut(key)
            }

            #[inline(always)]
            fn insert_overflow(key: &FlowKey<Self::Addr>, flow: &Flow) -> Result<(), i32> {
                $overflow.insert(key, flow, Insert::New.flags())
            }

            #[inline(always)]
            fn remove_overflow(key: &FlowKey<Self::Addr>) {
                // Driven out already: then it is gone as well.
                let _ = $overflow.remove(key);
            }

            #[inline(always)]
            fn fragmented(key: &FragmentKey<Self::Addr>) -> Option<&'static Fragmented> {
                // SAFETY: values are replaced whole; a slot may be reused while it is read, for
                // which one fragment may go astray.
                unsafe { $fragments.get(key) }
            }

            #[inline(always)]
            fn remember(key: &FragmentKey<Self::Addr>, value: &Fragmented) -> Result<(), i32> {
                $fragments.insert(key, value, Insert::Replace.flags())
            }

            #[inline(always)]
            fn affinity(key: &AffinityKey<Self::Addr>) -> Option<*mut Affinity> {
                $affinity.get_ptr_mut(key)
            }

            #[inline(always)]
            fn remember_affinity(key: &AffinityKey<Self::Addr>, value: &Affinity) {
                // Without it the client may get another backend next time, nothing worse.
                let _ = $affinity.insert(key, value, Insert::Replace.flags());
            }

            #[inline(always)]
            fn outbound(key: &OutboundKey<Self::Addr>) -> Option<*mut Outbound> {
                $outbound.get_ptr_mut(key)
            }

            #[inline(always)]
            fn remember_outbound(key: &OutboundKey<Self::Addr>, value: Outbound) {
                // Without it the answer may go to a backend, as it would without this map.
                let _ = $outbound.insert(key, &value, Insert::Replace.flags());
            }

            #[inline(always)]
            fn answers_outbound_of_skb(ctx: *mut __sk_buff) -> u32 {
                $outbound_of_skb(ctx)
            }

            #[inline(always)]
            fn answers_outbound_of_frame(ctx: *mut xdp_md) -> u32 {
                $outbound_of_frame(ctx)
            }

            #[inline(always)]
            fn is_allowed(service: u16, client: Self::Addr) -> bool {
                $allowed.get(&allowed_key(service, client)).is_some()
            }

            #[inline(always)]
            fn source_devices(source: &Self::Addr) -> Option<&'static DeviceSet> {
                // SAFETY: as in `service`. By another address's devices one packet may be judged.
                unsafe { $sources.get(source) }
            }

            #[inline(always)]
            fn marks_of_skb(ctx: *mut __sk_buff) -> u32 {
                $marks_of_skb(ctx)
            }

            #[inline(always)]
            fn marks_of_frame(ctx: *mut xdp_md) -> u32 {
                $marks_of_frame(ctx)
            }

            #[inline(always)]
            fn move_of(hook: Hook, reply_path: u32, flow: u32, packet: u32) -> u32 {
                $move_of(hook as u32, reply_path, flow, packet)
            }

            #[inline(always)]
            fn in_lookup(addr: Self::Addr) -> [u8; 16] {
                $in_lookup(addr)
            }
        }
    };
}

tables!(
    V4,
    [u32; 2],
    SERVICES4,
    REV_NAT4,
    FLOWS4,
    OVERFLOW4,
    FRAGMENTS4,
    AFFINITY4,
    OUTBOUND4,
    ALLOWED4,
    SOURCES4,
    source::samport_source_of_skb4,
    source::samport_source_of_frame4,
    outbound::samport_outbound_of_skb4,
    outbound::samport_outbound_of_frame4,
    source::samport_move4,
    |[a, b, c, d]: [u8; 4]| [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
);
tables!(
    V6,
    [u32; 5],
    SERVICES6,
    REV_NAT6,
    FLOWS6,
    OVERFLOW6,
    FRAGMENTS6,
    AFFINITY6,
    OUTBOUND6,
    ALLOWED6,
    SOURCES6,
    source::samport_source_of_skb6,
    source::samport_source_of_frame6,
    outbound::samport_outbound_of_skb6,
    outbound::samport_outbound_of_frame6,
    source::samport_move6,
    core::convert::identity
);

/// A device with a hook of ours.
#[inline(always)]
pub fn device(ifindex: u32) -> Option<&'static DeviceInfo> {
    // SAFETY: as in `Tables::service`. By another device's settings one packet may be judged.
    unsafe { DEVICES.get(ifindex) }
}

/// A device `samport_xdp` is attached to.
#[inline(always)]
pub fn xdp_device(ifindex: u32) -> Option<&'static XdpDevice> {
    // SAFETY: as in `Tables::service`.
    unsafe { XDP_DEVICES.get(ifindex) }
}

/// Whether any service listens on this port (network order), whatever the address.
#[inline(always)]
#[must_use]
pub fn is_listened_on(protocol: Protocol, port: [u8; 2]) -> bool {
    let bit = port_bit(protocol, u16::from_be_bytes(port));
    match PORTS.get(bit / 64) {
        Some(word) => word >> (bit % 64) & 1 != 0,
        None => false,
    }
}

/// The service of all frontends on a port (network order).
#[inline(always)]
pub fn listens<P: Family>(protocol: Protocol, port: [u8; 2]) -> PortService {
    match PORT_CACHE.get(port_bit(protocol, u16::from_be_bytes(port))) {
        Some(cached_port) => PortService::decode(P::of_two(cached_port.listens)),
        None => PortService::Several,
    }
}

/// The service of all backends that answer from a port (network order).
#[inline(always)]
pub fn answers<P: Family>(protocol: Protocol, port: [u8; 2]) -> PortService {
    match PORT_CACHE.get(port_bit(protocol, u16::from_be_bytes(port))) {
        Some(cached_port) => PortService::decode(P::of_two(cached_port.answers)),
        None => PortService::Several,
    }
}

/// The backend id in a slot of the table.
#[inline(always)]
pub fn table_slot(index: u32) -> Option<u32> {
    TABLE.get(index).copied()
}

/// A backend by its id.
#[inline(always)]
pub fn backend(id: u32) -> Option<&'static Backend> {
    BACKENDS.get(id)
}

/// Where a backend answers.
#[inline(always)]
pub fn endpoint<P: Family>(backend: &'static Backend) -> Endpoint<P::Addr> {
    // SAFETY: a value of `BACKENDS`.
    let addr = unsafe { load_store::load(backend.addr.as_ptr() as usize) };
    Endpoint { addr: P::from_mapped(&addr), port: backend.port }
}

/// The generation of the host's routes.
#[inline(always)]
#[allow(clippy::cast_possible_truncation, reason = "it is below 2¹⁵")]
pub fn route_generation() -> Generation {
    Generation(ROUTES.get(0).copied().unwrap_or(0) as u16)
}

/// What a look-up that finds nothing has to consider besides: bits of [`flow_hints`].
#[inline(always)]
pub fn flow_hints() -> u32 {
    FLOW_HINTS.get(0).copied().unwrap_or(0)
}

/// Sets a bit of [`flow_hints`].
#[inline(always)]
pub fn set_flow_hint(bit: u32) {
    if let Some(bits) = FLOW_HINTS.get_ptr_mut(0) {
        // SAFETY: an aligned word of an array that is never freed. Of two CPUs that set different
        // bits at once one may lose; its next packet of the kind sets it again.
        unsafe { bits.write_volatile(bits.read_volatile() | bit) };
    }
}

/// Whether the tables for flows that find no room hold anything.
#[inline(always)]
pub fn has_overflow() -> bool {
    flow_hints() & flow_hint::OVERFLOW != 0
}

/// Entries of the tables of flows under an index of `HELD`.
#[inline(always)]
pub fn held(index: u32) -> u64 {
    let (Some(held), Some(freed)) = (HELD.get_ptr(index), FREED.get(index)) else { return 0 };
    // SAFETY: aligned words of an array that is never freed.
    let held = unsafe {
        Held {
            opened: atomic::load(&raw const (*held).opened),
            ended: atomic::load(&raw const (*held).ended),
        }
    };
    held.now(*freed)
}

/// Counts an entry made.
#[inline(always)]
pub fn count_opened(index: u32) {
    if let Some(held) = HELD.get_ptr_mut(index) {
        // SAFETY: an aligned word of an array that is never freed.
        unsafe { atomic::add(&raw mut (*held).opened, 1) };
    }
}

/// Counts an entry that has gone.
#[inline(always)]
pub fn count_ended(index: u32) {
    if let Some(held) = HELD.get_ptr_mut(index) {
        // SAFETY: an aligned word of an array that is never freed.
        unsafe { atomic::add(&raw mut (*held).ended, 1) };
    }
}

/// Whether the tables of flows are nearly full, for IPv4 and for IPv6: not 0.
#[inline(always)]
pub fn nearly_full() -> [u32; 2] {
    NEARLY_FULL.get(0).copied().unwrap_or([0; 2])
}

/// Who may hold how much of the tables of flows.
#[inline(always)]
pub fn room_limits() -> RoomLimits {
    // SAFETY: as in `timeout`.
    unsafe { (&raw const ROOM_LIMITS).read_volatile() }
}

/// Ticks after which a flow in this state counts as closed.
#[inline(always)]
pub fn timeout(state: State) -> u32 {
    // The compiler knows that a state is small and would leave out the mask, which the verifier needs.
    let index = core::hint::black_box(usize::from(state.to_byte())) & 15;
    // SAFETY: a constant of this program with 16 entries; volatile, because the loader writes it after
    // the compiler has seen it.
    unsafe { (&raw const TIMEOUTS).cast::<u32>().add(index).read_volatile() }
}

/// Unanswered handshakes in a tick on one CPU that are a flood.
#[inline(always)]
pub fn flood_limit() -> u32 {
    // SAFETY: as in `timeout`.
    unsafe { (&raw const FLOOD_LIMIT).read_volatile() }
}

/// How the time follows from jiffies.
#[inline(always)]
pub fn clock() -> Option<&'static Clock> {
    CLOCK.get(0)
}

/// Sets it. The loader has written how long a jiffy is.
#[inline(always)]
pub fn set_clock(jiffies: u64, now_ns: u64) {
    if let Some(clock) = CLOCK.get_ptr_mut(0) {
        // SAFETY: a word of an array that is never freed; nobody else is running yet.
        unsafe { *clock = Clock::set((*clock).jiffy_ns, jiffies, now_ns) };
    }
}

/// This CPU's pressure counters.
#[inline(always)]
pub fn syn_rate() -> Option<&'static mut SynRate> {
    // SAFETY: this CPU's own copy, and a program is not interrupted by itself.
    SYN_RATE.get_ptr_mut(0).map(|syn_rate| unsafe { &mut *syn_rate })
}

/// Counts a packet's verdict.
#[inline(always)]
pub fn count(verdict: Verdict) {
    if let Some(counter) = VERDICTS.get_ptr_mut(verdict as u32) {
        // SAFETY: this CPU's own copy, and a program is not interrupted by itself.
        unsafe { *counter += 1 };
    }
}

/// Changes this CPU's counters of a backend.
#[inline(always)]
pub fn count_backend(id: u32, change: impl FnOnce(&mut BackendStats)) {
    if let Some(stats) = BACKEND_STATS.get_ptr_mut(id) {
        // SAFETY: as in `count`.
        change(unsafe { &mut *stats });
    }
}

/// The number of a service's turn, counted over all CPUs.
#[inline(always)]
pub fn next_turn(service: u16) -> u64 {
    let Some(counter) = RR_COUNTERS.get_ptr_mut(u32::from(service)) else { return 0 };
    // SAFETY: an aligned word of an array that is never freed.
    unsafe { atomic::fetch_add(counter, 1) }
}

/// What choices by hash are keyed by.
#[inline(always)]
pub fn hash_seed() -> Seed {
    HASH_SEED.get(0).copied().unwrap_or_default()
}

/// What is known of a backend; words of it change at any time.
#[inline(always)]
pub fn backend_load(id: u32) -> Option<*mut BackendLoad> {
    BACKEND_LOAD.get_ptr_mut(id)
}

/// The connections that a backend has failed lately; words of it change at any time.
#[inline(always)]
pub fn evidence(id: u32) -> Option<*mut Evidence> {
    EVIDENCE.get_ptr_mut(id)
}

/// What the loader has found out about a backend; words of it change at any time.
#[inline(always)]
pub fn suspicion(id: u32) -> Option<*mut Suspicion> {
    SUSPECTS.get_ptr_mut(id)
}

/// Flows of a backend that are counted as open and are not.
#[inline(always)]
pub fn open_correction(id: u32) -> u64 {
    OPEN_CORRECTION.get(id).copied().unwrap_or(0)
}

/// Counts a handshake, by its class and length in units of 1.024 µs.
#[inline(always)]
pub fn count_handshake(id: u32, class: usize, took: u32) {
    if let Some(handshakes) = HANDSHAKES.get_ptr_mut(id) {
        // The compiler knows that a class is small and would leave out the mask, which the verifier
        // needs.
        let class = core::hint::black_box(class) & (HANDSHAKE_CLASSES - 1);
        // SAFETY: this CPU's own copy, and a program is not interrupted by itself; below the length,
        // which is a power of two.
        unsafe {
            let counter = (&raw mut (*handshakes).classes).cast::<u64>().add(class);
            *counter += 1;
            (*handshakes).sum += u64::from(took);
        }
    }
}

/// Tells the loader. With a full ring it is not told; its next look at the counters says the same.
#[inline(always)]
pub fn emit(event: &Event) {
    let _ = EVENTS.output::<Event>(event, 0);
}

/// The UDP port of this machine's end of the tunnel; 0 without a cluster.
#[inline(always)]
pub fn tunnel_port() -> u32 {
    // SAFETY: as in `timeout`.
    unsafe { (&raw const TUNNEL_PORT).read_volatile() }
}

/// Whether there is a cluster. The verifier knows, and leaves out what is not run.
#[inline(always)]
pub fn is_clustered() -> bool {
    tunnel_port() != 0
}

/// The key of the frontend that stands for whatever address of another node a port has been dialled at.
#[inline(always)]
pub fn local_key<P: Tables>(key: &EndpointKey<P::Addr>) -> EndpointKey<P::Addr> {
    let endpoint = Endpoint { addr: P::from_mapped(&[0; 16]), port: key.endpoint.port };
    EndpointKey::new(endpoint, key.protocol)
}

/// The service that an address was dialled for: of this machine, or of another node whose packets come by the tunnel.
#[inline(always)]
pub fn service_dialled<P: Tables>(
    dialled: Endpoint<P::Addr>,
    protocol: Protocol,
) -> Option<&'static Service> {
    let key = EndpointKey::new(dialled, protocol.number());
    let own = P::service(&key);
    if own.is_some() || !is_clustered() {
        return own;
    }
    P::service(&local_key::<P>(&key))
}

/// What is known of a node, if the index is one's.
#[inline(always)]
pub fn node(index: u32) -> Option<&'static Node> {
    NODES.get(index).filter(|node| node.is_in_use())
}

/// The index of the node at an address.
#[inline(always)]
pub fn node_at(addr: &[u8; 16]) -> Option<u32> {
    // SAFETY: map memory, which is never unmapped while the program runs; a word of any value.
    unsafe { NODE_IDS.get(addr) }.copied()
}

/// Goes on in another program. Returns only if the loader has not put one there.
#[inline(always)]
pub fn tail_call(skb: &Skb, index: u32) {
    // SAFETY: the loader puts only programs of this type into the array.
    unsafe { PROGRAMS.tail_call(skb.context(), index) };
}
