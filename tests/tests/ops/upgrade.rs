//! Upgrading from the last release of each older layout of maps: the new version takes over with all flows.

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use samport::dataplane::pins;
use samport::system::instance;
use samport_common::layout::LAYOUT_VERSION;
use samport_tests::daemon::{Backends, Daemon, samport_binary};
use samport_tests::datagrams::{Echo, ask_connected, client};
use samport_tests::load::{Connection, Load};
use samport_tests::served::{Served, TARGET};
use samport_tests::traces::{Objects, assert_traces, traces, undisturbed};
use samport_tests::{TIMEOUT, eventually};

use crate::lab;
use crate::takeover::{OpenConnections, assert_said, instance_of, refusal, taken_over};

/// TCP connections that are open during an upgrade, of both families together.
const CONNECTIONS: usize = 1_000;
/// The same for each other kind of hook.
const FEWER: usize = 104;
/// Threads that ask on half of them without a pause.
const ASKERS: usize = 4;
/// Sockets that exchange datagrams.
const SOCKETS: usize = 100;
/// New TCP connections at a time.
const LOAD: usize = 2;

/// The program of the last release with an older layout: `cargo xtask test` builds it.
fn released(layout: u32) -> PathBuf {
    let variable = format!("SAMPORT_RELEASED_{layout}");
    let path = std::env::var_os(&variable).map(PathBuf::from);
    path.filter(|path| path.is_file()).unwrap_or_else(|| {
        panic!(
            "{variable} names no program: run `cargo xtask test`, or `export $(cargo xtask released)` before"
        )
    })
}

/// A lab behind the released version, with servers of TCP and UDP.
struct Released {
    layout: u32,
    served: Served,
    _echoes: Vec<Echo>,
}

impl Released {
    fn start(layout: u32, backends: u8, options: &[&str]) -> Self {
        let lab = lab(backends);
        let echo = |backend: &samport::lab::Backend| {
            backend.namespace().run(|| Echo::bind(backend.name(), TARGET)).unwrap()
        };
        let echoes = lab.backends().iter().map(echo).collect();
        let file = Backends::dual(&lab, TARGET);
        let servers = lab.serve(TARGET).expect("start the servers");
        let usual = ["-i", "eth0", "-p", "80:9090", "-p", "80:9090/udp", "--file", file.path()];
        let daemon =
            Daemon::start_binary(&released(layout), lab.host(), &[&usual[..], options].concat());
        Self { layout, served: Served { daemon, file, servers, lab }, _echoes: echoes }
    }

    /// Kills it and starts this version in its place.
    fn upgraded(self, options: &[&str]) -> Self {
        assert_eq!(layout_of(&self.served), self.layout, "not the released version");
        let options = [&["-p", "80:9090/udp"], options].concat();
        let served = taken_over(self.served, &samport_binary(), &options);
        served.daemon.wait_for_line("taking over from samport ", TIMEOUT);
        assert_eq!(layout_of(&served), LAYOUT_VERSION);
        Self { served, ..self }
    }
}

/// The layout of an instance's maps, by its record: an older version's cannot be asked.
fn layout_of(served: &Served) -> u32 {
    instance::read_record(&instance_of(served)).expect("read the record").layout
}

/// A client of one flow, and the backend that has it.
struct OpenFlow<T> {
    by: T,
    backend: String,
}

impl<T: Asks> OpenFlow<T> {
    fn open(front: SocketAddr) -> Self {
        let mut by = T::open(front);
        let backend = by.ask().unwrap_or_else(|e| panic!("the first answer: {e}"));
        Self { by, backend }
    }

    fn is_kept(&mut self) -> Result<(), String> {
        match self.by.ask() {
            Ok(backend) if backend == self.backend => Ok(()),
            Ok(backend) => Err(format!("{} has become {backend}", self.backend)),
            Err(error) => Err(format!("{}: {error}", self.backend)),
        }
    }
}

trait Asks {
    fn open(front: SocketAddr) -> Self;
    fn ask(&mut self) -> std::io::Result<String>;
}

impl Asks for Connection {
    fn open(front: SocketAddr) -> Self {
        Self::open(front).unwrap_or_else(|e| panic!("connect to {front}: {e}"))
    }

    fn ask(&mut self) -> std::io::Result<String> {
        self.get("/").map(|answer| answer.backend)
    }
}

impl Asks for UdpSocket {
    fn open(front: SocketAddr) -> Self {
        let socket = client(front).expect("make a socket");
        socket.connect(front).expect("connect a socket");
        socket
    }

    fn ask(&mut self) -> std::io::Result<String> {
        ask_connected(self).map(|(name, _)| name)
    }
}

/// As many flows, by turns to each front.
fn kept<T: Asks>(fronts: [SocketAddr; 2], count: usize) -> Vec<OpenFlow<T>> {
    (0..count).map(|number| OpenFlow::open(fronts[number % 2])).collect()
}

fn lost<T: Asks>(flows: &mut [OpenFlow<T>]) -> Vec<String> {
    flows.iter_mut().filter_map(|flow| flow.is_kept().err()).collect()
}

/// Both ends of all connections are in this process.
fn allow_many_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let wanted = Some(8 * CONNECTIONS as u64);
    if limit.current.is_some() && limit.current < wanted {
        let limit = Rlimit { current: wanted, maximum: limit.maximum.max(wanted) };
        setrlimit(Resource::Nofile, limit).expect("allow as many descriptors");
    }
}

