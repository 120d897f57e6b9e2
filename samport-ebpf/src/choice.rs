//! Picking a backend for a new flow and storing it so that every CPU agrees.

use aya_ebpf::helpers::bpf_get_prandom_u32;
use samport_common::choose::{self, Balance};
use samport_common::conntrack::State;
use samport_common::failover;
use samport_common::flow::{
    ClientWay, Endpoint, EndpointKey, Flow, FlowKey, FlowWord, Lane, ServiceId, marks,
};
use samport_common::layout::{Backend, Life, Service, Slots, Via, service};
use samport_common::packet::Packet;
use samport_common::verdict::Verdict;
use samport_common::wire::ethernet;
use samport_common::wire::protocol::Protocol;
use samport_common::wire::tcp::Flags;

use crate::affinity;
use crate::context::Context;
use crate::flood;
use crate::flows::{self, Entry, Place, Taken};
use crate::maps::{self, Tables};
use crate::standing;

/// What the kernel answers when a key is there already (errno-base.h).
const EEXIST: i32 = 17;

/// A packet for a service: which one, seen where and when.
pub struct Opening {
    pub service: &'static Service,
    pub id: ServiceId,
    pub protocol: Protocol,
    pub flags: Flags,
    pub way: ClientWay,
    pub now_tick: u32,
    /// How many draws for this packet were in vain.
    pub attempt: u32,
}

impl Opening {
    /// How the service chooses.
    #[inline(always)]
    pub fn balance(&self) -> Balance {
        Balance::from_byte(self.service.balance)
    }

    /// Whether a backend that fails is exchanged for another.
    #[inline(always)]
    pub fn fails_over(&self) -> bool {
        self.service.flags & service::FAILOVER != 0
    }

    /// Whether draws have been in vain for so long that a suspect will do.
    #[inline(always)]
    pub fn has_lost_patience(&self) -> bool {
        self.attempt >= failover::PATIENCE
    }

    /// What a flow begins with that goes to this backend.
    #[inline(always)]
    fn word(&self, id: u32, backend: &'static Backend) -> FlowWord {
        FlowWord::new(id, backend.generation, State::first(self.protocol, self.flags))
    }

    #[inline(always)]
    fn flow_flags(&self) -> u16 {
        if self.fails_over() { marks::FAILOVER } else { 0 }
    }
}

/// Why a flow cannot be opened where it was tried.
pub enum Trouble {
    /// Final: the packet leaves with this verdict.
    Verdict(Verdict),
    /// Only the thorough search can tell, or the next of its draws.
    Crowded,
}

impl From<Verdict> for Trouble {
    fn from(verdict: Verdict) -> Self {
        Self::Verdict(verdict)
    }
}

/// Draws a backend at random: nearly always the first one will do. All other ways to choose are left to
/// the thorough search.
#[inline(always)]
pub fn draw(opening: &Opening) -> Result<FlowWord, Trouble> {
    let service = opening.service;
    let is_plain = matches!(opening.balance(), Balance::Random)
        && service.affinity_ticks == 0
        && service.flags & service::SHARED == 0;
    if !is_plain {
        return Err(Trouble::Crowded);
    }
    let (id, backend) = cast(service)?;
    if backend.shared != 0 || !may_get(id, backend, opening) {
        return Err(Trouble::Crowded);
    }
    Ok(opening.word(id, backend))
}

/// Draws a backend as the service wants it, one that has no living flow from this client's port and is
/// not `unwanted`. [`Trouble::Crowded`] asks for another draw.
#[inline(always)]
pub fn draw_thoroughly<P: Tables>(
    client: Endpoint<P::Addr>,
    taken: Taken,
    opening: &Opening,
    unwanted: u32,
) -> Result<FlowWord, Trouble> {
    let service = opening.service;
    let recalled = if service.affinity_ticks != 0 && opening.attempt == 0 {
        affinity::recall::<P>(client.addr, opening)
    } else {
        None
    };
    let (id, backend) = if let Some(same) = recalled {
        same
    } else {
        let with_port = !matches!(opening.balance(), Balance::SourceHash);
        pick(service, choose::hash::<P>(&client, with_port), opening.attempt)?
    };
    if id == unwanted
        || !may_get(id, backend, opening)
        || taken.contains(id)
        || (backend.shared != 0 && is_claimed::<P>(client, opening, backend))
    {
        return Err(Trouble::Crowded);
    }
    Ok(opening.word(id, backend))
}

