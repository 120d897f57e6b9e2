//! What a service manager that started us is told: sd_notify(3). Without one there is nothing to tell.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// Everything is at work.
pub fn ready() {
    send(&[NotifyState::Ready]);
}

/// What is to be done is being read again; [`ready`] says when that is over.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => send(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!("what time it is cannot be told: {error}"),
    }
}

/// The end has begun.
pub fn stopping() {
    send(&[NotifyState::Stopping]);
}

fn send(what: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(what) {
        tracing::debug!("the service manager does not hear us: {error}");
    }
}

/// The loop's sign of life, given after a round. There is no timer behind it: a loop that hangs, or does not get to a
/// round, gives none, and the service manager restarts samport. A round that has failed is a sign of life: it is
/// tried again every second, and what is in its way (a full disk) would be in the way of the next start too.
#[derive(Debug)]
pub struct Watchdog {
    /// How long the manager waits for a sign of life, if it does.
    timeout: Option<Duration>,
    given: Option<Instant>,
    said: String,
}

impl Watchdog {
    /// As the service manager wants it.
    #[must_use]
    pub fn of_environment() -> Self {
        Self { timeout: sd_notify::watchdog_enabled(), given: None, said: String::new() }
    }

    /// The longest the loop may rest.
    #[must_use]
    pub fn rest(&self) -> Duration {
        self.timeout.map_or(Duration::MAX, |timeout| timeout / 3)
    }

    /// Gives a sign of life if it is time, and says how it is if that has changed.
    pub fn notify(&mut self, status: impl FnOnce() -> String) {
        let Some(rest) = self.timeout.map(|_| self.rest()) else { return self.say(status()) };
        if self.given.is_none_or(|given| given.elapsed() >= rest / 2) {
            self.given = Some(Instant::now());
            send(&[NotifyState::Watchdog]);
        }
        self.say(status());
    }

    fn say(&mut self, status: String) {
        if status != self.said {
            send(&[NotifyState::Status(&status)]);
            self.said = status;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loop_rests_shorter_than_the_managers_patience() {
        let watchdog = |timeout| Watchdog { timeout, given: None, said: String::new() };
        assert_eq!(watchdog(Some(Duration::from_mins(1))).rest(), Duration::from_secs(20));
        assert_eq!(watchdog(None).rest(), Duration::MAX);
    }

    #[test]
    fn a_sign_of_life_is_given_once_in_a_while() {
        let timeout = Some(Duration::from_hours(1));
        let mut watchdog = Watchdog { timeout, given: None, said: String::new() };
        watchdog.notify(|| "1 backend".to_owned());
        let first = watchdog.given.unwrap();
        watchdog.notify(|| "2 backends".to_owned());
        assert_eq!((watchdog.given.unwrap(), watchdog.said.as_str()), (first, "2 backends"));
    }
}
