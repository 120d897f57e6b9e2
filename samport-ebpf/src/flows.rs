//! Finding, opening and advancing flows in the shared tables, without locks.

use core::ptr::NonNull;

use aya_ebpf::helpers::{bpf_jiffies64, bpf_ktime_get_coarse_ns};
use samport_common::conntrack::{self, Advance, Segment, Sender, Sequences, State, TICK_SHIFT};
use samport_common::exit::CachedExit;
use samport_common::flow::{
    Endpoint, Flow, FlowKey, FlowWord, ProbeSlot, ReplyPath, ServiceId, marks,
};
use samport_common::layout::{MAX_BACKENDS, flow_hint, flow_slot};
use samport_common::packet::Packet;

use samport_common::wire::tcp::Flags;

use crate::atomic;
use crate::load_store;
use crate::maps::{self, Insert, Tables};
use crate::outlier;
use crate::room;

/// The clock in ticks. It wraps after 146 years.
#[inline(always)]
#[allow(clippy::cast_possible_truncation, reason = "2³² ticks are 146 years")]
pub fn now_tick() -> u32 {
    // SAFETY: no arguments.
    (unsafe { bpf_ktime_get_coarse_ns() } >> TICK_SHIFT) as u32
}

/// The same for packets that are in a hurry: jiffies are one load, where the clock is a call.
#[inline(always)]
pub fn now_tick_fast() -> u32 {
    // SAFETY: no arguments.
    let jiffies = unsafe { bpf_jiffies64() };
    maps::clock().and_then(|clock| clock.tick(jiffies)).unwrap_or_else(now_tick)
}

/// Sets the clock that jiffies are read by.
#[inline(always)]
pub fn set_clock() {
    // SAFETY: no arguments.
    let (jiffies, now_ns) = unsafe { (bpf_jiffies64(), bpf_ktime_get_coarse_ns()) };
    maps::set_clock(jiffies, now_ns);
}

/// A flow entry that was found. The kernel may take it out and store another flow in it while we look at it, at
/// once, without a grace period. Then at worst this one packet is judged by the other flow's state and goes to
/// its backend, which does not know the connection; a compare-and-exchange on it fails, because the word's tag
/// is another one. What is written without one, the tick and the sequence numbers, may be written into the other flow;
/// its backend's next segment puts these right.
///
/// Never null, so that an `Option` of it is one register and not two whose values hang together in a
/// way the verifier does not see.
#[derive(Clone, Copy)]
pub struct FlowRef(NonNull<Flow>);

impl FlowRef {
    /// The entry at a pointer that a look-up has returned, unless it is null.
    #[inline(always)]
    pub fn new(flow: *mut Flow) -> Option<Self> {
        NonNull::new(flow).map(Self)
    }

    /// The pointer, to be returned by a function of its own.
    #[inline(always)]
    pub fn pointer(self) -> *mut Flow {
        self.0.as_ptr()
    }

    /// Backend, generation and state.
    #[inline(always)]
    pub fn word(self) -> FlowWord {
        // SAFETY: map memory is never unmapped while the program runs, and the word is aligned to 8.
        FlowWord::from_bits(unsafe { atomic::load(&raw const (*self.pointer()).word) })
    }

    /// Replaces the word if it is still `from`; otherwise says what it is now.
    #[inline(always)]
    pub fn exchange(self, from: FlowWord, to: FlowWord) -> Result<(), FlowWord> {
        let (from, to) = (from.to_bits(), to.to_bits());
        // SAFETY: as in `word`.
        let found = unsafe { atomic::compare_exchange(&raw mut (*self.pointer()).word, from, to) };
        if found == from { Ok(()) } else { Err(FlowWord::from_bits(found)) }
    }

    /// Moves on by a segment, and says to which state.
    #[inline(always)]
    pub fn advance(self, word: FlowWord, segment: &Segment, sender: Sender) -> State {
        let numbers = u64::from(segment.sequence) << 32 | u64::from(segment.acknowledgement);
        let who =
            u32::from(segment.payload) << 16 | u32::from(segment.flags.0) << 8 | sender as u32;
        let mut left = samport_advance(self.pointer(), word.to_bits(), who, numbers);
        if left & AGAIN != 0 {
            left = samport_advance(self.pointer(), left & !AGAIN, who, numbers);
        }
        FlowWord::from_bits(left & !AGAIN).state()
    }

