//! The way in: client to backend.

use samport_common::conntrack::{self, Decision};
use samport_common::flow::{EndpointKey, FlowWord, Lane, ServiceId};
use samport_common::layout::{Life, Via};
use samport_common::packet::Packet;
use samport_common::rewrite::{self, End};
use samport_common::verdict::Verdict;
use samport_common::wire::tcp::Flags;
use samport_common::wire::{ethernet, protocol};

use crate::Outcome;
use crate::apply;
use crate::choice::{self, Opening, Trouble};
use crate::flows::{self, Entry, First, Place};
use crate::maps::{self, Insert, Tables};
use crate::skb::{self, Skb};

/// Which search a packet gets.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Search {
    /// One look, one draw: enough for nearly every packet.
    Quick,
    /// All lanes, and the check that replies will not be ambiguous: for clients with one port
    /// towards several addresses of a service, backends behind several services, and a backend
    /// taken down this instant.
    Thorough,
}

/// Finds the packet's backend and sends it there. `None` asks for (another) thorough search.
#[inline(always)]
pub fn run<P: Tables>(skb: &Skb, search: Search) -> Option<Outcome> {
    let chosen = match search {
        Search::Quick => choose::<P>(skb),
        Search::Thorough => choose_thoroughly::<P>(skb),
    };
    match chosen {
        Ok((packet, word)) => Some(send::<P>(skb, &packet, word.backend())),
        Err(Trouble::Verdict(verdict)) => Some(verdict.into()),
        Err(Trouble::Crowded) => None,
    }
}

/// The backend the packet belongs to: its flow's, or a new one if it opens a flow.
#[inline(always)]
fn choose<P: Tables>(skb: &Skb) -> Result<(Packet<P::Addr>, FlowWord), Trouble> {
    let (packet, opening) = classify::<P>(skb)?;
    let own = match flows::look::<P>(packet.source, packet.destination, opening.id) {
        First::Own(entry) => Some(entry),
        First::Free => None,
        First::Crowded => return Err(Trouble::Crowded),
    };
    let judged = match follow(own, packet.flags, &opening)? {
        Next::Follow(word) => return Ok((packet, word)),
        Next::Open(judged) => judged,
    };
    let chosen = choice::draw(&opening)?;
    let place = match judged {
        Some((entry, word)) => Place::Entry(entry, word),
        None => Place::Lane(Lane::FIRST, Insert::New),
    };
    Ok((packet, choice::store::<P>(&packet, place, &opening, chosen)?))
}

/// [`choose`] with all lanes looked at.
#[inline(always)]
fn choose_thoroughly<P: Tables>(skb: &Skb) -> Result<(Packet<P::Addr>, FlowWord), Trouble> {
    let (packet, opening) = classify::<P>(skb)?;
    let (client, vip) = (packet.source, packet.destination);
    let lanes = flows::look_thoroughly::<P>(client, vip, opening.id, opening.now_tick);
    let judged = match follow(lanes.own, packet.flags, &opening)? {
        Next::Follow(word) => return Ok((packet, word)),
        Next::Open(judged) => judged,
    };
    let chosen = choice::draw_thoroughly::<P>(client, &lanes, &opening)?;
    let place = match (judged, lanes.free) {
        (Some((entry, word)), _) => Place::Entry(entry, word),
        (None, Some(lane)) => {
            if lane != Lane::FIRST {
                maps::set_lanes_used();
            }
            Place::Lane(lane, if lanes.free_holds_old { Insert::Replace } else { Insert::New })
        }
        (None, None) => return Err(Verdict::FlowAmbiguous.into()),
    };
    Ok((packet, choice::store::<P>(&packet, place, &opening, chosen)?))
}

/// Parses the packet and finds the service it is for.
#[inline(always)]
fn classify<P: Tables>(skb: &Skb) -> Result<(Packet<P::Addr>, Opening<'static>), Verdict> {
    let packet = apply::parse::<P>(skb)?;
    if !maps::is_listened_on(packet.destination.port) {
        return Err(Verdict::NotOurs);
    }
    let key = EndpointKey::new(packet.destination, protocol::TCP);
    let service = P::service(&key).ok_or(Verdict::NotOurs)?;
    if !skb.is_for_host() {
        return Err(Verdict::OtherHost);
    }
    let id = ServiceId::new(service.id).ok_or(Verdict::BackendUnset)?;
    let now_tick = flows::now_tick();
    Ok((packet, Opening { service, id, ifindex: skb.ifindex(), now_tick }))
}

/// What a packet does with its flow.
enum Next {
    /// Goes on in it, to this backend.
    Follow(FlowWord),
    /// Opens it; over this entry, if what stands there is still what was judged to be over.
    Open(Option<(Entry, FlowWord)>),
}

/// Advances the packet's flow, or says that it opens one.
#[inline(always)]
fn follow(own: Option<Entry>, flags: Flags, opening: &Opening<'_>) -> Result<Next, Verdict> {
    let Some(entry) = own else {
        return match conntrack::decide(None, flags) {
            Decision::Refuse(verdict) => Err(verdict),
            Decision::Choose | Decision::Stay(_) => Ok(Next::Open(None)),
        };
    };
    let word = entry.word();
    let known = (word.state(), entry.idle_ticks(opening.now_tick), serves(word));
    match conntrack::decide(Some(known), flags) {
        Decision::Refuse(verdict) => Err(verdict),
        Decision::Choose => Ok(Next::Open(Some((entry, word)))),
        Decision::Stay(state) => {
            entry.advance(word, state);
            entry.touch(opening.now_tick);
            // Replies follow the client when it comes in by another interface.
            entry.follow_to(opening.ifindex);
            Ok(Next::Follow(word))
        }
    }
}

/// Whether the backend a flow was opened to still takes its packets.
#[inline(always)]
fn serves(word: FlowWord) -> bool {
    maps::backend(word.backend()).is_some_and(|backend| {
        matches!(Life::from_byte(backend.life), Life::Serving)
            && backend.generation == word.generation()
    })
}

/// Rewrites the packet for a backend and sends it off.
#[inline(always)]
fn send<P: Tables>(skb: &Skb, packet: &Packet<P::Addr>, id: u32) -> Outcome {
    let Some(backend) = maps::backend(id) else {
        return Verdict::BackendUnset.into();
    };
    let plan = rewrite::plan::<P>(packet, End::Destination, maps::endpoint::<P>(backend));
    if apply::apply(skb, &plan).is_none() {
        return Verdict::RewriteFailed.into();
    }
    maps::count_backend(id, |stats| {
        stats.packets_in += 1;
        stats.bytes_in += u64::from(skb.len());
    });
    match Via::from_byte(backend.via) {
        // The helper leaves the MAC alone, and a bridge inside of a container would drop it.
        Via::Peer => match skb.write(ethernet::DESTINATION.start, backend.mac) {
            Some(()) => Outcome {
                verdict: Verdict::ForwardPeer,
                redirect: skb::redirect_peer(backend.ifindex),
            },
            None => Verdict::RewriteFailed.into(),
        },
        Via::Neighbour => Outcome {
            verdict: Verdict::ForwardNeighbour,
            redirect: skb::redirect_neigh(backend.ifindex),
        },
        Via::Stack => Verdict::ForwardStack.into(),
    }
}
