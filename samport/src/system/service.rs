//! What a service manager that started us is told: sd_notify(3). Without one there is nothing to tell.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// Everything is at work.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// What is to be done is being read again; [`ready`] says when that is over.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!("what time it is cannot be told: {error}"),
    }
}

/// The end has begun.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(what: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(what) {
        tracing::debug!("the service manager does not hear us: {error}");
    }
}

/// The loop's sign of life, given after a round. There is no timer behind it: a loop that hangs, or does not get to a
/// round, gives none, and the service manager restarts samport. A round that has failed is a sign of life: it is
/// tried again every second, and what is in its way (a full disk) would be in the way of the next start too.
#[derive(Debug)]
pub struct Pulse {
    /// How long the manager waits for a sign of life, if it does.
    patience: Option<Duration>,
    given: Option<Instant>,
    said: String,
}

impl Pulse {
    /// As the service manager wants it.
    #[must_use]
    pub fn of_environment() -> Self {
        Self { patience: sd_notify::watchdog_enabled(), given: None, said: String::new() }
    }

    /// The longest the loop may rest.
    #[must_use]
    pub fn rest(&self) -> Duration {
        self.patience.map_or(Duration::MAX, |patience| patience / 3)
    }

    /// Gives a sign of life if it is time, and says how it is if that has changed.
    pub fn beat(&mut self, status: impl FnOnce() -> String) {
        let Some(rest) = self.patience.map(|_| self.rest()) else { return self.say(status()) };
        if self.given.is_none_or(|given| given.elapsed() >= rest / 2) {
            self.given = Some(Instant::now());
            tell(&[NotifyState::Watchdog]);
        }
        self.say(status());
    }

    fn say(&mut self, status: String) {
        if status != self.said {
            tell(&[NotifyState::Status(&status)]);
            self.said = status;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loop_rests_shorter_than_the_managers_patience() {
        let pulse = |patience| Pulse { patience, given: None, said: String::new() };
        assert_eq!(pulse(Some(Duration::from_mins(1))).rest(), Duration::from_secs(20));
        assert_eq!(pulse(None).rest(), Duration::MAX);
    }

    #[test]
    fn a_sign_of_life_is_given_once_in_a_while() {
        let patience = Some(Duration::from_hours(1));
        let mut pulse = Pulse { patience, given: None, said: String::new() };
        pulse.beat(|| "1 backend".to_owned());
        let first = pulse.given.unwrap();
        pulse.beat(|| "2 backends".to_owned());
        assert_eq!((pulse.given.unwrap(), pulse.said.as_str()), (first, "2 backends"));
    }
}
