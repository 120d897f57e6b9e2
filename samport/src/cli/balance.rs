//! How backends are chosen: the flags under "Balancing".

use clap::ValueEnum;
use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use samport_common::choose::Balance;

use crate::plan::Policy;
use crate::plan::policy;

/// Flags of `samport run` about the choice of backends.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Balancing")]
pub(super) struct Balancing {
    /// Choose backends in this way
    ///
    /// random: at random. round-robin: one after the other. least-conn: of two at random, the one with fewer
    /// open connections for its weight. maglev: by the client's address and port. source-hash: by the client's
    /// address. A container's label samport.balance takes precedence for its ports.
    #[arg(long, value_name = "HOW", default_value = Balance::Random.name(), value_parser = choices(), env = "SAMPORT_BALANCE")]
    balance: Balance,
    /// Keep a client's backend this long
    ///
    /// Renewed by each new connection. Like 30m, or a number of seconds; 0 turns it off. A container's label
    /// samport.affinity takes precedence for its ports.
    #[arg(long, value_name = "TIME", default_value = "0", value_parser = policy::affinity, env = "SAMPORT_AFFINITY")]
    affinity: u32,
    /// Retry failed connections elsewhere
    ///
    /// If a backend refuses a connection or does not answer it, the client's next SYN goes to another backend.
    #[arg(
        long,
        value_enum,
        value_name = "HOW",
        default_value = "on",
        env = "SAMPORT_CONNECT_FAILOVER"
    )]
    connect_failover: Switch,
    /// Answer when no backend serves
    ///
    /// reject: a TCP reset; UDP is left to the host's stack. drop: nothing.
    #[arg(
        long,
        value_enum,
        value_name = "HOW",
        default_value = "reject",
        env = "SAMPORT_NO_BACKEND"
    )]
    no_backend: NoBackend,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Switch {
    On,
    Off,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum NoBackend {
    Reject,
    Drop,
}

impl Balancing {
    /// How every port chooses of which labels say nothing.
    pub(super) fn policy(&self) -> Policy {
        Policy {
            balance: self.balance,
            affinity: self.affinity,
            failover: self.connect_failover == Switch::On,
            drop: self.no_backend == NoBackend::Drop,
        }
    }
}

fn choices() -> impl clap::builder::TypedValueParser<Value = Balance> {
    PossibleValuesParser::new(Balance::ALL.map(Balance::name))
        .try_map(|name| policy::balance(&name))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        balancing: Balancing,
    }

    fn policy(args: &[&str]) -> Result<Policy, String> {
        let flags = Flags::try_parse_from([&["run"], args].concat());
        flags.map(|flags| flags.balancing.policy()).map_err(|error| error.to_string())
    }

    #[test]
    fn without_flags_the_default_policy_holds() {
        assert_eq!(policy(&[]), Ok(Policy::default()));
    }

    #[test]
    fn every_flag_sets_its_own_part() {
        let default = Policy::default();
        for (flag, expected) in [
            ("--balance=maglev", Policy { balance: Balance::Maglev, ..default }),
            ("--affinity=2m", Policy { affinity: 120, ..default }),
            ("--connect-failover=off", Policy { failover: false, ..default }),
            ("--no-backend=drop", Policy { drop: true, ..default }),
        ] {
            assert_eq!(policy(&[flag]), Ok(expected));
        }
    }

    #[test]
    fn every_choice_is_offered_by_its_name() {
        for balance in Balance::ALL {
            let set = policy(&["--balance", balance.name()]);
            assert_eq!(set, Ok(Policy { balance, ..Policy::default() }));
        }
    }

    #[test]
    fn what_is_no_choice_is_refused_by_name_and_flag() {
        for (flag, value, way_out) in [
            ("--balance", "fair", "least-conn"),
            ("--affinity", "soon", "30s or 2h5m"),
            ("--connect-failover", "yes", "on, off"),
            ("--no-backend", "ignore", "reject, drop"),
        ] {
            let error = policy(&[flag, value]).unwrap_err();
            for word in [flag, value, way_out] {
                assert!(error.contains(word), "{error}");
            }
        }
    }
}
