//! Backends that the kernel has seen fail a connection.

use super::Reconciler;
use crate::dataplane::{Events, Failure};

/// The next failure. Never, if the kernel cannot be heard.
pub(super) async fn next(events: &mut Option<Events>) -> Failure {
    if let Some(ring) = events {
        match ring.next().await {
            Ok(failure) => return failure,
            Err(error) => tracing::error!("failing backends are not reported any more: {error:#}"),
        }
    }
    *events = None;
    std::future::pending().await
}

impl Reconciler {
    /// Tells the user, and has its health looked at. New flows avoid it already: that is the kernel's work.
    pub(super) fn report(&self, failure: Failure) {
        let Failure { backend, refused, avoided } = failure;
        let Some((key, _)) = self.actual.backends().find(|(_, id)| *id == backend) else { return };
        let name = self.shown.get(key).map_or("a backend that leaves", |share| &share.name);
        tracing::warn!(
            "! {name} {} on {} {}; new connections avoid it for {} s",
            key.endpoint,
            key.listen.place(),
            if refused { "refuses connections" } else { "does not answer" },
            avoided.as_secs()
        );
        self.health.check_now(key.endpoint);
    }
}
