//! Packets with a source that is not the sender's: they open no flow, move none, and are counted.

use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use samport::lab::{Backend, Bridge, Builder, CLIENT_V4, CLIENT_V6, Namespace};
use samport_tests::attacker::{Attacker, FORGED, Forged, is_forged};
use samport_tests::daemon::Daemon;
use samport_tests::datagrams::ask_connected;
use samport_tests::frames::{datagram, ends_of};
use samport_tests::packet::Segment;
use samport_tests::raw::Sniffer;
use samport_tests::served::{LISTEN, Status, TARGET, second_client};
use samport_tests::socket::{
    ask_on, connect_between, connect_from, connect_within, read_answer, send_question,
};
use samport_tests::{HOST_V4, HOST_V6, Lab, eventually, require_root};

use crate::datagrams::connected;
use crate::inside::Inside;
use crate::sources::add_to_lo;

/// `--hook xdp` where it has something to do: devices complete checksums, and the containers take frames.
const XDP: [&str; 4] = ["--hook", "xdp", "--xdp-mode", "generic"];
/// What a client's connection may be attacked with.
const SEGMENTS: [Forged; 2] = [Forged::Ack, Forged::Syn];
/// How long a client waits that is not served: its packets are dropped.
const SILENCE: Duration = Duration::from_millis(300);

/// A lab with two backends, a container on either bridge, and a second client on `eth1`; TCP and UDP are served to
/// both interfaces.
struct TestBed {
    inside: Inside,
    second: Namespace,
    /// On the backends' own end of their links.
    sniffers: Vec<Sniffer>,
}

impl TestBed {
    fn start(builder: Builder, options: &[&str]) -> Self {
        let mut second = None;
        let options = [&["-i", "eth1"], options].concat();
        let inside =
            Inside::start_tuned(builder, &options, |lab| second = Some(second_client(lab)));
        let sniffer = |backend: &Backend| Sniffer::start(backend.namespace(), "eth0");
        let sniffers = inside.lab().backends().iter().map(sniffer).collect();
        Self { inside, second: second.unwrap(), sniffers }
    }

    fn tc() -> Self {
        Self::start(Lab::builder().backends(2), &[])
    }

    fn lab(&self) -> &Lab {
        self.inside.lab()
    }

    fn fronts(&self) -> [SocketAddr; 2] {
        self.inside.served.fronts()
    }

