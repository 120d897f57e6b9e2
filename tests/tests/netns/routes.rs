//! The kernel's own routes to backends, as they change.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use samport::lab::Namespace;
use samport_tests::daemon::{Backends, Daemon};
use samport_tests::load::{ask, get};
use samport_tests::served::{Status, TARGET};
use samport_tests::{Lab, TIMEOUT, eventually};

use crate::lab;

/// Addresses of the backend that routes lead to, by its usual link and by another one.
const ENDPOINTS: [&str; 2] = ["10.99.0.1", "fd99::1"];

/// Gives the backend the addresses and a second link to the host, `alt0`, which no route uses yet.
fn plug_in(host: &Namespace, backend: &Namespace) {
    host.batch(&format!(
        "link add name alt0 type veth peer name eth1 netns {}\n\
         addr add 172.29.0.1/24 dev alt0\n\
         addr add fd29::1/64 dev alt0 nodad\n\
         link set alt0 up\n",
        backend.name()
    ))
    .unwrap();
    backend
        .batch(
            "addr add 172.29.0.2/24 dev eth1\n\
             addr add fd29::2/64 dev eth1 nodad\n\
             link set eth1 up\n\
             addr add 10.99.0.1/32 dev lo\n\
             addr add fd99::1/128 dev lo\n\
             link set lo up\n",
        )
        .unwrap();
}

/// Leads packets to the backend's addresses by a device of the host.
fn lead(host: &Namespace, device: &str, gateways: [IpAddr; 2]) {
    for (endpoint, gateway) in ENDPOINTS.iter().zip(gateways) {
        let gateway = gateway.to_string();
        host.ip(&["route", "replace", endpoint, "via", &gateway, "dev", device]).unwrap();
    }
}

/// The same for a running samport, which has to notice, and not to mind that there is no route for a moment.
fn lead_anew(daemon: &Daemon, host: &Namespace, device: &str, gateways: [IpAddr; 2]) {
    let mark = daemon.mark();
    for endpoint in ENDPOINTS {
        host.ip(&["route", "del", endpoint]).unwrap();
    }
    lead(host, device, gateways);
    for endpoint in ENDPOINTS {
        daemon.wait_for_line_after(mark, &format!("+ {endpoint}"), TIMEOUT);
    }
}

fn fronts(lab: &Lab) -> [SocketAddr; 2] {
    [lab.front(80), lab.front_v6(80)]
}

/// A backend that is no container is reached by another device as soon as the route leads there, while
/// nothing else changes.
#[test]
fn a_backend_whose_route_moves_to_another_device_is_served_by_that() {
    let lab = lab(1);
    let (host, backend) = (lab.host(), &lab.backends()[0]);
    plug_in(host, backend.namespace());
    let _servers = lab.serve(TARGET).unwrap();
    lead(host, "br0", [backend.v4(0).ip(), backend.v6(0).ip()]);
    let args = ["--backend", ENDPOINTS[0], "--backend", ENDPOINTS[1]];
    let daemon = Daemon::start(&lab, &[&["-i", "eth0", "-p", "80:9090"], &args[..]].concat());
    for front in fronts(&lab) {
        assert_eq!(ask(&lab, front, 20).of("web-1"), 20, "{front}");
    }

    // There and back again, and only routes change: whatever else the lab's links still tell of comes once.
    let usual = [backend.v4(0).ip(), backend.v6(0).ip()];
    let alternative = ["172.29.0.2", "fd29::2"].map(|gateway| gateway.parse().unwrap());
    for (device, gateways) in [("alt0", alternative), ("br0", usual)].repeat(3) {
        lead_anew(&daemon, host, device, gateways);
    }
    lead_anew(&daemon, host, "alt0", alternative);
    // Answers come back by the link the questions came by; the old one is unplugged.
    for (family, gateway) in [("-4", "172.29.0.1"), ("-6", "fd29::1")] {
        let route = [family, "route", "replace", "default", "via", gateway, "dev", "eth1"];
        backend.namespace().ip(&route).unwrap();
    }
    backend.namespace().ip(&["link", "set", "eth0", "down"]).unwrap();
    for front in fronts(&lab) {
        eventually(&format!("{front} answers by the new way"), || {
            lab.client().run(|| get(front, "/")).ok()
        });
        assert_eq!(ask(&lab, front, 20).of("web-1"), 20, "{front}");
    }
    let said = daemon.lines();
    assert!(said.iter().all(|line| !line.text.contains("is not served")), "{said:?}");
}

/// Row D3 of the field faults. How long it takes is printed.
#[test]
fn a_thousand_backends_behind_a_router_are_all_served() {
    const BACKENDS: u32 = 1_000;
    let lab = lab(2);
    let (host, router) = (lab.host(), &lab.backends()[0]);
    router.namespace().ip(&["route", "add", "local", "10.50.0.0/16", "dev", "lo"]).unwrap();
    let gateway = router.v4(0).ip().to_string();
    host.ip(&["route", "add", "10.50.0.0/16", "via", &gateway, "dev", "br0"]).unwrap();
    // And some whose neighbours never answer, on the bridge itself.
    let absent = (200..250).map(|last| format!("172.30.0.{last}"));
    let far = (1..=BACKENDS).map(|number| format!("10.50.{}.{}", number / 250, number % 250 + 1));
    let near = lab.backends()[1].v4(0).ip().to_string();
    let file = Backends::none();
    file.write_text(&far.chain(absent).chain([near]).fold(String::new(), |mut text, address| {
        writeln!(text, "[[backend]]\naddress = \"{address}\"").unwrap();
        text
    }));
    let _servers = lab.serve(TARGET).unwrap();
    let begin = Instant::now();
    let options = ["--max-backends", "2000", "--health", "tcp"];
    let usual = ["-i", "eth0", "-p", "80:9090", "--file", file.path()];
    let daemon = Daemon::start(&lab, &[&usual[..], &options].concat());
    eprintln!("ready after {:?}", begin.elapsed());
    let active = || Status::only_in(host).0["services"][0]["active"].as_u64().unwrap();
    eventually("all of them are active", || (active() == u64::from(BACKENDS) + 1).then_some(()));
    eprintln!("all {BACKENDS} active after {:?}", begin.elapsed());
    let tally = ask(&lab, lab.front(80), 200);
    assert!(tally.of("web-1") > 150 && tally.total() == 200, "{tally}");
    // What is behind a gateway has no veth of its own.
    let ways =
        |way| Status::only_in(host).backends().iter().filter(|one| one["via"] == way).count();
    assert_eq!((ways("neigh"), ways("peer")), (BACKENDS as usize, 1));
    daemon.stop();
}
