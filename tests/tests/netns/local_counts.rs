//! How many connections of the host itself count as open with a backend.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::thread;

use rustix::io::Errno;
use rustix::net::sockopt::socket_error;
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, connect, connect_unspec, socket, socket_with,
};
use samport_tests::datagrams::client;
use samport_tests::eventually;
use samport_tests::served::{LISTEN, Served, TARGET};

use crate::failover::silence;
use crate::lab;
use crate::local::{LOCALHOST, LOCALHOST_V6};

/// More than the connections of a single test, and than draws come to the same backend by chance.
const CONNECTIONS: usize = 200;

/// One backend, which is served whatever it does.
fn trusting() -> Served {
    Served::start(lab(1), &["-p", "80:9090/udp", "--health", "none"])
}

fn open(served: &Served) -> u64 {
    served.status().sum("open")
}

fn stream(address: SocketAddr, flags: SocketFlags) -> OwnedFd {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    socket_with(family, SocketType::STREAM, flags, None).unwrap()
}

/// Case 65: what the backend has taken counts while the socket is open anywhere, and not longer.
#[test]
fn a_connection_of_the_host_counts_until_the_last_of_its_sockets_is_closed() {
    let served = trusting();
    let connections: Vec<_> = served.lab.host().run(|| {
        let connect = |address| TcpStream::connect(address).unwrap();
        (0..20).flat_map(|_| [LOCALHOST, LOCALHOST_V6]).map(connect).collect()
    });
    assert_eq!(open(&served), 40);
    // As a process inherits it that is forked.
    let inherited = connections[0].try_clone().unwrap();
    drop(connections);
    assert_eq!(open(&served), 1);
    drop(inherited);
    assert_eq!(open(&served), 0);
}

/// Cases 52 and 65: connections that the backend refuses do not count: not those whose sockets are closed, nor those
/// that are kept and tried again.
#[test]
fn two_hundred_refused_connections_of_the_host_leave_nothing_open() {
    let mut served = trusting();
    served.servers.clear();
    let kept = served.lab.host().run(|| {
        let mut kept = Vec::new();
        for number in 0..CONNECTIONS {
            let address = if number % 2 == 0 { LOCALHOST } else { LOCALHOST_V6 };
            let error = TcpStream::connect(address).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
            let stream = stream(address, SocketFlags::empty());
            for _ in 0..2 {
                assert_eq!(connect(&stream, &address), Err(Errno::CONNREFUSED));
            }
            kept.push(stream);
        }
        kept
    });
    assert_eq!(open(&served), 0);
    drop(kept);
    assert_eq!(open(&served), 0);
}

/// A program that does not wait for its connections learns of the refusal later, and keeps the socket meanwhile.
#[test]
fn a_refused_connection_that_nobody_has_waited_for_does_not_count() {
    let mut served = trusting();
    served.servers.clear();
    let sockets = served.lab.host().run(|| {
        let begin = |_| {
            let stream = stream(LOCALHOST, SocketFlags::NONBLOCK);
            assert!(matches!(connect(&stream, &LOCALHOST), Err(Errno::INPROGRESS)));
            stream
        };
        (0..CONNECTIONS).map(begin).collect::<Vec<_>>()
    });
    for socket in &sockets {
        eventually("the connection is refused", || socket_error(socket.as_fd()).unwrap().err());
    }
    assert_eq!(open(&served), 0);
}

/// A connection that a backend has not answered yet may still be taken: it counts until it is given up.
#[test]
fn an_unanswered_connection_of_the_host_counts_until_it_is_given_up() {
    let served = trusting();
    silence(&served.lab, 0);
    let sockets = served.lab.host().run(|| {
        let begin = |_| {
            let stream = stream(LOCALHOST, SocketFlags::NONBLOCK);
            // Two retransmissions, which are 3 s.
            rustix::net::sockopt::set_tcp_user_timeout(&stream, 2_000).unwrap();
            assert!(matches!(connect(&stream, &LOCALHOST), Err(Errno::INPROGRESS)));
            stream
        };
        (0..20).map(begin).collect::<Vec<_>>()
    });
    assert_eq!(open(&served), 20);
    for socket in &sockets {
        eventually("the connection is given up", || socket_error(socket.as_fd()).unwrap().err());
    }
    assert_eq!(open(&served), 0);
}

/// A datagram socket has one other end: that of its last connect.
#[test]
fn a_datagram_socket_counts_once_however_often_it_connects() {
    let served = trusting();
    let elsewhere = served.lab.backends()[0].v4(TARGET);
    let sockets: Vec<UdpSocket> = served.lab.host().run(|| {
        let connect = |_| {
            let socket = client(LOCALHOST).unwrap();
            for _ in 0..3 {
                socket.connect(LOCALHOST).unwrap();
            }
            socket
        };
        (0..4).map(connect).collect()
    });
    assert_eq!(open(&served), 4);
    // To somebody samport does not know; and to nobody.
    served.lab.host().run(|| sockets[0].connect(elsewhere).unwrap());
    assert_eq!(open(&served), 3);
    connect_unspec(&sockets[1]).unwrap();
    drop(sockets);
    assert_eq!(open(&served), 0);
}

/// Sockets of other namespaces, and those that only listen, are nobody's connections.
#[test]
fn other_sockets_count_nowhere() {
    let served = trusting();
    let direct = served.lab.backends()[0].v4(TARGET);
    let container = served.lab.backends()[0].namespace();
    let held = (
        served.lab.host().run(|| TcpStream::connect(direct).unwrap()),
        container.run(|| socket(AddressFamily::INET, SocketType::STREAM, None).unwrap()),
        served.lab.host().run(|| UdpSocket::bind((LOCALHOST.ip(), LISTEN)).unwrap()),
    );
    assert_eq!(open(&served), 0);
    drop(held);
    assert_eq!(open(&served), 0);
}

/// Many at once, from several threads: a count that is lost or taken twice would stay.
#[test]
fn connections_that_come_and_go_at_once_leave_nothing_open() {
    let served = trusting();
    served.lab.host().run(|| {
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..CONNECTIONS {
                        drop(TcpStream::connect(LOCALHOST).unwrap());
                    }
                });
            }
        });
    });
    assert_eq!(open(&served), 0);
}
