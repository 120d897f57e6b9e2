//! When a backend is given up for another before its client notices. Pure.
//!
//! Time is in units of 1.024 µs (the kernel's nanoseconds shifted by 10) and in
//! [ticks](crate::conntrack::TICK_SHIFT).

use crate::conntrack::{Segment, Sender, Sequences, State, Timeouts, step};
use crate::frame::Frame;
use crate::layout::{Evidence, HANDSHAKE_CLASSES};
use crate::wire::tcp::Flags;

/// The kernel's nanoseconds are shifted by this to make the units of [`Flow::opened`](crate::flow::Flow).
pub const MICRO_SHIFT: u32 = 10;

/// A SYN that has had no answer for 0.9 s has had none: Linux sends it again after 1 s (RFC 6298,
/// section 2.1), other systems later.
pub const SILENT_AFTER: u32 = 878_906;

/// How long a backend is avoided after it was confirmed to fail. Each further time doubles that.
const FIRST_SUSPICION: u32 = 10;
/// How long at most.
const LONGEST_SUSPICION: u32 = 80;

/// Different clients whose connections must fail, with none that succeeds in between, before the loader is
/// asked to confirm that the backend fails. One may be dropped by the backend's own firewall, and two may be
/// one behind two addresses (a phone that changes networks). More would only make real failures last longer:
/// all of them may be forged, which is why evidence alone changes nothing.
pub const CLIENTS: usize = 3;

/// Evidence that is older says nothing: longer than the longest suspicion, after which one more failure is
/// enough to ask again.
const EVIDENCE_SECONDS: u32 = 120;

/// For how long a client whose connection a backend has failed is not sent there when its connection looks for
/// another backend.
const REMEMBERED_SECONDS: u32 = 10;

/// Ticks between two calls for the loader about one backend: one whole tick of 1.07 s passes in between.
const CALL_TICKS: u32 = 2;

/// Selections for a new flow that avoid suspects; after that anyone who serves will do. Less than the
/// kernel's limit of 33 tail calls.
pub const MAX_RETRIES: u32 = 24;

/// Draws in vain after which flows of the same port make way whose client is not proven: once for each packet. So many
/// that nobody makes way by chance where there is another backend (of two, once in 2²⁰), and so few that some draws are
/// left afterwards.
pub const MAKES_WAY_AFTER: u32 = 20;

/// Whether a backend's segment refuses the connection, and not what somebody else has sent in its client's name: a RST
/// that acknowledges the SYN. Without an ACK no client believes it (RFC 9293, section 3.10.7.3).
#[must_use]
#[inline(always)]
pub const fn refuses(state: State, segment: &Segment, known: Sequences) -> bool {
    matches!(state, State::SynSent)
        && matches!(step(state, segment, Sender::Backend, known).state, State::Reset)
}

/// Whether an ICMP error about a client's packet in this state says that its connection has not been taken. A
/// datagram's always does.
#[must_use]
#[inline(always)]
pub const fn is_about_an_opening(state: State) -> bool {
    matches!(state, State::SynSent | State::Unanswered | State::Answered | State::Assured)
}

/// The backends that have refused a flow's datagrams (ICMP: no such port, or unreachable) since it was answered last,
/// or since its client was told: a set of their ids modulo 64. It stands where a connection has its sequence numbers,
/// which datagrams have none of. Of two backends with one number the second is not tried: the client is told earlier.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Refusals(pub u64);

impl Refusals {
    /// As a flow keeps them.
    #[must_use]
    #[inline(always)]
    pub const fn of(sequences: Sequences) -> Self {
        Self((sequences.acknowledged as u64) << 32 | sequences.awaited as u64)
    }

    /// What a flow keeps.
    #[must_use]
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation, reason = "one half each")]
    pub const fn sequences(self) -> Sequences {
        Sequences { acknowledged: (self.0 >> 32) as u32, awaited: self.0 as u32 }
    }

    /// And this backend.
    #[must_use]
    #[inline(always)]
    pub const fn with(self, backend: u32) -> Self {
        Self(self.0 | Self::bit(backend))
    }

    /// Whether this backend is among them.
    #[must_use]
    #[inline(always)]
    pub const fn contains(self, backend: u32) -> bool {
        self.0 & Self::bit(backend) != 0
    }

    #[inline(always)]
    const fn bit(backend: u32) -> u64 {
        1 << (backend & 63)
    }
}

