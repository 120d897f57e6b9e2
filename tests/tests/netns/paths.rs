//! Path MTU, unreachable ports, fragments and tags: what links and routers do to packets.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use samport::lab::{CLIENT_V4, CLIENT_V6, FAR_CLIENT_V4, FAR_CLIENT_V6};
use samport_tests::datagrams::{Echo, ask_connected, ask_until_answered, mirrored};
use samport_tests::frames::{datagram, fragments};
use samport_tests::load::Connection;
use samport_tests::raw;
use samport_tests::served::Served;
use samport_tests::{Lab, TIMEOUT, eventually, require_root};

use crate::datagrams::{Datagrams, WAYS, connected};

/// The smallest MTU that IPv6 allows.
const MTU: u32 = 1_280;

/// Cases 38, 39 and 43: a client behind a link with an MTU of 1,280 downloads 10 MB. The router's errors
/// reach the backend, which then knows the path's MTU.
#[test]
fn a_client_behind_a_small_mtu_downloads_ten_megabytes() {
    require_root();
    for way in WAYS {
        let lab = Lab::builder().behind_router(MTU).build().unwrap();
        let served = Served::start(lab, &["--forward", way]);
        let clients: [IpAddr; 2] = [FAR_CLIENT_V4.into(), FAR_CLIENT_V6.into()];
        for (front, client) in served.fronts().into_iter().zip(clients) {
            served.lab.client().run(|| {
                let mut connection = Connection::open(front).unwrap();
                let answer = connection.get("/bytes/10000000").unwrap();
                assert_eq!((answer.status, answer.body.len()), (200, 10_000_000));
                assert!(answer.is_pattern(), "{way} {front}: other bytes have come back");
                assert_eq!(connection.post(1_000_000).unwrap().status, 200, "{way} {front}");
            });
            assert_knows_the_mtu(&served, client);
        }
        assert!(served.status().verdict("icmp-forward") >= 2, "{way}");
    }
}

fn assert_knows_the_mtu(served: &Served, client: IpAddr) {
    let backend = served.lab.backends()[0].namespace();
    let route = backend.ip(&["route", "get", &client.to_string()]).unwrap();
    assert!(route.contains(&format!("mtu {MTU}")), "{client}: {route}");
}

/// Cases 38 and 39, over UDP: the backend that has sent too large a datagram learns the path's MTU.
#[test]
fn a_backend_learns_the_mtu_of_the_path_from_its_datagrams_too() {
    let builder = Lab::builder().behind_router(MTU);
    let datagrams = Datagrams::start(builder, &[], Echo::mirror);
    let clients: [IpAddr; 2] = [FAR_CLIENT_V4.into(), FAR_CLIENT_V6.into()];
    for (front, client) in datagrams.served.fronts().into_iter().zip(clients) {
        datagrams.on_client(|| {
            let socket = connected(front);
            // The client's are fragments on its own link. The first answers are lost on theirs.
            socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
            let question = vec![0x5a; 1_400];
            let answer = ask_until_answered(&socket, &question, "in fragments");
            assert_eq!(answer, mirrored("web-1", &question), "{front}");
        });
        assert_knows_the_mtu(&datagrams.served, client);
    }
}

/// Case 40: port-unreachable from a backend reaches the client with the VIP inside: its connected socket
/// is refused.
#[test]
fn a_datagram_to_a_port_where_nobody_listens_is_refused() {
    for way in WAYS {
        let served = Served::start(
            Lab::builder().build().unwrap(),
            &["-p", "80:9091/udp", "--forward", way],
        );
        // Those of the file are on 9090, where only TCP is served.
        served.lab.client().run(|| {
            for front in served.fronts() {
                let error = ask_connected(&connected(front)).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{way} {front}");
            }
        });
        assert_eq!(served.status().verdict("icmp-reply"), 2, "{way}");
    }
}

