//! The addresses that clients on the host dial, and those they are bound to.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};

use samport_tests::HOST_V4;
use samport_tests::HOST_V6;
use samport_tests::datagrams::{ask_connected, ask_to, client};
use samport_tests::served::LISTEN;
use samport_tests::socket::{ask_on, connect_between};

use crate::lab;
use crate::local::{LOCALHOST, LOCALHOST_V6, Local};

const fn loopback(b: u8, c: u8, d: u8) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(127, b, c, d)), LISTEN)
}

/// What Debian's `/etc/hosts` calls the host.
const DEBIAN: SocketAddr = loopback(0, 1, 1);

/// Case 65: all of 127.0.0.0/8 is the host's, to the kernel too.
#[test]
fn every_address_of_127_0_0_0_8_reaches_the_backends() {
    let local = Local::start(2, &[]);
    let mapped = SocketAddr::new(Ipv4Addr::new(127, 0, 1, 1).to_ipv6_mapped().into(), LISTEN);
    let addresses = [DEBIAN, loopback(0, 0, 2), loopback(1, 2, 3), loopback(255, 255, 254), mapped];
    for address in addresses {
        local.on_host(|| {
            let stream = TcpStream::connect(address).unwrap();
            assert_eq!(stream.peer_addr().unwrap(), address);
            local.assert_backend(&ask_on(&stream, "/").unwrap().backend);
            let connected = client(address).unwrap();
            connected.connect(address).unwrap();
            for (name, from) in [
                ask_connected(&connected).unwrap(),
                ask_to(&client(address).unwrap(), address).unwrap(),
            ] {
                local.assert_backend(&name);
                assert_eq!(from, address);
            }
        });
    }
    // A port that is not served is not served there.
    let other = SocketAddr::new(DEBIAN.ip(), 81);
    let error = local.on_host(|| TcpStream::connect(other)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    assert_eq!(local.verdict("local-forward"), 3 * addresses.len() as u64);
    let own = SocketAddr::new(DEBIAN.ip(), 20_000).to_string();
    let told = local.served.order(&["explain", &own, &DEBIAN.to_string()]);
    assert!(told.contains("service 80/tcp") && told.contains("web-1"), "{told}");
}

/// A server that has an address of 127.0.0.0/8 for itself is who is meant by it, as a name server on 127.0.0.53.
#[test]
fn a_server_of_the_hosts_own_keeps_its_address_of_127_0_0_0_8() {
    let local = Local::start(1, &[]);
    let beside = loopback(0, 1, 2);
    local.on_host(|| {
        let own = TcpListener::bind(DEBIAN).unwrap();
        let own_datagrams = UdpSocket::bind(DEBIAN).unwrap();
        let stream = TcpStream::connect(DEBIAN).unwrap();
        assert_eq!(own.accept().unwrap().1, stream.local_addr().unwrap());
        let asking = client(DEBIAN).unwrap();
        asking.send_to(b"?", DEBIAN).unwrap();
        let mut question = [0; 8];
        let (length, _) = own_datagrams.recv_from(&mut question).unwrap();
        assert_eq!(&question[..length], b"?");
        asking.connect(DEBIAN).unwrap();
        asking.send(b"!").unwrap();
        assert_eq!(own_datagrams.recv_from(&mut question).unwrap().0, 1);
    });
    assert_eq!(local.verdict("local-forward"), 0);
    let own = SocketAddr::new(DEBIAN.ip(), 20_000).to_string();
    let told = || local.served.order(&["explain", &own, &DEBIAN.to_string()]);
    local.on_host(|| {
        let own = TcpListener::bind(DEBIAN).unwrap();
        assert!(!told().contains("web-1"), "{}", told());
        // The addresses beside it are not its own.
        assert_eq!(ask_on(&TcpStream::connect(beside).unwrap(), "/").unwrap().backend, "web-1");
        drop(own);
        let _everywhere = TcpListener::bind(("::", LISTEN)).unwrap();
        assert_eq!(ask_on(&TcpStream::connect(DEBIAN).unwrap(), "/").unwrap().backend, "web-1");
    });
}

/// Where nothing serves 127.0.0.1, its neighbours are not served either.
#[test]
fn a_service_of_one_address_does_not_serve_127_0_0_0_8() {
    let served = samport_tests::served::Served::start(lab(1), &["-p", "192.0.2.1:81:9090"]);
    let error =
        served.lab.host().run(|| TcpStream::connect(SocketAddr::new(DEBIAN.ip(), 81))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

/// Case 65: a client may have chosen its own address before: any that a container can answer.
#[test]
fn sockets_bound_to_the_hosts_addresses_are_served_from_these() {
    let local = Local::start(2, &[]);
    let bridge = (Ipv4Addr::new(172, 30, 0, 1), "2001:db8:2::1".parse().unwrap());
    let (own4, own6) = ([HOST_V4, bridge.0], [HOST_V6, bridge.1]);
    let pairs4 = own4.map(|own| (own.into(), [LOCALHOST, DEBIAN, (HOST_V4, LISTEN).into()]));
    let pairs6 =
        own6.map(|own| (own.into(), [LOCALHOST_V6, (HOST_V6, LISTEN).into(), LOCALHOST_V6]));
    for (own, dialled) in pairs4.into_iter().chain(pairs6) {
        for (number, address) in (0u16..).zip(dialled) {
            let from = SocketAddr::new(own, 21_000 + number);
            local.on_host(|| {
                let stream = connect_between(from, address)
                    .unwrap_or_else(|error| panic!("{from} to {address}: {error}"));
                let answer = ask_on(&stream, "/").unwrap();
                assert_eq!(answer.client, from, "to {address}");
                let socket = UdpSocket::bind(from).unwrap();
                socket.set_read_timeout(Some(samport_tests::TIMEOUT)).unwrap();
                let (name, sender) = ask_to(&socket, address).unwrap();
                local.assert_backend(&name);
                assert_eq!(sender, address, "to {from}");
            });
        }
    }
    assert_eq!(local.verdict("local-bound-elsewhere"), 0);
}
