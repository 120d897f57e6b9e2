//! `samport backends`: the backends with state, weight and counts.

use anyhow::Result;

use super::connection::Connection;
use super::output::{Output, print_json, say};
use super::table::{Column, LEFT, RIGHT, number, table};
use crate::api::left_behind;
use crate::api::types::{Backend, Backends};
use crate::dataplane::pins;
use crate::system::exit::{Exit, code_of, coded};
use crate::system::instance;
use crate::system::privileges;

/// Options of `samport backends`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Choose the format
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
    #[command(flatten)]
    connection: Connection,
}

/// Shows the backends of a running samport; if none runs, of one that has left them in the kernel.
pub async fn run(args: Args) -> Result<()> {
    let all = match ask(&args.connection).await {
        Err(error) if code_of(&error) == Exit::Unreachable => match leftover(&args.connection)? {
            Some(name) => left_behind(&name)?,
            None => return Err(error),
        },
        asked => asked?,
    };
    match args.output {
        Output::Json => print_json(&all)?,
        Output::Table => say(&table(&all.backends, &NARROW)),
        Output::Wide => say(&table(&all.backends, &[&NARROW[..], &WIDER[..]].concat())),
    }
    if !all.running {
        tracing::warn!(
            "{}: samport is not running; the kernel keeps forwarding with its last state. `samport run` takes \
             over",
            all.instance
        );
    }
    Ok(())
}

async fn ask(connection: &Connection) -> Result<Backends> {
    connection.client()?.get("/v1/backends").await
}

/// The instance that was killed and is meant: the named one, or the only one of this network
/// namespace.
fn leftover(connection: &Connection) -> Result<Option<String>> {
    privileges::require()?;
    let here = instance::network_namespace()?;
    let is_here =
        |name: &String| instance::read_record(name).is_ok_and(|record| record.namespace == here);
    let mut names = pins::instances();
    names.retain(|name| connection.may_mean(name) && is_here(name));
    if names.len() > 1 {
        let message = format!(
            "several killed samports were found; choose one with --instance: {}",
            names.join(", ")
        );
        return Err(coded(Exit::Usage, message));
    }
    Ok(names.pop())
}

const NARROW: [Column<Backend>; 10] = [
    ("SERVICE", LEFT, service),
    ("BACKEND", LEFT, name),
    ("ADDRESS", LEFT, |one| one.address.clone()),
    ("STATE", LEFT, state),
    ("WEIGHT", RIGHT, |one| one.weight.to_string()),
    ("SHARE exp/act", RIGHT, share),
    ("FLOWS", RIGHT, |one| number(one.counters.and_then(|counters| counters.open))),
    ("TOTAL", RIGHT, |one| number(one.counters.map(|counters| counters.flows))),
    ("REFUSED/SILENT", RIGHT, refusals),
    ("SYN-RTT p50/p99", RIGHT, round_trip),
];

const WIDER: [Column<Backend>; 6] = [
    ("GROUP", LEFT, group),
    ("VIA", LEFT, |one| one.via.clone().unwrap_or_else(|| "-".to_owned())),
    ("ID", LEFT, |one| one.id.chars().take(12).collect()),
    ("BYTES IN", RIGHT, |one| number(one.counters.map(|counters| counters.bytes_in))),
    ("BYTES OUT", RIGHT, |one| number(one.counters.map(|counters| counters.bytes_out))),
    ("PACKETS IN", RIGHT, |one| number(one.counters.map(|counters| counters.packets_in))),
];

fn name(one: &Backend) -> String {
    match one.node {
        Some(address) => format!("node {} ({address})", one.name),
        None => one.name.clone(),
    }
}

pub(super) fn state(one: &Backend) -> String {
    match one.drain_left_ms {
        Some(left) => format!("{} ({} s left)", one.state, left.div_ceil(1_000)),
        None if one.route_back == Some(false) => format!("{} (no route back)", one.state),
        None if one.is_last => format!("{} (last)", one.state),
        None => one.state.clone(),
    }
}

pub(super) fn share(one: &Backend) -> String {
    format!("{:.1}/{:.1} %", one.share_expected * 100.0, one.share_actual * 100.0)
}