    /// The sequence numbers that are kept. The two may be of different moments: see [`Self::remember`].
    #[inline(always)]
    pub fn sequences(self) -> Sequences {
        // SAFETY: aligned words of map memory, see `word`.
        unsafe {
            Sequences {
                acknowledged: (&raw const (*self.pointer()).acknowledged).read_volatile(),
                awaited: (&raw const (*self.pointer()).awaited).read_volatile(),
            }
        }
    }

    /// Keeps what has changed. What the backend has acknowledged only its own packets change, and what is
    /// awaited only those of a handshake, which follow on each other, and the client's FIN and reset.
    #[inline(always)]
    fn remember(self, known: Sequences, now: Sequences) {
        if known.acknowledged != now.acknowledged {
            self.acknowledge(now.acknowledged);
        }
        if known.awaited != now.awaited {
            // SAFETY: as in `sequences`.
            unsafe { (&raw mut (*self.pointer()).awaited).write_volatile(now.awaited) };
        }
    }

    /// Keeps these, whatever was kept.
    #[inline(always)]
    pub fn keep(self, sequences: Sequences) {
        // SAFETY: as in `sequences`.
        unsafe {
            (&raw mut (*self.pointer()).acknowledged).write_volatile(sequences.acknowledged);
            (&raw mut (*self.pointer()).awaited).write_volatile(sequences.awaited);
        }
    }

    /// Keeps what the backend has acknowledged. In most packets that is the same as before.
    #[inline(always)]
    pub fn acknowledge(self, number: u32) {
        // SAFETY: as in `sequences`.
        unsafe {
            let at = &raw mut (*self.pointer()).acknowledged;
            if at.read_volatile() != number {
                at.write_volatile(number);
            }
        }
    }

    /// Remembers that a packet has passed.
    #[inline(always)]
    pub fn touch(self, now_tick: u32) {
        // SAFETY: an aligned word of map memory, see `word`.
        unsafe {
            let seen = &raw mut (*self.pointer()).seen_tick;
            // A store makes the other CPUs fetch the line again: once a tick is enough.
            if seen.read_volatile() != now_tick {
                seen.write_volatile(now_tick);
            }
        }
    }

    /// Ticks since the last packet; 0 if another CPU's clock is ahead.
    #[inline(always)]
    pub fn idle_ticks(self, now_tick: u32) -> u32 {
        // SAFETY: as in `touch`.
        now_tick.saturating_sub(unsafe { (&raw const (*self.pointer()).seen_tick).read_volatile() })
    }

    /// Whether a new flow may begin in this entry's place.
    #[inline(always)]
    pub fn is_over(self, word: FlowWord, now_tick: u32) -> bool {
        word.state().is_over(self.idle_ticks(now_tick), maps::timeout(word.state()))
    }

    /// How replies get to the client.
    #[inline(always)]
    pub fn reply_path(self) -> ReplyPath {
        // SAFETY: as in `touch`.
        ReplyPath::from_bits(unsafe { (&raw const (*self.pointer()).reply_path).read_volatile() })
    }

    /// The client's side of the last hop.
    #[inline(always)]
    pub fn mac(self) -> [u8; 6] {
        // SAFETY: map memory as in `word`; six bytes that may be torn by `set_reply_path`, for which one
        // packet may go astray.
        unsafe { (&raw const (*self.pointer()).mac).read() }
    }

    /// What is known of the device that replies leave by. Not of a client in a container.
    #[inline(always)]
    pub fn cached_exit(self) -> CachedExit {
        // SAFETY: map memory as in `word`; aligned, see `cached_exit_at`.
        CachedExit(u16::from_le(unsafe { self.cached_exit_at().read_volatile() }))
    }

    /// Keeps that.
    #[inline(always)]
    pub fn set_cached_exit(self, cached_exit: CachedExit) {
        // SAFETY: as in `cached_exit`.
        unsafe { self.cached_exit_at().write_volatile(cached_exit.0.to_le()) };
    }

    #[inline(always)]
    #[allow(clippy::cast_ptr_alignment, reason = "at an even offset, as is checked here")]
    fn cached_exit_at(self) -> *mut u16 {
        const { assert!(core::mem::offset_of!(Flow, mac).is_multiple_of(2)) };
        // SAFETY: map memory as in `word`.
        unsafe { (&raw mut (*self.pointer()).mac).cast() }
    }

    /// Makes replies go another way, when the client comes in by another device.
    #[inline(always)]
    pub fn set_reply_path(self, reply_path: ReplyPath, mac: impl FnOnce() -> Option<[u8; 6]>) {
        if self.reply_path() == reply_path {
            return;
        }
        if let Some(mac) = mac() {
            // SAFETY: as in `touch`.
            unsafe {
                (&raw mut (*self.pointer()).mac).write(mac);
                (&raw mut (*self.pointer()).reply_path).write_volatile(reply_path.to_bits());
            }
        }
    }

