//! From what is known and what is counted to what the operator reads. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use samport_common::layout::Handshakes;
use tokio::time::Instant;

use super::types::{Backend, Counters, Health, SCHEMA};
use crate::control::handle::{BackendView, ControlView};
use crate::model::State;
use crate::model::groups;
use crate::model::ports::Listen;

/// The first class of `Handshakes` ends at this power of two.
const FIRST_CLASS: usize = 4;

/// A service of one family: those among whom flows are shared.
type Pool = (Listen, bool);

/// What is counted of backends, by the kernel's ids.
pub type CountersByBackend = BTreeMap<u32, Counters>;

/// The backends of a view.
#[must_use]
pub fn backends(view: &ControlView, counted: &CountersByBackend, now: Instant) -> Vec<Backend> {
    let counters = |one: &BackendView| one.index.and_then(|index| counted.get(&index).copied());
    let mut flows: BTreeMap<Pool, u64> = BTreeMap::new();
    let mut weights: BTreeMap<Pool, u64> = BTreeMap::new();
    let shares = shares(&view.backends);
    for (one, share) in view.backends.iter().zip(&shares) {
        *flows.entry(pool(one)).or_default() += counters(one).map_or(0, |c| c.flows);
        *weights.entry(pool(one)).or_default() += u64::from(*share);
    }
    let of =
        |sums: &BTreeMap<Pool, u64>, one: &BackendView| sums.get(&pool(one)).copied().unwrap_or(0);
    let report = |(one, share): (&BackendView, u32)| {
        let counters = counters(one);
        Backend {
            service: one.backend_ref.listen.to_string(),
            service_name: one.service.clone(),
            group: one.group.as_ref().map(|group| group.name.clone()),
            group_weight: one.group.as_ref().map(|group| group.weight),
            name: one.name.clone(),
            id: one.backend_ref.id.clone(),
            address: one.backend_ref.endpoint.to_string(),
            state: one.state.name().to_owned(),
            weight: one.weight,
            node: one.node,
            via: one.via.clone(),
            route_back: one.route_back,
            share_expected: part(u64::from(share), of(&weights, one)),
            share_actual: part(counters.map_or(0, |c| c.flows), of(&flows, one)),
            is_last: one.is_last,
            drain_left_ms: one.drains_until.map(|until| milliseconds(until - now)),
            counters,
        }
    };
    view.backends.iter().zip(shares).map(report).collect()
}

fn pool(one: &BackendView) -> Pool {
    (one.backend_ref.listen, one.backend_ref.endpoint.is_ipv6())
}

/// What each backend counts when new flows are shared out, relative to the others of its pool.
fn shares(all: &[BackendView]) -> Vec<u32> {
    let mut pools: BTreeMap<Pool, Vec<usize>> = BTreeMap::new();
    for (at, one) in all.iter().enumerate() {
        if one.state == State::Active || one.is_last {
            pools.entry(pool(one)).or_default().push(at);
        }
    }
    let mut shares = vec![0; all.len()];
    for members in pools.into_values() {
        let weights: Vec<_> =
            members.iter().map(|at| (all[*at].weight, all[*at].group.as_ref())).collect();
        for (at, share) in members.into_iter().zip(groups::shares(&weights)) {
            shares[at] = share;
        }
    }
    shares
}

/// A part of a whole, to a hundredth of a percent.
fn part(of: u64, whole: u64) -> f64 {
    let parts = u128::from(of) * 10_000 / u128::from(whole.max(1));
    f64::from(u32::try_from(parts).unwrap_or(10_000)) / 10_000.0
}

