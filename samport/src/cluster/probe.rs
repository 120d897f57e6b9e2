//! Whether a node answers, by packets that its kernel programs return: control packets of GUE, in the tunnel's port.
//! Pure.
//!
//! A small one goes out each second. While they are answered, every other second a large one goes with it, which
//! tells what the path carries. Answers are small.

use std::collections::VecDeque;

use samport_common::encap::{ANSWER, ANSWER_LEN, CONTROL, DRAINING, OUTER_V4, OUTER_V6, QUESTION};

use super::path_mtu::PathMtu;

/// Bytes in a small probe: as many as in any answer.
pub(super) const SMALL: usize = ANSWER_LEN;
/// A node is down that has left this many small probes in a row unanswered.
const MISSES: u32 = 3;

/// One that was sent. The nonce keeps answers from being guessed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Sent {
    sequence: u32,
    nonce: u64,
}

impl Sent {
    fn bytes(self, kind: u8) -> [u8; SMALL] {
        let mut bytes = [0; SMALL];
        bytes[..2].copy_from_slice(&[CONTROL, kind]);
        bytes[4..8].copy_from_slice(&self.sequence.to_be_bytes());
        bytes[8..].copy_from_slice(&self.nonce.to_be_bytes());
        bytes
    }
}

/// Whether a node answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Answers {
    /// Not yet.
    NotYet,
    /// It did, and has not failed to since.
    Yes,
    /// Not any more, or it never did.
    No,
}

/// What is to be sent at a tick.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Probes {
    /// The small one.
    pub(super) small: [u8; SMALL],
    /// The large one, if it is its turn.
    pub(super) large: Option<Vec<u8>>,
}

/// What is known of a node by its answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Probing {
    /// Bytes of IP and UDP headers before a probe.
    headers: usize,
    answers: Answers,
    drains: bool,
    missed: u32,
    ticks: u32,
    /// The last small ones without an answer, the latest last: an answer may take longer than a second.
    small: VecDeque<Sent>,
    large: Option<Sent>,
    path_mtu: PathMtu,
}

impl Probing {
    /// Of a node that was just named.
    pub(super) const fn of(is_ipv6: bool) -> Self {
        Self {
            headers: if is_ipv6 { OUTER_V6 } else { OUTER_V4 },
            answers: Answers::NotYet,
            drains: false,
            missed: 0,
            ticks: 0,
            small: VecDeque::new(),
            large: None,
            path_mtu: PathMtu::of(is_ipv6),
        }
    }

    /// Whether it answers.
    pub(super) const fn answers(&self) -> Answers {
        self.answers
    }

    /// Whether its last answer said that it is drained.
    pub(super) const fn drains(&self) -> bool {
        self.drains
    }

    /// The size of an IP packet that arrives there whole, if that is known.
    pub(super) const fn path_mtu(&self) -> Option<u16> {
        self.path_mtu.current()
    }

    /// A second has passed. `kernel_mtu` is what the kernel thinks the path carries, if it has an opinion.
    pub(super) fn tick(
        &mut self,
        kernel_mtu: Option<u16>,
        mut nonce: impl FnMut() -> u64,
    ) -> Probes {
        let is_missing = |sent: &Sent| sent.sequence == self.ticks;
        if self.small.back().is_some_and(is_missing) {
            self.missed += 1;
            if self.missed >= MISSES {
                self.answers = Answers::No;
                self.large = None;
            }
        }
        self.ticks = self.ticks.wrapping_add(1);
        let mut next = || Sent { sequence: self.ticks, nonce: nonce() };
        let small = next();
        if self.small.len() >= MISSES as usize {
            self.small.pop_front();
        }
        self.small.push_back(small);
        let mut large = None;
        if let Some(mtu) =
            kernel_mtu.filter(|_| self.answers != Answers::No && self.ticks.is_multiple_of(2))
        {
            // While small ones get lost, too, its size is not why.
            if self.large.take().is_some() && self.missed == 0 {
                self.path_mtu.unanswered();
            }
            let sent = next();
            let length = usize::from(self.path_mtu.next(mtu)) - self.headers;
            let mut bytes = sent.bytes(QUESTION).to_vec();
            bytes.resize(length, 0);
            self.large = Some(sent);
            large = Some(bytes);
        }
        Probes { small: small.bytes(QUESTION), large }
    }

