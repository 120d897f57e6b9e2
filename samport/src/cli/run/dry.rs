//! `samport run --dry-run`: what a run would begin with, found out without touching anything.

use anyhow::Result;
use samport_common::wire::protocol::Protocol;
use tokio::sync::watch;

use super::config::Config;
use crate::cli::table::{Column, LEFT, RIGHT, table, text};
use crate::dataplane::pins;
use crate::discovery;
use crate::instance;
use crate::listening;
use crate::metrics;
use crate::model::{Candidate, Condition};
use crate::netlink::{Devices, Netlink};
use crate::reconcile::{check_families, check_interfaces};
use crate::routes::Routes;
use crate::site;

/// A backend there would be, or why there would not.
struct Row {
    candidate: Candidate,
    way: Option<&'static str>,
    begins: String,
}

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
    instance::refuse_overlap(&config.interfaces, &ports, namespace)?;
    let (netlink, _changes) = Netlink::connect()?;
    let _at = config.metrics.map(metrics::listen).transpose()?;
    let (_terms, terms) = watch::channel(config.terms.clone());
    let (snapshots, _) =
        discovery::start_all(config.providers.clone(), &config.ports, &terms).await?;
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
        println!("{name}: {}", addresses(name, &devices));
    }
    let mut routes = Routes::default();
    let mut rows = Vec::new();
    for candidate in snapshot.candidates {
        if !candidate.listen.is_of_family(candidate.endpoint.is_ipv6()) {
            continue;
        }
        let found = routes.to(&candidate, config.forward, &netlink, &devices).await;
        let (way, begins) = match found {
            Ok(route) => (Some(route.name()), begins(&candidate)),
            Err(trouble) => (None, format!("not served: {trouble:#}")),
        };
        rows.push(Row { candidate, way, begins });
    }
    if rows.is_empty() {
        println!("no backend yet");
    } else {
        println!("{}", table(&rows, &COLUMNS));
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
        Condition::Ready => "at once",
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
