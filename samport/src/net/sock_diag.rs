//! Sockets of this network namespace that are connected to an address, and an end to them: sock_diag.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
    Nla as _,
};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{
    ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags,
};
use netlink_packet_sock_diag::{
    AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP, SockDiagDestroy, SockDiagMessage,
};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr as NetlinkAddr};
use rustix::net::sockopt;
use samport_common::wire::protocol::Protocol;

const PROTOCOLS: [u8; 2] = [IPPROTO_TCP, IPPROTO_UDP];

/// A conversation with the kernel about sockets.
pub struct Sockets {
    socket: Socket,
    sequence: u32,
}

/// A connected socket.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Connected {
    /// The kernel's number of the socket, never used twice.
    pub cookie: u64,
    request: InetRequest,
}

/// Who has made a socket, as far as the kernel tells anybody.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Holder {
    /// The user.
    pub uid: u32,
    /// The number of the control group (cgroup2), which is the inode of its folder. Since Linux 5.8.
    pub cgroup: Option<u64>,
}

impl Connected {
    /// Whether it is a socket of this protocol, and this is its own end.
    #[must_use]
    pub fn is_at(&self, local: SocketAddr, protocol: Protocol) -> bool {
        let InetRequest { protocol: number, socket_id, .. } = &self.request;
        let own = (socket_id.source_address.to_canonical(), socket_id.source_port);
        *number == protocol.number() && own == (local.ip(), local.port())
    }
}

impl Sockets {
    /// Opens the conversation, in the calling thread's network namespace.
    pub fn open() -> io::Result<Self> {
        let socket = Socket::new(NETLINK_SOCK_DIAG)?;
        limit_waits(&socket)?;
        socket.connect(&NetlinkAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// TCP and UDP sockets that are connected to an endpoint. One for IPv6 may be connected to an
    /// IPv4 address.
    pub fn connected_to(&mut self, peer: SocketAddr) -> io::Result<Vec<Connected>> {
        let families: &[u8] = if peer.is_ipv4() { &[AF_INET, AF_INET6] } else { &[AF_INET6] };
        let (mut found, mut known) = (Vec::new(), false);
        for (family, protocol) in families.iter().flat_map(|f| PROTOCOLS.map(|p| (*f, p))) {
            match self.collect(family, protocol, peer, &mut found) {
                Ok(()) => known = true,
                // A kernel that has no such sockets, or does not tell.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        if known { Ok(found) } else { Err(io::ErrorKind::Unsupported.into()) }
    }

    /// Who has made the socket with this inode, which waits on this port.
    pub fn holder(
        &mut self,
        protocol: Protocol,
        port: u16,
        inode: u64,
    ) -> io::Result<Option<Holder>> {
        let states = match protocol {
            Protocol::Tcp => StateFlags::LISTEN,
            Protocol::Udp => StateFlags::CLOSE,
        };
        let mut found = None;
        for family in [AF_INET, AF_INET6] {
            let mut socket_id =
                if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() };
            socket_id.source_port = port;
            let message = SockDiagMessage::InetRequest(InetRequest {
                family,
                protocol: protocol.number(),
                extensions: ExtensionFlags::empty(),
                states: states.clone(),
                socket_id,
            });
            self.send(message, NLM_F_REQUEST | NLM_F_DUMP)?;
            self.receive(&mut |InetResponse { header, nlas }| {
                if u64::from(header.inode) == inode {
                    found = Some(Holder { uid: header.uid, cgroup: cgroup_of(nlas) });
                }
            })?;
        }
        Ok(found)
    }

    /// Ends a socket's connection: whoever uses it gets ECONNABORTED. One that is gone is fine.
    pub fn destroy(&mut self, socket: &Connected) -> io::Result<()> {
        let message = SockDiagMessage::InetRequest(socket.request.clone());
        self.send(SockDiagDestroy::new(message), NLM_F_REQUEST | NLM_F_ACK)?;
        match self.receive(&mut |_| {}) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    fn collect(
        &mut self,
        family: u8,
        protocol: u8,
        peer: SocketAddr,
        found: &mut Vec<Connected>,
    ) -> io::Result<()> {
        let mut socket_id = if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() };
        // The kernel selects by this.
        socket_id.destination_port = peer.port();
        let request = |socket_id| InetRequest {
            family,
            protocol,
            extensions: ExtensionFlags::empty(),
            states: connected_states(),
            socket_id,
        };
        let message = SockDiagMessage::InetRequest(request(socket_id));
        self.send(message, NLM_F_REQUEST | NLM_F_DUMP)?;
        self.receive(&mut |InetResponse { header, .. }| {
            let socket_id = &header.socket_id;
            if is_peer(socket_id, peer) {
                let cookie = u64::from_ne_bytes(socket_id.cookie);
                found.push(Connected { cookie, request: request(socket_id.clone()) });
            }
        })
    }

    fn send<M: NetlinkSerializable>(&mut self, message: M, flags: u16) -> io::Result<()>
    where
        NetlinkPayload<M>: From<M>,
    {
        self.sequence += 1;
        let mut message = NetlinkMessage::from(message);
        message.header.flags = flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        Ok(())
    }

    /// Receives up to the answer's end.
    fn receive(&self, each: &mut dyn FnMut(&InetResponse)) -> io::Result<()> {
        loop {
            let (bytes, _) = self.socket.recv_from_full()?;
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let message =
                    NetlinkMessage::<SockDiagMessage>::deserialize(rest).map_err(|error| {
                        io::Error::new(io::ErrorKind::InvalidData, error.to_string())
                    })?;
                let ours = message.header.sequence_number == self.sequence;
                let length = (message.header.length as usize).next_multiple_of(4).max(16);
                match message.payload {
                    // What is left of a conversation that broke off.
                    _ if !ours => {}
                    NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(socket)) => {
                        each(&socket);
                    }
                    NetlinkPayload::Done(_) => return Ok(()),
                    NetlinkPayload::Error(answer) if answer.code.is_none() => return Ok(()),
                    NetlinkPayload::Error(answer) => return Err(answer.to_io()),
                    _ => {}
                }
                rest = rest.get(length..).unwrap_or_default();
            }
        }
    }
}

/// Has a read of an answer that does not come fail with `WouldBlock` after a while.
pub(crate) fn limit_waits(socket: &Socket) -> io::Result<()> {
    const ANSWER: Duration = Duration::from_secs(5);
    // SAFETY: the socket is open for as long as it is borrowed.
    let socket = unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) };
    Ok(sockopt::set_socket_timeout(socket, sockopt::Timeout::Recv, Some(ANSWER))?)
}

