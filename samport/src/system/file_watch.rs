//! Files that are followed as they change.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use crate::system::resyncs::{Gap, Resyncs};

/// Writers touch a file several times in a row; this long after the first touch it is read.
const SETTLE: Duration = Duration::from_millis(5);

/// Between two looks at a file of which nothing is heard.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// A file that may change, or another one in its folder.
pub struct FileWatch {
    touches: mpsc::Receiver<()>,
    _watcher: notify::RecommendedWatcher,
}

impl FileWatch {
    /// Follows a file from now on.
    ///
    /// # Errors
    /// When its folder cannot be watched.
    pub async fn start(path: &Path, resyncs: &Resyncs) -> Result<Self> {
        let (wake, touches) = mpsc::channel(1);
        let (path, resyncs) = (path.to_owned(), resyncs.clone());
        // Its thread inherits from the one that starts it, and is to have no more privileges than the others.
        let watcher = spawn_blocking(move || watch_folder(&path, wake, resyncs)).await??;
        Ok(Self { touches, _watcher: watcher })
    }

    /// Waits until it may have changed, and whoever changes it has probably finished. That is so now and then anyway:
    /// its folder may have been replaced, or what happened there been missed.
    pub async fn touched(&mut self) {
        match timeout(LOOK_AGAIN, self.touches.recv()).await {
            Ok(Some(())) => sleep(SETTLE).await,
            // The watcher has ended, and sees nothing any more.
            Ok(None) => sleep(LOOK_AGAIN).await,
            Err(_) => {}
        }
    }
}

/// Watches the folder, not the file: editors and deployments put a new file in the old one's place.
fn watch_folder(
    path: &Path,
    wake: mpsc::Sender<()>,
    resyncs: Resyncs,
) -> Result<notify::RecommendedWatcher> {
    // The watcher's own words name neither the file nor the trouble.
    std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
    let folder = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let is_gap = event.as_ref().map_or(true, notify::Event::need_rescan);
        if is_gap {
            resyncs.count(Gap::File);
        }
        if is_gap || event.is_ok_and(|event| changes(event.kind)) {
            // A full channel already says that there is something to read.
            let _ = wake.try_send(());
        }
    })?;
    watcher
        .watch(folder, RecursiveMode::NonRecursive)
        .with_context(|| format!("cannot watch {} for changes", folder.display()))?;
    Ok(watcher)
}

/// Whether a file may have changed. Reading it is an event too, and would wake us forever.
fn changes(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(access) => access == AccessKind::Close(AccessMode::Write),
        _ => true,
    }
}
