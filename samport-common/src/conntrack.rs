//! The life of a TCP connection, and of an exchange of UDP datagrams, as a balancer in the middle sees
//! it. Pure: time is a parameter.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::verdict::Verdict;
use crate::wire::protocol::Protocol;
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
    /// UDP: the client has sent, nobody has answered.
    Unanswered = 8,
    /// UDP: both have sent.
    Answered = 9,
    /// The backend has refused; the client has not been told and its next SYN goes to another.
    Failed = 10,
}

impl State {
    /// All states, by number.
    pub const ALL: [Self; 11] = [
        Self::Closed,
        Self::SynSent,
        Self::SynReceived,
        Self::Established,
        Self::ClientFinished,
        Self::BackendFinished,
        Self::Finished,
        Self::Reset,
        Self::Unanswered,
        Self::Answered,
        Self::Failed,
    ];

    /// The state a flow begins in. One that is found again by its hash, in the middle of a
    /// connection, is open.
    #[must_use]
    #[inline(always)]
    pub const fn first(protocol: Protocol, flags: Flags) -> Self {
        match protocol {
            Protocol::Tcp if flags.opens() => Self::SynSent,
            Protocol::Tcp => Self::Established,
            Protocol::Udp => Self::Unanswered,
        }
    }

    /// Whether the flow counts as one its backend is busy with.
    #[must_use]
    #[inline(always)]
    pub const fn is_open(self) -> bool {
        !matches!(self, Self::Closed | Self::Finished | Self::Reset | Self::Failed)
    }

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
            8 => Self::Unanswered,
            9 => Self::Answered,
            10 => Self::Failed,
            _ => Self::Closed,
        }
    }

    /// Whether a SYN, or any datagram of UDP, begins something new on this entry rather than going
    /// on with the old one.
    #[must_use]
    #[inline(always)]
    pub const fn is_over(self, idle_ticks: u32, timeout_ticks: u32) -> bool {
        !self.is_open() || idle_ticks > timeout_ticks
    }
}

/// For each state, by its number, the ticks without a packet after which the entry counts as closed.
/// Longer than there are states, so that masking a state's byte gives an index inside.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(transparent)]
pub struct Timeouts(pub [u32; 16]);

impl Timeouts {
    /// Ticks in these seconds, rounded up.
    #[must_use]
    #[allow(clippy::cast_possible_truncation, reason = "2³² s are fewer than 2³² ticks of 1.07 s")]
    pub const fn ticks(seconds: u32) -> u32 {
        (seconds as u64 * 1_000_000_000).div_ceil(1 << TICK_SHIFT) as u32
    }

    /// The timeouts of these seconds.
    #[must_use]
    pub const fn new(of: &Seconds) -> Self {
        let mut ticks = [0; 16];
        let mut index = 0;
        while index < State::ALL.len() {
            #[allow(clippy::indexing_slicing, reason = "a constant loop, checked when compiled")]
            {
                ticks[index] = Self::ticks(of.of(State::ALL[index]));
            }
            index += 1;
        }
        Self(ticks)
    }

    /// The timeout of a state, in ticks.
    #[must_use]
    #[inline(always)]
    pub fn of(&self, state: State) -> u32 {
        self.0.get(usize::from(state.to_byte() & 15)).copied().unwrap_or(0)
    }
}

/// The timeouts users choose, in seconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seconds {
    /// Handshake.
    pub syn: u32,
    /// Open connection, and half-closed: a finished client may still download.
    pub established: u32,
    /// Both sides have finished.
    pub finished: u32,
    /// One side has aborted.
    pub reset: u32,
    /// UDP until there is an answer.
    pub udp_unanswered: u32,
    /// UDP after that.
    pub udp: u32,
}

impl Seconds {
    /// Handshake: 20 s outlasts Linux's first four SYN retransmissions (1, 3, 7, 15 s). Established:
    /// 2 h 5 min, above the 2 h of the kernel's default keepalive. Finished: 30 s. Reset: 10 s. UDP:
    /// 30 s and 60 s; netfilter has 30 s and 120 s.
    pub const DEFAULT: Self =
        Self { syn: 20, established: 7_500, finished: 30, reset: 10, udp_unanswered: 30, udp: 60 };

