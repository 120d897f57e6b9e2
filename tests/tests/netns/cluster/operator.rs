//! What an operator asks of a node, and sees of it: drained, explained.

use std::time::Duration;

use samport::lab::Load;
use samport::lab::cluster::Options;
use samport_tests::daemon::samport_command;
use samport_tests::load::Connection;
use samport_tests::served::{LISTEN, Status, text};
use samport_tests::{TIMEOUT, eventually};

use super::Nodes;

/// An order to the samport of a host: whether it was carried out, and what it has said.
fn order(nodes: &Nodes, number: usize, args: &[&str]) -> (bool, String) {
    let host = nodes.host(number).namespace();
    let output = samport_command(host, args).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

fn ordered(nodes: &Nodes, number: usize, args: &[&str]) -> String {
    let (is_good, said) = order(nodes, number, args);
    assert!(is_good, "{args:?}: {said}");
    said
}

/// Whether one host is told by another that it is drained.
fn finds_drained(nodes: &Nodes, number: usize, name: &str) -> bool {
    let status = Status::only_in(nodes.host(number).namespace());
    status.nodes().iter().any(|node| text(node, "name") == name && node["drained"] == true)
}

/// Its containers get nothing new, whichever host is dialled, and keep what they have; nothing fails. A kill does not end
/// it, and when it is over they serve again.
#[test]
fn a_host_that_is_drained_gets_nothing_new_and_keeps_what_it_has() {
    let mut nodes = Nodes::start(Options { hosts: 2, ..Options::default() });
    let [own, other] = [1, 2].map(|number| nodes.host(number).fronts(LISTEN)[0]);
    let mut kept = Vec::new();
    nodes.cluster.client().run(|| {
        for front in [own, other].repeat(15) {
            let mut connection = Connection::open(front).unwrap();
            kept.push((connection.get("/").unwrap().backend, connection));
        }
    });
    assert!(kept.iter().any(|(backend, _)| backend.starts_with("n2")));
    let load = Load::start(nodes.cluster.client(), own, 2);
    let said = ordered(&nodes, 2, &["drain", "--this-node"]);
    assert_eq!(
        said.matches("web-").count(),
        8,
        "two containers, each TCP and UDP, of both families: {said}"
    );
    assert!(!said.contains("no other node"), "{said}");
    eventually("n1 is told", || finds_drained(&nodes, 1, "n2").then_some(()));
    for front in [own, other] {
        let tally = nodes.ask(front, 60);
        assert_eq!(tally.keys().collect::<Vec<_>>(), ["n1-web-1", "n1-web-2"], "{front}");
    }
    nodes.cluster.client().run(|| {
        for (backend, connection) in &mut kept {
            assert_eq!(connection.get("/").unwrap().backend, *backend);
        }
    });
    let dialled = other.to_string();
    let said = ordered(&nodes, 2, &["explain", "192.0.2.100:9", &dialled]);
    assert!(said.contains("web-1 is on this node, which is drained"), "{said}");
    let (is_well, said) = order(&nodes, 2, &["healthcheck"]);
    assert!(!is_well && said.contains("this node is drained"), "{said}");
    assert!(ordered(&nodes, 2, &["status"]).contains("this node: n2, drained"));
    // As long as there are connections, it is not time yet.
    let (is_over, said) = order(&nodes, 2, &["drain", "--this-node", "--wait", "--timeout", "1s"]);
    assert!(!is_over && said.contains("connections are open through this node"), "{said}");
    drop(kept);
    let said = ordered(&nodes, 2, &["drain", "--this-node", "--wait"]);
    assert!(said.ends_with("drained\n"), "{said}");
    // Its answers say so also while no process of samport's is there, and whoever takes over keeps the order.
    nodes.daemons[1].kill9();
    std::thread::sleep(Duration::from_secs(2));
    assert!(finds_drained(&nodes, 1, "n2"));
    nodes.restart(2);
    assert!(ordered(&nodes, 2, &["status"]).contains("this node: n2, drained"));
    ordered(&nodes, 2, &["undrain", "--this-node"]);
    eventually("n1 is told", || (!finds_drained(&nodes, 1, "n2")).then_some(()));
    let before = load.so_far().tally;
    assert!(load.wait_for_more(200, TIMEOUT));
    assert!(load.so_far().tally.since(&before).of("n2-web-1") > 0, "{}", load.so_far());
    load.stop().assert_no_failure();
}

/// Both hops of a connection, as they are explained at each node, are those that it takes.
#[test]
fn both_hops_of_a_connection_are_explained() {
    let nodes = Nodes::start(Options { hosts: 2, backends: 2, ..Options::default() });
    let front = nodes.host(1).fronts(LISTEN)[0];
    let (backend, connection) = nodes.cluster.client().run(|| {
        loop {
            let mut connection = Connection::open(front).unwrap();
            let backend = connection.get("/").unwrap().backend;
            if backend.starts_with("n2") {
                break (backend, connection);
            }
        }
    });
    let [client, front] = [connection.local_addr(), front].map(|at| at.to_string());
    let first = ordered(&nodes, 1, &["explain", &client, &front]);
    assert!(first.contains("existing flow (established"), "{first}");
    let ask = format!("samport explain {client} {front} --from-node n1");
    assert!(first.contains("through the tunnel to node n2") && first.contains(&ask), "{first}");
    let second = ordered(&nodes, 2, &["explain", &client, &front, "--from-node", "n1"]);
    let own = backend.strip_prefix("n2-").unwrap();
    assert!(second.contains("out of the tunnel, from node n1"), "{second}");
    assert!(second.contains("existing flow (established"), "{second}");
    assert!(second.contains(&format!("→ {own}")), "{second}");
    // A new one gets a container of that node, whichever; one of a container gets one of its own node.
    let new = ordered(&nodes, 2, &["explain", "192.0.2.100:9", &front, "--from-node", "n1"]);
    assert!(new.contains("web-1 (50.0 %)") && new.contains("web-2 (50.0 %)"), "{new}");
    let inside = format!("{}:9", nodes.host(1).backends()[0].v4(0).ip());
    let of_container = ordered(&nodes, 1, &["explain", &inside, &front]);
    assert!(of_container.contains("passed over: n2 is another node"), "{of_container}");
    let (is_good, said) = order(&nodes, 2, &["explain", &client, &front, "--from-node", "n9"]);
    assert!(!is_good && said.contains("no node \"n9\" in the cluster; it has n1"), "{said}");
}

/// Whoever has no other node goes on, and says so.
#[test]
fn the_last_host_that_takes_connections_goes_on() {
    let nodes = Nodes::start(Options { hosts: 2, backends: 1, ..Options::default() });
    ordered(&nodes, 2, &["drain", "--this-node"]);
    eventually("n1 is told", || finds_drained(&nodes, 1, "n2").then_some(()));
    let said = ordered(&nodes, 1, &["drain", "--this-node"]);
    assert!(said.contains("no other node takes new connections of 80/tcp"), "{said}");
    eventually("n2 is told", || finds_drained(&nodes, 2, "n1").then_some(()));
    for number in [1, 2] {
        for front in nodes.host(number).fronts(LISTEN) {
            let tally = nodes.ask(front, 20);
            assert_eq!(tally.len(), 1, "{tally:?}");
        }
    }
}
