//! From a [`Sample`] to OpenMetrics text. The names and labels stay: dashboards read them.

use std::fmt;

use anyhow::{Context as _, Result};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use samport_common::layout::{Handshakes, Suspicion};

use super::sample::{BackendCounters, NodeSample, Sample, Who};
use crate::model::State;
use crate::system::escape;

/// The first class of `Handshakes` ends at this power of two.
const FIRST_CLASS: usize = 4;
/// Seconds in a unit of `Handshakes`.
const UNIT: f64 = 1.024e-6;

type Written = Result<(), fmt::Error>;
type Labels<const N: usize> = [(&'static str, String); N];

/// The text of a sample.
pub(super) fn of(sample: Sample) -> Result<String> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(sample));
    let mut text = String::new();
    encode(&mut text, &registry).context("cannot write metrics")?;
    Ok(text)
}

impl Collector for Sample {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Written {
        let to = &mut encoder;
        self.backends_as_they_are(to)?;
        self.backends_as_counted(to)?;
        self.failures(to)?;
        self.handshakes(to)?;
        self.verdicts(to)?;
        self.flow_tables(to)?;
        self.discovery(to)?;
        self.nodes(to)?;
        self.control_loop(to)?;
        let mut info =
            to.encode_descriptor("samport_build", "Version of samport.", None, MetricType::Info)?;
        info.encode_info(&[("version", env!("CARGO_PKG_VERSION"))])
    }
}

impl Sample {
    fn backends_as_they_are(&self, to: &mut DescriptorEncoder) -> Written {
        let states = self.backends.iter().flat_map(|(who, backend)| {
            let [service, name] = labels(who);
            State::ALL.map(|state| {
                let is_in = u64::from(backend.states.contains(&state));
                ([service.clone(), name.clone(), ("state", state.name().to_owned())], is_in)
            })
        });
        let help = "1 for the states that the backend's addresses are in, 0 for the others.";
        gauges(to, "samport_backend_state", help, states)?;
        let weights = self.backends.iter().map(|(who, one)| (labels(who), u64::from(one.weight)));
        gauges(to, "samport_backend_weight", "Share relative to the other backends.", weights)
    }

    fn backends_as_counted(&self, to: &mut DescriptorEncoder) -> Written {
        let of = |read: fn(&BackendCounters) -> u64| {
            self.counted().map(move |(labels, counted)| (labels, read(counted)))
        };
        let (name, help) = ("samport_backend_connections", "Open connections.");
        gauges(to, name, help, of(|one| one.open))?;
        // No counter: OpenMetrics calls the family of one by its name without _total, and that is the
        // gauge's already.
        let (name, help) =
            ("samport_backend_connections_total", "Connections sent to the backend so far.");
        let flows = of(|one| one.stats.flows);
        let flows = flows.map(|(labels, count)| (labels, ConstGauge::new(count)));
        family(to.encode_descriptor(name, help, None, MetricType::Unknown)?, flows)?;
        let (name, help) = ("samport_backend_receive", "Bytes of frames sent to the backend.");
        counters(to, name, help, Some(&Unit::Bytes), of(|one| one.stats.bytes_in))?;
        let (name, help) = ("samport_backend_receive_packets", "Packets sent to the backend.");
        counters(to, name, help, None, of(|one| one.stats.packets_in))?;
        let (name, help) =
            ("samport_backend_transmit", "Bytes of frames received from the backend.");
        counters(to, name, help, Some(&Unit::Bytes), of(|one| one.stats.bytes_out))?;
        let (name, help) =
            ("samport_backend_transmit_packets", "Packets received from the backend.");
        counters(to, name, help, None, of(|one| one.stats.packets_out))
    }

