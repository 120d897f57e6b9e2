//! What the answer depends on: the pinned maps of the instance, its record, this machine's devices and routes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Result;
use samport_common::conntrack::{Seconds, Sequences, Timeouts};
use samport_common::failover::{MICRO_SHIFT, Refusals};
use samport_common::flow::{Flow, FlowWord, ReplyPath, ServiceId, marks};
use samport_common::layout::{BackendState, Service, Slots, service};
use samport_common::sock_lb;
use samport_common::source::{Known, NextHop, Route, Side};
use samport_common::wire::protocol::Protocol;

use super::{Said, ambiguous};
use crate::api::types::Limits;
use crate::dataplane::map_reader::Answers;
use crate::dataplane::pins;
use crate::diagnose::explain::{
    DialledService, Entry, EntryDevice, Facts, FromNode, Member, Question, Remembered,
    SourceDevice, SourceFacts,
};
use crate::model::encode::wide;
use crate::model::ports::Listen;
use crate::net::netlink::{Device, Devices, Netlink};
use crate::net::port_conflicts;
use crate::net::reverse_path;
use crate::net::sock_diag::Sockets;
use crate::plan::Role;
use crate::system::exit::{Exit, coded};
use crate::system::instance::{self, BackendRecord, FilterRecord, Record};
use crate::system::resyncs::Resyncs;

/// All there is to know for an answer, given what was said of how the packet comes in.
pub(super) async fn collect(
    question: Question,
    said: Option<Said<'_>>,
    names: &[String],
) -> Result<Facts> {
    let (netlink, _changes) = Netlink::connect(&Resyncs::default())?;
    let devices = netlink.devices().await?;
    let client = question.client.ip();
    let ingress = match said {
        Some(Said::Device(name)) => Ingress::Device(named(name, &devices)?),
        Some(Said::Node(name)) => Ingress::Node(name),
        None if is_own(client, &devices) => Ingress::Call,
        None => {
            let leads = netlink.route(client).await?;
            let bridge = leads.filter(|leads| leads.is_on_link);
            let bridge = bridge.and_then(|leads| devices.get(&leads.device));
            let port = match bridge.filter(|device| device.is_bridge) {
                Some(bridge) => netlink.place_of(client, bridge, &devices).await?,
                None => None,
            };
            Ingress::Route {
                route: leads.map(|leads| leads.device),
                veth: port.map(|port| port.ifindex),
            }
        }
    };
    let is_call = ingress == Ingress::Call;
    let dialled = if is_call { destination(question.dialled) } else { question.dialled };
    let stand_in = if is_call { stand_in(dialled, question.protocol) } else { None };

    let mut all = Vec::new();
    for name in names {
        let answers = Answers::open(name)?;
        let record = instance::read_record(name).unwrap_or_default();
        let (mut at, mut service) = (dialled, answers.service(dialled, question.protocol)?);
        if let (None, Some(other)) = (service, stand_in) {
            (at, service) = (other, answers.service(other, question.protocol)?);
        }
        let entry = entry(question, name, &record, &answers, &devices, ingress)?;
        if has_own_table(&entry, service.as_ref()) {
            service = answers.local_service(dialled, question.protocol)?;
        }
        all.push(Instance { name, answers, record, at, service, entry });
    }
    let one = choose(all)?;
    let known = Gathering { question, at: one.at, devices: &devices, netlink: &netlink };
    let found = match one.service {
        Some(service) => known.found(&one, service)?,
        None => None,
    };
    let source = match (&one.entry, &found) {
        (Entry::Device(door), Some(found)) => known.source(&one.answers, door, found.flow).await?,
        _ => SourceFacts::default(),
    };
    let served = if found.is_some() { Vec::new() } else { known.served(&one)? };
    let timeouts = timeouts(&one.record.limits);
    let hash_seed = one.answers.hash_seed()?;
    Ok(Facts {
        question,
        instance: one.name.to_owned(),
        node: one.record.node,
        entry: one.entry,
        source,
        found,
        served,
        now_tick: one.answers.now_tick(),
        timeouts,
        hash_seed,
    })
}

/// How the packet comes in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ingress<'a> {
    /// A socket of this machine.
    Call,
    /// This device, because that was said.
    Device(u32),
    /// The tunnel, from the node of this name.
    Node(&'a str),
    /// By the device that the route to the client leads to, and first by its veth if that is a bridge.
    Route { route: Option<u32>, veth: Option<u32> },
}