/// The microseconds within which this percentage of connections were answered, as well as the classes
/// tell: evenly spread over each. None if there were none.
pub(super) fn within(handshakes: &Handshakes, percent: u64) -> Option<u64> {
    let all: u64 = handshakes.classes.iter().sum();
    let wanted = (all * percent).div_ceil(100);
    let mut before = 0;
    for (class, count) in handshakes.classes.iter().enumerate() {
        if *count > 0 && before + count >= wanted {
            let end = 1_u64 << (FIRST_CLASS + class);
            let begin = if class == 0 { 0 } else { end / 2 };
            let units = begin + (end - begin) * (wanted - before) / count;
            return Some(units * 1_024 / 1_000);
        }
        before += count;
    }
    None
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Whether this many containers of a service take new flows; of every service, if none is named. What is known of them
/// is of no worth when the control loop hangs.
#[must_use]
pub fn health(
    view: &ControlView,
    wanted: usize,
    service: Option<Listen>,
    trouble: Option<String>,
) -> Health {
    let of = |listen: Listen| {
        let active = view.backends.iter().filter(|one| one.state == State::Active);
        let ids =
            active.filter(|one| one.backend_ref.listen == listen).map(|one| &one.backend_ref.id);
        ids.collect::<BTreeSet<_>>().len()
    };
    let healthy = match service {
        Some(listen) => of(listen),
        None => view.services.keys().map(|listen| of(*listen)).min().unwrap_or(0),
    };
    let ok = healthy >= wanted && trouble.is_none();
    let node_drained = view.node_drained;
    Health { schema: SCHEMA, healthy, wanted, ok, node_drained, trouble }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::handle::BackendRef;
    use samport_common::choose::Balance;

    fn seated(id: &str, endpoint: &str, weight: u32, state: State) -> BackendView {
        let endpoint = endpoint.parse().unwrap();
        BackendView {
            backend_ref: BackendRef { listen: Listen::tcp(80), id: id.into(), endpoint },
            name: id.into(),
            service: None,
            group: None,
            weight,
            state,
            node: None,
            via: None,
            route_back: None,
            index: None,
            drains_until: None,
            is_last: false,
        }
    }

    fn view(backends: Vec<BackendView>) -> ControlView {
        ControlView {
            services: [(Listen::tcp(80), Balance::Random)].into(),
            backends,
            left_out: 0,
            node_drained: false,
        }
    }

    #[test]
    fn shares_are_by_weight_among_those_of_a_family_that_take_flows() {
        let mut all = vec![
            seated("a", "10.0.0.1:80", 1, State::Active),
            seated("b", "10.0.0.2:80", 2, State::Active),
            seated("c", "10.0.0.3:80", 5, State::Draining),
            seated("a", "[2001:db8::1]:80", 9, State::Active),
        ];
        all[0].index = Some(1);
        all[1].index = Some(2);
        let counters = |flows| Counters { flows, ..Counters::default() };
        let counted = [(1, counters(10)), (2, counters(30))].into();
        let shown = backends(&view(all), &counted, Instant::now());
        let shares: Vec<_> = shown.iter().map(|b| (b.share_expected, b.share_actual)).collect();
        assert_eq!(shares, [(0.3333, 0.25), (0.6666, 0.75), (0.0, 0.0), (1.0, 0.0)]);
        assert_eq!(shown[2].counters, None);
    }

    #[test]
    fn who_drains_says_how_long_and_who_is_last_has_its_share() {
        let now = Instant::now();
        let mut all = vec![
            seated("a", "10.0.0.1:80", 1, State::Draining),
            seated("b", "10.0.0.2:80", 1, State::Draining),
        ];
        all[0].drains_until = Some(now + Duration::from_secs(19));
        all[1].is_last = true;
        let shown = backends(&view(all), &CountersByBackend::new(), now);
        assert_eq!((shown[0].drain_left_ms, shown[0].share_expected), (Some(19_000), 0.0));
        assert_eq!((shown[1].drain_left_ms, shown[1].share_expected), (None, 1.0));
    }

    #[test]
    fn percentiles_lie_in_their_class() {
        let mut handshakes = Handshakes::default();
        assert_eq!(within(&handshakes, 50), None);
        // 90 of 32 to 63 units of 1.024 µs, 10 of 256 to 511.
        (handshakes.classes[2], handshakes.classes[5]) = (90, 10);
        assert_eq!(within(&handshakes, 50), Some((32 + 32 * 50 / 90) * 1_024 / 1_000));
        assert_eq!(within(&handshakes, 90), Some(64 * 1_024 / 1_000));
        assert_eq!(within(&handshakes, 99), Some((256 + 256 * 9 / 10) * 1_024 / 1_000));
        // The last class has no end; it counts as twice its beginning.
        handshakes.classes = [0; 16];
        handshakes.classes[15] = 1;
        assert_eq!(within(&handshakes, 99), Some((1 << 19) * 1_024 / 1_000));
    }

    #[test]
    fn containers_are_healthy_once_whatever_addresses_they_have() {
        let mut view = view(vec![
            seated("a", "10.0.0.1:80", 1, State::Active),
            seated("a", "[2001:db8::1]:80", 1, State::Starting),
            seated("b", "10.0.0.2:80", 1, State::Active),
            seated("c", "10.0.0.3:80", 1, State::Starting),
        ]);
        let count = |view: &ControlView, service| health(view, 2, service, None).healthy;
        assert_eq!(count(&view, None), 2);
        let ok = |wanted, trouble| health(&view, wanted, None, trouble).ok;
        assert!(ok(2, None) && !ok(3, None) && !ok(2, Some("it hangs".to_owned())));
        // Of every service: one without a backend counts.
        view.services.insert(Listen::tcp(443), Balance::Random);
        assert_eq!(count(&view, None), 0);
        assert_eq!(count(&view, Some(Listen::tcp(80))), 2);
        assert_eq!(count(&ControlView::default(), None), 0);
    }
}
