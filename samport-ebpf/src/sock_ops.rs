//! The context of the hook on what becomes of TCP connections: the only place with its pointer.

use core::ptr;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{
    BPF_SOCK_OPS_RTO_CB, BPF_SOCK_OPS_RTO_CB_FLAG, BPF_SOCK_OPS_STATE_CB,
    BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB,
};
use aya_ebpf::helpers::bpf_get_socket_cookie;
use aya_ebpf::programs::SockOpsContext;
use samport_common::sock_lb::tcp_state;

/// A TCP socket, and what the kernel tells of it.
pub struct SockOps(SockOpsContext);

/// What the kernel tells of a socket.
pub enum Progress {
    /// It is about to send its SYN.
    Connects,
    /// It goes from one state into another. Of sockets that are watched only.
    Changes {
        /// The state it leaves.
        from: u32,
        /// The state it is in next.
        to: u32,
    },
    /// Its SYN has not been answered in time. Of sockets that are watched only.
    Unanswered {
        /// How often before.
        before: u32,
    },
    /// Something else.
    Other,
}

impl SockOps {
    #[inline(always)]
    pub fn new(ctx: SockOpsContext) -> Self {
        Self(ctx)
    }

    /// What the kernel tells.
    #[inline(always)]
    pub fn progress(&self) -> Progress {
        // SAFETY: as in `word`.
        match unsafe { word(&raw const (*self.0.ops).op) } {
            BPF_SOCK_OPS_TCP_CONNECT_CB => Progress::Connects,
            BPF_SOCK_OPS_STATE_CB => {
                Progress::Changes { from: self.argument(0), to: self.argument(1) }
            }
            BPF_SOCK_OPS_RTO_CB if self.state() == tcp_state::SYN_SENT => {
                Progress::Unanswered { before: self.argument(0) }
            }
            _ => Progress::Other,
        }
    }

    /// The kernel's number of the socket.
    #[inline(always)]
    pub fn cookie(&self) -> u64 {
        // SAFETY: the helper takes this context.
        unsafe { bpf_get_socket_cookie(self.0.as_ptr()) }
    }

    /// Segments it has sent more than once.
    #[inline(always)]
    pub fn retransmissions(&self) -> u32 {
        // SAFETY: as in `word`.
        unsafe { word(&raw const (*self.0.ops).total_retrans) }
    }

    /// Asks to be told of the socket's states and retransmissions from now on.
    #[inline(always)]
    pub fn watch(&self) {
        // What other programs have asked for stays.
        // SAFETY: as in `word`.
        let flags = unsafe { word(&raw const (*self.0.ops).bpf_sock_ops_cb_flags) };
        // Without it, the socket's close is what we learn of.
        let wanted = flags | BPF_SOCK_OPS_STATE_CB_FLAG | BPF_SOCK_OPS_RTO_CB_FLAG;
        let _ = self.0.set_cb_flags(wanted.cast_signed());
    }

    #[inline(always)]
    fn state(&self) -> u32 {
        // SAFETY: as in `word`.
        unsafe { word(&raw const (*self.0.ops).state) }
    }

    #[inline(always)]
    fn argument(&self, at: usize) -> u32 {
        // SAFETY: as in `word`; there are four.
        unsafe { word((&raw const (*self.0.ops).__bindgen_anon_1.args).cast::<u32>().add(at)) }
    }
}

/// A word of the context.
///
/// # Safety
/// It is one of its fields: the pointer is the kernel's and outlives the program's run.
#[inline(always)]
unsafe fn word(field: *const u32) -> u32 {
    // SAFETY: the caller's promise. Volatile: two words must not become one access.
    unsafe { ptr::read_volatile(field) }
}
