//! Picking a backend for a new flow and storing it so that every CPU agrees.

use aya_ebpf::helpers::bpf_get_prandom_u32;
use samport_common::choose::{self, Balance};
use samport_common::conntrack::{self, Sequences, State};
use samport_common::failover::{self, Refusals};
use samport_common::flow::{
    Endpoint, EndpointKey, Flow, FlowKey, FlowWord, ProbeSlot, ReplyPath, ServiceId, marks,
};
use samport_common::layout::{Backend, BackendState, ForwardMode, Service, Slots, service};
use samport_common::packet::{self, Packet};
use samport_common::source;
use samport_common::verdict::Verdict;
use samport_common::wire::ethernet;
use samport_common::wire::protocol::Protocol;
use samport_common::wire::tcp::Flags;

use crate::affinity;
use crate::context::Context;
use crate::flows::{self, FlowRef, FlowSlot, Taken};
use crate::maps::{self, Tables};
use crate::outlier;
use crate::room;

/// What the kernel answers when a key is there already (errno-base.h).
const EEXIST: i32 = 17;

/// A packet for a service: which one, seen where and when.
pub struct NewFlow {
    pub service: &'static Service,
    pub id: ServiceId,
    /// [`EndpointKey::fold`] of what the packet was sent to.
    pub key_fold: u16,
    pub protocol: Protocol,
    pub flags: Flags,
    pub reply_path: ReplyPath,
    /// What is known of the client's address: of `flow::marks`. Set when the flow is stored.
    pub marks: u32,
    pub now_tick: u32,
    /// How many selections for this packet have failed.
    pub attempt: u32,
}

impl NewFlow {
    /// How the service chooses.
    #[inline(always)]
    pub fn balance(&self) -> Balance {
        Balance::from_byte(self.service.balance)
    }

    /// Whether `service` is still the one that was found.
    #[inline(always)]
    fn is_still_of_service(&self) -> bool {
        is_still_of(self.service, self.key_fold)
    }

    /// Whether a backend that fails is exchanged for another.
    #[inline(always)]
    pub fn fails_over(&self) -> bool {
        self.service.flags & service::FAILOVER != 0
    }

    /// Whether so many selections have failed that a suspect will do.
    #[inline(always)]
    pub fn is_out_of_retries(&self) -> bool {
        self.attempt >= failover::MAX_RETRIES
    }

    /// Takes note of what is known of the client's address.
    #[inline(always)]
    pub fn validate(&mut self, marks: u32) -> Result<(), Verdict> {
        self.marks = marks;
        if marks == source::REFUSED { Err(Verdict::SpoofedSource) } else { Ok(()) }
    }

    /// What a flow begins with that goes to this backend.
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation, reason = "the lower half changes most")]
    fn word(&self, id: u32, backend: &'static Backend) -> FlowWord {
        let word = FlowWord::new(id, backend.generation, State::first(self.protocol, self.flags));
        word.with_tag(outlier::now_micros() as u16)
    }

    #[inline(always)]
    #[allow(clippy::cast_possible_truncation, reason = "marks are 16 bits")]
    fn flow_flags(&self) -> u16 {
        self.marks as u16 | if self.fails_over() { marks::FAILOVER } else { 0 }
    }
}

/// Whether a value of `SERVICES` is still that of a key: the kernel may use its memory for another frontend at once, when the
/// loader has written this one again. If it is, so was all that was read of it before: where the table is comes first in a
/// value, and is written first.
#[inline(always)]
pub fn is_still_of(service: &Service, key_fold: u16) -> bool {
    slots_of(service).is_of(key_fold)
}

/// Why a flow cannot be opened where it was tried.
pub enum OpenError {
    /// Final: the packet leaves with this verdict.
    Verdict(Verdict),
    /// Only the slow path can tell, or its next selection.
    SlowPath,
}

impl From<Verdict> for OpenError {
    fn from(verdict: Verdict) -> Self {
        Self::Verdict(verdict)
    }
}

