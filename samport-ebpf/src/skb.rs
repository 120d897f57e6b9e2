//! A packet at tc: reading, writing, checksums and redirects. Packet pointers are here, and for XDP in `xdp.rs`.

use core::ffi::c_void;

use aya_ebpf::bindings::{
    __sk_buff, BPF_F_ADJ_ROOM_DECAP_L3_IPV4, BPF_F_ADJ_ROOM_DECAP_L3_IPV6,
    BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6, BPF_F_ADJ_ROOM_ENCAP_L4_UDP,
    BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR,
    bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
};
use aya_ebpf::helpers::{
    bpf_check_mtu, bpf_csum_update, bpf_fib_lookup, bpf_get_hash_recalc, bpf_l3_csum_replace,
    bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer, bpf_sk_lookup_tcp,
    bpf_sk_lookup_udp, bpf_sk_release, bpf_skb_adjust_room, bpf_skb_change_tail,
    bpf_skb_change_type, bpf_skb_vlan_pop,
};
use aya_ebpf::programs::TcContext;
use samport_common::family::{Address, Family as _, V6};
use samport_common::frame::Frame;
use samport_common::layout::DeviceSet;
use samport_common::packet::{MAX_OFFSET, Packet};
use samport_common::verdict::Verdict;
use samport_common::wire::protocol::Protocol;
use samport_common::wire::{ethernet, ipv4};

use crate::context::{Context, Hook};
use crate::load_store;
use crate::maps::{self, Tables};
use crate::source::FibLookup;
use crate::trace;

/// What is made linear when a driver has left headers outside of the linear part.
const PULL_LEN: u32 = 256;
/// Ethernet header and the smallest MTU that IPv6 allows (RFC 8200, section 5); IPv4 links with less
/// are none a server has.
const FITS_EVERYWHERE: u32 = 14 + 1_280;
/// Asks for the segments of a packet that offload will cut (linux/bpf.h).
const BPF_MTU_CHK_SEGS: u64 = 1;
/// Sockets are looked for in the device's own network namespace (`BPF_F_CURRENT_NETNS`).
pub const THIS_NETNS: u64 = u64::MAX;
/// `TCP_LISTEN` in linux/tcp_states.h. No UDP socket has that state.
const LISTENING: u32 = 10;
/// `TCP_CLOSE` there: a datagram socket that is not connected.
const UNCONNECTED: u32 = 7;
/// No state has this number.
const NO_SOCKET: u32 = 0;
/// In `skb->tc_index`, of a reply that one of our programs has sent to a device's egress. Any number that no other
/// program uses: its only users were `dsmark` and `tcindex`, which Linux 6.3 has removed.
const REPLY: u32 = 0x5a70;
/// `skb->pkt_type` of a frame addressed to this machine (`PACKET_HOST` in linux/if_packet.h).
const PACKET_HOST: u32 = 0;