    fn attacker<'a>(&self, namespace: &'a Namespace, towards: &str) -> Attacker<'a> {
        Attacker::new(namespace, self.lab().host(), towards)
    }

    /// How many packets were refused because of their source.
    fn spoofed(&self) -> u64 {
        self.inside.served.status().0["verdicts"]["spoofed-source"].as_u64().unwrap_or(0)
    }

    fn wait_for_spoofed(&self, count: u64) {
        eventually(&format!("spoofed-source counts {count}"), || {
            (self.spoofed() >= count).then_some(())
        });
    }

    /// What has come in at any backend since the last time.
    fn at_backends(&self) -> Vec<Vec<u8>> {
        self.sniffers.iter().flat_map(Sniffer::frames).collect()
    }

    fn assert_backends_saw_nothing_forged(&self, what: &str) {
        let frames = self.at_backends();
        let forged: Vec<_> =
            frames.iter().filter(|frame| is_forged(frame)).map(|f| ends_of(f)).collect();
        assert!(forged.is_empty(), "{what}: a backend has got {forged:?}");
    }

    /// Whether `GET /health` is answered.
    fn hold_answers(&self, hold: bool) {
        for server in &self.inside.served.servers {
            server.set_health(if hold { 0 } else { 200 });
        }
    }

    /// A client's connection with a question that the server does not answer yet.
    fn open_question(&self, from: &Namespace, front: SocketAddr) -> TcpStream {
        self.hold_answers(true);
        from.run(|| {
            let stream = connect_from(0, front)?;
            ask_on(&stream, "/")?;
            send_question(&stream, "/health")?;
            Ok::<_, std::io::Error>(stream)
        })
        .unwrap_or_else(|e| panic!("{} to {front}: {e}", from.name()))
    }

    /// A forged packet on a client's connection changes nothing: the answer reaches the client.
    fn assert_keeps_its_connection(
        &self,
        (from, front): (&Namespace, SocketAddr),
        attacker: &Attacker<'_>,
        forged: Forged,
    ) {
        let what = format!("{forged:?} on {front} of {}", from.name());
        let before = self.spoofed();
        let stream = self.open_question(from, front);
        let client = stream.local_addr().unwrap();
        attacker.send(forged, client, front);
        self.hold_answers(false);
        read_answer(&stream).unwrap_or_else(|e| panic!("{what}: the open answer: {e}"));
        ask_on(&stream, "/").unwrap_or_else(|e| panic!("{what}: the next answer: {e}"));
        attacker.assert_got_nothing_of(&[client]);
        self.assert_backends_saw_nothing_forged(&what);
        self.wait_for_spoofed(before + 1);
    }

    /// A forged datagram on a client's flow is not answered, and the client's own are.
    fn assert_keeps_its_datagrams(
        &self,
        (from, front): (&Namespace, SocketAddr),
        attacker: &Attacker<'_>,
    ) {
        let what = format!("datagrams to {front} of {}", from.name());
        let before = self.spoofed();
        let socket = from.run(|| connected(front));
        let ask = || ask_connected(&socket).unwrap_or_else(|e| panic!("{what}: {e}")).0;
        let name = ask();
        let client = socket.local_addr().unwrap();
        attacker.send(Forged::Datagram, client, front);
        assert_eq!(ask(), name, "{what}");
        attacker.assert_got_nothing_of(&[client]);
        self.assert_backends_saw_nothing_forged(&what);
        self.wait_for_spoofed(before + 1);
    }

    /// Neither segments nor datagrams move a client's flows.
    fn assert_keeps_its_flows(&self, client: (&Namespace, SocketAddr), attacker: &Attacker<'_>) {
        for forged in SEGMENTS {
            self.assert_keeps_its_connection(client, attacker, forged);
        }
        self.assert_keeps_its_datagrams(client, attacker);
    }
}

/// The outside client's address.
fn client_address(v6: bool) -> IpAddr {
    if v6 { CLIENT_V6.into() } else { CLIENT_V4.into() }
}

/// Sets how strictly the host's kernel, and samport with it, filters reverse paths of a device.
fn set_rp_filter(lab: &Lab, device: &str, value: &str) {
    lab.host().sysctl(&format!("net/ipv4/conf/{device}/rp_filter"), value).unwrap();
}

/// A1, from a container that is no backend.
fn assert_a_container_takes_over_nothing(on: Bridge) {
    let bed = TestBed::tc();
    let container = match on {
        Bridge::Backends => bed.inside.neighbour(),
        Bridge::Other => bed.inside.stranger(),
    };
    let attacker = bed.attacker(container.namespace(), on.name());
    for front in bed.fronts() {
        attacker.add_address(client_address(front.is_ipv6()));
        bed.assert_keeps_its_flows((bed.lab().client(), front), &attacker);
    }
}

#[test]
fn a_container_of_another_bridge_takes_over_no_flow_of_an_outside_client() {
    assert_a_container_takes_over_nothing(Bridge::Other);
}

#[test]
fn a_container_of_the_backends_bridge_takes_over_no_flow_of_an_outside_client() {
    assert_a_container_takes_over_nothing(Bridge::Backends);
}

#[test]
fn a_backend_takes_over_no_flow_of_an_outside_client() {
    let bed = TestBed::tc();
    let attacker = bed.attacker(bed.lab().backends()[0].namespace(), "br0");
    for front in bed.fronts() {
        bed.assert_keeps_its_flows((bed.lab().client(), front), &attacker);
    }
}

