//! Flows as people and scripts read them.

use std::net::SocketAddr;
use std::time::Duration;

use super::super::table::{Column, LEFT, RIGHT, number, text};
use super::super::units::time;
use super::Named;
use super::changes::FlowChange;
use crate::api::types::{Event, Flow, Flows, SCHEMA};

const NARROW: [Column<Named>; 8] = [
    ("PROTOCOL", LEFT, |one| one.flow.protocol.name().to_owned()),
    ("CLIENT", LEFT, |one| one.flow.client.to_string()),
    ("DIALLED", LEFT, |one| one.flow.dialled.to_string()),
    ("BACKEND", LEFT, |one| text(one.backend.clone())),
    ("ADDRESS", LEFT, |one| text(one.flow.endpoint.map(|endpoint| endpoint.to_string()))),
    ("STATE", LEFT, |one| one.flow.state.name().to_owned()),
    ("AGE", RIGHT, |one| one.flow.age.map_or_else(|| "> 73min".to_owned(), time)),
    ("IDLE", RIGHT, |one| time(one.flow.idle)),
];

const WIDER: [Column<Named>; 2] = [
    ("INSTANCE", LEFT, |one| one.instance.clone()),
    ("KERNEL ID", RIGHT, |one| number(one.flow.backend.map(u64::from))),
];

pub(super) fn table(flows: &[Named], wide: bool) -> String {
    let columns = if wide { &[&NARROW[..], &WIDER[..]].concat() } else { &NARROW[..] };
    super::super::table::table(flows, columns)
}

/// The document of a listing; `total` counts those that are left out too.
pub(super) fn document(flows: &[Named], total: usize) -> Flows {
    Flows { schema: SCHEMA, total, flows: flows.iter().map(object).collect() }
}

fn object(one: &Named) -> Flow {
    let flow = &one.flow;
    Flow {
        instance: one.instance.clone(),
        protocol: flow.protocol.name().to_owned(),
        client: flow.client,
        vip: flow.dialled,
        backend: one.backend.clone(),
        address: flow.endpoint,
        state: flow.state.name().to_owned(),
        age_ms: flow.age.map(milliseconds),
        idle_ms: milliseconds(flow.idle),
    }
}

/// A change as a line.
pub(super) fn line(change: FlowChange) -> String {
    let (sign, one) = match change {
        FlowChange::Opened(one) => ('+', one),
        FlowChange::Closed(one) => ('-', one),
    };
    let flow = &one.flow;
    let address = flow.endpoint.as_ref().map(SocketAddr::to_string).unwrap_or_default();
    let backend = one.backend.as_deref().unwrap_or("-");
    let (protocol, client, dialled) = (flow.protocol.name(), flow.client, flow.dialled);
    format!("{sign} {protocol} {client} → {dialled} → {backend} {address}").trim_end().to_owned()
}

/// A change as a document of one line.
pub(super) fn event(change: FlowChange) -> Event {
    let (event, one) = match change {
        FlowChange::Opened(one) => ("opened", one),
        FlowChange::Closed(one) => ("closed", one),
    };
    Event { schema: SCHEMA, event: event.to_owned(), flow: object(one) }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
pub(super) mod tests {
    use samport_common::conntrack::State;
    use samport_common::wire::protocol::Protocol;

    use serde_json::json;

    use super::*;
    use crate::dataplane::flows::OpenFlow;
    use crate::model::snapshots::Pages;

    pub(in super::super) fn named(client: &str, endpoint: &str) -> Named {
        let flow = OpenFlow {
            protocol: Protocol::Tcp,
            client: client.parse().unwrap(),
            dialled: "198.51.100.7:80".parse().unwrap(),
            backend: Some(1),
            endpoint: Some(endpoint.parse().unwrap()),
            state: State::Established,
            age: Some(Duration::from_secs(125)),
            idle: Duration::from_millis(1_500),
        };
        Named { instance: "eth0:80@1".into(), flow, backend: Some("web-1".into()) }
    }

    #[test]
    fn each_flow_is_a_line_under_its_heads() {
        let mut gone = named("192.0.2.2:1000", "10.0.0.1:80");
        (gone.backend, gone.flow.endpoint, gone.flow.age) = (None, None, None);
        gone.flow.idle = Duration::from_mins(65);
        let shown = table(&[named("192.0.2.1:1000", "10.0.0.1:8080"), gone], true);
        let lines: Vec<Vec<_>> =
            shown.lines().map(|line| line.split_whitespace().collect()).collect();
        let heads = "PROTOCOL CLIENT DIALLED BACKEND ADDRESS STATE AGE IDLE INSTANCE KERNEL ID";
        assert_eq!(lines[0].join(" "), heads);
        let first = ["tcp", "192.0.2.1:1000", "198.51.100.7:80", "web-1", "10.0.0.1:8080"];
        assert_eq!(
            lines[1],
            [&first[..], &["established", "2min", "1s", "eth0:80@1", "1"]].concat(),
            "{shown}"
        );
        assert_eq!(lines[2][3..5], ["-", "-"], "{shown}");
        assert_eq!(lines[2][6..9], [">", "73min", "1h05min"], "{shown}");
    }

    #[test]
    fn changes_are_lines_of_text_or_json() {
        let one = named("192.0.2.1:1000", "10.0.0.1:8080");
        let said = "tcp 192.0.2.1:1000 → 198.51.100.7:80 → web-1 10.0.0.1:8080";
        assert_eq!(line(FlowChange::Opened(&one)), format!("+ {said}"));
        assert_eq!(line(FlowChange::Closed(&one)), format!("- {said}"));
        let event = serde_json::to_value(event(FlowChange::Closed(&one))).unwrap();
        for (key, value) in [
            ("schema", json!(1)),
            ("event", json!("closed")),
            ("client", json!("192.0.2.1:1000")),
            ("vip", json!("198.51.100.7:80")),
            ("backend", json!("web-1")),
            ("state", json!("established")),
            ("age_ms", json!(125_000)),
            ("idle_ms", json!(1_500)),
        ] {
            assert_eq!(event[key], value, "{event:#}");
        }
    }

    #[test]
    fn a_listing_says_how_many_there_are_in_all() {
        let document = document(&[named("192.0.2.1:1000", "10.0.0.1:80")], 3);
        assert_eq!((document.schema, document.total, document.flows.len()), (1, 3, 1));
    }

    #[test]
    fn the_listing_is_as_it_was() {
        let mut gone = named("192.0.2.2:1000", "10.0.0.1:80");
        (gone.backend, gone.flow.endpoint, gone.flow.age) = (None, None, None);
        let all = [named("192.0.2.1:1000", "10.0.0.1:8080"), gone];
        let mut pages = Pages::default();
        pages.add("samport flows", &table(&all, false));
        pages.add("samport flows -o wide", &table(&all, true));
        pages.add_json("samport flows --limit 2 -o json", &document(&all, 3));
        let changes = [FlowChange::Opened(&all[0]), FlowChange::Closed(&all[1])];
        pages.add("samport flows --follow", &changes.map(line).join("\n"));
        pages.add_json("samport flows --follow -o json", &event(changes[0]));
        pages.assert("flows");
    }
}
