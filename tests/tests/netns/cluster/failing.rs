//! Containers of another host that fail: no client of this host notices.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Mutex, RwLock};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use samport::lab::cluster::Options;
use samport::lab::{Namespace, Tally};
use samport_tests::served::LISTEN;
use samport_tests::socket::{ask_on, connect_within};

use super::Nodes;
use crate::failover::swallow;

/// Requests for each kind of failure.
const REQUESTS: u32 = 2_000;
/// Clients that ask at the same time, each of an IPv4 address.
const CLIENTS: [u8; 8] = [101, 102, 103, 104, 105, 106, 107, 108];
/// Long enough for several SYN retransmissions, and for one answer.
const LIMIT: Duration = Duration::from_secs(10);

/// Asks the first host, over both families by turns. In the midst of it, while no request is open, `change` happens.
/// Who has answered since then, and how long the slowest has taken.
fn all_are_answered(nodes: &Nodes, change: impl FnOnce()) -> (Tally, Duration) {
    let (asked, open) = (AtomicU32::new(0), RwLock::new(()));
    let answered = Mutex::new((Tally::default(), Duration::ZERO));
    let fronts = nodes.host(1).fronts(LISTEN);
    let ask = |number: u32, client: u8| {
        let _open = open.read().unwrap();
        let begin = Instant::now();
        let front = fronts[number as usize % 2];
        let own: IpAddr = match front {
            SocketAddr::V4(_) => Ipv4Addr::new(192, 0, 2, client).into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let answer = connect_within(LIMIT, SocketAddr::new(own, 0), front)
            .and_then(|stream| Ok((ask_on(&stream, "/")?, stream.local_addr()?)));
        let (answer, own) = answer.unwrap_or_else(|error| {
            panic!("request {number} to {front}, after {:?}: {error}", begin.elapsed())
        });
        assert_eq!(answer.client, own, "{}", answer.backend);
        let (tally, slowest) = &mut *answered.lock().unwrap();
        tally.add(&answer.backend);
        *slowest = begin.elapsed().max(*slowest);
    };
    let ask_all = |client: u8| {
        let next = || Some(asked.fetch_add(1, SeqCst)).filter(|number| *number < REQUESTS);
        std::iter::from_fn(next).for_each(|number| ask(number, client));
    };
    let (ask_all, namespace) = (&ask_all, nodes.cluster.client());
    thread::scope(|scope| {
        let start = |client| scope.spawn(move || namespace.run(|| ask_all(client)));
        let asking = CLIENTS.map(start);
        while asked.load(SeqCst) < REQUESTS / 4 && !asking.iter().any(ScopedJoinHandle::is_finished)
        {
            thread::sleep(Duration::from_millis(1));
        }
        let _none_is_open = open.write().unwrap();
        change();
        *answered.lock().unwrap() = (Tally::default(), Duration::ZERO);
    });
    answered.into_inner().unwrap()
}

/// Panics unless these have answered since the change, and no others.
fn assert_of(what: &str, (tally, slowest): (Tally, Duration), names: &[&str]) {
    println!("{what}: the slowest took {} ms\n{tally}", slowest.as_millis());
    assert!(tally.total() >= REQUESTS / 2, "{what}: {tally}");
    assert_eq!(tally.iter().map(|(name, _)| name).collect::<Vec<_>>(), names, "{what}: {tally}");
}

/// Asked often, so that little of the test is waiting.
const CHECKED: [&str; 6] = ["--health", "tcp", "--health-interval", "1s", "--health-timeout", "1s"];

fn start(options: Options) -> Nodes {
    let nodes = Nodes::start_with(options, &CHECKED);
    let addresses = CLIENTS.map(|client| format!("addr add 192.0.2.{client}/24 dev eth0\n"));
    nodes.cluster.client().batch(&addresses.concat()).unwrap();
    nodes
}

fn vanish(backend: &Namespace) {
    backend.ip(&["link", "set", "eth0", "down"]).unwrap();
}

/// 2,000 requests each over one that refuses, one that is silent and one that vanishes, on the host that was not dialled.
#[test]
fn no_request_fails_over_containers_of_another_host_that_fail() {
    let options =
        Options { hosts: 2, backends: 4, backends_of_first: Some(1), ..Options::default() };
    let mut nodes = start(options);
    let refusing = nodes.servers.remove(1);
    let refuses = all_are_answered(&nodes, || drop(refusing));
    assert_of("n2-web-1 refuses", refuses, &["n1-web-1", "n2-web-2", "n2-web-3", "n2-web-4"]);
    let backends = nodes.host(2).backends();
    let silent = all_are_answered(&nodes, || swallow(backends[1].namespace()));
    assert_of("n2-web-2 is silent", silent, &["n1-web-1", "n2-web-3", "n2-web-4"]);
    let vanished = all_are_answered(&nodes, || vanish(backends[2].namespace()));
    assert_of("n2-web-3 vanishes", vanished, &["n1-web-1", "n2-web-4"]);
}

/// The host that was dialled cannot go elsewhere: it has none itself.
#[test]
fn no_request_fails_when_all_containers_are_on_another_host_and_most_of_them_fail() {
    let options =
        Options { hosts: 2, backends: 4, backends_of_first: Some(0), ..Options::default() };
    let mut nodes = start(options);
    let refusing = nodes.servers.remove(0);
    let backends = nodes.host(2).backends();
    let failing = all_are_answered(&nodes, || {
        drop(refusing);
        swallow(backends[1].namespace());
        vanish(backends[2].namespace());
    });
    assert_of("all but n2-web-4 fail", failing, &["n2-web-4"]);
}
