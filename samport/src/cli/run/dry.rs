//! `samport run --dry-run`: what a run would begin with, found out without touching anything.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use samport_common::wire::protocol::Protocol;
use tokio::sync::watch;

use super::config::Config;
use crate::cli::output::say;
use crate::cli::table::{Column, LEFT, RIGHT, table, text};
use crate::dataplane::pins;
use crate::discovery;
use crate::hash_seed;
use crate::instance;
use crate::listening;
use crate::metrics;
use crate::model::{Candidate, Condition};
use crate::netlink::{Devices, Netlink};
use crate::reconcile::{check_families, check_interfaces};
use crate::reply_devices::Namespaces;
use crate::resyncs::Resyncs;
use crate::routes::{Network, Routes};
use crate::site;
use crate::takeover;

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
    let snapshot = snapshots.borrow().clone();
    listening::refuse_taken(&ports)?;
    let devices = netlink.devices().await?;
    check_interfaces(&config.interfaces, &devices)?;
    let (snapshot, notes) = site::settle(&snapshot, &devices, &config.interfaces);
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
    let mut routes = Routes::default();
    routes.look_for(snapshot.candidates.iter(), &network);
    routes.wait(&network.netlink, PLACES).await;
    let mut rows = Vec::new();
    for candidate in snapshot.candidates {
        if !candidate.listen.is_of_family(candidate.endpoint.is_ipv6()) {
            continue;
        }
        let (way, begins) = match routes.to(&candidate, &network) {
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
    let name = instance::name_for(&config.interfaces, &ports, namespace);
    if !pins::pins_of(&name).is_empty() {
        println!("takes over from a samport that was killed: its connections stay");
    }
    println!("nothing was touched");
    Ok(())
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
        Condition::Ready | Condition::Unchecked => "at once",
        Condition::Starting => "when its HEALTHCHECK passes",
        Condition::Unhealthy => "not while its HEALTHCHECK fails",
        Condition::Draining => "not: it is stopping",
        Condition::Checked(_) if candidate.listen.protocol == Protocol::Tcp => {
            "when it answers its check"
        }
        Condition::Checked(_) => "when its check passes",
    }
    .to_owned()
}
