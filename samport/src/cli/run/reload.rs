//! The configuration while it is in force: read again on SIGHUP and when its file changes, and applied whole
//! or not at all.

use std::convert::Infallible;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::signal::unix::Signal;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use super::config::Config;
use super::reloadable::{Effect, effect};
use crate::api::metrics;
use crate::cli::file::File;
use crate::cli::provenance::{Effective, changed};
use crate::cli::resolved::{self, ResolvedConfig};
use crate::control::reconcile::{LoopSettings, NewRules};
use crate::discovery::{self, ProviderSettings};
use crate::system::file_watch::FileWatch;
use crate::system::resyncs::Resyncs;
use crate::system::sd_notify;

/// How long a change may take until it counts as late: an engine that is away takes no terms.
const TAKING_EFFECT: Duration = Duration::from_secs(5);

/// What may be changed of a run, and where it goes.
pub(super) struct ReloadHandles {
    pub(super) terms: watch::Sender<ProviderSettings>,
    pub(super) rules: mpsc::Sender<NewRules>,
    /// The metrics' server, if there is one.
    pub(super) metrics: Option<metrics::Server>,
    /// What it serves.
    pub(super) source: metrics::MetricsSource,
}

impl ReloadHandles {
    /// Has providers and the loop go by other terms and rules, and says whether the kernel has what follows
    /// from them, and whoever looks sees it.
    ///
    /// # Errors
    /// If the loop takes nothing: then nothing has changed.
    async fn rule(&self, terms: ProviderSettings, rules: LoopSettings) -> Result<bool> {
        // A loop that has ended is at the end of the run.
        let Ok(room) = timeout(TAKING_EFFECT, self.rules.reserve()).await else {
            let trouble = self.source.progress.shown().waits_for;
            bail!("the control loop takes no other configuration: it waits for {trouble}");
        };
        let Ok(room) = room else { return Ok(false) };
        let (done, is_done) = oneshot::channel();
        let generation = terms.generation;
        self.terms.send_replace(terms);
        room.send(NewRules { rules, generation, done });
        Ok(timeout(TAKING_EFFECT, is_done).await.is_ok_and(|done| done.is_ok()))
    }

    /// Serves metrics elsewhere, or nowhere. Returns when the old address is free.
    async fn move_metrics(&mut self, to: Option<metrics::Server>) {
        if let Some(old) = std::mem::replace(&mut self.metrics, to) {
            old.end().await;
        }
    }
}

/// Keeps a run as its configuration is.
pub(super) struct Reloader {
    config: Config,
    /// Every key as it is in force: what waits for the next start is as it was at this one.
    effective: Vec<Effective>,
    file: Option<ReloadSource>,
    hang_up: Signal,
    handles: ReloadHandles,
}

/// The file, followed.
struct ReloadSource {
    path: PathBuf,
    /// The last text read, good or bad: what is bad is complained about once.
    text: Option<String>,
    watch: Option<FileWatch>,
}

impl ReloadSource {
    /// The text is what was read: what has changed since then is new.
    async fn of(File { path, text, .. }: File, resyncs: &Resyncs) -> Self {
        let watch = FileWatch::start(&path, resyncs).await;
        if let Err(error) = &watch {
            tracing::warn!("{error:#}; changes of the configuration take effect on SIGHUP only");
        }
        Self { path, text: Some(text), watch: watch.ok() }
    }

    /// Waits until there is another text, or none any more.
    async fn changed(&mut self) {
        while !self.is_new() {
            match &mut self.watch {
                Some(watch) => watch.touched().await,
                None => std::future::pending().await,
            }
        }
    }

    /// Whether its text is another than the last time.
    fn is_new(&mut self) -> bool {
        let text = std::fs::read_to_string(&self.path).ok();
        let is_new = text != self.text;
        self.text = text;
        is_new
    }
}

impl Reloader {
    /// For a run that was started with this.
    pub(super) async fn new(
        asked: ResolvedConfig,
        config: Config,
        hang_up: Signal,
        handles: ReloadHandles,
    ) -> Self {
        let file = match asked.file {
            Some(file) => Some(ReloadSource::of(file, handles.source.progress.resyncs()).await),
            None => None,
        };
        Self { config, effective: asked.effective, file, hang_up, handles }
    }

    /// What is in force.
    pub(super) fn config(&self) -> &Config {
        &self.config
    }

