use std::collections::BTreeSet;

use samport_common::layout::{BackendStats, Suspicion};
use samport_common::verdict::Verdict;

use super::super::sample::{BackendSample, NodeSample, Provider};
use super::*;
use crate::api::types::ControlLoop;
use crate::dataplane::inspect::Flows;
use crate::model::snapshots::Pages;

fn sample() -> Sample {
    let mut handshakes = Handshakes { classes: [0; 16], sum: 1_000_000 };
    (handshakes.classes[0], handshakes.classes[2], handshakes.classes[15]) = (5, 2, 1);
    let stats = BackendStats {
        flows: 8,
        packets_in: 30,
        bytes_in: 3_000,
        packets_out: 20,
        bytes_out: 20_000,
        refused: 2,
        silent: 3,
        unreachable: 4,
        for_one_peer: 1,
    };
    let suspicion = Suspicion { confirmed: 5, refuted: 6, ..Suspicion::default() };
    let serving = BackendSample {
        states: [State::Active].into(),
        weight: 3,
        counted: Some(BackendCounters { open: 2, stats, handshakes, suspicion }),
    };
    let starting = BackendSample { states: [State::Starting].into(), weight: 1, counted: None };
    let who = |backend: &str| Who { service: "80/tcp".into(), backend: backend.into() };
    Sample {
        backends: [(who("web-1"), serving), (who("a \"b\"\\c"), starting)].into(),
        verdicts: vec![(Verdict::ForwardPeer, 30), (Verdict::NotAllowed, 0)],
        flows: Flows {
            capacity4: 1_000,
            capacity6: 2_000,
            left4: 4,
            left6: 6,
            evicted: 7,
            ..Flows::default()
        },
        providers: vec![Provider {
            name: "docker",
            is_connected: true,
            events: 9,
            synced_ms: 1_700_000_000_500,
        }],
        nodes: vec![
            NodeSample { name: "n2".into(), is_up: true, path_mtu: Some(1_450) },
            NodeSample { name: "n3".into(), is_up: false, path_mtu: None },
        ],
        left_out: 5,
        control: ControlLoop {
            rounds: 11,
            last_round_ms: Some(1_250),
            reattached: 3,
            repinned: 4,
            resyncs: [("netlink".to_owned(), 12)].into(),
            ..ControlLoop::default()
        },
    }
}

