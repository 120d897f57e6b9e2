//! The life of a TCP connection as a balancer in the middle sees it. Pure: time is a parameter.

use crate::verdict::Verdict;
use crate::wire::tcp::Flags;

/// A tick is 2³⁰ ns, 1.07 s: the kernel shifts its nanosecond clock where a division by 10⁹ would
/// cost as much as a map look-up.
pub const TICK_SHIFT: u32 = 30;

/// Where a connection stands. Zero is what an empty map value decodes to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum State {
    /// No connection: the entry may be taken by a new one.
    Closed = 0,
    /// The client's SYN has passed, nothing else.
    SynSent = 1,
    /// The backend's SYN-ACK has passed too.
    SynReceived = 2,
    /// Data may flow.
    Established = 3,
    /// The client has finished, the backend not yet.
    ClientFinished = 4,
    /// The backend has finished, the client not yet.
    BackendFinished = 5,
    /// Both have finished.
    Finished = 6,
    /// One side has aborted.
    Reset = 7,
}

impl State {
    /// All states, by number.
    pub const ALL: [Self; 8] = [
        Self::Closed,
        Self::SynSent,
        Self::SynReceived,
        Self::Established,
        Self::ClientFinished,
        Self::BackendFinished,
        Self::Finished,
        Self::Reset,
    ];

    /// The byte a map holds.
    #[must_use]
    #[inline(always)]
    pub const fn to_byte(self) -> u8 {
        self as u8
    }

    /// Total decoder: an unknown byte is [`State::Closed`].
    #[must_use]
    #[inline(always)]
    pub const fn from_byte(byte: u8) -> Self {
        match byte {
            1 => Self::SynSent,
            2 => Self::SynReceived,
            3 => Self::Established,
            4 => Self::ClientFinished,
            5 => Self::BackendFinished,
            6 => Self::Finished,
            7 => Self::Reset,
            _ => Self::Closed,
        }
    }

    /// Seconds without a packet after which the entry counts as closed.
    ///
    /// Handshake: 20 s outlasts Linux's first four SYN retransmissions (1, 3, 7, 15 s). Established:
    /// 2 h 5 min, above the 2 h of the kernel's default keepalive. Half closed counts as
    /// established: a finished client may still download. Finished: 30 s. Reset: 10 s.
    #[must_use]
    #[inline(always)]
    pub const fn timeout_s(self) -> u32 {
        match self {
            Self::Closed => 0,
            Self::SynSent | Self::SynReceived => 20,
            Self::Established | Self::ClientFinished | Self::BackendFinished => 7_500,
            Self::Finished => 30,
            Self::Reset => 10,
        }
    }

    /// [`Self::timeout_s`] in ticks, rounded up.
    #[must_use]
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation, reason = "at most 7,500 s are 6,985 ticks")]
    pub const fn timeout_ticks(self) -> u32 {
        (self.timeout_s() as u64 * 1_000_000_000).div_ceil(1 << TICK_SHIFT) as u32
    }

    /// Whether a SYN on this entry begins a new connection rather than repeating the old one.
    #[must_use]
    #[inline(always)]
    pub const fn is_over(self, idle_ticks: u32) -> bool {
        matches!(self, Self::Closed | Self::Finished | Self::Reset)
            || idle_ticks > self.timeout_ticks()
    }
}

/// Who sent a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sender {
    /// The one who dialled.
    Client,
    /// The one who was chosen.
    Backend,
}

/// The state after a segment of an existing connection.
#[must_use]
#[inline(always)]
pub const fn step(state: State, flags: Flags, sender: Sender) -> State {
    if flags.rst() {
        return match state {
            State::Closed => State::Closed,
            _ => State::Reset,
        };
    }
    match (state, sender) {
        (State::Closed, _) => State::Closed,
        // A SYN-ACK answers; anything else from the backend (a challenge ACK) changes nothing.
        (State::SynSent, Sender::Backend) => {
            if flags.accepts() {
                State::SynReceived
            } else {
                State::SynSent
            }
        }
        (State::SynSent, Sender::Client) => State::SynSent,
        // The client's SYN again, or its FIN at once after the handshake.
        (State::SynReceived, Sender::Client) => {
            if flags.opens() {
                State::SynReceived
            } else if flags.fin() {
                State::ClientFinished
            } else {
                State::Established
            }
        }
        (State::SynReceived, Sender::Backend) => {
            if flags.fin() {
                State::BackendFinished
            } else {
                State::SynReceived
            }
        }
        (State::Established, Sender::Client) => {
            if flags.fin() {
                State::ClientFinished
            } else {
                State::Established
            }
        }
        (State::Established, Sender::Backend) => {
            if flags.fin() {
                State::BackendFinished
            } else {
                State::Established
            }
        }
        (State::ClientFinished, Sender::Backend) | (State::BackendFinished, Sender::Client) => {
            if flags.fin() {
                State::Finished
            } else {
                state
            }
        }
        (State::ClientFinished, Sender::Client) | (State::BackendFinished, Sender::Backend) => {
            state
        }
        (State::Finished, _) => State::Finished,
        // Traffic goes on, so the reset was forged or out of window: the connection lives. A SYN
        // would have been taken for a new connection before it came here.
        (State::Reset, _) => State::Established,
    }
}

/// What to do with a client's packet, given what is known of its flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// Stay with the flow's backend; the flow is in this state now.
    Stay(State),
    /// Pick a backend; the flow begins.
    Choose,
    /// Leave the packet alone, for this reason.
    Refuse(Verdict),
}

