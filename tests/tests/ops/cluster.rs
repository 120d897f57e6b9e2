//! Other nodes from a file: what is made of them, and what is said. Their packets are `netns`'s.

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use samport::lab::CLIENT_V4;
use samport_tests::daemon::samport;
use samport_tests::served::{Served, text};
use samport_tests::{Namespace, TIMEOUT, eventually};
use serde_json::{Value, json};

use crate::lab;
use crate::text_file::TextFile;

/// A file of nodes.
fn nodes_file(text: &str) -> TextFile {
    TextFile::new("file.toml", text)
}

/// What a node is started with that reads it.
fn options(nodes: &TextFile) -> [&str; 6] {
    ["--cluster", "file", "--cluster-file", nodes.path(), "--node", "n1"]
}

fn node(name: &str, services: &str) -> String {
    format!("[[node]]\nname = \"{name}\"\naddress = \"{CLIENT_V4}\"\nservices = {{ {services} }}\n")
}

/// Answers probes where the tunnel of a node would end, as long as it is to.
struct Answering {
    answers: Arc<AtomicBool>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Answering {
    fn start(namespace: &Namespace) -> Self {
        let answers = Arc::new(AtomicBool::new(true));
        let ends = Arc::new(AtomicBool::new(false));
        let socket = namespace.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 6_080))).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let (may, is_over) = (Arc::clone(&answers), Arc::clone(&ends));
        let thread = std::thread::spawn(move || {
            let mut bytes = vec![0; 65_536];
            while !is_over.load(Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut bytes) else { continue };
                if length >= 16 && bytes[..2] == [0x20, 1] && may.load(Relaxed) {
                    bytes[1] = 2;
                    socket.send_to(&bytes[..16], from).unwrap();
                }
            }
        });
        Self { answers, ends, thread: Some(thread) }
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.ends.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// State and weight of a node's IPv4 backend; `None` if it has none.
fn backend(served: &Served, name: &str) -> Option<(String, u64)> {
    let all: Value = serde_json::from_str(&served.order(&["backends", "-o", "json"])).unwrap();
    let all = all["backends"].as_array().unwrap();
    let address = format!("{CLIENT_V4}:80");
    let one =
        all.iter().find(|one| text(one, "name") == name && text(one, "address") == address)?;
    assert_eq!(one["node"], json!(CLIENT_V4));
    Some((text(one, "state").to_owned(), one["weight"].as_u64().unwrap()))
}

fn wait_for_backend(served: &Served, name: &str, expected: Option<(&str, u64)>) {
    eventually(&format!("{name} is {expected:?}"), || {
        let found = backend(served, name);
        let found = found.as_ref().map(|(state, weight)| (state.as_str(), *weight));
        (found == expected).then_some(())
    });
}

#[test]
fn a_node_is_a_backend_while_it_answers_and_what_is_known_of_it_is_shown() {
    let lab = lab(1);
    let nodes = nodes_file(&node("n2", "\"80\" = 3, \"443\" = 1"));
    let answering = Answering::start(lab.client());
    let served = Served::start(lab, &options(&nodes));
    served.daemon.wait_for_line("node n2 offers 443, which no -p opens here", TIMEOUT);
    wait_for_backend(&served, "n2", Some(("active", 3)));
    let table = served.order(&["backends"]);
    assert!(table.contains(&format!("node n2 ({CLIENT_V4})")), "{table}");
    let shown = eventually("the path is measured", || {
        let shown = served.status().0;
        (shown["nodes"][0]["path_mtu"] == 1_500).then_some(shown)
    });
    assert_eq!(shown["node"], "n1");
    assert_eq!(shown["nodes"].as_array().map(Vec::len), Some(1));
    let node = &shown["nodes"][0];
    assert_eq!((text(node, "name"), &node["up"]), ("n2", &json!(true)));
    assert_eq!(text(node, "address"), format!("{CLIENT_V4}:6080"));
    assert_eq!(node["services"], json!({ "80/tcp": 3, "443/tcp": 1 }));
    answering.answers.store(false, Relaxed);
    served.daemon.wait_for_line("node n2 (192.0.2.2:6080) is down", TIMEOUT);
    wait_for_backend(&served, "n2", Some(("down", 3)));
    assert_eq!(served.status().0["nodes"][0]["up"], false);
    answering.answers.store(true, Relaxed);
    served.daemon.wait_for_line("node n2 (192.0.2.2:6080) is up again", TIMEOUT);
    wait_for_backend(&served, "n2", Some(("active", 3)));
}