struct Instance<'a> {
    name: &'a str,
    answers: Answers,
    record: Record,
    /// What is dialled, as it is looked up.
    at: SocketAddr,
    service: Option<Service>,
    entry: Entry,
}

/// The instance that gets the packet: the only one, the only one that serves what is dialled, or of those the
/// only one that sees it.
fn choose(mut all: Vec<Instance<'_>>) -> Result<Instance<'_>> {
    let sees = |one: &Instance| !matches!(one.entry, Entry::Nowhere(_) | Entry::Call(false));
    for may in [|one: &Instance| one.service.is_some(), sees] {
        if all.len() > 1 && all.iter().any(may) {
            all.retain(may);
        }
    }
    if all.len() > 1 && all.iter().any(|one| one.service.is_some()) {
        let names: Vec<_> = all.iter().map(|one| one.name.to_owned()).collect();
        return Err(ambiguous(&names));
    }
    all.into_iter().next().ok_or_else(|| ambiguous(&[]))
}

/// Whether packets that come in there are for backends of this machine only.
fn has_own_table(entry: &Entry, service: Option<&Service>) -> bool {
    match entry {
        Entry::Device(EntryDevice { from_node: Some(_), .. }) => true,
        Entry::Device(door) => {
            !door.is_outer && service.is_some_and(|one| one.flags & service::NODES != 0)
        }
        Entry::Call(_) | Entry::Nowhere(_) => false,
    }
}

/// When flows count as closed. Who knows nothing of limits had none but these.
fn timeouts(limits: &Limits) -> Timeouts {
    if *limits == Limits::default() {
        return Timeouts::new(&Seconds::DEFAULT);
    }
    let of = |seconds: u64| u32::try_from(seconds).unwrap_or(u32::MAX);
    Timeouts::new(&Seconds {
        syn: of(limits.tcp_syn_seconds),
        established: of(limits.tcp_seconds),
        finished: of(limits.tcp_fin_seconds),
        reset: of(limits.tcp_rst_seconds),
        udp_unanswered: of(limits.udp_unanswered_seconds),
        udp: of(limits.udp_seconds),
    })
}

/// Whether an address is this machine's own.
fn is_own(addr: IpAddr, devices: &Devices) -> bool {
    addr.is_loopback() || devices.values().any(|device| device.addresses.contains(&addr))
}

/// "Any" as a destination is loopback to the kernel.
fn destination(dialled: SocketAddr) -> SocketAddr {
    let ip = match dialled.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        other => other,
    };
    SocketAddr::new(ip, dialled.port())
}

/// What is looked up for an address without a service or a listener.
fn stand_in(dialled: SocketAddr, protocol: Protocol) -> Option<SocketAddr> {
    let IpAddr::V4(_) = dialled.ip() else { return None };
    sock_lb::stand_in(&wide(dialled.ip()))?;
    let other = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), dialled.port());
    (!port_conflicts::is_listened_on(dialled, protocol)).then_some(other)
}

/// The index of a device.
fn named(name: &str, devices: &Devices) -> Result<u32> {
    if let Some(device) = devices.values().find(|device| device.name == name) {
        return Ok(device.ifindex);
    }
    let known: Vec<_> = devices.values().map(|device| device.name.as_str()).collect();
    let known = known.join(", ");
    Err(coded(Exit::Failure, format!("there is no device {name:?}; this machine has {known}")))
}

/// How a client's packets come in, unless that is given: by its own veth if it is a backend, by the device
/// the route to it leads to, or else by the one with the address it dials.
fn entry(
    question: Question,
    name: &str,
    record: &Record,
    answers: &Answers,
    devices: &Devices,
    ingress: Ingress<'_>,
) -> Result<Entry> {
    let doors = Doors { attached: ingresses(name, record), record, devices };
    let ifindex = match ingress {
        Ingress::Call => return Ok(Entry::Call(record.local)),
        Ingress::Device(ifindex) => Some(ifindex),
        Ingress::Node(name) => return doors.door_of_node(name, answers),
        Ingress::Route { route, veth } => {
            let own = answers.source_devices(question.client.ip())?.unwrap_or_default();
            if let Some(door) = own.iter().find_map(|ifindex| doors.door(ifindex)) {
                return Ok(Entry::Device(door));
            }
            // A container's veths have programs in all its networks, whichever it is served in.
            if let Some(door) = veth.and_then(|veth| doors.door(veth)) {
                return Ok(Entry::Device(door));
            }
            let holds = |one: &&Device| one.addresses.contains(&question.dialled.ip());
            let held = || devices.values().find(holds).map(|device| device.ifindex);
            route.or_else(held)
        }
    };
    let Some(ifindex) = ifindex else { return Ok(Entry::Nowhere(None)) };
    let nowhere = || Entry::Nowhere(devices.get(&ifindex).map(|device| device.name.clone()));
    Ok(doors.door(ifindex).map_or_else(nowhere, Entry::Device))
}

