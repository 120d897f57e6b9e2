//! Which flows leave a table before their time, so that it has room for others. Pure.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use samport_common::conntrack::State;
use samport_common::layout::is_nearly_full;

/// A flow that is over is kept for this many ticks, unless open ones would have to leave: a segment that was sent
/// again may be on its way.
const LINGER: u32 = 2;

/// A flow in a table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen<K> {
    /// Its key.
    pub key: K,
    /// Its service.
    pub service: u16,
    /// Its state.
    pub state: State,
    /// Ticks since its last packet.
    pub idle: u32,
}

/// How much a table holds, and how much of it a service may hold when others need room.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    /// Entries.
    pub entries: u64,
    /// Entries of one service.
    pub share: u64,
}

/// What leaves.
#[derive(Debug)]
pub(super) struct Leaving<K> {
    /// Flows that are over.
    pub over: Vec<K>,
    /// Flows that are not: they make room for others.
    pub evicted: Vec<K>,
}

/// Chooses who leaves a table that is nearly full: first flows that are over, until half of it is free; then, if
/// it is all but full, those whose client is not proven, or has perhaps reset them; then those of services that hold more than their share;
/// then anybody's. In each case those that have been idle for longest.
pub(super) fn make_room<K: Copy>(mut flows: Vec<Seen<K>>, size: Size) -> Leaving<K> {
    let mut left = flows.len() as u64;
    let mut leaving = Leaving { over: Vec::new(), evicted: Vec::new() };
    if !is_nearly_full(left, size.entries) {
        return leaving;
    }
    flows.sort_unstable_by_key(|flow| Reverse(flow.idle));
    let (half, full) = (size.entries / 2, size.entries - size.entries / 16);
    flows.retain(|flow| {
        let may_leave = left > full || (left > half && flow.idle >= LINGER);
        let leaves = may_leave && flow.state.has_ended();
        if leaves {
            left -= 1;
            leaving.over.push(flow.key);
        }
        !leaves
    });
    flows.retain(|flow| {
        let leaves = left > full && (flow.state.is_unproven() || !flow.state.is_open());
        if leaves {
            left -= 1;
            leaving.evicted.push(flow.key);
        }
        !leaves
    });
    let mut held: BTreeMap<u16, u64> = BTreeMap::new();
    for flow in &flows {
        *held.entry(flow.service).or_default() += 1;
    }
    if left > full && held.len() > 1 {
        flows.retain(|flow| {
            let of_service = held.entry(flow.service).or_default();
            let leaves = *of_service > size.share;
            if leaves {
                *of_service -= 1;
                left -= 1;
                leaving.evicted.push(flow.key);
            }
            !leaves
        });
    }
    let excess = usize::try_from(left.saturating_sub(full)).unwrap_or(usize::MAX);
    leaving.evicted.extend(flows.iter().take(excess).map(|flow| flow.key));
    leaving
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Size = Size { entries: 1_600, share: 800 };

    fn flows(service: u16, count: u32, state: State, idle: impl Fn(u32) -> u32) -> Vec<Seen<u32>> {
        let key = |number| u32::from(service) * 10_000 + number;
        (0..count).map(|n| Seen { key: key(n), service, state, idle: idle(n) }).collect()
    }

    #[test]
    fn nobody_leaves_a_table_that_has_room() {
        let flows = flows(1, 1_200, State::Finished, |n| n);
        let leaving = make_room(flows, SIZE);
        assert_eq!((leaving.over.len(), leaving.evicted.len()), (0, 0));
    }

    #[test]
    fn what_is_over_leaves_first_and_the_longest_idle_of_it() {
        let mut all = flows(1, 600, State::Established, |_| 5_000);
        all.extend(flows(2, 700, State::Finished, |n| n));
        let leaving = make_room(all, SIZE);
        assert!(leaving.evicted.is_empty(), "{leaving:?}");
        // Until half is free.
        assert_eq!(leaving.over.len(), 500);
        assert!(leaving.over.iter().all(|key| *key >= 20_200), "those that were idle for longest");
    }

    #[test]
    fn what_has_just_ended_lingers() {
        let all = flows(1, 1_300, State::Finished, |_| LINGER - 1);
        let leaving = make_room(all, SIZE);
        assert_eq!((leaving.over.len(), leaving.evicted.len()), (0, 0));
    }

    #[test]
    fn what_has_just_ended_leaves_before_anybody_who_has_not() {
        let mut all = flows(1, 300, State::Established, |_| 5_000);
        all.extend(flows(2, 1_300, State::Finished, |_| 0));
        let leaving = make_room(all, SIZE);
        assert!(leaving.evicted.is_empty(), "{leaving:?}");
        assert_eq!(leaving.over.len(), 100);
    }

    #[test]
    fn whose_client_is_not_proven_leaves_before_anybody_who_is() {
        let mut all = flows(1, 1_300, State::Established, |_| 5_000);
        all.extend(flows(2, 290, State::Unanswered, |n| n));
        let leaving = make_room(all, SIZE);
        assert_eq!(leaving.evicted.len(), 90);
        assert!(leaving.evicted.iter().all(|key| *key >= 20_200), "the idle ones: {leaving:?}");
    }

    #[test]
    fn a_service_gives_up_what_is_more_than_its_share() {
        let mut all = flows(1, 1_400, State::Established, |n| n);
        all.extend(flows(2, 200, State::Established, |_| 9_000));
        let leaving = make_room(all, SIZE);
        assert!(leaving.over.is_empty(), "{leaving:?}");
        assert_eq!(leaving.evicted.len(), 600, "down to its share");
        assert!(leaving.evicted.iter().all(|key| (10_800..11_400).contains(key)), "the idle ones");
    }

    #[test]
    fn alone_a_service_may_have_it_all_but_for_a_little_room() {
        let leaving = make_room(flows(1, 1_600, State::Established, |n| n), SIZE);
        assert_eq!(leaving.evicted.len(), 100);
        assert!(leaving.evicted.contains(&11_599) && !leaving.evicted.contains(&11_000));
        assert!(make_room(flows(1, 1_500, State::Established, |n| n), SIZE).evicted.is_empty());
    }

    #[test]
    fn services_within_their_shares_give_room_alike() {
        let mut all = flows(1, 800, State::Established, |n| n);
        all.extend(flows(2, 790, State::Established, |n| n));
        let leaving = make_room(all, SIZE);
        assert_eq!(leaving.evicted.len(), 90);
    }
}