/// INET_DIAG_CGROUP_ID of linux/inet_diag.h.
const CGROUP_ID: u16 = 21;

fn cgroup_of(nlas: &[Nla]) -> Option<u64> {
    let attribute = nlas.iter().find(|one| one.kind() == CGROUP_ID)?;
    let mut bytes = [0; size_of::<u64>()];
    if attribute.value_len() != bytes.len() {
        return None;
    }
    attribute.emit_value(&mut bytes);
    Some(u64::from_ne_bytes(bytes))
}

/// All in which a socket has another end that may still be heard of. (An unconnected datagram socket
/// is CLOSE.)
fn connected_states() -> StateFlags {
    StateFlags::all() - (StateFlags::LISTEN | StateFlags::CLOSE | StateFlags::TIME_WAIT)
}

fn is_peer(socket: &SocketId, peer: SocketAddr) -> bool {
    let ip = match socket.destination_address {
        IpAddr::V6(ip) => ip.to_canonical(),
        ip @ IpAddr::V4(_) => ip,
    };
    ip == peer.ip() && socket.destination_port == peer.port()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};

    fn cookies(peer: SocketAddr) -> usize {
        Sockets::open().unwrap().connected_to(peer).unwrap().len()
    }

    #[test]
    fn an_answer_that_does_not_come_is_not_waited_for_without_end() {
        let sockets = Sockets::open().unwrap();
        // SAFETY: the socket is open.
        let socket = unsafe { BorrowedFd::borrow_raw(sockets.socket.as_raw_fd()) };
        assert!(sockopt::socket_timeout(socket, sockopt::Timeout::Recv).unwrap().is_some());
    }

    #[test]
    fn connected_sockets_are_found_by_their_peer() {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let peer = server.local_addr().unwrap();
        assert_eq!(cookies(peer), 0);
        let _stream = TcpStream::connect(peer).unwrap();
        assert_eq!(cookies(peer), 1);
        let datagrams = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        datagrams.connect(peer).unwrap();
        assert_eq!(cookies(peer), 2);
        let found = Sockets::open().unwrap().connected_to(peer).unwrap();
        let own = datagrams.local_addr().unwrap();
        let are_at = |protocol| found.iter().filter(|one| one.is_at(own, protocol)).count();
        assert_eq!((are_at(Protocol::Udp), are_at(Protocol::Tcp)), (1, 0));
        // A socket for IPv6 that talks IPv4.
        let both = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
        both.connect((Ipv4Addr::LOCALHOST.to_ipv6_mapped(), peer.port())).unwrap();
        assert_eq!(cookies(peer), 3);
        assert_eq!(cookies(SocketAddr::new(Ipv4Addr::new(127, 0, 0, 2).into(), peer.port())), 0);
    }
}
