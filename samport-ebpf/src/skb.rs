//! The only place with packet pointers.

use aya_ebpf::bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR};
use aya_ebpf::helpers::{
    bpf_check_mtu, bpf_csum_update, bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh,
    bpf_redirect_peer, bpf_sk_lookup_tcp, bpf_sk_lookup_udp, bpf_sk_release, bpf_skb_change_tail,
    bpf_skb_vlan_pop,
};
use aya_ebpf::programs::TcContext;
use samport_common::family::Address;
use samport_common::frame::Frame;
use samport_common::packet::{MAX_OFFSET, Packet};
use samport_common::verdict::Verdict;
use samport_common::wire::protocol::Protocol;

use crate::bytes;
use crate::context::{Context, Seat};
use crate::maps;
use crate::trace;

/// What is made linear when a driver has left headers outside of the linear part.
const PULL_LEN: u32 = 256;
/// Ethernet header and the smallest MTU that IPv6 allows (RFC 8200, section 5); IPv4 links with less
/// are none a server has.
const FITS_EVERYWHERE: u32 = 14 + 1_280;
/// Asks for the segments of a packet that offload will cut (linux/bpf.h).
const BPF_MTU_CHK_SEGS: u64 = 1;
/// Sockets are looked for in the device's own network namespace (`BPF_F_CURRENT_NETNS`).
const THIS_NETNS: u64 = u64::MAX;
/// `TCP_LISTEN` in linux/tcp_states.h. No UDP socket has that state.
const LISTENING: u32 = 10;
/// `skb->pkt_type` of a frame addressed to this machine (`PACKET_HOST` in linux/if_packet.h).
const PACKET_HOST: u32 = 0;

/// A packet at tc.
pub struct Skb(TcContext);

impl Skb {
    #[inline(always)]
    pub fn new(ctx: TcContext) -> Self {
        Self(ctx)
    }

    /// The context, for the log macros.
    #[inline(always)]
    pub fn context(&self) -> &TcContext {
        &self.0
    }

    /// The kernel's context, to be handed to a function of its own.
    #[inline(always)]
    pub fn pointer_to_context(&self) -> *mut __sk_buff {
        self.0.skb.skb
    }

    /// Says where we are, for the programs that are called from here.
    #[inline(always)]
    pub fn sit(&self, seat: Seat) {
        // SAFETY: the context pointer is the kernel's and outlives the program's run; `cb` is ours
        // until the packet leaves the hook.
        unsafe {
            (*self.0.skb.skb).cb[0] = seat as u32;
            (*self.0.skb.skb).cb[1] = 0;
            (*self.0.skb.skb).cb[3] = trace::begin(self.0.skb.skb);
        }
    }

    /// Whether the packet was kept as it came, to tell of it.
    #[inline(always)]
    pub fn is_traced(&self) -> bool {
        // SAFETY: as in `sit`.
        unsafe { (*self.0.skb.skb).cb[3] != 0 }
    }

    /// Tells the program that tells of the packet what has become of it.
    #[inline(always)]
    pub fn hand_over_end(&self, verdict: Verdict, action: i32) {
        // SAFETY: as in `sit`.
        unsafe {
            (*self.0.skb.skb).cb[2] = verdict as u32;
            (*self.0.skb.skb).cb[4] = action.cast_unsigned();
        }
    }

    /// What [`Self::hand_over_end`] was given: the verdict's number, and the action.
    #[inline(always)]
    pub fn handed_over_end(&self) -> (u32, i32) {
        // SAFETY: as in `sit`.
        unsafe { ((*self.0.skb.skb).cb[2], (*self.0.skb.skb).cb[4].cast_signed()) }
    }

    /// Takes note of a draw that was in vain, for the program that is called.
    #[inline(always)]
    pub fn draws_again(&self) {
        // SAFETY: as in `sit`.
        unsafe { (*self.0.skb.skb).cb[1] += 1 };
    }

    /// Tells the program that is called why nobody is there for the packet.
    #[inline(always)]
    pub fn hand_over(&self, why: Unserved) {
        // SAFETY: as in `sit`.
        unsafe { (*self.0.skb.skb).cb[2] = why as u32 };
    }

    /// What the program that called us has handed over.
    #[inline(always)]
    pub fn handed_over(&self) -> Unserved {
        // SAFETY: as in `sit`.
        match unsafe { (*self.0.skb.skb).cb[2] } {
            0 => Unserved::NoBackend,
            _ => Unserved::BackendGone,
        }
    }

