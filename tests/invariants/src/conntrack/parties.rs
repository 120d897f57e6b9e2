//! A client and a backend that keep to the rules, samport between them, and somebody who knows their addresses and
//! ports but not their numbers, and sends in the client's name.
//!
//! What is left out, because nothing that is kept of a flow could tell:
//! - A flow whose numbers are not known (of an older layout) believes a reset or a FIN of anybody until the
//!   backend's next segment, and so does an unverified one a FIN.
//! - Where a connection is found again in its middle after one side has finished, or somebody's SYN comes at that
//!   moment or right after its end, the rest of the end is all that is seen, and the entry may live on.
//! - Where the client has aborted, what it answers to the backend's late segments must not be lost.

use std::collections::VecDeque;

use samport_common::conntrack::{
    self, Decision, Known, Openers, Seconds, Segment, Sender, Sequences, State, Timeouts,
};
use samport_common::wire::protocol::Protocol;
use samport_common::wire::tcp::Flags;

use super::endpoint::{Endpoint, Phase, USED};

/// The room around the numbers in use that nobody guesses.
const GUESS: u32 = 70_000;
/// Seconds after which the entry of a connection that has ended is gone.
const SOON: u32 = 30;

#[derive(Clone, Copy, Debug)]
struct Flow {
    state: State,
    sequences: Sequences,
}

/// The four stretches of the way, in the order of a packet and its answer.
#[derive(Clone, Copy)]
enum Hop {
    FromClient,
    ToBackend,
    FromBackend,
    ToClient,
}

const HOPS: [Hop; 4] = [Hop::FromClient, Hop::ToBackend, Hop::FromBackend, Hop::ToClient];

/// An event: what happens, how, and two numbers of 16 bits.
pub type Event = [u8; 6];

pub struct Parties {
    openers: Openers,
    client_base: u32,
    backend_base: u32,
    client: Endpoint,
    backend: Endpoint,
    flow: Option<Flow>,
    queues: [VecDeque<Segment>; 4],
    /// Somebody else's SYN has begun a flow while the backend had a connection.
    is_blurred: bool,
}

impl Parties {
    pub fn new(openers: Openers, client_base: u32, backend_base: u32) -> Self {
        let (client, backend) =
            (Endpoint::new(client_base, false), Endpoint::new(backend_base, true));
        let queues = [const { VecDeque::new() }; 4];
        let (client_base, backend_base) = (client_base & !3, backend_base & !3);
        Self {
            openers,
            client_base,
            backend_base,
            client,
            backend,
            flow: None,
            queues,
            is_blurred: false,
        }
    }

    pub fn happens(&mut self, event: Event) {
        let [what, how, a, b, c, d] = event;
        let (one, other) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        match what % 16 {
            0 => self.connect(if how % 4 == 0 { one % 1_400 } else { 0 }),
            1 => self.client_does(|client| client.send(one)),
            2 => self.client_does(Endpoint::close),
            3 if how % 4 == 0 => self.client_does(Endpoint::abort),
            4 => self.backend_does(|backend| backend.send(one)),
            5 => self.backend_does(Endpoint::close),
            6 if how % 4 == 0 => self.backend_does(Endpoint::abort),
            7 => self.remind(Sender::Client, how),
            8 => self.remind(Sender::Backend, how),
            3 | 6 | 9 | 10 => self.deliver(HOPS[usize::from(how % 4)]),
            11 => self.settle(),
            12 | 13 => self.attack(how, one, other),
            14 => self.lose(HOPS[usize::from(how % 4)]),
            _ => self.rarely_happens(how),
        }
        self.check_that_it_lives();
    }

