//! Room in the tables of flows: whose client has proven nothing yet takes none of the others'.
//!
//! The tables never drive an entry out. A flow that finds no room in them is kept in a table of its own, where
//! the oldest make way, until its client is proven and there is room.

use samport_common::flow::{Flow, FlowKey, FlowWord, ServiceId, marks};
use samport_common::layout::{UNPROVEN, flow_hint, held_by};

use crate::flows::{self, FlowRef};
use crate::maps::{self, Insert, Tables};

/// Whether the table of flows takes a new flow of a service. Its client is not proven yet: those of both tables together
/// are counted, and each table has a limit of its own, so that a small one is not filled with them, and a large one is not
/// limited by the small one.
#[inline(always)]
pub fn has_room<P: Tables>(service: ServiceId) -> bool {
    maps::held(UNPROVEN) < u64::from(P::of_two(maps::room_limits().unproven))
        && may_hold_more::<P>(service)
}

/// Whether a service may hold more of the table: while that is nearly full, it has a share.
#[inline(always)]
pub fn may_hold_more<P: Tables>(service: ServiceId) -> bool {
    if P::of_two(maps::nearly_full()) == 0 {
        return true;
    }
    maps::held(held_by(service)) < u64::from(P::of_two(maps::room_limits().share))
}

/// Counts an entry that was made.
#[inline(always)]
pub fn takes(service: ServiceId, word: FlowWord) {
    maps::count_opened(held_by(service));
    if word.state().is_unproven() {
        maps::count_opened(UNPROVEN);
    }
}

/// Takes note of an entry whose word was exchanged for another.
#[inline(always)]
pub fn moves(entry: FlowRef, from: FlowWord, to: FlowWord) {
    let (before, after) = (from.state().is_unproven(), to.state().is_unproven());
    if before == after || entry.marks() & u32::from(marks::OVERFLOW) != 0 {
        return;
    }
    if after {
        maps::count_opened(UNPROVEN);
    } else {
        maps::count_ended(UNPROVEN);
    }
}

/// Stores a flow for which there is no room. The error is the kernel's negative errno.
#[inline(always)]
pub fn store_beside<P: Tables>(key: &FlowKey<P::Addr>, flow: &mut Flow) -> Result<(), i32> {
    if !maps::has_overflow() {
        maps::set_flow_hint(flow_hint::OVERFLOW);
    }
    flow.flags |= marks::OVERFLOW;
    P::insert_overflow(key, flow)
}

/// Moves a flow whose client is proven to the table where nobody drives it out. Without room there it stays,
/// and the next packet tries again.
#[inline(always)]
pub fn promote<P: Tables>(key: &FlowKey<P::Addr>, service: ServiceId, entry: FlowRef) {
    if !may_hold_more::<P>(service) {
        return;
    }
    let mut flow = entry.copy();
    flow.flags &= !marks::OVERFLOW;
    if P::insert(key, &flow, Insert::New).is_ok() {
        flows::count_insert();
        takes(service, FlowWord::from_bits(flow.word));
        P::remove_overflow(key);
    }
}