    /// Makes the frame shorter; `None` if the kernel refuses.
    #[inline(always)]
    pub fn cut(&self, len: usize) -> Option<()> {
        let len = u32::try_from(len).ok()?;
        // SAFETY: the context is valid; the helper checks the length.
        let result = unsafe { bpf_skb_change_tail(self.0.skb.skb, len, 0) };
        if result == 0 { Some(()) } else { None }
    }

    /// Where the program that called us was.
    #[inline(always)]
    pub fn seat(&self) -> Seat {
        // SAFETY: as in `sit`.
        Seat::from_number(unsafe { (*self.0.skb.skb).cb[0] })
    }

    /// Whether the frame carries a VLAN tag other than 0 outside of its bytes, where the kernel puts
    /// it. VLAN 0 is none: the tag only carries a priority.
    #[inline(always)]
    pub fn is_on_vlan(&self) -> bool {
        // SAFETY: as in `sit`.
        self.is_vlan_tagged() && unsafe { (*self.0.skb.skb).vlan_tci } & 0x0fff != 0
    }

    /// Takes the VLAN tag away.
    #[inline(always)]
    pub fn pop_vlan(&self) {
        // SAFETY: the context is valid. With a tag outside of the bytes it cannot fail.
        let _ = unsafe { bpf_skb_vlan_pop(self.0.skb.skb) };
    }

    /// Whether a VLAN tag was taken out of the frame by the driver.
    #[inline(always)]
    pub fn is_vlan_tagged(&self) -> bool {
        // SAFETY: as in `sit`.
        unsafe { (*self.0.skb.skb).vlan_present != 0 }
    }

    /// Whether a device takes the packet. The redirect helper would not ask, and the packet would
    /// vanish; the host's stack, given it as it came, tells the sender what size is right.
    #[inline(always)]
    pub fn fits(&self, ifindex: u32) -> bool {
        if self.len() <= FITS_EVERYWHERE {
            return true;
        }
        let mut mtu = 0;
        // SAFETY: the context is valid, and `mtu` lives until the helper has returned.
        let verdict = unsafe {
            bpf_check_mtu(self.0.skb.skb.cast(), ifindex, &raw mut mtu, 0, BPF_MTU_CHK_SEGS)
        };
        // Negative if the device is gone: that is for the redirect to find out.
        verdict <= 0
    }

    /// Makes the sum a device has computed over the packet agree with what was changed outside of
    /// the transport header. Only for such a sum (`CHECKSUM_COMPLETE`); nothing happens to others.
    #[inline(always)]
    pub fn update_device_sum(&self, difference: u32) {
        // SAFETY: the context is valid. The error says that there is no such sum.
        let _ = unsafe { bpf_csum_update(self.0.skb.skb, difference) };
    }

    /// Makes up for what the checksum helper does to a device's sum over IPv6: it takes an address for
    /// covered by a header checksum, as it is in IPv4, and has taken the difference out of that sum,
    /// where address and transport checksum had already made up for each other.
    #[inline(always)]
    pub fn settle_device_sum(&self, addr_difference: u32) {
        self.update_device_sum(addr_difference);
    }

    /// Overwrites the bytes at `offset`; `None` if the frame ends before.
    #[inline(always)]
    pub fn write<const N: usize>(&self, offset: usize, bytes: [u8; N]) -> Option<()> {
        let at = self.pointer::<N>(offset)?;
        // SAFETY: at..at+N is inside the packet, checked by `pointer`.
        unsafe { bytes::store(at, bytes) };
        Some(())
    }

    /// Updates the transport checksum at `offset`. `difference` is what the change adds to the
    /// ones' complement sum. Only the kernel knows whether the checksum is complete or still to be
    /// finished by the device.
    #[inline(always)]
    pub fn update_l4_checksum(&self, offset: usize, difference: u32, of: Covers) -> Option<()> {
        let offset = u32::try_from(offset).ok()?;
        let pseudo = if of.pseudo_header { u64::from(BPF_F_PSEUDO_HDR) } else { 0 };
        let zero = if of.zero_is_none { u64::from(BPF_F_MARK_MANGLED_0) } else { 0 };
        let flags = pseudo | zero;
        // SAFETY: the context is valid; the helper checks the offset.
        let result =
            unsafe { bpf_l4_csum_replace(self.0.skb.skb, offset, 0, u64::from(difference), flags) };
        if result == 0 { Some(()) } else { None }
    }