/// Whether a flow in this state is one of datagrams that a backend has: an ICMP error about one sends it to another.
#[must_use]
#[inline(always)]
pub const fn is_datagrams(state: State) -> bool {
    matches!(state, State::Unanswered | State::Answered | State::Assured)
}

/// Whether a client's SYN says that its backend has kept silent since it was chosen, `age` ago.
#[must_use]
#[inline(always)]
pub const fn is_silent(state: State, flags: Flags, age: u32) -> bool {
    matches!(state, State::SynSent) && flags.opens() && age >= SILENT_AFTER
}

/// Whether a backend should have answered datagrams of a flow in this state by now, `age` after it was chosen: asked
/// for no more than a check, because many a protocol has no answers.
#[must_use]
#[inline(always)]
pub const fn is_silent_to_datagrams(state: State, age: u32) -> bool {
    matches!(state, State::Unanswered) && age >= SILENT_AFTER
}

/// What the loader is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CheckRequest {
    /// Nothing: it has been asked already.
    None,
    /// To run the backend's active health check now, whose rise and fall decide.
    Check,
    /// To confirm at once that the backend fails: several clients say so.
    Confirm,
}

impl Evidence {
    /// Adds a connection of a client with this [fingerprint] that has failed.
    #[must_use]
    #[inline(always)]
    pub const fn add(mut self, client: u32, now_tick: u32) -> (Self, CheckRequest) {
        if now_tick.saturating_sub(self.last_tick) > Timeouts::ticks(EVIDENCE_SECONDS) {
            self.clients = [0; CLIENTS];
        }
        let [a, b, c] = self.clients;
        if client != a && client != b && client != c {
            self.clients = [client, a, b];
        }
        self.last_tick = now_tick;
        let [.., oldest] = self.clients;
        if oldest != 0 && now_tick.saturating_sub(self.confirm_tick) >= CALL_TICKS {
            self.confirm_tick = now_tick;
            self.check_tick = now_tick;
            return (self, CheckRequest::Confirm);
        }
        self.ask(now_tick)
    }

    /// The evidence without this client's: a connection of its own has succeeded.
    #[must_use]
    #[inline(always)]
    pub const fn without(mut self, client: u32) -> Self {
        let [a, b, c] = self.clients;
        self.clients = [
            if a == client { 0 } else { a },
            if b == client { 0 } else { b },
            if c == client { 0 } else { c },
        ];
        self
    }

    /// Asks for a check, unless one was asked for just now.
    #[must_use]
    #[inline(always)]
    pub const fn ask(mut self, now_tick: u32) -> (Self, CheckRequest) {
        if now_tick.saturating_sub(self.check_tick) < CALL_TICKS {
            return (self, CheckRequest::None);
        }
        self.check_tick = now_tick;
        (self, CheckRequest::Check)
    }

    /// Whether the backend has failed a connection of this client lately, and none has succeeded since. Only
    /// a connection that has failed already asks: it looks for another backend.
    #[must_use]
    #[inline(always)]
    pub const fn has_failed(&self, client: u32, now_tick: u32) -> bool {
        let [a, b, c] = self.clients;
        // One comparison for all three, where a loop of the kernel programs asks: the verifier follows each. The product
        // of two is folded, so that it is zero for no other reason than a zero in it.
        let two = (client ^ a) as u64 * (client ^ b) as u64;
        let three = (two >> 32 | two & 0xffff_ffff) * (client ^ c) as u64;
        three == 0 && now_tick.saturating_sub(self.last_tick) <= Timeouts::ticks(REMEMBERED_SECONDS)
    }
}

/// What tells clients apart as evidence: a hash, never 0, of an IPv4 address, or of the first 64 bits of an IPv6
/// address, as one host may use all of the rest. `wide` is the address in 16 bytes, IPv4 mapped.
#[must_use]
#[inline(always)]
#[allow(clippy::cast_possible_truncation, reason = "the upper half is mixed into the lower")]
pub const fn fingerprint(wide: [u8; 16]) -> u32 {
    let whole = u128::from_be_bytes(wide);
    let (network, rest) = ((whole >> 64) as u64, whole as u64);
    let client = if network == 0 { rest } else { network };
    let mixed = (client ^ client >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 32) as u32 | 1
}

