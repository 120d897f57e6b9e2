//! What the answer goes by: the pinned maps of the instance, its record, this machine's devices and routes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Result;
use samport_common::conntrack::{Seconds, Timeouts};
use samport_common::failover::MICRO_SHIFT;
use samport_common::flow::{Flow, FlowWord, ServiceId};
use samport_common::layout::{Backend, Life, Service, Slots, Via, service};
use samport_common::wire::protocol::Protocol;

use super::ambiguous;
use crate::api::words::Limits;
use crate::dataplane::answers::Answers;
use crate::dataplane::pins;
use crate::explain::{Door, Entry, Facts, Found, Member, Question, Remembered};
use crate::instance::{self, BackendRecord, FilterRecord, Record};
use crate::netlink::{Devices, Netlink};
use crate::plan::Role;
use crate::ports::Listen;
use crate::wire_forms::wide;

/// All there is to know for an answer.
pub(super) async fn gather(question: Question, names: &[String]) -> Result<Facts> {
    let (netlink, _changes) = Netlink::connect()?;
    let devices = netlink.devices().await?;
    let is_own = is_own(question.client.ip(), &devices);
    let at = if is_own { destination(question.dialled) } else { question.dialled };
    let route = if is_own { None } else { netlink.route(question.client.ip()).await? };

    let mut all = Vec::new();
    for name in names {
        let answers = Answers::open(name)?;
        let record = instance::read_record(name).unwrap_or_default();
        let service = answers.service(at, question.protocol)?;
        let entry = entry(question, name, &record, &answers, &devices, (is_own, route))?;
        all.push(Instance { name, answers, record, service, entry });
    }
    let one = choose(all)?;
    let known = Gathering { question, at, devices: &devices };
    let found = match one.service {
        Some(service) => known.found(&one, service)?,
        None => None,
    };
    let served = if found.is_some() { Vec::new() } else { known.served(&one)? };
    let timeouts = timeouts(&one.record.limits);
    Ok(Facts {
        question,
        instance: one.name.to_owned(),
        entry: one.entry,
        found,
        served,
        now_tick: one.answers.now_tick(),
        timeouts,
    })
}

struct Instance<'a> {
    name: &'a str,
    answers: Answers,
    record: Record,
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

/// How a client's packets come in: by its own veth if it is a backend, by the device the route to it leads
/// to, or else by the one with the address it dials.
fn entry(
    question: Question,
    name: &str,
    record: &Record,
    answers: &Answers,
    devices: &Devices,
    (is_own, route): (bool, Option<u32>),
) -> Result<Entry> {
    if is_own {
        return Ok(Entry::Call(record.local));
    }
    let doors = Doors { attached: ingresses(name, record), record, devices };
    if let Some(ifindex) = veth_of(question.client.ip(), record, answers)?
        && let Some(door) = doors.door(ifindex)
    {
        return Ok(Entry::Device(door));
    }
    let held = || {
        let holds = |one: &&crate::netlink::Device| one.addresses.contains(&question.dialled.ip());
        devices.values().find(holds).map(|device| device.ifindex)
    };
    let Some(ifindex) = route.or_else(held) else { return Ok(Entry::Nowhere(None)) };
    let nowhere = || Entry::Nowhere(devices.get(&ifindex).map(|device| device.name.clone()));
    Ok(doors.door(ifindex).map_or_else(nowhere, Entry::Device))
}

/// The host's end of the veth of the backend with this address.
fn veth_of(addr: IpAddr, record: &Record, answers: &Answers) -> Result<Option<u32>> {
    for one in &record.backends {
        let is_it = one.endpoint.parse::<SocketAddr>().is_ok_and(|at| at.ip() == addr);
        if is_it && one.id > 0 {
            let Backend { via, ifindex, addr: at, .. } = answers.backend(one.id)?.backend;
            if Via::from_byte(via) == Via::Peer && at == wide(addr) {
                return Ok(Some(ifindex));
            }
        }
    }
    Ok(None)
}

/// Devices with a program at their ingress.
struct Doors<'a> {
    attached: BTreeSet<u32>,
    record: &'a Record,
    devices: &'a Devices,
}