#[test]
fn every_name_of_the_contract_is_there_with_its_value() {
    const FAILED: &str = "samport_backend_failed_connections_total";
    const CHECKS: &str = "samport_backend_evidence_checks_total";
    let text = of(sample()).unwrap();
    let of_web = r#"{service="80/tcp",backend="web-1"}"#;
    for (name, labels, value) in [
        ("samport_backend_connections_total", of_web, "8"),
        ("samport_backend_connections", of_web, "2"),
        ("samport_backend_receive_bytes_total", of_web, "3000"),
        ("samport_backend_receive_packets_total", of_web, "30"),
        ("samport_backend_transmit_bytes_total", of_web, "20000"),
        ("samport_backend_transmit_packets_total", of_web, "20"),
        (FAILED, r#"{service="80/tcp",backend="web-1",reason="refused"}"#, "2"),
        (FAILED, r#"{service="80/tcp",backend="web-1",reason="silent"}"#, "3"),
        (FAILED, r#"{service="80/tcp",backend="web-1",reason="unreachable"}"#, "4"),
        ("samport_backend_failed_connections_for_one_peer_total", of_web, "1"),
        (CHECKS, r#"{service="80/tcp",backend="web-1",result="confirmed"}"#, "5"),
        (CHECKS, r#"{service="80/tcp",backend="web-1",result="refuted"}"#, "6"),
        ("samport_backend_state", r#"{service="80/tcp",backend="web-1",state="active"}"#, "1"),
        ("samport_backend_state", r#"{service="80/tcp",backend="web-1",state="draining"}"#, "0"),
        ("samport_backend_weight", of_web, "3"),
        ("samport_backend_handshake_seconds_sum", of_web, "1.024"),
        ("samport_backend_handshake_seconds_count", of_web, "8"),
        ("samport_verdicts_total", r#"{verdict="forward-peer"}"#, "30"),
        ("samport_verdicts_total", r#"{verdict="not-allowed"}"#, "0"),
        ("samport_flow_table_entries", r#"{family="ipv6"}"#, "6"),
        ("samport_flow_table_capacity", r#"{family="ipv4"}"#, "1000"),
        ("samport_flow_table_capacity", r#"{family="ipv6"}"#, "2000"),
        ("samport_flow_evictions_total", "", "7"),
        ("samport_discovery_connected", r#"{provider="docker"}"#, "1"),
        ("samport_discovery_events_total", r#"{provider="docker"}"#, "9"),
        ("samport_discovery_last_sync_timestamp_seconds", r#"{provider="docker"}"#, "1700000000.5"),
        ("samport_node_up", r#"{node="n2"}"#, "1"),
        ("samport_node_up", r#"{node="n3"}"#, "0"),
        ("samport_node_path_mtu_bytes", r#"{node="n2"}"#, "1450"),
        ("samport_control_loop_rounds_total", "", "11"),
        ("samport_control_loop_age_seconds", "", "1.25"),
        ("samport_reattached_programs_total", "", "3"),
        ("samport_restored_pins_total", "", "4"),
        ("samport_left_out_containers", "", "5"),
        ("samport_resyncs_total", r#"{source="netlink"}"#, "12"),
        ("samport_build_info", concat!("{version=\"", env!("CARGO_PKG_VERSION"), "\"}"), "1"),
    ] {
        let line = format!("{name}{labels} {value}");
        assert!(text.lines().any(|one| one == line), "no {line:?} in\n{text}");
    }
    assert!(text.ends_with("# EOF\n"), "{text}");
}

#[test]
fn handshakes_add_up_over_their_classes() {
    let text = of(sample()).unwrap();
    let buckets: Vec<(f64, u64)> = text
        .lines()
        .filter(|line| line.starts_with("samport_backend_handshake_seconds_bucket"))
        .map(|line| {
            let (_, rest) = line.split_once("le=\"").unwrap();
            let (end, rest) = rest.split_once('"').unwrap();
            let (_, count) = rest.split_once(' ').unwrap();
            (end.parse().unwrap(), count.parse().unwrap())
        })
        .collect();
    assert_eq!(buckets.len(), 16, "{text}");
    // 16 units of 1.024 µs, doubled 14 times.
    assert!((buckets[0].0 - 16.384e-6).abs() < 1e-12, "{buckets:?}");
    assert!((buckets[14].0 - 0.268_435_456).abs() < 1e-9, "{buckets:?}");
    assert!(buckets[15].0.is_infinite(), "{buckets:?}");
    assert!(buckets.windows(2).all(|pair| pair[0].0 < pair[1].0), "{buckets:?}");
    let counts: Vec<_> = buckets.iter().map(|(_, count)| *count).collect();
    assert_eq!([counts[0], counts[1], counts[2], counts[14], counts[15]], [5, 5, 7, 7, 8]);
}

#[test]
fn who_is_not_in_the_kernel_yet_is_not_counted_and_strange_names_are_escaped() {
    let text = of(sample()).unwrap();
    let name = r#"backend="a \"b\"\\c""#;
    let of_it: Vec<_> = text.lines().filter(|line| line.contains(name)).collect();
    assert_eq!(of_it.len(), State::ALL.len() + 1, "{text}");
    assert!(of_it.iter().all(|line| !line.contains("connections")), "{of_it:?}");
}

/// The Grafana dashboard asks for nothing that is not there, and leaves nothing out but the sums that come with a
/// histogram.
#[test]
fn the_dashboard_shows_every_metric_and_no_other() {
    let dashboard = include_str!("../../../../../dist/grafana/samport.json");
    let dashboard: serde_json::Value = serde_json::from_str(dashboard).unwrap();
    let mut shown = BTreeSet::new();
    names_in(&dashboard, &mut shown);
    let text = of(sample()).unwrap();
    let series = text.lines().filter(|line| !line.starts_with('#'));
    let exported: BTreeSet<String> = series
        .filter_map(|line| line.split(['{', ' ']).next())
        .filter(|name| !name.ends_with("_seconds_sum") && !name.ends_with("_seconds_count"))
        .map(str::to_owned)
        .collect();
    assert_eq!(shown, exported);
}

/// The names of metrics in all that is asked for.
fn names_in(value: &serde_json::Value, found: &mut BTreeSet<String>) {
    for asked in [&value["expr"], &value["query"]].into_iter().filter_map(|asked| asked.as_str()) {
        let words = asked.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        found.extend(words.filter(|word| word.starts_with("samport_")).map(str::to_owned));
    }
    let parts = value.as_array().into_iter().flatten();
    let fields = value.as_object().into_iter().flatten().map(|(_, field)| field);
    parts.chain(fields).for_each(|part| names_in(part, found));
}

#[test]
fn the_metrics_are_as_they_were() {
    let text = of(sample()).unwrap().replace(env!("CARGO_PKG_VERSION"), "VERSION");
    let mut pages = Pages::default();
    pages.add("GET /metrics", &text);
    pages.assert("metrics");
}
