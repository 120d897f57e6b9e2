//! Nodes of different size: each gets the share of its containers, in each way to choose.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use samport::lab::cluster::{Host, Options};
use samport::lab::{Connection, Namespace, Tally, stats};
use samport_tests::daemon::samport;
use samport_tests::load::get;
use samport_tests::served::LISTEN;
use samport_tests::socket::{ask_on, connect_between, connect_from};

use super::Nodes;

/// Containers of the first host, beside one of the second.
const LARGE: u8 = 4;
/// Share of the second host's only container, whichever host is dialled.
const SMALL_SHARE: f64 = 0.2;
/// Clients that a hash tells apart, by port or by address.
const CLIENTS: u16 = 400;

fn small(tally: &Tally) -> u32 {
    tally.of("n2-web-1")
}

/// Both hosts, with this way to choose.
fn choose(nodes: &Nodes, mode: &str) {
    for host in nodes.cluster.hosts() {
        let output = samport(host.namespace(), &["balance", mode, "80"]);
        assert!(output.status.success(), "{mode}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

fn tally_of(answers: impl Iterator<Item = String>) -> Tally {
    answers.fold(Tally::default(), |mut tally, name| {
        tally.add(&name);
        tally
    })
}

/// So many requests, over both families by turns.
fn ask(host: &Host, requests: usize) -> Tally {
    let fronts = host.fronts(LISTEN);
    tally_of((0..requests).map(|number| get(fronts[number % 2], "/").unwrap().backend))
}

fn assert_share(what: &str, host: &Host, tally: &Tally) {
    println!("{what} at {}: {:?}", host.name(), tally.counts());
    let is_fair = stats::within_four_sigma(small(tally), tally.total(), SMALL_SHARE);
    assert!(is_fair, "{what} at {}:\n{tally}", host.name());
    assert_eq!(tally.counts().len(), usize::from(LARGE) + 1, "{what} at {}:\n{tally}", host.name());
}

/// The client's addresses, one for each of the clients that it plays.
fn clients() -> impl Iterator<Item = IpAddr> {
    (0..CLIENTS).map(|client| Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 1, client).into())
}

fn add_clients(client: &Namespace) {
    let lines: Vec<_> =
        clients().map(|one| format!("addr add {one}/64 dev eth0 nodad\n")).collect();
    client.batch(&lines.concat()).unwrap();
}

/// Of the connections that are open; all are kept.
fn hold(host: &Host, connections: usize) -> Tally {
    let fronts = host.fronts(LISTEN);
    let mut held: Vec<_> = Vec::new();
    tally_of((0..connections).map(|number| {
        held.push(Connection::open(fronts[number % 2]).unwrap());
        held.last_mut().unwrap().get("/").unwrap().backend
    }))
}

#[test]
fn a_host_gets_the_share_of_its_containers_in_each_way_to_choose() {
    let options =
        Options { hosts: 2, backends: 1, backends_of_first: Some(LARGE), ..Options::default() };
    let nodes = Nodes::start(options);
    add_clients(nodes.cluster.client());
    let both = nodes.cluster.hosts();
    nodes.cluster.client().run(|| {
        choose(&nodes, "random");
        for host in both {
            assert_share("random", host, &ask(host, 600));
        }
        choose(&nodes, "round-robin");
        for host in both {
            let tally = ask(host, 100);
            assert_eq!(tally.counts(), [20; LARGE as usize + 1], "{}:\n{tally}", host.name());
        }
        // If weights were not heeded, open connections of hosts would be as many.
        choose(&nodes, "least-conn");
        for host in both {
            assert_share("least-conn", host, &hold(host, 400));
        }
        // A slot of the table is the most that a share differs by, and its keys are hashes.
        choose(&nodes, "maglev");
        for host in both {
            let front = host.fronts(LISTEN)[0];
            let by_port = |port| ask_on(&connect_from(port, front).unwrap(), "/").unwrap().backend;
            assert_share("maglev", host, &tally_of((20_000..20_000 + CLIENTS).map(by_port)));
        }
        choose(&nodes, "source-hash");
        for host in both {
            let front = host.fronts(LISTEN)[1];
            let by_address = |client| {
                let stream = connect_between(SocketAddr::new(client, 0), front).unwrap();
                ask_on(&stream, "/").unwrap().backend
            };
            assert_share("source-hash", host, &tally_of(clients().map(by_address)));
        }
    });
}
