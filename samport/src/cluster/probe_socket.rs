//! The socket that probes of one node leave by, and their answers come in by.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rustix::io::Errno;
use rustix::net::sockopt::{self, Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery};
use tokio::net::UdpSocket;

use super::probe::SMALL;

/// Connected: it takes packets of that node's address and port only.
pub(super) struct ProbeSocket {
    socket: UdpSocket,
    is_ipv6: bool,
}

impl ProbeSocket {
    /// For the node whose tunnel ends there, from this address if it is this machine's.
    pub(super) async fn open(to: SocketAddr, from: Option<IpAddr>) -> io::Result<Self> {
        let any = match to {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let from = from.filter(|from| from.is_ipv6() == to.is_ipv6()).unwrap_or(any);
        let socket = match UdpSocket::bind((from, 0)).await {
            // Behind an address translator it is not.
            Err(error) if error.kind() == ErrorKind::AddrNotAvailable => {
                UdpSocket::bind((any, 0)).await?
            }
            bound => bound?,
        };
        // Never fragmented, and sent whatever routers have said, or whoever said so in their name.
        if to.is_ipv6() {
            sockopt::set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::PROBE)?;
        } else {
            sockopt::set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::PROBE)?;
        }
        socket.connect(to).await?;
        Ok(Self { socket, is_ipv6: to.is_ipv6() })
    }

    /// What the kernel thinks the path carries: as the device, or less if a router has said so.
    pub(super) fn mtu(&self) -> Option<u16> {
        let mtu = if self.is_ipv6 {
            sockopt::ipv6_mtu(&self.socket)
        } else {
            sockopt::ip_mtu(&self.socket)
        };
        mtu.ok().map(|mtu| u16::try_from(mtu).unwrap_or(u16::MAX))
    }

    /// Sends a probe; says whether it is small enough for the kernel.
    pub(super) async fn send(&self, probe: &[u8]) -> io::Result<bool> {
        // An ICMP error that has come meanwhile is told once, in the place of sending: that is about an earlier one.
        let mut sent = self.socket.send(probe).await;
        if sent.is_err() {
            sent = self.socket.send(probe).await;
        }
        match sent {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(Errno::MSGSIZE.raw_os_error()) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Waits for something that comes from the node. ICMP errors are passed over: no answer comes, and that counts.
    pub(super) async fn receive(&self) -> Vec<u8> {
        // One byte more: whatever is longer than an answer differs from it.
        let mut bytes = [0; SMALL + 1];
        loop {
            if let Ok(length) = self.socket.recv(&mut bytes).await {
                return bytes[..length].to_vec();
            }
        }
    }
}
