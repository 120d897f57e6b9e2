//! `samport config`: whether a configuration file is good, and what is in force and why.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::json;

use super::provenance::{Effective, Kind, Origin};
use super::resolved::{self, ResolvedConfig};
use super::run::Flags;

/// The verb's name.
pub(super) const NAME: &str = "config";
/// The name of the part that has `run`'s flags.
pub(super) const SHOW: &str = "show";

/// Options of `samport config`.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand, Debug)]
enum What {
    /// Check a configuration file
    ///
    /// Errors come with line and column.
    Check(CheckArgs),
    /// Show the settings of `samport run`, and who sets each
    ///
    /// For the same flags: each setting is from a flag, the environment, the file or the default.
    Show(Box<ShowArgs>),
}

#[derive(clap::Args, Debug)]
struct CheckArgs {
    /// Configuration file
    #[arg(env = "SAMPORT_CONFIG")]
    file: PathBuf,
}

#[derive(clap::Args, Debug)]
struct ShowArgs {
    /// Choose the format
    ///
    /// The output of toml can be used as a configuration file.
    #[arg(short, long, value_enum, default_value = "toml")]
    output: Form,
    // Parsed again, with the file.
    #[command(flatten)]
    _flags: Flags,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum Form {
    Toml,
    Json,
}

/// Looks at a file, or at everything that counts.
pub fn run(args: &Args) -> Result<()> {
    match &args.what {
        What::Check(CheckArgs { file }) => {
            resolved::check(file)?;
            println!("{} is good", file.display());
        }
        What::Show(show) => {
            let asked = resolved::configuration()?;
            asked.flags.go_together()?;
            match show.output {
                Form::Toml => println!("{}", as_toml(&asked)),
                Form::Json => println!("{:#}", as_json(&asked)),
            }
        }
    }
    Ok(())
}

/// A line for each key, in columns; what is not set is a comment.
fn as_toml(asked: &ResolvedConfig) -> String {
    let path = asked.file.as_ref().map(|file| file.path.as_path());
    let lines: Vec<_> = asked.effective.iter().map(|one| (line(one), who(one, path))).collect();
    let width = lines.iter().map(|(line, _)| line.chars().count()).max().unwrap_or_default();
    let lines: Vec<_> =
        lines.into_iter().map(|(line, who)| format!("{line:<width$}  # {who}")).collect();
    lines.join("\n")
}

fn line(one: &Effective) -> String {
    let key = &one.key;
    let words: Vec<_> = one.values.iter().map(|text| word(text)).collect();
    match (one.kind, &words[..]) {
        (Kind::List, [_, ..]) => format!("{key} = [{}]", words.join(", ")),
        (Kind::List, []) if one.source == Origin::Unset => format!("# {key} = []"),
        (Kind::List, []) => format!("{key} = []"),
        (Kind::Switch, _) => format!("{key} = {}", one.values.concat()),
        (Kind::One, [one, ..]) => format!("{key} = {one}"),
        (Kind::One, []) => format!("# {key} ="),
    }
}

fn word(text: &str) -> String {
    match text.parse::<u32>() {
        Ok(number) if number.to_string() == text => text.to_owned(),
        _ => toml::Value::String(text.to_owned()).to_string(),
    }
}

fn who(one: &Effective, file: Option<&Path>) -> String {
    match &one.source {
        Origin::Flag(name) | Origin::Environment(name) => name.clone(),
        Origin::File(line) => place(file, *line),
        Origin::Default => "default".to_owned(),
        Origin::Unset => "not set".to_owned(),
    }
}

fn place(file: Option<&Path>, line: usize) -> String {
    file.map_or_else(String::new, |path| format!("{}:{line}", path.display()))
}

fn as_json(asked: &ResolvedConfig) -> serde_json::Value {
    let path = asked.file.as_ref().map(|file| file.path.as_path());
    let one = |one: &Effective| {
        let value = match one.kind {
            Kind::List => json!(one.values),
            Kind::One => json!(one.values.first()),
            Kind::Switch => json!(one.values.first().is_some_and(|value| value == "true")),
        };
        let (source, place) = match &one.source {
            Origin::Flag(name) => ("flag", Some(name.clone())),
            Origin::Environment(name) => ("environment", Some(name.clone())),
            Origin::File(line) => ("file", Some(place(path, *line))),
            Origin::Default => ("default", None),
            Origin::Unset => ("unset", None),
        };
        (one.key.clone(), json!({ "value": value, "source": source, "at": place }))
    };
    let settings: serde_json::Map<_, _> = asked.effective.iter().map(one).collect();
    json!({ "schema": 1, "file": path, "settings": settings })
}

#[cfg(test)]
mod tests {
    use clap::FromArgMatches as _;

    use super::*;
    use crate::model::snapshots::Pages;

    fn effective(key: &str, kind: Kind, values: &[&str], source: Origin) -> Effective {
        let values = values.iter().map(|value| (*value).to_owned()).collect();
        Effective { key: key.to_owned(), values, kind, source }
    }

    #[test]
    fn a_line_is_toml_again() {
        for (one, expected) in [
            (
                effective("port", Kind::List, &["80", "80:81/udp"], Origin::Default),
                "port = [80, \"80:81/udp\"]",
            ),
            (effective("allow", Kind::List, &[], Origin::File(3)), "allow = []"),
            (effective("allow", Kind::List, &[], Origin::Unset), "# allow = []"),
            (effective("keep", Kind::Switch, &["false"], Origin::Default), "keep = false"),
            (effective("drain", Kind::One, &["30s"], Origin::Default), "drain = \"30s\""),
            (effective("flows", Kind::One, &["0080"], Origin::Default), "flows = \"0080\""),
            (effective("metrics", Kind::One, &[], Origin::Unset), "# metrics ="),
        ] {
            assert_eq!(line(&one), expected);
        }
    }

    #[test]
    fn who_says_so_is_named() {
        let path = Some(Path::new("/etc/s.toml"));
        for (source, expected) in [
            (Origin::Flag("--drain".into()), "--drain"),
            (Origin::Environment("SAMPORT_DRAIN".into()), "SAMPORT_DRAIN"),
            (Origin::File(7), "/etc/s.toml:7"),
            (Origin::Default, "default"),
        ] {
            assert_eq!(who(&effective("drain", Kind::One, &["1"], source), path), expected);
        }
    }

    #[test]
    fn what_is_in_force_is_shown_as_it_was() {
        let flags = resolved::flags().mut_args(|arg| arg.env(None::<&str>));
        let words = ["run", "-i", "eth0", "-p", "80", "--keep"];
        let matches = flags.clone().try_get_matches_from(words).unwrap();
        let asked = ResolvedConfig {
            flags: Flags::from_arg_matches(&matches).unwrap(),
            effective: Effective::all(&flags, &matches, None),
            file: None,
        };
        let mut pages = Pages::default();
        pages.add("samport config show -i eth0 -p 80 --keep", &as_toml(&asked));
        pages.add_json("samport config show -i eth0 -p 80 --keep -o json", &as_json(&asked));
        pages.assert("config");
    }
}
