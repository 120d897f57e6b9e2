//! The configuration file. Its keys are the names of `run`'s flags, its values what these flags take, and
//! it counts as their default: so the command line stays the only list of what there is to say.

mod config_error;
mod text;

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::error::ContextKind;
use clap::{Arg, ArgAction, Command};

use self::config_error::{ConfigError, line_of};
use self::text::{Entry, Given, Word, entries};
use super::resolved::cause;
use crate::system::exit::{Coded as _, Exit, coded};

/// The flag that has no key: it says which file.
const NO_KEY: &str = "config";
/// How alike a wrong key and a right one must be for it to be offered, from 0 to 1.
const ALIKE: f64 = 0.6;

/// A configuration file that can be used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct File {
    /// Where it is.
    pub(super) path: PathBuf,
    /// What it says.
    pub(super) text: String,
    settings: Vec<Setting>,
}

/// What the file says of one flag.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Setting {
    key: String,
    line: usize,
    values: Vec<String>,
}

/// The flags that have keys, with their keys.
pub(super) fn keys(command: &Command) -> impl Iterator<Item = (&str, &Arg)> {
    let named = command.get_arguments().filter_map(|arg| Some((arg.get_long()?, arg)));
    named.filter(|(key, arg)| {
        *key != NO_KEY
            && !arg.is_global_set()
            && !matches!(
                arg.get_action(),
                ArgAction::Help | ArgAction::HelpLong | ArgAction::Version
            )
    })
}

impl File {
    /// Reads a file for the flags of `command`.
    ///
    /// # Errors
    /// [`Exit::Usage`], with line and column where something is wrong.
    pub(super) fn read(path: &Path, command: &Command) -> Result<Self> {
        let text = std::fs::read_to_string(path);
        let text =
            text.exit(Exit::Usage, format!("cannot read the configuration {}", path.display()))?;
        let settings = settings(&text, command).map_err(|config_error| {
            coded(Exit::Usage, config_error.shown(&path.display(), &text))
        })?;
        Ok(Self { path: path.to_owned(), text, settings })
    }

    /// The line that says something of a flag.
    pub(super) fn line_of(&self, key: &str) -> Option<usize> {
        self.settings.iter().find(|setting| setting.key == key).map(|setting| setting.line)
    }

    /// The command with what the file says in the place of its flags' defaults.
    pub(super) fn fill(&self, command: Command) -> Command {
        let ids: Vec<_> =
            keys(&command).map(|(key, arg)| (key.to_owned(), arg.get_id().clone())).collect();
        let of = |key: &str| ids.iter().find(|(known, _)| known == key).map(|(_, id)| id.clone());
        self.settings.iter().fold(command, |command, setting| match of(&setting.key) {
            Some(id) => command.mut_arg(id, |arg| arg.default_values(&setting.values)),
            None => command,
        })
    }
}

fn settings(text: &str, command: &Command) -> Result<Vec<Setting>, ConfigError> {
    let validator = Validator::of(command);
    let setting = |entry: Entry| {
        Ok(Setting {
            line: line_of(entry.key.at.start, text),
            values: validator.values(&entry)?,
            key: entry.key.text,
        })
    };
    entries(text)?.into_iter().map(setting).collect()
}

/// Says of each key whether its flag would take what is given.
struct Validator {
    /// The flags alone: the environment does not matter to the file.
    flags: Command,
}

impl Validator {
    fn of(command: &Command) -> Self {
        let flags = command.clone().no_binary_name(true).mut_args(|arg| arg.env(None::<&str>));
        Self { flags }
    }

    /// The words a flag would be given.
    fn values(&self, entry: &Entry) -> Result<Vec<String>, ConfigError> {
        let Entry { key, given, at } = entry;
        let Some((_, arg)) = keys(&self.flags).find(|(known, _)| *known == key.text) else {
            return Err(self.unknown(key));
        };
        let takes_values = arg.get_action().takes_values();
        let is_list = matches!(arg.get_action(), ArgAction::Append);
        let words = match given {
            Given::Switch(on) if !takes_values => return Ok(vec![on.to_string()]),
            _ if !takes_values => {
                return Err(ConfigError::new(
                    at.clone(),
                    format!("invalid value of {:?}: expected true or false", key.text),
                ));
            }
            Given::Switch(_) => {
                let what = format!(
                    "invalid value of {:?}: expected a text in quotes or a whole number",
                    key.text
                );
                return Err(ConfigError::new(at.clone(), what));
            }
            Given::List(_) if !is_list => {
                return Err(ConfigError::new(
                    at.clone(),
                    format!(
                        "invalid value of {:?}: expected one value instead of a list",
                        key.text
                    ),
                ));
            }
            Given::One(word) => std::slice::from_ref(word),
            Given::List(words) => words,
        };
        for word in words {
            self.try_flag(&key.text, word)?;
        }
        Ok(words.iter().map(|word| word.text.clone()).collect())
    }

    /// Gives the flag the word: what it says of it is what is wrong here.
    fn try_flag(&self, key: &str, word: &Word) -> Result<(), ConfigError> {
        let flag = format!("--{key}={}", word.text);
        let tried = self.flags.clone().try_get_matches_from([flag]);
        tried.map(|_| ()).map_err(|error| ConfigError::new(word.at.clone(), said(&error, key)))
    }

    fn unknown(&self, key: &Word) -> ConfigError {
        let known = keys(&self.flags).map(|(known, _)| known);
        let alike =
            known.map(|known| (strsim::normalized_damerau_levenshtein(known, &key.text), known));
        let best =
            alike.max_by(|(a, _), (b, _)| a.total_cmp(b)).filter(|(alike, _)| *alike > ALIKE);
        let way_out = match best {
            Some((_, known)) => format!("did you mean {known:?}?"),
            None => "keys are the names of the flags of `samport run`".to_owned(),
        };
        ConfigError::new(key.at.clone(), format!("unknown key {:?}; {way_out}", key.text))
    }
}

/// What a flag says of a value, about the key rather than the flag.
fn said(error: &clap::Error, key: &str) -> String {
    if let Some(cause) = cause(error) {
        return format!("{key}: {cause}");
    }
    let text = error.render().to_string();
    let text = text.split("\n\nFor more information").next().unwrap_or_default();
    let text = text.strip_prefix("error: ").unwrap_or(text);
    let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let text = lines.join(" ");
    match error.get(ContextKind::InvalidArg) {
        Some(flag) => text.replace(&flag.to_string(), key),
        None => text,
    }
}

#[cfg(test)]
mod tests;
