//! The packets of one flow, of senders that keep to no rule: what happens, the flags, how long the flow has been idle,
//! how the numbers stand to those that are known, and the bytes of payload.

use samport_common::conntrack::{
    self, Decision, Known, Openers, Seconds, Segment, Sender, Sequences, State, Timeouts,
};
use samport_common::failover;
use samport_common::flow::FlowWord;
use samport_common::verdict::Verdict;
use samport_common::wire::protocol::Protocol;
use samport_common::wire::tcp::Flags;

/// Only a pure SYN or a datagram opens a flow, nothing else revives a closed one, nothing goes to a backend that is
/// gone, and no state is reached without what it stands for.
pub fn check(protocol: Protocol, openers: Openers, events: &[u8]) {
    let mut flow = None;
    for [what, flags, idle, sequence, acknowledgement, far @ .., payload] in
        events.as_chunks::<8>().0
    {
        let far = u16::from_be_bytes(*far);
        let segment = match protocol {
            Protocol::Udp => Segment::default(),
            Protocol::Tcp => Segment {
                flags: Flags(*flags),
                sequence: number(flow.as_ref(), *sequence, far),
                acknowledgement: number(flow.as_ref(), *acknowledgement, far),
                payload: u16::from(*payload),
            },
        };
        match what % 8 {
            0..=2 => client(&mut flow, protocol, openers, &segment, *idle, true),
            3..=4 => backend(&mut flow, &segment),
            5 => backend_with_failover(&mut flow, &segment),
            6 => client(&mut flow, protocol, openers, &segment, *idle, false),
            // The loader's collector closes an entry, or the map evicts it.
            _ if flags & Flags::FIN != 0 => flow = flow.map(|_| Flow::new(protocol, State::Closed)),
            _ => flow = None,
        }
        if let Some(flow) = &flow {
            flow.is_plausible();
        }
    }
}

/// A number that is one of those known, near one of them, or somewhere.
fn number(flow: Option<&Flow>, how: u8, far: u16) -> u32 {
    let Sequences { acknowledged, awaited } = flow.map_or_else(Default::default, |f| f.sequences);
    let from = if how & 1 == 0 { acknowledged } else { awaited };
    match how >> 1 & 7 {
        0 | 1 => from,
        2 => from.wrapping_add(1),
        3 => from.wrapping_sub(1),
        4 => from.wrapping_add(u32::from(far)),
        5 => from.wrapping_sub(u32::from(far)),
        _ => u32::from(far) << 16,
    }
}

/// A flow's state, and the packets that have led to it.
#[derive(Clone, Copy, Debug)]
struct Flow {
    protocol: Protocol,
    word: FlowWord,
    sequences: Sequences,
    /// Every flag the client has sent since the flow began.
    client: u8,
    /// Every flag the backend has sent.
    backend: u8,
    /// The backend has sent a SYN-ACK, or a datagram.
    accepted: bool,
    /// The backend has sent anything that is in a connection.
    lives: bool,
    /// It began in the middle of a connection.
    is_found: bool,
}

impl Flow {
    const fn new(protocol: Protocol, state: State) -> Self {
        let word = FlowWord::new(7, 9, state);
        Self {
            protocol,
            word,
            sequences: Sequences { acknowledged: 0, awaited: 0 },
            client: 0,
            backend: 0,
            accepted: false,
            lives: false,
            is_found: matches!(state, State::Unverified),
        }
    }

    fn state(&self) -> State {
        self.word.state()
    }

    fn advance(&mut self, segment: &Segment, sender: Sender) {
        let flags = segment.flags;
        let next = conntrack::step(self.state(), segment, sender, self.sequences);
        let is_closed = |state| matches!(state, State::Closed | State::Failed);
        let was_closed = is_closed(self.state());
        assert_eq!(is_closed(next.state), was_closed, "{self:?} {segment:?} {sender:?}");
        let begins_reset =
            next.state != self.state() && matches!(next.state, State::Reset | State::ClientReset);
        assert!(!begins_reset || flags.rst(), "{self:?} {segment:?} {sender:?}");
        let goes_back = progress(next.state) < progress(self.state());
        let by_backend = sender == Sender::Backend && flags.ack();
        assert!(!goes_back || by_backend, "{self:?} {segment:?}: {next:?}");
        (self.word, self.sequences) = (self.word.with_state(next.state), next.sequences);
        match sender {
            Sender::Client => self.client |= flags.0,
            Sender::Backend => {
                let is_udp = self.protocol == Protocol::Udp;
                self.backend |= flags.0;
                self.accepted |= flags.accepts() || is_udp;
                self.lives |= flags.ack() || is_udp;
            }
        }
    }

