//! Room in the tables of flows: who has proven nothing, and who holds too much of them, takes none of others'.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use samport::lab::{Backend, Namespace};
use samport_tests::daemon::{Backends, Daemon};
use samport_tests::datagrams::{Echo, ask_connected};
use samport_tests::flood::Flood;
use samport_tests::frames::{datagram, fragments, icmp, quote, to_mac};
use samport_tests::load::get;
use samport_tests::open_connections::{OpenConnection, Requests};
use samport_tests::packet::Segment;
use samport_tests::raw::mac;
use samport_tests::served::{LISTEN, Served, Status, TARGET, second_client};
use samport_tests::{HOST_V4, HOST_V6, Lab, eventually, number_in, require_root};
use serde_json::Value;

use crate::datagrams::connected;
use crate::lab;

/// Ports of the second service, of a service of datagrams that is answered, and of one that never is.
const OTHER: u16 = 81;
const ANSWERED: u16 = 53;
const SILENT: u16 = 514;

/// The source of a forged packet: 65,536 addresses in turns, over either family, with a port each.
fn forged_source(number: u32) -> SocketAddr {
    let [_, a, b, c] = number.to_be_bytes();
    let ip: IpAddr = if number.is_multiple_of(2) {
        Ipv4Addr::new(198, 18 + a % 2, b, c).into()
    } else {
        let low = u16::from_be_bytes([b, c]);
        Ipv6Addr::new(0x2001, 0xdb8, 0xbad, 0, 0, 0, a.into(), low).into()
    };
    SocketAddr::new(ip, 1_024 + (number % 60_000) as u16)
}

/// The host's address of a source's family.
fn host_of(source: SocketAddr, port: u16) -> SocketAddr {
    let ip: IpAddr = if source.is_ipv4() { HOST_V4.into() } else { HOST_V6.into() };
    SocketAddr::new(ip, port)
}

/// Routes to all forged sources through the attacker, as a default route is one. Without, each would be a neighbour
/// of its own, and the kernel has one table of these (1,024) for all namespaces.
fn add_routes(lab: &Lab) {
    let routes = "route add 198.18.0.0/15 via 198.51.100.2 dev eth1\n\
                  route add 2001:db8:bad::/48 via 2001:db8:3::2 dev eth1\n";
    lab.host().batch(routes).unwrap();
}

/// What `samport status` says of the tables of flows.
fn table(lab: &Lab) -> Value {
    Status::only_in(lab.host()).0["flow_table"].clone()
}

/// A lab that serves TCP, and datagrams by backends that answer and by such that do not, with an attacker on `eth1`.
struct TestBed {
    served: Served,
    _echoes: Vec<Echo>,
    attacker: Namespace,
    host_mac: [u8; 6],
}

impl TestBed {
    fn start(options: &[&str]) -> Self {
        let lab = lab(2);
        let attacker = second_client(&lab);
        add_routes(&lab);
        let host_mac = mac(lab.host(), "eth1");
        // Nobody waits for what it has heard.
        let (heard, _) = channel();
        let echo = |backend: &Backend| {
            let (name, heard) = (backend.name(), heard.clone());
            let bind = move || [Echo::bind(name, ANSWERED), Echo::silent(name, SILENT, heard)];
            backend.namespace().run(bind)
        };
        let echoes = lab.backends().iter().flat_map(echo).map(Result::unwrap).collect();
        let servers = lab.serve(TARGET).unwrap();
        let file = Backends::none();
        let entry = |backend: &Backend| {
            let ports = [("80/tcp", TARGET), ("53/udp", ANSWERED), ("514/udp", SILENT)];
            ports.map(|(listen, port)| {
                [backend.v4(port), backend.v6(port)]
                    .map(|to| format!("[[backend]]\naddress = \"{to}\"\nlisten = \"{listen}\"\n"))
            })
        };
        file.write_text(&lab.backends().iter().flat_map(entry).flatten().collect::<String>());
        let usual = ["-i", "eth0", "-i", "eth1", "-p", "80,53/udp,514/udp", "--file", file.path()];
        let daemon = Daemon::start(&lab, &[&usual[..], options].concat());
        let served = Served { daemon, file, servers, lab };
        Self { served, _echoes: echoes, attacker, host_mac }
    }

