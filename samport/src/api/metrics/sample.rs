//! What a scrape finds: read from the kernel's maps, and from what the loop shows.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use samport_common::layout::{BackendStats, Handshakes, Suspicion};
use samport_common::verdict::Verdict;

use super::MetricsSource;
use crate::api::types::ControlLoop;
use crate::cluster::{Node, NodeList};
use crate::control::handle::{BackendView, ControlView};
use crate::dataplane::inspect::{Counters, Flows};
use crate::model::State;

/// The kernel's numbers at one moment, and how the providers are doing.
#[derive(Clone, Default, Debug)]
pub(super) struct Sample {
    pub(super) backends: BTreeMap<Who, BackendSample>,
    pub(super) verdicts: Vec<(Verdict, u64)>,
    pub(super) flows: Flows,
    pub(super) providers: Vec<Provider>,
    pub(super) nodes: Vec<NodeSample>,
    pub(super) control: ControlLoop,
    pub(super) left_out: u64,
}

/// A backend by its service and its name. All its addresses are one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Who {
    pub(super) service: String,
    pub(super) backend: String,
}

/// A backend.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct BackendSample {
    /// Those its addresses are in.
    pub(super) states: BTreeSet<State>,
    pub(super) weight: u32,
    /// Nothing before the kernel has it.
    pub(super) counted: Option<BackendCounters>,
}

/// What the kernel has counted of a backend.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct BackendCounters {
    pub(super) open: u64,
    pub(super) stats: BackendStats,
    pub(super) handshakes: Handshakes,
    pub(super) suspicion: Suspicion,
}

/// Where backends come from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Provider {
    pub(super) name: &'static str,
    pub(super) is_connected: bool,
    pub(super) events: u64,
    pub(super) synced_ms: u64,
}

/// Another node.
#[derive(Clone, Debug)]
pub(super) struct NodeSample {
    pub(super) name: String,
    pub(super) is_up: bool,
    pub(super) path_mtu: Option<u16>,
}

impl Sample {
    /// Looks.
    pub(super) fn take(source: &MetricsSource) -> Result<Self> {
        let counters = Counters::open(&source.instance)?;
        let counted = |index| {
            Ok(BackendCounters {
                open: counters.open_flows(index)?,
                stats: counters.backend(index)?,
                handshakes: counters.handshakes(index)?,
                suspicion: counters.suspicion(index)?,
            })
        };
        let verdicts = Verdict::ALL.iter().copied().zip(counters.verdicts.iter().copied());
        let providers = source.providers.iter().map(|status| Provider {
            name: status.provider(),
            is_connected: status.is_connected(),
            events: status.events(),
            synced_ms: status.synced_ms(),
        });
        let view = source.control.view();
        Ok(Self {
            left_out: view.left_out,
            backends: backends(&view, counted)?,
            verdicts: verdicts.collect(),
            flows: counters.flows,
            providers: providers.collect(),
            nodes: nodes(&source.nodes),
            control: source.progress.shown(),
        })
    }
}

fn nodes(list: &NodeList) -> Vec<NodeSample> {
    let healths = list.health();
    let sample = |node: Node| {
        let health = healths.get(&node.address);
        NodeSample {
            name: node.name,
            is_up: health.is_none_or(|health| health.up),
            path_mtu: health.and_then(|health| health.path_mtu),
        }
    };
    list.current().into_iter().map(sample).collect()
}

fn backends(
    view: &ControlView,
    counted: impl Fn(u32) -> Result<BackendCounters>,
) -> Result<BTreeMap<Who, BackendSample>> {
    let mut all: BTreeMap<Who, BackendSample> = BTreeMap::new();
    for one in &view.backends {
        let counted = one.index.map(&counted).transpose()?;
        let who = Who { service: one.backend_ref.listen.to_string(), backend: one.name.clone() };
        all.entry(who).or_default().take_in(one, counted);
    }
    Ok(all)
}

impl BackendSample {
    fn take_in(&mut self, one: &BackendView, counted: Option<BackendCounters>) {
        self.states.insert(one.state);
        self.weight = self.weight.max(one.weight);
        if let Some(counted) = counted {
            self.counted.get_or_insert_default().add(&counted);
        }
    }
}

