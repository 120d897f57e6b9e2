//! Target `conntrack`: the bytes are segments of one flow, three bytes each: what happens, the TCP
//! flags, how long the flow has been idle.

use samport_common::conntrack::{self, Decision, Sender, State};
use samport_common::flow::FlowWord;
use samport_common::verdict::Verdict;
use samport_common::wire::tcp::Flags;

/// Whatever segments come, in whatever order: only a pure SYN opens a flow, nothing revives a closed
/// one, nothing goes to a backend that is gone, and no state is reached without what it stands for.
pub fn check(bytes: &[u8]) {
    let mut flow = None;
    for [what, flags, idle] in bytes.as_chunks().0 {
        let flags = Flags(*flags);
        match what % 8 {
            0..=2 => client(&mut flow, flags, *idle, true),
            3..=5 => backend(&mut flow, flags),
            6 => client(&mut flow, flags, *idle, false),
            // The loader's collector closes an entry, or the map evicts it.
            _ => flow = if flags.0 & 1 == 0 { None } else { flow.map(|_| Flow::CLOSED) },
        }
        if let Some(flow) = &flow {
            flow.is_plausible();
        }
    }
}

/// A flow's state, and the segments that have led to it.
#[derive(Clone, Copy, Debug)]
struct Flow {
    word: FlowWord,
    /// Every flag the client has sent since the flow began.
    client: u8,
    /// Every flag the backend has sent.
    backend: u8,
    /// The backend has sent a SYN-ACK.
    accepted: bool,
}

impl Flow {
    const CLOSED: Self = Self::new(State::Closed);

    const fn new(state: State) -> Self {
        Self { word: FlowWord::new(7, 9, state), client: 0, backend: 0, accepted: false }
    }

    fn state(&self) -> State {
        self.word.state()
    }

    fn advance(&mut self, next: State, flags: Flags, sender: Sender) {
        let before = self.state();
        assert_eq!(next == State::Closed, before == State::Closed, "{self:?} {flags:?} {sender:?}");
        assert_eq!(
            next == State::Reset,
            flags.rst() && before != State::Closed,
            "{self:?} {flags:?} {sender:?}"
        );
        self.word = self.word.with_state(next);
        match sender {
            Sender::Client => self.client |= flags.0,
            Sender::Backend => {
                self.backend |= flags.0;
                self.accepted |= flags.accepts();
            }
        }
    }

    /// Whether what the state stands for has really happened.
    fn is_plausible(&self) {
        let (client, backend) = (Flags(self.client), Flags(self.backend));
        let reset = client.rst() || backend.rst();
        let holds = match self.state() {
            State::Closed | State::SynSent => true,
            State::SynReceived => self.accepted,
            // Traffic after a reset counts as a connection that lives.
            State::Established => self.accepted || reset,
            State::ClientFinished => client.fin(),
            State::BackendFinished => backend.fin(),
            State::Finished => client.fin() && backend.fin(),
            State::Reset => reset,
        };
        assert!(holds, "{self:?}");
        assert_eq!((self.word.backend(), self.word.generation()), (7, 9));
        assert_eq!(State::from_byte(self.state().to_byte()), self.state());
    }
}

fn client(flow: &mut Option<Flow>, flags: Flags, idle: u8, backend_serves: bool) {
    let known = flow.map(|flow| (flow.state(), idle_ticks(flow.state(), idle), backend_serves));
    let decision = conntrack::decide(known, flags);
    let over = known.is_none_or(|(state, idle, serves)| state.is_over(idle) || !serves);
    assert_eq!(decision == Decision::Choose, flags.opens() && over, "{known:?} {flags:?}");
    match (decision, flow) {
        (Decision::Choose, flow) => *flow = Some(Flow::new(State::SynSent)),
        (Decision::Stay(next), Some(flow)) => {
            assert!(backend_serves && flow.state() != State::Closed, "{flow:?} {flags:?}");
            assert_eq!(next, conntrack::step(flow.state(), flags, Sender::Client));
            flow.advance(next, flags, Sender::Client);
        }
        (Decision::Stay(next), None) => panic!("{next:?} out of nothing"),
        (Decision::Refuse(Verdict::BackendGone), Some(_)) => assert!(!backend_serves),
        (Decision::Refuse(verdict), flow) => {
            assert_eq!(verdict, Verdict::MidFlowMiss);
            assert!(flow.is_none_or(|flow| flow.state() == State::Closed), "{flow:?}");
        }
    }
}

fn backend(flow: &mut Option<Flow>, flags: Flags) {
    if let Some(flow) = flow {
        let next = conntrack::step(flow.state(), flags, Sender::Backend);
        flow.advance(next, flags, Sender::Backend);
    }
}

/// The times at which a decision may turn.
fn idle_ticks(state: State, choice: u8) -> u32 {
    match choice % 4 {
        0 => 0,
        1 => state.timeout_ticks(),
        2 => state.timeout_ticks() + 1,
        _ => u32::MAX,
    }
}
