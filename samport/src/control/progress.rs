//! How the control loop gets on: when it last completed a round, and what it waits for. Written down beside the
//! record by a separate task, so that a loop that hangs is seen too.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::system::instance;
use crate::system::resyncs::{Gap, Resyncs};

/// How the loop gets on that keeps the kernel as it should be.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct ControlLoop {
    /// Rounds so far: whatever changes, and at least every 10 seconds, everything is compared with what it should be.
    pub rounds: u64,
    /// Milliseconds since it last completed a round without an error; null if that is not known.
    pub last_round_ms: Option<u64>,
    /// Whether that is longer ago than 30 seconds.
    pub is_stalled: bool,
    /// What it waits for.
    pub waits_for: String,
    /// Why its last round has failed; empty if it has not.
    pub error: String,
    /// Programs it has attached again because somebody else had taken them off their hooks.
    pub reattached: u64,
    /// Pins it has made again because somebody else had removed them.
    #[serde(default)]
    pub repinned: u64,
    /// How often something may have been missed, by where, so that everything was looked at again.
    pub resyncs: BTreeMap<String, u64>,
}

/// A loop that has not completed a round for so long hangs. It looks around every 10 seconds, and each wait within
/// a round has a limit of 5 or less.
pub const STALLED: Duration = Duration::from_secs(30);

/// How often the loop is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// A look that is late by so much says that the process did not run meanwhile, or hardly.
const PAUSE: Duration = Duration::from_secs(3);

/// What is written down.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Written {
    /// The last round without an error, in milliseconds of CLOCK_MONOTONIC.
    good_ms: u64,
    rounds: u64,
    waits_for: String,
    error: String,
    reattached: u64,
    #[serde(default)]
    repinned: u64,
    resyncs: BTreeMap<String, u64>,
}

/// A running loop's. Clones are of the same loop.
#[derive(Clone, Debug)]
pub struct Progress {
    now: Arc<Mutex<Now>>,
    resyncs: Resyncs,
}

#[derive(Debug)]
struct Now {
    good_ms: u64,
    rounds: u64,
    waits_for: &'static str,
    error: String,
    reattached: u64,
    repinned: u64,
}

impl Progress {
    /// Of a loop that begins now.
    #[must_use]
    pub fn begin(resyncs: Resyncs) -> Self {
        let (good_ms, waits_for) = (monotonic_ms(), "the start");
        let now =
            Now { good_ms, rounds: 0, waits_for, error: String::new(), reattached: 0, repinned: 0 };
        Self { now: Arc::new(Mutex::new(now)), resyncs }
    }

    /// Where gaps are counted.
    #[must_use]
    pub const fn resyncs(&self) -> &Resyncs {
        &self.resyncs
    }

    /// Says what comes next.
    pub fn waits_for(&self, what: &'static str) {
        self.now().waits_for = what;
    }

    /// Counts a round.
    pub fn round(&self, outcome: &Result<()>) {
        let mut now = self.now();
        now.rounds += 1;
        match outcome {
            Ok(()) => {
                now.good_ms = monotonic_ms();
                now.error.clear();
            }
            Err(error) => now.error = format!("{error:#}"),
        }
    }

    /// Counts programs that somebody else had taken off their hooks.
    pub fn reattached(&self, programs: u64) {
        self.now().reattached += programs;
    }

    /// Counts pins that somebody else had removed.
    pub fn repinned(&self, pins: u64) {
        self.now().repinned += pins;
    }

    /// How many programs there have been.
    #[must_use]
    pub fn reattachments(&self) -> u64 {
        self.now().reattached
    }

    /// Why the last round has failed; empty if it has not.
    #[must_use]
    pub fn error(&self) -> String {
        self.now().error.clone()
    }

    /// As it is shown.
    #[must_use]
    pub fn shown(&self) -> ControlLoop {
        shown(&self.written(), monotonic_ms())
    }

