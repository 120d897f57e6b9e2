//! `cargo xtask`: everything a contributor runs, one verb each.
//!
//! Every verb first makes sure that what it needs is installed, so a new checkout needs no other
//! step. No product crate is a dependency: this builds in seconds and works when they do not.

mod apt;
mod archives;
mod bench;
mod build;
mod cases;
mod ci;
mod demo;
#[cfg(test)]
mod doc_links;
mod fuzz;
#[cfg(test)]
mod layers;
mod lint;
mod old_names;
mod package;
mod pictures;
mod prebuilt;
mod pristine;
mod prose;
mod released;
mod run;
mod setup;
mod sh;
mod test;
mod vm;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Set up, build, run, test and measure samport.
///
/// Each verb first installs what it needs and is missing. It shows what that is, and asks where there is a terminal.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    /// Install what is missing without asking
    #[arg(long, short)]
    yes: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Setup(setup::Args),
    Build(build::Args),
    Run(run::Args),
    Demo(demo::Args),
    Test(test::Args),
    Bench(bench::Args),
    Lint(lint::Args),
    Fuzz(fuzz::Args),
    Prebuilt(prebuilt::Args),
    Released(released::Args),
    Package(package::Args),
    Cases(cases::Args),
    Pictures(pictures::Args),
    Pristine(pristine::Args),
    Ci(ci::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // SAFETY: the process has started no thread yet.
    unsafe { sh::add_folders_to_path(setup::cache().ok().map(|cache| setup::bin(&cache))) };
    if cli.yes {
        setup::assume_yes();
    }
    dispatch(&cli.verb).unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn dispatch(verb: &Verb) -> Result<ExitCode> {
    match verb {
        Verb::Setup(args) => setup::verb(args),
        Verb::Build(args) => build::verb(args),
        Verb::Run(args) => run::verb(args),
        Verb::Demo(args) => demo::verb(args),
        Verb::Test(args) => test::verb(args),
        Verb::Bench(args) => bench::verb(args),
        Verb::Lint(args) => lint::verb(args),
        Verb::Fuzz(args) => fuzz::verb(args),
        Verb::Prebuilt(args) => prebuilt::verb(args),
        Verb::Released(args) => released::verb(args),
        Verb::Package(args) => package::verb(args),
        Verb::Cases(args) => cases::verb(args),
        Verb::Pictures(args) => pictures::verb(args),
        Verb::Pristine(args) => pristine::verb(args),
        Verb::Ci(args) => ci::verb(args),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
