//! The way in, with everything looked at: for services that do more than select at random, clients with one
//! port towards several addresses of a service, backends behind several services, backends that fail or
//! were taken down this instant, floods, and first fragments.
//!
//! In two programs, because the verifier takes them only one by one: the first looks for the flow, the
//! second opens it, and calls itself for another selection. What the first has found is handed over in maps.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::programs::TcContext;
use samport_common::conntrack::State;
use samport_common::failover::{MAKES_WAY_AFTER, Refusals};
use samport_common::flow::{FlowKey, FlowWord, ProbeSlot, ServiceId};
use samport_common::layout::{FlowDraft, flow_hint, flow_slot, program};
use samport_common::packet::Packet;
use samport_common::verdict::Verdict;
use samport_common::wire::protocol::Protocol;

use crate::affinity;
use crate::choice::{self, NewFlow, OpenError};
use crate::context::Context as _;
use crate::flood;
use crate::flows::{self, FlowSlot, Taken};
use crate::forward::{self, ExistingFlow, Lookup};
use crate::fragment;
use crate::maps::{self, Insert, Tables};
use crate::nat;
use crate::outlier;
use crate::room;
use crate::skb::Skb;
use crate::{Next, Outcome};

/// Looks for the packet's flow.
#[inline(always)]
pub fn run<P: Tables>(skb: &Skb) -> Next {
    let packet = match nat::parse_subprog::<P>(skb) {
        Ok(packet) => packet,
        Err(special) => return forward::dispatch_special(special),
    };
    match SlowResult::from_bits(lookup_packed::<P>(skb.pointer_to_context(), packet)) {
        SlowResult::Backend(id, _) => Next::Outcome(send::<P>(skb, packet, id)),
        SlowResult::Verdict(verdict) => forward::give_up(skb, verdict),
        SlowResult::TailCall => {
            if maps::scratch::flow_draft().is_some_and(|draft| draft.unwanted != 0) {
                take_note_of_failure::<P>(skb, packet);
            } else if forward::answers_outbound::<P, _>(skb, packet) {
                // Not where the flow was looked for: Linux 6.1 has no stack for it there.
                return Verdict::OutboundAnswer.into();
            }
            Next::TailCall(program::OPEN)
        }
    }
}

/// Takes note of the backend that has failed the packet's flow, which is why it is opened. Not where that was found,
/// where there is no stack left.
#[inline(always)]
fn take_note_of_failure<P: Tables>(skb: &Skb, packet: &'static Packet<P::Addr>) {
    if let Some(draft) = maps::scratch::flow_draft()
        // A refused datagram was counted when it was refused, and is no evidence.
        && packet.protocol == Protocol::Tcp
    {
        outlier::fails::<P>(skb, packet, FlowWord::from_bits(draft.judged), flows::now_tick());
    }
}

/// Opens the flow, as the first program has found that it must be.
#[inline(always)]
pub fn open<P: Tables>(skb: &Skb) -> Next {
    // SAFETY: the program that called this one has kept such a packet.
    let Some(packet) = (unsafe { maps::scratch::get::<Packet<P::Addr>>() }) else {
        return Verdict::RewriteFailed.into();
    };
    match SlowResult::from_bits(open_packed::<P>(skb.pointer_to_context(), packet)) {
        SlowResult::Backend(id, stored) => {
            let outcome = send::<P>(skb, packet, id);
            Next::Outcome(match stored {
                Stored::AsUsual => outcome,
                Stored::Flood => outcome.with_verdict(Verdict::ForwardFlood),
                Stored::Overflow => outcome.with_verdict(Verdict::ForwardOverflow),
            })
        }
        SlowResult::Verdict(Verdict::FlowAmbiguous) if skb.attempt() <= MAKES_WAY_AFTER => {
            Next::TailCall(program::MAKE_WAY)
        }
        SlowResult::Verdict(verdict) => forward::give_up(skb, verdict),
        SlowResult::TailCall => {
            let is_in_the_way = maps::scratch::flow_draft().is_some_and(|draft| draft.taken != 0);
            if is_in_the_way && skb.attempt() == MAKES_WAY_AFTER {
                return Next::TailCall(program::MAKE_WAY);
            }
            skb.count_attempt();
            Next::TailCall(program::OPEN)
        }
    }
}

/// Closes the flows that the client's port has with other addresses of the service and that nothing has proven to
/// be the client's: whoever knows the port can have opened them.
#[inline(always)]
pub fn make_way<P: Tables>(skb: &Skb) -> Next {
    skb.set_attempts(MAKES_WAY_AFTER + 1);
    // SAFETY: as in `open`.
    let Some(packet) = (unsafe { maps::scratch::get::<Packet<P::Addr>>() }) else {
        return Verdict::RewriteFailed.into();
    };
    let dialled = forward::service_of::<P>(skb.hook(), packet);
    let Some(service) = dialled.and_then(|dialled| ServiceId::new(dialled.service.id)) else {
        return Verdict::NotOurs.into();
    };
    flows::close_unproven::<P>(packet, service);
    Next::TailCall(program::SLOW_PATH)
}

