//! Room of this CPU's own, for one run: the stack has 512 bytes.

use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use samport_common::flow::Fragmented;
use samport_common::layout::FlowDraft;
use samport_common::packet::MAX_OFFSET;

use crate::source::FibLookup;

/// A word for [`opaque`].
#[map]
static SCRATCH_WORD: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// A [`Fragmented`] being made: the stack has no room for it.
#[map]
static SCRATCH_FRAG: PerCpuArray<Fragmented> = PerCpuArray::with_max_entries(1, 0);

/// What one program has found out for the next.
#[map]
static SCRATCH_FLOW: PerCpuArray<FlowDraft> = PerCpuArray::with_max_entries(1, 0);

/// Room for [`put`].
type PacketCell = [u64; 16];
#[map]
static SCRATCH_PACKET: PerCpuArray<PacketCell> = PerCpuArray::with_max_entries(1, 0);

/// A question to the kernel's routing table.
#[map]
static SCRATCH_FIB: PerCpuArray<FibLookup> = PerCpuArray::with_max_entries(2, 0);

/// This CPU's [`FibLookup`].
#[inline(always)]
pub fn fib_lookup() -> Option<&'static mut FibLookup> {
    // SAFETY: as in `fragment_draft`.
    SCRATCH_FIB.get_ptr_mut(0).map(|question| unsafe { &mut *question })
}

/// What is asked of a reply's route, which the kernel's answer is not written over.
#[inline(always)]
pub fn route_question() -> Option<&'static mut FibLookup> {
    // SAFETY: as in `fib_lookup`; another element.
    SCRATCH_FIB.get_ptr_mut(1).map(|question| unsafe { &mut *question })
}

/// This CPU's room for a [`Fragmented`].
#[inline(always)]
pub fn fragment_draft() -> Option<&'static mut Fragmented> {
    // SAFETY: this CPU's own copy, and a program is not interrupted by itself.
    SCRATCH_FRAG.get_ptr_mut(0).map(|draft| unsafe { &mut *draft })
}

/// This CPU's [`FlowDraft`].
#[inline(always)]
pub fn flow_draft() -> Option<&'static mut FlowDraft> {
    // SAFETY: as in `fragment_draft`.
    SCRATCH_FLOW.get_ptr_mut(0).map(|draft| unsafe { &mut *draft })
}

/// Puts a value where it does not take from the 512 bytes of stack. There is room for one a run.
/// False if the kernel has no such room, which does not happen.
#[inline(always)]
pub fn put<T: Copy>(value: T) -> bool {
    const { assert!(size_of::<T>() <= size_of::<PacketCell>() && align_of::<T>() <= 8) };
    let Some(cell) = SCRATCH_PACKET.get_ptr_mut(0) else { return false };
    // SAFETY: this CPU's own memory, large enough and aligned.
    unsafe { cell.cast::<T>().write(value) };
    true
}

/// What [`put`] has put there.
///
/// # Safety
/// In this run, a value of this type was kept.
#[inline(always)]
pub unsafe fn get<T: Copy>() -> Option<&'static T> {
    // SAFETY: the caller's promise; nobody writes there any more in this run.
    SCRATCH_PACKET.get_ptr(0).map(|cell| unsafe { &*cell.cast::<T>() })
}

/// Gives the number back, but makes the verifier forget what it knows of it.
///
/// Each way through options and extension headers leaves another range for the offset of the TCP
/// header, and the verifier would walk the rest of the program once for each of them: see
/// docs/internals/verifier.md. What was read from a map it knows nothing about, so the ways join here.
///
/// It is an offset and is masked as one: older verifiers (6.1) forget what a comparison says of a
/// number that was put on the stack before it, but not what a mask says of it.
#[inline(always)]
#[allow(clippy::cast_possible_truncation, reason = "the kernel's usize is 64 bits wide")]
pub fn opaque(offset: usize) -> usize {
    let Some(scratch) = SCRATCH_WORD.get_ptr_mut(0) else { return MAX_OFFSET };
    // SAFETY: this CPU's own word; volatile, or the compiler would remember what the verifier
    // should forget.
    unsafe {
        scratch.write_volatile(offset as u64);
        scratch.read_volatile() as usize & MAX_OFFSET
    }
}