/// The outer headers are put, or were, right behind the Ethernet header (`BPF_ADJ_ROOM_MAC`).
const BEHIND_ETHERNET: u32 = BPF_ADJ_ROOM_MAC;

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
    pub fn set_hook(&self, hook: Hook) {
        // SAFETY: the context pointer is the kernel's and outlives the program's run; `cb` is ours
        // until the packet leaves the hook.
        unsafe {
            (*self.0.skb.skb).cb[0] = hook as u32;
            (*self.0.skb.skb).cb[1] = 0;
            (*self.0.skb.skb).cb[3] = trace::begin(self.0.skb.skb);
        }
    }

    /// Says that what is left is what was inside of a packet of this node's.
    #[inline(always)]
    pub fn set_from_node(&self, node: u32) {
        // SAFETY: as in `set_hook`. What the last word is for besides comes after everything.
        unsafe {
            (*self.0.skb.skb).cb[0] = Hook::Tunnel as u32;
            (*self.0.skb.skb).cb[1] = 0;
            (*self.0.skb.skb).cb[4] = node;
        }
    }

    /// Tells the program that is called where it is to send the packet.
    #[inline(always)]
    pub fn set_to_node(&self, to: ToNode) {
        // SAFETY: as in `set_hook`.
        unsafe { (*self.0.skb.skb).cb[2] = to.0 };
    }

    /// What [`Self::set_to_node`] was given.
    #[inline(always)]
    pub fn to_node(&self) -> ToNode {
        // SAFETY: as in `set_hook`.
        ToNode(unsafe { (*self.0.skb.skb).cb[2] })
    }

    /// Takes the outer headers away, of so many bytes: what is left is a packet of the family with this `EtherType`. `None`
    /// if the kernel refuses: from one family to the other it takes Linux 6.3.
    #[inline(always)]
    pub fn strip(&self, len: usize, changes_to: Option<[u8; 2]>) -> Option<()> {
        let family = match changes_to {
            None => 0,
            Some(V6::ETHER_TYPE) => BPF_F_ADJ_ROOM_DECAP_L3_IPV6,
            Some(_) => BPF_F_ADJ_ROOM_DECAP_L3_IPV4,
        };
        let len = i32::try_from(len).ok()?;
        self.adjust_room(-len, BPF_F_ADJ_ROOM_FIXED_GSO | family)?;
        if let Some(ether_type) = changes_to {
            self.write(ethernet::TYPE.start, ether_type)?;
        }
        Some(())
    }

    /// Makes room for outer headers of so many bytes, IPv6's or IPv4's and UDP's. `None` if the kernel refuses.
    #[inline(always)]
    pub fn make_room(&self, len: usize, is_ipv6: bool) -> Option<()> {
        let family =
            if is_ipv6 { BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 } else { BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 };
        // Segments stay as long as they are: connections have been told how long they may be.
        let flags = BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L4_UDP | family;
        let len = i32::try_from(len).ok()?;
        self.adjust_room(len, flags).or_else(|| {
            // What has come out of a tunnel on this very machine still counts as encapsulated, and goes in again as a plain
            // packet: it was turned round, and no offload has anything left to do for it.
            if self.gso_size() == 0 { self.adjust_room(len, 0) } else { None }
        })
    }

    /// Makes room behind the Ethernet header for so many bytes of a packet of the same family.
    #[inline(always)]
    pub fn make_room_for_error(&self, len: usize) -> Option<()> {
        self.adjust_room(i32::try_from(len).ok()?, 0)
    }

    /// Makes room for so many bytes behind the Ethernet header, or takes them away. `None` if the kernel refuses.
    #[inline(always)]
    fn adjust_room(&self, len: i32, flags: u32) -> Option<()> {
        // SAFETY: the context is valid; the helper checks the length.
        let result =
            unsafe { bpf_skb_adjust_room(self.0.skb.skb, len, BEHIND_ETHERNET, u64::from(flags)) };
        if result == 0 { Some(()) } else { None }
    }

    /// Both addresses of the Ethernet header, for [`Self::send_back`]. To be asked before anything of the packet that stands
    /// at an offset which is not constant: the compiler would take later checks of bytes behind them for checks of these.
    #[inline(always)]
    pub fn link_ends(&self) -> Option<LinkEnds> {
        let receiver = self.read(ethernet::DESTINATION.start)?;
        Some(LinkEnds { receiver, sender: self.read(ethernet::SOURCE.start)? })
    }

    /// Addresses the frame to who has sent it.
    #[inline(always)]
    pub fn send_back(&self, ends: &LinkEnds) -> Option<()> {
        self.write(ethernet::DESTINATION.start, ends.sender)?;
        self.write(ethernet::SOURCE.start, ends.receiver)
    }

    /// Payload of each of the segments that offload will cut the packet into; 0 if it is none.
    #[inline(always)]
    pub fn gso_size(&self) -> u32 {
        // SAFETY: as in `set_hook`.
        unsafe { (*self.0.skb.skb).gso_size }
    }

    /// The flow's hash, as the kernel computes it.
    #[inline(always)]
    pub fn hash(&self) -> u32 {
        // SAFETY: the context is valid.
        unsafe { bpf_get_hash_recalc(self.0.skb.skb) }
    }

    /// Whether the packet was kept as it came, to tell of it.
    #[inline(always)]
    pub fn is_traced(&self) -> bool {
        // SAFETY: as in `set_hook`.
        unsafe { (*self.0.skb.skb).cb[3] != 0 }
    }

    /// Tells the program that tells of the packet what has become of it.
    #[inline(always)]
    pub fn set_trace_end(&self, verdict: Verdict, action: i32) {
        // SAFETY: as in `set_hook`.
        unsafe {
            (*self.0.skb.skb).cb[2] = verdict as u32;
            (*self.0.skb.skb).cb[4] = action.cast_unsigned();
        }
    }

    /// What [`Self::set_trace_end`] was given: the verdict's number, and the action.
    #[inline(always)]
    pub fn trace_end(&self) -> (u32, i32) {
        // SAFETY: as in `set_hook`.
        unsafe { ((*self.0.skb.skb).cb[2], (*self.0.skb.skb).cb[4].cast_signed()) }
    }

    /// Counts a failed selection, for the program that is called.
    #[inline(always)]
    pub fn count_attempt(&self) {
        // SAFETY: as in `set_hook`.
        unsafe { (*self.0.skb.skb).cb[1] += 1 };
    }

    /// Says how many selections have failed, once others have made way for this packet.
    #[inline(always)]
    pub fn set_attempts(&self, attempts: u32) {
        // SAFETY: as in `set_hook`.
        unsafe { (*self.0.skb.skb).cb[1] = attempts };
    }

    /// Tells the program that is called why nobody is there for the packet.
    #[inline(always)]
    pub fn set_unserved(&self, why: Unserved) {
        // SAFETY: as in `set_hook`.
        unsafe { (*self.0.skb.skb).cb[2] = why as u32 };
    }

    /// What the program that called us has handed over.
    #[inline(always)]
    pub fn unserved(&self) -> Unserved {
        // SAFETY: as in `set_hook`.
        match unsafe { (*self.0.skb.skb).cb[2] } {
            0 => Unserved::NoBackend,
            _ => Unserved::BackendGone,
        }
    }

    /// The device the packet has come in by: that of our hook, or at egress the one it came into the host
    /// by, `lo` for what the host itself sends.
    #[inline(always)]
    pub fn came_in_by(&self, hook: Hook) -> u32 {
        if hook != Hook::Egress {
            return self.ifindex();
        }
        // SAFETY: as in `set_hook`.
        match unsafe { (*self.0.skb.skb).ingress_ifindex } {
            0 => DeviceSet::HOST,
            ifindex => ifindex,
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
    pub fn hook(&self) -> Hook {
        // SAFETY: as in `set_hook`.
        Hook::from_number(unsafe { (*self.0.skb.skb).cb[0] })
    }

    /// Whether the frame carries a VLAN tag other than 0 outside of its bytes, where the kernel puts
    /// it. VLAN 0 is none: the tag only carries a priority.
    #[inline(always)]
    pub fn is_on_vlan(&self) -> bool {
        // SAFETY: as in `set_hook`.
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
        // SAFETY: as in `set_hook`.
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
    pub fn update_device_csum(&self, csum_diff: u32) {
        // SAFETY: the context is valid. The error says that there is no such sum.
        let _ = unsafe { bpf_csum_update(self.0.skb.skb, csum_diff) };
    }

    /// Makes up for what the checksum helper does to a device's sum over IPv6: it takes an address for
    /// covered by a header checksum, as it is in IPv4, and has taken the difference out of that sum,
    /// where address and transport checksum had already made up for each other.
    #[inline(always)]
    pub fn fix_device_csum(&self, addr_csum_diff: u32) {
        self.update_device_csum(addr_csum_diff);
    }

    /// Overwrites the bytes at `offset`; `None` if the frame ends before.
    #[inline(always)]
    pub fn write<const N: usize>(&self, offset: usize, bytes: [u8; N]) -> Option<()> {
        let at = self.pointer::<N>(offset)?;
        // SAFETY: at..at+N is inside the packet, checked by `pointer`.
        unsafe { load_store::store(at, bytes) };
        Some(())
    }

    /// Updates the transport checksum at `offset`. `csum_diff` is what the change adds to the
    /// ones' complement sum. Only the kernel knows whether the checksum is complete or still to be
    /// finished by the device.
    #[inline(always)]
    pub fn update_l4_csum(&self, offset: usize, csum_diff: u32, of: Covers) -> Option<()> {
        let offset = u32::try_from(offset).ok()?;
        let pseudo = if of.pseudo_header { u64::from(BPF_F_PSEUDO_HDR) } else { 0 };
        let zero = if of.zero_is_none { u64::from(BPF_F_MARK_MANGLED_0) } else { 0 };
        let flags = pseudo | zero;
        // SAFETY: the context is valid; the helper checks the offset.
        let result =
            unsafe { bpf_l4_csum_replace(self.0.skb.skb, offset, 0, u64::from(csum_diff), flags) };
        if result == 0 { Some(()) } else { None }
    }

    /// Sets DF in the IPv4 header. `None` if the kernel refuses.
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation, reason = "a small constant")]
    pub fn forbid_fragments(&self) -> Option<()> {
        const AT: usize = ethernet::LEN + ipv4::FRAGMENT.start;
        const CHECKSUM: u32 = (ethernet::LEN + ipv4::CHECKSUM.start) as u32;
        let before: [u8; 2] = self.read(AT)?;
        let after = (u16::from_be_bytes(before) | ipv4::DONT_FRAGMENT).to_be_bytes();
        let [from, to] = [before, after].map(|bytes| u64::from(u16::from_ne_bytes(bytes)));
        // SAFETY: the context is valid; the helper checks the offset.
        if unsafe { bpf_l3_csum_replace(self.0.skb.skb, CHECKSUM, from, to, 2) } != 0 {
            return None;
        }
        self.write(AT, after)
    }

    /// Whether a socket of this machine takes packets between these ends. One that only listens does not
    /// count.
    #[inline(always)]
    pub fn is_for_socket<A>(&self, protocol: Protocol, ends: &Ends<A>) -> bool {
        !matches!(socket_state(self.0.skb.skb.cast(), protocol, ends), NO_SOCKET | LISTENING)
    }

    /// Marks a reply that leaves by a device of ours, for [`Self::is_reply`].
    #[inline(always)]
    pub fn mark_reply(&self) {
        // SAFETY: as in `set_hook`; the kernel lets programs write it.
        unsafe { (*self.0.skb.skb).tc_index = REPLY };
    }

    /// Whether a program of ours has sent the packet here as a reply. Without its mark, which another program may have
    /// taken away, it is looked at for longer.
    #[inline(always)]
    pub fn is_reply(&self) -> bool {
        // SAFETY: as in `set_hook`.
        unsafe { (*self.0.skb.skb).tc_index == REPLY }
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

/// Who has sent a frame on its link, and who has received it.
#[derive(Clone, Copy)]
pub struct LinkEnds {
    receiver: [u8; 6],
    sender: [u8; 6],
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
            destination_port: packet.destination.port,
        }
    }
}

