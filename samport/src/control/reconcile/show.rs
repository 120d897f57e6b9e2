//! What the user is told as backends come, change and go: one line each.

use super::Reconciler;
use crate::control::handle::BackendRef;
use crate::model::{Candidate, Snapshot, State};
use crate::plan::{BackendKey, Desired, Share};
use crate::system::escape;

impl Reconciler {
    /// One line for everything that is new to the user.
    pub(super) fn show(&mut self, desired: &Desired, snapshot: &Snapshot) {
        for news in self.news.drain(..) {
            tracing::info!("{news}");
        }
        // Few: those that came while we watched.
        let watched = snapshot.candidates.iter().filter(|candidate| candidate.started.is_some());
        let watched: Vec<_> = watched.collect();
        for (key, share) in &desired.backends {
            let before = self.shown.get(key);
            let who = format!("{} {} on {}", share.name, key.endpoint, key.listen.place());
            match (before.map(|share| share.state), share.state) {
                (None, State::Active) => {
                    let after = since_start(key, &watched);
                    tracing::info!("+ {who} by {}{after}", key.route.name());
                }
                (before, State::Unhealthy) if before != Some(State::Unhealthy) => {
                    let why = self.health.failure(&key.id, key.endpoint);
                    tracing::info!("- {who} unhealthy: {}", why.unwrap_or("its HEALTHCHECK fails"));
                }
                (Some(State::Unhealthy), State::Active) => tracing::info!("+ {who} healthy again"),
                (Some(State::Active | State::Unhealthy), State::Draining) => {
                    tracing::info!("- {who} draining");
                }
                (Some(State::Draining), State::Active) => tracing::info!("+ {who} back"),
                _ => tell_of_name_and_weight(&who, before, share),
            }
        }
        for (key, share) in &self.shown {
            if !desired.backends.contains_key(key) {
                let place = key.listen.place();
                let is_down = self.drains.down().contains_key(&BackendRef::from(key));
                let how = if is_down { "down" } else { "gone" };
                tracing::info!("- {} {} on {place} {how}", share.name, key.endpoint);
            }
        }
        self.shown.clone_from(&desired.backends);
    }

    /// How it is, in one line for a service manager.
    pub(super) fn summary(&self) -> String {
        let (all, active) = (self.shown.len(), State::Active);
        let active = self.shown.values().filter(|share| share.state == active).count();
        let plural = if all == 1 { "" } else { "s" };
        let mut summary = format!("{all} backend{plural}, {active} active");
        let error = self.progress.error();
        if !error.is_empty() {
            summary.push_str("; trying again: ");
            // One line: the manager takes the next for another word.
            summary.push_str(&escape::line(&error));
        }
        summary
    }
}

fn tell_of_name_and_weight(who: &str, before: Option<&Share>, now: &Share) {
    match before {
        Some(before) if before.name != now.name => tracing::info!("~ {who} was {}", before.name),
        Some(before) if before.weight != now.weight => {
            tracing::info!("~ {who} weight {}", now.weight);
        }
        _ => {}
    }
}

/// How long after its start a container began to serve, if it was started while we watched.
fn since_start(key: &BackendKey, watched: &[&Candidate]) -> String {
    watched
        .iter()
        .find(|c| c.id == key.id && c.endpoint == key.endpoint && c.listen == key.listen)
        .and_then(|candidate| candidate.started?.elapsed().ok())
        .map(|elapsed| format!(", {} ms after its start", elapsed.as_millis()))
        .unwrap_or_default()
}
