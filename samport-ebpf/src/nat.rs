//! A packet in, a rewritten packet out: the core's parser and plan on an skb.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::programs::TcContext;
use samport_common::checksum;
use samport_common::family::Family;
use samport_common::frame::Frame as _;
use samport_common::packet::{self, MAX_OFFSET, Packet, Special};
use samport_common::rewrite::{self, IcmpRewrite, Readdress, Rewrite};
use samport_common::verdict::Verdict;
use zerocopy::IntoBytes as _;

use crate::context::{Context, Hook};
use crate::maps;
use crate::skb::{Covers, Skb};

/// Parses the packet, bringing its headers into the linear part if a driver has left them outside.
#[inline(always)]
pub fn parse<P: Family, C: Context>(context: &C) -> Result<Packet<P::Addr>, Special> {
    let mut packet = match packet::parse::<P, _>(context) {
        Err(Special::Leave(Verdict::Truncated)) if context.pull_headers() => {
            packet::parse::<P, _>(context)?
        }
        result => result?,
    };
    if packet.l4 != packet.l3 + P::HEADER_LEN {
        packet.l4 = maps::scratch::opaque(packet.l4);
    }
    Ok(packet)
}

/// The result of a parser that runs in a function of its own, as the number such a function can
/// return: the packet is kept, or why there is none.
///
/// For programs that would not have enough stack for everything, or that the verifier would walk once
/// for each way through the parser. A kept enum would not do: in the variants with less in them the
/// rest is never written, and the verifier does not let that be copied.
pub mod packed {
    use samport_common::packet::Special;
    use samport_common::verdict::Verdict;

    use crate::maps;

    const PACKET_STORED: u32 = 0x100;
    const ICMP: u32 = 0x200;
    const FIRST: u32 = 0x300;
    const LATER: u32 = 0x400;

    /// The number of a result.
    #[inline(always)]
    pub fn number<T: Copy>(parsed: Result<T, Special>) -> u32 {
        match parsed {
            Ok(packet) if maps::scratch::put(packet) => PACKET_STORED,
            Ok(_) => Verdict::RewriteFailed as u32,
            Err(Special::Leave(verdict)) => verdict as u32,
            Err(Special::Icmp) => ICMP,
            Err(Special::First) => FIRST,
            Err(Special::Later) => LATER,
        }
    }

    /// The result of a number.
    ///
    /// # Safety
    /// The number is of a result with this type, in this run.
    #[inline(always)]
    pub unsafe fn result<T: Copy>(number: u32) -> Result<&'static T, Special> {
        match number {
            PACKET_STORED => {
                // SAFETY: the caller's promise.
                let stored = unsafe { maps::scratch::get() };
                stored.ok_or(Special::Leave(Verdict::RewriteFailed))
            }
            ICMP => Err(Special::Icmp),
            FIRST => Err(Special::First),
            LATER => Err(Special::Later),
            verdict => {
                Err(Special::Leave(Verdict::from_number(verdict).unwrap_or(Verdict::RewriteFailed)))
            }
        }
    }
}

/// Parses a whole packet or a first fragment in a function of its own.
#[inline(always)]
pub fn parse_subprog<P: Family>(skb: &Skb) -> Result<&'static Packet<P::Addr>, Special> {
    let number = parse_and_keep::<P>(skb.pointer_to_context());
    // SAFETY: it is of such a packet.
    unsafe { packed::result::<Packet<P::Addr>>(number) }
}

/// [`parse`] in a function of its own.
#[inline(always)]
pub fn parse_whole_subprog<P: Family>(skb: &Skb) -> Result<&'static Packet<P::Addr>, Special> {
    let number = parse_whole_and_keep::<P>(skb.pointer_to_context());
    // SAFETY: it is of such a packet.
    unsafe { packed::result::<Packet<P::Addr>>(number) }
}

