//! `samport version`.

use anyhow::Result;
use samport_common::layout::LAYOUT_VERSION;

use super::output::{Output, print_json};
use crate::api::types::{SCHEMA, Version};

/// Options of `samport version`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Choose the format
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

/// Prints it.
pub fn run(args: &Args) -> Result<()> {
    let (version, map_layout) = (env!("CARGO_PKG_VERSION"), LAYOUT_VERSION);
    match args.output {
        Output::Table | Output::Wide => println!("samport {version} (map layout {map_layout})"),
        Output::Json => {
            print_json(&Version { schema: SCHEMA, version: version.to_owned(), map_layout })?;
        }
    }
    Ok(())
}
