//! What would become of a packet, and why: by the same functions the kernel's programs decide by. Pure; what
//! it depends on is gathered elsewhere.

mod render;
mod select;
mod source;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use samport_common::choose::{Balance, Load};
use samport_common::conntrack::{self, Decision, Openers, State, Timeouts};
use samport_common::failover::{self, Refusals};
use samport_common::flow::ReplyPath;
use samport_common::layout::{BackendState, ForwardMode, Scope, Service, service};
use samport_common::outbound;
use samport_common::seed::Seed;
use samport_common::sock_lb;
use samport_common::source::{Move, Side};
use samport_common::verdict::Verdict;
use samport_common::wire::protocol::Protocol;
use samport_common::wire::tcp::Flags;

use crate::dataplane::map_reader::Known;
use crate::model::encode::wide;
use crate::model::ports::Listen;
use select::{Selected, Selection};

pub use render::{document, lines};
pub use select::Fitness;
pub use source::{Refused, SourceDevice, SourceFacts};

/// Whose packet it is, and where it goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Question {
    /// The client.
    pub client: SocketAddr,
    /// What it dials.
    pub dialled: SocketAddr,
    /// By which protocol.
    pub protocol: Protocol,
}

/// Where a client's packets meet a program of samport.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Entry {
    /// When a process on this machine itself connects. Whether the hooks for that are there.
    Call(bool),
    /// At ingress of a device.
    Device(EntryDevice),
    /// At a device that has no program of samport, or nowhere at all.
    Nowhere(Option<String>),
}

/// A device with a program of samport at its ingress.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EntryDevice {
    /// Its index.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
    /// Whether clients come in by it from outside of this machine.
    pub is_outer: bool,
    /// Whether it is the host's end of a container's veth.
    pub is_container: bool,
    /// The kind of hooks there.
    pub hook: String,
    /// The node whose packets come out of the tunnel there, if it is one of them.
    pub from_node: Option<FromNode>,
}

/// Another node, as packets come from it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FromNode {
    /// Its name.
    pub name: String,
    /// Its index in the kernel's maps.
    pub index: u32,
}

impl EntryDevice {
    /// How replies get to clients whose packets come in here.
    fn reply_path(&self) -> ReplyPath {
        if let Some(node) = &self.from_node {
            ReplyPath::through_tunnel(node.index)
        } else if self.is_container && !self.is_outer {
            ReplyPath::into_container(self.ifindex)
        } else {
            ReplyPath::out_of(self.ifindex)
        }
    }
}

/// A backend of the service, as far as it matters.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// What the kernel knows.
    pub known: Known,
    /// Its name.
    pub name: String,
    /// The name of its state, as far as it was written down.
    pub state: String,
    /// The device its packets go to.
    pub device: Option<String>,
    /// Whether its answers find their way to outside clients, as far as that is known and matters.
    pub route_back: Option<bool>,
}

/// What is remembered of a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Remembered {
    /// Its backend's id.
    pub backend: u32,
    /// That backend's generation.
    pub generation: u32,
    /// Where it stands.
    pub state: State,
    /// Ticks since its last packet.
    pub idle_ticks: u32,
    /// How long ago it was opened, in units of 1.024 µs.
    pub age: u32,
    /// How its replies get to its client.
    pub reply_path: ReplyPath,
    /// Whether nothing has said that its client's address is its own.
    pub is_unproven: bool,
    /// The backends that have refused its datagrams.
    pub refusals: Refusals,
    /// The side its client is on.
    pub side: Side,
}

/// The service at the address that is dialled.
#[derive(Clone, PartialEq, Debug)]
pub struct DialledService {
    /// As the kernel has it.
    pub service: Service,
    /// Its port, as it was asked for.
    pub listen: Listen,
    /// What it is called.
    pub name: String,
    /// Whether the client is in one of its networks; true if there are none.
    pub allowed: bool,
    /// What is remembered of the flow.
    pub flow: Option<Remembered>,
    /// Whether the host or a container has begun something with the client, from the address and port that it dials.
    pub is_begun_here: bool,
    /// Backends that the client's port talks to through other addresses of the service.
    pub taken: Vec<u32>,
    /// The backend the client's address got last, its generation, and ticks since then.
    pub affinity: Option<(u32, u32, u32)>,
    /// Ids of backends, as they stand in its table.
    pub slots: Vec<u32>,
    /// The number of its next turn.
    pub turn: u64,
    /// Those backends, and the flow's.
    pub members: BTreeMap<u32, Member>,
    /// Names and states of its other backends.
    pub others: Vec<(String, String)>,
}

