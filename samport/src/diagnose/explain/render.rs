//! The answer as people and scripts read it.

use std::net::{Ipv6Addr, SocketAddr};

use samport_common::conntrack::TICK_SHIFT;
use samport_common::layout::{BackendState, ForwardMode};
use samport_common::verdict::{Action, Verdict};
use samport_common::wire::protocol::Protocol;

use super::{
    Because, DialledService, Entry, EntryDevice, Explanation, Fate, Member, Question, Refused,
};
use crate::api::types::{self, Explained, SCHEMA};
use crate::model::State;

/// Backends of which each gets a line, at most; JSON has all.
const MOST_LINES: usize = 20;
/// Names of what is served instead, at most.
const MOST_SERVED: usize = 8;

/// A few lines for a terminal.
#[must_use]
pub fn lines(explanation: &Explanation) -> String {
    let mut steps = vec![entry(&explanation.facts.entry)];
    let mut below = Vec::new();
    match (&explanation.facts.found, &explanation.fate) {
        (None, Fate::Leaves(_) | Fate::Goes(..)) => {
            steps.extend([not_ours(explanation), own_stack(Action::Pass)]);
        }
        (found, Fate::Unseen) => {
            if found.is_none() && explanation.facts.entry == Entry::Call(true) {
                steps.push(not_ours(explanation));
            }
            steps.push(own_stack(Action::Pass));
        }
        (Some(found), fate) => {
            steps.push(format!("service {}", found.name));
            match fate {
                Fate::Leaves(verdict) => steps.extend(leaves(*verdict, explanation)),
                Fate::Goes(because, to) => {
                    if !matches!(explanation.facts.entry, Entry::Call(_)) {
                        steps.push("allowed".to_owned());
                    }
                    steps.push(why(because));
                    below = goes(explanation, found, to, &mut steps);
                }
                Fate::Unseen => {}
            }
        }
    }
    let mut text = vec![steps.join(" → ")];
    text.extend(below);
    text.extend(others(explanation));
    text.extend(ask_there(explanation));
    text.extend(explanation.notes.iter().map(|note| format!("  ({note})")));
    text.join("\n")
}

fn entry(entry: &Entry) -> String {
    match entry {
        Entry::Call(true) => "connect() on this machine (cgroup)".to_owned(),
        Entry::Call(false) => {
            "connect() on this machine, where samport does not serve (--no-local)".to_owned()
        }
        Entry::Device(EntryDevice { from_node: Some(node), name, hook, .. }) => {
            format!("{name} ingress ({hook}) → out of the tunnel, from node {}", node.name)
        }
        Entry::Device(door) => format!("{} ingress ({})", door.name, door.hook),
        Entry::Nowhere(Some(device)) => {
            format!("{device} ingress, where samport has no program")
        }
        Entry::Nowhere(None) => "no interface that samport serves".to_owned(),
    }
}

fn not_ours(explanation: &Explanation) -> String {
    let question = explanation.facts.question;
    let served = &explanation.facts.served;
    let some: Vec<_> = served.iter().take(MOST_SERVED).map(String::as_str).collect();
    let more = served.len() - some.len();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let served = if some.is_empty() {
        "nothing is".to_owned()
    } else {
        format!("{}{more} are", some.join(", "))
    };
    format!("not ours: {}/{} is not served ({served})", question.dialled, question.protocol.name())
}

fn leaves(verdict: Verdict, explanation: &Explanation) -> Vec<String> {
    let why = match verdict {
        Verdict::SpoofedSource => explanation.refused.as_ref().map_or_else(String::new, refused),
        Verdict::NotAllowed => {
            format!(
                "not allowed: {} is in none of its networks",
                explanation.facts.question.client.ip()
            )
        }
        Verdict::NotOurs => "not for clients from outside".to_owned(),
        Verdict::GoneReset | Verdict::BackendGone => {
            "existing flow → its backend is gone".to_owned()
        }
        Verdict::NoBackendReset
        | Verdict::NoBackendDrop
        | Verdict::NoBackend
        | Verdict::LocalNoBackend => "new → no backend".to_owned(),
        Verdict::FlowAmbiguous => {
            "new → no backend that this port does not talk to already".to_owned()
        }
        Verdict::OutboundAnswer => {
            let question = explanation.facts.question;
            format!(
                "an answer to what was begun here, from {} with {}",
                question.dialled, question.client
            )
        }
        other => other.name().to_owned(),
    };
    vec![why, format!("{} ({})", own_stack(verdict.action()), verdict.name())]
}

fn refused(refused: &Refused) -> String {
    let Refused { is_of_flow, device, why } = refused;
    let begin = if *is_of_flow { "existing flow" } else { "new" };
    format!("{begin} → source not valid on {device}: {why}")
}

fn own_stack(action: Action) -> String {
    match action {
        Action::Pass => "left to this machine's own stack".to_owned(),
        Action::Drop => "dropped".to_owned(),
        Action::Redirect => "answered with a reset".to_owned(),
    }
}

