//! What a segment changes in its flow, and which segments are believed.
//!
//! Whoever knows addresses and ports can send in a client's name; the sequence numbers are what he has to
//! guess (RFC 5961). So nothing that a client's segment says moves its flow on before the backend's side has
//! shown that it was real, or the segment names the one number that the backend waits for. A segment that is
//! not believed is forwarded all the same: the backend answers it as TCP does (a challenge ACK, a reset).
//!
//! What comes from the backend's own device is believed.

use super::State;
use crate::wire::tcp::Flags;

/// A TCP segment, or a datagram of UDP, which has none of this.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Segment {
    /// Its flags.
    pub flags: Flags,
    /// Its sequence number.
    pub sequence: u32,
    /// Its acknowledgement number.
    pub acknowledgement: u32,
    /// Bytes of its payload; 0 if its length is not known (BIG TCP).
    pub payload: u16,
}

impl Segment {
    /// The sequence number behind it.
    #[must_use]
    #[inline(always)]
    pub const fn end(&self) -> u32 {
        let flags = self.flags.syn() as u32 + self.flags.fin() as u32;
        self.sequence.wrapping_add(self.payload as u32).wrapping_add(flags)
    }
}

/// The sequence numbers that are kept of a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sequences {
    /// What the backend has acknowledged last: the next byte it waits for. 0 if that is not known: nothing
    /// has been seen of its side.
    pub acknowledged: u32,
    /// Until the backend answers, what follows the client's SYN; then what follows the backend's; once a FIN of
    /// the client has passed, what follows it; or the number of its reset. 0 if that is not known.
    pub awaited: u32,
}

/// What a flow has become by a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    /// Its state.
    pub state: State,
    /// Its sequence numbers.
    pub sequences: Sequences,
}

/// Who sent a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Sender {
    /// The one who dialled.
    Client = 0,
    /// The one who was chosen.
    Backend = 1,
}

/// The room in front of a number in which a segment is near it: the largest window that needs no scaling
/// (RFC 9293, section 3.1), so that no window that is known here is smaller.
const NEAR: u32 = 65_535;

/// Whether `number` is `from`, or follows it closely.
#[inline(always)]
const fn is_near(number: u32, from: u32) -> bool {
    number.wrapping_sub(from) <= NEAR
}

/// The sequence numbers of a flow that begins with this segment.
#[must_use]
#[inline(always)]
pub const fn first(segment: &Segment) -> Sequences {
    let awaited = if segment.flags.opens() {
        segment.sequence.wrapping_add(1)
    } else if segment.flags.fin() {
        segment.end()
    } else {
        0
    };
    Sequences { acknowledged: 0, awaited }
}

/// Whether a segment leaves its flow's state, and what it waits for, as they are: nearly all do.
#[must_use]
#[inline(always)]
pub const fn is_plain(state: State, flags: Flags, sender: Sender) -> bool {
    let is_plain_state = match sender {
        Sender::Client => matches!(
            state,
            State::Established
                | State::ClientFinishing
                | State::ClientFinished
                | State::BackendFinished
                | State::Finishing
                | State::Finished
                | State::Reset
                | State::ClientReset
                | State::Assured
        ),
        Sender::Backend => matches!(
            state,
            State::Established
                | State::ClientFinished
                | State::BackendFinished
                | State::Finished
                | State::Answered
                | State::Assured
        ),
    };
    // A datagram's flags are none.
    is_plain_state && flags.0 & (Flags::SYN | Flags::FIN | Flags::RST) == 0
}

/// What the flow is after a segment of it.
#[must_use]
#[inline(always)]
pub const fn step(state: State, segment: &Segment, sender: Sender, known: Sequences) -> Step {
    match sender {
        Sender::Client => by_client(state, segment, known),
        Sender::Backend => by_backend(state, segment, known),
    }
}

#[inline(always)]
const fn by_client(state: State, segment: &Segment, known: Sequences) -> Step {
    let flags = segment.flags;
    let stay = Step { state, sequences: known };
    match state {
        State::Answered => Step { state: State::Assured, ..stay },
        State::SynSent if flags.opens() => Step { sequences: first(segment), ..stay },
        // It may be the last that the client sends.
        State::Unverified if flags.fin() => finishing(state, state, segment, known),
        State::Closed
        | State::Failed
        | State::SynSent
        | State::Unverified
        | State::Unanswered
        | State::Assured
        | State::Finished
        | State::Reset => stay,
        _ if flags.rst() => reset_by_client(state, segment, known),
        // The backend answers it, and its answer counts.
        _ if flags.syn() || !flags.ack() => stay,
        State::SynReceived => {
            // Exactly: with bytes of the backend's in between it would be established already.
            if known.awaited != 0 && segment.acknowledgement != known.awaited {
                stay
            } else if flags.fin() {
                finishing(state, State::ClientFinishing, segment, known)
            } else {
                Step { state: State::Established, ..stay }
            }
        }
        State::Established | State::ClientFinishing if flags.fin() => {
            finishing(state, State::ClientFinishing, segment, known)
        }
        State::BackendFinished | State::Finishing if flags.fin() => {
            finishing(state, State::Finishing, segment, known)
        }
        State::Established
        | State::ClientFinishing
        | State::ClientFinished
        | State::BackendFinished
        | State::Finishing
        | State::ClientReset => stay,
    }
}

