//! Connections under attack, by chance. `cargo xtask fuzz conntrack` looks for the same, for longer.

use proptest::prelude::*;
use samport_invariants::conntrack::check;

/// What makes an input one with a client, a backend and an attacker.
const PARTIES: u8 = 4;
/// The client's SYN, and all that it leads to.
const HANDSHAKE: [[u8; 6]; 2] = [[0, 1, 0, 0, 0, 0], [11, 0, 0, 0, 0, 0]];

fn config() -> ProptestConfig {
    ProptestConfig { cases: 3_000, failure_persistence: None, ..ProptestConfig::default() }
}

fn events(most: usize) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<[u8; 6]>(), 0..most).prop_map(|events| events.concat())
}

proptest! {
    #![proptest_config(config())]

    /// Neither ends it nor outlives it: see `parties`.
    #[test]
    fn an_attacker_who_does_not_know_the_numbers_changes_nothing(
        kind in any::<u8>(),
        numbers in any::<[u8; 4]>(),
        before in events(3),
        after in events(36),
    ) {
        // Without it few connections would ever be open.
        let handshake = HANDSHAKE.concat();
        check(&[&[kind | PARTIES], &numbers[..], &before, &handshake, &after].concat());
    }

    #[test]
    fn no_packets_lead_to_a_state_that_says_what_has_not_happened(
        kind in 0..PARTIES,
        packets in prop::collection::vec(any::<u8>(), 0..400),
    ) {
        check(&[&[kind], &packets[..]].concat());
    }
}