    /// How long ago the flow was opened, in units of 1.024 µs.
    #[inline(always)]
    pub fn age(self) -> u32 {
        // SAFETY: as in `touch`.
        let opened = unsafe { (&raw const (*self.pointer()).opened).read_volatile() };
        outlier::now_micros().wrapping_sub(opened)
    }

    /// The backend that failed before this one; 0 for none.
    #[inline(always)]
    pub fn failed(self) -> u32 {
        // SAFETY: map memory as in `word`.
        u32::from(unsafe { (&raw const (*self.pointer()).failed).read_volatile() })
    }

    /// Whether another backend is tried if this one refuses.
    #[inline(always)]
    pub fn fails_over(self) -> bool {
        // SAFETY: map memory as in `word`.
        unsafe { (&raw const (*self.pointer()).flags).read_volatile() & marks::FAILOVER != 0 }
    }

    /// Whether the client is inside of this host.
    #[inline(always)]
    pub fn is_internal(self) -> bool {
        // SAFETY: map memory as in `word`.
        unsafe { (&raw const (*self.pointer()).flags).read_volatile() & marks::INTERNAL != 0 }
    }

    /// Its [`marks`].
    #[inline(always)]
    pub fn marks(self) -> u32 {
        // SAFETY: map memory as in `word`.
        u32::from(unsafe { (&raw const (*self.pointer()).flags).read_volatile() })
    }

    /// Begins anew, after a backend that failed.
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation, reason = "backend ids are below 65,536")]
    pub fn begin(self, flags: u16, failed: u32, first: Sequences) {
        let flow = self.pointer();
        // SAFETY: map memory as in `word`.
        unsafe {
            (&raw mut (*flow).opened).write_volatile(outlier::now_micros());
            (&raw mut (*flow).flags).write_volatile(flags);
            (&raw mut (*flow).failed).write_volatile(failed as u16);
        }
        self.keep(first);
    }

    /// All of it.
    #[inline(always)]
    pub fn copy(self) -> Flow {
        // SAFETY: map memory as in `word`; plain data, and only the word may change meanwhile.
        let flow = unsafe { self.pointer().read_volatile() };
        Flow { word: self.word().to_bits(), ..flow }
    }

    /// What the client dialled.
    #[inline(always)]
    pub fn vip<P: Tables>(self) -> Endpoint<P::Addr> {
        // SAFETY: map memory as in `word`, plain bytes. Written before the entry became visible, and again if the
        // kernel uses the element for another flow while we look at it: then it is that one's, or torn, and no
        // address that this packet has dialled.
        let flow = unsafe { &*self.pointer() };
        // SAFETY: likewise.
        let vip = unsafe { load_store::load(flow.vip.as_ptr() as usize) };
        Endpoint { addr: P::from_mapped(&vip), port: flow.port }
    }
}

/// Bit of what [`samport_advance`] returns: the other direction's packet was faster, and this is the word it has left. A
/// state's byte has it free.
const AGAIN: u64 = 1 << 7;
const _: () = assert!(State::ALL.len() <= 16);

/// [`FlowRef::advance`] in a function of its own, once; returns the word.
///
/// Who loses the race against the other direction's packet steps on from where that has led: the winner of the
/// next race has come after us. Of two FINs that cross on two CPUs neither may be lost, or the flow would count as
/// open for hours. Twice by the caller and not in a loop here, for which Linux 6.1 has no stack.
///
/// Exported, so that the verifier walks it by itself, once for each program: its argument is a pointer to a type whose
/// size BTF tells, which may be null (Linux 5.13).
#[unsafe(no_mangle)]
#[inline(never)]
#[allow(clippy::cast_possible_truncation, reason = "two numbers of 32 bits in one of 64")]
pub extern "C" fn samport_advance(flow: *mut Flow, word: u64, who: u32, numbers: u64) -> u64 {
    let Some(entry) = FlowRef::new(flow) else { return word };
    let [sender, flags, p0, p1] = who.to_le_bytes();
    let sender = if sender == Sender::Client as u8 { Sender::Client } else { Sender::Backend };
    let segment = Segment {
        flags: Flags(flags),
        sequence: (numbers >> 32) as u32,
        acknowledgement: numbers as u32,
        payload: u16::from_le_bytes([p0, p1]),
    };
    let word = FlowWord::from_bits(word);
    let known = entry.sequences();
    let next = Advance::of(word, &segment, sender, known);
    // First: who sees the state expects them.
    entry.remember(known, next.sequences);
    let to = next.word;
    if word == to {
        return word.to_bits();
    }
    match entry.exchange(word, to) {
        Ok(()) => {
            outlier::moves(word, to);
            room::moves(entry, word, to);
            to.to_bits()
        }
        Err(found) => match conntrack::after_race(word, found) {
            Some(found) => found.to_bits() | AGAIN,
            None => word.to_bits(),
        },
    }
}

