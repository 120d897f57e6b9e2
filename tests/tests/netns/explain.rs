//! `samport explain` says where packets really go.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};

use samport::lab::{Lab, Namespace};
use samport_tests::load::{Connection, get};
use samport_tests::served::{LISTEN, Served, second_client, text};
use samport_tests::socket::{ask_on, connect_from};
use samport_tests::traces::undisturbed;
use serde_json::Value;

use crate::inside::{Inside, addresses};
use crate::lab;

/// The lab's client, by the address that is dialled.
fn client_of(front: SocketAddr) -> IpAddr {
    let text = if front.is_ipv4() { "192.0.2.2" } else { "2001:db8:1::2" };
    text.parse().unwrap()
}

/// What is said of a packet of this client to this address.
fn explain(served: &Served, client: SocketAddr, dialled: SocketAddr) -> Value {
    let order = ["explain", &client.to_string(), &dialled.to_string(), "-o", "json"];
    let document: Value = serde_json::from_str(&served.order(&order)).expect("JSON");
    assert_eq!(document["schema"], 1, "{document:#}");
    document
}

/// The same as lines.
fn told(served: &Served, client: SocketAddr, dialled: SocketAddr) -> String {
    served.order(&["explain", &client.to_string(), &dialled.to_string()])
}

/// The backends that may get it.
fn names(document: &Value) -> Vec<&str> {
    let backends = document["backends"].as_array().expect("a list of backends");
    backends.iter().map(|backend| text(backend, "name")).collect()
}

/// Who answers a new connection from a port.
fn answers(from: &Namespace, port: u16, front: SocketAddr) -> String {
    from.run(|| ask_on(&connect_from(port, front).unwrap(), "/").unwrap().backend)
}

fn hold(served: &Served, front: SocketAddr, name: &str) -> Connection {
    served.lab.client().run(|| {
        let open = |_| {
            let mut connection = Connection::open(front).unwrap();
            (connection.get("/").unwrap().backend == name).then_some(connection)
        };
        (0..100).find_map(open).unwrap_or_else(|| panic!("{name} has answered none of 100"))
    })
}

#[test]
fn an_existing_flow_is_explained_by_its_backend_also_after_a_kill() {
    let _alone = undisturbed();
    let mut served = Served::start(lab(3), &[]);
    let mut held = Vec::new();
    for front in served.fronts() {
        for name in ["web-1", "web-2", "web-3"] {
            held.push((front, name, hold(&served, front, name)));
        }
    }
    for killed in [false, true] {
        if killed {
            served.daemon.kill9();
        }
        for (front, name, connection) in &mut held {
            let client = connection.local_addr();
            let document = explain(&served, client, *front);
            assert_eq!(names(&document), [*name], "{document:#}");
            assert_eq!(document["flow"]["state"], "established", "{document:#}");
            let said = told(&served, client, *front);
            for part in [
                "eth0 ingress (tcx) → service 80/tcp → allowed → existing flow",
                name,
                "netfilter skipped",
            ] {
                assert!(said.contains(part), "no {part} in {said}");
            }
            assert_eq!(connection.get("/").unwrap().backend, *name);
        }
    }
}

#[test]
fn a_new_flow_by_hash_goes_where_it_was_said() {
    for (balance, with_port) in [("maglev", true), ("source-hash", false)] {
        let served = Served::start(lab(4), &["--balance", balance]);
        for front in served.fronts() {
            let mut met = std::collections::BTreeSet::new();
            for port in 20_000..20_016 {
                let client = SocketAddr::new(client_of(front), port);
                let document = explain(&served, client, front);
                assert_eq!(document["because"], balance, "{document:#}");
                let expected = names(&document);
                let answered = answers(served.lab.client(), port, front);
                assert_eq!(expected, [&answered], "{client}: {document:#}");
                met.insert(answered);
            }
            assert_eq!(met.len() > 1, with_port, "{balance}: {met:?}");
        }
    }
}

#[test]
fn a_new_flow_at_random_goes_to_one_of_those_that_were_named() {
    let mut served = Served::start(lab(3), &[]);
    served.change(("~", "web-1", "weight 2"), |file| file.set_weight("web-1", 2));
    for front in served.fronts() {
        let client = SocketAddr::new(client_of(front), 20_000);
        let document = explain(&served, client, front);
        assert_eq!(names(&document), ["web-1", "web-2", "web-3"], "{document:#}");
        let shares: Vec<_> =
            document["backends"].as_array().unwrap().iter().map(|one| &one["share"]).collect();
        assert_eq!(shares, [0.5, 0.25, 0.25], "{document:#}");
        let said = told(&served, client, front);
        assert!(said.contains("one of\n  web-1 (50.0 %) →"), "{said}");
        assert!(names(&document).contains(&&*answers(served.lab.client(), 20_000, front)));
    }
}

#[test]
fn turns_say_who_is_next() {
    let served = Served::start(lab(3), &["--balance", "round-robin"]);
    let front = served.fronts()[0];
    for port in 20_000..20_006 {
        let client = SocketAddr::new(client_of(front), port);
        let next = text(&explain(&served, client, front), "next").to_owned();
        assert_eq!(answers(served.lab.client(), port, front), next);
    }
}

