//! One end of a TCP connection, as RFC 9293 and RFC 5961 have it: without selective acknowledgements, without timers.

use samport_common::conntrack::Segment;
use samport_common::wire::tcp::Flags;

/// The window both ends offer, scaled.
const WINDOW: u32 = 1 << 20;
/// The most that is in one segment: what segmentation offload makes of it.
const LARGEST: u16 = 60_000;
/// The most that one end sends in one connection.
const MOST: u32 = 1 << 22;
/// Between the initial numbers of one connection and the next.
const STEP: u32 = 1 << 24;
/// How many of these there are.
const CONNECTIONS: u32 = 16;
/// All numbers an end may use, from its first one on.
pub const USED: u32 = CONNECTIONS * STEP;
/// Challenge ACKs without a pause: they are limited, or two ends that disagree would never stop.
const CHALLENGES: u8 = 8;

/// Where an end is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// Knows of no connection, and refuses every one.
    Closed,
    /// Knows of no connection, and accepts one.
    Listen,
    SynSent,
    SynReceived,
    /// From the end of the handshake until both FINs are acknowledged.
    Open,
    TimeWait,
}

#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "what each end may have done, and how it behaves")]
pub struct Endpoint {
    pub phase: Phase,
    /// Its own initial number, and the other's.
    pub initial: u32,
    pub peers_initial: u32,
    /// Whether it has sent its FIN, and whether it has got the other's.
    pub has_finished: bool,
    pub peer_has_finished: bool,
    /// Does not acknowledge a little data that is in order.
    pub is_lazy: bool,
    /// Keeps nothing of a handshake (SYN cookies), so that it takes a wrong ACK for one of no connection.
    pub has_cookies: bool,
    owes_ack: bool,
    serves: bool,
    finished_first: bool,
    base: u32,
    connections: u32,
    /// The first number not acknowledged, and the next one to send.
    unacknowledged: u32,
    next: u32,
    /// The next number to receive.
    expected: u32,
    challenges: u8,
}

impl Endpoint {
    /// Its numbers are those from `base` on. No number that counts is 0: that stands for an unknown one. So
    /// the first is a multiple of four, and so is what is sent at a time.
    pub fn new(base: u32, serves: bool) -> Self {
        Self {
            phase: if serves { Phase::Listen } else { Phase::Closed },
            initial: base,
            peers_initial: 0,
            has_finished: false,
            peer_has_finished: false,
            is_lazy: false,
            has_cookies: false,
            owes_ack: false,
            serves,
            finished_first: false,
            base: base & !3,
            connections: 0,
            unacknowledged: base,
            next: base,
            expected: 0,
            challenges: CHALLENGES,
        }
    }

    /// Forgets everything: it has crashed, or the connection has ended.
    pub fn forget(&mut self) {
        self.phase = if self.serves { Phase::Listen } else { Phase::Closed };
    }

    /// Refuses connections from now on, or accepts them again.
    pub fn serve(&mut self, serves: bool) {
        self.serves = serves;
        if matches!(self.phase, Phase::Closed | Phase::Listen) {
            self.forget();
        }
    }

