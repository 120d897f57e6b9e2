//! What is written down for `status` and `clean`.

use std::time::SystemTime;

use crate::control::handle::ControlView;
use crate::model::{Candidate, State};
use crate::plan::{BackendKey, Desired, Share};
use crate::system::instance::{BackendRecord, ServiceRecord};

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

/// The time of day.
pub(super) fn milliseconds_since_1970() -> u64 {
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
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
