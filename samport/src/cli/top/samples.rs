//! Documents for the tests of `top`.

use super::history::Documents;
use crate::api::types::{Backend, Counters, Instance, Limits, ServiceCount};

/// An active backend of `80/tcp` with this many flows in all, a tenth of which are open.
pub(super) fn backend(name: &str, flows: u64) -> Backend {
    let number = name.chars().filter_map(|c| c.to_digit(10)).next_back().unwrap_or(0);
    Backend {
        service: "80/tcp".into(),
        service_name: None,
        group: None,
        group_weight: None,
        name: name.into(),
        id: name.into(),
        address: format!("172.18.0.{}:8080", number + 1),
        state: "active".into(),
        weight: 1,
        node: None,
        via: Some("peer".into()),
        route_back: None,
        share_expected: 0.5,
        share_actual: 0.4988,
        is_last: false,
        drain_left_ms: None,
        counters: Some(Counters {
            open: Some(flows / 10),
            flows,
            handshake_p50_us: Some(41),
            handshake_p99_us: Some(180),
            ..Counters::default()
        }),
    }
}

/// What a samport with these backends says.
pub(super) fn documents(backends: &[Backend]) -> Documents {
    let flows = || backends.iter().filter_map(|one| one.counters);
    let count = |state: &str| backends.iter().filter(|one| one.state == state).count();
    let service = ServiceCount {
        service: "80/tcp".into(),
        service_name: Some("shop/web".into()),
        balance: "random".into(),
        backends: backends.len(),
        active: count("active"),
        draining: count("draining"),
        open: flows().filter_map(|counters| counters.open).sum(),
        flows: flows().map(|counters| counters.flows).sum(),
        ..ServiceCount::default()
    };
    let instance = Instance {
        name: "eth0:80@4026531840".into(),
        running: true,
        pid: 4_242,
        interfaces: vec!["eth0".into()],
        ports: vec!["80/tcp".into()],
        hook: "tcx".into(),
        services: vec![service],
        verdicts: [("forward-peer".into(), 1_000), ("not-allowed".into(), 7)].into(),
        drops: 7,
        limits: Limits { flows: 131_072, ..Limits::default() },
        memory_bytes: 33_554_432,
        ..Instance::default()
    };
    Documents { instance, backends: backends.to_vec() }
}