    pub fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closed | Phase::Listen | Phase::TimeWait)
    }

    /// The SYN, with so many bytes (Fast Open).
    pub fn connect(&mut self, bytes: u16) -> Option<Segment> {
        if !matches!(self.phase, Phase::Closed) || !self.begin(Phase::SynSent) {
            return None;
        }
        self.next = self.next.wrapping_add((bytes & !3).into());
        self.retransmit().pop()
    }

    fn begin(&mut self, phase: Phase) -> bool {
        if self.connections == CONNECTIONS {
            return false;
        }
        self.initial = self.base.wrapping_add(self.connections * STEP);
        self.connections += 1;
        self.phase = phase;
        self.unacknowledged = self.initial;
        self.next = self.initial.wrapping_add(1);
        (self.has_finished, self.peer_has_finished, self.owes_ack) = (false, false, false);
        true
    }

    pub fn send(&mut self, bytes: u16) -> Option<Segment> {
        let bytes = bytes.min(LARGEST) & !3;
        let is_too_much = self.next.wrapping_sub(self.initial) > MOST;
        if self.phase != Phase::Open || self.has_finished || bytes == 0 || is_too_much {
            return None;
        }
        let segment = Segment { payload: bytes, ..self.ack() };
        self.next = segment.end();
        Some(segment)
    }

    pub fn close(&mut self) -> Option<Segment> {
        if self.phase != Phase::Open || self.has_finished {
            return None;
        }
        let segment = Segment { flags: Flags(Flags::FIN | Flags::ACK), ..self.ack() };
        self.next = segment.end();
        self.has_finished = true;
        self.finished_first = !self.peer_has_finished;
        Some(segment)
    }

    pub fn abort(&mut self) -> Option<Segment> {
        if !matches!(self.phase, Phase::Open | Phase::SynReceived) {
            return None;
        }
        self.forget();
        Some(Segment { flags: Flags(Flags::RST | Flags::ACK), ..self.ack() })
    }

    /// A keepalive probe, or one of a window that is closed.
    pub fn probe(&self) -> Option<Segment> {
        let sequence = self.next.wrapping_sub(1);
        (self.phase == Phase::Open).then(|| Segment { sequence, ..self.ack() })
    }

    /// What is not acknowledged, again.
    pub fn retransmit(&mut self) -> Vec<Segment> {
        self.challenges = CHALLENGES;
        match self.phase {
            Phase::Closed | Phase::Listen | Phase::TimeWait => Vec::new(),
            Phase::SynSent => {
                let payload = self.next.wrapping_sub(self.initial) - 1;
                let payload = u16::try_from(payload).unwrap();
                let flags = Flags(Flags::SYN);
                vec![Segment { flags, sequence: self.initial, acknowledgement: 0, payload }]
            }
            Phase::SynReceived => vec![self.syn_ack()],
            Phase::Open => self.unacknowledged_again(),
        }
    }

    fn unacknowledged_again(&self) -> Vec<Segment> {
        let mut segments = Vec::new();
        let mut sequence = self.unacknowledged;
        while sequence != self.next {
            let left = self.next.wrapping_sub(sequence);
            let bytes = left - u32::from(self.has_finished);
            let payload = u16::try_from(bytes).unwrap_or(LARGEST).min(LARGEST);
            let is_last = self.has_finished && u32::from(payload) == bytes;
            let flags = Flags(Flags::ACK | if is_last { Flags::FIN } else { 0 });
            let segment = Segment { flags, sequence, payload, ..self.ack() };
            sequence = segment.end();
            segments.push(segment);
        }
        segments
    }

    const fn ack(&self) -> Segment {
        let (sequence, acknowledgement) = (self.next, self.expected);
        Segment { flags: Flags(Flags::ACK), sequence, acknowledgement, payload: 0 }
    }

    const fn syn_ack(&self) -> Segment {
        Segment { flags: Flags(Flags::SYN | Flags::ACK), sequence: self.initial, ..self.ack() }
    }

    /// What it answers.
    pub fn receive(&mut self, segment: &Segment) -> Vec<Segment> {
        match self.phase {
            Phase::Closed => reset(segment).into_iter().collect(),
            Phase::Listen if segment.flags.opens() => self.accept(segment),
            Phase::Listen if segment.flags.ack() => reset(segment).into_iter().collect(),
            Phase::Listen => Vec::new(),
            Phase::SynSent => self.receive_answer(segment),
            Phase::SynReceived | Phase::Open | Phase::TimeWait => {
                self.receive_in_connection(segment)
            }
        }
    }

    fn accept(&mut self, syn: &Segment) -> Vec<Segment> {
        if !self.begin(Phase::SynReceived) {
            return Vec::new();
        }
        self.peers_initial = syn.sequence;
        // It takes what a SYN carries (Fast Open), if it is not lazy.
        let only_syn = syn.sequence.wrapping_add(1);
        self.expected = if self.is_lazy { only_syn } else { syn.end() };
        vec![self.syn_ack()]
    }

    fn receive_answer(&mut self, segment: &Segment) -> Vec<Segment> {
        let flags = segment.flags;
        let is_acceptable = flags.ack() && self.acknowledges_new(segment.acknowledgement);
        if flags.rst() {
            if is_acceptable {
                self.forget();
            }
            return Vec::new();
        }
        if flags.ack() && !is_acceptable {
            return reset(segment).into_iter().collect();
        }
        if !flags.accepts() {
            return Vec::new();
        }
        self.phase = Phase::Open;
        self.peers_initial = segment.sequence;
        self.expected = segment.end();
        self.unacknowledged = segment.acknowledgement;
        vec![self.ack()]
    }

    /// Whether a number acknowledges what was not acknowledged before, and has been sent.
    const fn acknowledges_new(&self, number: u32) -> bool {
        let new = number.wrapping_sub(self.unacknowledged);
        new != 0 && new <= self.next.wrapping_sub(self.unacknowledged)
    }

    const fn is_in_window(&self, number: u32) -> bool {
        number.wrapping_sub(self.expected) < WINDOW
    }

    fn receive_in_connection(&mut self, segment: &Segment) -> Vec<Segment> {
        let flags = segment.flags;
        if flags.rst() {
            return self.receive_reset(segment.sequence);
        }
        if flags.syn() {
            return self.receive_syn(segment);
        }
        let is_wrong = flags.ack() && !self.acknowledges_new(segment.acknowledgement);
        if self.has_cookies && self.phase == Phase::SynReceived && is_wrong {
            return reset(segment).into_iter().collect();
        }
        let length = segment.end().wrapping_sub(segment.sequence);
        let last = segment.end().wrapping_sub(1);
        if !self.is_in_window(segment.sequence) && (length == 0 || !self.is_in_window(last)) {
            return self.challenge();
        }
        if !flags.ack() {
            return Vec::new();
        }
        if self.acknowledges_new(segment.acknowledgement) {
            self.unacknowledged = segment.acknowledgement;
            if self.phase == Phase::SynReceived {
                self.phase = Phase::Open;
            }
        } else if self.phase == Phase::SynReceived {
            return reset(segment).into_iter().collect();
        } else if segment.acknowledgement.wrapping_sub(self.unacknowledged).cast_signed() > 0 {
            return self.challenge();
        }
        let answer = self.receive_bytes(segment);
        self.end_if_both_have_finished();
        answer
    }

    fn receive_reset(&mut self, sequence: u32) -> Vec<Segment> {
        if sequence == self.expected {
            self.forget();
            Vec::new()
        } else if self.is_in_window(sequence) {
            self.challenge()
        } else {
            Vec::new()
        }
    }

    fn receive_syn(&mut self, segment: &Segment) -> Vec<Segment> {
        let is_newer = segment.sequence.wrapping_sub(self.expected).cast_signed() > 0;
        if self.phase == Phase::TimeWait && self.serves && segment.flags.opens() && is_newer {
            return self.accept(segment);
        }
        if self.phase == Phase::SynReceived && segment.sequence == self.peers_initial {
            return vec![self.syn_ack()];
        }
        self.challenge()
    }

    fn challenge(&mut self) -> Vec<Segment> {
        if self.challenges == 0 {
            return Vec::new();
        }
        self.challenges -= 1;
        vec![self.ack()]
    }

    fn receive_bytes(&mut self, segment: &Segment) -> Vec<Segment> {
        let length = segment.end().wrapping_sub(segment.sequence);
        if length == 0 {
            return Vec::new();
        }
        let new = segment.end().wrapping_sub(self.expected);
        // What is out of order is sent again.
        if new == 0 || new > length || self.peer_has_finished {
            return self.challenge();
        }
        self.expected = segment.end();
        self.peer_has_finished = segment.flags.fin();
        let waits = self.is_lazy && !self.owes_ack && new < 2_000 && !self.peer_has_finished;
        self.owes_ack = waits;
        if waits { Vec::new() } else { vec![self.ack()] }
    }

    fn end_if_both_have_finished(&mut self) {
        let is_acknowledged = self.has_finished && self.unacknowledged == self.next;
        if self.phase == Phase::Open && is_acknowledged && self.peer_has_finished {
            if self.finished_first {
                self.phase = Phase::TimeWait;
            } else {
                self.forget();
            }
        }
    }
}

/// The answer of an end that knows nothing of the connection (RFC 9293, section 3.10.7.1).
fn reset(segment: &Segment) -> Option<Segment> {
    let (flags, sequence, acknowledgement) = match (segment.flags.rst(), segment.flags.ack()) {
        (true, _) => return None,
        (false, true) => (Flags::RST, segment.acknowledgement, 0),
        (false, false) => (Flags::RST | Flags::ACK, 0, segment.end()),
    };
    Some(Segment { flags: Flags(flags), sequence, acknowledgement, payload: 0 })
}
