//! What the programs are measured with; never attached to anything but what the benchmark has made.
//!
//! `BPF_PROG_TEST_RUN` repeats a program on what its last run has left of the packet. The harness
//! makes the packet anew, another client's each time if it is told so, and then calls the program
//! that is measured. The harness with a program that does nothing is what is to be subtracted.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![allow(missing_docs, reason = "aya's macro repeats each entry point without its docs")]
#![allow(clippy::needless_pass_by_value, reason = "how aya's macros call entry points")]

mod flood;
mod operations;

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action};
use aya_ebpf::macros::{classifier, map, xdp};
use aya_ebpf::maps::{Array, ProgramArray};
use aya_ebpf::programs::{TcContext, XdpContext};
use samport_common::harness::{FRAME_WORDS, Order, Packets};

/// The packets that are made.
#[map]
static PACKETS: Array<Packets> = Array::with_max_entries(1, 0);

/// The program that is measured, at 0. The kernel keeps programs for skbs and for frames apart.
#[map]
static MEASURED: ProgramArray = ProgramArray::with_max_entries(1, 0);
#[map]
static MEASURED_XDP: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// Makes the next packet between the pointers; false if it has no room there.
#[inline(always)]
fn make_next(data: usize, data_end: usize) -> bool {
    let Some(packets) = PACKETS.get_ptr_mut(0) else { return false };
    // SAFETY: map memory that is never freed; nobody else runs the harness meanwhile.
    let packets = unsafe { &mut *packets };
    if data + FRAME_WORDS * 8 + 2 > data_end {
        return false;
    }
    let number = packets.number;
    packets.number = number.wrapping_add(1);
    for (index, word) in packets.frame.iter().enumerate() {
        // SAFETY: data..data + FRAME_WORDS * 8 is in the packet, checked above.
        unsafe { ((data + index * 8) as *mut u64).write_unaligned(*word) };
    }
    let client = Order::client(packets.order, number, packets.clients);
    let [a, b, c, _] = client.to_le_bytes();
    let at = packets.vary_at as usize & 63;
    if data + at + 3 > data_end {
        return false;
    }
    // SAFETY: data + at .. + 3 is in the packet, checked above.
    unsafe { ((data + at) as *mut [u8; 3]).write([a, b, c]) };
    true
}

/// Makes a packet and calls the program that is measured.
#[classifier]
pub fn harness(ctx: TcContext) -> i32 {
    if make_next(ctx.data(), ctx.data_end()) {
        // SAFETY: the loader puts only programs of this type there.
        unsafe { MEASURED.tail_call(&ctx, 0) };
    }
    TC_ACT_SHOT
}

/// The same for frames.
#[xdp]
pub fn harness_xdp(ctx: XdpContext) -> u32 {
    if make_next(ctx.data(), ctx.data_end()) {
        // SAFETY: as above.
        unsafe { MEASURED_XDP.tail_call(&ctx, 0) };
    }
    xdp_action::XDP_ABORTED
}

/// Does nothing.
#[classifier]
pub fn empty(_ctx: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

/// Does nothing with frames.
#[xdp]
pub fn empty_xdp(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Never reached: the verifier refuses a program that could get here.
    loop {}
}

/// GPL-only helpers are refused to programs of another licence.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
pub static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// The host only checks this crate; the programs run in the kernel.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