impl Ends<[u8; 4]> {
    /// Those of a packet from nobody in particular.
    #[inline(always)]
    pub const fn to(destination: [u8; 4], destination_port: [u8; 2]) -> Self {
        Self { source: [0; 4], destination, source_port: [0; 2], destination_port }
    }
}

const _: () = assert!(size_of::<Ends<[u8; 4]>>() == 12 && size_of::<Ends<[u8; 16]>>() == 36);

/// Where a packet goes by the tunnel.
#[derive(Clone, Copy)]
pub struct ToNode(u32);

impl ToNode {
    const REPLY: u32 = 1 << 31;
    const SYN: u32 = 1 << 30;

    /// To the node with this index, for its containers; `is_syn` if it is a segment of a handshake.
    #[inline(always)]
    pub const fn forward(node: u32, is_syn: bool) -> Self {
        Self(node | if is_syn { Self::SYN } else { 0 })
    }

    /// To the node with this index, for a client of that.
    #[inline(always)]
    pub const fn reply(node: u32, is_syn: bool) -> Self {
        Self(Self::forward(node, is_syn).0 | Self::REPLY)
    }

    /// The node's index.
    #[inline(always)]
    pub const fn node(self) -> u32 {
        self.0 & !(Self::REPLY | Self::SYN)
    }

