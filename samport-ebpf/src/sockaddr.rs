//! The contexts of the hooks on connect, sendmsg, recvmsg, getpeername and close: the only place with
//! their pointers. Every field is read and written as the word it is; the kernel takes no other access.

use core::ptr;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::{
    bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_sk_lookup_tcp, bpf_sk_lookup_udp,
    bpf_sk_release,
};
use aya_ebpf::programs::{SockAddrContext, SockContext};
use samport_common::family::{Family as _, V4};
use samport_common::wire::protocol::Protocol;

use crate::skb::{Ends, THIS_NETNS};

/// The cookie of the network namespace whose sockets are ours; set by the loader. No namespace has 0.
#[unsafe(no_mangle)]
static HOST_NETNS_COOKIE: u64 = 0;

/// A socket and the address a system call names.
pub struct SockAddr(SockAddrContext);

impl SockAddr {
    #[inline(always)]
    pub fn new(ctx: SockAddrContext) -> Self {
        Self(ctx)
    }

    /// The context, for the log macros.
    #[inline(always)]
    pub fn context(&self) -> &SockAddrContext {
        &self.0
    }

    /// Whether the socket is of the network namespace samport works in. The hooks see those of all.
    #[inline(always)]
    pub fn is_of_this_machine(&self) -> bool {
        // SAFETY: the helper takes this context.
        unsafe { bpf_get_netns_cookie(self.0.as_ptr()) == host_netns_cookie() }
    }

    /// The kernel's number of the socket.
    #[inline(always)]
    pub fn cookie(&self) -> u64 {
        // SAFETY: the helper takes this context.
        unsafe { bpf_get_socket_cookie(self.0.as_ptr()) }
    }

    /// IP protocol number.
    #[inline(always)]
    pub fn protocol(&self) -> u32 {
        // SAFETY: as in `word`.
        unsafe { word(&raw const (*self.0.sock_addr).protocol) }
    }

    /// The port named, network order.
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation, reason = "the kernel keeps 16 bits there")]
    pub fn port(&self) -> [u8; 2] {
        // SAFETY: as in `word`.
        let port = unsafe { word(&raw const (*self.0.sock_addr).user_port) };
        (port as u16).to_ne_bytes()
    }

    /// The socket's own port, network order; 0 if it has none yet.
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation, reason = "a port has 16 bits")]
    pub fn own_port(&self) -> [u8; 2] {
        // SAFETY: as in `word`.
        let port = unsafe { word(&raw const (*self.sk()).src_port) };
        (port as u16).to_be_bytes()
    }

    /// The device the socket is tied to, or 0.
    #[inline(always)]
    pub fn device(&self) -> u32 {
        // SAFETY: as in `word`.
        unsafe { word(&raw const (*self.sk()).bound_dev_if) }
    }

    /// Whether the socket is connected.
    #[inline(always)]
    pub fn is_connected(&self) -> bool {
        // SAFETY: as in `word`.
        unsafe { ptr::read_volatile(&raw const (*self.sk()).dst_port) != 0 }
    }

    /// Whether a socket of this machine takes what is sent to this very address, rather than to all of them.
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation, reason = "12 bytes")]
    pub fn is_listened_on(&self, protocol: Protocol, addr: [u8; 4], port: [u8; 2]) -> bool {
        let ends = Ends::to(addr, port);
        let tuple = core::ptr::from_ref(&ends).cast_mut().cast();
        let size = const { size_of::<Ends<[u8; 4]>>() as u32 };
        // SAFETY: the context is valid, and the kernel only reads the tuple, which is laid out as it wants it.
        let socket = unsafe {
            match protocol {
                Protocol::Tcp => bpf_sk_lookup_tcp(self.0.as_ptr(), tuple, size, THIS_NETNS, 0),
                Protocol::Udp => bpf_sk_lookup_udp(self.0.as_ptr(), tuple, size, THIS_NETNS, 0),
            }
        };
        if socket.is_null() {
            return false;
        }
        // SAFETY: a socket that the kernel has given to us, until we give it back.
        let bound_to = unsafe {
            let bound_to = word(&raw const (*socket).src_ip4);
            bpf_sk_release(socket.cast());
            bound_to
        };
        bound_to == u32::from_ne_bytes(addr)
    }

    /// The socket as far as the kernel shows it.
    #[inline(always)]
    fn sk(&self) -> *mut bpf_sock {
        // SAFETY: the kernel gives the socket with every such context.
        unsafe { (*self.0.sock_addr).__bindgen_anon_1.sk }
    }
}

/// A socket that is being closed.
pub struct Closed(SockContext);

impl Closed {
    #[inline(always)]
    pub fn new(ctx: SockContext) -> Self {
        Self(ctx)
    }

    /// As in [`SockAddr`].
    #[inline(always)]
    pub fn is_of_this_machine(&self) -> bool {
        // SAFETY: the helper takes this context.
        unsafe { bpf_get_netns_cookie(self.0.as_ptr()) == host_netns_cookie() }
    }