/// Counts an entry made in the flow tables.
#[inline(always)]
pub fn count_insert() {
    if let Some(syn_rate) = maps::syn_rate() {
        syn_rate.inserts += 1;
    }
}

/// The entry under a key.
#[inline(always)]
pub fn find<P: Tables>(key: &FlowKey<P::Addr>) -> Option<FlowRef> {
    P::flow(key).and_then(FlowRef::new)
}

/// [`find`] for packets that are in a hurry.
#[inline(always)]
pub fn find_fast<P: Tables>(key: FlowKey<P::Addr>) -> Option<FlowRef> {
    P::flow_fast(key).and_then(FlowRef::new)
}

/// The entry under a key in the table for flows that find no room.
#[inline(always)]
pub fn find_overflow<P: Tables>(key: &FlowKey<P::Addr>) -> Option<FlowRef> {
    P::overflow(key).and_then(FlowRef::new)
}

/// Where a new flow is stored.
#[derive(Clone, Copy)]
pub enum FlowSlot {
    /// Over this entry: the same client and VIP, and a connection that is over as long as this is
    /// its word.
    Existing(FlowRef, FlowWord),
    /// As a new entry in this probe slot.
    New(ProbeSlot, Insert),
}

/// What the first probe slot says of a flow. It is all there is to know for nearly everybody.
#[derive(Clone, Copy)]
pub enum Probe {
    /// The flow's entry.
    Hit(FlowRef),
    /// There is none: a new flow goes to the first probe slot.
    Free,
    /// Only the slow path can tell: the client uses this port towards several addresses of the
    /// service, or the flow may be in another probe slot or in the table for those that find no room.
    Collision,
}

/// Looks for the flow from `client` to `vip` of a service where it most likely is.
#[inline(always)]
pub fn lookup<P: Tables>(
    client: Endpoint<P::Addr>,
    vip: Endpoint<P::Addr>,
    service: ServiceId,
) -> Probe {
    match find::<P>(&FlowKey::new(client, service, ProbeSlot::FIRST)) {
        Some(entry) if entry.vip::<P>() == vip => Probe::Hit(entry),
        None if maps::flow_hints() == 0 => Probe::Free,
        Some(_) | None => Probe::Collision,
    }
}

/// What all probe slots of a client's port at a service hold.
pub struct ProbeSlots {
    /// The entry of this very flow, if there is one.
    pub own: Option<FlowRef>,
    /// Where that entry is; without one, where a new flow would be stored. Of [`slot`].
    pub slot: u32,
    /// Backends of the other, living flows: a new flow to one of them would make replies ambiguous.
    pub taken: Taken,
}

/// Numbers of probe slots are below this.
const PROBE_SLOTS: u8 = 4;

/// Up to four backend ids, 16 bits each. An array would be walked through pointers that the verifier
/// does not like.
#[derive(Clone, Copy)]
pub struct Taken(u64);

const _: () = assert!(MAX_BACKENDS <= 1 << 16 && ProbeSlot::ALL.len() == PROBE_SLOTS as usize);

impl Taken {
    /// As [`Self::to_bits`] gave it.
    #[inline(always)]
    pub fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// As a map holds it.
    #[inline(always)]
    pub fn to_bits(self) -> u64 {
        self.0
    }

    /// Adds a backend.
    #[inline(always)]
    fn add(&mut self, backend: u32) {
        self.0 = self.0 << 16 | u64::from(backend & 0xffff);
    }

    /// Whether a backend is among them. Id 0 is none.
    #[inline(always)]
    pub fn contains(self, backend: u32) -> bool {
        let id = u64::from(backend);
        let Self(ids) = self;
        ids & 0xffff == id
            || ids >> 16 & 0xffff == id
            || ids >> 32 & 0xffff == id
            || ids >> 48 == id
    }
}