impl BackendCounters {
    fn add(&mut self, other: &Self) {
        self.open += other.open;
        let (stats, more) = (&mut self.stats, other.stats);
        stats.flows += more.flows;
        stats.packets_in += more.packets_in;
        stats.bytes_in += more.bytes_in;
        stats.packets_out += more.packets_out;
        stats.bytes_out += more.bytes_out;
        stats.refused += more.refused;
        stats.silent += more.silent;
        stats.unreachable += more.unreachable;
        stats.for_one_peer += more.for_one_peer;
        self.suspicion.confirmed += other.suspicion.confirmed;
        self.suspicion.refuted += other.suspicion.refuted;
        let (handshakes, more) = (&mut self.handshakes, other.handshakes);
        for (class, count) in handshakes.classes.iter_mut().zip(more.classes) {
            *class += count;
        }
        handshakes.sum += more.sum;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::NodeHealth;
    use crate::control::handle::BackendRef;
    use crate::model::ports::Listen;

    fn seated(name: &str, endpoint: &str, index: Option<u32>, state: State) -> BackendView {
        let endpoint = endpoint.parse().unwrap();
        BackendView {
            backend_ref: BackendRef { listen: Listen::tcp(80), id: name.into(), endpoint },
            name: name.into(),
            service: None,
            group: None,
            weight: 2,
            state,
            node: None,
            via: None,
            route_back: None,
            index,
            drains_until: None,
            is_last: false,
        }
    }

    fn suspicion(confirmed: u64, refuted: u64) -> Suspicion {
        let [confirmed, refuted] = [confirmed, refuted].map(|count| u32::try_from(count).unwrap());
        Suspicion { confirmed, refuted, ..Suspicion::default() }
    }

    #[test]
    fn a_node_of_a_cluster_is_up_until_it_does_not_answer() {
        let node = |name: &str, last| Node {
            name: name.into(),
            address: [192, 0, 2, last].into(),
            port: 6_080,
            services: BTreeMap::new(),
        };
        let since = std::time::SystemTime::UNIX_EPOCH;
        let health = NodeHealth { up: false, drains: true, path_mtu: Some(1_400), since };
        let healths = [([192, 0, 2, 2].into(), health)].into();
        let list = NodeList::fixed(vec![node("n2", 2), node("n3", 3)], healths);
        let seen = nodes(&list);
        let seen: Vec<_> =
            seen.iter().map(|one| (one.name.as_str(), one.is_up, one.path_mtu)).collect();
        assert_eq!(seen, [("n2", false, Some(1_400)), ("n3", true, None)]);
    }

    #[test]
    fn all_addresses_of_a_backend_are_one() {
        let view = ControlView {
            backends: vec![
                seated("web-1", "10.0.0.2:80", Some(10), State::Active),
                seated("web-1", "[2001:db8::2]:80", Some(100), State::Draining),
                seated("web-2", "10.0.0.3:80", None, State::Starting),
            ],
            ..ControlView::default()
        };
        let counted = |index: u32| {
            let index = u64::from(index);
            let stats = BackendStats {
                flows: index,
                packets_in: index + 1,
                bytes_in: index + 2,
                packets_out: index + 3,
                bytes_out: index + 4,
                refused: index + 5,
                silent: index + 6,
                unreachable: index + 9,
                for_one_peer: index + 10,
            };
            let handshakes = Handshakes { classes: [index; 16], sum: index + 7 };
            let suspicion = suspicion(index, index + 1);
            Ok(BackendCounters { open: index + 8, stats, handshakes, suspicion })
        };
        let all = backends(&view, counted).unwrap();
        let names: Vec<_> = all.keys().map(|who| who.backend.as_str()).collect();
        assert_eq!(names, ["web-1", "web-2"]);
        let [both, none] = all.values().collect::<Vec<_>>()[..] else { panic!("{all:?}") };
        assert_eq!(both.states, BTreeSet::from([State::Active, State::Draining]));
        assert_eq!(both.weight, 2);
        let sums = BackendStats {
            flows: 110,
            packets_in: 112,
            bytes_in: 114,
            packets_out: 116,
            bytes_out: 118,
            refused: 120,
            silent: 122,
            unreachable: 128,
            for_one_peer: 130,
        };
        let handshakes = Handshakes { classes: [110; 16], sum: 124 };
        let suspicion = suspicion(110, 112);
        assert_eq!(
            both.counted,
            Some(BackendCounters { open: 126, stats: sums, handshakes, suspicion })
        );
        assert_eq!((none.counted, &none.states), (None, &BTreeSet::from([State::Starting])));
    }
}