    /// As in [`SockAddr`].
    #[inline(always)]
    pub fn cookie(&self) -> u64 {
        // SAFETY: the helper takes this context.
        unsafe { bpf_get_socket_cookie(self.0.as_ptr()) }
    }
}

/// The cookie of samport's network namespace.
#[inline(always)]
fn host_netns_cookie() -> u64 {
    // SAFETY: the static is in a map the loader has filled; volatile, or the compiler would take
    // the value it has here.
    unsafe { ptr::read_volatile(&raw const HOST_NETNS_COOKIE) }
}

/// A version of the hooks: for addresses of IPv4, or of IPv6 (IPv4 among them, in mapped form).
/// Addresses are in their 16-byte form on our side.
pub trait SockFamily {
    /// The address named.
    fn addr(sock: &SockAddr) -> [u8; 16];
    /// The socket's own address, all zero if it has none.
    fn source(sock: &SockAddr) -> [u8; 16];
    /// The source of the datagram that is being sent, all zero if it has none. Only at sendmsg.
    fn datagram_source(sock: &SockAddr) -> [u8; 16];
    /// Names another address.
    fn set(sock: &SockAddr, addr: &[u8; 16], port: [u8; 2]);
}

/// The hooks whose names end with 4.
pub enum Inet {}

/// The hooks whose names end with 6.
pub enum Inet6 {}

impl SockFamily for Inet {
    #[inline(always)]
    fn addr(sock: &SockAddr) -> [u8; 16] {
        // SAFETY: as in `word`.
        to_mapped(unsafe { word(&raw const (*sock.0.sock_addr).user_ip4) })
    }

    #[inline(always)]
    fn source(sock: &SockAddr) -> [u8; 16] {
        // SAFETY: as in `word`.
        to_mapped(unsafe { word(&raw const (*sock.sk()).src_ip4) })
    }

    #[inline(always)]
    fn datagram_source(sock: &SockAddr) -> [u8; 16] {
        // SAFETY: as in `word`.
        to_mapped(unsafe { word(&raw const (*sock.0.sock_addr).msg_src_ip4) })
    }

    #[inline(always)]
    fn set(sock: &SockAddr, addr: &[u8; 16], port: [u8; 2]) {
        let ctx = sock.0.sock_addr;
        // SAFETY: the context is ours to change while the program runs.
        unsafe {
            ptr::write_volatile(
                &raw mut (*ctx).user_ip4,
                u32::from_ne_bytes(V4::from_mapped(addr)),
            );
            ptr::write_volatile(&raw mut (*ctx).user_port, u32::from(u16::from_ne_bytes(port)));
        }
    }
}

impl SockFamily for Inet6 {
    #[inline(always)]
    fn addr(sock: &SockAddr) -> [u8; 16] {
        // SAFETY: as in `word`.
        unsafe { words(&raw const (*sock.0.sock_addr).user_ip6) }
    }

    #[inline(always)]
    fn source(sock: &SockAddr) -> [u8; 16] {
        // SAFETY: as in `word`.
        unsafe { words(&raw const (*sock.sk()).src_ip6) }
    }

    #[inline(always)]
    fn datagram_source(sock: &SockAddr) -> [u8; 16] {
        // SAFETY: as in `word`.
        unsafe { words(&raw const (*sock.0.sock_addr).msg_src_ip6) }
    }

    #[inline(always)]
    fn set(sock: &SockAddr, addr: &[u8; 16], port: [u8; 2]) {
        let ctx = sock.0.sock_addr;
        let [a, b, c, d]: [u32; 4] = zerocopy::transmute!(*addr);
        // SAFETY: the context is ours to change while the program runs; words 0 to 3 of four.
        unsafe {
            let words = (&raw mut (*ctx).user_ip6).cast::<u32>();
            ptr::write_volatile(words, a);
            ptr::write_volatile(words.add(1), b);
            ptr::write_volatile(words.add(2), c);
            ptr::write_volatile(words.add(3), d);
            ptr::write_volatile(&raw mut (*ctx).user_port, u32::from(u16::from_ne_bytes(port)));
        }
    }
}

#[inline(always)]
fn to_mapped(ip4: u32) -> [u8; 16] {
    V4::to_mapped(ip4.to_ne_bytes())
}

/// A word of the context or of its socket.
///
/// # Safety
/// It is one of their fields: the pointers are the kernel's and outlive the program's run.
#[inline(always)]
unsafe fn word(field: *const u32) -> u32 {
    // SAFETY: the caller's promise. Volatile: two words must not become one access.
    unsafe { ptr::read_volatile(field) }
}

/// An address of four words.
///
/// # Safety
/// As in [`word`].
#[inline(always)]
unsafe fn words(field: *const [u32; 4]) -> [u8; 16] {
    let first = field.cast::<u32>();
    // SAFETY: the caller's promise; words 0 to 3 of four.
    let words =
        unsafe { [word(first), word(first.add(1)), word(first.add(2)), word(first.add(3))] };
    zerocopy::transmute!(words)
}
