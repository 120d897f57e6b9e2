//! A sender of forged packets in a namespace, which also records what comes in there.

use std::net::{IpAddr, SocketAddr};

use samport::lab::Namespace;

use crate::frames::{datagram, ends_of, with_wrong_checksum};
use crate::packet::Segment;
use crate::raw::{self, Sniffer, Socket};

/// What every forged packet carries, so that it is known wherever it arrives.
pub const FORGED: &[u8] = b"forged";

/// A kind of forged packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Forged {
    /// A segment that no receiver takes: its checksum is wrong, its sequence number any.
    Ack,
    /// A segment that opens a connection.
    Syn,
    /// A segment that aborts a connection.
    Rst,
    /// A segment that closes one direction of a connection.
    Fin,
    /// A datagram of UDP.
    Datagram,
}

impl Forged {
    /// The packet in a frame.
    #[must_use]
    pub fn frame(self, source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
        let mut segment = Segment::ack(source, destination, FORGED);
        match self {
            Self::Ack => return with_wrong_checksum(segment.frame()),
            Self::Syn => (segment.tcp.syn, segment.tcp.ack) = (true, false),
            Self::Rst => (segment.tcp.rst, segment.tcp.ack) = (true, false),
            Self::Fin => segment.tcp.fin = true,
            Self::Datagram => return datagram(source, destination, FORGED),
        }
        segment.frame()
    }
}

/// Whether a frame is one that was forged, or was made of it.
#[must_use]
pub fn is_forged(frame: &[u8]) -> bool {
    frame.ends_with(FORGED)
}

/// Sends out of `eth0` of a namespace.
#[derive(Debug)]
pub struct Attacker<'a> {
    namespace: &'a Namespace,
    /// Destination and source of all frames.
    macs: [[u8; 6]; 2],
    sniffer: Sniffer,
}

impl<'a> Attacker<'a> {
    /// An attacker whose frames are addressed to a device of the host. It sees what comes in from now on.
    #[must_use]
    pub fn new(namespace: &'a Namespace, host: &Namespace, device: &str) -> Self {
        Self {
            namespace,
            macs: [raw::mac(host, device), raw::mac(namespace, "eth0")],
            sniffer: Sniffer::start(namespace, "eth0"),
        }
    }

    /// Adds an address to `eth0`, so that this namespace answers when the host looks for that neighbour.
    pub fn add_address(&self, address: IpAddr) {
        let (length, nodad) = if address.is_ipv4() { (32, "") } else { (128, " nodad") };
        let add = format!("addr add {address}/{length} dev eth0{nodad}\n");
        self.namespace.batch(&add).unwrap_or_else(|e| panic!("{e:#}"));
    }

    /// The frame with the right MACs.
    #[must_use]
    pub fn addressed(&self, mut frame: Vec<u8>) -> Vec<u8> {
        frame[..12].copy_from_slice(self.macs.as_flattened());
        frame
    }

    /// Sends a packet once.
    pub fn send(&self, forged: Forged, source: SocketAddr, destination: SocketAddr) {
        self.send_frame(forged.frame(source, destination));
    }

    /// Sends a frame once, with the right MACs.
    pub fn send_frame(&self, frame: Vec<u8>) {
        raw::send(self.namespace, "eth0", &[self.addressed(frame)]);
    }

    /// Sends that many frames, these in turns. What the host's backlog has no room for is lost.
    pub fn flood(&self, frames: &[Vec<u8>], count: usize) {
        let frames: Vec<_> = frames.iter().map(|frame| self.addressed(frame.clone())).collect();
        let sent = self.namespace.run(|| {
            let socket = Socket::open("eth0")?;
            frames.iter().cycle().take(count).try_for_each(|frame| match socket.send(frame) {
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(()),
                result => result,
            })
        });
        sent.unwrap_or_else(|e| panic!("send out of {}: {e}", self.namespace.name()));
    }

    /// Panics if anything has come in for one of these clients since the beginning, or since the last time.
    pub fn assert_got_nothing_of(&self, clients: &[SocketAddr]) {
        let frames = self.sniffer.frames();
        let stolen: Vec<_> = frames.iter().filter_map(|frame| ends_of(frame)).collect();
        let stolen: Vec<_> = stolen.iter().filter(|[_, to]| clients.contains(to)).collect();
        let name = self.namespace.name();
        assert!(stolen.is_empty(), "{name} has got {} answers: {stolen:?}", stolen.len());
    }
}
