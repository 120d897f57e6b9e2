//! A flood of SYNs, a full table, and flows that are driven out.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;

use samport::lab::{Namespace, output_of};
use samport_tests::load::{Connection, ask};
use samport_tests::packet::Segment;
use samport_tests::served::{LISTEN, Served, second_client};
use samport_tests::socket::connect_from;
use samport_tests::{HOST_V4, HOST_V6, eventually};

use crate::lab;

/// Connections held through each front.
const KEPT: usize = 20;
/// Forged SYNs that make a flood of some seconds.
const FLOOD: u64 = 200_000;

/// Somebody who sends SYNs from addresses that are not his.
struct Flood {
    sent: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Flood {
    /// Sends out of `eth0` of a namespace, to the host's addresses.
    fn start(from: &Namespace, host_mac: [u8; 6]) -> Self {
        let (sent, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, stopped) = (Arc::clone(&sent), Arc::clone(&stop));
        let thread = from.spawn(move || {
            let socket = Raw::open("eth0");
            let mut number = 0_u32;
            while !stopped.load(Relaxed) {
                socket.send(&forged(number, host_mac));
                number += 1;
                count.fetch_add(1, Relaxed);
            }
        });
        Self { sent, stop, thread }
    }

    fn wait_for(&self, sent: u64) {
        eventually("the flood is sent", || (self.sent.load(Relaxed) >= sent).then_some(()));
    }

    fn stop(self) -> u64 {
        self.stop.store(true, Relaxed);
        self.thread.join().unwrap();
        self.sent.load(Relaxed)
    }
}

/// A SYN of nobody, over either family in turns.
fn forged(number: u32, host_mac: [u8; 6]) -> Vec<u8> {
    let [_, a, b, c] = number.to_be_bytes();
    let port = 1_024 + (number % 60_000) as u16;
    let (source, host): (IpAddr, IpAddr) = if number.is_multiple_of(2) {
        (Ipv4Addr::new(198, 18 | a & 1, b, c).into(), HOST_V4.into())
    } else {
        let low = u16::from_be_bytes([b, c]);
        (IpAddr::from([0x2001, 0xdb8, 0xbad, 0, 0, 0, a.into(), low]), HOST_V6.into())
    };
    let mut syn = Segment::syn(SocketAddr::new(source, port), SocketAddr::new(host, LISTEN));
    syn.destination_mac = host_mac;
    syn.frame()
}

/// A packet socket on a device.
struct Raw {
    socket: std::os::fd::OwnedFd,
    address: libc::sockaddr_ll,
}

impl Raw {
    fn open(device: &str) -> Self {
        use std::os::fd::FromRawFd as _;
        let name = std::ffi::CString::new(device).unwrap();
        // SAFETY: plain system calls; the descriptor is new and ours, and zeroes are a valid address.
        unsafe {
            let index = libc::if_nametoindex(name.as_ptr());
            let descriptor = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
            assert!(index > 0 && descriptor >= 0, "a packet socket on {device}");
            let mut address: libc::sockaddr_ll = std::mem::zeroed();
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_ifindex = index.cast_signed();
            Self { socket: std::os::fd::OwnedFd::from_raw_fd(descriptor), address }
        }
    }

    /// What the device has no room for is lost, as it may be.
    fn send(&self, frame: &[u8]) {
        use std::os::fd::AsRawFd as _;
        // SAFETY: the frame and the address live until the call returns, and their lengths are right.
        unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const self.address).cast(),
                size_of::<libc::sockaddr_ll>() as u32,
            );
        }
    }
}