/// Draws a backend at random: nearly always the first one will do. All other ways to choose are left to
/// the slow path.
#[inline(always)]
pub fn select(new_flow: &NewFlow) -> Result<FlowWord, OpenError> {
    let service = new_flow.service;
    let is_plain = matches!(new_flow.balance(), Balance::Random)
        && service.affinity_ticks == 0
        && service.flags & service::SHARED == 0;
    if !is_plain {
        return Err(OpenError::SlowPath);
    }
    let (id, backend) = random_backend(service)?;
    if !new_flow.is_still_of_service() {
        return Err(OpenError::SlowPath);
    }
    if backend.shared != 0 || !may_get(id, backend, new_flow) {
        return Err(OpenError::SlowPath);
    }
    Ok(new_flow.word(id, backend))
}

/// Draws a backend as the service wants it, one that has no living flow from this client's port and is
/// not `unwanted`. [`OpenError::SlowPath`] asks for another selection.
#[inline(always)]
pub fn select_slow<P: Tables>(
    client: Endpoint<P::Addr>,
    taken: Taken,
    new_flow: &NewFlow,
    unwanted: u32,
    refusals: Refusals,
) -> Result<FlowWord, OpenError> {
    let service = new_flow.service;
    let recalled = if service.affinity_ticks != 0 && new_flow.attempt == 0 {
        affinity::recall::<P>(client.addr, service, new_flow.now_tick)
    } else {
        None
    };
    let (id, backend) = if let Some(same) = recalled {
        same
    } else {
        let balance = new_flow.balance();
        let with_port = !matches!(balance, Balance::SourceHash);
        let hash = if balance.is_by_hash() { hash::<P>(&client, with_port) } else { 0 };
        pick(service, hash, new_flow.attempt)?
    };
    if !new_flow.is_still_of_service() {
        return Err(OpenError::SlowPath);
    }
    if is_unwanted::<P>(client.addr, new_flow, unwanted, id)
        || (unwanted != 0 && refusals.contains(id))
        || !may_get(id, backend, new_flow)
        || taken.contains(id)
        || (backend.shared != 0 && is_claimed::<P>(client, new_flow, backend))
    {
        return Err(OpenError::SlowPath);
    }
    Ok(new_flow.word(id, backend))
}

/// A client's hash. A subprogram: its numbers need a stack of their own.
#[inline(never)]
fn hash<P: Tables>(client: &Endpoint<P::Addr>, with_port: bool) -> u32 {
    choose::hash::<P>(&maps::hash_seed(), client, with_port)
}

/// Whether a connection that looks for another backend than the `unwanted` one does not want this one: it, or one
/// that has failed the same client lately.
#[inline(always)]
fn is_unwanted<P: Tables>(client: P::Addr, new_flow: &NewFlow, unwanted: u32, id: u32) -> bool {
    unwanted != 0
        && (id == unwanted
            || outlier::has_failed(id, outlier::client::<P>(client), new_flow.now_tick))
}

/// Whether a backend may get packets that come in here. One that was taken down since this table was
/// written may not: the next table is on its way. A macvlan child is reached from its own interface only.
#[inline(always)]
fn may_get(id: u32, backend: &'static Backend, new_flow: &NewFlow) -> bool {
    BackendState::from_byte(backend.state).serves()
        && (!matches!(ForwardMode::from_byte(backend.forward_mode), ForwardMode::Child)
            || backend.ifindex == new_flow.reply_path.ifindex())
        && (new_flow.is_out_of_retries() || !outlier::is_suspect(id, new_flow.now_tick))
}

/// The backend a service's way to choose leads to, for a client with this hash after this many failed selections.
///
/// Through a number: the verifier follows what comes after once, and not for each way to choose.
#[inline(always)]
pub fn pick(
    service: &Service,
    hash: u32,
    attempt: u32,
) -> Result<(u32, &'static Backend), Verdict> {
    let number = pick_packed(service, hash, attempt);
    if number & NONE != 0 {
        return Err(Verdict::from_number(number & !NONE).unwrap_or(Verdict::BackendUnset));
    }
    Ok((number, maps::backend(number).ok_or(Verdict::BackendUnset)?))
}

