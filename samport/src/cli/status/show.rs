//! The status as people read it. Pure.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use samport_common::verdict::{Action, Verdict};

use super::super::table::{Column, LEFT, RIGHT, number, table, text as or_dash};
use super::super::units::{bytes, time};
use crate::api::types::{
    ControlLoop, Instance, InstanceNode, Limits, MapUse, Privileges, ServiceCount,
};
use crate::control::progress;

/// New connections a second, by the names of instance and service.
pub(super) type Rates = BTreeMap<(String, String), f64>;

/// A service in its place.
struct Row {
    interfaces: String,
    service: ServiceCount,
    rate: Option<f64>,
    drops: Option<u64>,
}

const NARROW: [Column<Row>; 7] = [
    ("SERVICE", LEFT, name),
    ("LISTEN", LEFT, listen),
    ("BALANCE", LEFT, |row| row.service.balance.clone()),
    ("BACKENDS", LEFT, |row| counted(&row.service)),
    ("FLOWS", RIGHT, |row| number(Some(row.service.open))),
    ("CONN/S", RIGHT, |row| or_dash(row.rate.map(|rate| format!("{rate:.1}")))),
    ("DROPS", RIGHT, |row| number(row.drops)),
];

const WIDER: [Column<Row>; 3] = [
    ("TOTAL", RIGHT, |row| number(Some(row.service.flows))),
    ("REFUSED", RIGHT, |row| number(Some(row.service.refused))),
    ("SILENT", RIGHT, |row| number(Some(row.service.silent))),
];

/// A node, and for how long it has been as it is.
struct NodeRow {
    node: InstanceNode,
    state: String,
}

const NODES: [Column<NodeRow>; 5] = [
    ("NODE", LEFT, |row| row.node.name.clone()),
    ("TUNNEL", LEFT, |row| row.node.address.to_string()),
    ("STATE", LEFT, |row| row.state.clone()),
    ("PATH MTU", RIGHT, |row| number(row.node.path_mtu.map(u64::from))),
    ("READY", LEFT, |row| ready(&row.node)),
];

const MAPS: [Column<MapUse>; 3] = [
    ("MAP", LEFT, |map| map.name.clone()),
    ("ENTRIES", RIGHT, |map| number(Some(map.entries.into()))),
    ("MEMORY", RIGHT, |map| bytes(map.bytes)),
];

/// An instance; `now` is the time since 1970.
pub(super) fn text(instance: &Instance, rates: &Rates, now: Duration, wide: bool) -> String {
    let mut text = format!("{} ({})\n", instance.name, run_state(instance, now));
    if let Some(trouble) = progress::trouble(&instance.control_loop) {
        let _ = writeln!(text, "  {trouble}");
    }
    let rate = |service: &ServiceCount| {
        rates.get(&(instance.name.clone(), service.service.clone())).copied()
    };
    // The kernel counts what it drops by its reason: whose it was is known if there is but one service.
    let drops = (instance.services.len() == 1).then_some(instance.drops);
    let row = |service: &ServiceCount| Row {
        interfaces: instance.interfaces.join(","),
        rate: rate(service),
        service: service.clone(),
        drops,
    };
    let rows: Vec<Row> = instance.services.iter().map(row).collect();
    let columns = if wide { &[&NARROW[..], &WIDER[..]].concat() } else { &NARROW[..] };
    indent(&mut text, &table(&rows, columns));
    if let Some(own) = &instance.node {
        let drained = if instance.node_drained { ", drained" } else { "" };
        let _ = writeln!(text, "  this node: {own}{drained}; others: {}", instance.nodes.len());
        let row =
            |node: &InstanceNode| NodeRow { node: node.clone(), state: node_state(node, now) };
        let rows: Vec<_> = instance.nodes.iter().map(row).collect();
        if !rows.is_empty() {
            indent(&mut text, &table(&rows, &NODES));
        }
    }
    for sentence in &instance.left_out {
        let _ = writeln!(text, "  warning: {sentence}");
    }
    let flows = &instance.flow_table;
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "  flows: {} of {} for IPv4, {} of {} for IPv6; {} evicted",
        flows.ipv4, flows.capacity, flows.ipv6, flows.capacity6, flows.evicted
    );
    if wide || flows.overflow != 0 {
        let _ = writeln!(
            text,
            "  half-open or unanswered: {}; in the overflow tables: {}",
            flows.unproven, flows.overflow
        );
    }
    if wide {
        let _ = writeln!(text, "  {}", limits(&instance.limits));
        if !instance.hash_seed_file.is_empty() {
            let _ = writeln!(text, "  hash seed: {}", instance.hash_seed_file);
        }
        if let Some(privileges) = &instance.privileges {
            let _ = writeln!(text, "  {}", may(privileges));
        }
        let _ = writeln!(text, "  {}", control_loop(&instance.control_loop));
        let (memory, maps) = (bytes(instance.memory_bytes), instance.maps.len());
        let _ = writeln!(text, "  memory: {memory} locked for {maps} kernel maps");
        indent(&mut text, &table(&instance.maps, &MAPS));
    }
    verdicts(&mut text, instance);
    text
}

