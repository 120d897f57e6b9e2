//! Metrics, read as Prometheus reads them: by a parser of OpenMetrics that refuses what is not.

#![allow(clippy::float_cmp, reason = "metrics are counts, which doubles hold exactly")]

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use samport_tests::load::{Connection, Load, ask};
use samport_tests::served::Served;
use samport_tests::{eventually, http};
use serde_json::Value;

use crate::lab;

const ADDRESS: &str = "127.0.0.1:9464";

/// For the Python whose packages the system has. Prints the families' types and all samples as JSON; ends with an error for text that is not strictly
/// OpenMetrics.
const PARSER: &str = r#"
import json, sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families
families = list(text_string_to_metric_families(sys.stdin.read()))
json.dump({"types": {f.name: f.type for f in families}, "samples": [
    {"name": s.name, "labels": s.labels, "value": s.value} for f in families for s in f.samples
]}, sys.stdout)
"#;

/// What a scrape has given.
struct Scraped {
    text: String,
    parsed: Value,
}

impl Scraped {
    fn of(served: &Served) -> Self {
        let address = ADDRESS.parse().expect("an address");
        let answer = served.lab.host().run(|| http::get(address, "/metrics"));
        let http::Answer { status, head, body } = answer.expect("an answer");
        assert_eq!(status, 200, "{head}");
        assert!(head.contains("application/openmetrics-text; version=1.0.0"), "{head}");
        Self { parsed: parse(&body), text: body }
    }

    /// The samples of a name that have these labels.
    fn values(&self, name: &str, labels: &[(&str, &str)]) -> Vec<f64> {
        let samples = self.parsed["samples"].as_array().expect("samples");
        let is_meant = |sample: &&Value| {
            sample["name"] == name
                && labels.iter().all(|(label, value)| sample["labels"][*label] == *value)
        };
        let value = |sample: &Value| sample["value"].as_f64().expect("a number");
        samples.iter().filter(is_meant).map(value).collect()
    }

    /// The only sample of a name with these labels.
    fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let values = self.values(name, labels);
        assert_eq!(values.len(), 1, "{name} {labels:?} in\n{}", self.text);
        values[0]
    }

    fn sum(&self, name: &str) -> f64 {
        self.values(name, &[("service", "80/tcp")]).iter().sum()
    }
}

fn parse(text: &str) -> Value {
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-c", PARSER]).stdin(Stdio::piped());
    let mut parser =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start python3");
    parser.stdin.take().expect("its input").write_all(text.as_bytes()).expect("write to it");
    let output = parser.wait_with_output().expect("wait for it");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\nin\n{text}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn start(backends: u8) -> Served {
    Served::start(lab(backends), &["--metrics", ADDRESS, "--drain", "100"])
}

fn ask_both(served: &Served, times: u32) {
    for front in served.fronts() {
        assert_eq!(ask(&served.lab, front, times).total(), times);
    }
}

#[test]
fn what_is_scraped_under_traffic_is_open_metrics_and_true() {
    let served = start(2);
    ask_both(&served, 40);
    let quiet = Scraped::of(&served);
    assert_eq!(quiet.sum("samport_backend_connections_total"), 80.0, "{}", quiet.text);
    assert_eq!(quiet.sum("samport_backend_handshake_seconds_count"), 80.0, "{}", quiet.text);
    assert!(quiet.sum("samport_backend_handshake_seconds_sum") > 0.0, "{}", quiet.text);
    let last = [("service", "80/tcp"), ("backend", "web-1"), ("le", "+Inf")];
    let of_web_1 = [("service", "80/tcp"), ("backend", "web-1")];
    assert_eq!(
        quiet.value("samport_backend_handshake_seconds_bucket", &last),
        quiet.value("samport_backend_connections_total", &of_web_1)
    );
    let reply = quiet.value("samport_verdicts_total", &[("verdict", "reply")]);
    assert_eq!(reply, quiet.sum("samport_backend_transmit_packets_total"), "{}", quiet.text);
    assert_eq!(quiet.value("samport_discovery_connected", &[("provider", "file")]), 1.0);
    let types = &quiet.parsed["types"];
    for (family, kind) in [
        ("samport_backend_handshake_seconds", "histogram"),
        ("samport_verdicts", "counter"),
        ("samport_backend_state", "gauge"),
        ("samport_build", "info"),
    ] {
        assert_eq!(types[family], kind, "{types:#}");
    }

    let load = Load::start(served.lab.client(), served.fronts()[0], 2);
    let mut before = quiet;
    for _ in 0..3 {
        assert!(load.wait_for_more(50, samport_tests::TIMEOUT), "{}", load.so_far());
        let now = Scraped::of(&served);
        for name in ["samport_backend_connections_total", "samport_backend_receive_bytes_total"] {
            assert!(now.sum(name) > before.sum(name), "{name}\n{}", now.text);
        }
        before = now;
    }
    load.stop().assert_no_failure();
}

#[test]
fn open_connections_states_and_weights_are_those_of_the_moment() {
    let served = start(2);
    let (name, labels) = ("samport_backend_connections", [("service", "80/tcp")]);
    let held = served.lab.client().run(|| {
        served.fronts().map(|front| {
            let mut connection = Connection::open(front).unwrap();
            connection.get("/").unwrap();
            connection
        })
    });
    assert_eq!(Scraped::of(&served).values(name, &labels).iter().sum::<f64>(), 2.0);
    drop(held);
    eventually("both are closed", || (Scraped::of(&served).sum(name) == 0.0).then_some(()));

    served.order(&["drain", "web-2"]);
    served.order(&["weight", "web-1", "7"]);
    let scraped = Scraped::of(&served);
    let state = |backend, state| {
        let labels = [("service", "80/tcp"), ("backend", backend), ("state", state)];
        scraped.value("samport_backend_state", &labels)
    };
    assert_eq!((state("web-2", "draining"), state("web-2", "active")), (1.0, 0.0));
    assert_eq!((state("web-1", "draining"), state("web-1", "active")), (0.0, 1.0));
    let weight = scraped.value("samport_backend_weight", &[("backend", "web-1")]);
    assert_eq!(weight, 7.0, "{}", scraped.text);
}

/// Whoever may read metrics is not told who the clients are.
#[test]
fn no_client_is_named() {
    let served = start(1);
    ask_both(&served, 5);
    let text = Scraped::of(&served).text;
    for client in [samport::lab::CLIENT_V4.to_string(), samport::lab::CLIENT_V6.to_string()] {
        assert!(!text.contains(&client), "{client} in\n{text}");
    }
    let front: SocketAddr = served.fronts()[0];
    assert!(!text.contains(&front.ip().to_string()), "{text}");
}
