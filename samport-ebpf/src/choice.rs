//! Picking a backend for a new flow and storing it so that every CPU agrees.

use aya_ebpf::helpers::bpf_get_prandom_u32;
use samport_common::choose;
use samport_common::conntrack::State;
use samport_common::flow::{
    ClientWay, Endpoint, EndpointKey, Flow, FlowKey, FlowWord, Lane, ServiceId,
};
use samport_common::layout::{Backend, Life, Service, Slots, Via};
use samport_common::packet::Packet;
use samport_common::verdict::Verdict;
use samport_common::wire::ethernet;
use samport_common::wire::protocol::Protocol;

use crate::context::Context;
use crate::flood;
use crate::flows::{self, Entry, Lanes, Place};
use crate::maps::{self, Tables};

/// What the kernel answers when a key is there already (errno-base.h).
const EEXIST: i32 = 17;

/// A packet for a service: which one, seen where and when.
pub struct Opening<'a> {
    pub service: &'a Service,
    pub id: ServiceId,
    pub protocol: Protocol,
    pub way: ClientWay,
    pub now_tick: u32,
}

/// Why a flow cannot be opened where it was tried.
pub enum Trouble {
    /// Final: the packet leaves with this verdict.
    Verdict(Verdict),
    /// The backend drawn is not free for this client: only the thorough search can tell.
    Crowded,
}

impl From<Verdict> for Trouble {
    fn from(verdict: Verdict) -> Self {
        Self::Verdict(verdict)
    }
}

/// Draws a backend: nearly always the first one will do.
#[inline(always)]
pub fn draw(opening: &Opening<'_>) -> Result<FlowWord, Trouble> {
    let (id, backend) = cast(opening.service)?;
    if backend.shared != 0 || !may_get(backend, opening) {
        return Err(Trouble::Crowded);
    }
    Ok(FlowWord::new(id, backend.generation, State::first(opening.protocol)))
}

/// Draws a backend that has no living flow from this client's port. [`Trouble::Crowded`] asks for
/// another draw.
#[inline(always)]
pub fn draw_thoroughly<P: Tables>(
    client: Endpoint<P::Addr>,
    lanes: &Lanes,
    opening: &Opening<'_>,
) -> Result<FlowWord, Trouble> {
    let (id, backend) = cast(opening.service)?;
    if !may_get(backend, opening)
        || lanes.taken.contains(id)
        || (backend.shared != 0 && is_claimed::<P>(client, opening, backend))
    {
        return Err(Trouble::Crowded);
    }
    Ok(FlowWord::new(id, backend.generation, State::first(opening.protocol)))
}

/// Whether a backend may get packets that come in here. One that was taken down since this table was
/// written may not: the next table is on its way. A macvlan child is reached from its own interface only.
#[inline(always)]
fn may_get(backend: &Backend, opening: &Opening<'_>) -> bool {
    Life::from_byte(backend.life).serves()
        && (!matches!(Via::from_byte(backend.via), Via::Child)
            || backend.ifindex == opening.way.ifindex())
}

/// One throw of the die: a slot of the service's table, and the backend it names.
#[inline(always)]
pub fn cast(service: &Service) -> Result<(u32, &'static Backend), Verdict> {
    // SAFETY: no arguments.
    let random = unsafe { bpf_get_prandom_u32() };
    let slot =
        choose::slot(random, Slots::from_bits(service.slots).len).ok_or(Verdict::NoBackend)?;
    at(service, slot)
}

/// The backend that a slot of the service's table names.
#[inline(always)]
pub fn at(service: &Service, slot: u32) -> Result<(u32, &'static Backend), Verdict> {
    let id = maps::table_slot(Slots::from_bits(service.slots).base.wrapping_add(slot))
        .ok_or(Verdict::BackendUnset)?;
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
    opening: &Opening<'_>,
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
    opening: &Opening<'_>,
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
    opening: &Opening<'_>,
) -> FlowWord {
    // First, or the new flow would look as old as the one before for a moment.
    entry.touch(opening.now_tick);
    match entry.exchange(judged, chosen) {
        Ok(()) => {
            entry.follow_to(opening.way, || context.read(ethernet::SOURCE.start));
            maps::count_backend(chosen.backend(), |stats| stats.flows += 1);
            chosen
        }
        Err(faster) => faster,
    }
}

#[inline(always)]
fn new_flow<P: Tables, C: Context>(
    context: &C,
    packet: &Packet<P::Addr>,
    opening: &Opening<'_>,
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
            maps::count_backend(chosen.backend(), |stats| stats.flows += 1);
            Ok(chosen)
        }
        Err(errno) if errno == -EEXIST => match find(key) {
            Some(faster) if faster.vip::<P>() == packet.destination => Ok(faster.word()),
            Some(_) | None => Err(Verdict::FlowAmbiguous),
        },
        Err(_) => Err(Verdict::FlowInsertFailed),
    }
}

/// Whether the client's port already talks to this backend's endpoint through another service: the
/// backend would see two connections with the same four numbers, and so would we in its replies.
#[inline(always)]
fn is_claimed<P: Tables>(
    client: Endpoint<P::Addr>,
    opening: &Opening<'_>,
    backend: &Backend,
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
        if other != opening.id
            && flows::find_by_backend::<P>(&mut flow, other, owner.backend, owner.generation)
                .is_some()
        {
            return true;
        }
    }
    false
}
