//! A backend's link goes down and comes back: the backend keeps its way, and its connections.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use samport_tests::daemon::{Daemon, samport_binary};
use samport_tests::load::{Connection, ask};
use samport_tests::served::{Served, Status, TARGET, text};
use samport_tests::traces::undisturbed;
use samport_tests::{CLIENT_V4, Lab, TIMEOUT, eventually};

use crate::lab;
use crate::takeover::{OpenConnections, taken_over};

/// Long enough for samport to hear of it and to have looked for everybody once more.
const A_WHILE: Duration = Duration::from_secs(2);

fn set(lab: &Lab, device: &str, state: &str) {
    lab.host().ip(&["link", "set", device, state]).unwrap();
}

/// Each backend's way, as the record of the instance has it.
fn ways(lab: &Lab) -> Vec<String> {
    let status = Status::only_in(lab.host());
    let of = |one| format!("{} {}", text(one, "name"), text(one, "via"));
    status.backends().iter().map(of).collect()
}

fn assert_peers(lab: &Lab, when: &str) {
    let ways = ways(lab);
    assert!(!ways.is_empty() && ways.iter().all(|way| way.ends_with(" peer")), "{when}: {ways:?}");
}

/// Requests on kept connections, one after the other on each, until told to stop.
struct UnderWay {
    is_over: Arc<AtomicBool>,
    worker: thread::JoinHandle<OpenConnections>,
}

impl UnderWay {
    fn begin(served: &Served, mut kept: OpenConnections) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&is_over);
        let (begun, first) = mpsc::channel();
        let worker = served.lab.client().run(|| {
            thread::spawn(move || {
                while !stopped.load(Relaxed) {
                    kept.assert_answered("under way");
                    let _ = begun.send(());
                }
                kept
            })
        });
        first.recv_timeout(TIMEOUT).expect("a round of answers");
        Self { is_over, worker }
    }

    /// Waits for the request that is under way.
    fn end(self) -> OpenConnections {
        self.is_over.store(true, Relaxed);
        self.worker.join().expect("every request is answered")
    }
}

/// A backend whose veth is a port of a bridge.
#[test]
fn a_samport_that_starts_while_a_veth_is_down_keeps_its_connections() {
    let _undisturbed = undisturbed();
    let mut served = Served::start(lab(2), &["--health", "tcp"]);
    assert_peers(&served.lab, "at first");
    let veth = served.lab.backends()[0].host_interface().to_owned();
    let mut idle = OpenConnections::open(&served, 10);
    let busy = UnderWay::begin(&served, OpenConnections::open(&served, 2));
    set(&served.lab, &veth, "down");
    thread::sleep(A_WHILE);
    assert_peers(&served.lab, "with a veth down");
    served = taken_over(served, &samport_binary(), &["--health", "tcp"]);
    assert_peers(&served.lab, "started with a veth down");
    thread::sleep(A_WHILE);
    assert_peers(&served.lab, "a while after the start");
    set(&served.lab, &veth, "up");
    let mut busy = busy.end();
    thread::sleep(A_WHILE);
    assert_peers(&served.lab, "with the veth up again");
    idle.assert_answered("afterwards");
    busy.assert_answered("afterwards");
    for line in served.daemon.lines() {
        let is_change = ["+ ", "- "].iter().any(|sign| line.text.starts_with(sign));
        assert!(!is_change, "{}", line.text);
    }
    let both = || served.fronts().map(|front| ask(&served.lab, front, 20).of("web-1"));
    eventually("web-1 has new connections", || both().iter().all(|of| *of > 0).then_some(()));
}

/// A backend whose route leads to its own veth, and is taken away with the link: what is left is the default route.
#[test]
fn a_backend_without_a_bridge_keeps_its_way_while_its_link_is_down() {
    let _undisturbed = undisturbed();
    let lab = lab(1);
    let (host, backend) = (lab.host(), &lab.backends()[0]);
    host.batch(&format!(
        "link add name alt0 type veth peer name eth1 netns {}\n\
         link set alt0 up\n\
         route add default via {CLIENT_V4} dev eth0\n",
        backend.namespace().name()
    ))
    .unwrap();
    backend
        .namespace()
        .batch("link set eth1 up\nlink set lo up\naddr add 10.99.0.1/32 dev lo\n")
        .unwrap();
    let lead = ["route", "replace", "10.99.0.1", "dev", "alt0"];
    host.ip(&lead).unwrap();
    let _servers = lab.serve(TARGET).unwrap();
    let args = ["-i", "eth0", "-p", "80:9090", "--backend", "10.99.0.1", "--health", "none"];
    let mut daemon = Daemon::start(&lab, &args);
    assert_peers(&lab, "at first");
    let mut kept = lab.client().run(|| Connection::open(lab.front(80)).unwrap());
    assert_eq!(kept.get("/").unwrap().backend, "web-1");

    for is_killed in [false, true] {
        set(&lab, "alt0", "down");
        thread::sleep(A_WHILE);
        assert_peers(&lab, "with the link down");
        if is_killed {
            daemon.kill9();
            let next = Daemon::start(&lab, &args);
            std::mem::replace(&mut daemon, next).adopted();
            thread::sleep(A_WHILE);
            assert_peers(&lab, "started with the link down");
        }
        set(&lab, "alt0", "up");
        // Whoever makes the route again needs a moment for it.
        thread::sleep(A_WHILE);
        assert_peers(&lab, "with the link up, and no route yet");
        host.ip(&lead).unwrap();
        assert_eq!(kept.get("/").unwrap().backend, "web-1", "killed: {is_killed}");
        thread::sleep(A_WHILE);
        assert_peers(&lab, "with the link up again");
    }
    daemon.stop();
}

/// A container that is paused, or does not answer its host for another reason: its veth is up.
#[test]
fn a_samport_that_starts_while_a_neighbour_is_silent_keeps_its_way() {
    let _undisturbed = undisturbed();
    let mut served = Served::start(lab(2), &[]);
    let mut kept = OpenConnections::open(&served, 10);
    let be_silent = |served: &Served, value: &str| {
        let silent = served.lab.backends()[0].namespace();
        silent.sysctl("net/ipv4/conf/eth0/arp_ignore", value).unwrap();
    };
    be_silent(&served, "8");
    served.lab.host().ip(&["-4", "neigh", "flush", "dev", "br0"]).unwrap();
    served = taken_over(served, &samport_binary(), &[]);
    assert_peers(&served.lab, "started while web-1 is silent");
    be_silent(&served, "0");
    thread::sleep(A_WHILE);
    assert_peers(&served.lab, "with web-1 answering again");
    kept.assert_answered("afterwards");
}