/// Options of a SYN, at most, that are looked at: Linux sends six.
const OPTIONS: u32 = 12;
/// Length of a TCP header without options, and where its length stands.
const PLAIN_HEADER: usize = 20;
const DATA_OFFSET: usize = 12;

/// Whether a SYN asks for what only one certain peer can give: a signature (TCP-MD5, RFC 2385; TCP-AO, RFC 5925) or
/// to join a connection (Multipath TCP's `MP_JOIN`, RFC 8684). A healthy backend that has not got the key or the
/// connection refuses it, or drops it. `l4` is the offset of the TCP header.
#[must_use]
#[inline(always)]
pub fn is_for_one_peer<F: Frame + ?Sized>(frame: &F, l4: usize) -> bool {
    const NO_OPERATION: u8 = 1;
    const MD5: u8 = 19;
    const AUTHENTICATION: u8 = 29;
    const MULTIPATH: u8 = 30;
    const JOIN: u8 = 1;
    // Two bytes: of one the compiler makes a comparison that tells the verifier nothing.
    let Some([length, _]) = frame.read(frame.reconsider(l4 + DATA_OFFSET)) else { return false };
    let end = usize::from(length >> 4) * 4;
    let mut at = PLAIN_HEADER;
    for _ in 0..OPTIONS {
        // Shorter ones are none of these.
        if at + 3 > end {
            return false;
        }
        let Some([kind, length, subtype]) = frame.read::<3>(frame.reconsider(l4 + at)) else {
            return false;
        };
        if matches!(kind, MD5 | AUTHENTICATION) || (kind == MULTIPATH && subtype >> 4 == JOIN) {
            return true;
        }
        let step = if kind == NO_OPERATION { 1 } else { length };
        if kind == 0 || step == 0 {
            return false;
        }
        // A header is at most 60 bytes long. Masked, so that the verifier knows.
        at = (at + usize::from(step)) & 0x7f;
    }
    false
}

/// Ticks for which a backend is avoided that was now confirmed to fail so many times in a row.
#[must_use]
#[inline(always)]
pub const fn suspicion(failures: u32) -> u32 {
    const FIRST: u32 = Timeouts::ticks(FIRST_SUSPICION);
    const LONGEST: u32 = Timeouts::ticks(LONGEST_SUSPICION);
    let doubled = match failures {
        0 | 1 => FIRST,
        2 => FIRST * 2,
        3 => FIRST * 4,
        _ => LONGEST,
    };
    if doubled < LONGEST { doubled } else { LONGEST }
}