#[inline(always)]
fn send<P: Tables>(skb: &Skb, packet: &'static Packet<P::Addr>, backend: u32) -> Outcome {
    fragment::remember_forward::<P>(skb, packet, backend);
    forward::send_subprog::<P>(skb, packet, backend)
}

/// Where a flow was stored.
#[derive(Clone, Copy)]
enum Stored {
    /// In the table of flows, if it was stored at all.
    AsUsual,
    /// Beside it, because of a flood.
    Flood,
    /// Beside it, because it has no room.
    Overflow,
}

/// What a function of its own has come to, in 32 bits.
enum SlowResult {
    /// The packet goes to this backend; and where its flow has just been stored.
    Backend(u32, Stored),
    /// The packet leaves by this verdict.
    Verdict(Verdict),
    /// It is for the next program, or the next selection.
    TailCall,
}

impl SlowResult {
    /// A backend's id, which is below 16,384, is in the lower bits.
    const BACKEND: u32 = 1 << 31;
    const FLOOD: u32 = 1 << 30;
    const TAIL_CALL: u32 = 1 << 29;
    const OVERFLOW: u32 = 1 << 28;

    #[inline(always)]
    fn to_bits(&self) -> u32 {
        match self {
            Self::Backend(id, stored) => {
                let stored = match stored {
                    Stored::AsUsual => 0,
                    Stored::Flood => Self::FLOOD,
                    Stored::Overflow => Self::OVERFLOW,
                };
                Self::BACKEND | stored | (id & !Self::FLAGS)
            }
            Self::Verdict(verdict) => *verdict as u32,
            Self::TailCall => Self::TAIL_CALL,
        }
    }

    const FLAGS: u32 = Self::BACKEND | Self::FLOOD | Self::TAIL_CALL | Self::OVERFLOW;

    #[inline(always)]
    fn from_bits(bits: u32) -> Self {
        if bits & Self::BACKEND != 0 {
            let stored = match bits & (Self::FLOOD | Self::OVERFLOW) {
                0 => Stored::AsUsual,
                Self::FLOOD => Stored::Flood,
                _ => Stored::Overflow,
            };
            return Self::Backend(bits & !Self::FLAGS, stored);
        }
        if bits & Self::TAIL_CALL != 0 {
            return Self::TailCall;
        }
        // A number that is no verdict's is a bug, and must not lead to another selection.
        Self::Verdict(Verdict::from_number(bits).unwrap_or(Verdict::RewriteFailed))
    }
}

#[inline(never)]
fn lookup_packed<P: Tables>(ctx: *mut __sk_buff, packet: &'static Packet<P::Addr>) -> u32 {
    let skb = Skb::new(TcContext::new(ctx));
    let answer = match lookup::<P>(&skb, packet) {
        Ok(Some(word)) => SlowResult::Backend(word.backend(), Stored::AsUsual),
        Ok(None) => SlowResult::TailCall,
        Err(verdict) => SlowResult::Verdict(verdict),
    };
    answer.to_bits()
}

/// The word of the packet's flow, or `None` if it is to be opened as the [`FlowDraft`] says.
#[inline(always)]
fn lookup<P: Tables>(skb: &Skb, packet: &Packet<P::Addr>) -> Result<Option<FlowWord>, Verdict> {
    let new_flow = forward::classify::<P, _>(skb, skb.hook(), packet)?;
    let (client, vip) = (packet.source, packet.destination);
    let slots = flows::lookup_all_slots::<P>(client, vip, new_flow.id, new_flow.now_tick);
    let own = slots.own;
    let draft = maps::scratch::flow_draft().ok_or(Verdict::RewriteFailed)?;
    draft.taken = slots.taken.to_bits();
    draft.slot = slots.slot;
    draft.judged = 0;
    draft.unwanted = 0;
    draft.refusals = 0;
    match forward::use_flow::<P, _>(skb, packet, own, &new_flow)? {
        Lookup::Forward(ExistingFlow { word, .. }) => {
            if slots.slot == flow_slot::OVERFLOW
                && let Some(entry) = own
                && !entry.word().state().is_unproven()
            {
                let key = FlowKey::new(client, new_flow.id, ProbeSlot::FIRST);
                room::promote::<P>(&key, new_flow.id, entry);
            }
            return Ok(Some(word));
        }
        Lookup::Create(word) => draft.judged = word.to_bits(),
        Lookup::Retry(word) => {
            draft.judged = word.to_bits();
            draft.unwanted = word.backend();
            if packet.protocol == Protocol::Udp
                && let Some(entry) = own
            {
                draft.refusals = Refusals::of(entry.sequences()).0;
            }
        }
    }
    Ok(None)
}

