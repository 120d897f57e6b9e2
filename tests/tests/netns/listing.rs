//! `samport flows`: who is connected to whom, whether samport runs or not.

use std::net::SocketAddr;

use samport::lab::Watched;
use samport_tests::daemon::samport_command;
use samport_tests::load::Connection;
use samport_tests::served::{Served, text};
use samport_tests::traces::undisturbed;
use samport_tests::{TIMEOUT, eventually};
use serde_json::Value;

use crate::lab;

/// A connection, and the name of the backend that has answered on it.
fn hold(served: &Served, front: SocketAddr) -> (Connection, String) {
    served.lab.client().run(|| {
        let mut connection = Connection::open(front).unwrap();
        let backend = connection.get("/").unwrap().backend;
        (connection, backend)
    })
}

/// What is listed of a client's end.
fn listed(served: &Served, client: SocketAddr) -> Option<Value> {
    let document: Value =
        serde_json::from_str(&served.order(&["flows", "-o", "json"])).expect("JSON");
    assert_eq!(document["schema"], 1);
    let flows = document["flows"].as_array().expect("a list of flows");
    let mut ours = flows.iter().filter(|flow| text(flow, "client") == client.to_string());
    let found = ours.next().cloned();
    assert!(ours.next().is_none(), "{client} is listed twice: {document:#}");
    found
}

fn assert_listed(served: &Served, held: &(Connection, String), front: SocketAddr) {
    let (connection, backend) = held;
    let flow = listed(served, connection.local_addr()).expect("it is listed");
    assert_eq!(
        [text(&flow, "protocol"), text(&flow, "vip"), text(&flow, "backend"), text(&flow, "state")],
        ["tcp", &front.to_string(), backend, "established"],
        "{flow:#}"
    );
    let addresses = served.addresses_of(backend).map(|address| address.to_string());
    assert!(addresses.contains(&text(&flow, "address").to_owned()), "{flow:#}");
    assert!(flow["age_ms"].is_u64() && flow["idle_ms"].is_u64(), "{flow:#}");
}

fn wait_until_gone(served: &Served, client: SocketAddr) {
    eventually("it is listed no longer", || listed(served, client).is_none().then_some(()));
}

#[test]
fn open_connections_are_listed_until_they_are_closed() {
    let served = Served::start(lab(2), &[]);
    for front in served.fronts() {
        let held = hold(&served, front);
        assert_listed(&served, &held, front);
        let (connection, backend) = held;
        let (client, front) = (connection.local_addr().to_string(), front.to_string());
        let table = served.order(&["flows"]);
        let line = table.lines().find(|line| line.contains(&client)).expect("its line");
        for part in ["tcp", &front, &backend, "established"] {
            assert!(line.contains(part), "no {part} in {line}");
        }
        let address = connection.local_addr();
        drop(connection);
        wait_until_gone(&served, address);
    }
}

#[test]
fn connections_of_a_killed_samport_are_listed_from_what_it_left() {
    let _undisturbed = undisturbed();
    let mut served = Served::start(lab(2), &[]);
    let fronts = served.fronts();
    let old = hold(&served, fronts[0]);
    served.daemon.kill9();
    let new = hold(&served, fronts[1]);
    assert_listed(&served, &old, fronts[0]);
    assert_listed(&served, &new, fronts[1]);
    for (connection, _) in [old, new] {
        let client = connection.local_addr();
        drop(connection);
        wait_until_gone(&served, client);
    }
}

#[test]
fn a_limit_says_how_many_there_are() {
    let served = Served::start(lab(1), &[]);
    let front = served.fronts()[0];
    let _held = [(); 3].map(|()| hold(&served, front));
    let limited = served.order(&["flows", "-o", "json", "--limit", "2"]);
    let document: Value = serde_json::from_str(&limited).expect("JSON");
    assert_eq!(
        (&document["total"], document["flows"].as_array().map(Vec::len)),
        (&3.into(), Some(2))
    );
    // A head and two flows.
    assert_eq!(served.order(&["flows", "--limit", "2"]).lines().count(), 3);
    assert_eq!(served.order(&["flows", "--limit", "0"]).lines().count(), 4);
}

#[test]
fn what_opens_and_closes_is_followed() {
    let served = Served::start(lab(2), &[]);
    let before = hold(&served, served.fronts()[0]);
    let command = samport_command(served.lab.host(), &["flows", "--follow"]);
    let follower = Watched::spawn(command, None).unwrap();
    follower.wait_for_line("1 are open", TIMEOUT).unwrap();
    for front in served.fronts() {
        let (connection, backend) = hold(&served, front);
        let client = connection.local_addr();
        let whole = format!("tcp {client} → {front} → {backend} ");
        follower.wait_for_line(&format!("+ {whole}"), TIMEOUT).unwrap();
        drop(connection);
        follower.wait_for_line(&format!("- {whole}"), TIMEOUT).unwrap();
    }
    let stays = before.0.local_addr().to_string();
    assert!(follower.lines().iter().all(|line| !line.text.contains(&stays)), "{stays} was told of");
}