    /// That many forged packets, each made of its number and its source.
    fn flood(
        &self,
        count: u64,
        frame: impl FnMut(u32, SocketAddr) -> Vec<u8> + Send + 'static,
    ) -> Flood {
        Flood::start(&self.attacker, count, self.forged(frame))
    }

    /// Frames for the host, each made of its number and its source.
    fn forged(
        &self,
        mut frame: impl FnMut(u32, SocketAddr) -> Vec<u8> + Send + 'static,
    ) -> impl FnMut(u32) -> Vec<u8> + Send + 'static {
        let mac = self.host_mac;
        move |number| to_mac(frame(number, forged_source(number)), mac)
    }

    fn open(&self, each: usize) -> Vec<OpenConnection> {
        OpenConnection::open(self.served.lab.client(), &self.served.fronts(), each)
    }

    /// A new connection through either front, and a datagram to either; all are answered.
    fn assert_serves_new_clients(&self) {
        self.served.lab.client().run(|| {
            for front in self.served.fronts() {
                get(front, "/").unwrap_or_else(|e| panic!("TCP to {front}: {e}"));
                let to = SocketAddr::new(front.ip(), ANSWERED);
                // A burst of the flood may fill the server's buffer.
                let asked = (0..3).find_map(|_| {
                    let socket = connected(to);
                    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
                    ask_connected(&socket).ok()
                });
                assert!(asked.is_some(), "UDP to {to} is not answered");
            }
        });
    }

    /// New connections that are served for as long as this is so.
    fn serve_while(&self, goes_on: impl Fn() -> bool + Sync) -> u32 {
        let mut served = 0;
        self.served.lab.client().run(|| {
            while goes_on() {
                for front in self.served.fronts() {
                    get(front, "/").unwrap_or_else(|e| panic!("TCP to {front}: {e}"));
                    served += 1;
                }
            }
        });
        served
    }
}

/// A5: What was never answered, and what was answered only once, takes no room of connections that are open.
fn assert_datagrams_drive_no_connection_out(port: u16) {
    const FORGED: u64 = 40_000;
    let bed = TestBed::start(&["--flows", "1024"]);
    let mut idle = bed.open(100);
    let flood =
        bed.flood(FORGED, move |_, source| datagram(source, host_of(source, port), b"forged"));
    let mut sent = 0;
    while sent < FORGED {
        sent += FORGED / 8;
        flood.wait_for(sent);
        bed.assert_serves_new_clients();
    }
    flood.stop();
    let table = table(&bed.served.lab);
    OpenConnection::check_all(&mut idle);
    bed.assert_serves_new_clients();
    assert_eq!(table["evicted"], 0, "{table:#}");
    let beside = bed.served.status().verdict("forward-overflow");
    assert!(beside > FORGED / 2, "{beside} of {FORGED} were kept beside");
}

#[test]
fn datagrams_that_nobody_answers_drive_no_connection_out() {
    assert_datagrams_drive_no_connection_out(SILENT);
}

#[test]
fn datagrams_that_are_answered_drive_no_connection_out() {
    assert_datagrams_drive_no_connection_out(ANSWERED);
}

/// Two datagrams of each source look like a client that goes on after an answer: its service holds its share and no
/// more.
#[test]
fn datagrams_of_clients_that_seem_real_take_no_more_than_their_services_share() {
    const FORGED: u64 = 40_000;
    let bed = TestBed::start(&["--flows", "1024"]);
    let mut idle = bed.open(100);
    let flood = bed.flood(FORGED, |number, _| {
        // A pair in a burst is too close: the same sources come again in the next ones.
        let source = forged_source(number % 100 + number / 400 * 100);
        datagram(source, host_of(source, ANSWERED), b"forged")
    });
    let mut sent = 0;
    while sent < FORGED {
        sent += FORGED / 8;
        flood.wait_for(sent);
        bed.assert_serves_new_clients();
    }
    flood.stop();
    OpenConnection::check_all(&mut idle);
    bed.assert_serves_new_clients();
}