/// Bit of what [`pick_packed`] returns if there is none: the rest is the verdict's number.
const NONE: u32 = 1 << 31;

#[inline(never)]
fn pick_packed(service: &Service, hash: u32, attempt: u32) -> u32 {
    match pick_as_balanced(service, hash, attempt) {
        Ok(id) => id & !NONE,
        Err(verdict) => NONE | verdict as u32,
    }
}

#[inline(always)]
fn pick_as_balanced(service: &Service, hash: u32, attempt: u32) -> Result<u32, Verdict> {
    let slots = slots_of(service);
    let len = slots.len;
    let slot = match Balance::from_byte(service.balance) {
        Balance::Random => random_slot(len),
        Balance::LeastConn => {
            let one = in_table(slots, random_slot(len).ok_or(no_backend(service))?)?;
            let other = in_table(slots, random_slot(len).ok_or(no_backend(service))?)?;
            let (load, of_other) = (outlier::load(one.0, one.1), outlier::load(other.0, other.1));
            return Ok(if of_other.is_lighter_than(load) { other.0 } else { one.0 });
        }
        Balance::RoundRobin => next_turn(service.id, len),
        Balance::Maglev | Balance::SourceHash => choose::slot(choose::rehash(hash, attempt), len),
    };
    in_table(slots, slot.ok_or(no_backend(service))?).map(|(id, _)| id)
}

/// Where the service's table is. Read once for a choice, or the length might be of another table than the base: the
/// loader writes a service's frontends one after the other, and the kernel uses the element of one for the next.
#[inline(always)]
pub fn slots_of(service: &Service) -> Slots {
    // SAFETY: an aligned word of a map's value.
    Slots::from_bits(unsafe { (&raw const service.slots).read_volatile() })
}

#[inline(always)]
fn random_slot(len: u32) -> Option<u32> {
    // SAFETY: no arguments.
    choose::slot(unsafe { bpf_get_prandom_u32() }, len)
}

/// What a packet leaves by if there is no backend.
#[inline(always)]
fn no_backend(service: &Service) -> Verdict {
    if service.flags & service::DROP != 0 { Verdict::NoBackendDrop } else { Verdict::NoBackend }
}

/// Looks at so many slots, spread over the table, for somebody else.
const LOOKS: u32 = 32;

/// Whether a service has another backend than this one, and than those that have refused, that is worth a try for
/// this client.
#[inline(always)]
pub fn has_other(
    service: &Service,
    this: u32,
    refusals: Refusals,
    client: u32,
    now_tick: u32,
) -> bool {
    samport_has_other(service.slots, this, refusals.0, client, now_tick) != 0
}

/// [`has_other`] of numbers only, and exported: so the verifier walks its loop by itself, once (docs/internals/verifier.md).
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn samport_has_other(
    slots: u64,
    this: u32,
    refusals: u64,
    client: u32,
    now_tick: u32,
) -> u32 {
    let refusals = Refusals(refusals);
    other(slots, this, client, now_tick, |id, _| !refusals.contains(id))
}

/// Another backend in this table than this one that is worth a try for this client and `fits`, or 0.
#[inline(always)]
pub fn other(
    slots: u64,
    this: u32,
    client: u32,
    now_tick: u32,
    fits: impl Fn(u32, &Backend) -> bool,
) -> u32 {
    let slots = Slots::from_bits(slots);
    // SAFETY: no arguments.
    let offset = unsafe { bpf_get_prandom_u32() };
    for look in 0..LOOKS {
        // Evenly spread: of a table of so many slots each is met.
        let spread = (look * (u32::MAX / LOOKS + 1)).wrapping_add(offset);
        let Some(slot) = choose::slot(spread, slots.len) else { return 0 };
        if let Ok((id, backend)) = in_table(slots, slot)
            && id != this
            && fits(id, backend)
            && BackendState::from_byte(backend.state).serves()
            && !outlier::is_suspect(id, now_tick)
            && !outlier::has_failed(id, client, now_tick)
        {
            return id;
        }
    }
    0
}