/// A reset that names the number the backend waits for is obeyed by it (RFC 5961, section 3.2), and nobody
/// says so. One inside of the window is challenged, and then the backend's answer says that the connection
/// lives; or it has come with bytes that are not acknowledged yet, and there will be no answer. Any other is
/// not obeyed.
#[inline(always)]
const fn reset_by_client(state: State, segment: &Segment, known: Sequences) -> Step {
    let stay = Step { state, sequences: known };
    if known.acknowledged == 0 {
        Step { state: State::ClientReset, ..stay }
    } else if segment.sequence == known.acknowledged {
        // Nothing behind it is ever acknowledged.
        let sequences = Sequences { awaited: segment.sequence, ..known };
        Step { state: State::Reset, sequences }
    } else if is_near(segment.sequence, known.acknowledged) {
        Step { state: State::ClientReset, ..stay }
    } else {
        stay
    }
}

/// A FIN of somebody who guesses must not take the place of the client's own, for which the backend's answer
/// is still to come. So of two the one is kept that the backend reaches first.
#[inline(always)]
const fn finishing(before: State, state: State, segment: &Segment, known: Sequences) -> Step {
    let end = segment.end();
    let is_first = !matches!(before, State::ClientFinishing | State::Finishing);
    let is_kept = is_first
        || known.acknowledged == 0
        || distance(known, end) < distance(known, known.awaited);
    let awaited = if is_kept { end } else { known.awaited };
    Step { state, sequences: Sequences { awaited, ..known } }
}

/// How much the client has still to get acknowledged in front of this number.
#[inline(always)]
const fn distance(known: Sequences, number: u32) -> u32 {
    number.wrapping_sub(known.acknowledged)
}

#[inline(always)]
const fn by_backend(state: State, segment: &Segment, known: Sequences) -> Step {
    let flags = segment.flags;
    let stay = Step { state, sequences: known };
    match state {
        State::Closed | State::Failed | State::Answered | State::Assured => stay,
        // Nobody has refused it since: `failover::Refusals`.
        State::Unanswered => {
            Step { state: State::Answered, sequences: Sequences { acknowledged: 0, awaited: 0 } }
        }
        _ if flags.rst() => Step { state: after_reset_by_backend(state, segment, known), ..stay },
        _ if flags.accepts() => accepted(state, segment, known),
        // Nothing in a connection is without an acknowledgement.
        _ if flags.syn() || !flags.ack() => stay,
        // It accepts nothing yet: a challenge ACK. Or the end of an older connection, which came late.
        State::SynSent if carries_nothing(segment) || flags.fin() => stay,
        _ => {
            // The backend knows the connection; a FIN may have been the first that was seen of it.
            let is_finishing = matches!(state, State::Unverified) && known.awaited != 0;
            let state = if is_finishing { State::ClientFinishing } else { state };
            let sequences = Sequences { acknowledged: segment.acknowledgement, ..known };
            Step { state: after_segment_of_backend(state, segment, known), sequences }
        }
    }
}

/// A SYN-ACK opens the connection, or opens it anew when the backend knew nothing of the old one. But if it
/// acknowledges what was acknowledged before, it is the same again: the client's answer was lost or is late.
#[inline(always)]
const fn accepted(state: State, segment: &Segment, known: Sequences) -> Step {
    let is_open = !matches!(state, State::SynSent | State::SynReceived | State::Unverified);
    if is_open && segment.acknowledgement == known.acknowledged {
        return Step { state, sequences: known };
    }
    let awaited = segment.sequence.wrapping_add(1);
    let sequences = Sequences { acknowledged: segment.acknowledgement, awaited };
    Step { state: State::SynReceived, sequences }
}

#[inline(always)]
const fn after_reset_by_backend(state: State, segment: &Segment, known: Sequences) -> State {
    match state {
        // It refuses the SYN, whose number it names, and not what somebody has sent behind it.
        State::SynSent => {
            let is_of_syn = segment.flags.ack()
                && (known.awaited == 0 || is_near(segment.acknowledgement, known.awaited));
            if is_of_syn { State::Reset } else { state }
        }
        // The answer to an ACK of somebody who did not see the SYN-ACK has his number.
        State::SynReceived => {
            let is_ours = known.awaited == 0 || is_near(segment.sequence, known.awaited);
            if is_ours { State::Reset } else { state }
        }
        _ => State::Reset,
    }
}

/// Whether a segment has neither bytes nor a FIN.
#[inline(always)]
const fn carries_nothing(segment: &Segment) -> bool {
    segment.payload == 0 && !segment.flags.fin()
}

#[inline(always)]
const fn after_segment_of_backend(state: State, segment: &Segment, known: Sequences) -> State {
    let fin = segment.flags.fin();
    // The client sends nothing behind its FIN, so that nothing else is ever acknowledged after it: exactly.
    let is_confirmed = segment.acknowledgement == known.awaited;
    match state {
        // What has been accepted by others is not to be answered with bytes.
        State::SynReceived if carries_nothing(segment) => state,
        State::ClientFinishing | State::Finishing if is_confirmed => {
            if fin || matches!(state, State::Finishing) {
                State::Finished
            } else {
                State::ClientFinished
            }
        }
        State::ClientFinishing if fin => State::Finishing,
        State::ClientFinished if fin => State::Finished,
        // On its way before the client's reset came to the backend.
        State::Reset if segment.acknowledgement == known.awaited => state,
        // After a reset: it goes on, so the connection lives. After a SYN: of an older connection, which lives.
        State::SynSent
        | State::SynReceived
        | State::Unverified
        | State::Established
        | State::Reset
        | State::ClientReset => {
            if fin {
                State::BackendFinished
            } else {
                State::Established
            }
        }
        _ => state,
    }
}