/// All that the answer depends on.
#[derive(Clone, PartialEq, Debug)]
pub struct Facts {
    /// The question.
    pub question: Question,
    /// The instance it is put to.
    pub instance: String,
    /// What other nodes call this one, if it has a cluster.
    pub node: Option<String>,
    /// How the packet comes in.
    pub entry: Entry,
    /// What its source is validated by.
    pub source: SourceFacts,
    /// The service.
    pub found: Option<DialledService>,
    /// What is served instead, in words.
    pub served: Vec<String>,
    /// The clock in ticks.
    pub now_tick: u32,
    /// When flows count as closed.
    pub timeouts: Timeouts,
    /// What its choices by hash are keyed by; `None` if it knows no seed.
    pub hash_seed: Option<Seed>,
}

/// Why a backend is the one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Because {
    /// The flow is there already: its state, and seconds since its last packet.
    Flow(State, u64),
    /// Its client was with it before.
    Affinity,
    /// It was chosen.
    Choice(Balance),
}

/// What would become of the packet.
#[derive(Clone, PartialEq, Debug)]
pub enum Fate {
    /// No program sees it.
    Unseen,
    /// It leaves by this verdict.
    Leaves(Verdict),
    /// It goes to one of these, each with its probability; where it is known whose turn is next, that is the
    /// first. With the verdict it leaves by.
    Goes(Because, Vec<(u32, f64)>),
}

/// The answer.
#[derive(Clone, PartialEq, Debug)]
pub struct Explanation {
    /// What it was found by.
    pub facts: Facts,
    /// What would become of the packet.
    pub fate: Fate,
    /// The backend whose turn is next, if backends take turns.
    pub next: Option<u32>,
    /// Why its source is refused, if that is its fate.
    pub refused: Option<Refused>,
    /// What else there is to know.
    pub notes: Vec<String>,
}

/// What there is to say in addition to the fate.
#[derive(Default)]
struct Remarks {
    refused: Option<Refused>,
    notes: Vec<String>,
}

/// Says what would become of a packet: of a flow's next one, or of one that opens it.
#[must_use]
pub fn explain(facts: Facts) -> Explanation {
    let mut remarks = Remarks::default();
    let (fate, next) = match (&facts.entry, &facts.found) {
        (Entry::Nowhere(_) | Entry::Call(false), _) | (Entry::Call(true), None) => {
            (Fate::Unseen, None)
        }
        (Entry::Device(_), None) => (Fate::Leaves(Verdict::NotOurs), None),
        (Entry::Call(true), Some(found)) => call(&facts, found),
        (Entry::Device(door), Some(found)) => packet(&facts, found, door, &mut remarks),
    };
    let Remarks { refused, mut notes } = remarks;
    notes.extend(no_way_back(&facts, &fate));
    Explanation { facts, fate, next, refused, notes }
}

/// Backends that would get the packet of an outside client, and cannot answer it.
fn no_way_back(facts: &Facts, fate: &Fate) -> Vec<String> {
    let (Entry::Device(door), Some(found), Fate::Goes(_, to)) = (&facts.entry, &facts.found, fate)
    else {
        return Vec::new();
    };
    let members = to.iter().filter_map(|(id, _)| found.members.get(id));
    let cut_off = members.filter(|member| door.is_outer && member.route_back == Some(false));
    cut_off
        .map(|member| {
            format!("{} has no route back to outside clients: they get no answer", member.name)
        })
        .collect()
}