    /// Whether a socket of this machine takes packets between these ends. One that only listens does not
    /// count.
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation, reason = "36 bytes at most")]
    pub fn is_for_socket<A>(&self, protocol: Protocol, ends: &Ends<A>) -> bool {
        let tuple = core::ptr::from_ref(ends).cast_mut().cast();
        let size = const { size_of::<Ends<A>>() as u32 };
        let ctx = self.0.skb.skb.cast();
        // SAFETY: the context is valid, and the kernel only reads the tuple, which is laid out as it wants it.
        let socket = unsafe {
            match protocol {
                Protocol::Tcp => bpf_sk_lookup_tcp(ctx, tuple, size, THIS_NETNS, 0),
                Protocol::Udp => bpf_sk_lookup_udp(ctx, tuple, size, THIS_NETNS, 0),
            }
        };
        if socket.is_null() {
            return false;
        }
        // SAFETY: a socket that the kernel has given to us, until we give it back.
        let state = unsafe {
            let state = (&raw const (*socket).state).read_volatile();
            bpf_sk_release(socket.cast());
            state
        };
        state != LISTENING
    }

    /// Start of the `N` bytes at `offset`, if the linear part holds them.
    #[inline(always)]
    fn pointer<const N: usize>(&self, offset: usize) -> Option<usize> {
        if offset > MAX_OFFSET {
            return None;
        }
        let at = self.0.data() + offset;
        if at + N > self.0.data_end() { None } else { Some(at) }
    }
}

/// Both ends of a packet, as the kernel finds sockets by them: `struct bpf_sock_tuple`.
#[repr(C, align(4))]
pub struct Ends<A> {
    source: A,
    destination: A,
    source_port: [u8; 2],
    destination_port: [u8; 2],
}

impl<A: Address> Ends<A> {
    /// Those of a packet.
    #[inline(always)]
    pub fn of(packet: &Packet<A>) -> Self {
        let Packet { source, destination, .. } = packet;
        Self {
            source: source.addr,
            destination: destination.addr,
            source_port: source.port,
            destination_port: destination.port,
        }
    }
}

const _: () = assert!(size_of::<Ends<[u8; 4]>>() == 12 && size_of::<Ends<[u8; 16]>>() == 36);

/// Why nobody is there for a packet.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum Unserved {
    /// Its service has no backend.
    NoBackend = 0,
    /// Its flow's backend is gone.
    BackendGone = 1,
}

/// What a change of a checksum is about.
#[derive(Clone, Copy)]
pub struct Covers {
    /// The change is in the pseudo-header.
    pub pseudo_header: bool,
    /// A checksum of zero means that there is none, and stays zero.
    pub zero_is_none: bool,
}

impl Frame for Skb {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let at = self.pointer::<N>(offset)?;
        // SAFETY: at..at+N is below data_end, checked by `pointer`.
        Some(unsafe { bytes::load(at) })
    }

    #[inline(always)]
    fn reconsider(&self, offset: usize) -> usize {
        maps::forget(offset)
    }
}

impl Context for Skb {
    #[inline(always)]
    fn len(&self) -> u32 {
        self.0.len()
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: as in `sit`.
        unsafe { (*self.0.skb.skb).ifindex }
    }

    #[inline(always)]
    fn attempt(&self) -> u32 {
        // SAFETY: as in `sit`.
        unsafe { (*self.0.skb.skb).cb[1] }
    }

    #[inline(always)]
    fn is_for_host(&self) -> bool {
        // SAFETY: as in `sit`.
        unsafe { (*self.0.skb.skb).pkt_type == PACKET_HOST }
    }

    #[inline(always)]
    fn pull_headers(&self) -> bool {
        let linear = self.0.data_end() - self.0.data();
        linear < self.len() as usize && self.0.pull_data(self.len().min(PULL_LEN)).is_ok()
    }
}

/// Sends the packet into the network namespace behind the veth with this index.
#[inline(always)]
#[allow(clippy::cast_possible_truncation, reason = "the helper returns a TC_ACT code")]
pub fn redirect_peer(ifindex: u32) -> i32 {
    // SAFETY: no pointers; the helper checks the index.
    unsafe { bpf_redirect_peer(ifindex, 0) as i32 }
}

/// Sends the frame out of a device as it is.
#[inline(always)]
#[allow(clippy::cast_possible_truncation, reason = "the helper returns a TC_ACT code")]
pub fn redirect(ifindex: u32) -> i32 {
    // SAFETY: no pointers; the helper checks the index.
    unsafe { bpf_redirect(ifindex, 0) as i32 }
}

/// Sends the packet out of a device, by its routes and neighbours.
#[inline(always)]
#[allow(clippy::cast_possible_truncation, reason = "the helper returns a TC_ACT code")]
pub fn redirect_neigh(ifindex: u32) -> i32 {
    // SAFETY: null parameters of length 0 ask the helper to look up the neighbour itself.
    unsafe { bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) as i32 }
}
