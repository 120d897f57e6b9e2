//! The life of a TCP connection, and of an exchange of UDP datagrams, as a balancer in the middle sees
//! it. Pure: time is a parameter.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::verdict::Verdict;
use crate::wire::protocol::Protocol;
use crate::wire::tcp::Flags;

mod race;
mod step;

pub use race::{Advance, OpenChange, after_race, open_change};
pub use step::{Segment, Sender, Sequences, Step, first, is_plain, step};

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
    /// Data may flow: the client has acknowledged the SYN-ACK.
    Established = 3,
    /// The client has finished and the backend has acknowledged that; the backend has not finished yet.
    ClientFinished = 4,
    /// The backend has finished, the client not yet.
    BackendFinished = 5,
    /// Both have finished.
    Finished = 6,
    /// One side has aborted.
    Reset = 7,
    /// UDP: the client has sent, nobody has answered.
    Unanswered = 8,
    /// UDP: the backend has answered.
    Answered = 9,
    /// The backend has refused; the client has not been told and its next SYN goes to another.
    Failed = 10,
    /// A segment from the middle of a connection was placed by its hash, and the backend has not said yet
    /// that it knows the connection.
    Unverified = 11,
    /// A FIN of the client has passed, which the backend has not acknowledged yet.
    ClientFinishing = 12,
    /// The same after the backend has finished.
    Finishing = 13,
    /// UDP: the client has sent again after the answer.
    Assured = 14,
    /// A reset of the client has passed that may be real. If it is not, the backend may keep silent all the same: it
    /// challenges only so many (RFC 5961, section 7). So the flow is remembered like an open one.
    ClientReset = 15,
}

impl State {
    /// All states, by number.
    pub const ALL: [Self; 16] = [
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
        Self::Unverified,
        Self::ClientFinishing,
        Self::Finishing,
        Self::Assured,
        Self::ClientReset,
    ];

    /// The state a flow begins in.
    #[must_use]
    #[inline(always)]
    pub const fn first(protocol: Protocol, flags: Flags) -> Self {
        match protocol {
            Protocol::Tcp if flags.opens() => Self::SynSent,
            Protocol::Tcp => Self::Unverified,
            Protocol::Udp => Self::Unanswered,
        }
    }

    /// Whether the flow counts as one its backend is busy with.
    #[must_use]
    #[inline(always)]
    pub const fn is_open(self) -> bool {
        !self.has_ended() && !matches!(self, Self::ClientReset)
    }

    /// The name users know it by.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::SynSent => "syn-sent",
            Self::SynReceived => "syn-received",
            Self::Established => "established",
            Self::ClientFinished => "client-finished",
            Self::BackendFinished => "backend-finished",
            Self::Finished => "finished",
            Self::Reset => "reset",
            Self::Unanswered => "unanswered",
            Self::Answered => "answered",
            Self::Failed => "failed",
            Self::Unverified => "unverified",
            Self::ClientFinishing => "client-finishing",
            Self::Finishing => "finishing",
            Self::Assured => "assured",
            Self::ClientReset => "client-reset",
        }
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
            11 => Self::Unverified,
            12 => Self::ClientFinishing,
            13 => Self::Finishing,
            14 => Self::Assured,
            15 => Self::ClientReset,
            _ => Self::Closed,
        }
    }

    /// Whether a SYN, or any datagram of UDP, begins something new on this entry rather than going
    /// on with the old one. After a reset that may have been forged, only its backend can tell.
    #[must_use]
    #[inline(always)]
    pub const fn is_over(self, idle_ticks: u32, timeout_ticks: u32) -> bool {
        self.has_ended() || matches!(self, Self::Unverified) || idle_ticks > timeout_ticks
    }

    /// Whether the flow has ended beyond doubt: nobody misses it.
    #[must_use]
    #[inline(always)]
    pub const fn has_ended(self) -> bool {
        matches!(self, Self::Closed | Self::Finished | Self::Reset | Self::Failed)
    }

    /// Whether nothing has shown yet that the client is where its address says.
    #[must_use]
    #[inline(always)]
    pub const fn is_unproven(self) -> bool {
        matches!(
            self,
            Self::SynSent
                | Self::SynReceived
                | Self::Unanswered
                | Self::Answered
                | Self::Failed
                | Self::Unverified
        )
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
            State::SynSent | State::SynReceived | State::Failed | State::Unverified => self.syn,
            State::Established
            | State::ClientFinishing
            | State::ClientFinished
            | State::BackendFinished
            | State::Finishing
            | State::ClientReset => self.established,
            State::Finished => self.finished,
            State::Reset => self.reset,
            State::Unanswered => self.udp_unanswered,
            State::Answered | State::Assured => self.udp,
        }
    }
}

/// Whether a packet, of either side, goes on in a flow whose handshake is behind it, whatever it does to
/// the flow: nearly all do. There is nothing then to decide but the next state, by [`step()`].
///
/// For UDP, of a flow that is not over.
#[must_use]
#[inline(always)]
pub const fn goes_on(state: State, flags: Flags) -> bool {
    match state {
        State::SynReceived
        | State::Established
        | State::ClientFinishing
        | State::ClientFinished
        | State::BackendFinished
        | State::Finishing
        | State::Finished
        | State::Reset
        | State::ClientReset
        | State::Answered
        | State::Assured => !flags.syn(),
        State::Closed | State::SynSent | State::Unanswered | State::Failed | State::Unverified => {
            false
        }
    }
}

/// What to do with a client's packet, given what is known of its flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// Stay with the flow's backend; what the packet makes of the flow says [`step()`].
    Stay,
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
                Decision::Stay
            }
        }
    }
}

#[cfg(test)]
mod tests;
