use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::sample::{Index, subsequence};

use super::*;

const SEED: Seed = Seed::from_bytes(*b"0123456789abcdef");

/// A backend by a number that makes its address and, so that ids say nothing, another one.
fn member(number: u32, weight: u32) -> Member {
    let [_, a, b, c] = number.to_be_bytes();
    Member { id: 20_000 - number, endpoint: ([10, a, b, c], 8_080).into(), weight }
}

fn members(numbers: impl IntoIterator<Item = u32>) -> Vec<Member> {
    numbers.into_iter().map(|number| member(number, 1)).collect()
}

fn counts(slots: &[u32]) -> BTreeMap<u32, u32> {
    let mut counts = BTreeMap::new();
    for id in slots {
        *counts.entry(*id).or_default() += 1;
    }
    counts
}

/// Whether removing one of the members moves no more than its share and 2 %.
fn assert_moves_little(members: &[Member], removed: usize, length: u32, seed: Seed) {
    let before = slots(members, length, seed);
    let mut others = members.to_vec();
    others.remove(removed);
    let after = slots(&others, length, seed);
    assert_eq!(before.len(), after.len());
    let moved = before.iter().zip(&after).filter(|(before, after)| before != after).count();
    // Both sides times 100 N, to stay with whole numbers.
    let (moved, most) = (moved * 100 * members.len(), before.len() * (100 + 2 * members.len()));
    assert!(moved <= most, "removing {removed} of {}: {moved} > {most}", members.len());
}

#[test]
fn lengths_are_primes() {
    for length in LENGTHS {
        let divisor = (2..length).take_while(|n| n * n <= length).find(|n| length % n == 0);
        assert_eq!(divisor, None, "{length}");
    }
}

#[test]
fn every_way_leads_through_every_slot_once() {
    for length in LENGTHS {
        let powers = powers(length);
        for number in 0..3 {
            let mut walk = Walk::of(member(number, 1).endpoint, &powers, SEED);
            let slots: std::collections::BTreeSet<_> = (0..length).map(|_| walk.step()).collect();
            assert_eq!(slots.len(), powers.len(), "{length}");
        }
    }
}

/// Found by chance: with ways of one stride each, more than its share and 2 % moved.
#[test]
fn no_two_ways_are_so_alike_that_one_takes_the_slots_of_the_other() {
    assert_moves_little(&members([175, 1_023, 3_537]), 0, USUAL, SEED);
}

#[test]
fn lengths_follow_the_number_of_backends_and_the_room() {
    for (backends, room, expected) in [
        (0, u32::MAX, USUAL),
        (655, u32::MAX, USUAL),
        (656, u32::MAX, LONGEST),
        (16_384, u32::MAX, LONGEST),
        (656, LONGEST - 1, USUAL),
        (2, USUAL, USUAL),
        (2, USUAL - 1, 16_381),
        (2, 1, 251),
    ] {
        assert_eq!(length(backends, room), expected, "{backends} backends, room for {room}");
    }
}

#[test]
fn without_backends_there_is_no_table() {
    assert_eq!(slots(&[], USUAL, SEED), Vec::<u32>::new());
    assert_eq!(slots(&[member(1, 0)], USUAL, SEED), Vec::<u32>::new());
}

/// What the table of a seed is must not change from one version to the next: clients would move. This one was
/// looked at: three backends, each with its third of the slots.
#[test]
fn the_same_backends_make_the_same_table_in_every_version() {
    let endpoints = ["172.17.0.2:80", "172.17.0.3:80", "[2001:db8::1]:80"];
    let members: Vec<_> = (1..)
        .zip(endpoints)
        .map(|(id, endpoint)| Member { id, endpoint: endpoint.parse().unwrap(), weight: 1 })
        .collect();
    let slots = slots(&members, 251, SEED);
    assert_eq!(counts(&slots), [(1, 84), (2, 84), (3, 83)].into());
    assert_eq!(slots[..16], [1, 3, 1, 2, 3, 3, 2, 3, 1, 3, 2, 2, 1, 3, 3, 1]);
}

