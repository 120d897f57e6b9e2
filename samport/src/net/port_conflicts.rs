//! Who listens on a port of this machine already.

mod holder;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::OnceLock;

use anyhow::Result;
use procfs::net::{TcpState, UdpState};
use procfs::process::FDTarget;
use samport_common::wire::protocol::Protocol;

use crate::model::ports::Listen;
use crate::system::exit::{Exit, coded};

/// A socket that waits for whoever comes.
struct Listener {
    local: SocketAddr,
    protocol: Protocol,
    inode: u64,
}

impl Listener {
    /// Whether it hears what clients send to a port. The host's own clients know what listens on a
    /// loopback address alone, and find it there: it is in the way of a service of that address only.
    fn is_in_the_way_of(&self, port: Listen) -> bool {
        let ip = self.local.ip().to_canonical();
        let hears = match port.addr {
            None => !ip.is_loopback(),
            // One for IPv6 may hear IPv4 too; whether it does is not to be seen from here.
            Some(addr) if ip.is_unspecified() => ip.is_ipv6() || addr.is_ipv4(),
            Some(addr) => addr == ip,
        };
        hears && (self.local.port(), self.protocol) == (port.port, port.protocol)
    }
}

/// Who held sockets before the kernel was asked to keep us from looking into other processes (Landlock does), by
/// their inodes.
static SEEN: OnceLock<BTreeMap<u64, (i32, String)>> = OnceLock::new();

/// Remembers who listens on these ports now, for whoever is to be named later.
pub fn remember(ports: &[Listen]) {
    let inodes = takers(ports).map(|(_, inode)| inode);
    SEEN.get_or_init(|| inodes.filter_map(|inode| Some((inode, owner(inode)?))).collect());
}

/// Refuses ports that a socket of this network namespace listens on: it would get no more
/// connections through the interface, without a visible reason.
///
/// # Errors
/// [`Exit::Conflict`], naming the process.
pub fn refuse_taken(ports: &[Listen]) -> Result<()> {
    let Some((at, inode)) = takers(ports).next() else { return Ok(()) };
    let (who, way_out) = describe(at, inode);
    let port = at.brief();
    Err(coded(
        Exit::Conflict,
        format!("port {port} is listened on by {who}; {way_out}, or choose another port with -p"),
    ))
}

/// Sentences about sockets that listen on ports while these are served. They hear nothing of what comes in by the
/// interfaces, without being told.
pub fn warnings(ports: &[Listen]) -> BTreeSet<String> {
    let sentence = |(at, inode): (Listen, u64)| {
        let ((who, way_out), port) = (describe(at, inode), at.brief());
        format!(
            "port {port} is served, and listened on by {who} since: clients that come in by the interfaces get \
             backends, not it; {way_out}, or serve another port"
        )
    };
    takers(ports).map(sentence).collect()
}

/// Sockets that listen on one of these ports: which port, and the socket's inode.
fn takers(ports: &[Listen]) -> impl Iterator<Item = (Listen, u64)> {
    let listeners =
        Protocol::ALL.into_iter().filter(|of| ports.iter().any(|port| port.protocol == *of));
    let taken = |one: &Listener| ports.iter().find(|port| one.is_in_the_way_of(**port)).copied();
    listeners.flat_map(listeners_of).filter_map(move |one| Some((taken(&one)?, one.inode)))
}

/// Who holds a socket, and what to do about it.
fn describe(at: Listen, inode: u64) -> (String, &'static str) {
    let seen = || SEEN.get()?.get(&inode).cloned();
    match owner(inode).or_else(seen) {
        Some((pid, name)) if name.starts_with("docker-proxy") => (
            format!("a container that publishes it (docker-proxy, pid {pid})"),
            "remove it from that container's `ports:`",
        ),
        Some((pid, name)) => (format!("{name} (pid {pid})"), "stop it"),
        None => (holder::describe(at, inode), "stop it"),
    }
}

/// The loopback addresses on which some server of this host has one of these ports: the host's own
/// clients know it there, and are to find it there.
pub fn on_loopback(ports: &[Listen]) -> Vec<(Listen, IpAddr)> {
    let mut found = Vec::new();
    for protocol in Protocol::ALL {
        for (local, _) in sockets_of(protocol) {
            let at = Listen { port: local.port(), protocol, addr: None };
            if local.ip().is_loopback() && ports.contains(&at) {
                found.push((at, local.ip()));
            }
        }
    }
    found
}

/// Whether a socket of this machine listens on this very address, rather than on all of them.
pub(crate) fn is_listened_on(at: SocketAddr, protocol: Protocol) -> bool {
    let is_there = |(local, _): &(SocketAddr, u64)| {
        (local.ip().to_canonical(), local.port()) == (at.ip(), at.port())
    };
    sockets_of(protocol).iter().any(is_there)
}

fn listeners_of(protocol: Protocol) -> Vec<Listener> {
    let sockets = sockets_of(protocol).into_iter();
    sockets.map(|(local, inode)| Listener { local, protocol, inode }).collect()
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
    use crate::system::exit::code_of;

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
    fn who_listens_on_another_address_is_in_nobodys_way() {
        for (local, port, in_the_way) in [
            ("0.0.0.0:80", "80", true),
            ("192.0.2.1:80", "80", true),
            ("127.0.0.1:80", "80", false),
            ("0.0.0.0:80", "192.0.2.1:80", true),
            ("[::]:80", "192.0.2.1:80", true),
            ("[::]:80", "[2001:db8::7]:80", true),
            ("0.0.0.0:80", "[2001:db8::7]:80", false),
            ("192.0.2.1:80", "192.0.2.1:80", true),
            ("[::ffff:192.0.2.1]:80", "192.0.2.1:80", true),
            ("192.0.2.2:80", "192.0.2.1:80", false),
            ("192.0.2.1:81", "192.0.2.1:80", false),
            ("192.0.2.1:80", "192.0.2.1:80/udp", false),
            ("127.0.0.1:80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "192.0.2.1:80", false),
        ] {
            let listener =
                Listener { local: local.parse().unwrap(), protocol: Protocol::Tcp, inode: 0 };
            let port = port.parse().unwrap();
            assert_eq!(listener.is_in_the_way_of(port), in_the_way, "{local} {port}");
        }
    }

    #[test]
    fn a_server_on_loopback_is_found() {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let listen = Listen::tcp(server.local_addr().unwrap().port());
        assert_eq!(on_loopback(&[listen]), [(listen, Ipv4Addr::LOCALHOST.into())]);
        assert_eq!(on_loopback(&[Listen::udp(listen.port)]), []);
        let at = server.local_addr().unwrap();
        assert!(is_listened_on(at, Protocol::Tcp) && !is_listened_on(at, Protocol::Udp));
        let beside = SocketAddr::new(Ipv4Addr::new(127, 0, 1, 1).into(), at.port());
        assert!(!is_listened_on(beside, Protocol::Tcp));
        let here = listen.at(Ipv4Addr::LOCALHOST.into());
        assert_eq!(on_loopback(&[here]), [], "who is given the address takes it or is refused");
        let error = refuse_taken(&[here]).unwrap_err().to_string();
        assert!(error.contains(&format!("port {}", here.brief())), "{error}");
    }
}
