//! What somebody who watches is told of single packets, and of which. Pure.
//!
//! Addresses are in their 16-byte form here, IPv4 as `::ffff:a.b.c.d` (RFC 4291); all zero where there is
//! none.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::family::Family;
use crate::flow::Endpoint;
use crate::frame::Frame;
use crate::packet::{self, L3, Packet, Part};
use crate::verdict::Verdict;
use crate::wire::{protocol, tcp};

/// Bytes of the ring of [`Traced`]s: room for about 2,300 of them.
pub const TRACE_BYTES: u32 = 262_144;
/// Bytes of a packet that are kept as it came: enough for the ports in what an ICMPv6 error quotes.
pub const KEPT_LEN: u32 = 128;
/// The same, where memory is counted.
pub const KEPT_BYTES: usize = KEPT_LEN as usize;
/// Bytes behind them that are in the same room: more than are ever read at once, so that whatever begins at
/// an offset below [`KEPT_BYTES`] is inside.
pub const KEPT_SPARE: usize = 24;
/// Most endpoints of the backends that are watched.
pub const MAX_WATCHED: usize = 8;

/// Who sent a packet to whom. 40 bytes.
#[derive(
    Clone, Copy, PartialEq, Eq, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Ends {
    /// Sender's address.
    pub source: [u8; 16],
    /// Receiver's address.
    pub destination: [u8; 16],
    /// Sender's port, network order; 0 where there is none.
    pub source_port: [u8; 2],
    /// Receiver's port, likewise.
    pub destination_port: [u8; 2],
    /// IP protocol number; 0 if the packet is no IP, or broken.
    pub protocol: u8,
    /// Flags of a TCP segment.
    pub flags: u8,
    /// Zero.
    pub pad: [u8; 2],
}

/// The beginning of a packet as it came: 156 bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Kept {
    /// How many of the bytes are its, at most [`KEPT_BYTES`].
    pub len: u32,
    /// The bytes.
    pub bytes: [u8; KEPT_BYTES + KEPT_SPARE],
}

/// Where a packet was seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Seen {
    /// In a system call of a client on this machine, before there was a packet.
    Call = 0,
    /// At tc ingress of an interface that clients come in by.
    Interface = 1,
    /// At tc ingress of a bridge.
    Bridge = 2,
    /// At tc ingress of the host's side of a container's veth.
    Container = 3,
    /// At tc ingress of another device that backends answer on.
    Device = 4,
    /// At tc egress.
    Egress = 5,
    /// At XDP.
    Xdp = 6,
}

impl Seen {
    /// Total decoder: an unknown byte is [`Seen::Interface`].
    #[must_use]
    pub const fn from_byte(byte: u8) -> Self {
        match byte {
            0 => Self::Call,
            2 => Self::Bridge,
            3 => Self::Container,
            4 => Self::Device,
            5 => Self::Egress,
            6 => Self::Xdp,
            _ => Self::Interface,
        }
    }
}

/// A packet that has left by a verdict: 104 bytes.
#[derive(
    Clone, Copy, PartialEq, Eq, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Traced {
    /// When, on the kernel's monotonic clock.
    pub at_ns: u64,
    /// As it came.
    pub came: Ends,
    /// As it left.
    pub left: Ends,
    /// The device it was seen on; 0 for none.
    pub ifindex: u32,
    /// Its length in bytes as it left, Ethernet header included.
    pub len: u32,
    /// A [`Verdict`].
    pub verdict: u8,
    /// A [`Seen`].
    pub seen: u8,
    /// Zero.
    pub pad: [u8; 6],
}

/// An address and a port in one form for both families: 20 bytes.
#[derive(
    Clone, Copy, PartialEq, Eq, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct End {
    /// The address.
    pub addr: [u8; 16],
    /// The port, network order.
    pub port: [u8; 2],
    /// Zero.
    pub pad: [u8; 2],
}

/// Value of `TRACE_WATCH`: which packets somebody wants to be told of, and until when. 216 bytes.
#[derive(
    Clone, Copy, PartialEq, Eq, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Watch {
    /// Nobody watches from then on, on the kernel's monotonic clock: who does says so again and again, and
    /// costs nothing after it was killed. 0 if nobody does.
    pub until_ns: u64,
    /// One bit for each verdict, by its number.
    pub verdicts: u64,
    /// Packets from or to addresses that are this one in the bits of `mask`.
    pub network: [u8; 16],
    /// All zero for any address.
    pub mask: [u8; 16],
    /// The port clients dial, network order; 0 for any.
    pub port: [u8; 2],
    /// Zero.
    pub pad: [u8; 2],
    /// How many of `backends` count; 0 for any packet.
    pub backends_len: u32,
    /// Packets to or from these.
    pub backends: [End; MAX_WATCHED],
}