    fn rarely_happens(&mut self, how: u8) {
        match how % 9 {
            // If both crash, there is nothing to say so.
            0 if !self.backend.is_closed() => self.client.forget(),
            1 if !self.client.is_closed() => self.backend.forget(),
            2 => self.forget_flow(),
            3 => self.take_over(),
            4 => self.backend.is_lazy = !self.backend.is_lazy,
            5 => self.backend.serve(false),
            6 => self.backend.serve(true),
            7 => self.backend.has_cookies = !self.backend.has_cookies,
            _ => {
                for end in [&mut self.client, &mut self.backend] {
                    if end.phase == Phase::TimeWait {
                        end.forget();
                    }
                }
            }
        }
    }

    fn connect(&mut self, bytes: u16) {
        if self.client.phase == Phase::TimeWait {
            self.client.forget();
        }
        self.client_does(|client| client.connect(bytes));
        self.is_blurred &= self.client.phase != Phase::SynSent;
    }

    fn client_does(&mut self, act: impl FnOnce(&mut Endpoint) -> Option<Segment>) {
        let segment = act(&mut self.client);
        self.queues[Hop::FromClient as usize].extend(segment);
    }

    fn backend_does(&mut self, act: impl FnOnce(&mut Endpoint) -> Option<Segment>) {
        let segment = act(&mut self.backend);
        self.queues[Hop::FromBackend as usize].extend(segment);
    }

    /// A retransmission, or a probe.
    fn remind(&mut self, sender: Sender, how: u8) {
        let (end, hop) = match sender {
            Sender::Client => (&mut self.client, Hop::FromClient),
            Sender::Backend => (&mut self.backend, Hop::FromBackend),
        };
        let queue = &mut self.queues[hop as usize];
        if how.is_multiple_of(2) {
            queue.extend(end.retransmit());
        } else {
            queue.extend(end.probe());
        }
    }

    fn deliver(&mut self, hop: Hop) {
        let Some(segment) = self.queues[hop as usize].pop_front() else { return };
        match hop {
            Hop::FromClient => self.pass_client(&segment),
            Hop::ToBackend => {
                let answers = self.backend.receive(&segment);
                self.queues[Hop::FromBackend as usize].extend(answers);
            }
            Hop::FromBackend => self.pass_backend(&segment),
            Hop::ToClient => {
                let answers = self.client.receive(&segment);
                self.queues[Hop::FromClient as usize].extend(answers);
            }
        }
        self.check_that_it_lives();
    }

    /// Everything that is on its way arrives, and all that it leads to.
    fn settle(&mut self) {
        for _ in 0..1_000 {
            if self.queues.iter().all(VecDeque::is_empty) {
                return;
            }
            for hop in HOPS {
                self.deliver(hop);
            }
        }
        panic!("they never stop: {:?} {:?} {:?}", self.client, self.flow, self.backend);
    }

    fn lose(&mut self, hop: Hop) {
        if self.client.phase != Phase::Closed {
            self.queues[hop as usize].pop_front();
        }
    }

    /// The entry is evicted, or the table is new; by its hash the connection is found again.
    fn forget_flow(&mut self) {
        let has_finished = self.client.has_finished || self.backend.has_finished;
        if self.openers == Openers::Any && self.is_alive() && !has_finished {
            self.flow = None;
        }
    }

    /// The entry is one of an older layout, which has no numbers.
    fn take_over(&mut self) {
        if let Some(Flow { state: State::Established | State::BackendFinished, sequences }) =
            &mut self.flow
        {
            *sequences = Sequences::default();
        }
    }

    /// Whether the two have a connection that not both sides of it have ended.
    fn is_alive(&self) -> bool {
        let (client, backend) = (&self.client, &self.backend);
        client.phase == Phase::Open
            && matches!(backend.phase, Phase::SynReceived | Phase::Open)
            && backend.peers_initial == client.initial
            && client.peers_initial == backend.initial
            && [client, backend].iter().all(|end| !end.has_finished || !end.peer_has_finished)
    }