fn indent(text: &mut String, lines: &str) {
    for line in lines.lines() {
        let _ = writeln!(text, "  {line}");
    }
}

fn run_state(instance: &Instance, now: Duration) -> String {
    if !instance.running {
        return "not running; the kernel keeps forwarding until `samport clean`".to_owned();
    }
    // It has its name, and has not said yet what it is going to serve.
    if instance.pid == 0 {
        return "starting".to_owned();
    }
    let started = Duration::from_millis(instance.started_ms);
    let up = (!started.is_zero()).then(|| format!(", up {}", time(now.saturating_sub(started))));
    let local = if instance.local { "local clients too" } else { "no local clients" };
    format!("pid {}, {}{}, {local}", instance.pid, instance.hook, up.unwrap_or_default())
}

fn name(row: &Row) -> String {
    let port = || row.service.service.trim_end_matches("/tcp").to_owned();
    row.service.service_name.clone().unwrap_or_else(port)
}

fn node_state(node: &InstanceNode, now: Duration) -> String {
    let state = match (node.up, node.drained) {
        (true, false) => "up",
        (true, true) => "drained",
        (false, _) => "down",
    };
    match node.since_ms {
        0 => state.to_owned(),
        since => format!("{state} {}", time(now.saturating_sub(Duration::from_millis(since)))),
    }
}

/// A node's ready containers by port.
fn ready(node: &InstanceNode) -> String {
    let one = |(port, count): (&String, &u32)| format!("{}={count}", port.trim_end_matches("/tcp"));
    let all: Vec<_> = node.services.iter().map(one).collect();
    if all.is_empty() { "-".to_owned() } else { all.join(" ") }
}

/// A port of all addresses is dialled on the interfaces.
fn listen(row: &Row) -> String {
    let service = &row.service.service;
    if service.contains(':') {
        return service.clone();
    }
    format!("{}:{service}", row.interfaces)
}

/// How many of them take new flows, and what the others do.
pub(in super::super) fn counted(service: &ServiceCount) -> String {
    let ServiceCount { backends, active, draining, unhealthy, starting, .. } = *service;
    let others = [(draining, "drain"), (unhealthy, "unhealthy"), (starting, "starting")];
    let others = others.into_iter().filter(|(count, _)| *count > 0);
    let others: Vec<_> = others.map(|(count, word)| format!("{count} {word}")).collect();
    let others =
        if others.is_empty() { String::new() } else { format!(" ({})", others.join(", ")) };
    format!("{active}/{backends}{others}")
}

fn limits(limits: &Limits) -> String {
    let times = [
        ("tcp", limits.tcp_seconds),
        ("tcp-syn", limits.tcp_syn_seconds),
        ("tcp-fin", limits.tcp_fin_seconds),
        ("tcp-rst", limits.tcp_rst_seconds),
        ("udp", limits.udp_seconds),
        ("udp-unanswered", limits.udp_unanswered_seconds),
        ("drain", limits.drain_seconds),
    ];
    let times = times.map(|(name, seconds)| {
        let time = humantime::format_duration(Duration::from_secs(seconds)).to_string();
        format!("{name} {}", time.replace(' ', ""))
    });
    let Limits { flows, flows6, unproven, unproven6, service_share, max_backends, .. } = limits;
    let of_ipv6 =
        if unproven6 == unproven { String::new() } else { format!(" ({unproven6} for IPv6)") };
    format!(
        "limits: {flows} flows for IPv4, {flows6} for IPv6, {unproven}{of_ipv6} half-open or unanswered, \
         {service_share} % for a service when others need room, {max_backends} backends; {}",
        times.join(", ")
    )
}

