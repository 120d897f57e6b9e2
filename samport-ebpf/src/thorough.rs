//! The way in, with everything looked at: for services that do more than draw at random, clients with one
//! port towards several addresses of a service, backends behind several services, backends that fail or
//! were taken down this instant, floods, and first fragments.
//!
//! In two programs, because the verifier takes them only one by one: the first looks for the flow, the
//! second opens it, and calls itself for another draw. What the first has found is handed over in maps.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::programs::TcContext;
use samport_common::conntrack::State;
use samport_common::flow::{EndpointKey, FlowKey, FlowWord, Lane};
use samport_common::layout::{Draft, event, place, program, unusual};
use samport_common::packet::Packet;
use samport_common::verdict::Verdict;
use samport_common::wire::protocol::Protocol;

use crate::affinity;
use crate::apply;
use crate::choice::{self, Opening, Trouble};
use crate::flood;
use crate::flows::{self, Place, Taken};
use crate::forward::{self, Next};
use crate::fragment;
use crate::maps::{self, Insert, Tables};
use crate::skb::Skb;
use crate::standing;
use crate::{Done, Outcome};

/// Looks for the packet's flow.
#[inline(always)]
pub fn run<P: Tables>(skb: &Skb) -> Done {
    let packet = match apply::parse_apart::<P>(skb) {
        Ok(packet) => packet,
        Err(aside) => return forward::step_aside(aside),
    };
    match Answer::from_bits(look_by_number::<P>(skb.pointer_to_context(), packet)) {
        Answer::Backend(id, _) => Done::Outcome(send::<P>(skb, packet, id)),
        Answer::Verdict(verdict) => forward::give_up(skb, verdict),
        Answer::GoOn => Done::GoOn(program::OPEN),
    }
}

/// Opens the flow, as the first program has found that it must be.
#[inline(always)]
pub fn open<P: Tables>(skb: &Skb) -> Done {
    // SAFETY: the program that called this one has kept such a packet.
    let Some(packet) = (unsafe { maps::kept::<Packet<P::Addr>>() }) else {
        return Verdict::RewriteFailed.into();
    };
    match Answer::from_bits(open_by_number::<P>(skb.pointer_to_context(), packet)) {
        Answer::Backend(id, is_flood) => {
            let outcome = send::<P>(skb, packet, id);
            Done::Outcome(if is_flood { outcome.renamed(Verdict::ForwardFlood) } else { outcome })
        }
        Answer::Verdict(verdict) => forward::give_up(skb, verdict),
        Answer::GoOn => {
            skb.draws_again();
            Done::GoOn(program::OPEN)
        }
    }
}

#[inline(always)]
fn send<P: Tables>(skb: &Skb, packet: &'static Packet<P::Addr>, backend: u32) -> Outcome {
    fragment::remember_forward::<P>(packet, backend);
    forward::send_apart::<P>(skb, packet, backend)
}

/// What a function of its own has come to, in 32 bits.
enum Answer {
    /// The packet goes to this backend; and whether its flow has just been put into the flood's table.
    Backend(u32, bool),
    /// The packet leaves by this verdict.
    Verdict(Verdict),
    /// It is for the next program, or the next draw.
    GoOn,
}

impl Answer {
    /// A backend's id, which is below 16,384, is in the lower bits.
    const BACKEND: u32 = 1 << 31;
    const FLOOD: u32 = 1 << 30;
    const GO_ON: u32 = 1 << 29;

    #[inline(always)]
    fn to_bits(&self) -> u32 {
        match self {
            Self::Backend(id, is_flood) => {
                Self::BACKEND | if *is_flood { Self::FLOOD } else { 0 } | (id & !Self::FLAGS)
            }
            Self::Verdict(verdict) => *verdict as u32,
            Self::GoOn => Self::GO_ON,
        }
    }

    const FLAGS: u32 = Self::BACKEND | Self::FLOOD | Self::GO_ON;

    #[inline(always)]
    fn from_bits(bits: u32) -> Self {
        if bits & Self::BACKEND != 0 {
            return Self::Backend(bits & !Self::FLAGS, bits & Self::FLOOD != 0);
        }
        match Verdict::from_number(bits) {
            Some(verdict) => Self::Verdict(verdict),
            None => Self::GoOn,
        }
    }
}

#[inline(never)]
fn look_by_number<P: Tables>(ctx: *mut __sk_buff, packet: &'static Packet<P::Addr>) -> u32 {
    let skb = Skb::new(TcContext::new(ctx));
    let answer = match look::<P>(&skb, packet) {
        Ok(Some(word)) => Answer::Backend(word.backend(), false),
        Ok(None) => Answer::GoOn,
        Err(verdict) => Answer::Verdict(verdict),
    };
    answer.to_bits()
}