/// Devices with a program at their ingress.
struct Doors<'a> {
    /// Which of them are containers' veths.
    attached: BTreeMap<u32, bool>,
    record: &'a Record,
    devices: &'a Devices,
}

impl Doors<'_> {
    fn door(&self, ifindex: u32) -> Option<EntryDevice> {
        let (device, is_container) = (self.devices.get(&ifindex)?, *self.attached.get(&ifindex)?);
        let is_outer = self.record.interfaces.contains(&device.name);
        let hook = match self.record.hook.split_once(", ") {
            // XDP is in front of the interfaces only.
            Some((tc, _)) if !is_outer => tc.to_owned(),
            Some((tc, xdp)) => format!("{xdp}, then {tc}"),
            None => self.record.hook.clone(),
        };
        let (name, from_node) = (device.name.clone(), None);
        Some(EntryDevice { ifindex, name, is_outer, is_container, hook, from_node })
    }

    /// The device that packets of a node come in by.
    fn door_of_node(&self, name: &str, answers: &Answers) -> Result<Entry> {
        let Some(node) = self.record.nodes.iter().find(|node| node.name == name) else {
            let known: Vec<_> = self.record.nodes.iter().map(|node| node.name.as_str()).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            let message = format!("there is no node {name:?} in the cluster; it has {known}");
            return Err(coded(Exit::Failure, message));
        };
        let Some((index, tunnel)) = answers.node(node.address.ip())? else {
            return Ok(Entry::Nowhere(None));
        };
        let Some(door) = self.door(tunnel.ifindex) else {
            let device = self.devices.get(&tunnel.ifindex).map(|device| device.name.clone());
            return Ok(Entry::Nowhere(device));
        };
        let from_node = Some(FromNode { name: name.to_owned(), index });
        Ok(Entry::Device(EntryDevice { from_node, ..door }))
    }
}

/// Indices of the devices at whose ingress a program is that knows clients, and whether they are
/// containers' veths.
fn ingresses(name: &str, record: &Record) -> BTreeMap<u32, bool> {
    let links = [("link_forward_", false), ("link_inside_", false), ("link_reverse_", true)];
    let pins = pins::pins_of(name).into_iter().filter_map(|pin| {
        links.iter().find_map(|(link, is_container)| {
            Some((pin.strip_prefix(link)?.parse().ok()?, *is_container))
        })
    });
    let knows = |filter: &&FilterRecord| match filter.role {
        Some(role) => matches!(role, Role::Forward | Role::Inside | Role::Reverse),
        None => !filter.egress,
    };
    let filters = record.filters.iter().filter(knows);
    let filters = filters.map(|filter| (filter.ifindex, filter.role == Some(Role::Reverse)));
    pins.chain(filters).collect()
}

struct Gathering<'a> {
    question: Question,
    /// What is dialled, as it is looked up.
    at: SocketAddr,
    devices: &'a Devices,
    netlink: &'a Netlink,
}