/// Whatever rp_filter says: the route to a container leads inside.
fn assert_the_outside_takes_over_no_flow_of_a_container(options: &[&str]) {
    let bed = TestBed::start(Lab::builder().backends(2).tx_offload_off(), options);
    let attacker = bed.attacker(&bed.second, "eth1");
    for container in bed.lab().containers() {
        attacker.add_address(container.v4(0).ip());
        attacker.add_address(container.v6(0).ip());
    }
    for rp_filter in ["0", "1", "2"] {
        set_rp_filter(bed.lab(), "eth1", rp_filter);
        for container in bed.lab().containers() {
            for front in bed.fronts() {
                bed.assert_keeps_its_flows((container.namespace(), front), &attacker);
            }
        }
    }
}

#[test]
fn the_outside_takes_over_no_flow_of_a_container() {
    assert_the_outside_takes_over_no_flow_of_a_container(&[]);
}

#[test]
fn the_outside_takes_over_no_flow_of_a_container_at_xdp() {
    assert_the_outside_takes_over_no_flow_of_a_container(&XDP);
}

/// IPv4 alone: rp_filter says nothing about IPv6.
#[test]
fn another_interface_takes_over_no_flow_where_rp_filter_is_strict() {
    for options in [&[][..], &XDP] {
        let bed = TestBed::start(Lab::builder().backends(2).tx_offload_off(), options);
        let attacker = bed.attacker(&bed.second, "eth1");
        attacker.add_address(CLIENT_V4.into());
        set_rp_filter(bed.lab(), "eth1", "1");
        let [front, _] = bed.fronts();
        // samport has seen the setting when a packet that would open a flow is refused.
        let mut probe = Probe::new(&bed, &bed.second, "eth1");
        probe.wait_for_all(&[(CLIENT_V4.into(), false)]);
        bed.assert_keeps_its_flows((bed.lab().client(), front), &attacker);
    }
}

/// Sends the first packets of connections, and finds those that reach a backend.
struct Probe<'a> {
    bed: &'a TestBed,
    attacker: Attacker<'a>,
    /// Sources that are the sender's own, by family.
    own: [IpAddr; 2],
    port: u16,
}

impl<'a> Probe<'a> {
    fn new(bed: &'a TestBed, from: &'a Namespace, device: &str) -> Self {
        let own = match device {
            "eth0" => [CLIENT_V4.into(), CLIENT_V6.into()],
            _ => ["198.51.100.2", "2001:db8:3::2"].map(|own| own.parse().unwrap()),
        };
        Self { bed, attacker: bed.attacker(from, device), own, port: 20_000 }
    }

    fn send(&mut self, source: IpAddr) -> SocketAddr {
        self.port += 1;
        let host: IpAddr = if source.is_ipv6() { HOST_V6.into() } else { HOST_V4.into() };
        let source = SocketAddr::new(source, self.port);
        self.attacker.send_frame(Segment::syn(source, SocketAddr::new(host, LISTEN)).frame());
        source
    }

    /// Whether a packet with this source reaches a backend. One of the sender's own, sent after it, tells when to
    /// look.
    fn reaches_a_backend(&mut self, source: IpAddr) -> bool {
        let [sent, own] = [source, self.own[usize::from(source.is_ipv6())]].map(|ip| self.send(ip));
        let mut sources = Vec::new();
        eventually(&format!("a packet of {own} reaches a backend"), || {
            let frames = self.bed.at_backends();
            sources.extend(frames.iter().filter_map(|frame| ends_of(frame)).map(|[from, _]| from));
            sources.contains(&own).then_some(())
        });
        // A backend may see its own address as that of the service.
        sources.iter().any(|from| from.port() == sent.port())
    }

    /// The sender's own packets reach a backend, by XDP if that is the hook.
    fn assert_own_reach_a_backend(&mut self, options: &[&str]) {
        for own in self.own {
            assert!(self.reaches_a_backend(own), "{own}");
        }
        let by_xdp = self.bed.inside.verdict("forward-xdp");
        assert_eq!(by_xdp > 0, options == XDP, "{by_xdp} were forwarded by XDP");
    }

    /// Waits until each of these sources reaches a backend, or none does, as said.
    fn wait_for_all(&mut self, expected: &[(IpAddr, bool)]) {
        for (source, reaches) in expected {
            let what = format!(
                "{source} {} a backend",
                if *reaches { "reaches" } else { "does not reach" }
            );
            eventually(&what, || (self.reaches_a_backend(*source) == *reaches).then_some(()));
        }
    }
}

