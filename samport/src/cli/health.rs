//! What decides whether a backend may serve: the flags under "Health".

use std::time::Duration;

use crate::model::check::{CheckOrigin, Config, Rhythm, count, time};

/// Health flags of `samport run`.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Health")]
pub(super) struct HealthFlags {
    /// Set when backends get traffic
    ///
    /// docker: while the HEALTHCHECK passes; containers without one as with tcp. tcp: while the backend accepts
    /// connections. http:/path or http:PORT/path: while it answers with a status of 200 to 399. none: as soon
    /// as it runs. UDP ports accept no connections; with tcp their HEALTHCHECK decides, if there is one.
    /// Backends of --backend and --file are checked only with tcp or http. When connections of several clients
    /// have failed, the backend is checked once more (except with none), and avoided if that fails too.
    #[arg(long = "health", value_name = "HOW", default_value = "docker", env = "SAMPORT_HEALTH")]
    source: CheckOrigin,
    /// Set the time between two checks
    ///
    /// Each check is one connection. A backend that is starting is checked more often.
    #[arg(long = "health-interval", value_name = "TIME", default_value = "5s", value_parser = time, env = "SAMPORT_HEALTH_INTERVAL")]
    interval: Duration,
    /// Set the time limit of a check
    #[arg(long = "health-timeout", value_name = "TIME", default_value = "2s", value_parser = time, env = "SAMPORT_HEALTH_TIMEOUT")]
    timeout: Duration,
    /// Mark healthy after N passes
    ///
    /// Consecutive checks, of a backend that is new or unhealthy.
    #[arg(long = "health-rise", value_name = "N", default_value = "1", value_parser = count, env = "SAMPORT_HEALTH_RISE")]
    rise: u32,
    /// Mark unhealthy after N failures
    ///
    /// Consecutive checks. New connections then go to other backends, if there are any; open ones stay.
    #[arg(long = "health-fall", value_name = "N", default_value = "3", value_parser = count, env = "SAMPORT_HEALTH_FALL")]
    fall: u32,
}

impl HealthFlags {
    /// What holds unless a container's labels say something else.
    pub(super) fn config(&self) -> Config {
        let Self { interval, timeout, rise, fall, .. } = *self;
        Config { source: self.source.clone(), rhythm: Rhythm { interval, timeout, rise, fall } }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        health: HealthFlags,
    }

    fn config(args: &[&str]) -> Result<Config, String> {
        let args = [&["run"], args].concat();
        let flags = Flags::try_parse_from(args).map_err(|error| error.to_string())?;
        Ok(flags.health.config())
    }

    #[test]
    fn without_flags_the_defaults_hold() {
        assert_eq!(config(&[]), Ok(Config::default()));
    }

    #[test]
    fn every_flag_sets_its_own_value() {
        let flags = [
            "--health=http:8080/up",
            "--health-interval=1s",
            "--health-timeout=200ms",
            "--health-rise=3",
            "--health-fall=4",
        ];
        let rhythm = Rhythm {
            interval: Duration::from_secs(1),
            timeout: Duration::from_millis(200),
            rise: 3,
            fall: 4,
        };
        let source = "http:8080/up".parse().unwrap();
        assert_eq!(config(&flags), Ok(Config { source, rhythm }));
    }

    #[test]
    fn wrong_values_are_refused_with_the_flag_and_a_way_out() {
        for (flag, value, way_out) in [
            ("--health", "http", "http:/health"),
            ("--health", "http:x", "http:/health"),
            ("--health-interval", "0", "100ms at least"),
            ("--health-timeout", "0s", "100ms at least"),
            ("--health-rise", "0", "1-1000"),
            ("--health-fall", "0", "1-1000"),
        ] {
            let error = config(&[&format!("{flag}={value}")]).unwrap_err();
            assert!(error.contains(flag) && error.contains(way_out), "{error}");
        }
    }
}
