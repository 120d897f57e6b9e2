//! Clients on the machine itself: its own processes, and containers; with Docker's rules in place.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use samport_tests::docker::Dockerd;
use samport_tests::load::get;
use samport_tests::{HOST_V4, HOST_V6, eventually};

use crate::drivers::answers;
use crate::{LABEL, engine, firewall, heard, start_samport, wait_until_serving};

const DUAL: [&str; 3] = [LABEL[0], LABEL[1], "--network=dual"];

/// Two backends with both families in the network `dual`, which has guests too, as the default
/// bridge has.
fn crowd() -> Dockerd {
    let docker = engine();
    let subnet = ["--ipv6", "--subnet", "2001:db8:77::/64"];
    docker.cli(&[&["network", "create"], &subnet[..], &["dual"]].concat());
    for name in ["one", "two"] {
        docker.run_server(name, &DUAL);
    }
    docker.run_server("guest", &["--network", "dual"]);
    docker.run_server("stranger", &[]);
    // Docker forbids what is not published, and one network the other.
    assert!(firewall(&docker).contains(":FORWARD DROP"), "{}", firewall(&docker));
    docker
}

fn both() -> BTreeSet<String> {
    ["one", "two"].map(String::from).into()
}

fn port_80(ip: impl Into<IpAddr>) -> SocketAddr {
    SocketAddr::new(ip.into(), 80)
}

/// Cases 65 and 73: the host's own clients, by each of its addresses.
#[test]
fn the_host_reaches_its_containers_by_every_address_of_its_own() {
    let docker = crowd();
    let samport = start_samport(&docker, &["-p", "80:9090"]);
    for name in ["one", "two"] {
        wait_until_serving(&samport, 0, name);
        heard(&samport, 0, &[&format!("+ {name} [2001:db8:77:")]);
    }
    let own: [IpAddr; 6] = [
        HOST_V4.into(),
        HOST_V6.into(),
        "127.0.0.1".parse().unwrap(),
        "::1".parse().unwrap(),
        "10.250.0.1".parse().unwrap(),
        "2001:db8:77::1".parse().unwrap(),
    ];
    for ip in own {
        let who = docker.lab().host().run(|| answers(port_80(ip), 40));
        assert_eq!(who, both(), "{ip}");
    }
    samport.stop();
}

/// Cases 66, 67 and 73: a container that dials an address of the host, from the backends' network, from
/// another one, and from a backend, which also gets itself.
#[test]
fn containers_reach_the_backends_by_the_hosts_addresses() {
    let docker = crowd();
    let samport = start_samport(&docker, &["-p", "80:9090"]);
    for name in ["one", "two"] {
        wait_until_serving(&samport, 0, name);
        heard(&samport, 0, &[&format!("+ {name} [2001:db8:77:")]);
    }
    for address in [port_80(HOST_V4), port_80(HOST_V6)] {
        for client in ["guest", "stranger", "one", "two"] {
            if client == "stranger" && address.is_ipv6() {
                continue; // Docker's default bridge has no IPv6.
            }
            docker.inside(client, || {
                let mut met = BTreeSet::new();
                for number in 0..40 {
                    let answer = get(address, "/");
                    let answer =
                        answer.unwrap_or_else(|e| panic!("{number} of {client} to {address}: {e}"));
                    if answer.backend != client {
                        assert_eq!(answer.client, answer.local_addr, "{client} as others see it");
                    }
                    met.insert(answer.backend);
                }
                assert_eq!(met, both(), "from {client} to {address}");
            });
        }
    }
    // Their own loopback addresses stay their own.
    for client in ["guest", "one"] {
        let refused = docker.inside(client, || get(port_80([127, 0, 0, 1]), "/"));
        assert!(refused.is_err(), "127.0.0.1 of {client} is the host's: {refused:?}");
    }
    // One that comes later is served as well, on a bridge that comes later.
    docker.cli(&["network", "create", "late"]);
    docker.run_server("latecomer", &["--network", "late"]);
    eventually("a client on a new bridge is served", || {
        docker.inside("latecomer", || get(port_80(HOST_V4), "/")).ok()
    });
    let who = docker.inside("latecomer", || answers(port_80(HOST_V4), 40));
    assert_eq!(who, both());
    samport.stop();
}