const _: () = assert!(CONNECTIONS.is_multiple_of(2 * ASKERS) && FEWER.is_multiple_of(2 * ASKERS));

/// Upgrades while flows are idle and others are not; none is lost, and then nothing is left of either version.
fn assert_upgraded(layout: u32, connections: usize, options: &[&str]) {
    let _undisturbed = undisturbed();
    allow_many_descriptors();
    let plain = lab(1);
    let before = traces(plain.host());
    drop(plain);
    let released = Released::start(layout, 3, options);
    let objects = Objects::of(released.served.lab.host());
    let fronts = released.served.fronts();
    let open = || {
        let active: Vec<Vec<OpenFlow<Connection>>> =
            (0..ASKERS).map(|_| kept(fronts, connections / 2 / ASKERS)).collect();
        (active, kept::<Connection>(fronts, connections / 2), kept::<UdpSocket>(fronts, SOCKETS))
    };
    let (active, mut idle, mut sockets) = released.served.lab.client().run(open);
    let loads = fronts.map(|front| Load::start(released.served.lab.client(), front, LOAD));
    let (stop, rounds) = (AtomicBool::new(false), AtomicUsize::new(0));
    let ask_on = |mut flows: Vec<OpenFlow<Connection>>| {
        let mut failed = Vec::new();
        while failed.is_empty() && !stop.load(SeqCst) {
            failed = lost(&mut flows);
            rounds.fetch_add(1, SeqCst);
        }
        failed.extend(lost(&mut flows));
        (flows, failed)
    };
    let (upgraded, active) = thread::scope(|scope| {
        let askers: Vec<_> =
            active.into_iter().map(|flows| scope.spawn(|| ask_on(flows))).collect();
        let upgraded = released.upgraded(options);
        let (asked, so_far) = (2 * ASKERS, rounds.load(SeqCst));
        eventually("all of them ask twice more", || {
            (rounds.load(SeqCst) >= so_far + asked).then_some(())
        });
        stop.store(true, SeqCst);
        let active: Vec<_> =
            askers.into_iter().map(|asker| asker.join().expect("an asker")).collect();
        (upgraded, active)
    });
    let failed: Vec<_> = active.iter().flat_map(|(_, failed)| failed).collect();
    assert_eq!(failed, [""; 0], "active connections");
    assert_eq!(lost(&mut idle), [""; 0], "idle connections");
    assert_eq!(lost(&mut sockets), [""; 0], "datagrams");
    for load in loads {
        assert!(load.wait_for_more(20, TIMEOUT));
        // One that is opened in the moment of the exchange may be lost (docs/concepts/limits.md): each thread has one.
        let report = load.stop();
        assert!(report.failures.len() <= LOAD, "{report}");
    }
    // Whatever two versions have counted in the same moment, the next count is right.
    let counted = (connections + SOCKETS) as u64;
    eventually(&format!("{counted} flows are counted as open"), || {
        (upgraded.served.status().sum("open") >= counted).then_some(())
    });
    drop(active);
    let Served { daemon, lab, .. } = upgraded.served;
    daemon.stop();
    assert_traces(lab.host(), &before);
    objects.assert_gone();
}

/// Case 78.
#[test]
fn no_connection_is_lost_in_an_upgrade_from_the_last_release() {
    assert_upgraded(3, CONNECTIONS, &[]);
}

/// Case 78.
#[test]
fn no_connection_is_lost_in_an_upgrade_with_other_hooks_and_ways() {
    let xdp: &[&str] = &["--hook", "xdp", "--xdp-mode", "generic"];
    for options in [&["--hook", "tc"], xdp, &["--forward", "stack"]] {
        assert_upgraded(3, FEWER, options);
    }
}

/// Case 78: an upgrade that fails leaves everything as it was, wherever it fails, and the next one succeeds.
#[test]
fn an_upgrade_that_fails_has_changed_nothing() {
    let _undisturbed = undisturbed();
    let mut released = Released::start(3, 2, &[]);
    let mut kept = OpenConnections::open(&released.served, 10);
    let folder = pins::folder_of(&instance_of(&released.served));
    released.served.daemon.kill9();
    let [flows, elsewhere, lost, conditions] =
        ["map_FLOWS6", "elsewhere", "map_LOST", "map_CONDITIONS"].map(|pin| folder.join(pin));
    let rename = |from: &Path, to: &Path| fs::rename(from, to).expect("rename a pin");
    let exchange = || {
        rename(&lost, &elsewhere);
        rename(&conditions, &lost);
        rename(&elsewhere, &conditions);
    };
    let udp = ["-p", "80:9090/udp"];

    rename(&flows, &elsewhere);
    assert_said(&refusal(&released.served, &udp), 1, &["map_FLOWS6"]);
    rename(&elsewhere, &flows);
    kept.assert_answered("after a pin that is missing");

    exchange();
    assert_said(&refusal(&released.served, &udp), 1, &["BACKEND_LOAD", "another layout"]);
    exchange();
    kept.assert_answered("after a pin of another map");

    let few = [&udp[..], &["--max-backends", "1"]].concat();
    assert_said(&refusal(&released.served, &few), 2, &["--max-backends 1", "number 8"]);
    kept.assert_answered("after a table that was too small");

    let upgraded = released.upgraded(&[]);
    kept.assert_answered("after the upgrade");
    drop(upgraded);
}
