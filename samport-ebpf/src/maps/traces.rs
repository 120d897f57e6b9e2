//! The maps about what somebody watches.

use aya_ebpf::macros::map;
use aya_ebpf::maps::ring_buf::RingBufEntry;
use aya_ebpf::maps::{Array, PerCpuArray, ProgramArray, RingBuf};
use samport_common::trace::{Kept, TRACE_BYTES, Traced, Watch};

use crate::atomic;
use crate::skb::Skb;

/// What somebody watches. Written by who does.
#[map]
static TRACE_WATCH: Array<Watch> = Array::with_max_entries(1, 0);

/// What who watches is told.
#[map]
static TRACES: RingBuf = RingBuf::with_byte_size(TRACE_BYTES, 0);

/// Packets that were watched, and could not be told of.
#[map]
static TRACE_LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// The packet as it came, and a [`Traced`] being made.
#[map]
static TRACE_PACKET: PerCpuArray<Kept> = PerCpuArray::with_max_entries(1, 0);
#[map]
static TRACE_RECORD: PerCpuArray<Traced> = PerCpuArray::with_max_entries(1, 0);

/// `samport_trace`, reached by tail call.
#[map]
static TRACERS: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// What somebody watches, if anybody does; its time is changed by both sides.
#[inline(always)]
pub fn watch() -> Option<*mut Watch> {
    TRACE_WATCH.get_ptr_mut(0)
}

/// This CPU's room for a packet as it came.
#[inline(always)]
pub fn kept_packet() -> Option<&'static mut Kept> {
    // SAFETY: as in `super::syn_rate`.
    TRACE_PACKET.get_ptr_mut(0).map(|kept| unsafe { &mut *kept })
}

/// This CPU's draft of what is told.
#[inline(always)]
pub fn traced() -> Option<&'static mut Traced> {
    // SAFETY: as in `super::syn_rate`.
    TRACE_RECORD.get_ptr_mut(0).map(|draft| unsafe { &mut *draft })
}

/// Tells who watches.
#[inline(always)]
pub fn set_unserved(traced: &Traced) {
    if TRACES.output::<Traced>(traced, 0).is_err() {
        count_untold();
    }
}

/// Room for telling who watches, of a program that runs in a system call.
#[inline(always)]
pub fn reserve_traced() -> Option<RingBufEntry<Traced>> {
    let room = TRACES.reserve::<Traced>(0);
    if room.is_none() {
        count_untold();
    }
    room
}

/// Counts a packet that could not be told of.
#[inline(always)]
pub fn count_untold() {
    if let Some(counter) = TRACE_LOST.get_ptr_mut(0) {
        // SAFETY: the map's values are aligned 64-bit counters.
        unsafe { atomic::add(counter, 1) };
    }
}

/// Goes on in `samport_trace`. Returns only if the loader has not put it there, or after too many calls.
#[inline(always)]
pub fn call_tracer(skb: &Skb) {
    // SAFETY: as in `super::tail_call`.
    unsafe { TRACERS.tail_call(skb.context(), 0) };
}