/// What no packet from outside may have as its source, whatever rp_filter says: special addresses, the host's own,
/// its subnets' broadcasts, and those of containers.
const NEVER_OUTSIDE: [&str; 23] = [
    "0.0.0.0",
    "0.1.2.3",
    "127.0.0.1",
    "127.9.9.9",
    "224.0.0.1",
    "239.255.255.255",
    "255.255.255.255",
    "192.0.2.1",
    "198.51.100.1",
    "172.30.0.1",
    "192.0.2.255",
    "172.30.0.255",
    "172.30.0.10",
    "172.31.0.77",
    "::",
    "::1",
    "ff02::1",
    "::ffff:192.0.2.2",
    "2001:db8:1::1",
    "2001:db8:2::1",
    "2001:db8:3::1",
    "2001:db8:2::10",
    "2001:db8:4::77",
];

fn assert_refused_from_outside(options: &[&str]) {
    let bed = TestBed::start(Lab::builder().backends(1).tx_offload_off(), options);
    let mut probe = Probe::new(&bed, bed.lab().client(), "eth0");
    probe.assert_own_reach_a_backend(options);
    for rp_filter in ["0", "1", "2"] {
        set_rp_filter(bed.lab(), "eth0", rp_filter);
        let before = bed.spoofed();
        let sources = NEVER_OUTSIDE.iter().map(|source| source.parse().unwrap());
        let reached: Vec<IpAddr> =
            sources.filter(|source| probe.reaches_a_backend(*source)).collect();
        assert!(reached.is_empty(), "rp_filter {rp_filter}: {reached:?} have reached a backend");
        // All of them are counted: the kernel drops none before samport sees it.
        bed.wait_for_spoofed(before + NEVER_OUTSIDE.len() as u64);
    }
}

#[test]
fn sources_that_cannot_be_outside_are_refused_there() {
    assert_refused_from_outside(&[]);
}

#[test]
fn sources_that_cannot_be_outside_are_refused_there_at_xdp() {
    assert_refused_from_outside(&XDP);
}

/// rp_filter of all devices and of the interface, which may change at any time; the larger of them counts. IPv6 has
/// none.
fn assert_follows_rp_filter(options: &[&str]) {
    let bed = TestBed::start(Lab::builder().backends(1).tx_offload_off(), options);
    let mut probe = Probe::new(&bed, bed.lab().client(), "eth0");
    probe.assert_own_reach_a_backend(options);
    // Of the second client's network, and of none the host has a route to.
    let sources = ["198.51.100.77", "10.66.0.1", "2001:db8:3::77", "2001:db8:66::1"];
    let sources: [IpAddr; 4] = sources.map(|source| source.parse().unwrap());
    for (all, own, elsewhere, nowhere) in [
        ("0", "0", true, true),
        ("0", "1", false, false),
        ("0", "2", true, false),
        ("1", "0", false, false),
        ("2", "1", true, false),
        ("0", "0", true, true),
    ] {
        set_rp_filter(bed.lab(), "all", all);
        set_rp_filter(bed.lab(), "eth0", own);
        let expected = [elsewhere, nowhere, true, true];
        let expected: Vec<_> = sources.into_iter().zip(expected).collect();
        let before = bed.spoofed();
        probe.wait_for_all(&expected);
        let refused = expected.iter().filter(|(_, reaches)| !reaches).count();
        bed.wait_for_spoofed(before + refused as u64);
    }
}

#[test]
fn who_is_reached_by_another_interface_is_refused_as_rp_filter_says() {
    assert_follows_rp_filter(&[]);
}

#[test]
fn who_is_reached_by_another_interface_is_refused_as_rp_filter_says_at_xdp() {
    assert_follows_rp_filter(&XDP);
}

/// Where the networks of the allow-list begin.
const ALLOWED: [&str; 2] = ["203.0.113.", "2001:db8:77::"];

