//! What the programs find out about backends: how many flows each has open, and whose connections have failed.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::programs::TcContext;
use samport_common::choose::Load;
use samport_common::conntrack::{self, OpenChange, State};
use samport_common::failover::{self, CheckRequest};
use samport_common::flow::FlowWord;
use samport_common::layout::{Backend, BackendLoad, BackendStats, Event, event, failure};
use samport_common::packet::Packet;
use samport_common::sock_lb::{self, Chosen};

use crate::atomic;
use crate::flows;
use crate::maps::{self, Tables, sockets};
use crate::skb::Skb;

/// The clock in units of 1.024 µs. It wraps after 73 minutes.
#[inline(always)]
#[allow(clippy::cast_possible_truncation, reason = "it may wrap: only differences count")]
pub fn now_micros() -> u32 {
    // SAFETY: no arguments.
    (unsafe { bpf_ktime_get_ns() } >> failover::MICRO_SHIFT) as u32
}

/// Takes note of a flow that opens.
#[inline(always)]
pub fn opens(word: FlowWord) {
    if word.state().is_open() {
        count_opened(word);
    }
}

/// Takes note of a flow whose word was exchanged for another with the same backend.
#[inline(always)]
pub fn moves(from: FlowWord, to: FlowWord) {
    match conntrack::open_change(from.state(), to.state()) {
        OpenChange::Ended => count_ended(from),
        OpenChange::Opened => count_opened(to),
        OpenChange::Neither => {}
    }
}

/// Takes note of a flow that is no more.
#[inline(always)]
pub fn ends(word: FlowWord) {
    if word.state().is_open() {
        count_ended(word);
    }
}

/// Takes note of a socket of this machine that is sent to a backend.
#[inline(always)]
pub fn opens_socket(chosen: &Chosen) {
    add(chosen.backend, chosen.generation, opened);
}

/// Takes note of such a socket that is closed.
#[inline(always)]
pub fn closes_socket(chosen: &Chosen) {
    add(chosen.backend, chosen.generation, ended);
}

/// Takes note of such a socket whose connection its backend has refused or not answered. It is counted once, and is
/// evidence each time.
#[inline(always)]
pub fn fails_socket(chosen: &Chosen, what: u32, is_first: bool) {
    if !is_the_same(chosen.backend, chosen.generation) {
        return;
    }
    if is_first {
        sockets::count_failure_in_call(chosen.backend, what);
    }
    let word = FlowWord::new(chosen.backend, chosen.generation, State::SynSent).to_bits();
    add_evidence(word, sock_lb::CLIENT, what, flows::now_tick());
}

/// Takes note of such a socket whose connection its backend has accepted. It has come by the machine's own stack, so it
/// says nothing of how outside clients' packets get there.
#[inline(always)]
pub fn accepts_socket(chosen: &Chosen) {
    if let Some(evidence) = maps::evidence(chosen.backend)
        && is_the_same(chosen.backend, chosen.generation)
    {
        // SAFETY: as in `add`. Of two CPUs at once one may not be counted.
        unsafe {
            let known = evidence.read_volatile();
            let left = known.without(sock_lb::CLIENT).clients;
            if left != known.clients {
                (&raw mut (*evidence).clients).write_volatile(left);
            }
        }
    }
}

#[inline(always)]
fn count_opened(word: FlowWord) {
    add(word.backend(), word.generation(), opened);
}

#[inline(always)]
fn count_ended(word: FlowWord) {
    add(word.backend(), word.generation(), ended);
}

#[inline(always)]
fn opened(of: *mut BackendLoad) -> *mut u64 {
    // SAFETY: inside the value of an array that is never freed.
    unsafe { &raw mut (*of).opened }
}

#[inline(always)]
fn ended(of: *mut BackendLoad) -> *mut u64 {
    // SAFETY: as in `opened`.
    unsafe { &raw mut (*of).ended }
}

/// Adds one to a counter of a backend, unless its id is another's by now.
#[inline(always)]
fn add(id: u32, generation: u32, counter: impl FnOnce(*mut BackendLoad) -> *mut u64) {
    if let Some(backend_load) = maps::backend_load(id)
        && is_the_same(id, generation)
    {
        // SAFETY: an aligned word of an array that is never freed.
        unsafe { atomic::add(counter(backend_load), 1) };
    }
}

/// Whether an id is still the backend's that had it in this generation.
#[inline(always)]
fn is_the_same(id: u32, generation: u32) -> bool {
    maps::backend(id).is_some_and(|backend| backend.generation == generation)
}

/// How busy a backend is.
#[inline(always)]
pub fn load(id: u32, backend: &'static Backend) -> Load {
    let open = match maps::backend_load(id) {
        // SAFETY: as in `add`.
        Some(backend_load) => unsafe {
            atomic::load(opened(backend_load)).wrapping_sub(atomic::load(ended(backend_load)))
        },
        None => 0,
    };
    let open = open.wrapping_sub(maps::open_correction(id)).cast_signed();
    // Negative for a moment, when a flow ends before its opening has been counted.
    Load { open: u32::try_from(open.max(0)).unwrap_or(u32::MAX), weight: backend.weight }
}