impl Gathering<'_> {
    /// What the programs validate the packet's source by.
    async fn source(
        &self,
        answers: &Answers,
        door: &EntryDevice,
        flow: Option<Remembered>,
    ) -> Result<SourceFacts> {
        let client = self.question.client.ip();
        let device = answers.device(door.ifindex)?.unwrap_or_default();
        let belongs_to = answers.source_devices(client)?;
        let route = |from| self.route_back(answers, door.ifindex, device.lookup_ifindex, from);
        let routes = [route(Some(self.at.ip())).await?, route(None).await?];
        let via = routes.into_iter().filter_map(|route| match route {
            Route::Via(ifindex, _) => Some(ifindex),
            Route::None | Route::Unknown => None,
        });
        let master = (device.master != 0).then_some(device.master);
        let before = flow.map(|flow| flow.reply_path.ifindex());
        let mut devices = BTreeMap::new();
        for ifindex in belongs_to.unwrap_or_default().iter().chain(via).chain(before).chain(master)
        {
            if let Some(device) = self.devices.get(&ifindex) {
                let info = answers.device(ifindex)?;
                devices.insert(ifindex, SourceDevice { name: device.name.clone(), info });
            }
        }
        let is_broadcast = !is_own(client, self.devices)
            && self.devices.values().any(|one| one.broadcasts.contains(&client));
        Ok(SourceFacts { device, belongs_to, is_broadcast, routes, devices })
    }

    /// The route back to the client, looked up for a device as the programs do.
    async fn route_back(
        &self,
        answers: &Answers,
        ifindex: u32,
        lookup_ifindex: u32,
        from: Option<IpAddr>,
    ) -> Result<Route> {
        let client = self.question.client.ip();
        let Some(device) = self.devices.get(&lookup_ifindex) else { return Ok(Route::Unknown) };
        if !reverse_path::forwards(client.is_ipv6(), &device.name) {
            return Ok(Route::Unknown);
        }
        let vrf = if device.is_vrf { Some(device.ifindex) } else { device.master };
        let (route, gateway) = self.netlink.route_from(client, from, vrf).await?;
        Ok(match (route, gateway) {
            (Route::Via(via, _), Some(gateway)) => {
                let known = Known::of(answers.source_devices(gateway)?.as_ref(), ifindex);
                Route::Via(via, NextHop::Gateway(known))
            }
            (route, _) => route,
        })
    }

    /// What is served, in words: of the same family, the same port first.
    fn served(&self, one: &Instance) -> Result<Vec<String>> {
        let served = one.answers.served(self.at.is_ipv6())?;
        let mut served: Vec<_> = served.into_iter().collect();
        served.sort_by_key(|(at, protocol)| (at.port() != self.at.port(), *at, *protocol));
        let words = |(at, protocol): (SocketAddr, Protocol)| format!("{at}/{}", protocol.name());
        Ok(served.into_iter().map(words).collect())
    }

    fn found(&self, one: &Instance, service: Service) -> Result<Option<DialledService>> {
        let (answers, record) = (&one.answers, &one.record);
        let Some(id) = ServiceId::new(service.id) else { return Ok(None) };
        let client = self.question.client;
        let restricted = service.flags & service::RESTRICTED != 0;
        let allowed = !restricted || answers.allows(id, client.ip())?;
        let (flow, taken) = self.flows(answers, id)?;
        let is_begun_here = match &one.entry {
            Entry::Device(door) if door.from_node.is_none() => self.is_begun_here(one)?,
            Entry::Device(_) | Entry::Call(_) | Entry::Nowhere(_) => false,
        };
        // The machine is one client.
        let owner = match (&one.entry, self.at) {
            (Entry::Call(_), SocketAddr::V4(_)) => Ipv4Addr::LOCALHOST.into(),
            (Entry::Call(_), SocketAddr::V6(_)) => Ipv4Addr::LOCALHOST.to_ipv6_mapped().into(),
            (Entry::Device(_) | Entry::Nowhere(_), _) => client.ip(),
        };
        let affinity = answers.affinity(owner, id)?.map(|one| {
            (one.backend, one.generation, answers.now_tick().saturating_sub(one.seen_tick))
        });
        let slots = if Slots::from_bits(service.slots).len == 0 {
            Vec::new()
        } else {
            answers.slots(&service)?
        };
        let ids: BTreeSet<u32> = slots
            .iter()
            .copied()
            .chain(flow.map(|flow| flow.backend))
            .chain(affinity.map(|(backend, ..)| backend))
            .collect();
        let listen = self.listen(record);
        let mut members = BTreeMap::new();
        for id in ids {
            let known = answers.backend(id)?;
            if BackendState::from_byte(known.backend.state) != BackendState::Unset {
                members.insert(id, self.member(id, known, record));
            }
        }
        let others = others(record, listen, self.at.is_ipv6(), |id| slots.contains(&id));
        let turn = answers.turn(id)?;
        let called = record.services.iter().find(|one| one.listen == listen);
        let name = match called.and_then(|one| one.name.as_ref()) {
            Some(name) => format!("{name} {listen}"),
            None => listen.to_string(),
        };
        Ok(Some(DialledService {
            service,
            listen,
            name,
            allowed,
            flow,
            is_begun_here,
            taken,
            affinity,
            slots,
            turn,
            members,
            others,
        }))
    }

    /// Whether the host or a container has begun something with the client from what it dials: as the programs have seen,
    /// or because a socket of this machine is connected so.
    fn is_begun_here(&self, one: &Instance) -> Result<bool> {
        let Question { client, protocol, .. } = self.question;
        let timeouts = timeouts(&one.record.limits);
        let now_tick = one.answers.now_tick();
        let seen = one.answers.outbound(self.at, client, protocol)?;
        if seen.is_some_and(|seen| seen.is_alive(now_tick, timeouts.of(seen.state(protocol)))) {
            return Ok(true);
        }
        // A kernel that does not tell of sockets.
        let connected = Sockets::open().and_then(|mut sockets| sockets.connected_to(client));
        Ok(connected.unwrap_or_default().iter().any(|socket| socket.is_at(self.at, protocol)))
    }

    /// The service's port as it was asked for: one of the address alone is before that of all.
    fn listen(&self, record: &Record) -> Listen {
        let everywhere =
            Listen { port: self.at.port(), protocol: self.question.protocol, addr: None };
        let here = everywhere.at(self.at.ip());
        if record.ports.contains(&here) { here } else { everywhere }
    }

    /// What is remembered of the flow, and which backends its client's port talks to otherwise.
    fn flows(&self, answers: &Answers, id: ServiceId) -> Result<(Option<Remembered>, Vec<u32>)> {
        let now = answers.now_tick();
        let vip = (wide(self.at.ip()), self.at.port().to_be_bytes());
        let (mut own, mut taken) = (None, Vec::new());
        for flow in answers.flows(self.question.client, id)? {
            let remembered = self.remembered(&flow, now, answers.now_ns);
            if (flow.vip, flow.port) == vip {
                own = own.or(Some(remembered));
            } else if remembered.state.is_open() {
                taken.push(remembered.backend);
            }
        }
        Ok((own, taken))
    }

    fn member(
        &self,
        id: u32,
        known: crate::dataplane::map_reader::Known,
        record: &Record,
    ) -> Member {
        let written = record.backends.iter().find(|one| one.id == id);
        let name = written.map_or_else(|| format!("backend {id}"), |one| one.name.clone());
        let state = written.map_or_else(|| "unknown".to_owned(), |one| one.state.clone());
        let device = self.devices.get(&known.backend.ifindex).map(|device| device.name.clone());
        let route_back = written.and_then(|one| one.route_back);
        Member { known, name, state, device, route_back }
    }

    #[allow(clippy::cast_possible_truncation, reason = "it may wrap: only differences count")]
    fn remembered(&self, flow: &Flow, now_tick: u32, now_ns: u64) -> Remembered {
        let Flow { acknowledged, awaited, .. } = *flow;
        let refusals = match self.question.protocol {
            Protocol::Udp => Refusals::of(Sequences { acknowledged, awaited }),
            Protocol::Tcp => Refusals::default(),
        };
        let word = FlowWord::from_bits(flow.word);
        Remembered {
            backend: word.backend(),
            generation: word.generation(),
            state: word.state(),
            idle_ticks: now_tick.saturating_sub(flow.seen_tick),
            age: ((now_ns >> MICRO_SHIFT) as u32).wrapping_sub(flow.opened),
            reply_path: ReplyPath::from_bits(flow.reply_path),
            is_unproven: flow.flags & marks::UNPROVEN != 0,
            refusals,
            side: if flow.flags & marks::INTERNAL != 0 { Side::Internal } else { Side::External },
        }
    }
}

/// The service's backends that are not in its table: names and states.
fn others(
    record: &Record,
    listen: Listen,
    v6: bool,
    in_table: impl Fn(u32) -> bool,
) -> Vec<(String, String)> {
    let is_of = |one: &&BackendRecord| {
        let of_family = one.endpoint.parse().is_ok_and(|at: SocketAddr| at.is_ipv6() == v6);
        one.port == listen && of_family && !in_table(one.id)
    };
    let why = |one: &BackendRecord| match (one.state.as_str(), one.weight) {
        ("active", 0) => "has weight 0".to_owned(),
        ("active", _) if one.via == "node" => "is another node".to_owned(),
        ("active", _) if record.orders.drains_this_node() => {
            "is on this node, which is drained".to_owned()
        }
        (state, _) => format!("is {state}"),
    };
    record.backends.iter().filter(is_of).map(|one| (one.name.clone(), why(one))).collect()
}