    /// Something has come from the node. Says whether it is the answer to a probe.
    pub(super) fn take(&mut self, bytes: &[u8]) -> bool {
        let kind = bytes.get(1).copied().filter(|kind| [ANSWER, DRAINING].contains(kind));
        let is_of = |sent: &Sent| kind.is_some_and(|kind| sent.bytes(kind) == *bytes);
        if self.large.as_ref().is_some_and(is_of) {
            self.large = None;
            self.path_mtu.answered();
        } else if let Some(at) = self.small.iter().position(is_of) {
            self.small.drain(..=at);
        } else {
            return false;
        }
        self.drains = kind == Some(DRAINING);
        self.missed = 0;
        self.answers = Answers::Yes;
        true
    }

    /// The kernel has not sent the large one, because it thinks the path carries no more than this.
    pub(super) fn refused(&mut self, kernel_mtu: u16) {
        if self.large.take().is_some() {
            self.path_mtu.refused(kernel_mtu);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_MTU: Option<u16> = None;

    /// A node that can be cut off, and a path to it that carries packets of a size.
    struct Path {
        probing: Probing,
        nonce: u64,
        carries: usize,
        /// Sizes of the large ones that were sent, as IP packets.
        large: Vec<usize>,
    }

    impl Path {
        fn new(is_ipv6: bool, carries: usize) -> Self {
            Self { probing: Probing::of(is_ipv6), nonce: 0, carries, large: Vec::new() }
        }

        fn tick(&mut self, kernel_mtu: Option<u16>) -> Probes {
            let nonce = &mut self.nonce;
            self.probing.tick(kernel_mtu, || {
                *nonce += 0x0101_0101_0101_0101;
                *nonce
            })
        }

        /// Ticks that often. All that the path carries is answered, if the node is there.
        fn run(&mut self, ticks: usize, kernel_mtu: Option<u16>, is_there: bool) {
            for _ in 0..ticks {
                let Probes { small, large } = self.tick(kernel_mtu);
                let large = large.unwrap_or_default();
                let size = large.len() + self.probing.headers;
                if !large.is_empty() {
                    self.large.push(size);
                }
                if is_there {
                    assert!(self.probing.take(&answer(&small)));
                    if !large.is_empty() && size <= self.carries {
                        assert!(self.probing.take(&answer(&large)));
                    }
                }
            }
        }
    }

    fn answer(question: &[u8]) -> Vec<u8> {
        let mut answer = question[..SMALL].to_vec();
        answer[1] = ANSWER;
        answer
    }

    #[test]
    fn a_probe_is_a_control_packet_of_gue() {
        let mut path = Path::new(false, 1_500);
        let first = path.tick(NO_MTU);
        let bytes = [0x20, 1, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1];
        assert_eq!(first, Probes { small: bytes, large: None });
        let second = path.tick(Some(1_500));
        assert_eq!(second.small[..8], [0x20, 1, 0, 0, 0, 0, 0, 2]);
        let large = second.large.unwrap();
        assert_eq!(large.len(), 1_500 - 28);
        assert_eq!(large[..8], second.small[..8]);
        assert_ne!(large[8..16], second.small[8..], "each has a nonce");
        assert!(large[SMALL..].iter().all(|byte| *byte == 0));
        // Over IPv6 there is less room.
        let mut path = Path::new(true, 1_500);
        path.tick(Some(1_500));
        assert_eq!(path.tick(Some(1_500)).large.unwrap().len(), 1_500 - 48);
    }

    #[test]
    fn three_without_an_answer_are_down_and_one_answer_is_up() {
        let mut path = Path::new(false, 1_500);
        path.run(5, Some(1_500), true);
        path.run(3, Some(1_500), false);
        assert_ne!(path.probing.answers(), Answers::No, "the third may be answered yet");
        let fourth = path.tick(Some(1_500));
        assert_eq!(path.probing.answers(), Answers::No);
        assert!(path.probing.take(&answer(&fourth.small)));
        assert_ne!(path.probing.answers(), Answers::No);
        path.run(3, Some(1_500), false);
        assert_eq!(path.probing.answers(), Answers::Yes, "they are counted from the last answer");
    }

    #[test]
    fn the_last_answer_says_whether_a_node_is_drained() {
        let mut path = Path::new(false, 1_500);
        for drains in [false, true, true, false] {
            let mut bytes = answer(&path.tick(NO_MTU).small);
            bytes[1] = if drains { DRAINING } else { ANSWER };
            assert!(path.probing.take(&bytes));
            assert_eq!((path.probing.answers(), path.probing.drains()), (Answers::Yes, drains));
        }
    }

    #[test]
    fn two_of_three_lost_are_no_reason() {
        let mut path = Path::new(false, 1_500);
        for _ in 0..20 {
            path.run(2, Some(1_500), false);
            path.run(1, Some(1_500), true);
        }
        assert_ne!(path.probing.answers(), Answers::No);
    }

    #[test]
    fn an_answer_that_takes_two_seconds_counts() {
        let mut path = Path::new(false, 1_500);
        let mut on_their_way = VecDeque::new();
        for _ in 0..20 {
            on_their_way.push_back(path.tick(NO_MTU).small);
            if on_their_way.len() > 2 {
                assert!(path.probing.take(&answer(&on_their_way.pop_front().unwrap())));
            }
            assert_ne!(path.probing.answers(), Answers::No);
        }
    }

    #[test]
    fn nothing_but_the_answer_to_a_probe_counts() {
        let mut path = Path::new(false, 1_500);
        let small = path.tick(NO_MTU).small;
        path.run(4, NO_MTU, false);
        assert_eq!(path.probing.answers(), Answers::No);
        let last = path.tick(NO_MTU).small;
        let right = answer(&last);
        let wrong = |at: usize, by: u8| {
            let mut wrong = right.clone();
            wrong[at] ^= by;
            wrong
        };
        let longer = [right.clone(), vec![0]].concat();
        // A question, another type, sequence number or nonce; too short, too long; one that is too old.
        for bytes in [
            last.to_vec(),
            wrong(0, 0x20),
            wrong(1, 4),
            wrong(2, 1),
            wrong(7, 0x80),
            wrong(15, 1),
            right[..SMALL - 1].to_vec(),
            longer,
            answer(&small),
            Vec::new(),
        ] {
            assert!(!path.probing.take(&bytes), "{bytes:?}");
            assert_eq!(path.probing.answers(), Answers::No);
        }
        assert!(path.probing.take(&right));
        assert!(!path.probing.take(&right), "each answer counts once");
    }

    #[test]
    fn the_size_is_that_of_the_path() {
        let mut path = Path::new(false, 1_400);
        assert_eq!(path.probing.path_mtu(), None);
        path.run(80, Some(1_500), true);
        assert_eq!(path.probing.path_mtu(), Some(1_400));
        assert_eq!(path.large[..2], [1_500, 1_500]);
        assert_eq!(path.large.len(), 40, "one in two seconds");
    }

    /// Not its path, but the node is away.
    #[test]
    fn a_node_that_is_down_has_the_path_it_had() {
        let mut path = Path::new(false, 1_500);
        path.run(10, Some(1_500), true);
        path.run(30, Some(1_500), false);
        assert_eq!(path.probing.answers(), Answers::No);
        assert_eq!(path.probing.path_mtu(), Some(1_500));
        let sent = path.large.len();
        path.run(1, Some(1_500), false);
        assert_eq!(path.large.len(), sent, "none while it is down");
        path.run(5, Some(1_500), true);
        assert_eq!(path.probing.path_mtu(), Some(1_500));
    }

    /// What else is lost at the time says that the size is not why.
    #[test]
    fn large_ones_that_are_lost_with_small_ones_say_nothing_of_the_path() {
        let mut path = Path::new(false, 1_500);
        path.run(10, Some(1_500), true);
        path.carries = SMALL + 28;
        for _ in 0..10 {
            path.run(1, Some(1_500), false);
            path.run(1, Some(1_500), true);
        }
        assert_eq!(path.probing.path_mtu(), Some(1_500));
        path.run(6, Some(1_500), true);
        assert!(path.probing.path_mtu() < Some(1_500));
    }

    #[test]
    fn the_large_one_that_was_on_its_way_when_a_node_went_down_says_nothing_of_the_path() {
        let mut path = Path::new(false, 1_500);
        path.run(11, Some(1_500), true);
        path.run(4, Some(1_500), false);
        assert_eq!(path.probing.answers(), Answers::No);
        path.carries = SMALL + 28;
        // One is lost, and another one is on its way: that is not often enough.
        path.run(6, Some(1_500), true);
        assert_eq!(path.probing.path_mtu(), Some(1_500));
        path.run(1, Some(1_500), true);
        assert!(path.probing.path_mtu() < Some(1_500));
    }

    #[test]
    fn what_the_kernel_does_not_send_is_too_large() {
        let mut path = Path::new(false, 9_000);
        path.run(10, Some(9_000), true);
        assert_eq!(path.probing.path_mtu(), Some(9_000));
        while path.tick(Some(1_500)).large.is_none() {}
        path.probing.refused(1_500);
        assert_eq!(path.probing.path_mtu(), Some(1_500));
    }
}