/// The class of a handshake that took this long: see [`Handshakes`](crate::layout::Handshakes).
#[must_use]
#[inline(always)]
pub const fn class(took: u32) -> usize {
    const LAST: usize = HANDSHAKE_CLASSES - 1;
    const FIRST_BOUND: u32 = 4;
    let bits = u32::BITS - took.leading_zeros();
    let class = bits.saturating_sub(FIRST_BOUND) as usize;
    if class < LAST { class } else { LAST }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_a_set_that_a_flow_keeps() {
        let none = Refusals::default();
        assert_eq!(none.sequences(), Sequences::default());
        let two = none.with(1).with(16_383);
        for (id, is_one) in [(1, true), (16_383, true), (2, false), (62, false), (0, false)] {
            assert_eq!(two.contains(id), is_one, "{id}");
        }
        assert_eq!(Refusals::of(two.sequences()), two);
        // Ids that are told apart by nothing: the client is told earlier, never sent in circles.
        assert!(two.contains(65) && two.contains(63));
    }

    #[test]
    fn an_answer_ends_the_refusals_of_datagrams() {
        let known = Refusals::default().with(7).sequences();
        let answer = Segment::default();
        let next = step(State::Unanswered, &answer, Sender::Backend, known);
        assert_eq!((next.state, Refusals::of(next.sequences)), (State::Answered, Refusals(0)));
    }

    #[test]
    fn only_a_reset_before_any_answer_refuses() {
        // The client's SYN has number 999, and perhaps data (Fast Open).
        let known = Sequences { acknowledged: 0, awaited: 1_000 };
        for state in State::ALL {
            for bits in 0..=u8::MAX {
                let flags = Flags(bits);
                for (acknowledgement, is_of_syn) in
                    [(999, false), (1_000, true), (66_535, true), (66_536, false)]
                {
                    let segment = Segment { flags, acknowledgement, ..Segment::default() };
                    let refused = flags.rst() && flags.ack() && is_of_syn;
                    let expected = state == State::SynSent && refused;
                    assert_eq!(refuses(state, &segment, known), expected, "{state:?} {segment:?}");
                    // A flow of an older layout: its SYN's number is not known.
                    let expected = state == State::SynSent && flags.rst() && flags.ack();
                    assert_eq!(refuses(state, &segment, Sequences::default()), expected);
                }
                let silent = is_silent(state, flags, SILENT_AFTER);
                assert_eq!(silent, state == State::SynSent && flags.opens());
                assert!(!is_silent(state, flags, SILENT_AFTER - 1));
            }
        }
    }

    const NOW: u32 = 1_000;

    /// What each failure of these clients, all in one tick, calls for.
    fn calls(evidence: &mut Evidence, clients: &[u32], now_tick: u32) -> Vec<CheckRequest> {
        let add = |client: &u32| {
            let (after, call) = evidence.add(*client, now_tick);
            *evidence = after;
            call
        };
        clients.iter().map(add).collect()
    }

    #[test]
    fn one_client_asks_for_a_check_and_several_for_a_confirmation() {
        let mut evidence = Evidence::default();
        assert_eq!(
            calls(&mut evidence, &[7, 7, 9, 7], NOW),
            [CheckRequest::Check, CheckRequest::None, CheckRequest::None, CheckRequest::None]
        );
        assert_eq!(
            calls(&mut evidence, &[8, 6, 8], NOW),
            [CheckRequest::Confirm, CheckRequest::None, CheckRequest::None]
        );
        assert_eq!(calls(&mut evidence, &[6], NOW + CALL_TICKS - 1), [CheckRequest::None]);
        assert_eq!(calls(&mut evidence, &[6], NOW + CALL_TICKS), [CheckRequest::Confirm]);
    }

    #[test]
    fn old_evidence_is_forgotten() {
        let last = Timeouts::ticks(EVIDENCE_SECONDS);
        for (later, expected) in [(last, CheckRequest::Confirm), (last + 1, CheckRequest::Check)] {
            let mut evidence = Evidence::default();
            let _ = calls(&mut evidence, &[7, 8], NOW);
            assert_eq!(calls(&mut evidence, &[9], NOW + later), [expected], "{later}");
        }
    }

    #[test]
    fn a_client_is_remembered_for_a_while() {
        let mut evidence = Evidence::default();
        let _ = calls(&mut evidence, &[7, 8, 9, 10], NOW);
        let last = NOW + Timeouts::ticks(REMEMBERED_SECONDS);
        for (client, now_tick, expected) in
            [(7, NOW, false), (8, NOW, true), (10, last, true), (10, last + 1, false)]
        {
            assert_eq!(evidence.has_failed(client, now_tick), expected, "{client} {now_tick}");
        }
        assert!(!Evidence::default().has_failed(7, NOW));
    }

    #[test]
    fn a_clients_success_takes_back_its_own_evidence_only() {
        let mut evidence = Evidence::default();
        let _ = calls(&mut evidence, &[7, 8], NOW);
        let left = evidence.without(7);
        assert!(!left.has_failed(7, NOW) && left.has_failed(8, NOW));
        assert_eq!(evidence.without(9), evidence);
        // Three others are still needed, whatever was taken back.
        let mut left = left;
        assert_eq!(
            calls(&mut left, &[9, 10], NOW + CALL_TICKS),
            [CheckRequest::Check, CheckRequest::Confirm],
            "{left:?}"
        );
    }

    fn of(address: &str) -> u32 {
        let wide = match address.parse().unwrap() {
            std::net::IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            std::net::IpAddr::V6(v6) => v6,
        };
        fingerprint(wide.octets())
    }

    #[test]
    fn a_client_is_an_address_of_ipv4_or_a_network_of_ipv6() {
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
        assert_eq!(of("2001:db8:1::1"), of("2001:db8:1:0:ffff::2"));
        assert_ne!(of("2001:db8:1::1"), of("2001:db8:1:1::1"));
        let all: std::collections::BTreeSet<_> =
            (0..=u16::MAX).map(|n| of(&format!("10.0.{}.{}", n >> 8, n & 255))).collect();
        assert!(all.len() > 65_500 && !all.contains(&0), "{}", all.len());
    }

    proptest::proptest! {
        /// Whatever comes: the loader is asked at most once in each of two ticks for either, and never to
        /// confirm what fewer than three clients have said.
        #[test]
        fn calls_are_few_and_have_a_reason(
            failures in proptest::collection::vec((1u32..6, 0u32..4), 1..200),
        ) {
            let mut evidence = Evidence::default();
            let mut now_tick = NOW;
            let mut clients = std::collections::BTreeSet::new();
            let mut last = [None::<u32>; 2];
            for (client, later) in failures {
                now_tick += later;
                clients.insert(client);
                let (after, call) = evidence.add(client, now_tick);
                evidence = after;
                let kind = match call {
                    CheckRequest::None => continue,
                    CheckRequest::Check => 0,
                    CheckRequest::Confirm => 1,
                };
                proptest::prop_assert!(kind == 0 || clients.len() >= CLIENTS);
                proptest::prop_assert!(last[kind].is_none_or(|at| now_tick - at >= CALL_TICKS));
                last[kind] = Some(now_tick);
            }
        }

        /// No header, however wrong, is read past its end or for ever.
        #[test]
        fn any_options_are_read(header in proptest::collection::vec(proptest::num::u8::ANY, 0..80)) {
            let _ = is_for_one_peer(&header[..], 0);
        }
    }

    fn has_option_for_one_peer(options: &[u8]) -> bool {
        let mut header = vec![0; PLAIN_HEADER];
        header.extend(options);
        header.resize(header.len().next_multiple_of(4), 0);
        header[DATA_OFFSET] = u8::try_from(header.len() / 4).unwrap() << 4;
        // Data in a SYN is none of its options.
        header.extend([19, 18, 0, 30, 12, 0x10]);
        is_for_one_peer(&header[..], 0)
    }

    #[test]
    fn signatures_and_joins_are_found_among_other_options() {
        const USUAL: [u8; 20] = [2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7];
        const JOIN: [u8; 12] = [30, 12, 0x10, 1, 0, 0, 0, 1, 0, 0, 0, 2];
        const CAPABLE: [u8; 4] = [30, 4, 0x01, 0];
        const MD5: [u8; 18] = [19, 18, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1];
        const AUTHENTICATION: [u8; 4] = [29, 4, 1, 1];
        const FAST_OPEN: [u8; 2] = [34, 2];
        for (options, expected) in [
            (&[][..], false),
            (&USUAL, false),
            (&[USUAL, [1; 20]].concat(), false),
            (&[&USUAL[..], &CAPABLE].concat(), false),
            (&[&USUAL[..], &FAST_OPEN].concat(), false),
            (&[&USUAL[..], &JOIN].concat(), true),
            (&[&USUAL[..], &MD5].concat(), true),
            (&[&USUAL[..], &AUTHENTICATION].concat(), true),
            (&MD5, true),
            // The end of the list, and an option that does not end.
            (&[&[0][..], &MD5].concat(), false),
            (&[5, 0, 19, 18], false),
        ] {
            assert_eq!(has_option_for_one_peer(options), expected, "{options:?}");
        }
    }

    #[test]
    fn silence_is_shorter_than_the_first_second() {
        let ns = u64::from(SILENT_AFTER) << MICRO_SHIFT;
        assert!((899_000_000..=900_000_000).contains(&ns), "{ns}");
    }

    #[test]
    fn suspicion_grows_and_has_an_end() {
        let ticks: Vec<u32> = (0..9).map(suspicion).collect();
        assert!(ticks.is_sorted(), "{ticks:?}");
        assert_eq!(ticks[1], Timeouts::ticks(10));
        assert_eq!(ticks[8], Timeouts::ticks(80));
    }

    #[test]
    fn classes_are_powers_of_two() {
        assert_eq!((class(0), class(15), class(16), class(31)), (0, 0, 1, 1));
        for n in 1..HANDSHAKE_CLASSES - 1 {
            let bound = 1 << (4 + n);
            assert_eq!((class(bound - 1), class(bound)), (n, n + 1));
        }
        assert_eq!(class(u32::MAX), HANDSHAKE_CLASSES - 1);
    }
}
