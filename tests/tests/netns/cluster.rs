//! Several hosts: a packet that comes in at one is served by a container of another.

mod failing;
mod lab;
mod operator;
mod routers;
mod weights;

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use samport::lab::cluster::{Cluster, Host, Options};
use samport::lab::{Backend, Load, Server, get, stats};
use samport_tests::daemon::Daemon;
use samport_tests::datagrams::{Echo, ask_whom, client, mirrored};
use samport_tests::frames::datagram;
use samport_tests::load::Connection;
use samport_tests::served::{LISTEN, Status, TARGET, text};
use samport_tests::{TIMEOUT, eventually, raw, require_root};
use serde_json::Value;
use tempfile::TempDir;

/// Where tunnels end.
const TUNNEL: u16 = 6_080;
/// Bytes of a large transfer.
const LENGTH: usize = 8 << 20;

/// samport on every host. Fields are dropped in their order: samport before the hosts.
struct Nodes {
    daemons: Vec<Daemon>,
    servers: Vec<Server>,
    file: PathBuf,
    _folder: TempDir,
    cluster: Cluster,
}

impl Nodes {
    fn start(options: Options) -> Self {
        Self::start_with(options, &[])
    }

    /// With more options of samport's.
    fn start_with(options: Options, more: &[&str]) -> Self {
        let mut nodes = Self::build(options);
        nodes.run(more);
        nodes
    }

    /// All but samport.
    fn build(options: Options) -> Self {
        require_root();
        let cluster = Cluster::build(options).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("nodes.toml");
        fs::write(&file, cluster.nodes_file(LISTEN)).unwrap();
        let servers = cluster.hosts().iter().flat_map(|host| host.serve(TARGET).unwrap()).collect();
        let nodes = Self { daemons: Vec::new(), servers, file, _folder: folder, cluster };
        for host in nodes.cluster.hosts() {
            fs::write(nodes.backends_of(host), backends_file(host)).unwrap();
        }
        nodes
    }

    /// Starts samport on all hosts, at the same time.
    fn run(&mut self, more: &[&str]) {
        let daemons: Vec<_> =
            self.cluster.hosts().iter().map(|host| self.launch(host, more)).collect();
        daemons.iter().for_each(Daemon::wait_until_ready);
        self.daemons = daemons;
        // Those that were ready first may have found others missing, the last time within a second from now.
        thread::sleep(Duration::from_millis(1_100));
        for host in self.cluster.hosts() {
            self.wait_until_all_are_up(host);
        }
    }

    /// Starts samport on a host again, where it was killed.
    fn restart(&mut self, number: usize) {
        let daemon = self.launch(self.host(number), &[]);
        daemon.wait_until_ready();
        self.daemons[number - 1] = daemon;
    }

    /// Starts samport on a host, which takes a while.
    fn launch(&self, host: &Host, more: &[&str]) -> Daemon {
        let ports = format!("{LISTEN}:{TARGET},{LISTEN}:{TARGET}/udp");
        let (name, backends) = (host.name(), self.backends_of(host));
        let paths = [&backends, &self.file].map(|path| path.to_str().unwrap());
        let args = [
            &["-i", "eth0", "-p", &ports, "--file", paths[0]][..],
            &["--cluster", "file", "--cluster-file", paths[1], "--node", &name],
            &["--drain", "1s"],
            more,
        ];
        Daemon::launch(host.namespace(), &args.concat())
    }

    /// The file of a host's own containers.
    fn backends_of(&self, host: &Host) -> PathBuf {
        self.file.with_file_name(format!("{}.toml", host.name()))
    }

    fn host(&self, number: usize) -> &Host {
        &self.cluster.hosts()[number - 1]
    }

    /// What is not known of a node yet is that it does not answer: only one whose path was measured has answered.
    fn wait_until_all_are_up(&self, at: &Host) {
        let others = self.cluster.hosts().len() - 1;
        eventually(&format!("{} has answers of all others", at.name()), || {
            let status = Status::only_in(at.namespace());
            let has_answered = |node: &&Value| node["up"] == true && node["path_mtu"].is_u64();
            (status.nodes().iter().filter(has_answered).count() == others).then_some(())
        });
    }

