//! What a backend is known by to those who look for its route or ask for its health.

use std::net::SocketAddr;

use super::{Candidate, Reach};

/// Container id, address and place: a container that is started again under the same name and address is another.
pub type Target = (String, SocketAddr, Option<Reach>);

/// The target of a candidate.
#[must_use]
pub fn target(candidate: &Candidate) -> Target {
    (candidate.id.clone(), candidate.endpoint, candidate.place)
}
