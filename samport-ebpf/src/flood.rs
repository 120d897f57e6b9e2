//! What keeps a flood of SYNs from taking all the room that clients have that are not proven: a CPU on which
//! many more handshakes begin than end stores new flows where the oldest make way (see [`crate::room`]).

use crate::maps;

/// Takes note of a handshake that begins. Whether this is a flood.
#[inline(always)]
pub fn begins(now_tick: u32) -> bool {
    let Some(syn_rate) = maps::syn_rate() else { return false };
    if syn_rate.tick != now_tick {
        syn_rate.tick = now_tick;
        syn_rate.unanswered /= 2;
    }
    syn_rate.unanswered = syn_rate.unanswered.saturating_add(1);
    syn_rate.unanswered > maps::flood_limit()
}

/// Takes note of a handshake that its client has finished.
#[inline(always)]
pub fn ends() {
    if let Some(syn_rate) = maps::syn_rate() {
        syn_rate.unanswered = syn_rate.unanswered.saturating_sub(1);
    }
}
