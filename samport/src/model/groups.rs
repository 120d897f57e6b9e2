//! Groups: containers behind one port that share a part of its clients, whoever of them is there. Pure.
//!
//! Backends without a group are one group together, of the default weight.

use std::collections::BTreeMap;

use crate::model::Candidate;
use crate::model::ports::Listen;

/// A group's weight, if nothing says another one.
pub const DEFAULT_WEIGHT: u32 = 100;

/// A group of backends behind a port.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Its share relative to the other groups of the port; 0 takes no new flows.
    pub weight: u32,
}

impl Group {
    /// A candidate's group, if it is in one.
    #[must_use]
    pub fn of(candidate: &Candidate, weights: &Weights) -> Option<Self> {
        let name = candidate.hints.group.clone()?;
        let key = (candidate.listen, name);
        let weight = weights.get(&key).copied().unwrap_or(DEFAULT_WEIGHT);
        Some(Self { name: key.1, weight })
    }
}

/// The weights of groups, by port and name.
pub type Weights = BTreeMap<(Listen, String), u32>;

/// The weight of each group: that of an order, or else of its containers' labels. Sentences about those
/// whose containers disagree: the first one's holds.
#[must_use]
pub fn weights(candidates: &[Candidate], orders: &BTreeMap<String, u32>) -> (Weights, Vec<String>) {
    let (mut weights, mut complaints) = (Weights::new(), Vec::new());
    let mut first: BTreeMap<(Listen, &str), (&str, u32)> = BTreeMap::new();
    for candidate in candidates {
        let Some(name) = candidate.hints.group.as_deref() else { continue };
        let weight = weights.entry((candidate.listen, name.to_owned())).or_insert(DEFAULT_WEIGHT);
        if let Some(order) = orders.get(name) {
            *weight = *order;
            continue;
        }
        let Some(own) = candidate.hints.group_weight else { continue };
        let (holder, held) =
            first.entry((candidate.listen, name)).or_insert((&candidate.name, own));
        *weight = *held;
        if *held != own {
            complaints.push(format!(
                "label samport.group.weight of group {name:?} is {held} on container {holder:?}, but {own} \
                 on {:?}; {held} holds until they agree",
                candidate.name
            ));
        }
    }
    (weights, complaints)
}

/// What share each of a port's backends has of new flows, relative to the others, given the weight of
/// each and its group: a group's share by its weight, and within it by theirs. Only those that take new
/// flows are to be given: so a group without any leaves its share to the others. Without groups these are
/// the backends' own weights.
#[must_use]
pub fn shares(members: &[(u32, Option<&Group>)]) -> Vec<u32> {
    if members.iter().all(|(_, group)| group.is_none()) {
        return members.iter().map(|(weight, _)| *weight).collect();
    }
    let name = |group: Option<&Group>| group.map(|group| group.name.clone());
    let mut sums: BTreeMap<Option<String>, u64> = BTreeMap::new();
    for (weight, group) in members {
        *sums.entry(name(*group)).or_default() += u64::from(*weight);
    }
    let denominator = common_multiple(sums.values().filter(|sum| **sum > 0));
    let share = |(weight, group): &(u32, Option<&Group>)| {
        let group_weight = group.map_or(DEFAULT_WEIGHT, |group| group.weight);
        let product = u128::from(*weight) * u128::from(group_weight);
        product * denominator / u128::from(sums[&name(*group)].max(1))
    };
    in_32_bits(&members.iter().map(share).collect::<Vec<_>>())
}

/// The least common multiple, or a number so large that it does as well.
fn common_multiple<'a>(numbers: impl Iterator<Item = &'a u64>) -> u128 {
    // Times two weights it is still a number of 128 bits.
    const ENOUGH: u128 = 1 << 60;
    numbers.fold(1, |multiple, number| {
        let number = u128::from(*number);
        (multiple / divisor(multiple, number) * number).min(ENOUGH)
    })
}

/// The same shares in numbers as small as possible, rounded only if they must be. Who has a share keeps
/// one.
fn in_32_bits(shares: &[u128]) -> Vec<u32> {
    let divisor = shares.iter().fold(0, |common, share| divisor(common, *share)).max(1);
    let largest = shares.iter().max().map_or(0, |share| share / divisor);
    let excess = largest.div_ceil(u32::MAX.into()).max(1);
    let fit = |share: &u128| {
        let least = u32::from(*share > 0);
        u32::try_from(share / divisor / excess).unwrap_or(u32::MAX).max(least)
    };
    shares.iter().map(fit).collect()
}