/// The slot whose turn it is.
#[inline(always)]
#[allow(clippy::cast_possible_truncation, reason = "less than a number of 32 bits")]
fn next_turn(service: u16, len: u32) -> Option<u32> {
    maps::next_turn(service).checked_rem(u64::from(len)).map(|slot| slot as u32)
}

/// A random slot of the service's table, and the backend it names.
#[inline(always)]
pub fn random_backend(service: &Service) -> Result<(u32, &'static Backend), Verdict> {
    let slots = slots_of(service);
    in_table(slots, random_slot(slots.len).ok_or(no_backend(service))?)
}

/// The backend that a slot of a table names.
#[inline(always)]
pub fn in_table(slots: Slots, slot: u32) -> Result<(u32, &'static Backend), Verdict> {
    let id = maps::table_slot(slots.index(slot)).ok_or(Verdict::BackendUnset)?;
    let backend = maps::backend(id).ok_or(Verdict::BackendUnset)?;
    match BackendState::from_byte(backend.state) {
        BackendState::Unset => Err(Verdict::BackendUnset),
        BackendState::Serving
        | BackendState::Draining
        | BackendState::Unhealthy
        | BackendState::Down => Ok((id, backend)),
    }
}

/// Stores the flow a packet opens, and says which backend it got: the one chosen, or that of a CPU
/// that was faster with the same packet.
#[inline(always)]
pub fn store<P: Tables, C: Context>(
    context: &C,
    packet: &Packet<P::Addr>,
    slot: FlowSlot,
    new_flow: &NewFlow,
    chosen: FlowWord,
) -> Result<FlowWord, Verdict> {
    match slot {
        FlowSlot::Existing(entry, judged) => {
            let first = conntrack::first(&packet::segment(context, packet));
            Ok(reopen(context, entry, judged, chosen, new_flow, first))
        }
        FlowSlot::New(probe_slot, how) => {
            let key = FlowKey::new(packet.source, new_flow.id, probe_slot);
            let flow = flow_value::<P, C>(context, packet, new_flow, chosen)?;
            let stored = P::insert(&key, &flow, how);
            if stored.is_ok() {
                flows::count_insert();
                room::takes(new_flow.id, chosen);
            }
            resolve_insert::<P>(packet, flows::find::<P>, &key, stored, chosen)
        }
    }
}

/// [`store`] for a flow that finds no room in the table.
#[inline(always)]
pub fn store_beside<P: Tables, C: Context>(
    context: &C,
    packet: &Packet<P::Addr>,
    new_flow: &NewFlow,
    chosen: FlowWord,
) -> Result<FlowWord, Verdict> {
    let key = FlowKey::new(packet.source, new_flow.id, ProbeSlot::FIRST);
    let mut flow = flow_value::<P, C>(context, packet, new_flow, chosen)?;
    let stored = room::store_beside::<P>(&key, &mut flow);
    resolve_insert::<P>(packet, flows::find_overflow::<P>, &key, stored, chosen)
}

/// Takes over an entry whose connection is over.
#[inline(always)]
#[allow(clippy::cast_possible_truncation, reason = "marks are 16 bits")]
fn reopen<C: Context>(
    context: &C,
    entry: FlowRef,
    judged: FlowWord,
    chosen: FlowWord,
    new_flow: &NewFlow,
    first: Sequences,
) -> FlowWord {
    // Probe, or the new flow would look as old as the one before for a moment.
    entry.touch(new_flow.now_tick);
    match entry.exchange(judged, chosen) {
        Ok(()) => {
            // Its answers come too late now, if there are any.
            let has_failed = new_flow.protocol == Protocol::Udp
                || matches!(judged.state(), State::SynSent | State::Failed);
            let failed = if has_failed && judged.backend() != chosen.backend() {
                judged.backend()
            } else {
                0
            };
            let is_refused = new_flow.protocol == Protocol::Udp && judged.state() == State::Failed;
            let first = if is_refused { entry.sequences() } else { first };
            // It stays in its table.
            let overflow = entry.marks() as u16 & marks::OVERFLOW;
            entry.begin(new_flow.flow_flags() | overflow, failed, first);
            entry.set_reply_path(new_flow.reply_path, || context.read(ethernet::SOURCE.start));
            outlier::ends(judged);
            room::moves(entry, judged, chosen);
            count(chosen);
            chosen
        }
        Err(faster) => faster,
    }
}