/// Case 42: datagrams of 8 KB, in fragments both ways, arrive whole and at one backend.
#[test]
fn datagrams_in_fragments_arrive_whole() {
    for way in WAYS {
        let builder = Lab::builder().backends(3);
        let datagrams = Datagrams::start(builder, &["--forward", way], Echo::mirror);
        for front in datagrams.served.fronts() {
            datagrams.on_client(|| {
                for client in 0..20 {
                    let socket = connected(front);
                    let mut buffer = vec![0; 65_536];
                    let mut name = None;
                    for length in [8_192, 1_473, 100, 30_000, 8_191] {
                        let question: Vec<u8> = (client..=250).cycle().take(length).collect();
                        socket.send(&question).unwrap();
                        let got = socket.recv(&mut buffer).unwrap();
                        let backend = String::from_utf8_lossy(&buffer[..5]).into_owned();
                        assert_eq!(*name.get_or_insert(backend.clone()), backend);
                        assert!(buffer[..got] == mirrored(&backend, &question), "{way} {length}");
                    }
                }
            });
        }
        // On their way through the stack fragments pass the other direction's hooks too, where they
        // are nobody's.
        if way != "stack" {
            assert_eq!(datagrams.served.status().verdict("fragment-orphan"), 0, "{way}");
        }
    }
}

/// A client's socket and both ends of its datagrams, for frames that are made by hand.
struct ManualRoutes {
    socket: UdpSocket,
    from: SocketAddr,
    front: SocketAddr,
}

impl ManualRoutes {
    fn new(datagrams: &Datagrams, front: SocketAddr, port: u16) -> Self {
        let ip: IpAddr = if front.is_ipv4() { CLIENT_V4.into() } else { CLIENT_V6.into() };
        let from = SocketAddr::new(ip, port);
        let socket = datagrams.on_client(|| UdpSocket::bind(from)).unwrap();
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        Self { socket, from, front }
    }

    /// Both MACs right.
    fn frame(&self, datagrams: &Datagrams, payload: &[u8]) -> Vec<u8> {
        let mut frame = datagram(self.from, self.front, payload);
        frame[..6].copy_from_slice(&raw::mac(datagrams.served.lab.host(), "eth0"));
        frame[6..12].copy_from_slice(&raw::mac(datagrams.served.lab.client(), "eth0"));
        frame
    }

    fn expect_answer(&self, payload: &[u8]) {
        let mut buffer = vec![0; 65_536];
        let (length, from) = self.socket.recv_from(&mut buffer).unwrap();
        assert_eq!(from, self.front);
        let name = String::from_utf8_lossy(&buffer[..5]).into_owned();
        assert!(buffer[..length] == mirrored(&name, payload), "{}: changed", self.front);
    }