const fn divisor(mut a: u128, mut b: u128) -> u128 {
    while let Some(rest) = a.checked_rem(b) {
        (a, b) = (b, rest);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn group(name: &str, weight: u32) -> Group {
        Group { name: name.to_owned(), weight }
    }

    #[test]
    fn without_groups_weights_are_shares() {
        assert_eq!(shares(&[(3, None), (0, None), (6, None)]), [3, 0, 6]);
        assert_eq!(shares(&[]), Vec::<u32>::new());
    }

    #[test]
    fn a_groups_share_is_split_among_its_members_by_their_weights() {
        let (stable, canary) = (group("stable", 95), group("canary", 5));
        let members =
            [(1, Some(&stable)), (3, Some(&stable)), (1, Some(&canary)), (1, Some(&canary))];
        // Of 80: 95/100 in the ratio 1 : 3, and 5/100 in halves.
        assert_eq!(shares(&members), [19, 57, 2, 2]);
    }

    #[test]
    fn a_group_without_members_leaves_its_share_to_the_others() {
        let stable = group("stable", 95);
        assert_eq!(shares(&[(1, Some(&stable)), (1, Some(&stable))]), [1, 1]);
    }

    #[test]
    fn those_without_a_group_are_a_group() {
        let canary = group("canary", 25);
        assert_eq!(shares(&[(1, None), (1, None), (1, Some(&canary))]), [2, 2, 1]);
    }

    #[test]
    fn a_group_of_weight_zero_has_no_share() {
        let (off, on) = (group("off", 0), group("on", 1));
        assert_eq!(shares(&[(7, Some(&off)), (2, Some(&on)), (1, Some(&on))]), [0, 2, 1]);
    }

    #[test]
    fn the_largest_weights_there_are_make_shares_all_the_same() {
        let groups: Vec<_> = (0..9).map(|n| group(&n.to_string(), u32::MAX - n)).collect();
        let members: Vec<_> =
            groups.iter().flat_map(|g| [(1, Some(g)), (u32::MAX, Some(g))]).collect();
        let shares = shares(&members);
        assert!(shares.chunks(2).all(|pair| pair[0] >= 1 && pair[1] > u32::MAX / 2), "{shares:?}");
    }

    fn candidate(name: &str, group: Option<&str>, group_weight: Option<u32>) -> Candidate {
        let mut candidate = crate::model::test::candidate(name);
        candidate.hints.group = group.map(str::to_owned);
        candidate.hints.group_weight = group_weight;
        candidate
    }

    #[test]
    fn an_order_beats_labels_and_these_the_default() {
        let candidates = [
            candidate("a", Some("canary"), Some(5)),
            candidate("b", Some("canary"), None),
            candidate("c", Some("stable"), None),
            candidate("d", Some("ordered"), Some(1)),
            candidate("e", None, None),
        ];
        let listen = candidates[0].listen;
        let (weights, complaints) = weights(&candidates, &[("ordered".to_owned(), 9)].into());
        let expected = [("canary", 5), ("ordered", 9), ("stable", DEFAULT_WEIGHT)]
            .map(|(name, weight)| ((listen, name.to_owned()), weight));
        assert_eq!((weights, complaints), (expected.into(), vec![]));
    }

    #[test]
    fn containers_that_disagree_are_named_and_the_first_ones_weight_holds() {
        let candidates = [candidate("a", Some("g"), Some(5)), candidate("b", Some("g"), Some(6))];
        let (weights, complaints) = weights(&candidates, &BTreeMap::new());
        assert_eq!(weights.into_values().collect::<Vec<_>>(), [5]);
        let [complaint] = &complaints[..] else { panic!("{complaints:?}") };
        for word in ["\"g\"", "\"a\"", "\"b\"", "5 holds"] {
            assert!(complaint.contains(word), "{complaint}");
        }
    }

    prop_compose! {
        fn grouped()(
            groups in prop::collection::vec(1u32..1_000, 1..6),
            members in prop::collection::vec((1u32..100, 0usize..6), 1..30),
        ) -> Vec<(u32, Option<Group>)> {
            let named = |at: usize| groups.get(at).map(|weight| group(&at.to_string(), *weight));
            members.into_iter().map(|(weight, at)| (weight, named(at))).collect()
        }
    }

    fn shares_of(members: &[(u32, Option<Group>)]) -> Vec<u32> {
        let members: Vec<_> = members.iter().map(|(weight, g)| (*weight, g.as_ref())).collect();
        shares(&members)
    }

    proptest! {
        #[test]
        fn each_group_has_its_share(members in grouped()) {
            let mut by_group: BTreeMap<_, (f64, f64)> = BTreeMap::new();
            for ((_, group), share) in members.iter().zip(shares_of(&members)) {
                let weight = group.as_ref().map_or(DEFAULT_WEIGHT, |group| group.weight);
                let sums = by_group.entry(group.clone()).or_default();
                *sums = (f64::from(weight), sums.1 + f64::from(share));
            }
            let all = by_group.values().fold((0.0, 0.0), |all, one| (all.0 + one.0, all.1 + one.1));
            for (group, (weight, share)) in &by_group {
                prop_assert!((weight / all.0 - share / all.1).abs() < 1e-6, "{:?}", group);
            }
        }

        #[test]
        fn the_order_of_members_does_not_matter(
            (members, order) in grouped().prop_flat_map(|members| {
                let order = Just((0..members.len()).collect::<Vec<_>>()).prop_shuffle();
                (Just(members), order)
            }),
        ) {
            let shuffled: Vec<_> = order.iter().map(|at| members[*at].clone()).collect();
            let (shares, of_shuffled) = (shares_of(&members), shares_of(&shuffled));
            for (at, share) in order.into_iter().zip(of_shuffled) {
                prop_assert_eq!(share, shares[at]);
            }
        }
    }
}