/// Case 88, of the file of nodes: good applied, bad refused, old kept.
#[test]
fn a_file_of_nodes_is_followed_and_a_bad_one_named() {
    let lab = lab(1);
    let nodes = nodes_file(&node("n2", "\"80\" = 3"));
    let _answering = Answering::start(lab.client());
    let options = [&options(&nodes)[..], &["--drain", "1s"]].concat();
    let served = Served::start(lab, &options);
    wait_for_backend(&served, "n2", Some(("active", 3)));
    nodes.write(&node("n2", "\"80\" = 7"));
    wait_for_backend(&served, "n2", Some(("active", 7)));
    for (bad, word) in [
        (node("n2", "\"80\" = 70000"), "line 4, column 21"),
        (node("n2", "\"80\" = 1").replace("192.0.2.2", "192.0.2.1"), "an address of this host"),
        (node("n2", "").repeat(2), "given twice"),
    ] {
        let mark = served.daemon.mark();
        nodes.write(&bad);
        served.daemon.wait_for_line_after(mark, word, TIMEOUT);
        served.daemon.wait_for_line_after(mark, "its nodes stay as they were", TIMEOUT);
        wait_for_backend(&served, "n2", Some(("active", 7)));
    }
    // This node itself is left out, and the other one goes.
    nodes.write(&node("n1", "\"80\" = 1").replace("192.0.2.2", "192.0.2.1"));
    wait_for_backend(&served, "n2", None);
    assert_eq!(backend(&served, "n1"), None);
    assert_eq!(served.status().0["nodes"], json!([]));
}

/// `samport check` asks the nodes, as `samport run` will.
#[test]
fn check_says_which_nodes_answer() {
    let lab = lab(1);
    let silent = "[[node]]\nname = \"n3\"\naddress = \"192.0.2.77\"\nservices = {}\n";
    let nodes = nodes_file(&(node("n2", "\"80\" = 3") + silent));
    let _answering = Answering::start(lab.client());
    let check = ["check", "-i", "eth0", "-p", "80", "--provider", "static"];
    let output = samport(lab.host(), &[&check[..], &options(&nodes)].concat());
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{printed}");
    for line in [
        "ok    this node: n1; others: n2, n3",
        "ok    node n2 (192.0.2.2:6080) answers; the path takes packets of 1500 bytes",
        "warn  node n3 (192.0.2.77:6080) does not answer → start samport there",
    ] {
        assert!(printed.contains(line), "no {line:?} in\n{printed}");
    }
    nodes.write("[[node]]\nname = 7");
    let output = samport(lab.host(), &[&check[..], &options(&nodes)].concat());
    let printed = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(2), "{printed}");
    assert!(printed.contains("FAIL  ") && printed.contains("file.toml"), "{printed}");
}

#[test]
fn a_service_that_stays_on_its_node_uses_others_when_it_has_no_container() {
    let lab = lab(1);
    let nodes = nodes_file(&node("n2", "\"80\" = 3"));
    let _answering = Answering::start(lab.client());
    let config = TextFile::new("samport.toml", "spread = 'local-first'");
    let options = [&options(&nodes)[..], &["--config", config.path()]].concat();
    let served = Served::start(lab, &options);
    let weight = |expected: u64| {
        eventually(&format!("the node's weight is {expected}"), || {
            backend(&served, "n2").filter(|(_, weight)| *weight == expected)
        })
    };
    weight(0);
    served.order(&["drain", "web-1"]);
    assert_eq!(weight(3).0, "active");
    served.order(&["undrain", "web-1"]);
    weight(0);
    // Another word holds while samport runs.
    config.write("spread = 'all'");
    served.daemon.wait_for_line("configuration applied: spread", TIMEOUT);
    assert_eq!(weight(3).0, "active");
    config.write("spread = 'local'");
    eventually("no node has the service", || {
        let state = backend(&served, "n2")?.0;
        (state == "draining" || state == "down").then_some(())
    });
}