#[test]
fn a_backend_that_drains_keeps_its_flow_and_is_passed_over_for_new_ones() {
    let served = Served::start(lab(2), &["--drain", "100"]);
    let front = served.fronts()[0];
    let mut held = hold(&served, front, "web-2");
    served.order(&["drain", "web-2"]);
    let document = explain(&served, held.local_addr(), front);
    assert_eq!(names(&document), ["web-2"], "{document:#}");
    let said = told(&served, held.local_addr(), front);
    assert!(said.contains("web-2 (draining: it keeps its flows)"), "{said}");
    assert_eq!(held.get("/").unwrap().backend, "web-2");

    let client = SocketAddr::new(client_of(front), 20_000);
    let document = explain(&served, client, front);
    assert_eq!(names(&document), ["web-1"], "{document:#}");
    assert_eq!(document["passed_over"][0]["name"], "web-2", "{document:#}");
    assert_eq!(answers(served.lab.client(), 20_000, front), "web-1");
}

#[test]
fn a_flow_whose_backend_is_gone_is_reset_as_it_was_said() {
    let mut served = Served::start(lab(2), &["--drain", "0"]);
    let front = served.fronts()[0];
    let mut held = hold(&served, front, "web-2");
    served.change(("-", "web-2", ""), |file| file.remove("web-2"));
    samport_tests::eventually("it is gone", || {
        let document = explain(&served, held.local_addr(), front);
        (document["verdict"] == "gone-reset").then_some(())
    });
    assert_eq!(held.get("/").unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn what_is_refused_and_what_is_not_served_is_said_so() {
    let mut served = Served::start(lab(1), &["--drain", "0"]);
    for front in served.fronts() {
        let other = SocketAddr::new(front.ip(), 81);
        let client = SocketAddr::new(client_of(front), 20_000);
        let document = explain(&served, client, other);
        assert_eq!((text(&document, "fate"), text(&document, "verdict")), ("pass", "not-ours"));
        let said = told(&served, client, other);
        assert!(said.contains(&format!("{front}/tcp")), "what is served instead: {said}");
        let before = served.status().verdict("not-ours");
        served.lab.client().run(|| connect_from(20_000, other).unwrap_err());
        assert!(served.status().verdict("not-ours") > before);
    }
    served.change(("-", "web-1", ""), |file| file.remove("web-1"));
    let front = served.fronts()[0];
    let client = SocketAddr::new(client_of(front), 20_001);
    samport_tests::eventually("nobody is there", || {
        let document = explain(&served, client, front);
        (document["verdict"] == "no-backend-reset").then_some(())
    });
    let refused = served.lab.client().run(|| connect_from(20_001, front).unwrap_err());
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    assert_eq!(served.status().verdict("no-backend-reset"), 1);
}

#[test]
fn a_client_that_is_not_allowed_is_said_to_be_dropped() {
    let mut second = None;
    let options = ["-i", "eth1", "--allow", "192.0.2.0/24", "--allow", "2001:db8:1::/64"];
    let inside = Inside::start_tuned(Lab::builder().backends(2), &options, |lab| {
        second = Some(second_client(lab));
    });
    let served = &inside.served;
    for (front, other) in served.fronts().into_iter().zip(["198.51.100.2", "2001:db8:3::2"]) {
        let allowed = SocketAddr::new(client_of(front), 20_000);
        assert_eq!(explain(served, allowed, front)["allowed"], true);
        let client = SocketAddr::new(other.parse().unwrap(), 20_000);
        let document = explain(served, client, front);
        assert_eq!(
            [text(&document, "fate"), text(&document, "verdict")],
            ["drop", "not-allowed"],
            "{document:#}"
        );
        assert_eq!(document["entry"]["device"], "eth1", "{document:#}");
        let before = inside.verdict("not-allowed");
        second.as_ref().unwrap().run(|| {
            let timeout = std::time::Duration::from_millis(300);
            std::net::TcpStream::connect_timeout(&front, timeout).unwrap_err();
        });
        assert!(inside.verdict("not-allowed") > before);
    }
}

#[test]
fn clients_inside_the_machine_are_explained_where_they_come_in() {
    let inside = Inside::start(Lab::builder().backends(2), &["--balance", "source-hash"]);
    let served = &inside.served;
    let host = served.lab.host();
    let containers = [
        (inside.neighbour(), "br0".to_owned()),
        (inside.stranger(), "br1".to_owned()),
        (&inside.lab().backends()[0], inside.lab().backends()[0].host_interface().to_owned()),
    ];
    for front in addresses() {
        for (container, device) in &containers {
            let own = if front.is_ipv4() { container.v4(20_000) } else { container.v6(20_000) };
            let document = explain(served, own, front);
            assert_eq!(text(&document["entry"], "device"), device, "{document:#}");
            let answered = answers(container.namespace(), 20_000, front);
            assert_eq!(names(&document), [&answered], "{document:#}");
        }
        // Its own processes: as one client, whatever the address.
        let own = SocketAddr::new(front.ip(), 20_000);
        let document = explain(served, own, front);
        assert_eq!(document["entry"]["kind"], "local", "{document:#}");
        let answered = host.run(|| get(front, "/").unwrap().backend);
        assert_eq!(names(&document), [&answered], "{document:#}");
    }
    let loopback: SocketAddr = ([127, 0, 0, 1], LISTEN).into();
    let document = explain(served, ([127, 0, 0, 1], 20_000).into(), loopback);
    assert_eq!(names(&document), [&host.run(|| get(loopback, "/").unwrap().backend)]);
    // From outside it is not served there.
    let bridge = addresses()[2];
    let client = SocketAddr::new(client_of(bridge), 20_000);
    assert_eq!(explain(served, client, bridge)["verdict"], "not-ours");
}
