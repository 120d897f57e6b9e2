//! What a service's way to choose leads to, without choosing. Pure.

use std::collections::BTreeMap;

use samport_common::choose::{self, Balance, Load};
use samport_common::failover::MAX_RETRIES;

/// Draws for one packet, at most: the kernel's limit of tail calls, less the two that lead there.
const ATTEMPTS: u32 = 31;
/// Backends up to which those with fewer connections are compared one by one.
const MOST_COMPARED: usize = 1_024;

/// Whether a backend may get a new flow.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Fitness {
    /// It may not.
    Unfit,
    /// Only if there is no better one: it has failed lately.
    Suspect,
    /// It may.
    Fit,
}

/// A draw that is to be made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Selection<'a> {
    pub(super) balance: Balance,
    /// The service's table.
    pub(super) slots: &'a [u32],
    /// The client, if it is known to those that go by it.
    pub(super) hash: Option<u32>,
    /// How many draws have failed already.
    pub(super) first: u32,
    /// Number of the next turn.
    pub(super) turn: u64,
}

/// What comes of it.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Selected {
    /// Who may get the flow, and how probable that is; one alone is certain.
    pub(super) shares: Vec<(u32, f64)>,
    /// Whose turn is next.
    pub(super) next: Option<u32>,
}

/// Who gets the flow. None if no backend can.
pub(super) fn select(
    selection: &Selection,
    fitness: impl Fn(u32) -> Fitness,
    load: impl Fn(u32) -> Load,
) -> Option<Selected> {
    if let (true, Some(hash)) = (selection.balance.is_by_hash(), selection.hash) {
        let one = by_hash(selection, hash, &fitness)?;
        return Some(Selected { shares: vec![(one, 1.0)], next: None });
    }
    let mut counts: BTreeMap<u32, u64> = BTreeMap::new();
    for id in selection.slots {
        *counts.entry(*id).or_default() += 1;
    }
    let best = counts.keys().map(|id| fitness(*id)).max().filter(|best| *best > Fitness::Unfit)?;
    let next = (selection.balance == Balance::RoundRobin)
        .then(|| whose_turn(selection, |id| fitness(id) == best))
        .flatten();
    let mut shares = match selection.balance {
        Balance::LeastConn if counts.len() <= MOST_COMPARED => of_two(&counts, load),
        _ => counts.iter().map(|(id, count)| (*id, parts(*count))).collect(),
    };
    shares.retain(|(id, _)| fitness(*id) == best);
    let whole: f64 = shares.iter().map(|(_, share)| share).sum();
    for (_, share) in &mut shares {
        *share /= whole;
    }
    Some(Selected { shares, next })
}

/// The backend that a client's hash leads to: where it may not go, another hash of it leads on.
fn by_hash(selection: &Selection, hash: u32, fitness: impl Fn(u32) -> Fitness) -> Option<u32> {
    let len = u32::try_from(selection.slots.len()).ok()?;
    (selection.first..ATTEMPTS).find_map(|attempt| {
        let slot = choose::slot(choose::rehash(hash, attempt), len)?;
        let id = *selection.slots.get(slot as usize)?;
        let takes = match fitness(id) {
            Fitness::Fit => true,
            Fitness::Suspect => attempt >= MAX_RETRIES,
            Fitness::Unfit => false,
        };
        takes.then_some(id)
    })
}

fn whose_turn(selection: &Selection, may: impl Fn(u32) -> bool) -> Option<u32> {
    let len = selection.slots.len();
    let first = usize::try_from(selection.turn.checked_rem(len as u64)?).ok()?;
    selection.slots.iter().cycle().skip(first).take(len).copied().find(|id| may(*id))
}

/// How probable it is for each to be the better one of two that are drawn.
fn of_two(counts: &BTreeMap<u32, u64>, load: impl Fn(u32) -> Load) -> Vec<(u32, f64)> {
    let mut shares: BTreeMap<u32, f64> = counts.keys().map(|id| (*id, 0.0)).collect();
    for (one, count) in counts {
        for (other, of_other) in counts {
            let better = if load(*other).is_lighter_than(load(*one)) { other } else { one };
            if let Some(share) = shares.get_mut(better) {
                *share += parts(*count) * parts(*of_other);
            }
        }
    }
    shares.into_iter().collect()
}