    fn failures(&self, to: &mut DescriptorEncoder) -> Written {
        let reasons = self.counted().flat_map(|([service, name], counted)| {
            let stats = counted.stats;
            [
                ("refused", stats.refused),
                ("silent", stats.silent),
                ("unreachable", stats.unreachable),
            ]
            .map(|(reason, count)| {
                ([service.clone(), name.clone(), ("reason", reason.to_owned())], count)
            })
        });
        let help = "Connections that the backend did not accept, by reason.";
        counters(to, "samport_backend_failed_connections", help, None, reasons)?;
        let (name, help) = (
            "samport_backend_failed_connections_for_one_peer",
            "Refused or silent connections whose SYN only one certain peer can answer (TCP-MD5, TCP-AO, MP_JOIN).",
        );
        let for_one_peer = self.counted().map(|(labels, one)| (labels, one.stats.for_one_peer));
        counters(to, name, help, None, for_one_peer)?;
        let results = self.counted().flat_map(|([service, name], counted)| {
            let Suspicion { confirmed, refuted, .. } = counted.suspicion;
            [("confirmed", confirmed), ("refuted", refuted)].map(|(result, count)| {
                ([service.clone(), name.clone(), ("result", result.to_owned())], u64::from(count))
            })
        });
        let help = "Checks made because connections of several clients had failed, by result.";
        counters(to, "samport_backend_evidence_checks", help, None, results)
    }

    fn handshakes(&self, to: &mut DescriptorEncoder) -> Written {
        let (name, help) = (
            "samport_backend_handshake",
            "Time from a client's SYN to the backend's SYN-ACK, measured in the kernel.",
        );
        let unit = Unit::Seconds;
        let mut family = to.encode_descriptor(name, help, Some(&unit), MetricType::Histogram)?;
        for (labels, counted) in self.counted() {
            histogram(&mut family.encode_family(&labels)?, &counted.handshakes)?;
        }
        Ok(())
    }

    fn verdicts(&self, to: &mut DescriptorEncoder) -> Written {
        let of = |(verdict, count): &(samport_common::verdict::Verdict, u64)| {
            ([("verdict", verdict.name().to_owned())], *count)
        };
        let help = "Packets by verdict.";
        counters(to, "samport_verdicts", help, None, self.verdicts.iter().map(of))
    }

    fn nodes(&self, to: &mut DescriptorEncoder) -> Written {
        if self.nodes.is_empty() {
            return Ok(());
        }
        let label = |node: &NodeSample| [("node", node.name.clone())];
        let up = self.nodes.iter().map(|node| (label(node), u64::from(node.is_up)));
        gauges(to, "samport_node_up", "1 while the node answers probes.", up)?;
        let known = self.nodes.iter().filter_map(|node| Some((label(node), node.path_mtu?.into())));
        let help = "Largest IP packet that arrives at the node whole.";
        gauges(to, "samport_node_path_mtu_bytes", help, known)
    }

    fn flow_tables(&self, to: &mut DescriptorEncoder) -> Written {
        let family = |name: &str| [("family", name.to_owned())];
        let flows = self.flows;
        let entries = [(family("ipv4"), flows.left4), (family("ipv6"), flows.left6)];
        let help = "Flows in the table.";
        gauges(to, "samport_flow_table_entries", help, entries.into_iter())?;
        let (most4, most6) = (u64::from(flows.capacity4), u64::from(flows.capacity6));
        let capacity = [(family("ipv4"), most4), (family("ipv6"), most6)];
        let help = "Capacity of the table in flows.";
        gauges(to, "samport_flow_table_capacity", help, capacity.into_iter())?;
        let help = "Half-open connections and datagrams without an answer, in both tables.";
        let none: [(&str, String); 0] = [];
        gauges(
            to,
            "samport_flow_table_unproven",
            help,
            [(none.clone(), flows.unproven)].into_iter(),
        )?;
        let help = "Flows in the overflow tables.";
        gauges(to, "samport_flow_table_overflow", help, [(none, flows.overflow)].into_iter())?;
        let help = "Flows evicted to make room for others.";
        let name = "samport_flow_evictions";
        let evicted = to.encode_descriptor(name, help, None, MetricType::Counter)?;
        ConstCounter::new(flows.evicted).encode(evicted)
    }