/// A packet at the ingress of a device.
fn packet(
    facts: &Facts,
    found: &DialledService,
    door: &EntryDevice,
    remarks: &mut Remarks,
) -> (Fate, Option<u32>) {
    let leaves = |verdict| (Fate::Leaves(verdict), None);
    let is_served_here = matches!(Scope::from_byte(found.service.scope), Scope::External);
    if door.is_outer && door.from_node.is_none() && !is_served_here {
        remarks
            .notes
            .push("served only to clients on this machine and in its containers".to_owned());
        return leaves(Verdict::NotOurs);
    }
    if !found.allowed {
        return leaves(Verdict::NotAllowed);
    }
    let balance = Balance::from_byte(found.service.balance);
    let openers = if balance.is_by_hash() { Openers::Any } else { Openers::First };
    let protocol = facts.question.protocol;
    let known = found.flow.map(|flow| known(facts, found, &flow));
    let flags = match (&found.flow, known) {
        (Some(flow), Some(known)) if !known.over && flow.state != State::SynSent => Flags::ACK,
        _ => Flags::SYN,
    };
    if let (Some(flow), Some(known)) = (&found.flow, known)
        && known.over
    {
        remarks.notes.push(format!(
            "the flow this port had with {} is over",
            found.members.get(&flow.backend).map_or("a backend that is gone", |one| &one.name)
        ));
    }
    let decision = conntrack::decide(known, protocol, Flags(flags), openers);
    let mut moved = Move::Stay;
    if let (Decision::Stay, Some(flow)) = (decision, &found.flow) {
        moved = source::moves(facts, door, flow, Flags(flags));
        if moved == Move::Refuse {
            remarks.refused = Some(source::refused_by_flow(facts, door, flow));
            return leaves(Verdict::SpoofedSource);
        }
    }
    let mut unwanted = None;
    match (decision, &found.flow) {
        (Decision::Refuse(Verdict::BackendGone), _) => {
            let note = "a new connection from the same port would get another backend";
            remarks.notes.push(note.to_owned());
            return leaves(gone(protocol));
        }
        (Decision::Refuse(verdict), _) => return leaves(verdict),
        (Decision::Stay, Some(flow))
            if moved != Move::Reopen
                && found.service.flags & service::FAILOVER != 0
                && failover::is_silent(flow.state, Flags(Flags::SYN), flow.age) =>
        {
            // It keeps silent: to another, if there is one.
            unwanted = Some(flow.backend);
        }
        (Decision::Stay, Some(flow)) if moved != Move::Reopen => {
            remarks.notes.extend(source::note_of(facts, door, flow, moved));
            let idle = u64::from(flow.idle_ticks) << conntrack::TICK_SHIFT;
            let because = Because::Flow(flow.state, idle / 1_000_000_000);
            return (Fate::Goes(because, vec![(flow.backend, 1.0)]), None);
        }
        (Decision::Choose, Some(flow))
            if flow.state == State::Failed && flow.idle_ticks <= facts.timeouts.of(flow.state) =>
        {
            // Its refusal was held back: to another, if there is one.
            unwanted = Some(flow.backend);
        }
        (Decision::Stay | Decision::Choose, _) => {}
    }
    if unwanted.is_none() && answers_outbound(found, protocol, balance) {
        if protocol == Protocol::Tcp {
            let note =
                "a new connection from the same port, which begins with a SYN, would get a backend";
            remarks.notes.push(note.to_owned());
        }
        return leaves(Verdict::OutboundAnswer);
    }
    let (fate, next) = new_flow(facts, found, door, balance, unwanted);
    let is_new = matches!(fate, Fate::Goes(Because::Affinity | Because::Choice(_), _));
    if is_new && !source::is_valid(facts, door) {
        remarks.refused = Some(source::refused(facts, door));
        return leaves(Verdict::SpoofedSource);
    }
    (fate, next)
}

/// Whether the next packet answers what was begun here. A segment is taken for one of the connection that was.
const fn answers_outbound(found: &DialledService, protocol: Protocol, balance: Balance) -> bool {
    found.is_begun_here
        && outbound::is_of_concern(protocol, balance.is_by_hash())
        && outbound::may_be_answer(protocol, Flags(Flags::ACK))
}

fn known(facts: &Facts, found: &DialledService, flow: &Remembered) -> conntrack::Known {
    let backend_serves = found.members.get(&flow.backend).is_some_and(|member| {
        let backend = &member.known.backend;
        let state = BackendState::from_byte(backend.state);
        state.keeps(facts.question.protocol) && backend.generation == flow.generation
    });
    let timeout = facts.timeouts.of(flow.state);
    conntrack::Known {
        state: flow.state,
        over: flow.state.is_over(flow.idle_ticks, timeout),
        backend_serves,
    }
}

const fn gone(protocol: Protocol) -> Verdict {
    match protocol {
        Protocol::Tcp => Verdict::GoneReset,
        Protocol::Udp => Verdict::BackendGone,
    }
}