    /// Whether what the state stands for has really happened.
    fn is_plausible(&self) {
        let (client, backend) = (Flags(self.client), Flags(self.backend));
        let holds = match self.state() {
            State::Closed | State::SynSent => true,
            State::Failed => backend.rst(),
            State::SynReceived | State::Answered | State::Assured => self.accepted,
            State::Established => self.lives,
            State::ClientFinishing | State::ClientFinished => client.fin() && self.lives,
            State::BackendFinished => backend.fin(),
            State::Finishing | State::Finished => client.fin() && backend.fin(),
            State::Reset => client.rst() || backend.rst(),
            State::ClientReset => client.rst(),
            State::Unanswered => !self.accepted,
            State::Unverified => self.is_found,
        };
        assert!(holds, "{self:?}");
        let datagrams =
            matches!(self.state(), State::Unanswered | State::Answered | State::Assured);
        let expected = self.protocol == Protocol::Udp;
        let is_closed = matches!(self.state(), State::Closed | State::Failed);
        assert!(datagrams == expected || is_closed, "{self:?}");
        assert_eq!((self.word.backend(), self.word.generation()), (7, 9));
        assert_eq!(State::from_byte(self.state().to_byte()), self.state());
    }
}

/// How far a flow has come. Only the backend takes anything of that back.
fn progress(state: State) -> u8 {
    match state {
        State::Closed | State::SynSent | State::Unverified | State::Unanswered => 0,
        State::SynReceived | State::Answered => 1,
        State::Established | State::Assured => 2,
        State::ClientFinishing => 3,
        State::ClientFinished | State::BackendFinished => 4,
        State::Finishing => 5,
        State::Finished => 6,
        State::ClientReset => 7,
        State::Reset => 8,
        State::Failed => 9,
    }
}

fn client(
    flow: &mut Option<Flow>,
    protocol: Protocol,
    openers: Openers,
    segment: &Segment,
    idle: u8,
    backend_serves: bool,
) {
    let flags = segment.flags;
    let known = flow.map(|flow| {
        let (state, timeout) = (flow.state(), TIMEOUTS.of(flow.state()));
        let over = state.is_over(idle_ticks(timeout, idle), timeout);
        let may_be_real = state == State::ClientReset;
        assert!(over || state.is_open() || may_be_real, "a closed flow is never in the way");
        Known { state, over, backend_serves }
    });
    let decision = conntrack::decide(known, protocol, flags, openers);
    let finds_again = openers == Openers::Any && known.is_none() && !flags.rst();
    let opens = protocol == Protocol::Udp || flags.opens() || finds_again;
    let free = known.is_none_or(|known| known.over || !backend_serves);
    assert_eq!(decision == Decision::Choose, opens && free, "{known:?} {flags:?}");
    match (decision, flow) {
        (Decision::Choose, flow) => {
            let mut new = Flow::new(protocol, State::first(protocol, flags));
            (new.client, new.sequences) = (flags.0, conntrack::first(segment));
            *flow = Some(new);
        }
        (Decision::Stay, Some(flow)) => {
            let is_closed = matches!(flow.state(), State::Closed | State::Failed);
            assert!(backend_serves && !is_closed, "{flow:?} {flags:?}");
            flow.advance(segment, Sender::Client);
        }
        (Decision::Stay, None) => panic!("nothing to stay with"),
        (Decision::Refuse(Verdict::BackendGone), Some(_)) => assert!(!backend_serves),
        (Decision::Refuse(verdict), flow) => {
            assert_eq!(verdict, Verdict::MidFlowMiss);
            let is_closed = |flow: Flow| matches!(flow.state(), State::Closed | State::Failed);
            assert!(flow.is_none_or(is_closed), "{flow:?}");
        }
    }
}

fn backend(flow: &mut Option<Flow>, segment: &Segment) {
    if let Some(flow) = flow {
        flow.advance(segment, Sender::Backend);
    }
}

/// As [`backend`], where another backend is tried when this one refuses.
fn backend_with_failover(flow: &mut Option<Flow>, segment: &Segment) {
    match flow {
        Some(flow) if failover::refuses(flow.state(), segment, flow.sequences) => {
            assert!(!flow.accepted, "{flow:?} {segment:?}");
            flow.word = flow.word.with_state(State::Failed);
            flow.backend |= segment.flags.0;
        }
        _ => backend(flow, segment),
    }
}

const TIMEOUTS: Timeouts = Timeouts::new(&Seconds::DEFAULT);

/// The times at which a decision may turn.
fn idle_ticks(timeout: u32, choice: u8) -> u32 {
    match choice % 4 {
        0 => 0,
        1 => timeout,
        2 => timeout + 1,
        _ => u32::MAX,
    }
}
