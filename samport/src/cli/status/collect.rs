//! From what an instance has pinned and written down to the document about it.

use std::collections::BTreeMap;

use anyhow::Result;
use samport_common::layout::BackendStats;
use samport_common::verdict::{Action, Verdict};

use crate::api::types::{
    ControlLoop, FlowTable, Instance, InstanceBackend, InstanceNode, MapUse, ServiceCount,
};
use crate::control::progress;
use crate::dataplane::inspect::{Counters, Flows};
use crate::dataplane::memory;
use crate::model::State;
use crate::system::instance::{self, BackendRecord, NodeRecord, Record, ServiceRecord};

/// A backend and what the kernel has counted of it.
struct CountedBackend<'a> {
    record: &'a BackendRecord,
    open: u64,
    stats: BackendStats,
}

/// The document of an instance.
pub(super) fn instance(name: &str) -> Result<Instance> {
    let counters = Counters::open(name)?;
    let record = instance::read_record(name).unwrap_or_default();
    let counted = |backend| count(&counters, backend);
    let backends: Vec<_> = record.backends.iter().map(counted).collect::<Result<_>>()?;
    let verdicts = || Verdict::ALL.iter().zip(&counters.verdicts);
    let drops = verdicts().filter(|(verdict, _)| verdict.action() == Action::Drop);
    let maps = memory::maps(name)?.into_iter().map(|map| MapUse {
        name: map.name,
        entries: map.entries,
        bytes: map.bytes,
    });
    let maps: Vec<_> = maps.collect();
    let running = instance::is_running(name);
    // Of one that does not run, it says nothing any more.
    let written = instance::progress_path(name);
    let control_loop = if running { progress::read(&written) } else { ControlLoop::default() };
    Ok(Instance {
        name: name.to_owned(),
        running,
        control_loop,
        services: services(&record, &backends),
        backends: backends.iter().map(backend).collect(),
        drops: drops.map(|(_, count)| count).sum(),
        verdicts: verdicts().map(|(verdict, count)| (verdict.name().to_owned(), *count)).collect(),
        flow_table: flow_table(&counters.flows),
        limits: record.limits,
        memory_bytes: maps.iter().map(|map| map.bytes).sum(),
        maps,
        pid: record.pid,
        version: record.version,
        started_ms: record.started_ms,
        interfaces: record.interfaces,
        ports: record.ports.iter().map(ToString::to_string).collect(),
        hook: record.hook,
        node: record.node,
        node_drained: record.orders.drains_this_node(),
        // How they are is seen by the process only.
        nodes: record.nodes.into_iter().filter(|_| running).map(node).collect(),
        left_out: record.left_out,
        local: record.local,
        // A process that has gone has no privileges.
        privileges: record.privileges.filter(|_| running),
        hash_seed_file: record.hash_seed_file.display().to_string(),
    })
}

fn count<'a>(counters: &Counters, record: &'a BackendRecord) -> Result<CountedBackend<'a>> {
    // 0 means no id: it is not in the kernel yet.
    if record.id == 0 {
        return Ok(CountedBackend { record, open: 0, stats: BackendStats::default() });
    }
    let (open, stats) = (counters.open_flows(record.id)?, counters.backend(record.id)?);
    Ok(CountedBackend { record, open, stats })
}

/// Services in the order of their ports.
fn services(record: &Record, backends: &[CountedBackend]) -> Vec<ServiceCount> {
    record.services.iter().map(|service| service_count(service, backends)).collect()
}

fn service_count(service: &ServiceRecord, all: &[CountedBackend]) -> ServiceCount {
    let ours = || all.iter().filter(|one| one.record.port == service.listen);
    // By its name, as its addresses are one backend: it is what its best address is.
    let mut states: BTreeMap<&str, State> = BTreeMap::new();
    for one in ours() {
        let state = State::named(&one.record.state).unwrap_or(State::Down);
        let best = states.entry(&one.record.name).or_insert(state);
        *best = if state == State::Active { state } else { *best };
    }
    let count = |state| states.values().filter(|other| **other == state).count();
    ServiceCount {
        service: service.listen.to_string(),
        service_name: service.name.clone(),
        balance: service.balance.clone(),
        backends: states.len(),
        active: count(State::Active),
        draining: count(State::Draining),
        unhealthy: count(State::Unhealthy),
        starting: count(State::Starting),
        open: ours().map(|one| one.open).sum(),
        flows: ours().map(|one| one.stats.flows).sum(),
        refused: ours().map(|one| one.stats.refused).sum(),
        silent: ours().map(|one| one.stats.silent).sum(),
    }
}

fn backend(counted: &CountedBackend) -> InstanceBackend {
    let CountedBackend { record, open, stats } = counted;
    InstanceBackend {
        name: record.name.clone(),
        port: record.port.to_string(),
        endpoint: record.endpoint.clone(),
        state: record.state.clone(),
        weight: record.weight,
        via: record.via.clone(),
        open: *open,
        flows: stats.flows,
        refused: stats.refused,
        silent: stats.silent,
        packets_in: stats.packets_in,
        bytes_in: stats.bytes_in,
        packets_out: stats.packets_out,
        bytes_out: stats.bytes_out,
    }
}

fn node(record: NodeRecord) -> InstanceNode {
    let NodeRecord { name, address, up, drains: drained, since_ms, path_mtu, services } = record;
    let services = services.into_iter().map(|(listen, ready)| (listen.to_string(), ready));
    InstanceNode { name, address, up, drained, since_ms, path_mtu, services: services.collect() }
}

const fn flow_table(flows: &Flows) -> FlowTable {
    FlowTable {
        capacity: flows.capacity4,
        capacity6: flows.capacity6,
        ipv4: flows.left4,
        ipv6: flows.left6,
        inserted: flows.inserted,
        expired: flows.expired,
        evicted: flows.evicted,
        overflow: flows.overflow,
        unproven: flows.unproven,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ports::Listen;

    fn record(name: &str, port: u16, state: State) -> BackendRecord {
        BackendRecord {
            id: 1,
            name: name.into(),
            port: Listen::tcp(port),
            endpoint: "10.0.0.2:80".into(),
            weight: 1,
            state: state.name().into(),
            via: "peer".into(),
            route_back: None,
        }
    }

    #[test]
    fn a_service_counts_containers_not_addresses_and_only_its_own() {
        let records = [
            record("web-1", 80, State::Starting),
            record("web-1", 80, State::Active),
            record("web-2", 80, State::Draining),
            record("web-3", 80, State::Unhealthy),
            record("web-4", 80, State::Starting),
            record("db-1", 81, State::Active),
        ];
        let counted = records.each_ref().map(|record| CountedBackend {
            record,
            open: 2,
            stats: BackendStats { flows: 10, refused: 1, silent: 3, ..BackendStats::default() },
        });
        let service = ServiceRecord {
            listen: Listen::tcp(80),
            name: Some("shop/web".into()),
            balance: "random".into(),
        };
        let count = service_count(&service, &counted);
        assert_eq!((count.backends, count.active, count.draining), (4, 1, 1));
        assert_eq!((count.unhealthy, count.starting), (1, 1));
        assert_eq!((count.open, count.flows, count.refused, count.silent), (10, 50, 5, 15));
        assert_eq!((&*count.service, count.service_name.as_deref()), ("80/tcp", Some("shop/web")));
    }
}