/// A packet that opens a flow.
fn new_flow(
    facts: &Facts,
    found: &DialledService,
    door: &EntryDevice,
    balance: Balance,
    unwanted: Option<u32>,
) -> (Fate, Option<u32>) {
    let client = fingerprint(facts);
    let fitness = |id: u32| {
        let Some(member) = found.members.get(&id) else { return Fitness::Unfit };
        let backend = &member.known.backend;
        let reachable = BackendState::from_byte(backend.state).serves()
            && (!matches!(ForwardMode::from_byte(backend.forward_mode), ForwardMode::Child)
                || backend.ifindex == door.ifindex);
        let is_unwanted = unwanted.is_some_and(|unwanted| {
            let has_failed = || member.known.evidence.has_failed(client, facts.now_tick);
            let refusals = found.flow.map_or_else(Refusals::default, |flow| flow.refusals);
            id == unwanted || refusals.contains(id) || has_failed()
        });
        if !reachable || is_unwanted || found.taken.contains(&id) {
            Fitness::Unfit
        } else {
            fitness_by_suspicion(facts, member)
        }
    };
    let mut first = 0;
    if found.service.affinity_ticks != 0
        && let Some(id) = recalled(found)
    {
        if fitness(id) == Fitness::Fit {
            return (Fate::Goes(Because::Affinity, vec![(id, 1.0)]), None);
        }
        first = 1;
    }
    let with_port = !matches!(balance, Balance::SourceHash);
    let hash =
        |seed: &Seed| crate::dataplane::map_reader::hash(seed, facts.question.client, with_port);
    let hash = facts.hash_seed.as_ref().map(hash);
    let selection = Selection { balance, slots: &found.slots, hash, first, turn: found.turn };
    match select::select(&selection, fitness, |id| load(found, id)) {
        Some(Selected { shares, next }) => (Fate::Goes(Because::Choice(balance), shares), next),
        // A silent backend is better than none.
        None if unwanted.is_some() => {
            let shares = unwanted.map(|id| (id, 1.0)).into_iter().collect();
            (Fate::Goes(Because::Flow(State::SynSent, 0), shares), None)
        }
        None if found.slots.is_empty() => (Fate::Leaves(nobody(facts, found)), None),
        None => (Fate::Leaves(Verdict::FlowAmbiguous), None),
    }
}

/// What tells the client from others as evidence.
fn fingerprint(facts: &Facts) -> u32 {
    if matches!(facts.entry, Entry::Call(_)) {
        return sock_lb::CLIENT;
    }
    failover::fingerprint(wide(facts.question.client.ip()))
}

impl Remembered {
    /// Whether its backend has not taken the connection.
    const fn is_failed(&self) -> bool {
        matches!(self.state, State::SynSent | State::Failed)
    }
}

/// How busy a backend is; one that is not known is avoided.
fn load(found: &DialledService, id: u32) -> Load {
    let unknown = Load { open: u32::MAX, weight: 1 };
    found.members.get(&id).map_or(unknown, |member| member.known.load)
}

fn fitness_by_suspicion(facts: &Facts, member: &Member) -> Fitness {
    if member.known.suspect_until > facts.now_tick { Fitness::Suspect } else { Fitness::Fit }
}

/// The backend that the client's address got not too long ago, if it takes new flows.
fn recalled(found: &DialledService) -> Option<u32> {
    let (id, generation, idle) = found.affinity?;
    let backend = &found.members.get(&id)?.known.backend;
    let serves = matches!(BackendState::from_byte(backend.state), BackendState::Serving);
    (idle <= found.service.affinity_ticks && serves && backend.generation == generation)
        .then_some(id)
}

const fn nobody(facts: &Facts, found: &DialledService) -> Verdict {
    if found.service.flags & service::DROP != 0 {
        return Verdict::NoBackendDrop;
    }
    match facts.question.protocol {
        Protocol::Tcp => Verdict::NoBackendReset,
        Protocol::Udp => Verdict::NoBackend,
    }
}

/// A process on this machine that connects. To a service that chooses by address the machine is one client,
/// and one that chooses by port chooses by socket here.
fn call(facts: &Facts, found: &DialledService) -> (Fate, Option<u32>) {
    let fails_over = found.service.flags & service::FAILOVER != 0;
    let fitness = |id: u32| match found.members.get(&id) {
        Some(member) if sock_lb::takes(&member.known.backend) => {
            let has_failed = member.known.evidence.has_failed(sock_lb::CLIENT, facts.now_tick);
            if fails_over && has_failed {
                Fitness::Suspect
            } else {
                fitness_by_suspicion(facts, member)
            }
        }
        _ => Fitness::Unfit,
    };
    if found.service.affinity_ticks != 0
        && let Some(id) = recalled(found).filter(|id| fitness(*id) == Fitness::Fit)
    {
        return (Fate::Goes(Because::Affinity, vec![(id, 1.0)]), None);
    }
    let balance = Balance::from_byte(found.service.balance);
    let hash = (balance == Balance::SourceHash).then_some(0);
    let selection = Selection { balance, slots: &found.slots, hash, first: 0, turn: found.turn };
    match select::select(&selection, fitness, |id| load(found, id)) {
        Some(Selected { shares, next }) => (Fate::Goes(Because::Choice(balance), shares), next),
        None => (Fate::Leaves(Verdict::LocalNoBackend), None),
    }
}

#[cfg(test)]
mod tests;