/// A quarter of each table may be half-open: a small table for IPv6 does not limit the large one, and is not filled.
#[test]
fn each_table_limits_its_own_half_open_flows() {
    const SYNS: u64 = 1_000;
    // No flood: its guard would keep them beside for a reason of its own.
    let limits = ["--flows", "65536", "--flows6", "1024", "--syn-flood", "100000"];
    let bed = TestBed::start(&limits);
    let half_open = |of: u32| {
        let flood = bed.flood(SYNS, move |number, _| {
            let source = forged_source(2 * number + of);
            Segment::syn(source, host_of(source, LISTEN)).frame()
        });
        flood.wait_for(SYNS);
        flood.stop();
    };
    let beside = || bed.served.status().verdict("forward-overflow");
    half_open(0);
    // Those that a busy machine has not got to yet count as lost.
    eventually("they are in the table", || {
        table(&bed.served.lab)["unproven"].as_u64().filter(|flows| *flows > SYNS / 10 * 9)
    });
    assert_eq!(beside(), 0, "all of them have room in the table for IPv4");
    half_open(1);
    eventually("they are kept beside the table for IPv6", || (beside() > SYNS / 2).then_some(()));
    bed.assert_serves_new_clients();
}

/// A kind of flood.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Syn,
    /// A SYN, and an ACK that acknowledges nothing right.
    SynAndAck,
    Datagram,
    Icmp,
    Fragment,
}

impl Kind {
    fn frame(self, number: u32, source: SocketAddr) -> Vec<u8> {
        let front = host_of(source, LISTEN);
        match self {
            Self::Syn => Segment::syn(source, front).frame(),
            Self::SynAndAck => {
                // Twice the same source.
                let source = forged_source(number / 4 * 2 + number % 2);
                let front = host_of(source, LISTEN);
                if number % 4 < 2 {
                    Segment::syn(source, front).frame()
                } else {
                    Segment::ack(source, front, b"").frame()
                }
            }
            Self::Datagram => datagram(source, host_of(source, ANSWERED), b"forged"),
            Self::Icmp => {
                let quoted = Segment::ack(front, source, b"").frame();
                let kind = if source.is_ipv4() { (3, 4) } else { (2, 0) };
                icmp((source.ip(), front.ip()), kind, [0, 0, 5, 0], quote(&quoted, 64))
            }
            Self::Fragment => {
                let whole = datagram(source, host_of(source, ANSWERED), &[b'x'; 64]);
                let cut = fragments(&whole, (number % 60_000) as u16, 40);
                cut[usize::from(number % 4 < 2)].clone()
            }
        }
    }
}

/// How long each flood lasts, if that is said: then it is sent as fast as the machine can.
fn flood_time() -> Option<Duration> {
    number_in("SAMPORT_FLOOD_SECONDS").map(Duration::from_secs)
}

/// A flood as fast as it can be sent, for so long, beside connections that ask once in 20 s: none is lost. A new
/// connection may be, where the kernel drops packets before samport sees them; how many are served is printed.
fn assert_a_long_flood_loses_nobody(kind: Kind, time: Duration) {
    const EACH_WITHIN: Duration = Duration::from_secs(20);
    let bed = TestBed::start(&["--flows", "4096", "--syn-flood", "200"]);
    let kept = bed.open(100);
    let count = kept.len();
    let serve = |time: Duration| {
        let begin = Instant::now();
        let (mut served, mut failed) = (0u32, 0u32);
        bed.served.lab.client().run(|| {
            for front in bed.served.fronts().into_iter().cycle() {
                if begin.elapsed() >= time {
                    break;
                }
                match get(front, "/") {
                    Ok(_) => served += 1,
                    Err(_) => failed += 1,
                }
            }
        });
        (f64::from(served) / begin.elapsed().as_secs_f64(), failed)
    };
    let (without, _) = serve(Duration::from_secs(10).min(time));
    let asking = Requests::each_within(kept, EACH_WITHIN);
    let begin = Instant::now();
    let frames = bed.forged(move |number, source| kind.frame(number, source));
    let flood = Flood::unlimited(&bed.attacker, frames);
    let (beside, failed) = serve(time);
    let (seconds, sent) = (begin.elapsed().as_secs_f64(), flood.stop());
    let mut kept = asking.stop();
    OpenConnection::check_all(&mut kept);
    bed.assert_serves_new_clients();
    #[allow(clippy::cast_precision_loss, reason = "a figure to be read")]
    let rate = sent as f64 / seconds;
    println!(
        "{kind:?}: {sent} packets in {seconds:.0} s ({rate:.0} a second); 0 of {count} connections lost; new \
         connections a second: {beside:.0} beside it ({failed} failed), {without:.0} without"
    );
}

