//! What keeps a flood of SYNs from driving out the flows of everybody else.
//!
//! A CPU on which many more handshakes begin than end stores new flows in a small table of their own.
//! The flood drives out its own entries there; a client that answers is moved to the real table.

use samport_common::flow::{Flow, FlowKey};
use samport_common::layout::unusual;

use crate::flows::{self, Entry};
use crate::maps::{self, Insert, Tables};

/// Takes note of a handshake that begins. Whether this is a flood.
#[inline(always)]
pub fn begins(now_tick: u32) -> bool {
    let Some(pressure) = maps::pressure() else { return false };
    if pressure.tick != now_tick {
        pressure.tick = now_tick;
        pressure.unanswered /= 2;
    }
    pressure.unanswered = pressure.unanswered.saturating_add(1);
    pressure.unanswered > maps::flood_limit()
}

/// Takes note of a handshake that its client has finished.
#[inline(always)]
pub fn ends() {
    if let Some(pressure) = maps::pressure() {
        pressure.unanswered = pressure.unanswered.saturating_sub(1);
    }
}

/// Stores a flow in the flood's table. The error is the kernel's negative errno.
#[inline(always)]
pub fn store<P: Tables>(key: &FlowKey<P::Addr>, flow: &Flow) -> Result<(), i32> {
    if !maps::flood_seen() {
        maps::set_unusual(unusual::FLOOD);
    }
    P::insert_flood(key, flow)
}

/// Moves a flow whose client has answered to the real table. If that fails it stays, and the next
/// packet tries again.
#[inline(always)]
pub fn promote<P: Tables>(key: &FlowKey<P::Addr>, entry: Entry) {
    if P::insert(key, &entry.copy(), Insert::New).is_ok() {
        flows::count_insert();
        P::remove_flood(key);
    }
}