#[allow(clippy::cast_precision_loss, reason = "far fewer slots than 2⁵²")]
const fn parts(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selection(balance: Balance, slots: &[u32]) -> Selection<'_> {
        Selection { balance, slots, hash: Some(0x8000_0000), first: 0, turn: 0 }
    }

    fn idle(_: u32) -> Load {
        Load { open: 0, weight: 1 }
    }

    #[test]
    fn who_is_drawn_has_its_part_of_the_slots() {
        let selected =
            select(&selection(Balance::Random, &[1, 1, 1, 2]), |_| Fitness::Fit, idle).unwrap();
        assert_eq!(selected.shares, [(1, 0.75), (2, 0.25)]);
    }

    #[test]
    fn the_part_of_who_may_not_falls_to_the_others() {
        let of =
            |id: u32| [Fitness::Unfit, Fitness::Fit, Fitness::Suspect, Fitness::Fit][id as usize];
        let selected = select(&selection(Balance::Random, &[0, 1, 1, 1, 2, 3]), of, idle).unwrap();
        assert_eq!(selected.shares, [(1, 0.75), (3, 0.25)]);
        let suspects = select(&selection(Balance::Random, &[0, 2]), of, idle).unwrap();
        assert_eq!(suspects.shares, [(2, 1.0)], "better than none");
        assert_eq!(select(&selection(Balance::Random, &[0]), of, idle), None);
        assert_eq!(select(&selection(Balance::Random, &[]), of, idle), None);
    }

    #[test]
    fn a_hash_leads_to_one_and_on_to_another_if_that_may_not() {
        let slots: Vec<u32> = (0..100).collect();
        let one = select(&selection(Balance::Maglev, &slots), |_| Fitness::Fit, idle).unwrap();
        assert_eq!(one.shares, [(50, 1.0)], "the middle of all hashes is in the middle slot");
        let but = |id| if id == 50 { Fitness::Unfit } else { Fitness::Fit };
        let other = select(&selection(Balance::Maglev, &slots), but, idle).unwrap();
        let rehashed = choose::slot(choose::rehash(0x8000_0000, 1), 100).unwrap();
        assert_eq!(other.shares, [(rehashed, 1.0)]);
    }

    #[test]
    fn who_has_failed_is_taken_when_patience_is_lost() {
        let slots = [7];
        let selected = select(&selection(Balance::SourceHash, &slots), |_| Fitness::Suspect, idle);
        assert_eq!(selected.unwrap().shares, [(7, 1.0)]);
        assert_eq!(select(&selection(Balance::SourceHash, &slots), |_| Fitness::Unfit, idle), None);
    }

    #[test]
    fn turns_say_who_is_next() {
        let slots = [1, 2, 3];
        let turn = |turn| Selection { turn, ..selection(Balance::RoundRobin, &slots) };
        let fit = |_| Fitness::Fit;
        let next = |at, fitness: fn(u32) -> Fitness| select(&turn(at), fitness, idle).unwrap().next;
        assert_eq!((next(0, fit), next(4, fit), next(5, fit)), (Some(1), Some(2), Some(3)));
        let not_2 = |id| if id == 2 { Fitness::Unfit } else { Fitness::Fit };
        assert_eq!(next(4, not_2), Some(3));
    }

    #[test]
    fn of_two_that_are_drawn_the_less_busy_one_is_better() {
        let load = |id| Load { open: id, weight: 1 };
        let selected =
            select(&selection(Balance::LeastConn, &[1, 2]), |_| Fitness::Fit, load).unwrap();
        assert_eq!(selected.shares, [(1, 0.75), (2, 0.25)], "2 only if it is drawn twice");
        let selected =
            select(&selection(Balance::LeastConn, &[1, 2]), |_| Fitness::Fit, idle).unwrap();
        assert_eq!(selected.shares, [(1, 0.5), (2, 0.5)]);
    }
}
