//! A flood of real frames: one end of a veth sends what the other end's driver is to take in.

use aya_ebpf::bindings::{TC_ACT_SHOT, xdp_action};
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use samport_common::checksum;
use samport_common::harness::Packets;

use crate::{PACKETS, make_next};

/// Where an IPv4 header without options has its checksum.
const IP_CHECKSUM: usize = 14 + 10;
/// Where TCP has its own behind it.
const TCP_CHECKSUM: usize = 14 + 20 + 16;

/// Makes a packet, the checksums of which are right, and sends it out of the device it seems to have come by. It is
/// the kernel that does so, and only if it was told to run this on live frames.
#[xdp]
pub fn flood(ctx: XdpContext) -> u32 {
    let (data, data_end) = (ctx.data(), ctx.data_end());
    if make_next(data, data_end) && finish(data, data_end).is_some() {
        xdp_action::XDP_TX
    } else {
        xdp_action::XDP_ABORTED
    }
}

/// Drops every frame.
#[xdp]
pub fn sink_xdp(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_DROP
}

/// Drops every packet.
#[classifier]
pub fn sink(_ctx: TcContext) -> i32 {
    TC_ACT_SHOT
}

/// Makes up in the checksums of a TCP segment for the three bytes that tell clients apart, which are zero in what they
/// were computed of. A wrong one would end the segment's way early.
#[inline(always)]
fn finish(data: usize, data_end: usize) -> Option<()> {
    let packets: *const Packets = PACKETS.get_ptr(0)?;
    // SAFETY: map memory that is never freed, and written between runs only.
    let at = unsafe { (*packets).vary_at } as usize & 63;
    if data + at + 3 > data_end || data + TCP_CHECKSUM + 2 > data_end {
        return None;
    }
    // SAFETY: data + at .. + 3 is in the packet, checked above.
    let [a, b, c] = unsafe { *((data + at) as *const [u8; 3]) };
    let csum_diff = checksum::csum_diff(&[0; 4], &[0, a, b, c]);
    for field in [IP_CHECKSUM, TCP_CHECKSUM] {
        let field = (data + field) as *mut [u8; 2];
        // SAFETY: both lie before the end of TCP's, which is in the packet, checked above.
        unsafe { *field = checksum::update(*field, csum_diff) };
    }
    Some(())
}