    fn expect_silence(&self) {
        self.socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let error = self.socket.recv_from(&mut [0; 64]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        self.socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    }
}

/// Case 42: out of order: all at one backend, or counted.
#[test]
fn fragments_out_of_order_arrive_whole_or_are_counted() {
    let payload: Vec<u8> = (0..=250).cycle().take(8_000).collect();
    let datagrams = Datagrams::start(Lab::builder().backends(2), &[], Echo::mirror);
    for (front, base) in datagrams.served.fronts().into_iter().zip([40_000, 41_000]) {
        for (port, order) in (base..).zip([[0, 5, 3, 1, 4, 2], [0, 1, 2, 3, 5, 4]]) {
            let by_hand = ManualRoutes::new(&datagrams, front, port);
            let all = fragments(&by_hand.frame(&datagrams, &payload), port, 1_400);
            let shuffled: Vec<_> = order.iter().map(|at| all[*at].clone()).collect();
            raw::send(datagrams.served.lab.client(), "eth0", &shuffled);
            by_hand.expect_answer(&payload);
        }
        let orphans = || datagrams.served.status().verdict("fragment-orphan");
        let before = orphans();
        let by_hand = ManualRoutes::new(&datagrams, front, base + 10);
        let all = fragments(&by_hand.frame(&datagrams, &payload), base + 10, 1_400);
        let first_comes_last: Vec<_> = all.iter().rev().cloned().collect();
        raw::send(datagrams.served.lab.client(), "eth0", &first_comes_last);
        by_hand.expect_silence();
        assert_eq!(orphans(), before + 5);
        // Sent again as it should be.
        let all = fragments(&by_hand.frame(&datagrams, &payload), base + 11, 1_400);
        raw::send(datagrams.served.lab.client(), "eth0", &all);
        by_hand.expect_answer(&payload);
    }
}

/// Case 9: a tag that only carries a priority does not keep a packet from its service, the tag of a
/// VLAN does.
#[test]
fn a_priority_tag_is_served_and_a_vlan_is_left_alone() {
    for way in WAYS {
        let options = ["--forward", way];
        let datagrams = Datagrams::start(Lab::builder().backends(2), &options, Echo::mirror);
        for front in datagrams.served.fronts() {
            let by_hand = ManualRoutes::new(&datagrams, front, 40_000);
            let frame = by_hand.frame(&datagrams, b"a question");
            let tagged =
                |tag: [u8; 2]| vec![[&frame[..12], &[0x81, 0x00], &tag, &frame[12..]].concat()];
            raw::send(datagrams.served.lab.client(), "eth0", &tagged([0xa0, 0]));
            by_hand.expect_answer(b"a question");
            let vlan = || datagrams.served.status().verdict("vlan");
            let before = vlan();
            raw::send(datagrams.served.lab.client(), "eth0", &tagged([0xa0, 7]));
            by_hand.expect_silence();
            assert_eq!(vlan(), before + 1, "{way} {front}");
        }
    }
}

/// Backends on links that take less than the client's, as Docker's networks may: datagrams arrive,
/// by peer as they are, else by the stack after it has told the client, or in fragments.
#[test]
fn datagrams_too_large_for_the_backends_link_arrive_all_the_same() {
    for way in WAYS {
        let builder = Lab::builder().backends(1);
        let datagrams = Datagrams::start(builder, &["--forward", way], Echo::mirror);
        let lab = &datagrams.served.lab;
        lab.host().ip(&["link", "set", "veth1", "mtu", "1400"]).unwrap();
        lab.host().ip(&["link", "set", "br0", "mtu", "1400"]).unwrap();
        lab.backends()[0].namespace().ip(&["link", "set", "eth0", "mtu", "1400"]).unwrap();
        for front in datagrams.served.fronts() {
            datagrams.on_client(|| {
                let socket = connected(front);
                socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
                for length in [1_440, 8_192, 1_473] {
                    let question = vec![0x5a; length];
                    eventually(&format!("{way}: an answer from {front}"), || {
                        // Refused by the client's own kernel once, when it has learnt.
                        socket.send(&question).ok()?;
                        let mut buffer = vec![0; 10_000];
                        let length = socket.recv(&mut buffer).ok()?;
                        (buffer[..length] == mirrored("web-1", &question)).then_some(())
                    });
                }
            });
        }
        let too_big = datagrams.served.status().verdict("forward-too-big");
        assert_eq!(too_big > 0, way == "neigh", "{way}: {too_big}");
    }
}

/// Row B7: answers without DF that are larger than the interface to the client takes arrive from the address that was
/// dialled, whole or in fragments, once the backend has been told.
#[test]
fn answers_that_the_clients_link_does_not_take_arrive_all_the_same() {
    for way in WAYS {
        let lab = Lab::builder().build().unwrap();
        let backend = lab.backends()[0].namespace();
        // Its sockets ask nobody about paths, and set no DF.
        backend.sysctl("net/ipv4/ip_no_pmtu_disc", "1").unwrap();
        for end in [lab.host(), lab.client()] {
            end.batch("link set eth0 mtu 1400\n").unwrap();
        }
        let datagrams = Datagrams::start_in(lab, &["--forward", way], Echo::mirror);
        for front in datagrams.served.fronts() {
            datagrams.on_client(|| {
                let socket = connected(front);
                socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
                for length in [1_450, 8_192, 1_380] {
                    let (question, what) = (vec![0x5a; length], format!("{way} {front} {length}"));
                    let answer = ask_until_answered(&socket, &question, &what);
                    assert!(answer == mirrored("web-1", &question), "{what}");
                }
            });
        }
        if way != "stack" {
            assert!(datagrams.served.status().verdict("reply-too-big") > 0, "{way}");
        }
    }
}
