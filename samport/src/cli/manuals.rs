//! `samport completions` and `samport man`: what shells and `man` know of the command line.

use std::io;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Command;
use clap_complete::Shell;

/// Options of `samport completions`.
#[derive(clap::Args, Debug)]
pub struct CompletionsArgs {
    /// Shell to print completions for
    ///
    /// For bash: samport completions bash > /etc/bash_completion.d/samport
    #[arg(value_enum)]
    shell: Shell,
}

/// Options of `samport man`.
#[derive(clap::Args, Debug)]
pub struct ManArgs {
    /// Folder to write to, created if missing
    ///
    /// Like /usr/local/share/man/man1.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// Prints the completions of a shell.
pub fn completions(args: &CompletionsArgs, mut command: Command) {
    let name = command.get_name().to_owned();
    clap_complete::generate(args.shell, &mut command, name, &mut io::stdout());
}

/// Writes a page for samport, and one for each of its commands.
pub fn man(args: &ManArgs, command: Command) -> Result<()> {
    let folder = args.folder.display();
    std::fs::create_dir_all(&args.folder).with_context(|| format!("cannot make {folder}"))?;
    clap_mangen::generate_to(command, &args.folder)
        .with_context(|| format!("cannot write pages to {folder}"))
}