/// Whether a backend may get packets that come in here. One that was taken down since this table was
/// written may not: the next table is on its way. A macvlan child is reached from its own interface only.
#[inline(always)]
fn may_get(id: u32, backend: &'static Backend, opening: &Opening) -> bool {
    Life::from_byte(backend.life).serves()
        && (!matches!(Via::from_byte(backend.via), Via::Child)
            || backend.ifindex == opening.way.ifindex())
        && (opening.has_lost_patience() || !standing::is_suspect(id, opening.now_tick))
}

/// The backend a service's way to choose leads to, for a client with this hash and so many draws in vain.
///
/// Through a number: the verifier follows what comes after once, and not for each way to choose.
#[inline(always)]
pub fn pick(
    service: &'static Service,
    hash: u32,
    attempt: u32,
) -> Result<(u32, &'static Backend), Verdict> {
    let number = pick_by_number(service, hash, attempt);
    if number & NONE != 0 {
        return Err(Verdict::from_number(number & !NONE).unwrap_or(Verdict::BackendUnset));
    }
    Ok((number, maps::backend(number).ok_or(Verdict::BackendUnset)?))
}

/// Bit of what [`pick_by_number`] returns if there is none: the rest is the verdict's number.
const NONE: u32 = 1 << 31;

#[inline(never)]
fn pick_by_number(service: &'static Service, hash: u32, attempt: u32) -> u32 {
    match pick_as_balanced(service, hash, attempt) {
        Ok(id) => id & !NONE,
        Err(verdict) => NONE | verdict as u32,
    }
}