/// The MAC of a device of the host.
fn mac_of(host: &Namespace, device: &str) -> [u8; 6] {
    let shown = host.ip(&["-o", "link", "show", "dev", device]).unwrap();
    let text = shown.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap();
    let bytes: Vec<_> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

/// A connection, and who has answered on it from the beginning.
struct Kept(Connection, String);

impl Kept {
    fn open(served: &Served, each: usize) -> Vec<Self> {
        let open = |front| {
            let mut connection = Connection::open(front).unwrap();
            let backend = connection.get("/").unwrap().backend;
            Self(connection, backend)
        };
        let fronts = served.fronts().into_iter().flat_map(|front| vec![front; each]);
        served.lab.client().run(|| fronts.map(open).collect())
    }

    fn check(&mut self) {
        let Self(connection, backend) = self;
        let own = connection.local_addr();
        let answer = connection.get("/").unwrap_or_else(|e| panic!("{own} to {backend}: {e}"));
        assert_eq!(answer.backend, *backend, "connection of {own}");
    }
}

/// Case 83: SYN flood from another namespace: what is established goes on, what is new is served, and
/// the table is not exhausted.
#[test]
fn a_flood_of_syns_drives_nobody_out() {
    let lab = lab(2);
    let second = second_client(&lab);
    let small = ["-i", "eth1", "--flows", "4096", "--syn-flood", "200"];
    let served = Served::start(lab, &small);
    // Idle ones would be the first to go from a table that is full.
    let mut idle = Kept::open(&served, KEPT);
    let mut busy = Kept::open(&served, KEPT);
    assert_eq!(served.status().verdict("forward-flood"), 0);

    let flood = Flood::start(&second, mac_of(served.lab.host(), "eth1"));
    let mut sent = 0;
    while sent < FLOOD {
        sent += FLOOD / 10;
        flood.wait_for(sent);
        for front in served.fronts() {
            assert_eq!(ask(&served.lab, front, 5).total(), 5);
        }
        busy.iter_mut().for_each(Kept::check);
    }
    let mut during = Kept::open(&served, KEPT);
    during.iter_mut().for_each(Kept::check);
    let sent = flood.stop();
    let status = served.status();
    let flooded = status.verdict("forward-flood");
    assert!(flooded > sent / 2, "{flooded} of {sent} were taken for a flood");

    for kept in [&mut idle, &mut busy, &mut during] {
        kept.iter_mut().for_each(Kept::check);
    }
    assert!(served.status().verdict("mid-flow-miss") <= status.verdict("mid-flow-miss"));
    for front in served.fronts() {
        assert_eq!(ask(&served.lab, front, 50).total(), 50);
    }
    // The flood's end is noticed: new connections go to the real table again.
    eventually("connections are no longer taken for a flood", || {
        let before = served.status().verdict("forward-flood");
        assert_eq!(ask(&served.lab, served.fronts()[0], 10).total(), 10);
        (served.status().verdict("forward-flood") == before).then_some(())
    });
}

/// Case 33: Table full: new connections still served. Case 34: Eviction storm: active flows keep their
/// backend.
#[test]
fn a_full_table_serves_new_connections_and_keeps_those_that_are_used() {
    let served = Served::start(lab(2), &["--flows", "1024", "--syn-flood", "1000000"]);
    let mut busy = Kept::open(&served, KEPT);
    let fronts = served.fronts();
    let misses = served.status().verdict("mid-flow-miss");
    for _ in 0..30 {
        for front in fronts {
            assert_eq!(ask(&served.lab, front, 50).total(), 50);
        }
        busy.iter_mut().for_each(Kept::check);
    }
    let status = served.status();
    assert!(status.sum("flows") > 3_000);
    assert_eq!(status.verdict("flow-insert-failed"), 0);
    assert_eq!(status.verdict("mid-flow-miss"), misses);
}

/// Case 37: An entry evicted mid-connection: the client gets an RST at its next packet, never silence.
#[test]
fn a_connection_whose_entry_is_gone_is_reset_at_its_next_packet() {
    let served = Served::start(lab(2), &[]);
    let mut kept = Kept::open(&served, 3);
    let forgotten = forget_all(served.lab.host());
    assert_eq!(forgotten, 6);
    for Kept(connection, backend) in &mut kept {
        let error = connection.get("/").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{backend}: {error}");
    }
    assert!(served.status().verdict("mid-flow-miss") >= 6);
    // The same ports, at once: new connections.
    for (Kept(connection, _), front) in kept.iter().zip(served.fronts().map(|f| [f; 3]).concat()) {
        let port = connection.local_addr().port();
        served.lab.client().run(|| connect_from(port, front)).unwrap();
    }
}

/// Deletes every flow of the instance in a namespace, and says how many there were.
fn forget_all(host: &Namespace) -> usize {
    let suffix = format!("@{}", samport_tests::served::inode(host));
    let folders = std::fs::read_dir("/sys/fs/bpf/samport").unwrap();
    let folders = folders.map(|entry| entry.unwrap().path());
    let own: Vec<_> = folders.filter(|path| path.to_string_lossy().ends_with(&suffix)).collect();
    let [folder] = &own[..] else { panic!("one instance in {own:?}") };
    let mut forgotten = 0;
    for map in ["FLOWS4", "FLOWS6"] {
        let pin = folder.join(map);
        let bpftool = |args: &[&str]| {
            let mut command = std::process::Command::new("bpftool");
            command.arg("-j").arg("map").arg(args[0]).arg("pinned").arg(&pin).args(&args[1..]);
            output_of(&mut command).unwrap()
        };
        let dump: serde_json::Value = serde_json::from_str(&bpftool(&["dump"])).unwrap();
        for entry in dump.as_array().unwrap() {
            let key = entry["key"].as_array().unwrap().iter();
            let key: Vec<_> = key.map(|byte| byte.as_str().unwrap()).collect();
            bpftool(&[&["delete", "key", "hex"], &key[..]].concat());
            forgotten += 1;
        }
    }
    forgotten
}