/// The table cannot be made without the seed: of two seeds the tables agree by chance only.
#[test]
fn another_seed_makes_another_table() {
    let members = members(0..16);
    let [one, other] = [SEED, Seed::default()].map(|seed| slots(&members, USUAL, seed));
    let alike = one.iter().zip(&other).filter(|(one, other)| one == other).count();
    // A 16th, within 8 standard deviations.
    assert!((4_096 - 496..=4_096 + 496).contains(&alike), "{alike}");
}

/// Case 48, at the numbers for which a table is longest and shortest beside its backends.
#[test]
fn removing_one_of_very_many_moves_little_more_than_its_share() {
    for (backends, length) in [(655, USUAL), (656, LONGEST), (1_310, LONGEST), (10_000, LONGEST)] {
        let members = members(0..backends);
        for removed in [0, members.len() / 2, members.len() - 1] {
            assert_moves_little(&members, removed, length, SEED);
        }
    }
}

/// A client's way does not depend on which kernel id its backend has.
#[test]
fn ids_do_not_matter() {
    let first = members(0..20);
    let renumbered: Vec<_> =
        first.iter().map(|one| Member { id: one.id ^ 1_024, ..*one }).collect();
    let renamed: Vec<_> = slots(&first, USUAL, SEED).into_iter().map(|id| id ^ 1_024).collect();
    assert_eq!(slots(&renumbered, USUAL, SEED), renamed);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Case 47: Maglev spreads within 1 %: no backend of equal weights has more than 1.01 times as many
    /// slots as another.
    #[test]
    fn equal_backends_have_equal_shares_to_one_percent(
        numbers in subsequence((0..4_000).collect::<Vec<u32>>(), 1..164), seed: [u8; 16],
    ) {
        let backends = numbers.len();
        let counts = counts(&slots(&members(numbers), length(backends, u32::MAX), Seed::from_bytes(seed)));
        prop_assert_eq!(counts.len(), backends);
        let (least, most) = (counts.values().min().unwrap(), counts.values().max().unwrap());
        prop_assert!(f64::from(*most) <= 1.01 * f64::from(*least), "{} to {}", least, most);
    }

    /// Case 47, with weights: each share is as its weight to within a slot.
    #[test]
    fn shares_are_within_a_slot_of_the_weights(weights in prop::collection::vec(0u32..1_000, 1..100), seed: [u8; 16]) {
        let members: Vec<_> = (0..).zip(&weights).map(|(number, weight)| member(number, *weight)).collect();
        let slots = slots(&members, USUAL, Seed::from_bytes(seed));
        let total: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
        prop_assert_eq!(slots.is_empty(), total == 0);
        let counts = counts(&slots);
        for one in members {
            let got = u64::from(counts.get(&one.id).copied().unwrap_or(0)) * total;
            let exact = u64::from(one.weight) * slots.len() as u64;
            prop_assert!(got.abs_diff(exact) <= total, "{} for {} of {}", got, exact, total);
        }
    }

    /// Case 48: Removing one of N moves at most 1/N of the slots and 2 %.
    #[test]
    fn removing_one_moves_little_more_than_its_share(
        numbers in subsequence((0..4_000).collect::<Vec<u32>>(), 2..164), removed: Index, seed: [u8; 16],
    ) {
        let removed = removed.index(numbers.len());
        assert_moves_little(&members(numbers), removed, USUAL, Seed::from_bytes(seed));
    }

    /// Case 49: The order of backends does not matter, with whatever weights.
    #[test]
    fn the_order_of_backends_does_not_matter(
        weights in prop::collection::vec(0u32..10, 1..40), order in Just((0..40).collect::<Vec<usize>>()).prop_shuffle(),
    ) {
        let members: Vec<_> = (0..).zip(&weights).map(|(number, weight)| member(number, *weight)).collect();
        let shuffled: Vec<_> = order.into_iter().filter_map(|at| members.get(at).copied()).collect();
        prop_assert_eq!(slots(&shuffled, USUAL, SEED), slots(&members, USUAL, SEED));
    }
}
