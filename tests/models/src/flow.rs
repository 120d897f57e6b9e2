//! An entry of the tables of flows, as `samport-ebpf/src/flows.rs` and `choice.rs` read and write it.

use loom::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use loom::sync::atomic::{AtomicU32, AtomicU64};
use samport_common::conntrack::{
    self, Advance, Decision, Known, OpenChange, Openers, Segment, Sender, Sequences, State,
};
use samport_common::flow::FlowWord;
use samport_common::wire::protocol::Protocol;

/// A rule that the programs follow, and that a test leaves out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Without {
    /// None is left out.
    Nothing,
    /// Who loses a race steps on from where the winner has led.
    SecondTry,
    /// A word is changed by compare-and-exchange.
    CompareAndExchange,
    /// The sequence numbers are written before the state that they belong to.
    NumbersFirst,
}

/// Open flows as they are counted, by backend: `BACKEND_LOAD`.
#[derive(Default, Debug)]
pub struct Open {
    opened: [AtomicU64; 3],
    ended: [AtomicU64; 3],
}

impl Open {
    fn add(counters: &[AtomicU64; 3], word: FlowWord) {
        counters[word.backend() as usize].fetch_add(1, Relaxed);
    }

    /// Counts a flow that begins.
    pub fn opens(&self, word: FlowWord) {
        if word.state().is_open() {
            Self::add(&self.opened, word);
        }
    }

    /// Counts a flow that is no more.
    fn ends(&self, word: FlowWord) {
        if word.state().is_open() {
            Self::add(&self.ended, word);
        }
    }

    fn moves(&self, from: FlowWord, to: FlowWord) {
        match conntrack::open_change(from.state(), to.state()) {
            OpenChange::Opened => Self::add(&self.opened, to),
            OpenChange::Ended => Self::add(&self.ended, from),
            OpenChange::Neither => {}
        }
    }

    /// Flows of a backend that were opened, and that ended.
    #[must_use]
    pub fn of(&self, backend: u32) -> (u64, u64) {
        let of = |counters: &[AtomicU64; 3]| counters[backend as usize].load(Relaxed);
        (of(&self.opened), of(&self.ended))
    }
}

/// An entry. Loads and stores are seen in their order, as on x86: what a load sees as stored, all that was stored before it is
/// seen after it.
#[derive(Debug)]
pub struct Entry {
    word: AtomicU64,
    acknowledged: AtomicU32,
    awaited: AtomicU32,
    without: Without,
}

impl Entry {
    /// An entry with these, whose programs leave out a rule.
    #[must_use]
    pub fn new(word: FlowWord, sequences: Sequences, without: Without) -> Self {
        let word = AtomicU64::new(word.to_bits());
        let Sequences { acknowledged, awaited } = sequences;
        let (acknowledged, awaited) = (AtomicU32::new(acknowledged), AtomicU32::new(awaited));
        Self { word, acknowledged, awaited, without }
    }

    /// `flows::Entry::word`.
    #[must_use]
    pub fn word(&self) -> FlowWord {
        FlowWord::from_bits(self.word.load(Acquire))
    }

    /// `flows::Entry::sequences`.
    #[must_use]
    pub fn sequences(&self) -> Sequences {
        let (acknowledged, awaited) = (self.acknowledged.load(Acquire), self.awaited.load(Acquire));
        Sequences { acknowledged, awaited }
    }

    fn remember(&self, known: Sequences, now: Sequences) {
        if known.acknowledged != now.acknowledged {
            self.acknowledged.store(now.acknowledged, Release);
        }
        if known.awaited != now.awaited {
            self.awaited.store(now.awaited, Release);
        }
    }

    /// `flows::Entry::exchange`.
    fn exchange(&self, from: FlowWord, to: FlowWord) -> Result<(), FlowWord> {
        if self.without == Without::CompareAndExchange {
            let found = self.word();
            if found == from {
                self.word.store(to.to_bits(), Release);
                return Ok(());
            }
            return Err(found);
        }
        let done = self.word.compare_exchange(from.to_bits(), to.to_bits(), AcqRel, Acquire);
        done.map(drop).map_err(FlowWord::from_bits)
    }

    /// `samport_advance`: the word it leads to, or the word of a faster packet.
    fn try_advance(
        &self,
        word: FlowWord,
        (segment, sender): &(Segment, Sender),
        open: &Open,
    ) -> Result<FlowWord, FlowWord> {
        let known = self.sequences();
        let Advance { word: to, sequences } = Advance::of(word, segment, *sender, known);
        let is_first = self.without != Without::NumbersFirst;
        if is_first {
            self.remember(known, sequences);
        }
        if word == to {
            return Ok(word);
        }
        let exchanged = self.exchange(word, to);
        if !is_first {
            self.remember(known, sequences);
        }
        match exchanged {
            Ok(()) => {
                open.moves(word, to);
                Ok(to)
            }
            Err(found) => conntrack::after_race(word, found).map_or(Ok(word), Err),
        }
    }

    /// `flows::Entry::advance` of a word that was read.
    pub fn advance(&self, word: FlowWord, packet: &(Segment, Sender), open: &Open) {
        let first = self.try_advance(word, packet, open);
        if let Err(found) = first
            && self.without != Without::SecondTry
        {
            let _ = self.try_advance(found, packet, open);
        }
    }

    /// A packet of the flow: reads it and moves it on.
    pub fn pass(&self, packet: &(Segment, Sender), open: &Open) {
        self.advance(self.word(), packet, open);
    }

    /// A SYN, which begins a flow to `chosen` if the one here is over: `forward::follow` and `choice::reopen`. The word
    /// whose backend the packet is sent to.
    #[must_use]
    pub fn open(&self, syn: Segment, chosen: FlowWord, open: &Open) -> FlowWord {
        let word = self.word();
        let state = word.state();
        let known = Known { state, over: state.is_over(0, 1), backend_serves: true };
        match conntrack::decide(Some(known), Protocol::Tcp, syn.flags, Openers::First) {
            Decision::Choose => match self.exchange(word, chosen) {
                Ok(()) => {
                    let first = conntrack::first(&syn);
                    self.acknowledged.store(first.acknowledged, Release);
                    self.awaited.store(first.awaited, Release);
                    open.ends(word);
                    open.opens(chosen);
                    chosen
                }
                Err(faster) => faster,
            },
            Decision::Stay => {
                self.advance(word, &(syn, Sender::Client), open);
                word
            }
            Decision::Refuse(verdict) => panic!("{verdict:?}"),
        }
    }

    /// The kernel takes the element for another flow: it copies the new value into it.
    pub fn use_for(&self, word: FlowWord, sequences: Sequences) {
        // A plain copy in the kernel. A store alone is one that loom may put before an exchange that has come first.
        self.word.swap(word.to_bits(), AcqRel);
        self.acknowledged.store(sequences.acknowledged, Release);
        self.awaited.store(sequences.awaited, Release);
    }

    /// Where it stands.
    #[must_use]
    pub fn state(&self) -> State {
        self.word().state()
    }
}