    /// Whether it is a reply.
    #[inline(always)]
    pub const fn is_reply(self) -> bool {
        self.0 & Self::REPLY != 0
    }

    /// Whether it is a segment of a handshake.
    #[inline(always)]
    pub const fn is_syn(self) -> bool {
        self.0 & Self::SYN != 0
    }
}

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
        Some(unsafe { load_store::load(at) })
    }

    #[inline(always)]
    fn reconsider(&self, offset: usize) -> usize {
        maps::scratch::opaque(offset)
    }
}

/// State of the socket of this machine that takes packets between these ends (linux/tcp_states.h), or [`NO_SOCKET`].
/// `ctx` is the context of a program at tc or XDP.
#[inline(always)]
#[allow(clippy::cast_possible_truncation, reason = "36 bytes at most")]
pub fn socket_state<A>(ctx: *mut c_void, protocol: Protocol, ends: &Ends<A>) -> u32 {
    let tuple = core::ptr::from_ref(ends).cast_mut().cast();
    let size = const { size_of::<Ends<A>>() as u32 };
    // SAFETY: the context is valid, and the kernel only reads the tuple, which is laid out as it wants it.
    let socket = unsafe {
        match protocol {
            Protocol::Tcp => bpf_sk_lookup_tcp(ctx, tuple, size, THIS_NETNS, 0),
            Protocol::Udp => bpf_sk_lookup_udp(ctx, tuple, size, THIS_NETNS, 0),
        }
    };
    if socket.is_null() {
        return NO_SOCKET;
    }
    // SAFETY: a socket that the kernel has given to us, until we give it back.
    unsafe {
        let state = (&raw const (*socket).state).read_volatile();
        bpf_sk_release(socket.cast());
        state
    }
}

