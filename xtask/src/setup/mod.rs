//! `cargo xtask setup`, which every other verb calls with the level it needs.
//!
//! Looking is done in files and PATH alone, so that a call that finds everything takes no time;
//! the network and package managers are only asked for what is missing.

mod bpf;
mod bpffs;
mod fuzz;
mod linker;
mod lint;
mod package;
mod packages;
mod rustc;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;

pub use self::bpf::Toolchain;
pub use self::fuzz::ensure as ensure_fuzzer;
pub use self::lint::ensure as ensure_lint_tools;
pub use self::package::ensure as ensure_packager;
use self::packages::Apt;
pub use self::packages::can_install;
use crate::sh;

/// Find or install what building and running samport need
///
/// Building needs a Rust compiler that can build `core` for BPF, and bpf-linker. The compiler is
/// the first of: a rustup nightly that has rust-src; on Debian and Ubuntu, as root, their
/// packages; a nightly that rustup downloads. Each step is announced before it is taken.
///
/// SAMPORT_BPF_TOOLCHAIN (a name rustup knows, or a path) and SAMPORT_BPF_LINKER (the folder of
/// bpf-linker), when both are set, replace that search. What setup builds is kept in
/// SAMPORT_CACHE, by default ~/.cache/samport.
#[derive(clap::Args)]
pub struct Args {
    /// Report what is there and what is missing, change nothing, and fail if anything is missing
    #[arg(long)]
    check: bool,
    /// What it has to be enough for; each level includes those before it
    #[arg(long = "for", value_name = "LEVEL", default_value = "run")]
    level: Level,
}

/// What the machine has to be ready for. Each level includes those before it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Level {
    /// Compile samport and its BPF programs
    Build,
    /// Also run samport: the BPF file system is mounted
    Run,
    /// Also run the tests, which need Docker and network tools
    Test,
    /// Also run the benchmarks
    Bench,
}

/// What compiles the BPF programs.
pub struct Bpf {
    pub toolchain: Toolchain,
    /// The folder bpf-linker is in.
    pub linker: PathBuf,
}

/// One thing samport needs.
struct Need {
    name: String,
    /// Where it was found, or else how to get it by hand.
    state: Result<String, String>,
}