    /// Seconds of silence that end a flow in this state.
    #[must_use]
    pub const fn of(&self, state: State) -> u32 {
        match state {
            State::Closed => 0,
            State::SynSent | State::SynReceived | State::Failed => self.syn,
            State::Established | State::ClientFinished | State::BackendFinished => self.established,
            State::Finished => self.finished,
            State::Reset => self.reset,
            State::Unanswered => self.udp_unanswered,
            State::Answered => self.udp,
        }
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
    match (state, sender) {
        (State::Closed | State::Failed, _) => state,
        (State::Unanswered, Sender::Client) => State::Unanswered,
        (State::Unanswered, Sender::Backend) | (State::Answered, _) => State::Answered,
        _ if flags.rst() => State::Reset,
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

/// What is known of a client's packet's flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Known {
    /// Where it stands.
    pub state: State,
    /// Whether a new flow may begin in its place: see [`State::is_over`].
    pub over: bool,
    /// Whether its backend still serves it.
    pub backend_serves: bool,
}

/// What opens a flow at a service.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Openers {
    /// A client's first packet.
    First,
    /// Any packet of a client: its hash says where the connection was before it was forgotten.
    Any,
}

/// Decides for a client's packet.
#[must_use]
#[inline(always)]
pub const fn decide(
    known: Option<Known>,
    protocol: Protocol,
    flags: Flags,
    openers: Openers,
) -> Decision {
    // A datagram needs nothing before it.
    let opens = match protocol {
        Protocol::Tcp => flags.opens(),
        Protocol::Udp => true,
    };
    match known {
        None => {
            if opens || (matches!(openers, Openers::Any) && !flags.rst()) {
                Decision::Choose
            } else {
                Decision::Refuse(Verdict::MidFlowMiss)
            }
        }
        Some(Known { state, over, backend_serves }) => {
            if opens && (over || !backend_serves) {
                Decision::Choose
            } else if matches!(state, State::Closed | State::Failed) {
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

    fn known(state: State, idle_ticks: u32, backend_serves: bool) -> Known {
        let timeout = Timeouts::new(&Seconds::DEFAULT).of(state);
        Known { state, over: state.is_over(idle_ticks, timeout), backend_serves }
    }

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

    /// Case 28: RST shortens an entry's life; a spurious one mid-stream does not end the connection.
    #[test]
    fn a_spurious_reset_does_not_end_a_connection_that_goes_on() {
        assert_eq!(step(State::Established, RST, Sender::Client), State::Reset);
        let timeouts = Timeouts::new(&Seconds::DEFAULT);
        assert!(timeouts.of(State::Reset) < timeouts.of(State::Established));
        assert_eq!(
            decide(Some(known(State::Reset, 0, true)), Protocol::Tcp, ACK, Openers::First),
            Decision::Stay(State::Established)
        );
    }

    #[test]
    fn only_a_pure_syn_opens_a_flow() {
        for bits in 0..=u8::MAX {
            let opens = bits & (Flags::SYN | Flags::ACK | Flags::FIN | Flags::RST) == Flags::SYN;
            let expected =
                if opens { Decision::Choose } else { Decision::Refuse(Verdict::MidFlowMiss) };
            assert_eq!(
                decide(None, Protocol::Tcp, Flags(bits), Openers::First),
                expected,
                "flags {bits:#04x}"
            );
        }
    }

    /// Where connections are found by their hash, one that was forgotten goes on where it was.
    #[test]
    fn the_middle_of_a_forgotten_connection_opens_a_flow_where_its_hash_finds_it() {
        for bits in 0..=u8::MAX {
            let flags = Flags(bits);
            let decision = decide(None, Protocol::Tcp, flags, Openers::Any);
            assert_eq!(decision == Decision::Choose, !flags.rst(), "{flags:?}");
            let first = State::first(Protocol::Tcp, flags);
            assert_eq!(first == State::SynSent, flags.opens());
            assert!(first == State::SynSent || first == State::Established);
        }
    }

    #[test]
    fn a_syn_again_stays_until_the_connection_is_over() {
        for state in State::ALL {
            let over = !state.is_open();
            let decision = decide(Some(known(state, 0, true)), Protocol::Tcp, SYN, Openers::First);
            assert_eq!(decision == Decision::Choose, over, "{state:?}: {decision:?}");
            assert_eq!(
                decide(Some(known(state, 100_000, true)), Protocol::Tcp, SYN, Openers::First),
                Decision::Choose,
                "{state:?}"
            );
        }
    }

    #[test]
    fn a_flow_without_its_backend_starts_anew_or_is_refused() {
        for state in State::ALL {
            assert_eq!(
                decide(Some(known(state, 0, false)), Protocol::Tcp, SYN, Openers::First),
                Decision::Choose
            );
            let refused = decide(Some(known(state, 0, false)), Protocol::Tcp, ACK, Openers::First);
            assert!(matches!(refused, Decision::Refuse(_)), "{state:?}: {refused:?}");
        }
    }

    /// Case 27: a SYN-only entry expires in 20 s. Case 31: 2 h of silence do not end a connection.
    #[test]
    fn entries_expire_by_their_state() {
        let over = |state: State, seconds: u32| {
            let ticks = Timeouts::ticks(seconds);
            state.is_over(ticks, Timeouts::new(&Seconds::DEFAULT).of(state))
        };
        assert!(!over(State::SynSent, 20) && over(State::SynSent, 22));
        assert!(!over(State::Established, 2 * 3_600 + 60));
        assert!(over(State::Established, 3 * 3_600));
        assert!(!over(State::Unanswered, 30) && over(State::Unanswered, 32));
        assert!(!over(State::Answered, 60) && over(State::Answered, 62));
        assert!(over(State::Reset, 0) && over(State::Finished, 0) && over(State::Closed, 0));
    }

    #[test]
    fn every_state_survives_its_byte() {
        for state in State::ALL {
            assert_eq!(State::from_byte(state.to_byte()), state);
        }
        for byte in 11..=u8::MAX {
            assert_eq!(State::from_byte(byte), State::Closed);
        }
    }

    #[test]
    fn datagrams_stay_until_they_time_out_or_their_backend_is_gone() {
        let decide = |known| decide(known, Protocol::Udp, Flags(0), Openers::First);
        assert_eq!(decide(None), Decision::Choose);
        for state in [State::Unanswered, State::Answered] {
            assert_eq!(decide(Some(known(state, 0, true))), Decision::Stay(state));
            assert_eq!(decide(Some(known(state, 100_000, true))), Decision::Choose);
            assert_eq!(decide(Some(known(state, 0, false))), Decision::Choose);
            for bits in 0..=u8::MAX {
                assert_eq!(step(state, Flags(bits), Sender::Client), state);
                assert_eq!(step(state, Flags(bits), Sender::Backend), State::Answered);
            }
        }
    }

    /// The whole machine for TCP, written down a second time as a table: for each state the next one
    /// after the client's and after the backend's SYN, SYN+ACK, FIN, and anything else.
    #[test]
    fn every_segment_in_every_state_leads_where_the_table_says() {
        use State::{
            BackendFinished as Bf, ClientFinished as Cf, Closed as C, Established as E,
            Finished as F, Reset as R, SynReceived as Sr, SynSent as Ss,
        };
        // State; client: SYN, SYN+ACK, FIN, other; backend: the same.
        let table = [
            (C, [C, C, C, C], [C, C, C, C]),
            (Ss, [Ss, Ss, Ss, Ss], [Ss, Sr, Ss, Ss]),
            (Sr, [Sr, E, Cf, E], [Sr, Sr, Bf, Sr]),
            (E, [E, E, Cf, E], [E, E, Bf, E]),
            (Cf, [Cf, Cf, Cf, Cf], [Cf, Cf, F, Cf]),
            (Bf, [Bf, Bf, F, Bf], [Bf, Bf, Bf, Bf]),
            (F, [F, F, F, F], [F, F, F, F]),
            (R, [E, E, E, E], [E, E, E, E]),
        ];
        for (state, by_client, by_backend) in table {
            for bits in 0..=u8::MAX {
                let flags = Flags(bits);
                let column = match (bits & 2 != 0, bits & 16 != 0, bits & 1 != 0) {
                    (true, false, false) => 0,
                    (true, true, false) => 1,
                    (_, _, true) => 2,
                    _ => 3,
                };
                for (sender, row) in [(Sender::Client, by_client), (Sender::Backend, by_backend)] {
                    let reset = bits & 4 != 0 && state != C;
                    let expected = if reset { R } else { row[column] };
                    assert_eq!(step(state, flags, sender), expected, "{state:?} {bits:#04x}");
                }
            }
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
                assert_eq!(step(State::Failed, flags, sender), State::Failed);
                let finished = if flags.rst() { State::Reset } else { State::Finished };
                assert_eq!(step(State::Finished, flags, sender), finished);
                for state in State::ALL {
                    let next = step(state, flags, sender);
                    let datagrams = matches!(state, State::Unanswered | State::Answered);
                    let ended = matches!(state, State::Closed | State::Failed);
                    let reset = flags.rst() && !ended && !datagrams;
                    assert_eq!(next == State::Reset, reset, "{state:?} {flags:?} {sender:?}");
                }
            }
        }
    }
}
