//! What keeps a flood of SYNs from taking all the room that clients have that are not proven: a CPU on which
//! many more handshakes begin than end stores new flows where the oldest make way (see [`crate::room`]).

use crate::maps;

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