#[inline(never)]
fn open_packed<P: Tables>(ctx: *mut __sk_buff, packet: &'static Packet<P::Addr>) -> u32 {
    let skb = Skb::new(TcContext::new(ctx));
    let answer = match open_drafted::<P>(&skb, packet) {
        Ok((word, stored)) => SlowResult::Backend(word.backend(), stored),
        Err(OpenError::Verdict(verdict)) => SlowResult::Verdict(verdict),
        Err(OpenError::SlowPath) => SlowResult::TailCall,
    };
    answer.to_bits()
}

/// The word of the flow that was opened, and where it was stored.
#[inline(always)]
fn open_drafted<P: Tables>(
    skb: &Skb,
    packet: &Packet<P::Addr>,
) -> Result<(FlowWord, Stored), OpenError> {
    let client = packet.source;
    let hook = skb.hook();
    let dialled = forward::service_of::<P>(hook, packet).ok_or(Verdict::NotOurs)?;
    let service = dialled.service;
    let mut new_flow = forward::new_flow_of(skb, hook, packet, &dialled)?;
    let draft = maps::scratch::flow_draft().ok_or(Verdict::RewriteFailed)?;
    let judged = FlowWord::from_bits(draft.judged);
    let mut unwanted = draft.unwanted;
    if unwanted != 0 && new_flow.is_out_of_retries() {
        // There is nobody else.
        if !matches!(judged.state(), State::Failed) {
            return Ok((judged, Stored::AsUsual));
        }
        unwanted = 0;
    }
    let taken = Taken::from_bits(draft.taken);
    let refusals = Refusals(draft.refusals);
    let chosen = choice::select_slow::<P>(client, taken, &new_flow, unwanted, refusals)?;
    // All that open a flow in unusual times come here. What the quick search has found to be a flood
    // counts twice, and is one.
    let is_flood = new_flow.protocol == Protocol::Tcp && flood::begins(new_flow.now_tick);
    new_flow.validate(skb.source_marks::<P>(packet))?;
    let mut stored = Stored::AsUsual;
    if draft.judged == 0 && is_flood {
        stored = Stored::Flood;
    } else if draft.judged == 0 && !room::has_room::<P>(new_flow.id) {
        stored = Stored::Overflow;
    }
    let mut result = Err(Verdict::FlowInsertFailed);
    if matches!(stored, Stored::AsUsual) {
        let slot = flow_slot_of::<P>(packet, &new_flow, draft)?;
        result = choice::store::<P, _>(skb, packet, slot, &new_flow, chosen);
    }
    if matches!(result, Err(Verdict::FlowInsertFailed)) {
        if matches!(stored, Stored::AsUsual) {
            stored = Stored::Overflow;
        }
        result = choice::store_beside::<P, _>(skb, packet, &new_flow, chosen);
    }
    let word = result?;
    // A connection that failed may be anybody's, with this client's address: only the connection moves, and the
    // client when its backend is avoided by all.
    if service.affinity_ticks != 0 && draft.unwanted == 0 {
        let backend = (word.backend(), word.generation());
        affinity::remember::<P>(client.addr, service, backend, new_flow.now_tick);
    }
    Ok((word, stored))
}

/// Where the flow is stored.
#[inline(always)]
fn flow_slot_of<P: Tables>(
    packet: &Packet<P::Addr>,
    new_flow: &NewFlow,
    draft: &FlowDraft,
) -> Result<FlowSlot, Verdict> {
    let probe_slot = ProbeSlot::from_number((draft.slot & flow_slot::PROBE_SLOT) as u8);
    if draft.judged != 0 {
        let entry = flows::find_again::<P>(packet, new_flow.id, draft.slot);
        // Without it, it has made room meanwhile.
        return Ok(entry.map_or(FlowSlot::New(probe_slot, Insert::New), |entry| {
            FlowSlot::Existing(entry, FlowWord::from_bits(draft.judged))
        }));
    }
    if draft.slot == flow_slot::NONE {
        return Err(Verdict::FlowAmbiguous);
    }
    if probe_slot != ProbeSlot::FIRST {
        maps::set_flow_hint(flow_hint::PROBE_SLOTS);
    }
    let how = if draft.slot & flow_slot::REPLACE != 0 { Insert::Replace } else { Insert::New };
    Ok(FlowSlot::New(probe_slot, how))
}