    /// While the connection lives, its flow is open, and no SYN takes its place. A backend with SYN cookies may
    /// have reset what somebody has sent just before the client's ACK: its next segment takes that back.
    fn check_that_it_lives(&self) {
        if !self.is_alive() {
            return;
        }
        let Some(flow) = self.flow else {
            assert_eq!(self.openers, Openers::Any, "the flow is gone");
            return;
        };
        let is_over = flow.state.is_over(0, timeout(flow.state));
        let is_open = flow.state.is_open() && (!is_over || flow.state == State::Unverified);
        let is_taken_back = self.backend.has_cookies && flow.state == State::Reset;
        assert!(is_open || is_taken_back, "{flow:?}, {:?}, {:?}", self.client, self.backend);
    }

    fn pass_client(&mut self, segment: &Segment) {
        let known = self.flow.map(|Flow { state, .. }| {
            let over = state.is_over(0, timeout(state));
            Known { state, over, backend_serves: true }
        });
        match conntrack::decide(known, Protocol::Tcp, segment.flags, self.openers) {
            Decision::Choose => {
                let state = State::first(Protocol::Tcp, segment.flags);
                self.flow = Some(Flow { state, sequences: conntrack::first(segment) });
            }
            Decision::Stay => self.step(Sender::Client, segment),
            Decision::Refuse(_) => return,
        }
        self.queues[Hop::ToBackend as usize].push_back(*segment);
    }

    /// A packet of the backend's that belongs to no flow is nothing to samport.
    fn pass_backend(&mut self, segment: &Segment) {
        if self.flow.is_some() {
            self.step(Sender::Backend, segment);
            self.queues[Hop::ToClient as usize].push_back(*segment);
        }
    }

    fn step(&mut self, sender: Sender, segment: &Segment) {
        let flow = self.flow.as_mut().unwrap();
        let next = conntrack::step(flow.state, segment, sender, flow.sequences);
        if flow.state == State::SynReceived && next.state == State::Established {
            let is_acknowledged = sender == Sender::Client
                && segment.flags.ack()
                && segment.acknowledgement == flow.sequences.awaited;
            let has_sent = sender == Sender::Backend && segment.payload > 0;
            assert!(is_acknowledged || has_sent, "{flow:?} {segment:?}");
        }
        *flow = Flow { state: next.state, sequences: next.sequences };
    }

    /// Somebody sends in the client's name.
    fn attack(&mut self, flags: u8, sequence: u16, acknowledgement: u16) {
        let end_is_zero = u32::from(sequence).wrapping_sub(1);
        let sequence = if sequence < 4 { end_is_zero } else { u32::from(sequence) << 16 };
        let segment = Segment {
            flags: Flags(flags & 0x3f),
            sequence: self.blind(sequence),
            acknowledgement: self.blind(u32::from(acknowledgement) << 16),
            payload: if flags & 0x80 == 0 { 0 } else { acknowledgement % 1_460 },
        };
        if self.is_believed(&segment) {
            return;
        }
        let before = self.flow;
        self.pass_client(&segment);
        let has_begun = |flow: Option<Flow>| flow.is_some_and(|flow| flow.state == State::SynSent);
        let begins = has_begun(self.flow) && !has_begun(before);
        self.is_blurred |= begins && !self.backend.is_closed();
        let (Some(before), Some(after)) = (before, self.flow) else { return };
        let is_own = self.is_his(&before);
        assert!(
            may_lead(before.state, after.state, is_own),
            "{segment:?} of somebody: {before:?}, then {after:?}"
        );
    }

    /// The numbers that he does not guess are far from all that are ever used.
    fn blind(&self, number: u32) -> u32 {
        let mut number = number;
        for base in [self.client_base, self.backend_base, self.client_base] {
            let first = base.wrapping_sub(GUESS);
            if number.wrapping_sub(first) < USED + 2 * GUESS {
                number = number.wrapping_add(USED + 2 * GUESS);
            }
        }
        number
    }