pub fn verb(args: &Args) -> Result<ExitCode> {
    if !args.check {
        ensure(args.level)?;
    }
    let needs = survey(args.level)?;
    for need in &needs {
        match &need.state {
            Ok(place) => println!("ok       {:<15} {place}", need.name),
            Err(remedy) => println!("missing  {:<15} {remedy}", need.name),
        }
    }
    let ready = needs.iter().all(|need| need.state.is_ok());
    Ok(if ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Installs what is missing for `level` and returns what compiles the BPF programs.
pub fn ensure(level: Level) -> Result<Bpf> {
    let mut apt = Apt::default();
    let bpf = match given() {
        Some(bpf) => bpf,
        None => found_or_installed(&mut apt)?,
    };
    packages::ensure(level, &mut apt)?;
    if level >= Level::Run {
        bpffs::ensure()?;
    }
    Ok(bpf)
}

/// What the environment prescribes. `samport/build.rs` reads the same two variables.
fn given() -> Option<Bpf> {
    let name = env::var("SAMPORT_BPF_TOOLCHAIN").ok()?;
    let linker = PathBuf::from(env::var_os("SAMPORT_BPF_LINKER")?);
    Some(Bpf { toolchain: Toolchain::named(name), linker })
}

fn found_or_installed(apt: &mut Apt) -> Result<Bpf> {
    let cache = cache()?;
    let found = bpf::ensure(apt)?;
    let linker = linker::ensure(&found, &cache, apt)?;
    let bpf = Bpf { toolchain: found.toolchain, linker };
    write_record(&cache, &bpf)?;
    Ok(bpf)
}

/// Looks for everything `level` needs and changes nothing.
fn survey(level: Level) -> Result<Vec<Need>> {
    let mut needs = match given() {
        Some(bpf) => vec![
            Need::found("BPF compiler", format!("{} (SAMPORT_BPF_TOOLCHAIN)", bpf.toolchain.name)),
            Need::found("bpf-linker", format!("{} (SAMPORT_BPF_LINKER)", bpf.linker.display())),
        ],
        None => survey_bpf()?,
    };
    needs.extend(packages::survey(level));
    if level >= Level::Run {
        needs.push(bpffs::survey());
    }
    Ok(needs)
}

fn survey_bpf() -> Result<Vec<Need>> {
    const REMEDY: &str = "`cargo xtask setup` finds or installs it";
    let cache = cache()?;
    let Some(found) = bpf::find() else {
        return Ok(vec![
            Need::missing("BPF compiler", REMEDY),
            Need::missing("bpf-linker", "which one depends on the BPF compiler"),
        ]);
    };
    let compiler = Need::found("BPF compiler", found.to_string());
    let Some(linker) = linker::find(&found, &cache) else {
        return Ok(vec![compiler, Need::missing("bpf-linker", REMEDY)]);
    };
    let place = linker.display().to_string();
    let path = record_path(&cache);
    let bpf = Bpf { toolchain: found.toolchain, linker };
    let recorded = fs::read_to_string(&path).is_ok_and(|text| text == record(&bpf));
    let record = if recorded {
        Need::found("record of both", path.display().to_string())
    } else {
        Need::missing("record of both", "`cargo xtask setup` writes it for the build")
    };
    Ok(vec![compiler, Need::found("bpf-linker", place), record])
}

impl Need {
    fn found(name: &str, place: String) -> Self {
        Self { name: name.to_owned(), state: Ok(place) }
    }

    fn missing(name: &str, remedy: &str) -> Self {
        Self { name: name.to_owned(), state: Err(remedy.to_owned()) }
    }
}

/// The path of a program that cargo builds, at this version if it has to be built into the cache. `cost` says how
/// long that takes, and what for.
fn cargo_tool(name: &str, version: &str, cost: &str) -> Result<PathBuf> {
    if let Some(file) = sh::find(name) {
        return Ok(file);
    }
    let folder = cache()?.join(format!("{name}-{version}"));
    let file = folder.join("bin").join(name);
    if !sh::is_program(&file) {
        eprintln!("setup: building {name} {version}, {cost}");
        let mut cargo = sh::cargo();
        cargo.args(["install", name, "--version", version, "--locked", "--force", "--root"]);
        sh::run(cargo.arg(&folder))
            .with_context(|| format!("no {name}; by hand: `cargo install {name}`"))?;
    }
    Ok(file)
}

/// Samport's cache folder, which `samport/build.rs` works out in the same way.
pub fn cache() -> Result<PathBuf> {
    let cache = match (env::var_os("SAMPORT_CACHE"), env::var_os("XDG_CACHE_HOME")) {
        (Some(cache), _) => PathBuf::from(cache),
        (None, Some(base)) => Path::new(&base).join("samport"),
        (None, None) => home()?.join(".cache/samport"),
    };
    // The build script runs in another folder: it would look elsewhere.
    ensure!(cache.is_absolute(), "the cache folder {} is not an absolute path", cache.display());
    Ok(cache)
}

fn home() -> Result<PathBuf> {
    let home = env::var_os("HOME").context("neither SAMPORT_CACHE nor HOME is set")?;
    Ok(PathBuf::from(home))
}

fn record_path(cache: &Path) -> PathBuf {
    cache.join("bpf-toolchain")
}

fn record(bpf: &Bpf) -> String {
    format!("toolchain={}\nlinker={}\n", bpf.toolchain.name, bpf.linker.display())
}

/// Leaves what was found to `samport/build.rs`, which runs again whenever the file changes: an
/// unchanged one is left alone.
fn write_record(cache: &Path, bpf: &Bpf) -> Result<()> {
    let path = record_path(cache);
    let text = record(bpf);
    if fs::read_to_string(&path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    eprintln!("setup: writing {}: the build reads which BPF toolchain to use", path.display());
    fs::create_dir_all(cache).with_context(|| format!("create {}", cache.display()))?;
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_is_two_lines_for_the_build_script() {
        let toolchain = Toolchain::named("/usr".to_owned());
        let bpf = Bpf { toolchain, linker: PathBuf::from("/cache/bin") };
        assert_eq!(record(&bpf), "toolchain=/usr\nlinker=/cache/bin\n");
    }

    #[test]
    fn a_level_includes_those_before_it() {
        assert!(
            Level::Build < Level::Run && Level::Run < Level::Test && Level::Test < Level::Bench
        );
    }
}