/// Connections that ask before, during and after a flood are all there, and new ones are served.
fn assert_a_flood_loses_nobody(kind: Kind) {
    const FORGED: u64 = 60_000;
    if let Some(time) = flood_time() {
        return assert_a_long_flood_loses_nobody(kind, time);
    }
    let bed = TestBed::start(&["--flows", "4096", "--syn-flood", "200"]);
    let mut kept = bed.open(100);
    let flood = bed.flood(FORGED, move |number, source| kind.frame(number, source));
    flood.wait_for(FORGED / 10);
    OpenConnection::check_all(&mut kept);
    let (begin, first) = (Instant::now(), flood.sent());
    let during = bed.serve_while(|| flood.sent() < FORGED);
    let (time, packets) = (begin.elapsed(), flood.stop() - first);
    OpenConnection::check_all(&mut kept);
    bed.assert_serves_new_clients();
    let begin = Instant::now();
    let without = bed.serve_while(|| begin.elapsed() < time);
    println!(
        "{kind:?}: {during} new connections were served beside {packets} packets, {without} without"
    );
}

/// Case 83: SYN flood from another namespace: what is established goes on, what is new is served.
#[test]
fn a_flood_of_syns_loses_no_connection() {
    assert_a_flood_loses_nobody(Kind::Syn);
}

#[test]
fn a_flood_of_handshakes_that_are_guessed_loses_no_connection() {
    assert_a_flood_loses_nobody(Kind::SynAndAck);
}

#[test]
fn a_flood_of_datagrams_loses_no_connection() {
    assert_a_flood_loses_nobody(Kind::Datagram);
}

#[test]
fn a_flood_of_icmp_errors_loses_no_connection() {
    assert_a_flood_loses_nobody(Kind::Icmp);
}

#[test]
fn a_flood_of_fragments_loses_no_connection() {
    assert_a_flood_loses_nobody(Kind::Fragment);
}

/// The service that fills the table makes room for the other, and both serve new clients.
fn assert_a_service_keeps_to_its_share(percent: &str, share: u64) {
    require_root();
    let lab = Lab::builder().backends(2).build().unwrap();
    let _servers = lab.serve(TARGET).unwrap();
    let file = Backends::of(&lab, TARGET);
    let (first, other) = (format!("{LISTEN}:{TARGET}"), format!("{OTHER}:{TARGET}"));
    let args = ["-i", "eth0", "-p", &first, "-p", &other, "--file", file.path()];
    let limits = ["--flows", "1024", "--service-share", percent];
    let _daemon = Daemon::start(&lab, &[&args[..], &limits].concat());
    let (client, fronts) = (lab.client(), [LISTEN, OTHER].map(|port| lab.front(port)));
    let many = OpenConnection::open(client, &fronts[..1], 1_200);
    let mut few = OpenConnection::open(client, &fronts[1..], 100);
    eventually("the first service makes room for the other", || {
        // Those that were opened before there was room get it with their next packet.
        OpenConnection::check_all(&mut few);
        let table = table(&lab);
        let (evicted, held) = (table["evicted"].as_u64()?, table["ipv4"].as_u64()?);
        (evicted > 0 && held <= share + 100).then_some(())
    });
    // New ones, of both: some find a table that is nearly full no more.
    let mut new = OpenConnection::open(client, &fronts, 50);
    OpenConnection::check_all(&mut new);
    OpenConnection::check_all(&mut few);
    drop(many);
}

/// Case 33: Table full: new connections still served, those of another service too.
#[test]
fn a_service_that_fills_the_table_makes_room_for_another() {
    assert_a_service_keeps_to_its_share("50", 512);
}

#[test]
fn a_service_with_a_quarter_of_the_table_makes_room_for_another() {
    assert_a_service_keeps_to_its_share("25", 256);
}
