//! Who comes when, if everybody takes turns as often as its weight says.

use std::collections::BTreeMap;

/// One sequence of turns is this long on the clock they are timed by. Fine enough that turns of any two
/// weights are told apart in the longest table.
const WHOLE: u128 = 1 << 40;
/// The longest pause between turns, for weights so small that theirs never comes.
const LONGEST_PAUSE: u64 = 1 << 46;

/// When somebody's turns come.
#[derive(Clone, Copy)]
struct Turns {
    /// Time of the first turn.
    first: u64,
    /// Time from one turn to the next.
    pause: u64,
    /// Turns that are certain; the next one depends on what the others leave.
    certain: u32,
}

impl Turns {
    /// `place` is which one it is of those who share its pause: they come at even distances.
    fn new(weight: u32, total: u64, len: u32, place: SameWeight) -> Self {
        let share = u64::from(weight) * u64::from(len);
        let certain = share.checked_div(total).and_then(|turns| u32::try_from(turns).ok());
        let pause = (u128::from(total) * WHOLE).checked_div(u128::from(share));
        let pause = pause.and_then(|time| u64::try_from(time).ok()).unwrap_or(LONGEST_PAUSE);
        let pause = pause.min(LONGEST_PAUSE);
        let first = pause * (2 * place.number + 1) / (2 * place.of);
        Self { first, pause, certain: certain.unwrap_or(0) }
    }

    fn time_of(self, turn: u32) -> u64 {
        self.first + self.pause * u64::from(turn)
    }
}

/// One among those of the same weight.
#[derive(Clone, Copy, Default)]
struct SameWeight {
    number: u64,
    of: u64,
}

fn places(weights: &[u32]) -> impl Iterator<Item = SameWeight> {
    let mut seen: BTreeMap<u32, SameWeight> = BTreeMap::new();
    for weight in weights {
        seen.entry(*weight).or_default().of += 1;
    }
    weights.iter().map(move |weight| {
        let next = seen.entry(*weight).or_default();
        let place = *next;
        next.number += 1;
        place
    })
}

/// A sequence of `len` turns, as indices into the weights. Everybody has as many as its share of them,
/// rounded up or down, and has them spread over the whole sequence. Empty if no weight is above 0.
#[must_use]
pub fn turns(weights: &[u32], len: u32) -> Vec<u32> {
    let total: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
    if total == 0 {
        return Vec::new();
    }
    let paces = weights.iter().zip(places(weights));
    let paces = paces.map(|(weight, place)| Turns::new(*weight, total, len, place));
    let with_share = (0u32..).zip(paces).zip(weights).filter(|(_, weight)| **weight > 0);
    let paces: Vec<(u32, Turns)> = with_share.map(|(indexed, _)| indexed).collect();
    let mut order = Vec::with_capacity(len as usize);
    for (index, pace) in &paces {
        order.extend((0..pace.certain).map(|turn| (pace.time_of(turn), *index)));
    }
    order.extend(leftovers(&paces, len as usize - order.len()));
    order.sort_unstable();
    order.into_iter().map(|(_, index)| index).collect()
}

/// The turns that rounding down has left, for those whose next one comes first.
fn leftovers(paces: &[(u32, Turns)], count: usize) -> Vec<(u64, u32)> {
    let next = |(index, pace): &(u32, Turns)| (pace.time_of(pace.certain), *index);
    let mut next: Vec<_> = paces.iter().map(next).collect();
    if let Some(last) = count.checked_sub(1) {
        next.select_nth_unstable(last);
    }
    next.truncate(count);
    next
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names(weights: &[u32], len: u32) -> String {
        let name = |index| char::from(b"abcdef"[index as usize]);
        turns(weights, len).into_iter().map(name).collect()
    }

    #[test]
    fn equal_weights_take_turns_one_after_the_other() {
        assert_eq!(names(&[1, 1, 1], 3), "abc");
        assert_eq!(names(&[7, 7, 7], 8), "abcabcab");
    }

    #[test]
    fn a_heavier_one_is_spread_among_the_others() {
        assert_eq!(names(&[3, 1], 4), "aaba");
        assert_eq!(names(&[5, 1, 1], 7), "abaaaca");
        assert_eq!(names(&[4, 1, 1, 1, 1], 8), "abacadae");
        assert_eq!(names(&[2, 1], 6), "abaaba");
    }

    #[test]
    fn weight_zero_has_no_turn() {
        assert_eq!(names(&[0, 2, 1], 3), "bcb");
        assert_eq!(names(&[0, 0], 3), "");
        assert_eq!(names(&[], 3), "");
    }

    #[test]
    fn weights_as_far_apart_as_can_be_are_no_trouble() {
        let order = turns(&[u32::MAX, 1, 0], 131_071);
        assert_eq!(order, vec![0; 131_071]);
    }

    proptest! {
        #[test]
        fn all_turns_are_taken_and_shares_are_within_one_of_the_weights(
            weights in prop::collection::vec(0u32..100_000, 1..50), len in 1u32..5_000,
        ) {
            let order = turns(&weights, len);
            let total: u64 = weights.iter().map(|w| u64::from(*w)).sum();
            prop_assert_eq!(order.len(), if total == 0 { 0 } else { len as usize });
            for (index, weight) in (0u32..).zip(&weights) {
                let got = order.iter().filter(|turn| **turn == index).count() as u64;
                let (got, exact) = (got * total, u64::from(*weight) * u64::from(len));
                prop_assert!(got.abs_diff(exact) <= total, "{} for {} of {}", got, exact, total);
            }
        }

        /// No backend ever has to wait much longer, or comes much sooner, than its share says.
        #[test]
        fn every_beginning_of_the_sequence_is_shared_by_weight(
            weights in prop::collection::vec(1u32..20, 1..12),
        ) {
            let total: u32 = weights.iter().sum();
            let mut taken = vec![0u32; weights.len()];
            for (before, turn) in (1u32..).zip(turns(&weights, total)) {
                taken[turn as usize] += 1;
                for (taken, weight) in taken.iter().zip(&weights) {
                    let off = (taken * total).abs_diff(before * weight);
                    // Between one and two turns off is as good as any sequence of whole turns.
                    prop_assert!(off < 2 * total, "{} turns of {} before {}", taken, weight, before);
                }
            }
        }
    }
}
