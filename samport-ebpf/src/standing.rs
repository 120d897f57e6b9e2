//! What the programs find out about backends: how many flows each has open, and who has failed lately.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use samport_common::choose::Load;
use samport_common::failover;
use samport_common::flow::FlowWord;
use samport_common::layout::{Backend, Event};
use samport_common::local::Chosen;

use crate::atomic;
use crate::maps;

/// The clock in units of 1.024 µs. It wraps after 73 minutes.
#[inline(always)]
#[allow(clippy::cast_possible_truncation, reason = "it may wrap: only differences count")]
pub fn now_micros() -> u32 {
    // SAFETY: no arguments.
    (unsafe { bpf_ktime_get_ns() } >> failover::MICRO_SHIFT) as u32
}

/// Takes note of a flow that opens.
#[inline(always)]
pub fn opens(word: FlowWord) {
    if word.state().is_open() {
        change_open(word, 1);
    }
}

/// Takes note of a flow whose word was exchanged for another with the same backend.
#[inline(always)]
pub fn moves(from: FlowWord, to: FlowWord) {
    match (from.state().is_open(), to.state().is_open()) {
        (true, false) => change_open(from, u64::MAX),
        (false, true) => change_open(to, 1),
        (true, true) | (false, false) => {}
    }
}

/// Takes note of a flow that is no more.
#[inline(always)]
pub fn ends(word: FlowWord) {
    if word.state().is_open() {
        change_open(word, u64::MAX);
    }
}

/// Takes note of a socket of this machine that is sent to a backend.
#[inline(always)]
pub fn opens_socket(chosen: &Chosen) {
    add_open(chosen.backend, chosen.generation, 1);
}

/// Takes note of such a socket that is closed.
#[inline(always)]
pub fn closes_socket(chosen: &Chosen) {
    add_open(chosen.backend, chosen.generation, u64::MAX);
}

#[inline(always)]
fn change_open(word: FlowWord, by: u64) {
    add_open(word.backend(), word.generation(), by);
}

/// Adds to a backend's open flows, unless its id is another's by now.
#[inline(always)]
fn add_open(id: u32, generation: u32, by: u64) {
    if let (Some(backend), Some(condition)) = (maps::backend(id), maps::condition(id))
        && backend.generation == generation
    {
        // SAFETY: an aligned word of an array that is never freed.
        unsafe { atomic::add(&raw mut (*condition).open, by) };
    }
}

/// How busy a backend is.
#[inline(always)]
pub fn load(id: u32, backend: &'static Backend) -> Load {
    let open = match maps::condition(id) {
        // SAFETY: as in `add_open`.
        Some(condition) => unsafe { atomic::load(&raw const (*condition).open) },
        None => 0,
    };
    let open = open.wrapping_sub(maps::lost(id)).cast_signed();
    // Negative for a moment, when a flow ends before its opening has been counted.
    Load { open: u32::try_from(open.max(0)).unwrap_or(u32::MAX), weight: backend.weight }
}

/// Whether new flows avoid a backend.
#[inline(always)]
pub fn is_suspect(id: u32, now_tick: u32) -> bool {
    // SAFETY: as in `add_open`.
    maps::condition(id).is_some_and(|condition| unsafe {
        (&raw const (*condition).suspect_until).read_volatile() > now_tick
    })
}

/// Takes note of a backend that has failed a connection, and tells the loader once.
#[inline(always)]
pub fn suspect(word: FlowWord, now_tick: u32, kind: u32) {
    let id = word.backend();
    let Some(condition) = maps::condition(id) else { return };
    // SAFETY: as in `add_open`. Of two CPUs at once one may not be counted.
    let ticks = unsafe {
        if (&raw const (*condition).suspect_until).read_volatile() > now_tick {
            return;
        }
        let failures = (&raw const (*condition).failures).read_volatile().saturating_add(1);
        (&raw mut (*condition).failures).write_volatile(failures);
        let ticks = failover::suspicion(failures);
        (&raw mut (*condition).suspect_until).write_volatile(now_tick.saturating_add(ticks));
        ticks
    };
    maps::tell(&Event { kind, backend: id, generation: word.generation(), ticks });
}

/// Takes note of a connection that a backend has accepted, this long after it was opened.
#[inline(always)]
pub fn accepts(word: FlowWord, took: u32) {
    let id = word.backend();
    maps::count_handshake(id, failover::class(took), took);
    if let Some(condition) = maps::condition(id) {
        // SAFETY: as in `add_open`.
        unsafe {
            if (&raw const (*condition).failures).read_volatile() != 0 {
                (&raw mut (*condition).failures).write_volatile(0);
                (&raw mut (*condition).suspect_until).write_volatile(0);
            }
        }
    }
}
