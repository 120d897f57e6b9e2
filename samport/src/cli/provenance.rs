//! The configuration in force: what every flag's value is, and who says so. Pure.

use clap::ArgMatches;
use clap::parser::ValueSource;
use clap::{ArgAction, Command};

use super::file::{File, keys};

/// One key's value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Effective {
    /// The flag's name.
    pub(super) key: String,
    /// Its values in the flag's words; none if it is not set.
    pub(super) values: Vec<String>,
    /// What it is in a file.
    pub(super) kind: Kind,
    /// Who says so.
    pub(super) source: Origin,
}

/// What a key takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Switch,
    One,
    List,
}

/// Who says what a value is, the first of them that does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Origin {
    /// The command line: the flag.
    Flag(String),
    /// A variable of the environment.
    Environment(String),
    /// The configuration file, and the line in it.
    File(usize),
    /// samport itself.
    Default,
    /// It is not set.
    Unset,
}

impl Effective {
    /// Everything that `matches` say of the flags of `command`, into which `file` was filled.
    pub(super) fn all(command: &Command, matches: &ArgMatches, file: Option<&File>) -> Vec<Self> {
        let one = |(key, arg): (&str, &clap::Arg)| {
            let id = arg.get_id().as_str();
            let raw = matches.get_raw(id).into_iter().flatten();
            let source = match (matches.value_source(id), file.and_then(|file| file.line_of(key))) {
                (Some(ValueSource::CommandLine), _) => Origin::Flag(format!("--{key}")),
                (Some(ValueSource::EnvVariable), _) => {
                    let name = arg.get_env().unwrap_or_default();
                    Origin::Environment(name.to_string_lossy().into_owned())
                }
                (_, Some(line)) => Origin::File(line),
                (Some(_), None) => Origin::Default,
                (None, None) => Origin::Unset,
            };
            Self {
                key: key.to_owned(),
                values: raw.map(|value| value.to_string_lossy().into_owned()).collect(),
                kind: match arg.get_action() {
                    ArgAction::Append => Kind::List,
                    action if action.takes_values() => Kind::One,
                    _ => Kind::Switch,
                },
                source,
            }
        };
        keys(command).map(one).collect()
    }
}

/// The keys whose values differ.
pub(super) fn changed<'a>(old: &'a [Effective], new: &[Effective]) -> Vec<&'a str> {
    let pairs = old.iter().zip(new);
    pairs.filter(|(old, new)| old.values != new.values).map(|(old, _)| old.key.as_str()).collect()
}