    /// Asks so many times: answers by server. Each has seen the client's own address.
    fn ask(&self, front: SocketAddr, requests: u32) -> BTreeMap<String, u32> {
        let mut tally = BTreeMap::new();
        self.cluster.client().run(|| {
            for _ in 0..requests {
                let response = get(front, "/").unwrap_or_else(|error| panic!("{front}: {error}"));
                assert_eq!(response.client, response.local_addr, "{}", response.backend);
                *tally.entry(response.backend).or_default() += 1;
            }
        });
        tally
    }

    /// The same with a datagram for each.
    fn ask_by_datagrams(&self, front: SocketAddr, requests: u32) -> BTreeMap<String, u32> {
        let mut tally = BTreeMap::new();
        self.cluster.client().run(|| {
            for _ in 0..requests {
                let (name, [seen, own]) =
                    ask_whom(front).unwrap_or_else(|error| panic!("{front}: {error}"));
                assert_eq!(seen, own, "{name}");
                *tally.entry(name).or_default() += 1;
            }
        });
        tally
    }

    /// Servers of datagrams in all containers, which say the names that those of TCP do.
    fn echoes(&self) -> Vec<Echo> {
        let echo = |host: &Host, backend: &Backend| {
            let name = host.server_name(backend);
            backend.namespace().run(|| Echo::bind(&name, TARGET)).unwrap()
        };
        let hosts = self.cluster.hosts().iter();
        hosts.flat_map(|host| host.backends().iter().map(|one| echo(host, one))).collect()
    }

    fn verdict(&self, number: usize, name: &str) -> u64 {
        Status::only_in(self.host(number).namespace()).verdict(name)
    }

    /// Takes a host's containers out, which its neighbours are not told.
    fn without_containers(&self, number: usize) {
        let host = self.host(number);
        let backends = self.backends_of(host);
        let new = backends.with_extension("new");
        fs::write(&new, "").unwrap();
        fs::rename(new, &backends).unwrap();
        eventually(&format!("{} has no containers", host.name()), || {
            let status = Status::only_in(host.namespace());
            let mut names = status.backends().iter().map(|one| text(one, "name"));
            names.all(|name| name.starts_with('n')).then_some(())
        });
    }
}

fn backends_file(host: &Host) -> String {
    let entries = host.backends().iter().flat_map(|backend| {
        [backend.v4(TARGET), backend.v6(TARGET)].map(|address| {
            format!("[[backend]]\nname = \"{}\"\naddress = \"{address}\"\n", backend.name())
        })
    });
    entries.collect()
}

/// Whether a host knows another one by this name, and finds it down.
fn finds_down(host: &Host, name: &str) -> bool {
    let status = Status::only_in(host.namespace());
    let node = status.nodes().iter().find(|node| text(node, "name") == name);
    node.expect("a node of this name")["up"] == false
}

/// Whichever host is dialled, all containers of all hosts answer alike, TCP and UDP over both families, and see the
/// client's own address. Its namespaces have Docker's FORWARD DROP and strict reverse-path filters.
#[test]
fn any_host_serves_the_containers_of_all() {
    let nodes = Nodes::start(Options::default());
    let _echoes = nodes.echoes();
    let names: Vec<_> = nodes.servers.iter().map(Server::name).collect();
    for host in nodes.cluster.hosts() {
        let mut all = BTreeMap::new();
        for front in host.fronts(LISTEN) {
            for (protocol, tally) in
                [("TCP", nodes.ask(front, 240)), ("UDP", nodes.ask_by_datagrams(front, 240))]
            {
                assert!(tally.keys().eq(&names), "{protocol} {front}: {tally:?}");
                for (name, count) in tally {
                    *all.entry(name).or_default() += count;
                }
            }
        }
        let is_fair = |count: &u32| stats::within_four_sigma(*count, 960, 1.0 / 6.0);
        assert!(all.values().all(is_fair), "{}: {all:?}", host.name());
    }
    assert!(nodes.verdict(1, "forward-node") > 0 && nodes.verdict(2, "reply-node") > 0);
    for number in 1..=3 {
        for refused in
            ["tunnel-unknown-node", "tunnel-no-flow", "tunnel-not-served", "spoofed-source"]
        {
            assert_eq!(nodes.verdict(number, refused), 0, "{refused} at n{number}");
        }
    }
    for daemon in nodes.daemons {
        daemon.stop();
    }
}

