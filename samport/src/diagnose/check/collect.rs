//! Asks the machine. Everything here only looks.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::facts::{Collected, Facts, Limits};
use super::{firewall, nodes};
use crate::cluster::Settings;
use crate::dataplane::{self, Tcx};
use crate::discovery::{Engine, Seen, Unreachable, look};
use crate::model::ports::{Listen, PortRanges, PortSpec};
use crate::net::netlink::{Devices, LinkState, Netlink};
use crate::net::port_conflicts;
use crate::net::reverse_path::{self, ReversePaths};
use crate::system::hash_seed;
use crate::system::instance;
use crate::system::kernel;
use crate::system::privileges;
use crate::system::resyncs::Resyncs;

/// What `samport check` is asked about.
#[derive(Debug)]
pub struct CheckOptions {
    /// `-i`.
    pub interfaces: Vec<String>,
    /// `-p`.
    pub ports: Vec<PortSpec>,
    /// The engines of `--provider`.
    pub engines: Vec<Engine>,
    /// `--endpoint`.
    pub endpoint: Option<String>,
    /// `--label-ports`.
    pub label_ports: PortRanges,
    /// `--allow`, `--max-backends` and `--service-conflict`.
    pub limits: Limits,
    /// `--hash-seed-file`.
    pub hash_seed_file: Option<PathBuf>,
    /// `--sandbox`.
    pub sandbox: bool,
    /// `--cluster`, and what belongs to it.
    pub cluster: Option<Settings>,
}

/// Looks at everything.
///
/// # Errors
/// An invalid address of an engine, or no netlink.
pub async fn collect(asked: CheckOptions) -> Result<Facts> {
    let (netlink, _) = Netlink::connect(&Resyncs::default())?;
    let devices = netlink.devices().await?;
    let links = netlink.links().await?;
    let mut engines = Vec::new();
    for engine in &asked.engines {
        match look(*engine, asked.endpoint.as_deref(), &asked.ports, &asked.label_ports).await {
            Err(error) if error.downcast_ref::<Unreachable>().is_none() => return Err(error),
            seen => engines.push(told(seen)),
        }
    }
    let cluster = match &asked.cluster {
        Some(settings) => Some(nodes::look(settings, &asked.interfaces, &devices, &netlink).await),
        None => None,
    };
    let listens: Vec<Listen> = asked.ports.iter().map(|port| port.listen).collect();
    let namespace = instance::network_namespace()?;
    let taken = |listen: &Listen| (*listen, taken(*listen, &engines));
    Ok(Facts {
        kernel: told(kernel::version()),
        btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
        privileges: told(privileges::require()),
        // Every machine has it.
        tcx: dataplane::at_tcx("lo").map_or_else(|tcx| tcx, |_| Tcx::Present),
        bpffs: dataplane::bpffs(),
        local: told(dataplane::can_serve_local_clients()),
        forwarding: [false, true].map(|v6| reverse_path::forwards(v6, "lo")),
        strict: strict(&asked.interfaces, &devices)?,
        not_strict: told(ReversePaths::find(&netlink, &devices).await.map(|found| found.reasons)),
        at_tcx: at_tcx(&asked.interfaces),
        at_xdp: at_xdp(&asked.interfaces, &devices, &links),
        ports: listens.iter().map(taken).collect(),
        alone: told(instance::refuse_overlap(&asked.interfaces, &listens, namespace, None)),
        hash_seed: told(hash_seed::look(asked.hash_seed_file.as_deref())),
        inspectors: told(firewall::inspectors()),
        sandbox: asked.sandbox,
        cluster,
        limits: asked.limits,
        interfaces: asked.interfaces,
        devices,
        links,
        engines,
    })
}

fn told<T>(result: Result<T>) -> Collected<T> {
    result.map_err(|error| format!("{error:#}"))
}

/// An engine knows those who publish a port by name, which is better than a process's.
fn taken(listen: Listen, engines: &[Collected<Seen>]) -> Collected<()> {
    let published = engines.iter().flatten().find_map(|seen| seen.published.get(&listen));
    match published {
        Some(sentence) => Err(sentence.clone()),
        None => told(port_conflicts::refuse_taken(&[listen])),
    }
}

/// The interfaces with strict reverse path filtering.
fn strict(interfaces: &[String], devices: &Devices) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for name in interfaces {
        let is_there = devices.values().any(|device| device.name == *name);
        if is_there && reverse_path::is_strict(name)? {
            found.push(name.clone());
        }
    }
    Ok(found)
}

fn at_tcx(interfaces: &[String]) -> BTreeMap<String, Vec<String>> {
    let on = |name: &String| Some((name.clone(), dataplane::at_tcx(name).ok()?));
    interfaces.iter().filter_map(on).collect()
}

fn at_xdp(
    interfaces: &[String],
    devices: &Devices,
    links: &BTreeMap<u32, LinkState>,
) -> BTreeMap<String, String> {
    let ours = devices.values().filter(|device| interfaces.contains(&device.name));
    let on = ours.filter_map(|device| Some((&device.name, links.get(&device.ifindex)?.xdp?)));
    on.map(|(name, id)| (name.clone(), dataplane::name_of_program(id))).collect()
}
