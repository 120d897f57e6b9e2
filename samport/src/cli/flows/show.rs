//! Flows as people and scripts read them.

use std::net::SocketAddr;
use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};

use super::Named;
use super::changes::Change;
use crate::api::words::SCHEMA;

const HEADS: [&str; 8] =
    ["PROTOCOL", "CLIENT", "DIALLED", "BACKEND", "ADDRESS", "STATE", "AGE", "IDLE"];

pub(super) fn table(flows: &[Named]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(HEADS);
    for one in flows {
        table.add_row(cells(one));
    }
    for (at, column) in table.column_iter_mut().enumerate() {
        if at >= HEADS.len() - 2 {
            column.set_cell_alignment(CellAlignment::Right);
        }
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

fn cells(one: &Named) -> [String; 8] {
    let flow = &one.flow;
    [
        flow.protocol.name().to_owned(),
        flow.client.to_string(),
        flow.dialled.to_string(),
        one.backend.clone().unwrap_or_else(|| "-".to_owned()),
        flow.endpoint.map_or_else(|| "-".to_owned(), |endpoint| endpoint.to_string()),
        flow.state.name().to_owned(),
        flow.age.map_or_else(|| "> 73min".to_owned(), time),
        time(flow.idle),
    ]
}

/// The document of a listing; `total` counts those that are left out too.
pub(super) fn document(flows: &[Named], total: usize) -> Value {
    let flows: Vec<_> = flows.iter().map(object).collect();
    json!({ "schema": SCHEMA, "total": total, "flows": flows })
}

fn object(one: &Named) -> Value {
    let flow = &one.flow;
    json!({
        "protocol": flow.protocol.name(), "client": flow.client, "vip": flow.dialled,
        "backend": one.backend, "address": flow.endpoint, "state": flow.state.name(),
        "age_ms": flow.age.map(milliseconds), "idle_ms": milliseconds(flow.idle),
    })
}

/// A change as a line.
pub(super) fn line(change: Change) -> String {
    let (sign, one) = match change {
        Change::Opened(one) => ('+', one),
        Change::Closed(one) => ('-', one),
    };
    let flow = &one.flow;
    let address = flow.endpoint.as_ref().map(SocketAddr::to_string).unwrap_or_default();
    let backend = one.backend.as_deref().unwrap_or("-");
    let (protocol, client, dialled) = (flow.protocol.name(), flow.client, flow.dialled);
    format!("{sign} {protocol} {client} → {dialled} → {backend} {address}").trim_end().to_owned()
}

/// A change as a document of one line.
pub(super) fn event(change: Change) -> Value {
    let (event, one) = match change {
        Change::Opened(one) => ("opened", one),
        Change::Closed(one) => ("closed", one),
    };
    let mut document = object(one);
    document["schema"] = SCHEMA.into();
    document["event"] = event.into();
    document
}

fn time(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..60 => format!("{seconds}s"),
        seconds @ 60..3_600 => format!("{}min", seconds / 60),
        seconds => format!("{}h{:02}min", seconds / 3_600, seconds % 3_600 / 60),
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
pub(super) mod tests {
    use samport_common::conntrack::State;
    use samport_common::wire::protocol::Protocol;

    use super::*;
    use crate::dataplane::flows::OpenFlow;

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
        Named { flow, backend: Some("web-1".into()) }
    }

    #[test]
    fn each_flow_is_a_line_under_its_heads() {
        let mut gone = named("192.0.2.2:1000", "10.0.0.1:80");
        (gone.backend, gone.flow.endpoint, gone.flow.age) = (None, None, None);
        gone.flow.idle = Duration::from_mins(65);
        let shown = table(&[named("192.0.2.1:1000", "10.0.0.1:8080"), gone]);
        let lines: Vec<Vec<_>> =
            shown.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0], HEADS);
        let first = ["tcp", "192.0.2.1:1000", "198.51.100.7:80", "web-1", "10.0.0.1:8080"];
        assert_eq!(lines[1], [&first[..], &["established", "2min", "1s"]].concat(), "{shown}");
        assert_eq!(lines[2][3..5], ["-", "-"], "{shown}");
        assert_eq!(lines[2][6..], [">", "73min", "1h05min"], "{shown}");
    }

    #[test]
    fn changes_are_lines_of_text_or_json() {
        let one = named("192.0.2.1:1000", "10.0.0.1:8080");
        let said = "tcp 192.0.2.1:1000 → 198.51.100.7:80 → web-1 10.0.0.1:8080";
        assert_eq!(line(Change::Opened(&one)), format!("+ {said}"));
        assert_eq!(line(Change::Closed(&one)), format!("- {said}"));
        let event = event(Change::Closed(&one));
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
        assert_eq!((&document["schema"], &document["total"]), (&json!(1), &json!(3)));
        assert_eq!(document["flows"].as_array().map(Vec::len), Some(1));
    }
}
