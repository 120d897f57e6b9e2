//! Picking a backend for a new flow and storing it so that every CPU agrees.

use aya_ebpf::helpers::bpf_get_prandom_u32;
use samport_common::choose;
use samport_common::conntrack::State;
use samport_common::flow::{Endpoint, EndpointKey, Flow, FlowKey, FlowWord, Lane, ServiceId};
use samport_common::layout::{Backend, Life, Service};
use samport_common::packet::Packet;
use samport_common::verdict::Verdict;
use samport_common::wire::protocol;

use crate::flows::{self, Entry, Lanes, Place};
use crate::maps::{self, Insert, Tables};

/// What the kernel answers when a key is there already (errno-base.h).
const EEXIST: i32 = 17;

/// A new flow: which service, seen where and when.
pub struct Opening<'a> {
    pub service: &'a Service,
    pub id: ServiceId,
    pub ifindex: u32,
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
    if backend.shared != 0 || !matches!(Life::from_byte(backend.life), Life::Serving) {
        return Err(Trouble::Crowded);
    }
    Ok(FlowWord::new(id, backend.generation, State::SynSent))
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
    // Taken down since this table was written? The next table is on its way.
    let serves = matches!(Life::from_byte(backend.life), Life::Serving);
    if !serves
        || lanes.taken.contains(&id)
        || (backend.shared != 0 && is_claimed::<P>(client, opening.id, backend))
    {
        return Err(Trouble::Crowded);
    }
    Ok(FlowWord::new(id, backend.generation, State::SynSent))
}

/// One throw of the die: a slot of the service's table, and the backend it names.
#[inline(always)]
pub fn cast(service: &Service) -> Result<(u32, &'static Backend), Verdict> {
    // SAFETY: no arguments.
    let random = unsafe { bpf_get_prandom_u32() };
    let slot = choose::slot(random, service.table_len).ok_or(Verdict::NoBackend)?;
    let id =
        maps::table_slot(service.table_base.wrapping_add(slot)).ok_or(Verdict::BackendUnset)?;
    let backend = maps::backend(id).ok_or(Verdict::BackendUnset)?;
    match Life::from_byte(backend.life) {
        Life::Unset => Err(Verdict::BackendUnset),
        Life::Serving | Life::Down => Ok((id, backend)),
    }
}

/// Stores the flow a SYN opens, and says which backend it got: the one chosen, or that of a CPU
/// that was faster with the same SYN.
#[inline(always)]
pub fn store<P: Tables>(
    packet: &Packet<P::Addr>,
    place: Place,
    opening: &Opening<'_>,
    chosen: FlowWord,
) -> Result<FlowWord, Verdict> {
    match place {
        Place::Entry(entry, judged) => Ok(reopen(entry, judged, chosen, opening)),
        Place::Lane(lane, how) => insert::<P>(packet, lane, how, opening, chosen),
    }
}

/// Takes over an entry whose connection is over.
#[inline(always)]
fn reopen(entry: Entry, judged: FlowWord, chosen: FlowWord, opening: &Opening<'_>) -> FlowWord {
    // First, or the new flow would look as old as the one before for a moment.
    entry.touch(opening.now_tick);
    match entry.exchange(judged, chosen) {
        Ok(()) => {
            entry.follow_to(opening.ifindex);
            maps::count_backend(chosen.backend(), |stats| stats.flows += 1);
            chosen
        }
        Err(faster) => faster,
    }
}

/// Makes a new entry.
#[inline(always)]
fn insert<P: Tables>(
    packet: &Packet<P::Addr>,
    lane: Lane,
    how: Insert,
    opening: &Opening<'_>,
    chosen: FlowWord,
) -> Result<FlowWord, Verdict> {
    let vip = packet.destination;
    let flow = Flow {
        word: chosen.to_bits(),
        ifindex: opening.ifindex,
        seen_tick: opening.now_tick,
        vip: P::widen(vip.addr),
        port: vip.port,
        pad: [0; 6],
    };
    let key = FlowKey::new(packet.source, opening.id, lane);
    match P::insert(&key, &flow, how) {
        Ok(()) => {
            maps::count_backend(chosen.backend(), |stats| stats.flows += 1);
            Ok(chosen)
        }
        Err(errno) if errno == -EEXIST => match flows::find::<P>(&key) {
            Some(faster) if faster.vip::<P>() == vip => Ok(faster.word()),
            Some(_) | None => Err(Verdict::FlowAmbiguous),
        },
        Err(_) => Err(Verdict::FlowInsertFailed),
    }
}

/// Whether the client's port already talks to this backend's endpoint through another service: the
/// backend would see two connections with the same four numbers, and so would we in its replies.
#[inline(always)]
fn is_claimed<P: Tables>(client: Endpoint<P::Addr>, service: ServiceId, backend: &Backend) -> bool {
    let endpoint = maps::endpoint::<P>(backend);
    let Some(owners) = P::owners(&EndpointKey::new(endpoint, protocol::TCP)) else {
        return false;
    };
    for (index, owner) in (0u32..).zip(&owners.of) {
        if index >= owners.len {
            break;
        }
        let Some(other) = ServiceId::new(owner.service) else { continue };
        if other != service
            && flows::find_by_backend::<P>(client, other, owner.backend, owner.generation).is_some()
        {
            return true;
        }
    }
    false
}