/// Eight mebibytes each way by another host, byte for byte, whatever the segment takes, with and without offload.
#[test]
fn large_transfers_through_another_host_arrive_intact() {
    for (mtu, offload_off) in [(1_500, false), (1_500, true), (1_400, true), (9_000, false)] {
        let nodes =
            Nodes::start(Options { hosts: 2, backends: 1, mtu, offload_off, ..Options::default() });
        nodes.without_containers(1);
        nodes.cluster.client().run(|| {
            for front in nodes.host(1).fronts(LISTEN) {
                let mut connection = Connection::open(front).unwrap();
                let answer = connection.get(&format!("/bytes/{LENGTH}")).unwrap();
                assert_eq!((answer.status, answer.body.len()), (200, LENGTH), "{front}, {mtu}");
                assert!(answer.is_pattern(), "{front}, {mtu}: other bytes have come back");
                assert_eq!(answer.backend, "n2-web-1");
                let answer = connection.post(LENGTH).unwrap();
                assert_eq!(answer.text(), format!("ok {LENGTH}"), "{front}, {mtu}");
            }
        });
        assert_eq!(nodes.verdict(1, "forward-peer"), 0, "n1 has served by itself");
    }
}

/// Datagrams of any size: those that do not fit through the tunnel are told so, or come in fragments.
#[test]
fn datagrams_of_any_size_go_through_another_host() {
    let nodes = Nodes::start(Options { hosts: 2, backends: 1, ..Options::default() });
    let [host, other] = [1, 2].map(|number| nodes.host(number));
    let backend = &other.backends()[0];
    let _echo = backend.namespace().run(|| Echo::mirror("n2-web-1", TARGET)).unwrap();
    nodes.without_containers(1);
    for front in host.fronts(LISTEN) {
        for length in [10, 1_400, 1_444, 1_460, 3_000, 9_000] {
            let question: Vec<u8> = (0..=250).cycle().take(length).collect();
            let answer = nodes.cluster.client().run(|| {
                let socket = client(front).unwrap();
                socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
                socket.connect(front).unwrap();
                // One that is too large is lost, and its sender told.
                let mut answer = vec![0; 65_536];
                eventually(&format!("{length} bytes from {front}"), || {
                    let _ = socket.send(&question);
                    let received = socket.recv(&mut answer).ok()?;
                    Some(answer[..received].to_vec())
                })
            });
            assert_eq!(answer, mirrored("n2-web-1", &question), "{length} bytes from {front}");
        }
    }
    assert!(nodes.verdict(1, "tunnel-too-big") > 0 && nodes.verdict(2, "tunnel-too-big") > 0);
}

/// A host that is cut off gets nothing new within seconds, new connections do not fail, and it is used again when it is back.
#[test]
fn a_host_that_is_cut_off_is_left_out_and_comes_back() {
    let nodes = Nodes::start(Options::default());
    let front = nodes.host(1).fronts(LISTEN)[0];
    let mut kept = Vec::new();
    nodes.cluster.client().run(|| {
        for _ in 0..30 {
            let mut connection = Connection::open(front).unwrap();
            kept.push((connection.get("/").unwrap().backend, connection));
        }
    });
    let load = Load::start(nodes.cluster.client(), front, 2);
    assert!(load.wait_for_more(100, TIMEOUT));
    let begin = Instant::now();
    nodes.cluster.cut_off(nodes.host(2)).unwrap();
    let is_down = |host: &Host| finds_down(host, "n2");
    eventually("n1 finds n2 down", || is_down(nodes.host(1)).then_some(()));
    println!("down after {:?}", begin.elapsed());
    // Its connections are reset with their next packet, those of others go on.
    nodes.cluster.client().run(|| {
        for (backend, connection) in &mut kept {
            let is_of_n2 = backend.starts_with("n2");
            assert_eq!(connection.get("/").is_err(), is_of_n2, "{backend}");
        }
    });
    let without = load.so_far().tally;
    assert!(load.wait_for_more(200, TIMEOUT));
    let since = load.so_far().tally.since(&without);
    let of_n2: u32 = ["n2-web-1", "n2-web-2"].iter().map(|name| since.of(name)).sum();
    assert_eq!(of_n2, 0, "{since}");
    let begin = Instant::now();
    nodes.cluster.join(nodes.host(2)).unwrap();
    eventually("n1 finds n2 up", || (!is_down(nodes.host(1))).then_some(()));
    println!("up after {:?}", begin.elapsed());
    let before = load.so_far().tally;
    eventually("n2 answers again", || {
        (load.so_far().tally.since(&before).of("n2-web-1") > 0).then_some(())
    });
    // What was open at n2 in that moment has been reset, one at most for each of the two that ask.
    let failures = load.stop().failures;
    assert!(failures.len() <= 2, "{failures:?}");
}