fn why(because: &Because) -> String {
    match because {
        Because::Flow(state, idle) => {
            format!("existing flow ({}, idle for {idle} s)", state.name())
        }
        Because::Affinity => "new, affinity".to_owned(),
        Because::Choice(balance) => format!("new, {}", balance.name()),
    }
}

/// The lines below the first, which ends with who it is or that it is one of several.
fn goes(
    explanation: &Explanation,
    found: &DialledService,
    to: &[(u32, f64)],
    steps: &mut Vec<String>,
) -> Vec<String> {
    let is_flow = matches!(explanation.fate, Fate::Goes(Because::Flow(..), _));
    let of = |id: &u32| found.members.get(id);
    if let [(id, _)] = to {
        let Some(member) = of(id) else { return Vec::new() };
        steps.push(format!("{}{}", member.name, state_note(member, is_flow)));
        return vec![format!("  → {}", way(explanation, member))];
    }
    steps.push("one of".to_owned());
    let line = |(id, share): &(u32, f64)| {
        let member = of(id)?;
        let next = if explanation.next == Some(*id) { ", its turn is next" } else { "" };
        Some(format!(
            "  {} ({:.1} %{next}){} → {}",
            member.name,
            share * 100.0,
            state_note(member, is_flow),
            way(explanation, member)
        ))
    };
    let mut lines: Vec<_> = to.iter().take(MOST_LINES).filter_map(line).collect();
    if to.len() > MOST_LINES {
        lines.push(format!("  and {} more", to.len() - MOST_LINES));
    }
    lines
}

/// How to ask the node that selects a container about the same packet, if one may get it.
fn ask_there(explanation: &Explanation) -> Option<String> {
    let Explanation { facts, fate: Fate::Goes(_, to), .. } = explanation else { return None };
    let (found, own) = (facts.found.as_ref()?, facts.node.as_ref()?);
    let is_call = matches!(facts.entry, Entry::Call(_));
    let is_node = |(id, _): &(u32, f64)| found.members.get(id).is_some_and(is_node);
    if is_call || !to.iter().any(is_node) {
        return None;
    }
    let Question { client, dialled, protocol } = facts.question;
    let udp = if protocol == Protocol::Udp { "/udp" } else { "" };
    Some(format!(
        "  (on a node that gets it: samport explain {client} {dialled}{udp} --from-node {own})"
    ))
}

fn is_node(member: &Member) -> bool {
    ForwardMode::from_byte(member.known.backend.forward_mode) == ForwardMode::Node
}

/// What is special about a backend that gets the packet.
fn state_note(member: &Member, is_flow: bool) -> String {
    let drains = BackendState::from_byte(member.known.backend.state) == BackendState::Draining;
    match (drains || member.state != State::Active.name(), is_flow) {
        (false, _) => String::new(),
        (true, true) => format!(" ({}: it keeps its flows)", member.state),
        (true, false) => format!(" ({}: there is no better one)", member.state),
    }
}

fn way(explanation: &Explanation, member: &Member) -> String {
    let destination = format!("destination {}", address(member));
    let device = member.device.as_deref().unwrap_or("a device that is gone");
    if matches!(explanation.facts.entry, Entry::Call(_)) {
        return format!(
            "{destination} → the socket is connected there, by this machine's own stack"
        );
    }
    let way = match ForwardMode::from_byte(member.known.backend.forward_mode) {
        ForwardMode::Peer => format!("redirect to {device}, netfilter skipped"),
        ForwardMode::Neighbour => {
            format!("redirect out of {device} by the neighbour table, netfilter skipped")
        }
        ForwardMode::Child => format!("to the macvlan child of {device}, netfilter skipped"),
        ForwardMode::Node => {
            let (name, ip) = (&member.name, address(member).ip());
            return format!(
                "unchanged, through the tunnel to node {name} ({ip}), which selects one of its containers"
            );
        }
        ForwardMode::Stack => "through this machine's own stack and its firewall".to_owned(),
    };
    format!("{destination} → {way}")
}

fn address(member: &Member) -> SocketAddr {
    let backend = &member.known.backend;
    let ip = Ipv6Addr::from(backend.addr).to_canonical();
    SocketAddr::new(ip, u16::from_be_bytes(backend.port))
}

/// Who might be expected to get it, and does not.
fn others(explanation: &Explanation) -> Option<String> {
    let passed = passed_over(explanation);
    let words: Vec<_> = passed.iter().map(|(name, why)| format!("{name} {why}")).collect();
    (!words.is_empty()).then(|| format!("  passed over: {}", words.join(", ")))
}

