//! What a samport has said over time: how fast its numbers grow, and what has changed. Pure.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use samport_common::verdict::{Action, Verdict};

use super::super::units::rate;
use crate::api::types::{Backend, Instance};

/// Rates that are kept of each service: more than the broadest screen shows.
const KEPT_RATES: usize = 512;
/// Changes that are kept.
const KEPT_CHANGES: usize = 100;

/// What it says at one moment.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Documents {
    pub(super) instance: Instance,
    pub(super) backends: Vec<Backend>,
}

/// What tells a backend from all others: its service, its container, its address.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Key(String, String, String);

impl From<&Backend> for Key {
    fn from(one: &Backend) -> Self {
        Self(one.service.clone(), one.id.clone(), one.address.clone())
    }
}

/// Something that has happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Event {
    /// When it was seen, by the clock of the samples.
    pub(super) at: Duration,
    pub(super) what: String,
}

/// A verdict, how often it was given, and how often a second lately.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Growth {
    pub(super) verdict: Verdict,
    pub(super) packets: u64,
    pub(super) rate: f64,
}

impl Growth {
    pub(super) fn is_drop(&self) -> bool {
        self.verdict.action() == Action::Drop
    }
}

/// Everything there is to draw.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct History {
    /// The latest.
    pub(super) now: Documents,
    /// When that was said.
    pub(super) at: Duration,
    /// The latest first.
    pub(super) changes: VecDeque<Event>,
    services: BTreeMap<String, VecDeque<f64>>,
    backends: BTreeMap<Key, f64>,
    verdicts: BTreeMap<String, f64>,
}

impl History {
    pub(super) fn beginning_with(first: Documents, at: Duration) -> Self {
        Self {
            now: first,
            at,
            changes: VecDeque::new(),
            services: BTreeMap::new(),
            backends: BTreeMap::new(),
            verdicts: BTreeMap::new(),
        }
    }

    /// Takes in what it says now.
    pub(super) fn add(&mut self, new: Documents, at: Duration) {
        let time = at.saturating_sub(self.at);
        let (old, before, after) = (&self.now, &self.now.instance, &new.instance);
        // A samport that was restarted may count from 0 again: that is no growth.
        let growth = |before: Option<&u64>, now: u64| {
            before.map_or(0.0, |before| rate(now.saturating_sub(*before), time))
        };

        let flows: BTreeMap<_, _> =
            old.backends.iter().map(|one| (Key::from(one), total(one))).collect();
        let rate_of =
            |one: &Backend| (Key::from(one), growth(flows.get(&Key::from(one)), total(one)));
        self.backends = new.backends.iter().map(rate_of).collect();

        self.services.retain(|name, _| after.services.iter().any(|one| one.service == *name));
        for service in &after.services {
            // Of its backends: what one that leaves takes along is no decrease.
            let ours = self.backends.iter().filter(|(key, _)| key.0 == service.service);
            let rates = self.services.entry(service.service.clone()).or_default();
            rates.push_back(ours.fold(0.0, |sum, (_, rate)| sum + rate));
            if rates.len() > KEPT_RATES {
                rates.pop_front();
            }
        }
        let rate_of = |(name, count): (&String, &u64)| {
            (name.clone(), growth(before.verdicts.get(name), *count))
        };
        self.verdicts = after.verdicts.iter().map(rate_of).collect();

        for what in changes(old, &new) {
            self.changes.push_front(Event { at, what });
        }
        self.changes.truncate(KEPT_CHANGES);
        (self.now, self.at) = (new, at);
    }

    /// New connections a second of a service, the latest last.
    pub(super) fn rates_of(&self, service: &str) -> Vec<f64> {
        self.services.get(service).map(|rates| rates.iter().copied().collect()).unwrap_or_default()
    }

    /// New connections a second of a service; none before it was seen twice.
    pub(super) fn rate_of(&self, service: &str) -> Option<f64> {
        self.services.get(service)?.back().copied()
    }

    /// Those of a backend.
    pub(super) fn rate_of_backend(&self, one: &Backend) -> Option<f64> {
        self.backends.get(&Key::from(one)).copied()
    }

    /// Those of all services together.
    pub(super) fn rate(&self) -> f64 {
        // Not `sum`: that of nothing is -0.
        self.services.values().filter_map(VecDeque::back).fold(0.0, |sum, rate| sum + rate)
    }

    /// Verdicts that were ever given: what was dropped first, then what grows fastest.
    pub(super) fn verdicts(&self) -> Vec<Growth> {
        let growth = |verdict: &Verdict| {
            let packets = *self.now.instance.verdicts.get(verdict.name())?;
            let rate = self.verdicts.get(verdict.name()).copied().unwrap_or_default();
            (packets > 0).then_some(Growth { verdict: *verdict, packets, rate })
        };
        let mut all: Vec<_> = Verdict::ALL.iter().filter_map(growth).collect();
        all.sort_by(|a, b| {
            (b.is_drop(), b.rate)
                .partial_cmp(&(a.is_drop(), a.rate))
                .unwrap_or(std::cmp::Ordering::Equal)
        });
        all
    }
}

fn total(one: &Backend) -> u64 {
    one.counters.map_or(0, |counters| counters.flows)
}

