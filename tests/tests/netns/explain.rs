//! `samport explain` says where packets really go.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};

use samport::lab::{Backend, Lab, Namespace};
use samport_tests::attacker::{Attacker, Forged};
use samport_tests::daemon::samport;
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
    explain_with(served, client, dialled, &[])
}

/// The same of one that comes in by this device.
fn explain_by(served: &Served, client: SocketAddr, dialled: SocketAddr, iif: &str) -> Value {
    explain_with(served, client, dialled, &["--iif", iif])
}

fn explain_with(
    served: &Served,
    client: SocketAddr,
    dialled: SocketAddr,
    options: &[&str],
) -> Value {
    let order = ["explain", &client.to_string(), &dialled.to_string(), "-o", "json"];
    let order = [&order, options].concat();
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
    let _undisturbed = undisturbed();
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

fn assert_spoofed(document: &Value, why: &str) {
    let said = ["fate", "verdict", "source_refused"].map(|key| text(document, key));
    assert_eq!(said, ["drop", "spoofed-source", why], "{document:#}");
}

/// By the device that is named and by the one that is assumed; and what was said is so.
#[test]
fn a_source_that_is_not_valid_on_a_device_is_said_to_be_dropped() {
    let inside = Inside::start(Lab::builder().backends(2), &[]);
    let served = &inside.served;
    let host = served.lab.host();
    let attackers = [(inside.neighbour(), "br0"), (inside.stranger(), "br1")]
        .map(|(container, bridge)| (bridge, Attacker::new(container.namespace(), host, bridge)));
    for front in served.fronts() {
        let of = |backend: &Backend| {
            if front.is_ipv4() { backend.v4(20_000) } else { backend.v6(20_000) }
        };
        let client = SocketAddr::new(client_of(front), 20_000);
        let (neighbour, backend) = (of(inside.neighbour()), &inside.lab().backends()[0]);
        let is_elsewhere = format!("the route back to {} leads to br0", neighbour.ip());
        let is_outside = format!("the route back to {} leads to eth0", client.ip());
        let is_of_backend = format!("{} belongs to {}", of(backend).ip(), backend.host_interface());
        let [(_, on_br0), (_, on_br1)] = &attackers;
        for (source, iif, why, attacker) in [
            (neighbour, "br1", &is_elsewhere, on_br1),
            (client, "br0", &is_outside, on_br0),
            (client, "br1", &is_outside, on_br1),
            (of(backend), "br0", &is_of_backend, on_br0),
            (of(backend), "br1", &is_of_backend, on_br1),
        ] {
            let document = explain_by(served, source, front, iif);
            assert_spoofed(&document, why);
            assert_eq!(text(&document["entry"], "device"), iif, "{document:#}");
            let before = inside.verdict("spoofed-source");
            attacker.send(Forged::Syn, source, front);
            samport_tests::eventually(&format!("{source} on {iif} is refused"), || {
                (inside.verdict("spoofed-source") > before).then_some(())
            });
            // Where it really is, it is served.
            assert_eq!(text(&explain(served, source, front), "fate"), "forward");
        }
        let own = SocketAddr::new(front.ip(), 20_000);
        let document = explain_by(served, own, front, "eth0");
        assert_spoofed(&document, &format!("{} is this host's own address", own.ip()));

        // A flow that exists.
        let port = if front.is_ipv4() { 20_001 } else { 20_002 };
        let stream = served.lab.client().run(|| connect_from(port, front).unwrap());
        let client = stream.local_addr().unwrap();
        let document = explain_by(served, client, front, "br0");
        assert_spoofed(&document, "the flow is an outside client's, which came in by eth0");
        let document = explain(served, client, front);
        assert_eq!(text(&document, "because"), "flow", "{document:#}");
    }
    let front = served.fronts()[0];
    let client = SocketAddr::new(client_of(front), 20_000);
    let vapp = inside.neighbour().host_interface();
    assert_eq!(explain_by(served, client, front, vapp)["fate"], "unseen");
    let args = ["explain", &client.to_string(), &front.to_string(), "--iif", "eth7"];
    let output = samport(host, &args);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("there is no device \"eth7\"; this machine has"), "{said}");
}

/// The route back is looked up from the address that is dialled, as in the kernel.
#[test]
fn a_policy_rule_by_source_address_is_followed() {
    let inside = Inside::start(Lab::builder().backends(2), &[]);
    let served = &inside.served;
    let host = served.lab.host();
    let attacker = Attacker::new(inside.stranger().namespace(), host, "br1");
    let front = served.fronts()[0];
    let client = SocketAddr::new(client_of(front), 20_000);
    host.batch("rule add from 192.0.2.1 lookup 77\n").unwrap();
    for (route, verdict) in [
        ("blackhole 192.0.2.2", "spoofed-source"),
        ("unreachable 192.0.2.2", "spoofed-source"),
        ("192.0.2.2 dev eth0", "spoofed-source"),
        ("192.0.2.2 dev br1", "forward-peer"),
    ] {
        host.batch(&format!("route flush table 77\nroute add {route} table 77\n")).unwrap();
        let document = explain_by(served, client, front, "br1");
        let said = match text(&document, "fate") {
            "forward" => text(&document["backends"][0], "verdict"),
            _ => text(&document, "verdict"),
        };
        assert_eq!(said, verdict, "{route}: {document:#}");
        let before = inside.verdict(verdict);
        attacker.send(Forged::Syn, client, front);
        samport_tests::eventually(&format!("{verdict} by {route}"), || {
            (inside.verdict(verdict) > before).then_some(())
        });
    }
}

/// As in the kernel: where it cannot tell, it drops nothing.
#[test]
fn without_forwarding_a_route_is_no_reason_to_refuse() {
    let inside = Inside::start(Lab::builder().backends(2), &[]);
    let front = inside.served.fronts()[0];
    let client = SocketAddr::new(client_of(front), 20_000);
    let refused = || explain_by(&inside.served, client, front, "br0")["verdict"].clone();
    assert_eq!(refused(), "spoofed-source");
    inside.lab().host().sysctl("net/ipv4/conf/lo/forwarding", "0").unwrap();
    assert_eq!(refused(), Value::Null);
}

/// The device that is assumed for a container behind the neighbour table is its veth, whose alone its address is.
#[test]
fn a_backend_behind_the_neighbour_table_is_explained_by_its_veth() {
    let inside = Inside::start(Lab::builder().backends(2), &["--forward", "neigh"]);
    let backend = &inside.lab().backends()[0];
    for front in inside.served.fronts() {
        let own = if front.is_ipv4() { backend.v4(20_000) } else { backend.v6(20_000) };
        let document = explain(&inside.served, own, front);
        assert_eq!(text(&document["entry"], "device"), backend.host_interface(), "{document:#}");
        assert_eq!(document["fate"], "forward", "{document:#}");
        let answered = answers(backend.namespace(), 20_000, front);
        assert!(names(&document).contains(&&*answered), "{document:#}");
    }
}
