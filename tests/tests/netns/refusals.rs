//! Clients are told at once that nobody serves them, whatever the host's firewall would say.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream, UdpSocket};

use samport::lab::{Bridge, output_of};
use samport_tests::daemon::{Backends, Daemon};
use samport_tests::load::Connection;
use samport_tests::served::{LISTEN, Served, Status};
use samport_tests::{Lab, Namespace, TIMEOUT, require_root};

use crate::lab;

fn fronts(lab: &Lab) -> [SocketAddr; 2] {
    [lab.front(LISTEN), lab.front_v6(LISTEN)]
}

/// The host's stack takes nothing for the port: whoever is refused, is refused by us.
fn close_the_stack(lab: &Lab) {
    for program in ["iptables", "ip6tables"] {
        let rule = ["-w", "-A", "INPUT", "-p", "tcp", "--dport", "80", "-j", "DROP"];
        output_of(lab.host().command(program).args(rule)).unwrap();
    }
}

fn assert_refused(client: &Namespace, front: SocketAddr) {
    let error = client.run(|| TcpStream::connect_timeout(&front, TIMEOUT)).unwrap_err();
    assert_eq!(
        error.kind(),
        ErrorKind::ConnectionRefused,
        "{front} from {}: {error}",
        client.name()
    );
}

/// Case 59: No backend: refused at once, IPv4 and IPv6: from outside, from a container beside the backends and from
/// one on another bridge, with checksums that devices finish and with complete ones.
#[test]
fn without_a_backend_every_client_is_refused_at_once() {
    require_root();
    for tx_offload_off in [false, true] {
        let builder = Lab::builder().backends(0);
        let builder = if tx_offload_off { builder.tx_offload_off() } else { builder };
        let mut lab = builder.build().unwrap();
        lab.add_container(Bridge::Backends).unwrap();
        lab.add_container(Bridge::Other).unwrap();
        close_the_stack(&lab);
        let none = Backends::none();
        let _daemon =
            Daemon::start(&lab, &["-i", "eth0", "-p", "80,80/udp", "--file", none.path()]);
        let containers = lab.containers().iter().map(samport::lab::Backend::namespace);
        let clients: Vec<_> = [lab.client()].into_iter().chain(containers).collect();
        for client in &clients {
            for front in fronts(&lab) {
                assert_refused(client, front);
            }
        }
        let [status] = &Status::all_in(lab.host())[..] else { panic!("one instance runs") };
        assert_eq!(status.verdict("no-backend-reset"), 2 * clients.len() as u64);
        for front in fronts(&lab) {
            assert_datagrams_refused(lab.client(), front);
        }
    }
}

fn assert_datagrams_refused(client: &Namespace, front: SocketAddr) {
    let error = client.run(|| {
        let any: SocketAddr =
            if front.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
        let socket = UdpSocket::bind(any).unwrap();
        socket.connect(front).unwrap();
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        socket.send(b"?").unwrap();
        socket.recv(&mut [0; 16]).unwrap_err()
    });
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{front}: {error}");
}

/// Case 56: Removed TCP backend: RST at the next packet, past a firewall that would swallow it.
#[test]
fn a_connection_to_a_removed_backend_is_reset_past_the_firewall() {
    let mut served = Served::start(lab(2), &["--drain", "0s"]);
    close_the_stack(&served.lab);
    let mut kept: Vec<_> = served.lab.client().run(|| {
        let open = |front: &SocketAddr| Connection::open(*front).unwrap();
        served.fronts().iter().map(open).collect()
    });
    let mut owners = Vec::new();
    for connection in &mut kept {
        owners.push(connection.get("/").unwrap().backend);
    }
    for name in ["web-1", "web-2"] {
        served.change(("-", name, "gone"), |file| file.remove(name));
    }
    for (connection, owner) in kept.iter_mut().zip(owners) {
        let error = connection.get("/").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{owner}: {error}");
    }
    assert!(served.status().verdict("gone-reset") >= 2);
}