/// Gives a namespace an address of each network of the allow-list.
fn add_allowed(namespace: &Namespace, last: u8) -> [SocketAddr; 2] {
    ALLOWED.map(|net| {
        let address = format!("{net}{last}");
        add_to_lo(namespace, &address);
        SocketAddr::new(address.parse().unwrap(), 0)
    })
}

/// Connects from these addresses, three times from each, in parallel; how often that succeeded, and how often it was
/// tried.
fn try_to_connect(
    fronts: [SocketAddr; 2],
    clients: &[(&Namespace, [SocketAddr; 2])],
) -> (usize, u64) {
    let mut tried = Vec::new();
    for (namespace, own) in clients {
        for (own, front) in own.iter().copied().zip(fronts) {
            let connect = move || connect_within(SILENCE, own, front).is_ok();
            tried.extend((0..3).map(|_| namespace.spawn(connect)));
        }
    }
    let count = tried.len() as u64;
    (tried.into_iter().map(|one| one.join().unwrap()).filter(|served| *served).count(), count)
}

/// A2: A container that takes an address of the allow-list as its own.
#[test]
fn an_address_of_the_allow_list_is_of_no_use_to_a_container() {
    let bed = TestBed::start(
        Lab::builder().backends(2),
        &["--allow", "203.0.113.0/24", "--allow", "2001:db8:77::/64"],
    );
    let lab = bed.lab();
    let containers = lab.containers().iter().chain(&lab.backends()[..1]).map(Backend::namespace);
    let clients: Vec<_> =
        containers.zip(9..).map(|(inside, last)| (inside, add_allowed(inside, last))).collect();
    let forged: Vec<_> = clients.iter().flat_map(|(_, own)| own.map(|own| own.ip())).collect();
    let assert_refused = |why: &str| {
        let before = bed.spoofed();
        let (served, tried) = try_to_connect(bed.fronts(), &clients);
        assert_eq!(served, 0, "{why}: of {tried}");
        let frames = bed.at_backends();
        let sources = frames.iter().filter_map(|frame| ends_of(frame)).map(|[from, _]| from);
        let seen: Vec<_> = sources.filter(|from| forged.contains(&from.ip())).collect();
        assert!(seen.is_empty(), "{why}: backends have got {seen:?}");
        bed.wait_for_spoofed(before + tried);
    };
    assert_refused("no route");
    set_rp_filter(lab, "all", "1");
    assert_refused("no route, rp_filter 1");
    let default = format!("route add default via {CLIENT_V4}\nroute add ::/0 via {CLIENT_V6}\n");
    lab.host().batch(&default).unwrap();
    assert_refused("a route outside, rp_filter 1");
    set_rp_filter(lab, "all", "0");
    assert_refused("a route outside");
    // Who comes in where the route leads is served.
    for (front, own) in bed.fronts().into_iter().zip(add_allowed(lab.client(), 8)) {
        lab.client().run(|| ask_on(&connect_between(own, front)?, "/")).unwrap();
    }
}

/// A7: What a backend sends in another one's name.
fn assert_answers_in_no_others_name(options: &[&str], by: &str) {
    let bed = TestBed::start(Lab::builder().backends(2), options);
    let lab = bed.lab();
    let web_2 = &lab.backends()[1];
    let (from, device) = match by {
        "web-1" => (lab.backends()[0].namespace(), "br0"),
        _ => (bed.inside.stranger().namespace(), "br1"),
    };
    let attacker = bed.attacker(from, device);
    let sniffer = Sniffer::start(lab.client(), "eth0");
    for (front, source) in bed.fronts().into_iter().zip([web_2.v4(TARGET), web_2.v6(TARGET)]) {
        for forged in [Forged::Rst, Forged::Fin, Forged::Datagram] {
            let before = bed.spoofed();
            lab.client().run(|| {
                if forged == Forged::Datagram {
                    let ask = |socket: &UdpSocket| ask_connected(socket).unwrap().0;
                    let socket = with_web_2(|| connected(front), ask);
                    attacker.send(forged, source, socket.local_addr().unwrap());
                    assert_eq!(ask(&socket), "web-2", "{front}");
                } else {
                    let ask = |stream: &TcpStream| ask_on(stream, "/").unwrap().backend;
                    let stream = with_web_2(|| connect_from(0, front).unwrap(), ask);
                    attacker.send(forged, source, stream.local_addr().unwrap());
                    assert_eq!(ask(&stream), "web-2", "{front}");
                }
            });
            bed.wait_for_spoofed(before + 1);
            let got = sniffer.frames().into_iter().filter(|frame| is_forged(frame));
            let got: Vec<_> = got.filter_map(|frame| ends_of(&frame)).collect();
            assert!(got.is_empty(), "{forged:?}: the client of {front} has got {got:?}");
        }
    }
}

