//! Finding, opening and advancing flows in the shared tables, without locks.

use aya_ebpf::helpers::bpf_ktime_get_coarse_ns;
use samport_common::conntrack::{State, TICK_SHIFT};
use samport_common::flow::{Endpoint, Flow, FlowKey, FlowWord, Lane, ServiceId};

use crate::atomic;
use crate::maps::{self, Insert, Tables};

/// The clock in ticks. It wraps after 146 years.
#[inline(always)]
#[allow(clippy::cast_possible_truncation, reason = "2³² ticks are 146 years")]
pub fn now_tick() -> u32 {
    // SAFETY: no arguments.
    (unsafe { bpf_ktime_get_coarse_ns() } >> TICK_SHIFT) as u32
}

/// A flow entry that was found. It may be evicted and reused while we look at it; then at worst one
/// packet is judged by another flow's state, and a compare-and-exchange on it fails.
#[derive(Clone, Copy)]
pub struct Entry(*mut Flow);

impl Entry {
    /// Backend, generation and state.
    #[inline(always)]
    pub fn word(self) -> FlowWord {
        // SAFETY: map memory is never unmapped while the program runs, and the word is aligned to 8.
        FlowWord::from_bits(unsafe { atomic::load(&raw const (*self.0).word) })
    }

    /// Replaces the word if it is still `from`; otherwise says what it is now.
    #[inline(always)]
    pub fn exchange(self, from: FlowWord, to: FlowWord) -> Result<(), FlowWord> {
        let (from, to) = (from.to_bits(), to.to_bits());
        // SAFETY: as in `word`.
        let found = unsafe { atomic::compare_exchange(&raw mut (*self.0).word, from, to) };
        if found == from { Ok(()) } else { Err(FlowWord::from_bits(found)) }
    }

    /// Moves to another state. Losing the race against the other direction's packet is harmless:
    /// the next segment moves on from there.
    #[inline(always)]
    pub fn advance(self, word: FlowWord, to: State) {
        if word.state() != to {
            let _ = self.exchange(word, word.with_state(to));
        }
    }

    /// Remembers that a packet has passed.
    #[inline(always)]
    pub fn touch(self, now_tick: u32) {
        // SAFETY: an aligned word of map memory, see `word`.
        unsafe {
            let seen = &raw mut (*self.0).seen_tick;
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
        now_tick.saturating_sub(unsafe { (&raw const (*self.0).seen_tick).read_volatile() })
    }

    /// The interface replies leave by.
    #[inline(always)]
    pub fn ifindex(self) -> u32 {
        // SAFETY: as in `touch`.
        unsafe { (&raw const (*self.0).ifindex).read_volatile() }
    }

    /// Changes the interface replies leave by.
    #[inline(always)]
    pub fn follow_to(self, ifindex: u32) {
        if self.ifindex() != ifindex {
            // SAFETY: as in `touch`.
            unsafe { (&raw mut (*self.0).ifindex).write_volatile(ifindex) };
        }
    }

    /// What the client dialled.
    #[inline(always)]
    pub fn vip<P: Tables>(self) -> Endpoint<P::Addr> {
        // SAFETY: written once, before the entry became visible; map memory as in `word`.
        let flow = unsafe { &*self.0 };
        Endpoint { addr: P::narrow(&flow.vip), port: flow.port }
    }
}

/// The entry under a key.
#[inline(always)]
pub fn find<P: Tables>(key: &FlowKey<P::Addr>) -> Option<Entry> {
    P::flow(key).map(Entry)
}

/// Where a new flow is stored.
#[derive(Clone, Copy)]
pub enum Place {
    /// Over this entry: the same client and VIP, and a connection that is over as long as this is
    /// its word.
    Entry(Entry, FlowWord),
    /// As a new entry in this lane.
    Lane(Lane, Insert),
}

/// What the first lane says of a flow. It is all there is to know for nearly everybody.
#[derive(Clone, Copy)]
pub enum First {
    /// The flow's entry.
    Own(Entry),
    /// There is none: a new flow goes to the first lane.
    Free,
    /// The client uses this port towards several addresses of the service.
    Crowded,
}

/// Looks for the flow from `client` to `vip` of a service where it most likely is.
#[inline(always)]
pub fn look<P: Tables>(
    client: Endpoint<P::Addr>,
    vip: Endpoint<P::Addr>,
    service: ServiceId,
) -> First {
    match find::<P>(&FlowKey::new(client, service, Lane::FIRST)) {
        Some(entry) if entry.vip::<P>() == vip => First::Own(entry),
        None if !maps::lanes_used() => First::Free,
        Some(_) | None => First::Crowded,
    }
}

/// What all lanes of a client's port at a service hold.
pub struct Lanes {
    /// The entry of this very flow, if there is one.
    pub own: Option<Entry>,
    /// The lane a new flow would be stored in.
    pub free: Option<Lane>,
    /// Whether an entry that is over stands in that lane.
    pub free_holds_old: bool,
    /// Backends of the other, living flows: a new flow to one of them would make replies ambiguous.
    pub taken: [u32; Lane::ALL.len()],
}

/// Looks for the flow from `client` to `vip` of a service everywhere.
#[inline(always)]
pub fn look_thoroughly<P: Tables>(
    client: Endpoint<P::Addr>,
    vip: Endpoint<P::Addr>,
    service: ServiceId,
    now_tick: u32,
) -> Lanes {
    let mut lanes = Lanes { own: None, free: None, free_holds_old: false, taken: [0; 4] };
    for (lane, taken) in Lane::ALL.into_iter().zip(&mut lanes.taken) {
        let entry = find::<P>(&FlowKey::new(client, service, lane));
        if let Some(entry) = entry {
            if entry.vip::<P>() == vip {
                lanes.own = Some(entry);
                break;
            }
            let word = entry.word();
            if !word.state().is_over(entry.idle_ticks(now_tick)) {
                *taken = word.backend();
                continue;
            }
        }
        if lanes.free.is_none() {
            lanes.free = Some(lane);
            lanes.free_holds_old = entry.is_some();
        }
    }
    lanes
}

/// The flow of a service that `client` has with this backend, if there is one that lives.
#[inline(always)]
pub fn find_by_backend<P: Tables>(
    client: Endpoint<P::Addr>,
    service: ServiceId,
    backend: u32,
    generation: u32,
) -> Option<Entry> {
    for lane in Lane::ALL {
        if let Some(entry) = find::<P>(&FlowKey::new(client, service, lane)) {
            let word = entry.word();
            let same = word.backend() == backend && word.generation() == generation;
            if same && word.state() != State::Closed {
                return Some(entry);
            }
        }
        if lane == Lane::FIRST && !maps::lanes_used() {
            return None;
        }
    }
    None
}
