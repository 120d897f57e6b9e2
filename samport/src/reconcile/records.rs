//! What is written down for `status` and `clean`.

use crate::instance::BackendRecord;
use crate::model::{Candidate, State};
use crate::plan::{BackendKey, Share};

/// One that the kernel has.
pub(super) fn backend_record(key: &BackendKey, id: u32, share: Option<&Share>) -> BackendRecord {
    let state = share.map_or(State::Draining, |share| share.state);
    BackendRecord {
        id,
        name: share.map_or_else(String::new, |share| share.name.clone()),
        port: key.listen,
        endpoint: key.endpoint.to_string(),
        weight: share.map_or(0, |share| share.weight),
        state: state.name().to_owned(),
        via: key.route.name().to_owned(),
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
    }
}
