//! What the program was asked for: the command line, the environment behind it, and the configuration
//! file behind that.

use std::error::Error as _;
use std::ffi::OsString;
use std::net::AddrParseError;
use std::num::ParseIntError;
use std::path::Path;

use anyhow::Result;
use clap::error::{ContextKind, ErrorKind};
use clap::{ArgMatches, Args as _, Command, CommandFactory as _, FromArgMatches as _};

use super::file::File;
use super::provenance::Effective;
use super::{Cli, config, run};
use crate::system::exit::{Exit, coded};

/// A configuration: what `run` is asked for.
#[derive(Debug)]
pub(super) struct ResolvedConfig {
    /// The flags with everything that is behind them.
    pub(super) flags: run::Flags,
    /// The same key by key, with who says so.
    pub(super) effective: Vec<Effective>,
    /// The file, if there is one.
    pub(super) file: Option<File>,
}

/// Parses the command line without any file; wrong usage ends the program.
pub(super) fn command_line() -> Cli {
    let words = words();
    let mut command = Cli::command();
    if words.iter().any(|word| word == "-h") {
        command = on_a_page(command);
    }
    let parsed = command.try_get_matches_from(words);
    let cli = parsed.and_then(|matches| Cli::from_arg_matches(&matches));
    cli.unwrap_or_else(|error| reworded(error).exit())
}

/// Names a value that a flag does not take once, in the cause. clap's own words would name it before that, too.
pub(super) fn reworded(error: clap::Error) -> clap::Error {
    let arg = error.get(ContextKind::InvalidArg).map(ToString::to_string);
    match (cause(&error), arg.as_deref().and_then(|arg| arg.split(' ').next())) {
        (Some(cause), Some(name)) => {
            let message = format!("{name}: {cause}\n\nFor more information, try '--help'.\n");
            clap::Error::raw(ErrorKind::ValueValidation, message)
        }
        _ => error,
    }
}

/// What is wrong with a value, and what is expected; `None` if it is not a value that is wrong.
pub(super) fn cause(error: &clap::Error) -> Option<String> {
    if error.kind() != ErrorKind::ValueValidation {
        return None;
    }
    let source = error.source()?;
    let value = error.get(ContextKind::InvalidValue)?.to_string();
    if source.is::<ParseIntError>() {
        return Some(format!("invalid number {value:?}: expected a whole number"));
    }
    if source.is::<AddrParseError>() {
        return Some(format!("invalid address {value:?}: expected IP:PORT"));
    }
    let text = source.to_string();
    Some(match text.split_once(" is not in ") {
        Some((number, range)) => {
            format!("invalid number {number:?}: expected {}", range.replace("..=", "-"))
        }
        None => text,
    })
}

/// A command whose `-h` has a line for each flag. Environment variables and possible values are in `--help`.
pub(super) fn on_a_page(command: Command) -> Command {
    command
        .max_term_width(80)
        .mut_args(|arg| {
            let takes_values = arg.get_action().takes_values();
            arg.hide_env(true).hide_possible_values(takes_values)
        })
        .mut_subcommands(on_a_page)
}

/// Reads the configuration, as the command line of this process has it, again.
///
/// # Errors
/// [`Exit::Usage`] with line and column, if the file is not good.
pub(super) fn configuration() -> Result<ResolvedConfig> {
    of(words())
}

/// The flags of `run`, alone.
pub(super) fn flags() -> Command {
    run::Flags::augment_args(Command::new("run"))
}

/// Reads a file that is not in use yet.
pub(super) fn check(path: &Path) -> Result<()> {
    let file = File::read(path, &flags())?;
    let matches = usage(
        file.fill(flags().mut_args(|arg| arg.env(None::<&str>))).try_get_matches_from(["run"]),
    )?;
    run::Flags::from_arg_matches(&matches)?.check()
}

fn words() -> Vec<OsString> {
    std::env::args_os().collect()
}

fn of(words: Vec<OsString>) -> Result<ResolvedConfig> {
    let first = usage(Cli::command().try_get_matches_from(words.clone()))?;
    let (given, _) = of_run(&first)?;
    let file = given.config.as_ref().map(|path| File::read(path, &flags())).transpose()?;
    let mut command = Cli::command();
    if let Some(file) = &file {
        let filled = |one: Command| file.fill(one);
        command = command
            .mut_subcommand(run::NAME, filled)
            .mut_subcommand(config::NAME, |one| one.mut_subcommand(config::SHOW, filled));
    }
    let matches = usage(command.try_get_matches_from(words))?;
    let (merged, matches) = of_run(&matches)?;
    Ok(ResolvedConfig {
        flags: merged,
        effective: Effective::all(&flags(), matches, file.as_ref()),
        file,
    })
}

/// The flags of `run`, of the verb that has them.
fn of_run(matches: &ArgMatches) -> Result<(run::Flags, &ArgMatches)> {
    let mut matches = matches;
    while let Some((_, inner)) = matches.subcommand() {
        matches = inner;
    }
    Ok((run::Flags::from_arg_matches(matches)?, matches))
}

fn usage<T>(parsed: Result<T, clap::Error>) -> Result<T> {
    parsed.map_err(|error| coded(Exit::Usage, reworded(error).to_string().trim_end()))
}
