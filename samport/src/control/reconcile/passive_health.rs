//! Backends that the kernel has seen fail connections: who is checked, and who is avoided for it.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use tokio::sync::{mpsc, watch};

use super::Reconciler;
use crate::dataplane::{Ask, Events, Failing, Failure, RingEvent};
use crate::discovery::health::evidence::{self, Finding};
use crate::plan::{BackendId, BackendKey};
use crate::system::resyncs::Gap;

/// What the kernel's programs tell next. Never, if they cannot be heard.
pub(super) async fn next(events: &mut Option<Events>) -> RingEvent {
    if let Some(ring) = events {
        match ring.next().await {
            Ok(told) => return told,
            Err(error) => tracing::error!("failing backends are not reported any more: {error:#}"),
        }
    }
    *events = None;
    std::future::pending().await
}

/// Checks on evidence that run, one for a backend at a time.
pub(super) struct Confirmations {
    running: BTreeSet<BackendId>,
    report: mpsc::UnboundedSender<Confirmation>,
    reports: mpsc::UnboundedReceiver<Confirmation>,
}

/// What such a check has come to.
pub(super) struct Confirmation {
    backend: BackendId,
    failing: Failing,
    finding: Finding,
}

impl Default for Confirmations {
    fn default() -> Self {
        let (report, reports) = mpsc::unbounded_channel();
        Self { running: BTreeSet::new(), report, reports }
    }
}

impl Confirmations {
    /// The next outcome.
    pub(super) async fn next(&mut self) -> Confirmation {
        match self.reports.recv().await {
            Some(done) => {
                self.running.remove(&done.backend);
                done
            }
            // Never: the other end is ours.
            None => std::future::pending().await,
        }
    }
}

impl Reconciler {
    /// Hears what the kernel's programs tell. If some of it may be lost, every backend is checked.
    pub(super) fn hear(&mut self, told: RingEvent) {
        match told {
            RingEvent::Failure(failure) => self.look_into(failure),
            RingEvent::Overrun => {
                self.progress.resyncs().count(Gap::KernelEvents);
                self.health.check_all_now();
                self.netlink.neighbours().doubt_all();
            }
        }
    }

    /// Has a backend looked at, as the kernel asks. One client's word changes nothing by itself.
    fn look_into(&mut self, failure: Failure) {
        let Failure { backend, failing, ask } = failure;
        let Some(key) = self.key_of(backend) else { return };
        let endpoint = key.endpoint;
        tracing::debug!("{endpoint} {}; asked for: {ask:?}", words(failing));
        self.health.check_now(endpoint);
        // The check follows the kernel's neighbours, and the packets to where these were once.
        if failing != Failing::Refused {
            self.netlink.neighbours().doubt(endpoint.ip());
        }
        if ask == Ask::Confirm {
            self.confirm(backend, failing, endpoint);
        }
    }

    fn confirm(&mut self, backend: BackendId, failing: Failing, endpoint: SocketAddr) {
        // Without a check of ours nothing can confirm it, and no other client avoids the backend.
        let Some(check) = self.health.check_on_evidence(endpoint) else { return };
        if !self.confirmations.running.insert(backend) {
            return;
        }
        let report = self.confirmations.report.clone();
        tokio::spawn(async move {
            let finding = evidence::confirm(endpoint, &check).await;
            // The receiver goes when we do.
            let _ = report.send(Confirmation { backend, failing, finding });
        });
    }

    /// Makes new connections avoid the backend if the check has confirmed that it fails.
    pub(super) fn conclude(&mut self, done: Confirmation) {
        let Confirmation { backend, failing, finding } = done;
        let outcome = match &finding {
            Finding::Failing(_) => self.dataplane.confirm(backend),
            Finding::Well => self.dataplane.refute(backend).map(|()| None),
            Finding::Unknown(_) => Ok(None),
        };
        let avoided = match outcome {
            Ok(avoided) => avoided,
            Err(error) => return tracing::error!("cannot write the result of a check: {error:#}"),
        };
        let Some(key) = self.key_of(backend) else { return };
        let name = self.shown.get(&key).map_or("a backend that leaves", |share| &share.name);
        let (endpoint, place) = (key.endpoint, key.listen.place());
        match (finding, avoided) {
            (Finding::Failing(why), Some(avoided)) => tracing::warn!(
                "! {name} {endpoint} on {place} {}, and its check fails: {why}; new connections avoid it \
                 for {} s",
                words(failing),
                avoided.as_secs()
            ),
            (Finding::Well, _) => tracing::debug!(
                "{name} {endpoint} on {place} {}, say several clients; its check passes",
                words(failing)
            ),
            (Finding::Unknown(why), _) => {
                tracing::debug!("{name} {endpoint} on {place} could not be checked: {why}");
            }
            (Finding::Failing(_), None) => {}
        }
    }

    fn key_of(&self, backend: BackendId) -> Option<BackendKey> {
        self.actual.backends().find(|(_, id)| *id == backend).map(|(key, _)| key.clone())
    }
}

const fn words(failing: Failing) -> &'static str {
    match failing {
        Failing::Refused => "refuses connections",
        Failing::Silent => "does not answer",
        Failing::Unreachable => "cannot be reached",
    }
}

/// Waits until a backend may have moved.
pub(super) async fn next_move(moves: &mut Option<watch::Receiver<u64>>) {
    if let Some(moves) = moves
        && moves.changed().await.is_ok()
    {
        return;
    }
    std::future::pending::<()>().await;
}