/// The first that web-2 answers.
fn with_web_2<T>(open: impl Fn() -> T, ask: impl Fn(&T) -> String) -> T {
    let mut all = (0..100).map(|_| open());
    all.find(|one| ask(one) == "web-2").expect("one in two is answered by web-2")
}

#[test]
fn a_backend_answers_in_no_others_name() {
    assert_answers_in_no_others_name(&[], "web-1");
}

#[test]
fn a_backend_behind_the_neighbour_table_answers_in_no_others_name() {
    assert_answers_in_no_others_name(&["--forward", "neigh"], "web-1");
}

/// It does not reach the client as it is either: a reply by a link that has no program yet would look the same, and
/// the client would reset its connection.
#[test]
fn a_container_of_another_bridge_answers_in_no_backends_name() {
    for way in ["peer", "neigh", "stack"] {
        assert_answers_in_no_others_name(&["--forward", way], "app-2");
    }
}

/// Every client gets its answer, and the attacker gets none.
#[test]
fn a_hundred_thousand_forged_packets_take_over_none_of_a_hundred_connections() {
    const EACH: usize = 50;
    const FLOOD: usize = 100_000;
    let bed = TestBed::tc();
    let attacker = bed.attacker(bed.inside.stranger().namespace(), "br1");
    let before = bed.spoofed();
    let mut open = Vec::new();
    let mut frames = Vec::new();
    for front in bed.fronts() {
        attacker.add_address(client_address(front.is_ipv6()));
        for _ in 0..EACH {
            let stream = bed.open_question(bed.lab().client(), front);
            let own = stream.local_addr().unwrap();
            let kinds = [Forged::Ack, Forged::Syn, Forged::Rst, Forged::Fin];
            frames.extend(kinds.map(|forged| forged.frame(own, front)));
            open.push((stream, front));
        }
    }
    attacker.flood(&frames, FLOOD / 2);
    bed.hold_answers(false);
    thread::scope(|scope| {
        scope.spawn(|| attacker.flood(&frames, FLOOD / 2));
        for (stream, front) in &open {
            let own = stream.local_addr().unwrap();
            read_answer(stream).unwrap_or_else(|e| panic!("the answer of {front} to {own}: {e}"));
        }
    });
    for (stream, front) in &open {
        ask_on(stream, "/").unwrap_or_else(|e| panic!("{front} afterwards: {e}"));
    }
    let clients: Vec<_> = open.iter().map(|(stream, _)| stream.local_addr().unwrap()).collect();
    attacker.assert_got_nothing_of(&clients);
    bed.assert_backends_saw_nothing_forged("the flood");
    // What a CPU's backlog has no room for is lost.
    bed.wait_for_spoofed(before + FLOOD as u64 / 2);
}

/// Offset of the checksum of UDP over IPv4 without options.
const UDP_CHECKSUM: usize = 14 + 20 + 6;

