//! What a waiting user is told: nothing for a second, then how far it is, each time that changes.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;

/// The wait that needs no explanation.
const SECOND: Duration = Duration::from_secs(1);

/// Says that something takes its time, unless it is dropped before.
pub(super) struct Patience(JoinHandle<()>);

impl Patience {
    /// Begins to wait.
    pub(super) fn with(what: &'static str) -> Self {
        Self(tokio::spawn(async move {
            tokio::time::sleep(SECOND).await;
            tracing::info!("{what} …");
        }))
    }
}

impl Drop for Patience {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// How far something is that is looked at again and again.
pub(super) struct Progress {
    next: Instant,
    said: String,
}

impl Progress {
    /// It begins now.
    pub(super) fn new() -> Self {
        Self { next: Instant::now() + SECOND, said: String::new() }
    }

    /// Says how far it is, once a second at most and only if that is new.
    pub(super) fn tell(&mut self, how_far: impl FnOnce() -> String) {
        let now = Instant::now();
        if now < self.next {
            return;
        }
        self.next = now + SECOND;
        let how_far = how_far();
        if how_far != self.said {
            tracing::info!("{how_far}");
            self.said = how_far;
        }
    }
}
