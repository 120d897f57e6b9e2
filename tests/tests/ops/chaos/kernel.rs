//! What an instance has in the kernel and below `/run`, without the numbers that differ from run to run.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv6Addr, SocketAddr};
use std::path::Path;

use anyhow::{Context as _, Result};
use samport::dataplane::map_reader::Answers;
use samport::dataplane::pins;
use samport_common::layout::{Backend, BackendState};
use samport_tests::Namespace;
use samport_tests::bpf::Map;
use samport_tests::traces::traces;
use serde_json::Value;

/// More than there are backends in any test of this module.
pub const MAX_BACKENDS: u32 = 64;

/// All of it, a line each.
pub type State = BTreeSet<String>;

/// What is attached where, by the names of programs, and how often.
pub fn attached(namespace: &Namespace) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for trace in traces(namespace) {
        let is_attached = ["tcx ", "xdp ", "tc "].iter().any(|begin| trace.starts_with(begin));
        if !is_attached || !trace.contains("samport_") {
            continue;
        }
        let (place, what) = trace.split_once(": ").unwrap_or((&trace, ""));
        let name = what.split_whitespace().find(|word| word.starts_with("samport_"));
        *found.entry(format!("{place}: {}", name.unwrap_or_default())).or_default() += 1;
    }
    found
}

/// Everything that a fresh start would make the same.
pub fn state(namespace: &Namespace, instance: &str, status: &Value) -> Result<State> {
    let mut state: State =
        attached(namespace).iter().map(|(what, count)| format!("{count} {what}")).collect();
    state.extend(names(namespace));
    services(instance, &mut state)?;
    for map in ["PORTS", "DEVICES", "SOURCES4", "SOURCES6"] {
        let mut values = Map::open(&pins::map_of(instance, map)).and_then(|map| map.values())?;
        values.retain(|value| value.iter().any(|byte| *byte != 0));
        values.sort();
        state.insert(format!("{map}: {values:x?}"));
    }
    for map in ["REV_NAT4", "REV_NAT6", "ALLOWED4", "ALLOWED6"] {
        let values = Map::open(&pins::map_of(instance, map)).and_then(|map| map.values())?;
        state.insert(format!("{map}: {} entries", values.len()));
    }
    for key in ["ports", "interfaces", "hook", "local", "left_out", "limits"] {
        state.insert(format!("status {key}: {}", status[key]));
    }
    for service in status["services"].as_array().context("no services")? {
        let of = |key: &str| &service[key];
        let words = ["service", "service_name", "balance", "backends", "active"].map(of);
        state.insert(format!("status service: {words:?}"));
    }
    for backend in status["backends"].as_array().context("no backends")? {
        let of = |key: &str| &backend[key];
        let words = ["name", "port", "endpoint", "state", "weight", "via"].map(of);
        state.insert(format!("status backend: {words:?}"));
    }
    Ok(state)
}

/// Pins and files, without the number of the run.
fn names(namespace: &Namespace) -> Vec<String> {
    let paths = traces(namespace).into_iter().filter(|trace| trace.starts_with('/'));
    let plain = |path: String| {
        let path = Path::new(&path);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let name = match name.strip_prefix("map_run").and_then(|rest| rest.split_once('_')) {
            Some((_, map)) => format!("map_run_{map}"),
            None => name.into_owned(),
        };
        path.with_file_name(name).display().to_string()
    };
    // A second one of the same run would be hidden by the first.
    let mut counted: BTreeMap<String, usize> = BTreeMap::new();
    paths.for_each(|path| *counted.entry(plain(path)).or_default() += 1);
    counted.into_iter().map(|(path, count)| format!("{count} {path}")).collect()
}

fn services(instance: &str, state: &mut State) -> Result<()> {
    let answers = Answers::open(instance)?;
    let mut named = BTreeSet::new();
    let served = [answers.served(false)?, answers.served(true)?];
    for (at, protocol) in served.into_iter().flatten() {
        let service = answers.service(at, protocol)?.context("a service has gone meanwhile")?;
        let mut shares: BTreeMap<String, usize> = BTreeMap::new();
        for id in answers.slots(&service)? {
            named.insert(id);
            *shares.entry(describe(&answers.backend(id)?.backend)).or_default() += 1;
        }
        // Slots are as many as it takes for the weights to be right: only their shares say anything.
        let fewest = shares.values().copied().min().unwrap_or(1);
        let shares: Vec<_> =
            shares.into_iter().map(|(who, slots)| format!("{} × {who}", slots / fewest)).collect();
        state.insert(format!(
            "{at} {protocol:?}: scope {} balance {} affinity {} flags {:x}: {shares:?}",
            service.scope, service.balance, service.affinity_ticks, service.flags
        ));
    }
    for id in 1..=MAX_BACKENDS {
        let backend = answers.backend(id)?.backend;
        if BackendState::from_byte(backend.state).serves() {
            let place = if named.contains(&id) { "in a table" } else { "in no table" };
            state.insert(format!("backend {} {place}", describe(&backend)));
        }
    }
    Ok(())
}

fn describe(backend: &Backend) -> String {
    let ip = Ipv6Addr::from(backend.addr).to_canonical();
    let at = SocketAddr::new(ip, u16::from_be_bytes(backend.port));
    let Backend { ifindex, weight, state, forward_mode, shared, .. } = *backend;
    format!("{at} via {forward_mode} device {ifindex} weight {weight} life {state} shared {shared}")
}
