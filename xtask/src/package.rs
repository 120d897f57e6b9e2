//! `cargo xtask package`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};

use crate::setup::{self, Level};
use crate::{build, sh};

/// Make a Debian package: program, service, manual pages, completions, configuration
///
/// What is in it is listed in samport/Cargo.toml, what happens when it is installed is in dist/deb.
#[derive(clap::Args)]
pub struct Args {
    /// Take the program of the debug build as it is and install nothing, as the tests do
    #[arg(long)]
    debug: bool,
    /// Debian's revision, after the version and a dash
    #[arg(long, value_name = "N", default_value_t = 1)]
    revision: u32,
    /// Where to put it [default: debian in the target folder]
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
}

pub fn verb(args: &Args) -> Result<ExitCode> {
    let program = if args.debug {
        // A test does not change the machine: what it needs is there, or it fails.
        build::binary(false)?
    } else {
        setup::ensure(Level::Package)?;
        build::samport(true)?
    };
    let cargo_deb = setup::tool(&setup::CARGO_DEB)?;
    man_and_completions(&program)?;
    let output = match &args.output {
        Some(folder) => std::path::absolute(folder).context("the folder of --output")?,
        None => sh::target_dir()?.join("debian"),
    };
    fs::create_dir_all(&output).with_context(|| format!("create {}", output.display()))?;
    let mut deb = Command::new(cargo_deb);
    // The slash at its end makes it a folder.
    deb.current_dir(sh::root()).args(["-p", "samport", "--no-build", "--output"]);
    deb.arg(format!("{}/", output.display()));
    deb.args(["--deb-revision", &args.revision.to_string()]);
    if args.debug {
        // Large, and made to be thrown away.
        deb.args(["--profile", "dev", "--fast"]);
    }
    sh::run(&mut deb)?;
    Ok(ExitCode::SUCCESS)
}

/// What the program itself writes, to where samport/Cargo.toml looks for it.
fn man_and_completions(program: &Path) -> Result<()> {
    let folder = sh::root().join("target/package");
    let man = folder.join("man");
    if man.exists() {
        fs::remove_dir_all(&man).with_context(|| format!("remove {}", man.display()))?;
    }
    sh::run(Command::new(program).arg("man").arg(&man))?;
    for (shell, name) in [("bash", "samport"), ("zsh", "_samport"), ("fish", "samport.fish")] {
        let mut completions = Command::new(program);
        completions.args(["completions", shell]);
        let text = sh::probe(&mut completions)
            .with_context(|| format!("`{}` failed", sh::text(&completions)))?;
        let file = folder.join("completions").join(shell).join(name);
        fs::create_dir_all(file.parent().unwrap_or(&folder))?;
        fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
    }
    Ok(())
}