    /// Why the loop is not well, if it is not.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        trouble(&self.shown())
    }

    /// Watches the loop until what this returns is dropped: writes down how it gets on, and says when it hangs. Finds
    /// also that the whole process has not run for a while.
    #[must_use]
    pub fn watch(&self, path: PathBuf) -> Watching {
        let file = Arc::new(Mutex::new(Some(path)));
        let task = tokio::spawn(self.clone().follow(Arc::clone(&file)));
        Watching { file, task }
    }

    async fn follow(self, file: Arc<Mutex<Option<PathBuf>>>) {
        let (mut written, mut said) = (Written::default(), false);
        let mut last = Instant::now();
        loop {
            let late = last.elapsed().saturating_sub(LOOK);
            last = Instant::now();
            if late > PAUSE {
                tracing::warn!(
                    "samport did not run for {:.1} s (stopped, frozen or starved); everything is looked at again",
                    late.as_secs_f32()
                );
                self.resyncs.count(Gap::Pause);
            }
            let now = self.written();
            let trouble = trouble(&shown(&now, monotonic_ms()));
            match (&trouble, std::mem::replace(&mut said, trouble.is_some())) {
                (Some(trouble), false) => tracing::error!("{trouble}"),
                (None, true) => tracing::info!("the control loop goes on"),
                _ => {}
            }
            if now != written {
                let file = file.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(Err(error)) = file.as_ref().map(|path| write(path, &now)) {
                    tracing::debug!("{error:#}");
                }
                written = now;
            }
            sleep(LOOK).await;
        }
    }

    fn written(&self) -> Written {
        let resyncs = self.resyncs.counts();
        let now = self.now();
        Written {
            good_ms: now.good_ms,
            rounds: now.rounds,
            waits_for: now.waits_for.to_owned(),
            error: now.error.clone(),
            reattached: now.reattached,
            repinned: now.repinned,
            resyncs,
        }
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A loop that is watched. Dropping it ends that, and removes what was written down.
#[derive(Debug)]
pub struct Watching {
    /// Where it is written down, until the end.
    file: Arc<Mutex<Option<PathBuf>>>,
    task: JoinHandle<()>,
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.task.abort();
        // A task is aborted at its next wait: what it writes until then would stay.
        if let Some(path) = self.file.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Writes it whole or not at all.
fn write(path: &Path, written: &Written) -> Result<()> {
    let new = instance::progress_draft(path);
    let text = serde_json::to_vec(written).context("cannot encode the loop's progress")?;
    let mut options = std::fs::File::options();
    options.create(true).truncate(true).write(true).mode(0o600);
    options
        .open(&new)
        .and_then(|mut file| file.write_all(&text))
        .and_then(|()| std::fs::rename(&new, path))
        // On a full disk there is a part of it.
        .inspect_err(|_| drop(std::fs::remove_file(&new)))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// What a running instance has written down. Nothing, if it cannot be read: it has just begun, or ends.
#[must_use]
pub fn read(path: &Path) -> ControlLoop {
    let text = std::fs::read(path).unwrap_or_default();
    let written = serde_json::from_slice(&text);
    written.map_or_else(|_| ControlLoop::default(), |written| shown(&written, monotonic_ms()))
}

/// How it is shown at this time.
fn shown(written: &Written, now_ms: u64) -> ControlLoop {
    let since = now_ms.saturating_sub(written.good_ms);
    ControlLoop {
        rounds: written.rounds,
        last_round_ms: Some(since),
        is_stalled: u128::from(since) > STALLED.as_millis(),
        waits_for: written.waits_for.clone(),
        error: written.error.clone(),
        reattached: written.reattached,
        repinned: written.repinned,
        resyncs: written.resyncs.clone(),
    }
}

/// What is wrong with a loop, in a sentence.
#[must_use]
pub fn trouble(control: &ControlLoop) -> Option<String> {
    let since = control.last_round_ms.filter(|_| control.is_stalled)?;
    let why = if control.error.is_empty() {
        format!("it waits for {}", control.waits_for)
    } else {
        control.error.clone()
    };
    let seconds = since / 1_000;
    Some(format!("the control loop has not completed a round for {seconds} s: {why}"))
}

fn monotonic_ms() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.cast_unsigned() * 1_000 + now.tv_nsec.cast_unsigned() / 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(good_ms: u64, error: &str) -> Written {
        let waits_for = "the list of links".to_owned();
        Written { good_ms, waits_for, error: error.into(), ..Written::default() }
    }

    #[test]
    fn a_loop_hangs_when_it_has_not_completed_a_round_for_30_seconds() {
        let at = |now_ms, error| trouble(&shown(&written(1_000, error), now_ms));
        assert_eq!(at(31_000, ""), None);
        let said = "the control loop has not completed a round for 41 s: ";
        assert_eq!(at(42_500, "").unwrap(), format!("{said}it waits for the list of links"));
        assert_eq!(at(42_500, "attach to eth0").unwrap(), format!("{said}attach to eth0"));
        // Another clock's, as after a restart of the machine.
        assert_eq!(at(500, ""), None);
    }

    #[test]
    fn a_round_that_fails_is_none_that_was_completed() {
        let progress = Progress::begin(Resyncs::default());
        progress.now().good_ms = 7;
        progress.round(&Err(anyhow::anyhow!("list links: no answer")));
        let now = progress.written();
        assert_eq!((now.good_ms, now.rounds, &*now.error), (7, 1, "list links: no answer"));
        progress.round(&Ok(()));
        let now = progress.written();
        assert_eq!((now.good_ms > 7, now.rounds, &*now.error), (true, 2, ""));
    }

    #[test]
    fn what_is_written_down_is_read_and_what_cannot_be_is_not_known() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("eth0:80@1.loop");
        assert_eq!(read(&path), ControlLoop::default());
        let progress = Progress::begin(Resyncs::default());
        progress.resyncs().count(Gap::Netlink);
        progress.waits_for("places");
        write(&path, &progress.written()).unwrap();
        let control = read(&path);
        assert_eq!((control.waits_for.as_str(), control.resyncs["netlink"]), ("places", 1));
        assert!(!control.is_stalled);
    }
}