/// Every verdict has a bit in [`Watch::verdicts`].
const _: () = assert!(Verdict::COUNT <= u64::BITS);

impl Watch {
    /// Whether a packet that has left by this verdict is watched.
    #[must_use]
    #[inline(always)]
    pub fn wants_verdict(&self, verdict: u32) -> bool {
        self.verdicts >> (verdict & 63) & 1 != 0
    }

    /// Whether a packet with these ends, as it came and as it left, is watched.
    #[must_use]
    #[inline(always)]
    pub fn wants(&self, came: &Ends, left: &Ends) -> bool {
        self.wants_port(came, left)
            && (self.covers(&came.source) || self.covers(&came.destination))
            && self.wants_backend(came, left)
    }

    /// What a client dials is where its packets go, and where replies seem to come from in the end.
    #[inline(always)]
    fn wants_port(&self, came: &Ends, left: &Ends) -> bool {
        let source_stays = halves(&left.source) == halves(&came.source);
        let is_reply = !source_stays && halves(&left.destination) == halves(&came.destination);
        self.port == [0; 2]
            || !is_reply && came.destination_port == self.port
            || !source_stays && left.source_port == self.port
    }

    #[inline(always)]
    fn covers(&self, addr: &[u8; 16]) -> bool {
        let (addr, mask) = (halves(addr), halves(&self.mask));
        let network = halves(&self.network);
        addr.0 & mask.0 == network.0 && addr.1 & mask.1 == network.1
    }

    #[inline(always)]
    fn wants_backend(&self, came: &Ends, left: &Ends) -> bool {
        let mut is_wanted = self.backends_len == 0;
        for (index, backend) in (0u32..).zip(&self.backends) {
            if index >= self.backends_len {
                break;
            }
            let addr = halves(&backend.addr);
            is_wanted |= addr == halves(&left.destination) && backend.port == left.destination_port
                || addr == halves(&came.source) && backend.port == came.source_port;
        }
        is_wanted
    }
}

/// An address as two words. The kernel has no comparison of 16 bytes.
#[inline(always)]
fn halves(addr: &[u8; 16]) -> (u64, u64) {
    let [first, second]: [u64; 2] = zerocopy::transmute!(*addr);
    (first, second)
}

/// Writes down who talks to whom in a frame. An ICMP error has the ends of the connection it is about: from
/// the one that its receiver has talked to.
#[inline(always)]
pub fn look<P: Family, F: Frame + ?Sized>(frame: &F, into: &mut Ends) {
    let Ok(layers) = P::layers(frame, L3) else { return };
    into.source = P::to_mapped(layers.source);
    into.destination = P::to_mapped(layers.destination);
    into.protocol = layers.protocol;
    if matches!(layers.part, Part::Later(_)) {
        return;
    }
    if layers.protocol == P::ICMP {
        if let Ok(error) = packet::parse_error::<P, F>(frame) {
            set_ends::<P>(into, error.quoted.destination, error.quoted.source);
        }
        return;
    }
    let l4 = frame.reconsider(layers.l4);
    if let Some([s0, s1, d0, d1]) = frame.read(l4) {
        into.source_port = [s0, s1];
        into.destination_port = [d0, d1];
    }
    if layers.protocol == protocol::TCP
        // Two bytes: of one, the verifier does not see that it is inside (docs/internals/verifier.md).
        && let Some([_, flags]) = frame.read(l4 + tcp::DATA_OFFSET)
    {
        into.flags = flags;
    }
}

/// Writes down who talks to whom in a packet.
#[inline(always)]
pub fn set<P: Family>(into: &mut Ends, packet: &Packet<P::Addr>) {
    set_ends::<P>(into, packet.source, packet.destination);
    into.protocol = packet.protocol.number();
    into.flags = packet.flags.0;
}

#[inline(always)]
fn set_ends<P: Family>(into: &mut Ends, source: Endpoint<P::Addr>, destination: Endpoint<P::Addr>) {
    into.source = P::to_mapped(source.addr);
    into.source_port = source.port;
    into.destination = P::to_mapped(destination.addr);
    into.destination_port = destination.port;
}

const _: () = assert!(Verdict::COUNT <= 64);
const _: () = assert!(KEPT_BYTES.is_power_of_two());
const _: () = assert!(size_of::<Ends>() == 40);
const _: () = assert!(size_of::<Traced>() == 104);
const _: () = assert!(size_of::<End>() == 20);
const _: () = assert!(size_of::<Kept>() == 156);
const _: () = assert!(size_of::<Watch>() == 216);

#[cfg(test)]
mod tests;