/// The word of the packet's flow, or `None` if it is to be opened as the [`Draft`] says.
#[inline(always)]
fn look<P: Tables>(skb: &Skb, packet: &Packet<P::Addr>) -> Result<Option<FlowWord>, Verdict> {
    let opening = forward::classify::<P, _>(skb, skb.seat(), packet)?;
    let (client, vip) = (packet.source, packet.destination);
    let lanes = flows::look_thoroughly::<P>(client, vip, opening.id, opening.now_tick);
    let own = lanes.own;
    let draft = maps::draft().ok_or(Verdict::RewriteFailed)?;
    draft.taken = lanes.taken.to_bits();
    draft.place = lanes.place;
    draft.judged = 0;
    draft.unwanted = 0;
    match forward::follow(skb, own, packet.flags, &opening)? {
        Next::Follow(word) => {
            if lanes.place == place::FLOOD
                && let Some(entry) = own
                && matches!(entry.word().state(), State::Established)
            {
                flood::promote::<P>(&FlowKey::new(client, opening.id, Lane::FIRST), entry);
            }
            return Ok(Some(word));
        }
        Next::Open(word) => draft.judged = word.to_bits(),
        Next::Ask(word) => {
            maps::count_backend(word.backend(), |stats| stats.silent += 1);
            standing::suspect(word, opening.now_tick, event::SILENT);
            draft.judged = word.to_bits();
            draft.unwanted = word.backend();
        }
    }
    Ok(None)
}

#[inline(never)]
fn open_by_number<P: Tables>(ctx: *mut __sk_buff, packet: &'static Packet<P::Addr>) -> u32 {
    let skb = Skb::new(TcContext::new(ctx));
    let answer = match open_drafted::<P>(&skb, packet) {
        Ok((word, is_flood)) => Answer::Backend(word.backend(), is_flood),
        Err(Trouble::Verdict(verdict)) => Answer::Verdict(verdict),
        Err(Trouble::Crowded) => Answer::GoOn,
    };
    answer.to_bits()
}

/// The word of the flow that was opened, and whether it is in the flood's table.
#[inline(always)]
fn open_drafted<P: Tables>(
    skb: &Skb,
    packet: &Packet<P::Addr>,
) -> Result<(FlowWord, bool), Trouble> {
    let client = packet.source;
    let key = EndpointKey::new(packet.destination, packet.protocol.number());
    let service = P::service(&key).ok_or(Verdict::NotOurs)?;
    let opening = forward::opening_of(skb, skb.seat(), packet, service)?;
    let draft = maps::draft().ok_or(Verdict::RewriteFailed)?;
    let judged = FlowWord::from_bits(draft.judged);
    if draft.unwanted != 0 && opening.has_lost_patience() {
        // It is silent, but there is nobody else.
        return Ok((judged, false));
    }
    let taken = Taken::from_bits(draft.taken);
    let chosen = choice::draw_thoroughly::<P>(client, taken, &opening, draft.unwanted)?;
    // All that open a flow in unusual times come here. What the quick search has found to be a flood
    // counts twice, and is one.
    let is_flood = opening.protocol == Protocol::Tcp && flood::begins(opening.now_tick);
    if draft.judged == 0 && is_flood {
        let word = choice::store_flood::<P, _>(skb, packet, &opening, chosen)?;
        return Ok((word, true));
    }
    let place = place_of::<P>(packet, &opening, draft)?;
    let word = choice::store::<P, _>(skb, packet, place, &opening, chosen)?;
    if service.affinity_ticks != 0 {
        affinity::remember::<P>(client.addr, &opening, word);
    }
    Ok((word, false))
}

/// Where the flow is stored.
#[inline(always)]
fn place_of<P: Tables>(
    packet: &Packet<P::Addr>,
    opening: &Opening,
    draft: &Draft,
) -> Result<Place, Verdict> {
    let lane = Lane::from_number((draft.place & place::LANE) as u8);
    if draft.judged != 0 {
        let entry = flows::find_again::<P>(packet, opening.id, draft.place);
        // Without it, it has made room meanwhile.
        return Ok(entry.map_or(Place::Lane(lane, Insert::New), |entry| {
            Place::Entry(entry, FlowWord::from_bits(draft.judged))
        }));
    }
    if draft.place == place::NONE {
        return Err(Verdict::FlowAmbiguous);
    }
    if lane != Lane::FIRST {
        maps::set_unusual(unusual::LANES);
    }
    let how = if draft.place & place::REPLACE != 0 { Insert::Replace } else { Insert::New };
    Ok(Place::Lane(lane, how))
}
