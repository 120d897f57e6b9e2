//! Who listens on a port of this machine already.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use procfs::net::{TcpState, UdpState};
use procfs::process::FDTarget;
use samport_common::wire::protocol::Protocol;

use crate::exit::{Exit, coded};
use crate::ports::Listen;

/// A socket that waits for whoever comes.
struct Listener {
    at: Listen,
    inode: u64,
}

/// Refuses ports that a socket of this network namespace listens on: it would get no more
/// connections through the interface, and nobody would know why.
///
/// # Errors
/// [`Exit::Conflict`], naming the process.
pub fn refuse_taken(ports: &[Listen]) -> Result<()> {
    let listeners =
        Protocol::ALL.into_iter().filter(|of| ports.iter().any(|port| port.protocol == *of));
    let mut listeners = listeners.flat_map(listeners_of);
    let Some(Listener { at, inode }) = listeners.find(|one| ports.contains(&one.at)) else {
        return Ok(());
    };
    let (who, way_out) = match owner(inode) {
        Some((pid, name)) if name.starts_with("docker-proxy") => (
            format!("a container that publishes it (docker-proxy, pid {pid})"),
            "remove it from that container's `ports:`",
        ),
        Some((pid, name)) => (format!("{name} (pid {pid})"), "stop it"),
        None => ("another process".to_owned(), "stop it"),
    };
    let port = at.brief();
    Err(coded(
        Exit::Conflict,
        format!("port {port} is listened on by {who}; {way_out}, or choose another port with -p"),
    ))
}

/// The loopback addresses on which some server of this host has one of these ports: the host's own
/// clients know it there, and are to find it there.
pub fn on_loopback(ports: &[Listen]) -> Vec<(Listen, IpAddr)> {
    let mut found = Vec::new();
    for protocol in Protocol::ALL {
        for (local, _) in sockets_of(protocol) {
            let at = Listen { port: local.port(), protocol };
            if local.ip().is_loopback() && ports.contains(&at) {
                found.push((at, local.ip()));
            }
        }
    }
    found
}

/// The listeners of a protocol that are not on loopback alone.
fn listeners_of(protocol: Protocol) -> Vec<Listener> {
    let heard_outside =
        sockets_of(protocol).into_iter().filter(|(local, _)| !local.ip().is_loopback());
    heard_outside
        .map(|(local, inode)| Listener { at: Listen { port: local.port(), protocol }, inode })
        .collect()
}

/// The sockets of a protocol that wait for whoever comes, and their inodes. /proc/net is a convenience: without it
/// nothing can be said.
fn sockets_of(protocol: Protocol) -> Vec<(SocketAddr, u64)> {
    match protocol {
        Protocol::Tcp => {
            let (v4, v6) = (procfs::net::tcp(), procfs::net::tcp6());
            let all = v4.into_iter().flatten().chain(v6.into_iter().flatten());
            let listening = all.filter(|socket| socket.state == TcpState::Listen);
            listening.map(|socket| (socket.local_address, socket.inode)).collect()
        }
        Protocol::Udp => {
            let (v4, v6) = (procfs::net::udp(), procfs::net::udp6());
            let all = v4.into_iter().flatten().chain(v6.into_iter().flatten());
            // One that is connected hears its peer only.
            let listening = all.filter(|socket| socket.state == UdpState::Close);
            listening.map(|socket| (socket.local_address, socket.inode)).collect()
        }
    }
}

/// The process that holds a socket.
fn owner(inode: u64) -> Option<(i32, String)> {
    procfs::process::all_processes().ok()?.flatten().find_map(|process| {
        let holds = process
            .fd()
            .ok()?
            .flatten()
            .any(|fd| matches!(fd.target, FDTarget::Socket(of) if of == inode));
        holds.then(|| Some((process.pid(), process.stat().ok()?.comm))).flatten()
    })
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener, UdpSocket};

    use super::*;
    use crate::exit::code_of;

    #[test]
    fn who_listens_is_named() {
        let tcp = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let taken = [
            Listen::tcp(tcp.local_addr().unwrap().port()),
            Listen::udp(udp.local_addr().unwrap().port()),
        ];
        for listen in taken {
            let error = refuse_taken(&[listen]).unwrap_err();
            assert_eq!(code_of(&error), Exit::Conflict);
            let words = [listen.brief(), format!("(pid {})", std::process::id())];
            let error = error.to_string();
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        }
    }

    #[test]
    fn a_connected_datagram_socket_and_one_on_loopback_do_not_listen() {
        let local = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let connected = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        connected.connect(local.local_addr().unwrap()).unwrap();
        for socket in [local, connected] {
            refuse_taken(&[Listen::udp(socket.local_addr().unwrap().port())]).unwrap();
        }
    }

    #[test]
    fn a_server_on_loopback_is_found() {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let listen = Listen::tcp(server.local_addr().unwrap().port());
        assert_eq!(on_loopback(&[listen]), [(listen, Ipv4Addr::LOCALHOST.into())]);
        assert_eq!(on_loopback(&[Listen::udp(listen.port)]), []);
    }
}