#[inline(always)]
fn pick_as_balanced(service: &Service, hash: u32, attempt: u32) -> Result<u32, Verdict> {
    let len = Slots::from_bits(service.slots).len;
    let slot = match Balance::from_byte(service.balance) {
        Balance::Random => random_slot(len),
        Balance::LeastConn => {
            let one = at(service, random_slot(len).ok_or(no_backend(service))?)?;
            let other = at(service, random_slot(len).ok_or(no_backend(service))?)?;
            let (load, of_other) = (standing::load(one.0, one.1), standing::load(other.0, other.1));
            return Ok(if of_other.is_lighter_than(load) { other.0 } else { one.0 });
        }
        Balance::RoundRobin => next_turn(service.id, len),
        Balance::Maglev | Balance::SourceHash => choose::slot(choose::rehash(hash, attempt), len),
    };
    at(service, slot.ok_or(no_backend(service))?).map(|(id, _)| id)
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

/// Whether a service has another backend than this one that is worth a try.
#[inline(always)]
pub fn has_other(service: &Service, this: u32, now_tick: u32) -> bool {
    let len = Slots::from_bits(service.slots).len;
    // SAFETY: no arguments.
    let offset = unsafe { bpf_get_prandom_u32() } / LOOKS;
    for look in 0..LOOKS {
        // Evenly spread: of a table of so many slots each is met.
        let Some(slot) = choose::slot(look * (u32::MAX / LOOKS + 1) + offset, len) else {
            return false;
        };
        if let Ok((id, backend)) = at(service, slot)
            && id != this
            && Life::from_byte(backend.life).serves()
            && !standing::is_suspect(id, now_tick)
        {
            return true;
        }
    }
    false
}

/// The slot whose turn it is.
#[inline(always)]
#[allow(clippy::cast_possible_truncation, reason = "less than a number of 32 bits")]
fn next_turn(service: u16, len: u32) -> Option<u32> {
    maps::next_turn(service).checked_rem(u64::from(len)).map(|slot| slot as u32)
}

/// One throw of the die: a slot of the service's table, and the backend it names.
#[inline(always)]
pub fn cast(service: &Service) -> Result<(u32, &'static Backend), Verdict> {
    let slot = random_slot(Slots::from_bits(service.slots).len);
    at(service, slot.ok_or(no_backend(service))?)
}

/// The backend that a slot of the service's table names.
#[inline(always)]
pub fn at(service: &Service, slot: u32) -> Result<(u32, &'static Backend), Verdict> {
    let index = Slots::from_bits(service.slots).base.wrapping_add(slot);
    let id = maps::table_slot(index).ok_or(Verdict::BackendUnset)?;
    let backend = maps::backend(id).ok_or(Verdict::BackendUnset)?;
    match Life::from_byte(backend.life) {
        Life::Unset => Err(Verdict::BackendUnset),
        Life::Serving | Life::Draining | Life::Down => Ok((id, backend)),
    }
}

/// Stores the flow a packet opens, and says which backend it got: the one chosen, or that of a CPU
/// that was faster with the same packet.
#[inline(always)]
pub fn store<P: Tables, C: Context>(
    context: &C,
    packet: &Packet<P::Addr>,
    place: Place,
    opening: &Opening,
    chosen: FlowWord,
) -> Result<FlowWord, Verdict> {
    match place {
        Place::Entry(entry, judged) => Ok(reopen(context, entry, judged, chosen, opening)),
        Place::Lane(lane, how) => {
            let key = FlowKey::new(packet.source, opening.id, lane);
            let flow = new_flow::<P, C>(context, packet, opening, chosen)?;
            let stored = P::insert(&key, &flow, how);
            if stored.is_ok() {
                flows::count_insert();
            }
            settle::<P>(packet, flows::find::<P>, &key, stored, chosen)
        }
    }
}

/// [`store`] during a flood.
#[inline(always)]
pub fn store_flood<P: Tables, C: Context>(
    context: &C,
    packet: &Packet<P::Addr>,
    opening: &Opening,
    chosen: FlowWord,
) -> Result<FlowWord, Verdict> {
    let key = FlowKey::new(packet.source, opening.id, Lane::FIRST);
    let flow = new_flow::<P, C>(context, packet, opening, chosen)?;
    let stored = flood::store::<P>(&key, &flow);
    settle::<P>(packet, flows::find_flood::<P>, &key, stored, chosen)
}

/// Takes over an entry whose connection is over.
#[inline(always)]
fn reopen<C: Context>(
    context: &C,
    entry: Entry,
    judged: FlowWord,
    chosen: FlowWord,
    opening: &Opening,
) -> FlowWord {
    // First, or the new flow would look as old as the one before for a moment.
    entry.touch(opening.now_tick);
    match entry.exchange(judged, chosen) {
        Ok(()) => {
            let has_failed = matches!(judged.state(), State::SynSent | State::Failed);
            entry.begin(opening.flow_flags(), if has_failed { judged.backend() } else { 0 });
            entry.follow_to(opening.way, || context.read(ethernet::SOURCE.start));
            standing::ends(judged);
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
    standing::opens(chosen);
}

#[inline(always)]
fn new_flow<P: Tables, C: Context>(
    context: &C,
    packet: &Packet<P::Addr>,
    opening: &Opening,
    chosen: FlowWord,
) -> Result<Flow, Verdict> {
    let vip = packet.destination;
    Ok(Flow {
        word: chosen.to_bits(),
        way: opening.way.to_bits(),
        seen_tick: opening.now_tick,
        vip: P::widen(vip.addr),
        port: vip.port,
        mac: context.read(ethernet::SOURCE.start).ok_or(Verdict::Truncated)?,
        opened: standing::now_micros(),
        failed: 0,
        flags: opening.flow_flags(),
    })
}

/// What came of an insert.
#[inline(always)]
fn settle<P: Tables>(
    packet: &Packet<P::Addr>,
    find: impl FnOnce(&FlowKey<P::Addr>) -> Option<Entry>,
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
    opening: &Opening,
    backend: &'static Backend,
) -> bool {
    let key = EndpointKey::new(maps::endpoint::<P>(backend), opening.protocol.number());
    let Some(owners) = P::owners(&key) else {
        return false;
    };
    let mut flow = FlowKey::new(client, opening.id, Lane::FIRST);
    for (index, owner) in (0u32..).zip(&owners.of) {
        if index >= owners.len {
            break;
        }
        let Some(other) = ServiceId::new(owner.service) else { continue };
        if other == opening.id {
            continue;
        }
        let (backend, generation) = (owner.backend, owner.generation);
        let mut claim = || flows::find_by_backend::<P>(&mut flow, other, backend, generation);
        if let Some(entry) = claim()
            // Behind one that was over there may be another that lives.
            && (!makes_way(entry, opening.now_tick) || claim().is_some())
        {
            return true;
        }
    }
    false
}

/// Closes a flow that is over: replies from its backend's endpoint would else be taken for its own.
#[inline(always)]
fn makes_way(entry: Entry, now_tick: u32) -> bool {
    let word = entry.word();
    let closed = word.with_state(State::Closed);
    if !entry.is_over(word, now_tick) || entry.exchange(word, closed).is_err() {
        return false;
    }
    standing::moves(word, closed);
    true
}
