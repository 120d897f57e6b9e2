//! Single operations that packet programs are made of, to be measured like programs.

use aya_ebpf::bindings::{BPF_F_PSEUDO_HDR, BPF_RB_NO_WAKEUP, TC_ACT_UNSPEC};
use aya_ebpf::helpers::{
    bpf_get_prandom_u32, bpf_ktime_get_coarse_ns, bpf_ktime_get_ns, bpf_l4_csum_replace,
    bpf_redirect_peer,
};
use aya_ebpf::macros::{classifier, map};
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf};
use aya_ebpf::programs::TcContext;
use samport_common::harness::{ENTRIES, VALUE_WORDS};

type Value = [u64; VALUE_WORDS];

#[map]
static ARRAY: Array<u64> = Array::with_max_entries(ENTRIES, 0);
#[map]
static COUNTERS: PerCpuArray<[u64; 2]> = PerCpuArray::with_max_entries(1, 0);
#[map]
static HASH: HashMap<u64, Value> = HashMap::with_max_entries(ENTRIES, 0);
#[map]
static LRU: LruHashMap<u64, Value> = LruHashMap::with_max_entries(ENTRIES, 0);
#[map]
static LRU_WIDE: LruHashMap<[u64; 5], Value> = LruHashMap::with_max_entries(ENTRIES, 0);
/// Full, and made room in by every insert.
#[map]
static LRU_FULL: LruHashMap<u64, Value> = LruHashMap::with_max_entries(ENTRIES, 0);
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// A number that the client of the packet decides, and never the compiler.
#[inline(always)]
fn client(ctx: &TcContext) -> u32 {
    let (data, end) = (ctx.data(), ctx.data_end());
    if data + 30 > end {
        return 0;
    }
    // SAFETY: data + 26 .. data + 30, the IPv4 source, is in the packet, checked above.
    let [_, a, b, c] = unsafe { *((data + 26) as *const [u8; 4]) };
    u32::from_le_bytes([a, b, c, 0])
}

/// Each is a program: aya wants a function of its own for one.
macro_rules! operations {
    ($($(#[$doc:meta])* $name:ident($ctx:ident) $body:block)*) => {
        $(
            $(#[$doc])*
            #[classifier]
            pub fn $name(ctx: TcContext) -> i32 {
                #[inline(always)]
                fn operate($ctx: &TcContext) $body
                operate(&ctx);
                TC_ACT_UNSPEC
            }
        )*
    };
}

/// Makes a value count for something, or the compiler would leave out what it comes from.
#[inline(always)]
fn mark(ctx: &TcContext, value: u64) {
    let [a, b, c, d, ..] = value.to_le_bytes();
    // SAFETY: the context pointer is the kernel's and outlives the run.
    unsafe {
        (*ctx.skb.skb).cb[0] = core::hint::black_box(u32::from_le_bytes([a, b, c, d]));
    }
}

/// The first word of a value that was looked up.
#[inline(always)]
fn first(found: Option<*const Value>) -> u64 {
    match found {
        // SAFETY: what a look-up returns is valid while the program runs.
        Some(value) => unsafe { value.cast::<u64>().read() },
        None => 0,
    }
}

operations! {
    /// What every other one of these does besides.
    op_nothing(ctx) {
        mark(ctx, client(ctx).into());
    }
    op_array(ctx) {
        mark(ctx, ARRAY.get(client(ctx) & (ENTRIES - 1)).copied().unwrap_or(1));
    }
    op_percpu(ctx) {
        mark(ctx, client(ctx).into());
        if let Some(counters) = COUNTERS.get_ptr_mut(0) {
            // SAFETY: this CPU's own copy, and a program is not interrupted by itself.
            let [packets, bytes] = unsafe { &mut *counters };
            *packets += 1;
            *bytes += 64;
        }
    }
    op_hash(ctx) {
        mark(ctx, first(HASH.get_ptr(u64::from(client(ctx)))));
    }
    op_lru(ctx) {
        mark(ctx, first(LRU.get_ptr(u64::from(client(ctx)))));
    }
    op_lru_wide(ctx) {
        mark(ctx, first(LRU_WIDE.get_ptr([u64::from(client(ctx)), 0, 0, 0, 0])));
    }
    /// With a new key each time: of far more clients than there is room for.
    op_lru_insert(ctx) {
        let failed = LRU_FULL.insert(u64::from(client(ctx)), [1; VALUE_WORDS], 0).is_err();
        mark(ctx, failed.into());
    }
    op_ktime(ctx) {
        // SAFETY: no arguments.
        let now = unsafe { bpf_ktime_get_ns() };
        mark(ctx, now ^ u64::from(client(ctx)));
    }
    op_ktime_coarse(ctx) {
        // SAFETY: no arguments.
        let now = unsafe { bpf_ktime_get_coarse_ns() };
        mark(ctx, now ^ u64::from(client(ctx)));
    }
    op_random(ctx) {
        // SAFETY: no arguments.
        let drawn = unsafe { bpf_get_prandom_u32() };
        mark(ctx, u64::from(drawn ^ client(ctx)));
    }
    op_checksum(ctx) {
        let client = u64::from(client(ctx));
        mark(ctx, client);
        // SAFETY: the context is valid; the helper checks the offset, which is that of the checksum of a
        // TCP header behind 14 and 20 bytes.
        let _ = unsafe {
            bpf_l4_csum_replace(ctx.skb.skb, 50, 0, client, u64::from(BPF_F_PSEUDO_HDR))
        };
    }
    op_redirect_peer(ctx) {
        // SAFETY: no pointers; the helper checks the index.
        let told = unsafe { bpf_redirect_peer(1, 0) };
        mark(ctx, told.cast_unsigned() ^ u64::from(client(ctx)));
    }
    /// Nobody reads them: the ring is full soon, which is as dear as an entry nobody is woken for.
    op_ringbuf(ctx) {
        let entry = [u64::from(client(ctx)); 8];
        let failed = EVENTS.output::<[u64; 8]>(entry, BPF_RB_NO_WAKEUP.into()).is_err();
        mark(ctx, failed.into());
    }
}