/// A datagram over IPv4 in two fragments, without a checksum, so that another second half fits as well.
fn in_two_fragments(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> [Vec<u8>; 2] {
    const FIRST: usize = 40;
    const MORE: u16 = 0x2000;
    let mut whole = datagram(from, to, payload);
    whole[UDP_CHECKSUM..UDP_CHECKSUM + 2].copy_from_slice(&[0, 0]);
    let (head, rest) = whole.split_at(14 + 20);
    let part = |bytes: &[u8], offset: usize, more: u16| {
        let mut frame = [head, bytes].concat();
        let length = u16::try_from(20 + bytes.len()).unwrap();
        let word = u16::try_from(offset / 8).unwrap() | more;
        let ip = &mut frame[14..14 + 20];
        ip[2..4].copy_from_slice(&length.to_be_bytes());
        ip[4..6].copy_from_slice(&[0x12, 0x34]);
        ip[6..8].copy_from_slice(&word.to_be_bytes());
        ip[10..12].copy_from_slice(&[0, 0]);
        let words = ip.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
        let sum: u32 = words.sum();
        let folded = u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
        ip[10..12].copy_from_slice(&(!folded).to_be_bytes());
        frame
    };
    [part(&rest[..FIRST], 0, MORE), part(&rest[FIRST..], FIRST, 0)]
}

/// The second half of a datagram names no port: it comes by the way of the first, or is refused.
#[test]
fn no_container_ends_the_datagram_of_another() {
    let bed = TestBed::tc();
    let [front, _] = bed.fronts();
    let lab = bed.lab();
    let tail = [&[b'x'; 52][..], FORGED].concat();
    let client = bed.attacker(lab.client(), "eth0");
    let stranger = bed.attacker(bed.inside.stranger().namespace(), "br1");
    let from = SocketAddr::new(CLIENT_V4.into(), 33_333);
    let [first, own_end] = in_two_fragments(from, front, &tail);
    let before = bed.spoofed();
    client.send_frame(first);
    eventually("the first fragment reaches a backend", || {
        (!bed.at_backends().is_empty()).then_some(())
    });
    stranger.send_frame(own_end.clone());
    bed.wait_for_spoofed(before + 1);
    bed.assert_backends_saw_nothing_forged("a forged second half");
    client.send_frame(own_end);
    eventually("the client's own second half reaches a backend", || {
        bed.at_backends().iter().any(|frame| is_forged(frame)).then_some(())
    });

    let sniffer = Sniffer::start(lab.client(), "eth0");
    let web_2 = &lab.backends()[1];
    let answering = bed.attacker(web_2.namespace(), "br0");
    for (namespace, device) in
        [(lab.backends()[0].namespace(), "br0"), (bed.inside.stranger().namespace(), "br1")]
    {
        let attacker = bed.attacker(namespace, device);
        let ask = |socket: &UdpSocket| ask_connected(socket).unwrap().0;
        let socket = lab.client().run(|| with_web_2(|| connected(front), ask));
        let to = socket.local_addr().unwrap();
        let [first, end] = in_two_fragments(web_2.v4(TARGET), to, &tail);
        answering.send_frame(first);
        eventually("the first fragment reaches the client", || {
            let frames = sniffer.frames();
            frames.iter().any(|frame| frame[18..20] == [0x12, 0x34]).then_some(())
        });
        attacker.send_frame(end.clone());
        answering.send_frame(end);
        // What was sent last has come: with the first of the two it would have been two.
        let mut ends = 0;
        eventually("the backend's own second half reaches the client", || {
            ends += sniffer.frames().iter().filter(|frame| is_forged(frame)).count();
            (ends > 0).then_some(())
        });
        ends += sniffer.frames().iter().filter(|frame| is_forged(frame)).count();
        assert_eq!(ends, 1, "{} has ended web-2's datagram", namespace.name());
    }
}

/// Where nothing says whose an address is, whoever is first with it does not keep its owner out.
#[test]
fn an_outside_client_is_not_kept_out_by_a_container_that_was_there_first() {
    let bed = TestBed::tc();
    let lab = bed.lab();
    lab.host().sysctl("net/ipv4/ip_forward", "0").unwrap();
    lab.host().sysctl("net/ipv6/conf/all/forwarding", "0").unwrap();
    let attacker = bed.attacker(bed.inside.stranger().namespace(), "br1");
    for front in bed.fronts() {
        let own = SocketAddr::new(client_address(front.is_ipv6()), 41_002);
        attacker.send(Forged::Syn, own, front);
        eventually("the forged segment reaches a backend: nothing says that it is forged", || {
            bed.at_backends().iter().any(|frame| is_forged(frame)).then_some(())
        });
        let answer = lab.client().run(|| ask_on(&connect_between(own, front)?, "/"));
        assert_eq!(answer.unwrap_or_else(|e| panic!("{own} to {front}: {e}")).client, own);
    }
    // A link-local address is on every link, whatever is forwarded.
    let [_, front] = bed.fronts();
    let client = bed.attacker(lab.client(), "eth0");
    let own = SocketAddr::new("fe80::77".parse().unwrap(), 40_002);
    for sender in [&attacker, &client] {
        bed.at_backends();
        sender.send(Forged::Syn, own, front);
        eventually(&format!("{own} reaches a backend"), || {
            bed.at_backends().iter().any(|frame| is_forged(frame)).then_some(())
        });
    }
}

/// A route over two bridges, or two links, says nothing about other sources.
#[test]
fn a_route_with_several_next_hops_opens_the_inside_to_nothing_else() {
    let options = ["--allow", "203.0.113.0/24", "--allow", "2001:db8:77::/64"];
    let bed = TestBed::start(Lab::builder().backends(2), &options);
    let (lab, container) = (bed.lab(), bed.inside.stranger());
    let by_both = |family: &str, net: &str, [a, b]: [IpAddr; 2]| {
        let route =
            format!("-{family} route add {net} nexthop via {a} dev br0 nexthop via {b} dev br1");
        lab.host().ip(&route.split(' ').collect::<Vec<_>>()).unwrap();
    };
    lab.host().ip(&["route", "add", "default", "via", &CLIENT_V4.to_string()]).unwrap();
    let neighbour = bed.inside.neighbour();
    by_both("4", "10.50.0.0/16", [neighbour.v4(0).ip(), container.v4(0).ip()]);
    by_both("6", "2001:db8:50::/48", [neighbour.v6(0).ip(), container.v6(0).ip()]);
    let attacker = bed.attacker(container.namespace(), "br1");
    let before = bed.spoofed();
    for (forged, front) in
        ["203.0.113.9:5000", "[2001:db8:77::9]:5000"].into_iter().zip(bed.fronts())
    {
        attacker.send(Forged::Syn, forged.parse().unwrap(), front);
    }
    bed.wait_for_spoofed(before + 2);
    bed.assert_backends_saw_nothing_forged("an address that is routed elsewhere");
}

/// An address of a backend on another machine, from where that machine is not: the packet would become the host's.
#[test]
fn no_outside_client_is_taken_for_a_backend_that_dials_itself() {
    require_root();
    let lab = Lab::builder().backends(1).build().unwrap();
    let remote = Namespace::new("remote").unwrap();
    set_rp_filter(&lab, "all", "0");
    set_rp_filter(&lab, "eth0", "0");
    let link = format!(
        "link add name eth2 type veth peer name eth0 netns {}\n\
         addr add 10.77.2.1/24 dev eth2\n\
         link set eth2 up\n",
        remote.name()
    );
    lab.host().batch(&link).unwrap();
    remote
        .batch(
            "addr add 10.77.2.2/24 dev eth0\nlink set eth0 up\nroute add default via 10.77.2.1\n",
        )
        .unwrap();
    let options = ["-p", "80:9090/udp", "-i", "eth0", "--forward", "neigh"];
    let _daemon =
        Daemon::start_in(lab.host(), &[&options[..], &["--backend", "10.77.2.2"]].concat());
    let sniffer = Sniffer::start(&remote, "eth0");
    let attacker = Attacker::new(lab.client(), lab.host(), "eth0");
    attacker.send(Forged::Datagram, "10.77.2.2:44000".parse().unwrap(), lab.front(LISTEN));
    eventually("spoofed-source counts it", || {
        let spoofed = Status::only_in(lab.host()).0["verdicts"]["spoofed-source"].as_u64();
        (spoofed >= Some(1)).then_some(())
    });
    assert!(sniffer.frames().iter().all(|frame| !is_forged(frame)));
}
