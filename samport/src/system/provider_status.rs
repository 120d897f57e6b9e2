//! How a provider is doing, for whoever watches samport.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{SystemTime, UNIX_EPOCH};

/// What a provider says of itself. Each number stands alone: nothing follows from two of them together.
#[derive(Debug)]
pub struct ProviderStatus {
    provider: &'static str,
    connected: AtomicBool,
    events: AtomicU64,
    /// Milliseconds since 1970.
    synced: AtomicU64,
}

impl ProviderStatus {
    /// Of a provider that has not begun.
    #[must_use]
    pub fn of(provider: &'static str) -> Arc<Self> {
        Arc::new(Self {
            provider,
            connected: AtomicBool::new(false),
            events: AtomicU64::new(0),
            synced: AtomicU64::new(0),
        })
    }

    /// The provider's name, as `--provider` has it.
    #[must_use]
    pub const fn provider(&self) -> &'static str {
        self.provider
    }

    /// Whether it can see what changes.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.connected.load(Relaxed)
    }

    /// Changes it has been told of.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.events.load(Relaxed)
    }

    /// When it last knew everything there is, in milliseconds since 1970; 0 for never.
    #[must_use]
    pub fn synced_ms(&self) -> u64 {
        self.synced.load(Relaxed)
    }

    /// It has been told of a change.
    pub(crate) fn happened(&self) {
        self.events.fetch_add(1, Relaxed);
    }

    /// It has lost sight of what it follows.
    pub(crate) fn lost(&self) {
        self.connected.store(false, Relaxed);
    }

    /// It has seen everything there is.
    pub(crate) fn synced(&self) {
        self.connected.store(true, Relaxed);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.synced.store(u64::try_from(now.as_millis()).unwrap_or(u64::MAX), Relaxed);
    }
}