/// Counts a flow that was opened.
#[inline(always)]
fn count(chosen: FlowWord) {
    maps::count_backend(chosen.backend(), |stats| stats.flows += 1);
    outlier::opens(chosen);
}

#[inline(always)]
fn flow_value<P: Tables, C: Context>(
    context: &C,
    packet: &Packet<P::Addr>,
    new_flow: &NewFlow,
    chosen: FlowWord,
) -> Result<Flow, Verdict> {
    let vip = packet.destination;
    let first = conntrack::first(&packet::segment(context, packet));
    Ok(Flow {
        word: chosen.to_bits(),
        reply_path: new_flow.reply_path.to_bits(),
        seen_tick: new_flow.now_tick,
        vip: P::to_mapped(vip.addr),
        port: vip.port,
        mac: context.read(ethernet::SOURCE.start).ok_or(Verdict::Truncated)?,
        opened: outlier::now_micros(),
        failed: 0,
        flags: new_flow.flow_flags(),
        acknowledged: first.acknowledged,
        awaited: first.awaited,
    })
}

/// What came of an insert.
#[inline(always)]
fn resolve_insert<P: Tables>(
    packet: &Packet<P::Addr>,
    find: impl FnOnce(&FlowKey<P::Addr>) -> Option<FlowRef>,
    key: &FlowKey<P::Addr>,
    stored: Result<(), i32>,
    chosen: FlowWord,
) -> Result<FlowWord, Verdict> {
    match stored {
        Ok(()) => {
            count(chosen);
            Ok(chosen)
        }
        Err(errno) if errno == -EEXIST => match find(key) {
            Some(faster) if faster.vip::<P>() == packet.destination => Ok(faster.word()),
            Some(_) | None => Err(Verdict::FlowAmbiguous),
        },
        Err(_) => Err(Verdict::FlowInsertFailed),
    }
}

/// Whether the client's port talks to this backend's endpoint through another service: the backend would
/// see two connections with the same four numbers, and so would we in its replies.
#[inline(always)]
fn is_claimed<P: Tables>(
    client: Endpoint<P::Addr>,
    new_flow: &NewFlow,
    backend: &'static Backend,
) -> bool {
    let key = EndpointKey::new(maps::endpoint::<P>(backend), new_flow.protocol.number());
    let Some(reverse_nat) = P::reverse_nat(&key) else {
        return false;
    };
    let mut flow = FlowKey::new(client, new_flow.id, ProbeSlot::FIRST);
    for (index, entry) in (0u32..).zip(&reverse_nat.of) {
        if index >= reverse_nat.len {
            break;
        }
        let Some(other) = ServiceId::new(entry.service) else { continue };
        if other == new_flow.id {
            continue;
        }
        let (backend, generation) = (entry.backend, entry.generation);
        let mut claim = || flows::find_by_backend::<P>(&mut flow, other, backend, generation);
        if let Some(entry) = claim()
            // Behind one that was over there may be another that lives.
            && (!makes_way(entry, new_flow.now_tick) || claim().is_some())
        {
            return true;
        }
    }
    false
}

/// Closes a flow that is over: replies from its backend's endpoint would else be taken for its own.
#[inline(always)]
fn makes_way(entry: FlowRef, now_tick: u32) -> bool {
    let word = entry.word();
    let closed = word.with_state(State::Closed);
    if !entry.is_over(word, now_tick) || entry.exchange(word, closed).is_err() {
        return false;
    }
    outlier::moves(word, closed);
    room::moves(entry, word, closed);
    true
}
