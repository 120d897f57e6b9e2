//! From containers, or what stands for them, to the backends that are wanted.
//!
//! A provider sends a [`Snapshot`] whenever what it offers has changed. Once it has started, no
//! trouble ends it: it keeps its last good snapshot, says so, and tries again.

pub mod container;
pub mod docker;
pub mod endpoint;
pub mod file;
pub mod filter;
pub mod labels;
pub mod static_;

mod events;
mod inspect;
mod locate;
mod published;
mod world;

use anyhow::Result;
use tokio::sync::watch;

use crate::model::{Candidate, Snapshot};
use crate::ports::PortSpec;

pub use endpoint::Unreachable;

/// Where backends come from.
#[derive(Clone, Debug)]
pub enum Provider {
    /// The containers of Docker, or of Podman's service, which speaks the same.
    Docker(docker::Options),
    /// A file that is followed.
    File(file::Options),
    /// The command line.
    Static(Vec<static_::StaticBackend>),
}

/// Starts a provider and returns when it knows its first snapshot. `ports` is the `-p` list; if it
/// is empty, labels or the file decide which ports there are.
///
/// An engine that does not answer is an [`Unreachable`], to be found by `downcast_ref`. The
/// background task ends when the last receiver is dropped.
pub async fn start(provider: Provider, ports: Vec<PortSpec>) -> Result<watch::Receiver<Snapshot>> {
    match provider {
        Provider::Docker(options) => docker::start(options, ports).await,
        Provider::File(options) => file::start(options, ports),
        Provider::Static(backends) => static_::start(&backends, &ports),
    }
}

/// Brings candidates into the order every snapshot has.
fn sort(candidates: &mut [Candidate]) {
    let key = |c: &Candidate| (c.listen, c.endpoint);
    candidates.sort_by(|a, b| a.name.cmp(&b.name).then_with(|| key(a).cmp(&key(b))));
}

/// Sends a snapshot, unless it says what the last one said.
fn publish(sender: &watch::Sender<Snapshot>, snapshot: Snapshot) {
    sender.send_if_modified(|current| {
        let differs = *current != snapshot;
        *current = snapshot;
        differs
    });
}