    fn discovery(&self, to: &mut DescriptorEncoder) -> Written {
        let label = |name: &'static str| [("provider", name.to_owned())];
        let all = self.providers.iter();
        let connected = all.clone().map(|one| (label(one.name), u64::from(one.is_connected)));
        let help = "1 while the provider reports changes.";
        gauges(to, "samport_discovery_connected", help, connected)?;
        let events = all.clone().map(|one| (label(one.name), one.events));
        let help = "Changes that the provider has reported.";
        counters(to, "samport_discovery_events", help, None, events)?;
        let (name, help) =
            ("samport_discovery_last_sync_timestamp", "Time of the last full listing.");
        let times =
            all.map(|one| (label(one.name), ConstGauge::new(real(one.synced_ms) / 1_000.0)));
        family(to.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Gauge)?, times)
    }

    fn control_loop(&self, to: &mut DescriptorEncoder) -> Written {
        let control = &self.control;
        let rounds = to.encode_descriptor(
            "samport_control_loop_rounds",
            "Rounds in which the kernel was compared with the desired state.",
            None,
            MetricType::Counter,
        )?;
        ConstCounter::new(control.rounds).encode(rounds)?;
        let (name, help) =
            ("samport_control_loop_age", "Time since it last completed a round without an error.");
        let age = to.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Gauge)?;
        ConstGauge::new(real(control.last_round_ms.unwrap_or_default()) / 1_000.0).encode(age)?;
        let reattached = to.encode_descriptor(
            "samport_reattached_programs",
            "Programs attached again after another program had detached them.",
            None,
            MetricType::Counter,
        )?;
        ConstCounter::new(control.reattached).encode(reattached)?;
        let repinned = to.encode_descriptor(
            "samport_restored_pins",
            "Pins made again after another program had removed them.",
            None,
            MetricType::Counter,
        )?;
        ConstCounter::new(control.repinned).encode(repinned)?;
        let left_out = to.encode_descriptor(
            "samport_left_out_containers",
            "Containers that are not served because of a limit, a conflict or a label; `samport status` says why.",
            None,
            MetricType::Gauge,
        )?;
        ConstGauge::new(self.left_out).encode(left_out)?;
        let by_source =
            control.resyncs.iter().map(|(gap, count)| ([("source", gap.clone())], *count));
        let help = "Times something may have been missed, so that everything was looked at again.";
        counters(to, "samport_resyncs", help, None, by_source)
    }

    fn counted(&self) -> impl Iterator<Item = (Labels<2>, &BackendCounters)> {
        let all = self.backends.iter();
        all.filter_map(|(who, backend)| Some((labels(who), backend.counted.as_ref()?)))
    }
}

fn labels(who: &Who) -> Labels<2> {
    let fit = |text: &str| escape::line(text).into_owned();
    [("service", fit(&who.service)), ("backend", fit(&who.backend))]
}

fn gauges<const N: usize>(
    to: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    series: impl Iterator<Item = (Labels<N>, u64)>,
) -> Written {
    let series = series.map(|(labels, value)| (labels, ConstGauge::new(value)));
    family(to.encode_descriptor(name, help, None, MetricType::Gauge)?, series)
}

/// The names have neither the unit at their end nor `_total`.
fn counters<const N: usize>(
    to: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    series: impl Iterator<Item = (Labels<N>, u64)>,
) -> Written {
    let series = series.map(|(labels, value)| (labels, ConstCounter::new(value)));
    family(to.encode_descriptor(name, help, unit, MetricType::Counter)?, series)
}

fn family<const N: usize>(
    mut family: MetricEncoder,
    series: impl Iterator<Item = (Labels<N>, impl EncodeMetric)>,
) -> Written {
    for (labels, metric) in series {
        metric.encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn histogram(to: &mut MetricEncoder, handshakes: &Handshakes) -> Written {
    let last = handshakes.classes.len() - 1;
    let bucket = |(class, count): (usize, &u64)| {
        let end =
            if class == last { f64::INFINITY } else { real(1 << (FIRST_CLASS + class)) * UNIT };
        (end, *count)
    };
    let buckets: Vec<_> = handshakes.classes.iter().enumerate().map(bucket).collect();
    let count = handshakes.classes.iter().sum();
    to.encode_histogram::<NoLabelSet>(real(handshakes.sum) * UNIT, count, &buckets, None)
}

#[allow(
    clippy::cast_precision_loss,
    reason = "exact to 2^53, which is more digits than anyone reads"
)]
fn real(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests;
