//! `samport status`: what runs, how its services do, and what became of every packet.

mod collect;
pub(super) mod show;

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;

use self::show::Rates;
use super::output::{Output, print_json};
use super::units::rate;
use crate::api::types::{Instance, SCHEMA, Status};
use crate::dataplane::pins;
use crate::system::escape;
use crate::system::privileges;

/// How long connections are counted for the number of a second.
const COUNTED: Duration = Duration::from_millis(500);

/// Options of `samport status`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Choose the format
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

/// Shows every instance on this machine, also one that was killed.
pub fn run(args: &Args) -> Result<()> {
    privileges::require()?;
    let shown = look();
    let killed = shown.iter().filter(|one| !one.running).map(|one| one.name.clone());
    let killed: Vec<_> = killed.collect();
    match args.output {
        Output::Json => print_json(&Status { schema: SCHEMA, instances: shown })?,
        Output::Table | Output::Wide if shown.is_empty() => {
            println!("samport does not run on this machine");
        }
        Output::Table | Output::Wide => {
            let begin = Instant::now();
            thread::sleep(COUNTED);
            let later = look();
            let rates = rates(&shown, &later, begin.elapsed());
            let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
            for instance in &later {
                print!(
                    "{}",
                    escape::lines(&show::text(instance, &rates, now, args.output == Output::Wide))
                );
            }
        }
    }
    for name in killed {
        tracing::warn!(
            "{name}: samport is not running; the kernel keeps forwarding. `samport run` takes over, `samport clean` \
             removes it"
        );
    }
    Ok(())
}

/// The document of one instance, for the control socket.
pub(super) fn document(name: &str) -> Result<Status> {
    Ok(Status { schema: SCHEMA, instances: vec![collect::instance(name)?] })
}

/// An instance that starts, ends or is broken hides no other.
fn look() -> Vec<Instance> {
    let seen = |name: &String| match collect::instance(name) {
        Ok(instance) => Some(instance),
        Err(error) => {
            tracing::warn!("{name} cannot be read: {error:#}");
            None
        }
    };
    pins::instances().iter().filter_map(seen).collect()
}

/// New connections a second, of the services that were there both times.
fn rates(before: &[Instance], now: &[Instance], time: Duration) -> Rates {
    let counts = |all: &[Instance]| -> BTreeMap<(String, String), u64> {
        let of = |one: &Instance| {
            let name = one.name.clone();
            one.services
                .iter()
                .map(move |service| ((name.clone(), service.service.clone()), service.flows))
                .collect::<Vec<_>>()
        };
        all.iter().flat_map(of).collect()
    };
    let before = counts(before);
    let rate = |(key, count): ((String, String), u64)| {
        // A backend that has gone has taken its count along.
        let come = count.saturating_sub(*before.get(&key)?);
        Some((key, rate(come, time)))
    };
    counts(now).into_iter().filter_map(rate).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::ServiceCount;

    #[test]
    fn a_rate_is_of_one_service_of_one_instance() {
        let instance = |name: &str, flows: &[(&str, u64)]| Instance {
            name: name.into(),
            services: flows
                .iter()
                .map(|(service, flows)| ServiceCount {
                    service: (*service).into(),
                    flows: *flows,
                    ..ServiceCount::default()
                })
                .collect(),
            ..Instance::default()
        };
        let before = [instance("a", &[("80/tcp", 10), ("81/tcp", 9)]), instance("b", &[])];
        let now =
            [instance("a", &[("80/tcp", 25), ("81/tcp", 3)]), instance("b", &[("80/tcp", 5)])];
        let rates = rates(&before, &now, Duration::from_millis(500));
        let all: Vec<_> =
            rates.iter().map(|(key, rate)| (key.1.as_str(), rate.to_string())).collect();
        assert_eq!(all, [("80/tcp", "30".to_owned()), ("81/tcp", "0".to_owned())]);
    }
}