fn passed_over(explanation: &Explanation) -> Vec<(String, String)> {
    let (Some(found), fate) = (&explanation.facts.found, &explanation.fate) else {
        return Vec::new();
    };
    let to: &[(u32, f64)] = match fate {
        Fate::Goes(Because::Choice(balance), to) if !balance.is_by_hash() => to,
        // Of the others it has not been said that they may not.
        Fate::Leaves(Verdict::NoBackendReset | Verdict::NoBackendDrop | Verdict::NoBackend) => &[],
        Fate::Goes(..) | Fate::Leaves(_) | Fate::Unseen => return Vec::new(),
    };
    let now_tick = explanation.facts.now_tick;
    let in_vain = found
        .members
        .iter()
        .filter(|(id, _)| found.slots.contains(id) && to.iter().all(|(other, _)| other != *id));
    let client = super::fingerprint(&explanation.facts);
    let has_failed = |id: &u32, member: &Member| {
        found.flow.is_some_and(|flow| flow.backend == *id && flow.is_failed())
            || member.known.evidence.has_failed(client, now_tick)
    };
    let why = |id: &u32, member: &Member| {
        let seconds = u64::from(member.known.suspect_until.saturating_sub(now_tick)) << TICK_SHIFT;
        if found.taken.contains(id) {
            "has this port's connection to another address".to_owned()
        } else if seconds > 0 {
            format!("has failed lately, avoided for {} s", seconds / 1_000_000_000)
        } else if has_failed(id, member) {
            "has failed this client's connection".to_owned()
        } else {
            "cannot be reached from here".to_owned()
        }
    };
    let in_vain = in_vain.map(|(id, member)| (member.name.clone(), why(id, member)));
    in_vain.chain(found.others.iter().cloned()).collect()
}

/// The document for scripts.
#[must_use]
pub fn document(explanation: &Explanation) -> Explained {
    let facts = &explanation.facts;
    let found = facts.found.as_ref();
    let (fate, verdict) = match &explanation.fate {
        Fate::Unseen => ("unseen", None),
        Fate::Leaves(verdict) => {
            let fate = match verdict.action() {
                Action::Pass => "pass",
                Action::Drop => "drop",
                Action::Redirect => "reset",
            };
            (fate, Some(verdict.name().to_owned()))
        }
        Fate::Goes(..) => ("forward", None),
    };
    let (because, flow) = match &explanation.fate {
        Fate::Goes(Because::Flow(state, idle), _) => {
            let flow = types::OfFlow { state: state.name().to_owned(), idle_s: *idle };
            (Some("flow"), Some(flow))
        }
        Fate::Goes(Because::Affinity, _) => (Some("affinity"), None),
        Fate::Goes(Because::Choice(balance), _) => (Some(balance.name()), None),
        Fate::Unseen | Fate::Leaves(_) => (None, None),
    };
    let passed_over = passed_over(explanation).into_iter();
    let next = explanation.next.and_then(|id| found?.members.get(&id));
    Explained {
        schema: SCHEMA,
        instance: facts.instance.clone(),
        client: facts.question.client,
        dialled: facts.question.dialled,
        protocol: facts.question.protocol.name().to_owned(),
        entry: entry_document(&facts.entry),
        service: found.map(|found| found.name.clone()),
        allowed: found.map(|found| found.allowed),
        fate: fate.to_owned(),
        verdict,
        source_refused: explanation.refused.as_ref().map(|refused| refused.why.clone()),
        because: because.map(str::to_owned),
        flow,
        backends: backends(explanation),
        next: next.map(|member| member.name.clone()),
        passed_over: passed_over.map(|(name, why)| types::PassedOver { name, why }).collect(),
        notes: explanation.notes.clone(),
        served: facts.served.clone(),
    }
}

fn entry_document(entry: &Entry) -> types::Entry {
    let (kind, device, hook) = match entry {
        Entry::Call(served) => ("local", None, served.then(|| "cgroup".to_owned())),
        Entry::Device(door) => {
            let kind = match (&door.from_node, door.is_outer) {
                (Some(_), _) => "tunnel",
                (None, true) => "interface",
                (None, false) => "inside",
            };
            (kind, Some(door.name.clone()), Some(door.hook.clone()))
        }
        Entry::Nowhere(device) => ("none", device.clone(), None),
    };
    types::Entry { kind: kind.to_owned(), device, hook }
}

fn backends(explanation: &Explanation) -> Vec<types::Way> {
    let (Some(found), Fate::Goes(_, to)) = (&explanation.facts.found, &explanation.fate) else {
        return Vec::new();
    };
    let is_call = matches!(explanation.facts.entry, Entry::Call(_));
    let one = |(id, share): &(u32, f64)| {
        let member = found.members.get(id)?;
        let (via, verdict, skips_netfilter) =
            match ForwardMode::from_byte(member.known.backend.forward_mode) {
                _ if is_call => ("socket", Verdict::LocalForward, false),
                ForwardMode::Peer => ("peer", Verdict::ForwardPeer, true),
                ForwardMode::Neighbour => ("neigh", Verdict::ForwardNeighbour, true),
                ForwardMode::Child => ("macvlan", Verdict::ForwardChild, true),
                ForwardMode::Node => ("node", Verdict::ForwardNode, true),
                ForwardMode::Stack => ("stack", Verdict::ForwardStack, false),
            };
        Some(types::Way {
            name: member.name.clone(),
            address: address(member),
            state: member.state.clone(),
            share: *share,
            via: via.to_owned(),
            device: member.device.clone(),
            verdict: verdict.name().to_owned(),
            skips_netfilter,
        })
    };
    to.iter().filter_map(one).collect()
}
