//! From containers, or what stands for them, to the backends that are wanted.
//!
//! A provider sends a [`Snapshot`] whenever what it offers has changed. Once it has started, no
//! trouble ends it: it keeps its last good snapshot, says so, and tries again.

pub mod container;
pub mod docker;
pub mod endpoint;
pub mod file;
pub mod filter;
pub mod health;
pub mod labels;
pub mod static_;

mod access;
mod container_store;
mod egress;
mod engine_probe;
mod events;
mod inspect;
mod listing;
mod locate;
mod published;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use futures_util::future::select_all;
use tokio::sync::watch;

use self::endpoint::Endpoint;
use self::filter::Filters;
use self::static_::StaticBackend;
use crate::model::Snapshot;
use crate::model::check::Config;
use crate::model::ports::{PortRanges, PortSpec};
use crate::system::resyncs::Resyncs;
use crate::system::snapshots::{publish, sort};

pub use crate::system::provider_status::ProviderStatus;
pub use container::ServedIn;
pub use endpoint::{Engine, Unreachable};
pub use engine_probe::{Seen, look};

/// Where backends come from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Provider {
    /// The containers of an engine.
    Docker(docker::Options),
    /// A file that is followed.
    File(PathBuf),
    /// The configuration.
    Static,
}

impl Provider {
    /// The Unix socket of its engine, if it has one.
    ///
    /// # Errors
    /// An invalid address.
    pub fn socket(&self) -> Result<Option<PathBuf>> {
        let Self::Docker(options) = self else { return Ok(None) };
        Ok(match docker::endpoint(options)? {
            Endpoint::Unix(path) => Some(path.into()),
            Endpoint::Http(_) => None,
        })
    }
}

/// What may be changed of providers while they run. Each of them uses what concerns it.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct ProviderSettings {
    /// The `--backend` list.
    pub backends: Vec<StaticBackend>,
    /// `--filter`s.
    pub filters: Filters,
    /// `--health`.
    pub health: Config,
    /// `--label-ports`.
    pub label_ports: PortRanges,
    /// How long a backend keeps its flows that is offered no longer, or was sent its stop signal.
    pub drain: Duration,
    /// How many terms there were before these: a snapshot says which it is made on, so that whoever has
    /// changed them knows when they are in force.
    pub generation: u64,
}

impl Provider {
    /// Its name, as `--provider` has it.
    const fn name(&self) -> &'static str {
        match self {
            Self::Docker(options) => options.engine.provider(),
            Self::File(_) => "file",
            Self::Static => "static",
        }
    }
}

/// Starts a provider and returns when it knows its first snapshot. `ports` is the `-p` list; if it
/// is empty, labels or the file decide which ports there are.
///
/// An engine that does not answer is an [`Unreachable`], to be found by `downcast_ref`. The
/// background task ends when the last receiver is dropped.
async fn start(
    provider: Provider,
    ports: Vec<PortSpec>,
    terms: watch::Receiver<ProviderSettings>,
    status: Arc<ProviderStatus>,
    served: BTreeMap<String, ServedIn>,
    resyncs: Resyncs,
) -> Result<watch::Receiver<Snapshot>> {
    match provider {
        Provider::Docker(options) => {
            docker::start(options, ports, terms, status, served, resyncs).await
        }
        Provider::File(path) => file::start(path, ports, terms, status, &resyncs).await,
        Provider::Static => {
            let snapshots = static_::start(ports, terms)?;
            status.synced();
            Ok(snapshots)
        }
    }
}

/// Starts several engines' providers; a snapshot holds what all of them offer. One that cannot be started is an
/// error of all. Also how each of them is doing. `served` is where the samport before has served containers, by
/// their ids.
pub async fn start_all(
    providers: Vec<Provider>,
    ports: &[PortSpec],
    terms: &watch::Receiver<ProviderSettings>,
    served: &BTreeMap<String, ServedIn>,
    resyncs: &Resyncs,
) -> Result<(watch::Receiver<Snapshot>, Vec<Arc<ProviderStatus>>)> {
    let (mut sources, mut statuses) = (Vec::new(), Vec::new());
    for provider in providers {
        let status = ProviderStatus::of(provider.name());
        let (ports, served) = (ports.to_vec(), served.clone());
        let source =
            start(provider, ports, terms.clone(), Arc::clone(&status), served, resyncs.clone());
        sources.push(source.await?);
        statuses.push(status);
    }
    Ok((join(sources), statuses))
}

/// Whether providers that run could go by these terms.
///
/// # Errors
/// A backend that is given twice.
pub fn check(providers: &[Provider], ports: &[PortSpec], terms: &ProviderSettings) -> Result<()> {
    if providers.contains(&Provider::Static) {
        static_::check(ports, terms)?;
    }
    Ok(())
}

/// One source for several.
#[must_use]
pub fn join(mut sources: Vec<watch::Receiver<Snapshot>>) -> watch::Receiver<Snapshot> {
    if sources.len() == 1
        && let Some(only) = sources.pop()
    {
        return only;
    }
    let (snapshots, receiver) = watch::channel(joined(&mut sources));
    tokio::spawn(async move {
        // An engine is followed until no receiver is left: its sender ends after its receiver.
        loop {
            let changed = select_all(sources.iter_mut().map(|source| Box::pin(source.changed())));
            tokio::select! {
                () = snapshots.closed() => return,
                (Ok(()), ..) = changed => {}
                else => return,
            }
            publish(&snapshots, joined(&mut sources));
        }
    });
    receiver
}

/// What all of them offer.
fn joined(sources: &mut [watch::Receiver<Snapshot>]) -> Snapshot {
    let all = sources.iter_mut().map(|source| source.borrow_and_update().clone());
    let all: Vec<Snapshot> = all.collect();
    // In force are only the terms that all of them go by.
    let generation = all.iter().map(|one| one.generation).min().unwrap_or_default();
    let mut candidates: Vec<_> = all.into_iter().flat_map(|one| one.candidates).collect();
    sort(&mut candidates);
    Snapshot { candidates, generation }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::test::candidate;

    #[test]
    fn terms_are_in_force_when_all_providers_go_by_them() {
        let of = |name, generation| Snapshot { candidates: vec![candidate(name)], generation };
        let (first, one) = watch::channel(of("b", 2));
        let (_second, other) = watch::channel(of("a", 1));
        let mut sources = [one, other];
        assert_eq!(joined(&mut sources).generation, 1);
        first.send_replace(of("b", 0));
        let all = joined(&mut sources);
        let names: Vec<_> = all.candidates.iter().map(|one| one.name.as_str()).collect();
        assert_eq!((all.generation, names), (0, vec!["a", "b"]));
    }
}