/// What is different, in words. The addresses of a backend are one.
fn changes(old: &Documents, new: &Documents) -> BTreeSet<String> {
    let mut told = BTreeSet::new();
    if old.instance.pid != new.instance.pid {
        told.insert(format!("samport was restarted, pid {}", new.instance.pid));
    }
    let before: BTreeMap<Key, &Backend> =
        old.backends.iter().map(|one| (Key::from(one), one)).collect();
    for one in &new.backends {
        let who = format!("{} on {}", one.name, one.service);
        match before.get(&Key::from(one)) {
            None => {
                told.insert(format!("+ {who} {}", one.state));
            }
            Some(was) => {
                if was.state != one.state {
                    told.insert(format!("{who} {} → {}", was.state, one.state));
                }
                if was.weight != one.weight {
                    told.insert(format!("{who} weight {} → {}", was.weight, one.weight));
                }
            }
        }
    }
    let now: BTreeSet<Key> = new.backends.iter().map(Key::from).collect();
    for (_, one) in before.iter().filter(|(key, _)| !now.contains(key)) {
        told.insert(format!("- {} on {} gone", one.name, one.service));
    }
    told
}

#[cfg(test)]
mod tests {
    use super::super::samples::{backend, documents};
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn rates_are_growth_by_time_and_a_fresh_count_is_none() {
        let mut history = History::beginning_with(documents(&[backend("web-1", 10)]), seconds(0));
        assert_eq!((history.rate_of("80/tcp"), history.rate().to_string()), (None, "0".to_owned()));
        history.add(documents(&[backend("web-1", 30), backend("web-2", 99)]), seconds(2));
        assert_eq!(history.rate_of_backend(&backend("web-1", 0)), Some(10.0));
        // It was not there before: how fast it has come to that many is not known.
        assert_eq!(history.rate_of_backend(&backend("web-2", 0)), Some(0.0));
        history.add(documents(&[backend("web-1", 3)]), seconds(4));
        assert_eq!(history.rate_of_backend(&backend("web-1", 0)), Some(0.0));
        assert_eq!(history.rates_of("80/tcp").len(), 2);
        assert_eq!(history.rates_of("81/tcp"), Vec::<f64>::new());
    }

    #[test]
    fn a_services_rate_is_that_of_its_backends() {
        let mut history = History::beginning_with(documents(&[backend("web-1", 10)]), seconds(0));
        history.add(documents(&[backend("web-1", 20), backend("web-2", 10)]), seconds(2));
        assert_eq!(
            (history.rate_of("80/tcp"), history.rate().to_string()),
            (Some(5.0), "5".into())
        );
        history.add(documents(&[backend("web-1", 24), backend("web-2", 20)]), seconds(4));
        assert_eq!(history.rate_of("80/tcp"), Some(7.0));
        // What has come before goes with who goes: that is no decrease.
        history.add(documents(&[backend("web-2", 30)]), seconds(6));
        assert_eq!(history.rate_of("80/tcp"), Some(5.0));
    }

    #[test]
    fn rates_are_kept_as_long_as_there_is_room() {
        let mut history = History::beginning_with(documents(&[backend("web-1", 0)]), seconds(0));
        for second in 1..=600 {
            history.add(documents(&[backend("web-1", second)]), seconds(second));
        }
        assert_eq!(history.rates_of("80/tcp").len(), KEPT_RATES);
    }

    #[test]
    fn what_is_dropped_comes_first_and_then_what_grows_fastest() {
        let with = |counts: [(&str, u64); 4]| {
            let mut documents = documents(&[]);
            let counts = counts.map(|(name, count)| (name.to_owned(), count));
            documents.instance.verdicts = counts.into();
            documents
        };
        let first = [("forward-peer", 10), ("reply", 10), ("not-allowed", 1), ("vlan", 0)];
        let then = [("forward-peer", 20), ("reply", 40), ("not-allowed", 3), ("vlan", 0)];
        let mut history = History::beginning_with(with(first), seconds(0));
        history.add(with(then), seconds(1));
        let all: Vec<_> = history
            .verdicts()
            .iter()
            .map(|one| (one.verdict.name(), one.rate.to_string()))
            .collect();
        let expected = [("not-allowed", "2"), ("reply", "30"), ("forward-peer", "10")];
        assert_eq!(all, expected.map(|(name, rate)| (name, rate.to_owned())));
    }

    #[test]
    fn changes_are_told_once_for_all_addresses_of_a_backend() {
        let both = |state: &str, weight| {
            ["10.0.0.2:80", "[2001:db8::2]:80"].map(|address| Backend {
                address: address.into(),
                state: state.into(),
                weight,
                ..backend("web-1", 0)
            })
        };
        let mut history = History::beginning_with(documents(&both("active", 1)), seconds(0));
        let mut next = documents(&[&both("draining", 3)[..], &[backend("web-2", 0)]].concat());
        next.instance.pid += 1;
        history.add(next, seconds(1));
        history.add(documents(&[]), seconds(2));
        let told: Vec<_> = history.changes.iter().map(|change| change.what.as_str()).collect();
        let pid = documents(&[]).instance.pid;
        assert_eq!(
            told,
            [
                &format!("samport was restarted, pid {pid}"),
                "- web-2 on 80/tcp gone",
                "- web-1 on 80/tcp gone",
                "web-1 on 80/tcp weight 1 → 3",
                "web-1 on 80/tcp active → draining",
                &format!("samport was restarted, pid {}", pid + 1),
                "+ web-2 on 80/tcp active",
            ]
        );
    }
}