/// A host without a container that is ready refuses through the tunnel, and another is tried: nothing fails.
#[test]
fn a_host_without_containers_is_passed_over() {
    let nodes = Nodes::start(Options { backends: 1, ..Options::default() });
    nodes.without_containers(2);
    let nodes = &nodes;
    // Each that comes upon it waits for a second: many at a time.
    let asked: Vec<_> = thread::scope(|scope| {
        let fronts = nodes.host(1).fronts(LISTEN).repeat(8).into_iter();
        let asking: Vec<_> =
            fronts.map(|front| (front, scope.spawn(move || nodes.ask(front, 5)))).collect();
        asking.into_iter().map(|(front, one)| (front, one.join().unwrap())).collect()
    });
    for (front, tally) in asked {
        assert!(tally.keys().all(|name| !name.starts_with("n2")), "{front}: {tally:?}");
    }
    assert!(nodes.verdict(2, "reply-node") > 0, "it was never asked");
}

/// Only nodes are heard in the tunnel, no tunnel is in another, and nothing in it comes in a host's own name.
#[test]
fn the_tunnel_takes_from_nodes_only_what_they_may_send() {
    let nodes = Nodes::start(Options { hosts: 2, backends: 1, ..Options::default() });
    let [n1, n2] = [1, 2].map(|number| SocketAddr::new(nodes.host(number).v4().into(), TUNNEL));
    let client: SocketAddr = "192.0.2.100:40000".parse().unwrap();
    let vip = nodes.host(1).fronts(LISTEN)[0];
    let ip = |frame: Vec<u8>| frame[14..].to_vec();
    let request = ip(datagram(client, vip, b"who?"));
    let nested = ip(datagram(client, n2, &request));
    let own = ip(datagram(SocketAddr::new(n2.ip(), 40_000), vip, b"who?"));
    let not_served = ip(datagram(client, SocketAddr::new(vip.ip(), 81), b"who?"));
    let no_flow = ip(datagram(SocketAddr::new(n2.ip(), LISTEN), client, b"answer"));
    let mac = raw::mac(nodes.host(2).namespace(), "eth0");
    for (verdict, from, inner) in [
        ("tunnel-unknown-node", client, &request),
        ("tunnel-malformed", n1, &b"\x7f\x00\x00\x00".to_vec()),
        ("tunnel-nested", n1, &nested),
        ("spoofed-source", n1, &own),
        ("tunnel-not-served", n1, &not_served),
        ("tunnel-no-flow", n1, &no_flow),
    ] {
        let before = nodes.verdict(2, verdict);
        let frame = samport_tests::frames::to_mac(datagram(from, n2, inner), mac);
        raw::send(nodes.cluster.client(), "eth0", &vec![frame; 10]);
        eventually(verdict, || (nodes.verdict(2, verdict) == before + 10).then_some(()));
    }
    // The same from a container of the host is no tunnel's.
    let before = nodes.verdict(2, "tunnel-unknown-node");
    let backend = &nodes.host(2).backends()[0];
    let gateway = raw::mac(nodes.host(2).namespace(), "br0");
    let frame = samport_tests::frames::to_mac(datagram(n1, n2, &request), gateway);
    raw::send(backend.namespace(), "eth0", &vec![frame; 10]);
    // A frame that comes later has been seen after them.
    let (seen, frame) = (nodes.verdict(2, "tunnel-malformed"), b"\x7f\x00\x00\x00");
    let last = samport_tests::frames::to_mac(datagram(n1, n2, frame), mac);
    raw::send(nodes.cluster.client(), "eth0", &[last]);
    eventually("the last", || (nodes.verdict(2, "tunnel-malformed") == seen + 1).then_some(()));
    assert_eq!(nodes.verdict(2, "tunnel-unknown-node"), before);
    assert_eq!(nodes.verdict(2, "reply-node"), 0, "a container has forged a node");
}
