//! Bytes arrive as they were sent, and the backend sees who sent them.

use samport::lab::Builder;
use samport_tests::load::{Connection, ask};
use samport_tests::served::Served;
use samport_tests::{Lab, require_root};

use crate::lab;

/// 10 MB.
const LENGTH: usize = 10_000_000;
/// Longest Ethernet frame for the default MTU.
const FRAME: u64 = 1_514;

/// Sends 10 MB each way through both fronts; the mean length of the frames to the backend, and of
/// those back.
fn transfer(builder: Builder) -> (u64, u64) {
    require_root();
    let served = Served::start(builder.build().unwrap(), &[]);
    served.lab.client().run(|| {
        for front in served.fronts() {
            let mut connection = Connection::open(front).unwrap();
            let answer = connection.get(&format!("/bytes/{LENGTH}")).unwrap();
            assert_eq!((answer.status, answer.body.len()), (200, LENGTH), "{front}");
            assert!(answer.is_pattern(), "{front}: other bytes have come back");
            // The server compares what arrives with the pattern.
            let answer = connection.post(LENGTH).unwrap();
            assert_eq!((answer.status, answer.text()), (200, format!("ok {LENGTH}")), "{front}");
        }
    });
    let status = served.status();
    (
        status.sum("bytes_in") / status.sum("packets_in"),
        status.sum("bytes_out") / status.sum("packets_out"),
    )
}

/// Case 18: tx offload off everywhere: 10 MB arrives intact.
#[test]
fn ten_megabytes_arrive_intact_with_checksums_computed_by_the_senders() {
    let (forth, back) = transfer(Lab::builder().tx_offload_off());
    assert!(forth <= FRAME && back <= FRAME, "{forth} and {back}: offload is not off");
}

/// Case 19: 64 KB GSO intact.
#[test]
fn ten_megabytes_arrive_intact_in_frames_of_up_to_64_kilobytes() {
    let (forth, back) = transfer(Lab::builder());
    // ACKs lower the mean; without GSO no frame would be longer than the MTU allows.
    assert!(forth > FRAME && back > FRAME, "{forth} and {back}: that was no GSO");
}

/// Case 18, with what a cloud's tunnel leaves of the MTU.
#[test]
fn ten_megabytes_arrive_intact_with_a_small_mtu() {
    transfer(Lab::builder().mtu(1_280).tx_offload_off());
    transfer(Lab::builder().mtu(1_280));
}

/// An interface to the clients that takes less than the containers send, and a client that does not
/// say so: the host tells the container, as it would without us.
#[test]
fn replies_too_large_for_the_interface_are_sent_again_smaller() {
    require_root();
    let served = Served::start(Lab::builder().build().unwrap(), &[]);
    let (client, host) = (served.lab.client(), served.lab.host());
    for namespace in [client, host] {
        namespace.ip(&["link", "set", "eth0", "mtu", "1400"]).unwrap();
    }
    let unaware = "advmss 1460".split(' ');
    let route = ["route", "replace", "192.0.2.0/24", "dev", "eth0"].into_iter();
    client.ip(&route.chain(unaware).collect::<Vec<_>>()).unwrap();
    let unaware = "advmss 1440".split(' ');
    let route = ["-6", "route", "replace", "2001:db8:1::/64", "dev", "eth0"].into_iter();
    client.ip(&route.chain(unaware).collect::<Vec<_>>()).unwrap();
    client.run(|| {
        for front in served.fronts() {
            let answer = Connection::open(front).unwrap().get("/bytes/1000000").unwrap();
            assert_eq!((answer.status, answer.body.len()), (200, 1_000_000), "{front}");
            assert!(answer.is_pattern(), "{front}: other bytes have come back");
        }
    });
    assert!(served.status().verdict("reply-too-big") > 1, "nothing was too large");
}

/// Case 23: The backend sees the client's own address and port.
#[test]
fn the_backend_sees_the_clients_own_address_and_port() {
    let served = Served::start(lab(2), &[]);
    for front in served.fronts() {
        served.lab.client().run(|| {
            let mut connection = Connection::open(front).unwrap();
            let own = connection.local_addr();
            assert_eq!(own.is_ipv6(), front.is_ipv6());
            // On the first request and on later ones.
            for _ in 0..3 {
                assert_eq!(connection.get("/").unwrap().client, own);
            }
            // And the client sees the address it has dialled.
            assert_eq!(connection.stream().peer_addr().unwrap(), front);
        });
        // `ask` compares them too.
        assert_eq!(ask(&served.lab, front, 50).total(), 50);
    }
}

/// Case 89: IPv6 end to end for TCP.
#[test]
fn ipv6_works_end_to_end_with_backends_that_have_nothing_else() {
    use samport_tests::daemon::{Backends, Daemon};
    let lab = lab(2);
    let _servers = lab.serve(9090).unwrap();
    let mut file = Backends::none();
    for backend in lab.backends() {
        file.add(backend.name(), backend.v6(9090));
    }
    let _daemon = Daemon::start(&lab, &["-i", "eth0", "-p", "80", "--file", file.path()]);
    let tally = ask(&lab, lab.front_v6(80), 100);
    assert!(tally.of("web-1") > 0 && tally.of("web-2") > 0, "{tally}");
    // IPv4 has no backend: refused, not silence.
    let error = lab.get(lab.front(80), "/").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
}
