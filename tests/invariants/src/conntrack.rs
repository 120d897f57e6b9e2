//! Target `conntrack`: the bytes are one for the protocol and what opens flows, and the packets of one flow, three bytes
//! each: what happens, the TCP flags, how long the flow has been idle.

use samport_common::conntrack::{self, Decision, Known, Openers, Seconds, Sender, State, Timeouts};
use samport_common::failover;
use samport_common::flow::FlowWord;
use samport_common::verdict::Verdict;
use samport_common::wire::protocol::Protocol;
use samport_common::wire::tcp::Flags;

/// Whatever packets come, in whatever order: only a pure SYN or a datagram opens a flow, nothing else
/// revives a closed one, nothing goes to a backend that is gone, and no state is reached without what
/// it stands for.
pub fn check(bytes: &[u8]) {
    let Some((protocol, events)) = bytes.split_first() else { return };
    let openers = if protocol & 2 == 0 { Openers::First } else { Openers::Any };
    let protocol = if protocol & 1 == 0 { Protocol::Tcp } else { Protocol::Udp };
    let mut flow = None;
    for [what, flags, idle] in events.as_chunks().0 {
        let flags = Flags(*flags);
        match what % 8 {
            0..=2 => client(&mut flow, protocol, openers, flags, *idle, true),
            3..=4 => backend(&mut flow, flags),
            5 => backend_with_failover(&mut flow, flags),
            6 => client(&mut flow, protocol, openers, flags, *idle, false),
            // The loader's collector closes an entry, or the map evicts it.
            _ if flags.fin() => flow = flow.map(|_| Flow::new(protocol, State::Closed)),
            _ => flow = None,
        }
        if let Some(flow) = &flow {
            flow.is_plausible();
        }
    }
}

/// A flow's state, and the packets that have led to it.
#[derive(Clone, Copy, Debug)]
struct Flow {
    protocol: Protocol,
    word: FlowWord,
    /// Every flag the client has sent since the flow began.
    client: u8,
    /// Every flag the backend has sent.
    backend: u8,
    /// The backend has sent a SYN-ACK, or a datagram.
    accepted: bool,
    /// It began in the middle of a connection.
    found_again: bool,
}

impl Flow {
    const fn new(protocol: Protocol, state: State) -> Self {
        let word = FlowWord::new(7, 9, state);
        let found_again = matches!(state, State::Established);
        Self { protocol, word, client: 0, backend: 0, accepted: false, found_again }
    }

    fn state(&self) -> State {
        self.word.state()
    }

    fn advance(&mut self, next: State, flags: Flags, sender: Sender) {
        let is_closed = |state| matches!(state, State::Closed | State::Failed);
        let was_closed = is_closed(self.state());
        assert_eq!(is_closed(next), was_closed, "{self:?} {flags:?} {sender:?}");
        let resets = flags.rst() && self.protocol == Protocol::Tcp && !was_closed;
        assert_eq!(next == State::Reset, resets, "{self:?} {flags:?} {sender:?}");
        let goes_back = progress(next) < progress(self.state());
        assert!(!goes_back || self.state() == State::Reset, "{self:?} {flags:?}: {next:?}");
        self.word = self.word.with_state(next);
        match sender {
            Sender::Client => self.client |= flags.0,
            Sender::Backend => {
                self.backend |= flags.0;
                self.accepted |= flags.accepts() || self.protocol == Protocol::Udp;
            }
        }
    }

    /// Whether what the state stands for has really happened.
    fn is_plausible(&self) {
        let (client, backend) = (Flags(self.client), Flags(self.backend));
        let reset = client.rst() || backend.rst();
        let holds = match self.state() {
            State::Closed | State::SynSent => true,
            State::Failed => backend.rst(),
            State::SynReceived | State::Answered => self.accepted,
            // Traffic after a reset counts as a connection that lives.
            State::Established => self.accepted || reset || self.found_again,
            State::ClientFinished => client.fin(),
            State::BackendFinished => backend.fin(),
            State::Finished => client.fin() && backend.fin(),
            State::Reset => reset,
            State::Unanswered => !self.accepted,
        };
        assert!(holds, "{self:?}");
        let datagrams = matches!(self.state(), State::Unanswered | State::Answered);
        let expected = self.protocol == Protocol::Udp;
        let is_closed = matches!(self.state(), State::Closed | State::Failed);
        assert!(datagrams == expected || is_closed, "{self:?}");
        assert_eq!((self.word.backend(), self.word.generation()), (7, 9));
        assert_eq!(State::from_byte(self.state().to_byte()), self.state());
    }
}

/// How far a flow has come. Only a reset that traffic refutes is ever taken back.
fn progress(state: State) -> u8 {
    match state {
        State::Closed | State::SynSent | State::Unanswered => 0,
        State::SynReceived | State::Answered => 1,
        State::Established => 2,
        State::ClientFinished | State::BackendFinished => 3,
        State::Finished => 4,
        State::Reset => 5,
        State::Failed => 6,
    }
}

fn client(
    flow: &mut Option<Flow>,
    protocol: Protocol,
    openers: Openers,
    flags: Flags,
    idle: u8,
    backend_serves: bool,
) {
    let known = flow.map(|flow| {
        let (state, timeout) = (flow.state(), TIMEOUTS.of(flow.state()));
        let over = state.is_over(idle_ticks(timeout, idle), timeout);
        assert!(over || state.is_open(), "a closed flow is never in the way");
        Known { state, over, backend_serves }
    });
    let decision = conntrack::decide(known, protocol, flags, openers);
    let finds_again = openers == Openers::Any && known.is_none() && !flags.rst();
    let opens = protocol == Protocol::Udp || flags.opens() || finds_again;
    let free = known.is_none_or(|known| known.over || !backend_serves);
    assert_eq!(decision == Decision::Choose, opens && free, "{known:?} {flags:?}");
    match (decision, flow) {
        (Decision::Choose, flow) => {
            *flow = Some(Flow::new(protocol, State::first(protocol, flags)));
        }
        (Decision::Stay(next), Some(flow)) => {
            let is_closed = matches!(flow.state(), State::Closed | State::Failed);
            assert!(backend_serves && !is_closed, "{flow:?} {flags:?}");
            assert_eq!(next, conntrack::step(flow.state(), flags, Sender::Client));
            flow.advance(next, flags, Sender::Client);
        }
        (Decision::Stay(next), None) => panic!("{next:?} out of nothing"),
        (Decision::Refuse(Verdict::BackendGone), Some(_)) => assert!(!backend_serves),
        (Decision::Refuse(verdict), flow) => {
            assert_eq!(verdict, Verdict::MidFlowMiss);
            let is_closed = |flow: Flow| matches!(flow.state(), State::Closed | State::Failed);
            assert!(flow.is_none_or(is_closed), "{flow:?}");
        }
    }
}

fn backend(flow: &mut Option<Flow>, flags: Flags) {
    if let Some(flow) = flow {
        let next = conntrack::step(flow.state(), flags, Sender::Backend);
        flow.advance(next, flags, Sender::Backend);
    }
}

/// As [`backend`], where another backend is tried when this one refuses.
fn backend_with_failover(flow: &mut Option<Flow>, flags: Flags) {
    match flow {
        Some(flow) if failover::refuses(flow.state(), flags) => {
            assert!(!flow.accepted, "{flow:?} {flags:?}");
            flow.word = flow.word.with_state(State::Failed);
            flow.backend |= flags.0;
        }
        _ => backend(flow, flags),
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