/// Decides for a client's segment. `known` is the flow's state, the ticks since its last packet
/// and whether its backend still serves it.
#[must_use]
#[inline(always)]
pub const fn decide(known: Option<(State, u32, bool)>, flags: Flags) -> Decision {
    match known {
        None => {
            if flags.opens() {
                Decision::Choose
            } else {
                Decision::Refuse(Verdict::MidFlowMiss)
            }
        }
        Some((state, idle_ticks, backend_serves)) => {
            if flags.opens() && (state.is_over(idle_ticks) || !backend_serves) {
                Decision::Choose
            } else if matches!(state, State::Closed) {
                Decision::Refuse(Verdict::MidFlowMiss)
            } else if !backend_serves {
                Decision::Refuse(Verdict::BackendGone)
            } else {
                Decision::Stay(step(state, flags, Sender::Client))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYN: Flags = Flags(Flags::SYN);
    const SYN_ACK: Flags = Flags(Flags::SYN | Flags::ACK);
    const ACK: Flags = Flags(Flags::ACK);
    const FIN: Flags = Flags(Flags::FIN | Flags::ACK);
    const RST: Flags = Flags(Flags::RST);

    fn run(steps: &[(Flags, Sender)]) -> State {
        steps.iter().fold(State::SynSent, |state, (flags, sender)| step(state, *flags, *sender))
    }

    #[test]
    fn a_connection_from_handshake_to_both_fins() {
        use Sender::{Backend, Client};
        assert_eq!(run(&[(SYN_ACK, Backend)]), State::SynReceived);
        assert_eq!(run(&[(SYN_ACK, Backend), (ACK, Client)]), State::Established);
        let open = [(SYN_ACK, Backend), (ACK, Client)];
        assert_eq!(run(&[&open[..], &[(FIN, Client)]].concat()), State::ClientFinished);
        assert_eq!(run(&[&open[..], &[(FIN, Backend)]].concat()), State::BackendFinished);
        for order in [[(FIN, Client), (FIN, Backend)], [(FIN, Backend), (FIN, Client)]] {
            assert_eq!(run(&[&open[..], &order].concat()), State::Finished);
        }
    }

    #[test]
    fn a_spurious_reset_does_not_end_a_connection_that_goes_on() {
        assert_eq!(step(State::Established, RST, Sender::Client), State::Reset);
        assert_eq!(decide(Some((State::Reset, 0, true)), ACK), Decision::Stay(State::Established));
    }

    #[test]
    fn only_a_pure_syn_opens_a_flow() {
        for bits in 0..=u8::MAX {
            let opens = bits & (Flags::SYN | Flags::ACK | Flags::FIN | Flags::RST) == Flags::SYN;
            let expected =
                if opens { Decision::Choose } else { Decision::Refuse(Verdict::MidFlowMiss) };
            assert_eq!(decide(None, Flags(bits)), expected, "flags {bits:#04x}");
        }
    }

    #[test]
    fn a_syn_again_stays_until_the_connection_is_over() {
        for state in State::ALL {
            let over = matches!(state, State::Closed | State::Finished | State::Reset);
            let decision = decide(Some((state, 0, true)), SYN);
            assert_eq!(decision == Decision::Choose, over, "{state:?}: {decision:?}");
            assert_eq!(decide(Some((state, 100_000, true)), SYN), Decision::Choose, "{state:?}");
        }
    }

    #[test]
    fn a_flow_without_its_backend_starts_anew_or_is_refused() {
        for state in State::ALL {
            assert_eq!(decide(Some((state, 0, false)), SYN), Decision::Choose);
            let refused = decide(Some((state, 0, false)), ACK);
            assert!(matches!(refused, Decision::Refuse(_)), "{state:?}: {refused:?}");
        }
    }

    /// Case 27: a SYN-only entry expires in 20 s. Case 31: 2 h of silence do not end a connection.
    #[test]
    fn entries_expire_by_their_state() {
        let ticks = |seconds: u64| u32::try_from((seconds * 1_000_000_000) >> TICK_SHIFT).unwrap();
        assert!(!State::SynSent.is_over(ticks(20)) && State::SynSent.is_over(ticks(22)));
        assert!(!State::Established.is_over(ticks(2 * 3_600 + 60)));
        assert!(State::Established.is_over(ticks(3 * 3_600)));
    }

    #[test]
    fn every_state_survives_its_byte() {
        for state in State::ALL {
            assert_eq!(State::from_byte(state.to_byte()), state);
        }
        for byte in 8..=u8::MAX {
            assert_eq!(State::from_byte(byte), State::Closed);
        }
    }

    /// Every state, every combination of flags, both senders: a closed entry never comes to life by
    /// itself, and nothing but a reset leaves the finished state.
    #[test]
    fn no_segment_revives_a_closed_entry() {
        for bits in 0..=u8::MAX {
            let flags = Flags(bits);
            for sender in [Sender::Client, Sender::Backend] {
                assert_eq!(step(State::Closed, flags, sender), State::Closed);
                let finished = if flags.rst() { State::Reset } else { State::Finished };
                assert_eq!(step(State::Finished, flags, sender), finished);
                for state in State::ALL {
                    let next = step(state, flags, sender);
                    let reset = flags.rst() && state != State::Closed;
                    assert_eq!(next == State::Reset, reset, "{state:?} {flags:?} {sender:?}");
                }
            }
        }
    }
}