/// Whether a socket in this state is connected to one other end: a datagram socket is then "established".
#[inline(always)]
pub fn is_connected(state: u32) -> bool {
    !matches!(state, NO_SOCKET | UNCONNECTED | LISTENING)
}

impl Context for Skb {
    #[inline(always)]
    fn len(&self) -> u32 {
        self.0.len()
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: as in `set_hook`.
        unsafe { (*self.0.skb.skb).ifindex }
    }

    #[inline(always)]
    fn fib_lookup(&self, question: *mut FibLookup, flags: u32) -> i64 {
        // SAFETY: the context is valid, and so is the question, which the kernel checks by its length.
        unsafe { bpf_fib_lookup(self.0.skb.skb.cast(), question.cast(), FibLookup::LEN, flags) }
    }

    /// Of the packet that was kept in this run, which is the one that every program here has parsed.
    #[inline(always)]
    fn source_marks<P: Tables>(&self, _: &Packet<P::Addr>) -> u32 {
        P::marks_of_skb(self.pointer_to_context())
    }

    #[inline(always)]
    fn source_move<P: Tables>(&self, packet: &Packet<P::Addr>, reply_path: u32, flow: u32) -> u32 {
        let packet = self.source_marks::<P>(packet);
        P::move_of(self.hook(), reply_path, flow, packet)
    }

    #[inline(always)]
    fn answers_outbound<P: Tables>(&self, _: &Packet<P::Addr>) -> bool {
        P::answers_outbound_of_skb(self.pointer_to_context()) != 0
    }

    #[inline(always)]
    fn has_connection<A>(&self, protocol: Protocol, ends: &Ends<A>) -> bool {
        is_connected(socket_state(self.0.skb.skb.cast(), protocol, ends))
    }

    #[inline(always)]
    fn attempt(&self) -> u32 {
        // SAFETY: as in `set_hook`.
        unsafe { (*self.0.skb.skb).cb[1] }
    }

    #[inline(always)]
    fn is_for_host(&self) -> bool {
        // SAFETY: as in `set_hook`.
        unsafe { (*self.0.skb.skb).pkt_type == PACKET_HOST }
    }

    #[inline(always)]
    fn node(&self) -> u32 {
        // SAFETY: as in `set_hook`.
        unsafe { (*self.0.skb.skb).cb[4] }
    }

    #[inline(always)]
    fn pull_headers(&self) -> bool {
        let linear = self.0.data_end() - self.0.data();
        linear < self.len() as usize && self.0.pull_data(self.len().min(PULL_LEN)).is_ok()
    }
}

/// Sends the packet into the network namespace behind the veth with this index.
///
/// Kernels from before 2025 (Ubuntu 24.04 as released) leave a packet's type as it is on that way. A container's
/// frames are addressed to its bridge, so that they count as another machine's where they come in, and the IP stack at
/// the other end would discard them.
#[inline(always)]
#[allow(clippy::cast_possible_truncation, reason = "the helper returns a TC_ACT code")]
pub fn redirect_peer(skb: &Skb, ifindex: u32) -> i32 {
    if !skb.is_for_host() {
        // SAFETY: the context is valid. It cannot fail between these types.
        let _ = unsafe { bpf_skb_change_type(skb.0.skb.skb, PACKET_HOST) };
    }
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
