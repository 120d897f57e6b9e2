//! `samport run --dry-run`: what a run would begin with, found out without touching anything.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use samport_common::wire::protocol::Protocol;
use tokio::sync::watch;

use super::config::Config;
use super::with_nodes;
use crate::api::metrics;
use crate::cli::output::say;
use crate::cli::table::{Column, LEFT, RIGHT, table, text};
use crate::cluster::spread;
use crate::control::admission::{self, Admission};
use crate::control::handle::BackendRef;
use crate::control::reconcile::{check_families, check_interfaces};
use crate::control::takeover;
use crate::dataplane::pins;
use crate::discovery;
use crate::model::allow::Networks;
use crate::model::ports::Listen;
use crate::model::{Candidate, Condition, Reach, Snapshot};
use crate::net::frontends;
use crate::net::netlink::{Devices, Netlink};
use crate::net::placement;
use crate::net::port_conflicts;
use crate::net::reply_devices::Namespaces;
use crate::net::routes::{Network, Routes};
use crate::system::escape;
use crate::system::hash_seed;
use crate::system::instance;
use crate::system::resyncs::Resyncs;

/// A backend there would be, or why there would not.
struct Row {
    candidate: Candidate,
    way: Option<&'static str>,
    begins: String,
}

/// How long backends are waited for whose places the kernel has to be asked for.
const PLACES: Duration = Duration::from_secs(10);

const COLUMNS: [Column<Row>; 6] = [
    ("LISTEN", LEFT, |row| row.candidate.listen.to_string()),
    ("BACKEND", LEFT, |row| row.candidate.name.clone()),
    ("ADDRESS", LEFT, |row| row.candidate.endpoint.to_string()),
    ("WEIGHT", RIGHT, |row| row.candidate.weight.to_string()),
    ("VIA", LEFT, |row| text(row.way.map(str::to_owned))),
    ("BEGINS", LEFT, |row| row.begins.clone()),
];

/// Looks, and prints what it has seen.
///
/// # Errors
/// Those a run would end with before it attaches anything, with their codes.
pub(super) async fn run(config: &Config) -> Result<()> {
    let namespace = instance::network_namespace()?;
    let ports = config.listens();
    instance::refuse_overlap(&config.interfaces, &ports, namespace, None)?;
    hash_seed::look(config.hash_seed_file.as_deref())?;
    let resyncs = Resyncs::default();
    let (netlink, _changes) = Netlink::connect(&resyncs)?;
    let _at = config.metrics.map(metrics::listen).transpose()?;
    let (_terms, terms) = watch::channel(config.terms.clone());
    let networks = takeover::served_before(&config.interfaces, namespace);
    let (snapshots, _) =
        discovery::start_all(config.providers.clone(), &config.ports, &terms, &networks, &resyncs)
            .await?;
    let (snapshots, ..) = with_nodes(config, snapshots, terms, None, &netlink, &resyncs).await?;
    let snapshot = snapshots.borrow().clone();
    port_conflicts::refuse_taken(&ports)?;
    let devices = netlink.devices().await?;
    check_interfaces(&config.interfaces, &devices)?;
    let (snapshot, notes) = placement::settle(&snapshot, &devices, &config.interfaces);
    check_families(&config.interfaces, &snapshot, &devices)?;
    for note in notes {
        tracing::warn!("{note}");
    }
    for name in &config.interfaces {
        say(&format!("{name}: {}", addresses(name, &devices)));
    }
    let network = Network {
        forward: config.forward,
        interfaces: config.interfaces.clone().into(),
        netlink,
        namespaces: Arc::new(Namespaces::of(&devices, &config.interfaces)),
        devices: Arc::new(devices),
    };
    let name = instance::name_for(&config.interfaces, &ports, namespace);
    let before = Before::of(&name);
    let admission = admitted(config, &snapshot, &network.devices, &before);
    for note in &admission.notes {
        tracing::warn!("{}", escape::line(note));
    }
    let mut left_out = admission.left_out;
    let mut routes = Routes::default();
    routes.look_for(admission.candidates.iter(), &network);
    routes.wait(&network.netlink, PLACES).await;
    let mut rows: Vec<Row> = Vec::new();
    let mut uses: BTreeMap<(SocketAddr, Protocol), usize> = BTreeMap::new();
    let (candidates, notes) = spread::apply(admission.candidates, config.spread, would_serve);
    for note in notes {
        tracing::warn!("{}", escape::line(&note));
    }
    for candidate in before.first(candidates) {
        if !candidate.listen.is_of_family(candidate.endpoint.is_ipv6()) {
            continue;
        }
        let ports_to = uses.entry((candidate.endpoint, candidate.listen.protocol)).or_default();
        if let Err(why) = admission::has_room(rows.len(), config.dataplane.backends, *ports_to) {
            let port = candidate.listen.brief();
            left_out.insert(format!("{} is left out on port {port}: {why}", candidate.name));
            continue;
        }
        *ports_to += 1;
        let way = match may_open(config, namespace, candidate.listen) {
            Ok(()) => routes.to(&candidate, &network),
            Err(trouble) => Err(trouble),
        };
        let (way, begins) = match way {
            Ok(Some(way)) => (Some(way.route.name()), begins(&candidate)),
            Ok(None) => (None, "its place is not known yet".to_owned()),
            Err(trouble) => (None, format!("not served: {trouble:#}")),
        };
        rows.push(Row { candidate, way, begins });
    }
    if rows.is_empty() {
        println!("no backend yet");
    } else {
        say(&table(&rows, &COLUMNS));
    }
    for sentence in &left_out {
        say(&escape::line(sentence));
    }
    if !pins::pins_of(&name).is_empty() {
        println!("takes over from a samport that was killed: its connections stay");
    }
    println!("nothing was touched");
    Ok(())
}

