//! How lists are shown.

use anyhow::Result;
use serde::Serialize;

use crate::system::escape;

/// What `-o` takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(super) enum Output {
    /// For people
    Table,
    /// For people: all columns
    Wide,
    /// For scripts (docs/reference/schemas)
    Json,
}

/// Prints a document of ours.
pub(super) fn print_json(document: &impl Serialize) -> Result<()> {
    say(&format!("{:#}", serde_json::to_value(document)?));
    Ok(())
}

/// Prints text of ours, with names in it that others have chosen.
pub(super) fn say(text: &str) {
    println!("{}", escape::lines(text));
}
