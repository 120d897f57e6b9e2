//! What is written down for `status` and `clean`.

use std::time::SystemTime;

use crate::cluster::{Node, NodeList};
use crate::control::handle::ControlView;
use crate::model::{Candidate, State};
use crate::plan::{BackendKey, Desired, Share};
use crate::system::instance::{BackendRecord, NodeRecord, ServiceRecord};

/// The services, by the names their containers give them.
pub(super) fn service_records(desired: &Desired, view: &ControlView) -> Vec<ServiceRecord> {
    let record = |listen| {
        let policy = desired.policies.get(listen).copied().unwrap_or_default();
        let mut named = view.backends.iter().filter(|one| one.backend_ref.listen == *listen);
        ServiceRecord {
            listen: *listen,
            name: named.find_map(|one| one.service.clone()),
            balance: policy.balance.name().to_owned(),
        }
    };
    desired.frontends.keys().map(record).collect()
}

/// The other nodes, and how they are.
pub(super) fn node_records(nodes: &NodeList) -> Vec<NodeRecord> {
    let healths = nodes.health();
    let record = |node: Node| {
        let health = healths.get(&node.address);
        NodeRecord {
            address: node.tunnel(),
            up: health.is_none_or(|health| health.up),
            drains: health.is_some_and(|health| health.drains),
            since_ms: health.map_or(0, |health| milliseconds(health.since)),
            path_mtu: health.and_then(|health| health.path_mtu),
            name: node.name,
            services: node.services,
        }
    };
    nodes.current().into_iter().map(record).collect()
}

/// The time of day.
pub(super) fn milliseconds_since_1970() -> u64 {
    milliseconds(SystemTime::now())
}

fn milliseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// One that the kernel has.
pub(super) fn backend_record(key: &BackendKey, id: u32, share: Option<&Share>) -> BackendRecord {
    let state = match share {
        // By its weight, or its group's.
        Some(share) if share.state == State::Active && share.drains() => State::Draining,
        Some(share) => share.state,
        None => State::Draining,
    };
    BackendRecord {
        id,
        name: share.map_or_else(String::new, |share| share.name.clone()),
        port: key.listen,
        endpoint: key.endpoint.to_string(),
        weight: share.map_or(0, |share| share.weight),
        state: state.name().to_owned(),
        via: key.route.name().to_owned(),
        route_back: share.and_then(|share| share.route_back),
    }
}

/// One that is not in the kernel: it has no id there, and no way to it has been looked for.
pub(super) fn starting_record(candidate: &Candidate) -> BackendRecord {
    BackendRecord {
        id: 0,
        name: candidate.name.clone(),
        port: candidate.listen,
        endpoint: candidate.endpoint.to_string(),
        weight: candidate.weight,
        state: State::Starting.name().to_owned(),
        via: String::new(),
        route_back: candidate.egress.leads_out,
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::time::Duration;

    use super::*;
    use crate::cluster::NodeHealth;
    use crate::model::ports::Listen;

    #[test]
    fn a_node_of_a_cluster_is_written_down_with_what_is_known_of_it() {
        let address = |last| IpAddr::from([192, 0, 2, last]);
        let node = |name: &str, last| Node {
            name: name.to_owned(),
            address: address(last),
            port: 6_081,
            services: [(Listen::tcp(80), 3)].into(),
        };
        let since = SystemTime::UNIX_EPOCH + Duration::from_millis(1_234);
        let health = NodeHealth { up: false, drains: true, path_mtu: Some(1_400), since };
        let nodes =
            NodeList::fixed(vec![node("n2", 2), node("n3", 3)], [(address(2), health)].into());
        let down = NodeRecord {
            name: "n2".to_owned(),
            address: "192.0.2.2:6081".parse().unwrap(),
            up: false,
            drains: true,
            since_ms: 1_234,
            path_mtu: Some(1_400),
            services: [(Listen::tcp(80), 3)].into(),
        };
        let unknown = NodeRecord {
            name: "n3".to_owned(),
            address: "192.0.2.3:6081".parse().unwrap(),
            up: true,
            drains: false,
            since_ms: 0,
            path_mtu: None,
            ..down.clone()
        };
        let written = node_records(&nodes);
        assert_eq!(written, [down, unknown]);
        // And read again, ports for keys included.
        let text = serde_json::to_string(&written).unwrap();
        assert_eq!(serde_json::from_str::<Vec<NodeRecord>>(&text).unwrap(), written);
    }
}