#[inline(never)]
fn parse_whole_and_keep<P: Family>(ctx: *mut __sk_buff) -> u32 {
    packed::number(parse::<P, _>(&Skb::new(TcContext::new(ctx))))
}

#[inline(never)]
fn parse_and_keep<P: Family>(ctx: *mut __sk_buff) -> u32 {
    let skb = Skb::new(TcContext::new(ctx));
    // These packets are rare: better always than a second try, which the stack would pay for. What has payload in pages
    // is copied for that, if others have a clone of it, and no receiver merges it with the next one.
    skb.pull_headers();
    packed::number(packet::parse_first::<P, _>(&skb))
}

/// Applies a rewrite. `None` if the packet is shorter than its plan or the kernel refuses.
///
/// Everything is written directly, but for a transport checksum that may have to be finished still, by
/// a device or by offload further on: that is for [`fix_l4_csum`].
#[inline(always)]
pub fn apply<P: Family>(skb: &Skb, rewrite: &Rewrite<P>, from: Sender) -> Option<()> {
    address(skb, &rewrite.ip)?;
    skb.write(rewrite.port_at, rewrite.port)?;
    let field = skb.read(rewrite.l4_checksum_at)?;
    if !rewrite::may_be_unfinished(rewrite, field) {
        skb.write(rewrite.l4_checksum_at, rewrite::updated(rewrite, field))?;
        if P::CHECKSUM.is_some() && matches!(from, Sender::Anybody) {
            // Two checksums have made up for the new address, where one would have.
            skb.update_device_csum(0xffff ^ rewrite.ip.addr_csum_diff);
        }
        return Some(());
    }
    let flags = u64::from(rewrite.zero_is_none) << 16 | u64::from(P::CHECKSUM.is_none()) << 17;
    let differences =
        u64::from(rewrite.ip.addr_csum_diff) << 32 | u64::from(rewrite.port_csum_diff);
    let ctx = skb.pointer_to_context();
    if fix_l4_csum(ctx, rewrite.l4_checksum_at as u64 | flags, differences, field) == 0 {
        None
    } else {
        Some(())
    }
}

/// Where a packet comes from.
#[derive(Clone, Copy)]
pub enum Sender {
    /// A container's stack, that hands on no sums of a device.
    Container,
    /// A device of any kind.
    Anybody,
}

impl From<Hook> for Sender {
    #[inline(always)]
    fn from(hook: Hook) -> Self {
        if hook == Hook::Container { Self::Container } else { Self::Anybody }
    }
}

/// Settles a transport checksum that may be unfinished, and holds `before`. `what` is its offset, bit 16 for
/// one of which zero means none, bit 17 for IPv6. `differences` are of the address, and of the port in the
/// lower half. 1 if it was done, 0 if not.
///
/// The kernel's helper changes an unfinished one for an address, and not for a port. It is as dear as all the
/// rest together, and is called once: what it does for the port says what is to be done for the address.
#[inline(never)]
#[allow(clippy::cast_possible_truncation, reason = "the lower parts are what is wanted")]
fn fix_l4_csum(ctx: *mut __sk_buff, what: u64, differences: u64, before: [u8; 2]) -> u32 {
    let skb = Skb::new(TcContext::new(ctx));
    let (of_address, of_port) = ((differences >> 32) as u32, differences as u32);
    let (zero_is_none, is_v6) = (what & 1 << 16 != 0, what & 1 << 17 != 0);
    let at = what as usize & MAX_OFFSET;
    let fixed = if zero_is_none && before == [0; 2] {
        Some(())
    } else if of_port == 0 {
        let covers = Covers { pseudo_header: true, zero_is_none };
        let updated = skb.update_l4_csum(at, of_address, covers);
        if is_v6 {
            skb.fix_device_csum(of_address);
        }
        updated
    } else {
        fix_l4_csum_by_port(&skb, at, zero_is_none, is_v6, of_address, of_port, before)
    };
    u32::from(fixed.is_some())
}