/// Whether a container would take connections as soon as it is known to answer.
fn would_serve(candidate: &Candidate) -> bool {
    let may_serve = matches!(
        candidate.condition,
        Condition::Ready | Condition::Unchecked | Condition::Checked(_)
    );
    may_serve && candidate.weight > 0
}

/// What a killed samport of the same name has left: whoever it serves is let in first.
struct Before {
    served: BTreeSet<BackendRef>,
    restricted: BTreeMap<Listen, Networks>,
}

impl Before {
    fn of(name: &str) -> Self {
        let record = instance::read_record(name).unwrap_or_default();
        let is_there = !pins::pins_of(name).is_empty();
        let served = record.ledger.backends().filter(|_| is_there);
        let restricted = record.restricted.iter().filter(|_| is_there).cloned().collect();
        Self { served: served.map(|(key, _)| BackendRef::from(&key)).collect(), restricted }
    }

    fn serves(&self, candidate: &Candidate) -> bool {
        self.served.contains(&BackendRef::from(candidate))
    }

    fn first(&self, candidates: Vec<Candidate>) -> impl Iterator<Item = Candidate> + use<> {
        let (served, others): (Vec<_>, Vec<_>) =
            candidates.into_iter().partition(|candidate| self.serves(candidate));
        served.into_iter().chain(others)
    }
}

/// Who of the snapshot would be let in.
fn admitted(config: &Config, snapshot: &Snapshot, devices: &Devices, before: &Before) -> Admission {
    let ports: BTreeSet<Listen> = config.listens().into_iter().collect();
    let terms = admission::AdmissionRules {
        ports: &ports,
        allow: &config.allow,
        max_backends: config.dataplane.backends,
        addresses: frontends::outer_addresses(devices, &config.interfaces),
        conflict: config.service_conflict,
        restricted: &before.restricted,
    };
    admission::admit(&snapshot.candidates, |candidate| before.serves(candidate), terms)
}

/// Whether a port that a label opens is free.
fn may_open(config: &Config, namespace: u64, listen: Listen) -> Result<()> {
    if config.ports.iter().any(|port| port.listen == listen) {
        return Ok(());
    }
    port_conflicts::refuse_taken(&[listen])?;
    instance::refuse_overlap(&config.interfaces, &[listen], namespace, None)
}

fn addresses(name: &str, devices: &Devices) -> String {
    let device = devices.values().find(|device| device.name == name);
    let addresses = device.into_iter().flat_map(|device| &device.addresses);
    let addresses: Vec<String> = addresses.map(ToString::to_string).collect();
    if addresses.is_empty() { "no address".to_owned() } else { addresses.join(", ") }
}

/// What must be for a backend to get traffic.
fn begins(candidate: &Candidate) -> String {
    match &candidate.condition {
        _ if candidate.weight == 0 => "not before its weight is above 0",
        Condition::Ready | Condition::Unchecked => "immediately",
        Condition::Starting => "when its HEALTHCHECK passes",
        Condition::Unhealthy => "not while its HEALTHCHECK fails",
        Condition::Draining if matches!(candidate.place, Some(Reach::Node(_))) => {
            "not: its service stays on this node"
        }
        Condition::Draining => "not: it is stopping",
        Condition::Checked(_) if candidate.listen.protocol == Protocol::Tcp => {
            "when it answers its check"
        }
        Condition::Checked(_) => "when its check passes",
    }
    .to_owned()
}