/// Looks for the flow from `client` to `vip` of a service everywhere.
#[inline(always)]
pub fn lookup_all_slots<P: Tables>(
    client: Endpoint<P::Addr>,
    vip: Endpoint<P::Addr>,
    service: ServiceId,
    now_tick: u32,
) -> ProbeSlots {
    let mut slots = ProbeSlots { own: None, slot: flow_slot::NONE, taken: Taken(0) };
    let mut key = FlowKey::new(client, service, ProbeSlot::FIRST);
    for number in 0..PROBE_SLOTS {
        let probe_slot = ProbeSlot::from_number(number);
        key.set(service, probe_slot);
        let entry = find::<P>(&key);
        if let Some(entry) = entry {
            if slots.own.is_none() && entry.vip::<P>() == vip {
                slots.own = Some(entry);
                slots.slot = u32::from(probe_slot.number());
                continue;
            }
            let word = entry.word();
            if !entry.is_over(word, now_tick) {
                slots.taken.add(word.backend());
                continue;
            }
        }
        if slots.slot == flow_slot::NONE {
            let replace = if entry.is_some() { flow_slot::REPLACE } else { 0 };
            slots.slot = u32::from(probe_slot.number()) | replace;
        }
    }
    key.set(service, ProbeSlot::FIRST);
    if slots.own.is_none()
        && maps::has_overflow()
        && let Some(entry) = find_overflow::<P>(&key)
        && entry.vip::<P>() == vip
    {
        slots.own = Some(entry);
        slots.slot = flow_slot::OVERFLOW;
    }
    slots
}

/// Closes the flows of the packet's sender with other addresses of the service that nothing has proven to be his, and
/// that have not been answered as a datagram is: that is all that many a client wants.
#[inline(always)]
pub fn close_unproven<P: Tables>(packet: &Packet<P::Addr>, service: ServiceId) {
    let mut key = FlowKey::new(packet.source, service, ProbeSlot::FIRST);
    for number in 0..PROBE_SLOTS {
        key.set(service, ProbeSlot::from_number(number));
        let Some(entry) = find::<P>(&key) else { continue };
        let word = entry.word();
        let closed = word.with_state(State::Closed);
        if word.state().is_unproven()
            && !matches!(word.state(), State::Answered)
            && entry.vip::<P>() != packet.destination
            && entry.exchange(word, closed).is_ok()
        {
            outlier::moves(word, closed);
            room::moves(entry, word, closed);
        }
    }
}

/// The entry of a packet's flow where it was found before; it may have made room since.
#[inline(always)]
pub fn find_again<P: Tables>(
    packet: &Packet<P::Addr>,
    service: ServiceId,
    slot: u32,
) -> Option<FlowRef> {
    let probe_slot = ProbeSlot::from_number((slot & flow_slot::PROBE_SLOT) as u8);
    let key = FlowKey::new(packet.source, service, probe_slot);
    let entry =
        if slot == flow_slot::OVERFLOW { find_overflow::<P>(&key) } else { find::<P>(&key) };
    entry.filter(|entry| entry.vip::<P>() == packet.destination)
}

/// The entry of the flow from `client` to `vip` of a service, wherever it is.
#[inline(always)]
pub fn find_own<P: Tables>(
    client: Endpoint<P::Addr>,
    vip: Endpoint<P::Addr>,
    service: ServiceId,
) -> Option<FlowRef> {
    let mut key = FlowKey::new(client, service, ProbeSlot::FIRST);
    for probe_slot in ProbeSlot::ALL {
        key.set(service, probe_slot);
        if let Some(entry) = find::<P>(&key)
            && entry.vip::<P>() == vip
        {
            return Some(entry);
        }
    }
    None
}

/// The flow of a service that the key's client has with this backend, if there is one that lives.
#[inline(always)]
pub fn find_by_backend<P: Tables>(
    key: &mut FlowKey<P::Addr>,
    service: ServiceId,
    backend: u32,
    generation: u32,
) -> Option<FlowRef> {
    for probe_slot in ProbeSlot::ALL {
        key.set(service, probe_slot);
        if let Some(entry) = find::<P>(key)
            && is_with(entry, backend, generation)
        {
            return Some(entry);
        }
        if probe_slot == ProbeSlot::FIRST {
            let flow_hints = maps::flow_hints();
            if flow_hints & flow_hint::OVERFLOW != 0
                && let Some(entry) = find_overflow::<P>(key)
                && is_with(entry, backend, generation)
            {
                return Some(entry);
            }
            if flow_hints & flow_hint::PROBE_SLOTS == 0 {
                return None;
            }
        }
    }
    None
}

/// Whether an entry is a living flow with this backend, or was one until the backend failed.
#[inline(always)]
fn is_with(entry: FlowRef, backend: u32, generation: u32) -> bool {
    let word = entry.word();
    if word.backend() == backend && word.generation() == generation {
        word.state() != State::Closed
    } else {
        entry.failed() == backend
    }
}
