//! Services of one address of the host's: `-p ADDR:PORT`.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};

use samport_tests::daemon::Daemon;
use samport_tests::load::{ask, get};
use samport_tests::served::{LISTEN, wait_for_answer};
use samport_tests::socket::{ask_on, connect_from};
use samport_tests::{Lab, Server, TIMEOUT, eventually, require_root};

const V4: [u8; 4] = [198, 51, 100, 7];
const V6: &str = "2001:db8:9::7";

/// What clients dial at the addresses that are given, which the client's default route leads to.
fn given() -> [SocketAddr; 2] {
    let v6: IpAddr = V6.parse().unwrap();
    [V4.into(), v6].map(|ip| SocketAddr::new(ip, LISTEN))
}

/// A lab whose host has the addresses too, and whose backends have two servers each: `web-N` on port 9090
/// and `given-N` on 9091.
fn lab() -> (Lab, Vec<Server>) {
    require_root();
    let [v4, v6] = given().map(|front| front.ip());
    let lab = Lab::builder().backends(2).vip(v4).vip(v6).build().unwrap();
    let mut servers = lab.serve(9090).unwrap();
    for (backend, number) in lab.backends().iter().zip(1..) {
        let bind = || Server::bind(&format!("given-{number}"), 9091).unwrap();
        servers.push(backend.namespace().run(bind));
    }
    (lab, servers)
}

/// `samport run -i eth0 PORTS…` for every backend by both its addresses.
fn start(lab: &Lab, ports: &[&str]) -> Daemon {
    let both = |one: &samport_tests::Backend| [one.v4(0).ip(), one.v6(0).ip()];
    let addresses: Vec<_> = lab.backends().iter().flat_map(both).map(|ip| ip.to_string()).collect();
    let mut args = vec!["-i", "eth0"];
    args.extend(ports.iter().flat_map(|port| ["-p", port]));
    args.extend(addresses.iter().flat_map(|ip| ["--backend", ip]));
    Daemon::start(lab, &args)
}

/// Case 5: A given address beats the wildcard: each service has its own backends' ports, whichever comes
/// first on the command line, for clients outside and on the host.
#[test]
fn a_given_address_beats_the_port_everywhere() {
    let (lab, _servers) = lab();
    let [v4, v6] = ["198.51.100.7:80:9091", "[2001:db8:9::7]:80:9091"];
    for ports in [[v4, v6, "80:9090"], ["80:9090", v6, v4]] {
        let daemon = start(&lab, &ports);
        for front in given() {
            let tally = ask(&lab, front, 60);
            assert!(tally.of("given-1") > 0 && tally.of("given-2") > 0, "{front}: {tally}");
            assert_eq!(tally.of("given-1") + tally.of("given-2"), 60, "{front}: {tally}");
            let answer = lab.host().run(|| get(front, "/")).unwrap();
            assert!(answer.backend.starts_with("given-"), "{front}: {answer:?}");
        }
        for front in [lab.front(LISTEN), lab.front_v6(LISTEN)] {
            let tally = ask(&lab, front, 60);
            assert_eq!(tally.of("web-1") + tally.of("web-2"), 60, "{front}: {tally}");
            let answer = lab.host().run(|| get(front, "/")).unwrap();
            assert!(answer.backend.starts_with("web-"), "{front}: {answer:?}");
        }
        daemon.stop();
    }
}

/// Case 5: where both lead to the same sockets, a client that uses one port of its own for both has two
/// connections.
#[test]
fn a_given_address_and_the_port_everywhere_may_lead_to_the_same_backends() {
    let (lab, _servers) = lab();
    let _daemon = start(&lab, &["198.51.100.7:80:9090", "[2001:db8:9::7]:80:9090", "80:9090"]);
    lab.client().run(|| {
        for (here, there) in given().into_iter().zip([lab.front(LISTEN), lab.front_v6(LISTEN)]) {
            for port in 40_000..40_020 {
                let [first, second] = [here, there].map(|to| connect_from(port, to).unwrap());
                for stream in [&first, &second, &first] {
                    let answer = ask_on(stream, "/").unwrap();
                    assert!(answer.backend.starts_with("web-"), "{answer:?}");
                    assert_eq!(answer.client, stream.local_addr().unwrap());
                }
            }
        }
    });
}

/// An address alone is served alone, when it is there, and for everybody only on the interface.
#[test]
fn an_address_that_is_given_is_served_as_soon_as_the_host_has_it() {
    let (lab, _servers) = lab();
    let daemon = start(&lab, &["198.51.100.9:80:9090", "[2001:db8:9::9]:80:9090"]);
    for address in ["198.51.100.9", "2001:db8:9::9"] {
        let front = SocketAddr::new(address.parse().unwrap(), LISTEN);
        daemon.wait_for_line(&format!("{front} is not served"), TIMEOUT);
        let host = lab.host();
        host.ip(&["addr", "add", address, "dev", "eth0"]).unwrap();
        wait_for_answer(&lab, front);
        assert_eq!(ask(&lab, front, 20).total(), 20);
        host.ip(&["addr", "del", address, "dev", "eth0"]).unwrap();
        host.ip(&["addr", "add", address, "dev", "lo"]).unwrap();
        eventually("it is refused outside and served inside", || {
            let error = lab.get(front, "/").err()?;
            let inside = host.run(|| get(front, "/")).is_ok();
            (error.kind() == ErrorKind::ConnectionRefused && inside).then_some(())
        });
    }
    for front in [lab.front(LISTEN), lab.front_v6(LISTEN)] {
        assert_eq!(
            lab.get(front, "/").unwrap_err().kind(),
            ErrorKind::ConnectionRefused,
            "{front}"
        );
    }
}

/// On a loopback address a service is for the host's own clients.
#[test]
fn a_loopback_address_is_a_service_for_the_host_alone() {
    let (lab, _servers) = lab();
    let _daemon = start(&lab, &["127.0.0.1:80:9091", "[::1]:80:9091", "80:9090"]);
    for local in ["127.0.0.1:80", "[::1]:80"] {
        let local: SocketAddr = local.parse().unwrap();
        for _ in 0..20 {
            let answer = lab.host().run(|| get(local, "/")).unwrap();
            assert!(answer.backend.starts_with("given-"), "{answer:?}");
        }
    }
    let tally = ask(&lab, lab.front(LISTEN), 30);
    assert_eq!(tally.of("web-1") + tally.of("web-2"), 30, "{tally}");
}