fn refusals(one: &Backend) -> String {
    let Some(counters) = one.counters else { return "-".to_owned() };
    format!("{}/{}", counters.refused, counters.silent)
}

pub(super) fn round_trip(one: &Backend) -> String {
    let times = one.counters.and_then(|counters| {
        Some(format!("{}/{} µs", counters.handshake_p50_us?, counters.handshake_p99_us?))
    });
    times.unwrap_or_else(|| "-".to_owned())
}

fn service(one: &Backend) -> String {
    match &one.service_name {
        Some(name) => format!("{name} {}", one.service),
        None => one.service.clone(),
    }
}

fn group(one: &Backend) -> String {
    match (&one.group, one.group_weight) {
        (Some(name), Some(weight)) => format!("{name} {weight}"),
        _ => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::{Counters, Health, SCHEMA};
    use crate::model::snapshots::Pages;

    /// One that drains, and one that is down.
    fn sample() -> [Backend; 2] {
        let counters = Counters {
            open: Some(11),
            flows: 20_113,
            refused: 1,
            handshake_p50_us: Some(39),
            handshake_p99_us: Some(150),
            ..Counters::default()
        };
        let draining = Backend {
            service: "80/tcp".into(),
            service_name: Some("shop/web".into()),
            group: Some("canary".into()),
            group_weight: Some(5),
            name: "web-4".into(),
            id: "0123456789abcdef".into(),
            address: "172.18.0.5:8080".into(),
            state: "draining".into(),
            weight: 0,
            node: None,
            via: Some("peer".into()),
            route_back: Some(false),
            share_expected: 0.0,
            share_actual: 0.3334,
            is_last: false,
            drain_left_ms: Some(18_100),
            counters: Some(counters),
        };
        let down = Backend {
            state: "down".into(),
            via: None,
            drain_left_ms: None,
            counters: None,
            ..draining.clone()
        };
        [draining, down]
    }

    #[test]
    fn each_backend_is_a_line_under_its_heads() {
        let [draining, down] = sample();
        let cut_off = Backend { state: "active".into(), drain_left_ms: None, ..draining.clone() };
        assert_eq!(state(&cut_off), "active (no route back)");
        let shown = table(&[draining, down], &[&NARROW[..], &WIDER[..]].concat());
        let lines: Vec<_> = shown.lines().collect();
        assert_eq!(lines.len(), 3, "{shown}");
        for (head, ..) in NARROW.iter().chain(&WIDER) {
            assert!(lines[0].contains(head), "no {head} in\n{shown}");
        }
        for part in [
            "shop/web 80/tcp",
            "canary 5",
            "draining (19 s left)",
            "0.0/33.3 %",
            "20113",
            "1/0",
            "39/150 µs",
            "0123456789ab ",
        ] {
            assert!(lines[1].contains(part), "no {part} in\n{shown}");
        }
        assert!(lines[2].contains(" down ") && lines[2].contains(" - "), "{shown}");
    }

    #[test]
    fn the_listing_is_as_it_was() {
        let [draining, down] = sample();
        let last = Backend {
            drain_left_ms: None,
            is_last: true,
            service_name: None,
            group: None,
            route_back: None,
            ..draining.clone()
        };
        let node = Backend {
            name: "n2".into(),
            id: "node:n2".into(),
            address: "[::ffff:192.0.2.2]:80".into(),
            node: Some([192, 0, 2, 2].into()),
            via: Some("node".into()),
            ..last.clone()
        };
        let all = Backends {
            schema: SCHEMA,
            instance: "eth0:80@1".into(),
            running: true,
            backends: vec![draining, down, last, node],
        };
        let mut pages = Pages::default();
        pages.add("samport backends", &table(&all.backends, &NARROW));
        let wide = table(&all.backends, &[&NARROW[..], &WIDER[..]].concat());
        pages.add("samport backends -o wide", &wide);
        pages.add_json("samport backends -o json", &all);
        let health = Health {
            schema: SCHEMA,
            healthy: 2,
            wanted: 3,
            ok: false,
            node_drained: false,
            trouble: None,
        };
        pages.add_json("samport wait --healthy 3 -o json", &health);
        pages.assert("backends");
    }
}
