//! What packets make of a flow's word, which several CPUs exchange at once: whoever wants to exchange it says what it has
//! read. `tests/models` runs these decisions in every order that there is.

use super::{Segment, Sender, Sequences, State, step};
use crate::flow::FlowWord;

/// What a segment is to make of its flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Advance {
    /// The word to exchange the one for that was read. The same word if nothing changes.
    pub word: FlowWord,
    /// The sequence numbers to keep: before the exchange, since whoever sees the state expects them.
    pub sequences: Sequences,
}

impl Advance {
    /// What a segment makes of a flow that was read as this word and these numbers.
    #[must_use]
    #[inline(always)]
    pub const fn of(word: FlowWord, segment: &Segment, sender: Sender, known: Sequences) -> Self {
        let next = step(word.state(), segment, sender, known);
        Self { word: word.with_state(next.state), sequences: next.sequences }
    }
}

/// The word to step on from after an exchange of `word` has failed because `found` stood there: another packet of the
/// flow was faster. `None` if another flow has taken its place, on which this packet has no bearing.
#[must_use]
#[inline(always)]
pub const fn after_race(word: FlowWord, found: FlowWord) -> Option<FlowWord> {
    if found.is_same_flow(word) { Some(found) } else { None }
}

/// What an exchange of a flow's word is for the counters of open flows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenChange {
    /// One more.
    Opened,
    /// One less.
    Ended,
    /// Nothing.
    Neither,
}

/// What the exchange from one state to another is for the counters of a backend's open flows. Whoever has made the
/// exchange counts it, and nobody else.
#[must_use]
#[inline(always)]
pub const fn open_change(from: State, to: State) -> OpenChange {
    match (from.is_open(), to.is_open()) {
        (true, false) => OpenChange::Ended,
        (false, true) => OpenChange::Opened,
        (true, true) | (false, false) => OpenChange::Neither,
    }
}