impl Doors<'_> {
    fn door(&self, ifindex: u32) -> Option<Door> {
        let device = self.devices.get(&ifindex).filter(|_| self.attached.contains(&ifindex))?;
        let is_outer = self.record.interfaces.contains(&device.name);
        let hook = match self.record.hook.split_once(", ") {
            // XDP is in front of the interfaces only.
            Some((tc, _)) if !is_outer => tc.to_owned(),
            Some((tc, xdp)) => format!("{xdp}, then {tc}"),
            None => self.record.hook.clone(),
        };
        Some(Door { ifindex, name: device.name.clone(), is_outer, hook })
    }
}

/// Indices of the devices at whose ingress a program is that knows clients.
fn ingresses(name: &str, record: &Record) -> BTreeSet<u32> {
    let links = ["link_forward_", "link_inside_", "link_reverse_"];
    let pins = pins::pins_of(name)
        .into_iter()
        .filter_map(|pin| links.iter().find_map(|link| pin.strip_prefix(link)?.parse().ok()));
    let knows = |filter: &&FilterRecord| match filter.role {
        Some(role) => matches!(role, Role::Forward | Role::Inside | Role::Reverse),
        None => !filter.egress,
    };
    let filters = record.filters.iter().filter(knows);
    pins.chain(filters.map(|filter| filter.ifindex)).collect()
}

struct Gathering<'a> {
    question: Question,
    /// What is dialled, as it is looked up.
    at: SocketAddr,
    devices: &'a Devices,
}

impl Gathering<'_> {
    /// What is served, in words: of the same family, the same port first.
    fn served(&self, one: &Instance) -> Result<Vec<String>> {
        let served = one.answers.served(self.at.is_ipv6())?;
        let mut served: Vec<_> = served.into_iter().collect();
        served.sort_by_key(|(at, protocol)| (at.port() != self.at.port(), *at, *protocol));
        let words = |(at, protocol): (SocketAddr, Protocol)| format!("{at}/{}", protocol.name());
        Ok(served.into_iter().map(words).collect())
    }

    fn found(&self, one: &Instance, service: Service) -> Result<Option<Found>> {
        let (answers, record) = (&one.answers, &one.record);
        let Some(id) = ServiceId::new(service.id) else { return Ok(None) };
        let client = self.question.client;
        let restricted = service.flags & service::RESTRICTED != 0;
        let allowed = !restricted || answers.allows(id, client.ip())?;
        let (flow, taken) = self.flows(answers, id)?;
        let affinity = answers.affinity(client.ip(), id)?.map(|one| {
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
            if Life::from_byte(known.backend.life) != Life::Unset {
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
        Ok(Some(Found {
            service,
            listen,
            name,
            allowed,
            flow,
            taken,
            affinity,
            slots,
            turn,
            members,
            others,
        }))
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
            let remembered = remembered(&flow, now, answers.now_ns);
            if (flow.vip, flow.port) == vip {
                own = own.or(Some(remembered));
            } else if remembered.state.is_open() {
                taken.push(remembered.backend);
            }
        }
        Ok((own, taken))
    }

    fn member(&self, id: u32, known: crate::dataplane::answers::Known, record: &Record) -> Member {
        let written = record.backends.iter().find(|one| one.id == id);
        let name = written.map_or_else(|| format!("backend {id}"), |one| one.name.clone());
        let state = written.map_or_else(|| "unknown".to_owned(), |one| one.state.clone());
        let device = self.devices.get(&known.backend.ifindex).map(|device| device.name.clone());
        Member { known, name, state, device }
    }
}

#[allow(clippy::cast_possible_truncation, reason = "it may wrap: only differences count")]
fn remembered(flow: &Flow, now_tick: u32, now_ns: u64) -> Remembered {
    let word = FlowWord::from_bits(flow.word);
    Remembered {
        backend: word.backend(),
        generation: word.generation(),
        state: word.state(),
        idle_ticks: now_tick.saturating_sub(flow.seen_tick),
        age: ((now_ns >> MICRO_SHIFT) as u32).wrapping_sub(flow.opened),
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
        (state, _) => format!("is {state}"),
    };
    record.backends.iter().filter(is_of).map(|one| (one.name.clone(), why(one))).collect()
}