    /// Follows the file and listens to SIGHUP for as long as it is asked to.
    pub(super) async fn follow(&mut self) -> Infallible {
        loop {
            let Some(file) = &mut self.file else {
                self.hang_up.recv().await;
                tracing::info!(
                    "SIGHUP: there is no configuration file (--config), nothing to reload"
                );
                continue;
            };
            tokio::select! {
                () = file.changed() => {}
                _ = self.hang_up.recv() => {
                    file.is_new();
                }
            }
            self.reload().await;
        }
    }

    async fn reload(&mut self) {
        sd_notify::reloading();
        match self.try_reload().await {
            Ok(changes) => changes.say(),
            Err(error) => tracing::error!("{error:#}\nthe configuration stays as it was"),
        }
        sd_notify::ready();
    }

    /// Nothing is done before everything is known to be good.
    async fn try_reload(&mut self) -> Result<Changes> {
        let asked = resolved::configuration()?;
        let mut config = asked.flags.config(self.config.dataplane.log)?;
        let mut changes = Changes::of(&changed(&self.effective, &asked.effective));
        if config.providers != self.config.providers {
            // Backends come from somewhere else: so do their rules, and both wait.
            changes.wait_for_providers();
            config.terms.backends.clone_from(&self.config.terms.backends);
            config.terms.filters.clone_from(&self.config.terms.filters);
        }
        discovery::check(&self.config.providers, &self.config.ports, &config.terms)?;
        if config.metrics != self.config.metrics {
            let listener = config.metrics.map(metrics::listen).transpose()?;
            let start = |at| metrics::Server::start(at, self.handles.source.clone());
            let server = listener.map(start).transpose()?;
            self.handles.move_metrics(server).await;
        }
        config.terms.generation = self.config.terms.generation + 1;
        changes.is_late = !self.handles.rule(config.terms.clone(), config.rules()).await?;
        self.config.take(config);
        self.effective = in_force(&self.effective, asked.effective, &changes.waiting);
        Ok(changes)
    }
}

/// The new values, but the old ones of keys that wait.
fn in_force(old: &[Effective], new: Vec<Effective>, waiting: &[String]) -> Vec<Effective> {
    let one = |(new, old): (Effective, &Effective)| {
        if waiting.contains(&new.key) { old.clone() } else { new }
    };
    new.into_iter().zip(old).map(one).collect()
}

/// What a reload has changed.
#[derive(PartialEq, Eq, Default, Debug)]
struct Changes {
    /// Keys that are in force.
    done: Vec<String>,
    /// They are not in force yet: the kernel has refused them for now, or an engine is away.
    is_late: bool,
    /// Keys that are not before the next start.
    waiting: Vec<String>,
}

impl Changes {
    fn of(changed: &[&str]) -> Self {
        let (done, waiting) = changed
            .iter()
            .map(|key| (*key).to_owned())
            .partition(|key| effect(key) == Effect::AtOnce);
        Self { done, waiting, is_late: false }
    }

    fn wait_for_providers(&mut self) {
        let of_provider = |key: &String| ["backend", "filter"].contains(&key.as_str());
        self.waiting.extend(self.done.extract_if(.., |key| of_provider(key)));
    }

    fn say(&self) {
        if let Some(line) = self.line() {
            tracing::info!("{line}");
        }
        if !self.waiting.is_empty() {
            let keys = self.waiting.join(", ");
            tracing::warn!("configuration: {keys}: takes effect at the next start");
        }
    }

    fn line(&self) -> Option<String> {
        match (&self.done[..], &self.waiting[..]) {
            ([], []) => Some("configuration read again: nothing has changed".to_owned()),
            ([], _) => None,
            (done, _) if self.is_late => {
                Some(format!("configuration noted, not yet in force: {}", done.join(", ")))
            }
            (done, _) => Some(format!("configuration applied: {}", done.join(", "))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_changed_is_in_force_or_waits_for_the_next_start() {
        let mut changes = Changes::of(&["balance", "hook", "backend", "drain"]);
        assert_eq!(changes.done, ["balance", "backend", "drain"]);
        assert_eq!(changes.waiting, ["hook"]);
        changes.wait_for_providers();
        assert_eq!(changes.waiting, ["hook", "backend"]);
        assert_eq!(changes.line().unwrap(), "configuration applied: balance, drain");
        assert_eq!(Changes::of(&["hook"]).line(), None);
        assert!(Changes::default().line().unwrap().contains("nothing"));
    }
}
