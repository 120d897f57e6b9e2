//! `cargo xtask released`: older releases, for the tests that upgrade from them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::setup::{self, Level};
use crate::sh;

/// Build the last release of each older layout of maps
///
/// Its sources are in the history of the checkout, and its kernel programs in tests/released: only the loader is
/// compiled. Prints a line for each, so that `export $(cargo xtask released)` lets `cargo test -p samport-tests` upgrade
/// from them.
#[derive(clap::Args)]
pub struct Args {}

/// The layouts that this version takes over from, each with the last commit that has it. A release with a new layout
/// adds the commit before it here, as `samport/src/dataplane/migrate` does its types, and its kernel programs, without debug
/// information (`llvm-strip -g`), as `tests/released/layoutN/samport-ebpf`: compiling them takes the toolchain for BPF.
const RELEASED: [(u32, &str); 1] = [(3, "29e22288329846a07ee3419651eb9c1f508237f9")];

/// The build script of a release's loader: it takes the object that is beside it.
const BUILD_SCRIPT: &str = r#"
fn main() {
    let out = std::env::var("OUT_DIR").unwrap();
    for name in ["samport-ebpf", "samport-harness"] {
        std::fs::copy("kernel-programs", format!("{out}/{name}")).unwrap();
    }
}
"#;

/// The crates that others of the checkout are compiled with too: another level of debug information keeps cargo from
/// taking one for the other in the folder they share.
const OWN: [&str; 2] = ["samport", "samport-common"];

pub fn verb(_: &Args) -> Result<ExitCode> {
    setup::ensure(Level::Build)?;
    for (variable, program) in programs()? {
        println!("{variable}={}", program.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds them, unless that has been done before; the variable that names each to the tests, and where it is.
pub fn programs() -> Result<Vec<(String, PathBuf)>> {
    let target = sh::target_dir()?;
    let program = |(layout, commit): &(u32, &str)| {
        let program = program(*layout, commit, &target);
        let program =
            program.with_context(|| format!("build the last release of layout {layout}"))?;
        Ok((format!("SAMPORT_RELEASED_{layout}"), program))
    };
    RELEASED.iter().map(program).collect()
}

/// Whether a run of these tests upgrades from a release.
pub fn is_needed(programs: &[String], filters: &[String]) -> bool {
    let has_program = programs.is_empty() || programs.iter().any(|program| program == "ops");
    let names: Vec<_> = filters.iter().take_while(|filter| *filter != "--").collect();
    // A filter without the name of a module may be any test's.
    let may_be = |filter: &&String| filter.starts_with("upgrade::") || !filter.contains("::");
    has_program && (names.is_empty() || names.iter().any(may_be))
}

fn program(layout: u32, commit: &str, target: &Path) -> Result<PathBuf> {
    let folder = target.join("released").join(&commit[..12]);
    let program = folder.join("debug").join("samport");
    if sh::is_program(&program) {
        return Ok(program);
    }
    let source = folder.join("source");
    unpack(commit, &source)?;
    let object = sh::root().join(format!("tests/released/layout{layout}/samport-ebpf"));
    let loader = source.join("samport");
    fs::copy(&object, loader.join("kernel-programs"))
        .with_context(|| format!("copy {}", object.display()))?;
    fs::write(loader.join("build.rs"), BUILD_SCRIPT).context("write a build script")?;
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "-p", "samport", "--locked"]);
    for name in OWN {
        cargo.args(["--config", &format!("profile.dev.package.{name}.debug=0")]);
    }
    // What both versions depend on is compiled once, with the profile of this one; the program itself lies apart.
    for setting in ["opt-level=0", "debug=false"] {
        cargo.args(["--config", &format!(r#"profile.dev.package."*".{setting}"#)]);
    }
    cargo.env("CARGO_BUILD_BUILD_DIR", target).env("CARGO_TARGET_DIR", &folder);
    cargo.current_dir(&source).stdout(Stdio::null());
    sh::run(&mut cargo)?;
    fs::remove_dir_all(&source).with_context(|| format!("remove {}", source.display()))?;
    Ok(program)
}

/// Writes the files of a commit into a folder.
fn unpack(commit: &str, to: &Path) -> Result<()> {
    let has_it = sh::probe(git().args(["cat-file", "-e", &format!("{commit}^{{commit}}")]));
    ensure!(
        has_it.is_some(),
        "the checkout does not have the commit {commit}: it is not a whole clone; run `git fetch --unshallow`"
    );
    if to.exists() {
        fs::remove_dir_all(to).with_context(|| format!("remove {}", to.display()))?;
    }
    fs::create_dir_all(to).with_context(|| format!("make {}", to.display()))?;
    let archive = to.with_extension("tar");
    let mut command = git();
    command.args(["archive", "--output"]).arg(&archive).args([commit, "--", ".", ":!tests/fuzz"]);
    sh::quietly(&mut command)?;
    sh::quietly(Command::new("tar").arg("-C").arg(to).arg("-xf").arg(&archive))?;
    fs::remove_file(&archive).with_context(|| format!("remove {}", archive.display()))
}

fn git() -> Command {
    let mut git = Command::new("git");
    git.current_dir(sh::root());
    git
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_commit_has_the_layout_it_is_named_for() {
        for (layout, commit) in RELEASED {
            let file = format!("{commit}:samport-common/src/layout.rs");
            let text = sh::probe(git().args(["show", &file]));
            let text = text.unwrap_or_else(|| panic!("no {file}: `git fetch --unshallow`"));
            let line = format!("pub const LAYOUT_VERSION: u32 = {layout};");
            assert!(text.contains(&line), "{commit} has another layout than {layout}");
        }
    }

    #[test]
    fn only_tests_that_may_upgrade_need_them() {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        for (programs, filters, expected) in [
            ("", "", true),
            ("ops", "-- --nocapture", true),
            ("", "upgrade::", true),
            ("", "no_connection_is_lost", true),
            ("", "takeover::", false),
            ("ops", "package:: service::", false),
            ("netns", "", false),
        ] {
            let is_needed = is_needed(&words(programs), &words(filters));
            assert_eq!(is_needed, expected, "--program {programs} {filters}");
        }
    }
}