    /// Whether nothing is known that such a segment could be held against.
    fn is_believed(&self, segment: &Segment) -> bool {
        let Some(Flow { state, sequences }) = self.flow else { return false };
        let is_unknown = sequences.acknowledged == 0 && state != State::SynSent;
        is_unknown && (segment.flags.rst() || segment.flags.fin())
    }

    /// Whether the backend has answered a SYN of his.
    fn is_his(&self, flow: &Flow) -> bool {
        let from_base = flow.sequences.acknowledged.wrapping_sub(self.client_base);
        flow.state == State::SynReceived && from_base > USED
    }

    /// Everything ends, one way or another, and so does the flow.
    pub fn end(mut self, how: u8) {
        self.backend.serve(true);
        self.calm_down();
        match how % 8 {
            0 => return self.go_on(),
            1 => {
                self.client_does(Endpoint::close);
                self.calm_down();
                self.backend_does(Endpoint::close);
            }
            2 => {
                self.backend_does(Endpoint::close);
                self.calm_down();
                self.client_does(Endpoint::close);
            }
            3 => {
                self.client_does(Endpoint::close);
                self.backend_does(Endpoint::close);
            }
            4 => self.client_does(Endpoint::abort),
            5 => self.backend_does(Endpoint::abort),
            6 => {
                self.burst();
                self.backend_does(|backend| backend.send(3_000));
                self.client_does(Endpoint::abort);
            }
            _ => {
                self.burst();
                self.client_does(Endpoint::close);
                self.backend_does(Endpoint::close);
            }
        }
        self.calm_down();
        self.check_that_it_has_ended();
    }

    fn burst(&mut self) {
        for _ in 0..5 {
            self.client_does(|client| client.send(u16::MAX));
        }
    }

    /// Whatever was lost is sent again, until nothing is missing.
    fn calm_down(&mut self) {
        for _ in 0..6 {
            self.settle();
            for how in [0, 1] {
                self.remind(Sender::Client, how);
                self.remind(Sender::Backend, how);
            }
        }
        self.settle();
    }

    fn check_that_it_has_ended(&self) {
        if !self.client.is_closed() || !self.backend.is_closed() || self.is_blurred {
            return;
        }
        let Some(flow) = self.flow else { return };
        // It may have been obeyed, and may have been forged and not challenged: nobody can tell.
        if flow.state == State::ClientReset {
            return;
        }
        let seconds = Seconds::DEFAULT.of(flow.state);
        assert!(seconds <= SOON, "{flow:?}, {:?}, {:?}", self.client, self.backend);
    }

    /// A connection that still lives after all that is in the state that it would be in without an attacker;
    /// nobody knows of a FIN of the client whether it is the client's.
    fn go_on(mut self) {
        if !self.is_alive() || self.is_blurred {
            return;
        }
        self.client_does(|client| client.send(100));
        self.backend_does(|backend| backend.send(100));
        self.calm_down();
        let state = self.flow.map(|flow| flow.state);
        let may_be = match (self.client.has_finished, self.backend.has_finished) {
            (false, false) => [State::Established, State::ClientFinishing],
            (false, true) => [State::BackendFinished, State::Finishing],
            (true, _) => [State::ClientFinished, State::ClientFinished],
        };
        assert!(state.is_some_and(|state| may_be.contains(&state)), "{state:?}");
    }
}

/// What somebody's segment may make of a flow: nothing but a claim that the client has finished, which the backend
/// does not confirm; what he has begun himself he may end.
fn may_lead(before: State, after: State, is_own: bool) -> bool {
    match (before, after) {
        (State::Established, State::ClientFinishing)
        | (State::BackendFinished, State::Finishing) => true,
        (State::SynReceived, State::Reset | State::ClientReset) => is_own,
        (_, State::SynSent) => before.is_over(0, timeout(before)) || before == State::SynSent,
        _ => before == after,
    }
}

fn timeout(state: State) -> u32 {
    const TIMEOUTS: Timeouts = Timeouts::new(&Seconds::DEFAULT);
    TIMEOUTS.of(state)
}