/// Whether new flows avoid a backend: the loader has confirmed that it fails.
#[inline(always)]
pub fn is_suspect(id: u32, now_tick: u32) -> bool {
    // SAFETY: as in `add`.
    maps::suspicion(id).is_some_and(|suspicion| unsafe {
        (&raw const (*suspicion).until).read_volatile() > now_tick
    })
}

/// What tells a client from others: see [`failover::fingerprint`].
#[inline(always)]
pub fn client<P: Tables>(addr: P::Addr) -> u32 {
    failover::fingerprint(P::to_mapped(addr))
}

/// Whether a backend has failed a connection of this client lately.
#[inline(always)]
pub fn has_failed(id: u32, client: u32, now_tick: u32) -> bool {
    // SAFETY: as in `add`; words that are torn make one connection go to another backend.
    maps::evidence(id)
        .is_some_and(|evidence| unsafe { evidence.read_volatile() }.has_failed(client, now_tick))
}

/// Takes note of a flow whose client asks again: its backend has kept silent, or its refusal was held back.
#[inline(always)]
pub fn fails<P: Tables>(
    skb: &Skb,
    packet: &'static Packet<P::Addr>,
    word: FlowWord,
    now_tick: u32,
) {
    // One after the other, and not one from within the other: Linux 6.1 has no stack for that.
    let client = count_failure::<P>(skb.pointer_to_context(), packet, word.to_bits());
    if client != 0 {
        let is_silent = !matches!(word.state(), State::Failed);
        let what = if is_silent { failure::SILENT } else { failure::REFUSED };
        add_evidence(word.to_bits(), client, what, now_tick);
    }
}

/// Counts the failure. The client's fingerprint if it is evidence; 0 if not.
#[inline(never)]
fn count_failure<P: Tables>(
    ctx: *mut __sk_buff,
    packet: &'static Packet<P::Addr>,
    word: u64,
) -> u32 {
    let (skb, word) = (Skb::new(TcContext::new(ctx)), FlowWord::from_bits(word));
    let is_silent = !matches!(word.state(), State::Failed);
    let is_for_one_peer = failover::is_for_one_peer(&skb, packet.l4);
    maps::count_backend(word.backend(), |stats: &mut BackendStats| {
        stats.silent += u64::from(is_silent);
        stats.for_one_peer += u64::from(is_for_one_peer);
    });
    if is_for_one_peer { 0 } else { client::<P>(packet.source.addr) }
}

/// Takes note of a connection that has failed, and calls for the loader. What it returns says nothing.
#[inline(never)]
pub fn add_evidence(word: u64, client: u32, what: u32, now_tick: u32) -> u32 {
    let id = FlowWord::from_bits(word).backend();
    let Some(evidence) = maps::evidence(id) else { return 0 };
    if is_suspect(id, now_tick) {
        return 0;
    }
    // SAFETY: as in `add`. Of two CPUs at once one may not be counted.
    let call = unsafe {
        let (after, call) = evidence.read_volatile().add(client, now_tick);
        evidence.write_volatile(after);
        call
    };
    emit(word, call, what);
    0
}

/// Asks the loader to check a backend now. What it returns says nothing.
#[inline(never)]
pub fn ask_for_check(word: u64, what: u32, now_tick: u32) -> u32 {
    let id = FlowWord::from_bits(word).backend();
    let Some(evidence) = maps::evidence(id) else { return 0 };
    // SAFETY: as in `add_evidence`.
    let call = unsafe {
        let (after, call) = evidence.read_volatile().ask(now_tick);
        (&raw mut (*evidence).check_tick).write_volatile(after.check_tick);
        call
    };
    emit(word, call, what);
    0
}

#[inline(always)]
fn emit(word: u64, call: CheckRequest, failure: u32) {
    let kind = match call {
        CheckRequest::None => return,
        CheckRequest::Check => event::CHECK,
        CheckRequest::Confirm => event::CONFIRM,
    };
    let word = FlowWord::from_bits(word);
    maps::emit(&Event { kind, backend: word.backend(), generation: word.generation(), failure });
}

/// Takes note of a connection that a backend has accepted, this long after it was opened: what has failed
/// before is no evidence any more, and a suspect is none.
#[inline(always)]
pub fn accepts(word: FlowWord, took: u32) {
    let id = word.backend();
    maps::count_handshake(id, failover::class(took), took);
    if let (Some(evidence), Some(suspicion)) = (maps::evidence(id), maps::suspicion(id)) {
        // SAFETY: as in `add`.
        unsafe {
            let clients = &raw mut (*evidence).clients;
            if (&raw const (*clients)[0]).read_volatile() != 0 {
                clients.write_volatile([0; failover::CLIENTS]);
            }
            let until = &raw mut (*suspicion).until;
            if until.read_volatile() != 0 {
                until.write_volatile(0);
            }
        }
    }
}
