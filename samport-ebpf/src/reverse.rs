//! The way back: a backend's reply gets the address the client dialled.

use samport_common::conntrack::{self, Sender};
use samport_common::flow::{EndpointKey, ServiceId};
use samport_common::packet::Packet;
use samport_common::rewrite::{self, End};
use samport_common::verdict::Verdict;
use samport_common::wire::protocol;

use crate::Outcome;
use crate::apply;
use crate::flows::{self, Entry};
use crate::maps::{self, Tables};
use crate::skb::{self, Skb};

/// How a restored reply leaves.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Straight out of the interface its client came in by.
    Redirect,
    /// It is on its way out already.
    GoOn,
}

/// Restores a reply and sends it to the client.
#[inline(always)]
pub fn run<P: Tables>(skb: &Skb, exit: Exit) -> Outcome {
    let packet = match apply::parse::<P>(skb) {
        Ok(packet) => packet,
        Err(verdict) => return verdict.into(),
    };
    let Some((entry, backend)) = find::<P>(&packet) else {
        return Verdict::NotAReply.into();
    };
    let ifindex = entry.ifindex();
    if exit == Exit::Redirect && !skb.fits(ifindex) {
        return Verdict::ReplyTooBig.into();
    }
    let word = entry.word();
    entry.advance(word, conntrack::step(word.state(), packet.flags, Sender::Backend));
    entry.touch(flows::now_tick());
    let rewrite = rewrite::plan::<P>(&packet, End::Source, entry.vip::<P>());
    if apply::apply(skb, &rewrite).is_none() {
        return Verdict::RewriteFailed.into();
    }
    maps::count_backend(backend, |stats| {
        stats.packets_out += 1;
        stats.bytes_out += u64::from(skb.len());
    });
    match exit {
        Exit::Redirect => {
            Outcome { verdict: Verdict::Reply, redirect: skb::redirect_neigh(ifindex) }
        }
        Exit::GoOn => Verdict::ReplyStack.into(),
    }
}

/// The flow a packet from a backend belongs to. A container's other traffic is dismissed by its
/// source port in one look-up.
#[inline(always)]
fn find<P: Tables>(packet: &Packet<P::Addr>) -> Option<(Entry, u32)> {
    let owners = P::owners(&EndpointKey::new(packet.source, protocol::TCP))?;
    // A plain loop: the iterator's try_fold is not inlined, and the verifier does not follow a None
    // that is returned through memory (docs/verifier.md).
    for (index, owner) in (0u32..).zip(&owners.of) {
        if index >= owners.len {
            break;
        }
        let Some(service) = ServiceId::new(owner.service) else { continue };
        let (client, generation) = (packet.destination, owner.generation);
        let found = flows::find_by_backend::<P>(client, service, owner.backend, generation);
        if let Some(entry) = found {
            return Some((entry, owner.backend));
        }
    }
    None
}