#[inline(always)]
fn fix_l4_csum_by_port(
    skb: &Skb,
    at: usize,
    zero_is_none: bool,
    is_v6: bool,
    of_address: u32,
    of_port: u32,
    before: [u8; 2],
) -> Option<()> {
    let covers = Covers { pseudo_header: false, zero_is_none };
    skb.update_l4_csum(at, of_port, covers)?;
    let field = skb.read(at)?;
    if field == before {
        return skb.write(at, checksum::update_unfinished(field, of_address));
    }
    let finished = checksum::update(field, of_address);
    let has_two_forms = zero_is_none && finished == [0; 2];
    skb.write(at, if has_two_forms { [0xff; 2] } else { finished })?;
    if !is_v6 {
        skb.update_device_csum(0xffff ^ of_address);
    }
    Some(())
}

/// Applies the new address of a later fragment.
#[inline(always)]
pub fn apply_address<P: Family>(skb: &Skb, change: &Readdress<P>) -> Option<()> {
    address(skb, change)?;
    if P::CHECKSUM.is_none() {
        // Nothing in this packet makes up for the new address.
        skb.update_device_csum(change.addr_csum_diff);
    }
    Some(())
}

/// Applies the part of an ICMP error's rewrite that is in the quoted packet, and says what it adds to
/// ICMP's checksum.
#[inline(always)]
pub fn apply_quoted<P: Family>(skb: &Skb, quoted: &Rewrite<P>) -> Option<u16> {
    let mut csum_diff = quoted.ip.addr_csum_diff + quoted.port_csum_diff;
    if let Some(at) = quoted.ip.l3_checksum_at {
        let before: [u8; 2] = skb.read(at)?;
        let after = checksum::update(before, quoted.ip.addr_csum_diff);
        csum_diff += checksum::csum_diff(&before, &after);
    }
    address(skb, &quoted.ip)?;
    skb.write(quoted.port_at, quoted.port)?;
    // Cut off behind the ports, as RFC 792 allows: then there is nothing to update.
    if let Some(before) = skb.read::<2>(quoted.l4_checksum_at) {
        let after = rewrite::updated(quoted, before);
        csum_diff += checksum::csum_diff(&before, &after);
        skb.write(quoted.l4_checksum_at, after)?;
    }
    Some(checksum::fold(csum_diff))
}

/// Applies the rest of it, with what the first part adds to the checksum.
#[inline(always)]
pub fn rewrite_outer<P: Family>(skb: &Skb, rewrite: &IcmpRewrite<P>, csum_diff: u32) -> Option<()> {
    address(skb, &rewrite.outer.bounded())?;
    let plain = Covers { pseudo_header: false, zero_is_none: false };
    if P::ICMP_COVERS_ADDRESSES {
        let of_address = Covers { pseudo_header: true, ..plain };
        skb.update_l4_csum(rewrite.checksum_at, rewrite.outer.addr_csum_diff, of_address)?;
        // Only ICMP over IPv6 covers the addresses.
        skb.fix_device_csum(rewrite.outer.addr_csum_diff);
    }
    skb.update_l4_csum(rewrite.checksum_at, csum_diff, plain)
}

/// Writes an address, and the header checksum that covers it.
#[inline(always)]
fn address<P: Family>(skb: &Skb, change: &Readdress<P>) -> Option<()> {
    if let Some(at) = change.l3_checksum_at {
        let field: [u8; 2] = skb.read(at)?;
        skb.write(at, checksum::update(field, change.addr_csum_diff))?;
    }
    write_address(skb, change.addr_at, change.addr.as_bytes())
}

/// Writes the bytes of an address of either family.
#[inline(always)]
pub fn write_address(skb: &Skb, at: usize, bytes: &[u8]) -> Option<()> {
    match bytes {
        [a, b, c, d] => skb.write(at, [*a, *b, *c, *d]),
        bytes => skb.write::<16>(at, *bytes.first_chunk()?),
    }
}