fn may(privileges: &Privileges) -> String {
    let Privileges { user, capabilities, landlock_abi, seccomp, sandbox_off, .. } = privileges;
    let capabilities =
        if capabilities.is_empty() { "no capability".to_owned() } else { capabilities.join(" ") };
    if *sandbox_off {
        return format!("privileges: user {user}, {capabilities}; sandbox off (--sandbox off)");
    }
    let landlock = landlock_abi.map_or("off".to_owned(), |abi| format!("ABI {abi}"));
    let seccomp = if *seccomp { "on" } else { "off" };
    format!("privileges: user {user}, {capabilities}; Landlock {landlock}, seccomp {seccomp}")
}

fn control_loop(control: &ControlLoop) -> String {
    let missed = control.resyncs.iter().filter(|(_, count)| **count > 0);
    let missed: Vec<_> = missed.map(|(gap, count)| format!("{gap} {count}")).collect();
    let missed = if missed.is_empty() { "none".to_owned() } else { missed.join(", ") };
    let ControlLoop { rounds, reattached, repinned, .. } = control;
    format!(
        "control loop: {rounds} rounds; resyncs: {missed}; programs attached again: {reattached}; pins made \
         again: {repinned}"
    )
}

fn verdicts(text: &mut String, instance: &Instance) {
    let _ = writeln!(text, "  {:<24} {:>14}", "VERDICT", "PACKETS");
    for verdict in Verdict::ALL {
        let count = instance.verdicts.get(verdict.name()).copied().unwrap_or(0);
        if count > 0 {
            let dropped = if verdict.action() == Action::Drop { "dropped: " } else { "" };
            let (name, meaning) = (verdict.name(), verdict.meaning());
            let _ = writeln!(text, "  {name:<24} {count:>14}  {dropped}{meaning}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::{FlowTable, SCHEMA, Status};
    use crate::model::snapshots::Pages;

    fn service(port: &str) -> ServiceCount {
        ServiceCount {
            service: port.into(),
            balance: "random".into(),
            backends: 4,
            active: 3,
            draining: 1,
            open: 1_204,
            flows: 91_822,
            refused: 7,
            ..ServiceCount::default()
        }
    }

    fn instance() -> Instance {
        Instance {
            name: "eth0:80@1".into(),
            running: true,
            pid: 42,
            started_ms: 1_000_000,
            interfaces: vec!["eth0".into()],
            hook: "tcx".into(),
            privileges: Some(Privileges {
                user: "samport".into(),
                capabilities: vec!["CAP_BPF".into(), "CAP_NET_ADMIN".into()],
                landlock_abi: Some(7),
                seccomp: true,
                sandbox_off: false,
                missing: Vec::new(),
            }),
            services: vec![ServiceCount {
                service_name: Some("shop/web".into()),
                ..service("80/tcp")
            }],
            verdicts: [("forward-peer".into(), 99), ("not-allowed".into(), 3), ("reply".into(), 0)]
                .into(),
            drops: 3,
            hash_seed_file: "/somewhere/seed".into(),
            limits: Limits { flows: 1_024, tcp_seconds: 7_500, ..Limits::default() },
            memory_bytes: 33_554_432,
            maps: vec![MapUse { name: "FLOWS4".into(), entries: 1_024, bytes: 1_048_576 }],
            ..Instance::default()
        }
    }

    fn words(text: &str, begin: &str) -> Vec<String> {
        let line = text.lines().find(|line| line.trim_start().starts_with(begin));
        let line = line.unwrap_or_else(|| panic!("no {begin} in\n{text}"));
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn a_service_is_a_line_under_its_heads() {
        let rates = [(("eth0:80@1".to_owned(), "80/tcp".to_owned()), 87.06)].into();
        let text = text(&instance(), &rates, Duration::from_secs(1_125), false);
        assert!(text.starts_with("eth0:80@1 (pid 42, tcx, up 2min, no local clients)\n"), "{text}");
        let heads = ["SERVICE", "LISTEN", "BALANCE", "BACKENDS", "FLOWS", "CONN/S", "DROPS"];
        assert_eq!(words(&text, "SERVICE"), heads);
        let line =
            ["shop/web", "eth0:80/tcp", "random", "3/4", "(1", "drain)", "1204", "87.1", "3"];
        assert_eq!(words(&text, "shop/web"), line);
        assert_eq!(words(&text, "not-allowed")[..3], ["not-allowed", "3", "dropped:"]);
        assert!(text.contains("forward-peer") && !text.contains("  reply "), "{text}");
        assert!(!text.contains("limits:") && !text.contains("FLOWS4"), "{text}");
    }

    #[test]
    fn wide_has_limits_and_memory_too() {
        let text = text(&instance(), &Rates::new(), Duration::ZERO, true);
        let line = words(&text, "shop/web");
        assert_eq!(line[line.len() - 5..], ["-", "3", "91822", "7", "0"], "{text}");
        for part in [
            "1024 flows",
            "tcp 2h5m",
            "hash seed: /somewhere/seed\n",
            "privileges: user samport, CAP_BPF CAP_NET_ADMIN; Landlock ABI 7, seccomp on\n",
            "32.0 MiB locked for 1",
            "FLOWS4     1024  1.0 MiB",
        ] {
            assert!(text.contains(part), "no {part} in\n{text}");
        }
    }

    #[test]
    fn a_sandbox_that_was_turned_off_is_said_to_be_off() {
        let mut instance = instance();
        let privileges = instance.privileges.as_mut().unwrap();
        (privileges.landlock_abi, privileges.seccomp, privileges.sandbox_off) = (None, false, true);
        let text = text(&instance, &Rates::new(), Duration::ZERO, true);
        assert!(text.contains("CAP_NET_ADMIN; sandbox off (--sandbox off)\n"), "{text}");
    }

    #[test]
    fn of_several_services_nobody_knows_whose_the_drops_were() {
        let mut instance = instance();
        instance.services = vec![service("80/tcp"), service("192.0.2.1:53/udp")];
        let text = text(&instance, &Rates::new(), Duration::ZERO, false);
        assert_eq!(words(&text, "80 ").last().map(String::as_str), Some("-"), "{text}");
        assert_eq!(words(&text, "192.0.2.1:53/udp")[1], "192.0.2.1:53/udp");
    }

    #[test]
    fn what_was_left_behind_says_so() {
        let left = Instance { running: false, ..instance() };
        let text = text(&left, &Rates::new(), Duration::ZERO, false);
        assert!(text.contains("not running") && text.contains("clean"), "{text}");
    }

    #[test]
    fn the_status_is_as_it_was() {
        let mut pages = Pages::default();
        let rates = [(("eth0:80@1".to_owned(), "80/tcp".to_owned()), 87.06)].into();
        let now = Duration::from_secs(1_125);
        pages.add("samport status", &text(&instance(), &rates, now, false));
        pages.add("samport status -o wide", &text(&instance(), &rates, now, true));
        let several = vec![service("80/tcp"), service("192.0.2.1:53/udp")];
        let trouble = ControlLoop { last_round_ms: Some(45_000), ..ControlLoop::default() };
        let troubled = Instance {
            services: several,
            local: true,
            left_out: vec!["web-9 is left out on port 80: too many".into()],
            flow_table: FlowTable { overflow: 3, unproven: 9, ..FlowTable::default() },
            control_loop: trouble,
            ..instance()
        };
        pages.add("samport status (with trouble)", &text(&troubled, &Rates::new(), now, false));
        let node = |name: &str, up| InstanceNode {
            name: name.into(),
            address: "192.0.2.2:6080".parse().unwrap(),
            up,
            drained: false,
            since_ms: 1_000_000,
            path_mtu: up.then_some(1_450),
            services: [("80/tcp".into(), 3), ("53/udp".into(), 0)].into(),
        };
        let unknown =
            InstanceNode { since_ms: 0, services: [].into(), ..node("a-third-node", true) };
        let drained = InstanceNode { drained: true, ..node("n4", true) };
        let nodes = vec![node("n2", true), node("n3", false), drained, unknown];
        let of_cluster =
            Instance { node: Some("n1".into()), node_drained: true, nodes, ..instance() };
        let shown = text(&of_cluster, &Rates::new(), now, false);
        pages.add("samport status (with a cluster)", &shown);
        pages.add_json("samport status -o json (with a cluster)", &of_cluster.nodes);
        let starting = Instance { pid: 0, ..Instance { running: true, ..Instance::default() } };
        pages.add("samport status (while it starts)", &text(&starting, &Rates::new(), now, false));
        let left = Instance { running: false, services: Vec::new(), ..instance() };
        pages.add("samport status (killed)", &text(&left, &Rates::new(), now, false));
        let all = Status { schema: SCHEMA, instances: vec![instance()] };
        pages.add_json("samport status -o json", &all);
        pages.assert("status");
    }
}
