//! `cargo xtask setup`, which every other verb calls with the level it needs.
//!
//! Looking is done in files and PATH alone, so that a call that finds everything takes no time; the network and package
//! managers are only asked for what is missing. What is going to be done is found out first, shown and recorded; nothing
//! is tried and given up for something else.

mod apt;
mod bpf;
mod bpffs;
mod elf;
mod linker;
mod plan;
mod preflight;
mod programs;
mod progress;
mod record;
mod remove;
mod rustc;
#[cfg(test)]
mod started;
mod tools;

use std::env;
use std::fmt;
use std::fs;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum;

pub use self::apt::is_there as has_apt;
pub use self::bpf::Toolchain;
use self::plan::Plan;
use self::record::Record;
pub use self::tools::{CARGO_DEB, CARGO_DENY, CARGO_FUZZ, Tool};
use crate::prebuilt;

/// Install what is missing for building, running or testing samport
///
/// Shows what it is going to install, how much that is and why, and asks where there is a terminal. What it has done is
/// kept in SAMPORT_CACHE/setup.json, by default in ~/.cache/samport; --remove undoes that.
///
/// The BPF programs are only compiled if their sources differ from those of the prebuilt object in samport-ebpf/prebuilt. The
/// compiler is then the first of: a rustup nightly that has rust-src; the packages of Debian 12 and newer; a nightly that
/// rustup downloads. SAMPORT_BPF_TOOLCHAIN (a name rustup knows, or a path) and SAMPORT_BPF_LINKER (the folder of bpf-linker),
/// when both are set, replace that search.
#[derive(clap::Args)]
pub struct Args {
    /// Report what is there and what is missing, change nothing, and fail if anything is missing
    #[arg(long)]
    check: bool,
    /// Undo what setup has done on this machine, by its record
    #[arg(long, conflicts_with_all = ["check", "level"])]
    remove: bool,
    /// What it has to be enough for
    #[arg(long = "for", value_name = "LEVEL", default_value = "run")]
    level: Level,
}

/// What the machine has to be ready for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, ValueEnum)]
pub enum Level {
    /// Compile samport
    Build,
    /// Also run it: the BPF file system is mounted
    Run,
    /// Also run the demo, which takes network tools
    Demo,
    /// Make the Debian package
    Package,
    /// Run the tests, containers and the Debian package included
    Test,
    /// Run the benchmark
    Bench,
    /// Check formatting, clippy and the prebuilt BPF object
    Lint,
    /// Run tests on other kernels
    Kernel,
    /// Make root file systems of new machines
    Pristine,
    /// Fuzz
    Fuzz,
}

impl Level {
    /// Whether being ready for this one takes being ready for another.
    pub fn includes(self, other: Self) -> bool {
        use Level::{Bench, Build, Demo, Fuzz, Kernel, Lint, Package, Pristine, Run, Test};
        let direct: &[Self] = match self {
            Build | Fuzz | Pristine => &[],
            Run | Package | Lint => &[Build],
            Demo => &[Run],
            Test => &[Demo, Package],
            Bench => &[Demo],
            Kernel => &[Test],
        };
        self == other || direct.iter().any(|level| level.includes(other))
    }

    /// Free bytes of the disk that building for it takes, the target folder being empty: an estimate from a target folder of
    /// 1.1 GB for samport in dev and about 4 GB with all tests, with room to spare.
    fn room(self) -> u64 {
        const GIB: u64 = 1 << 30;
        match self {
            Self::Build | Self::Run | Self::Demo | Self::Package => 2 * GIB,
            Self::Test | Self::Bench | Self::Lint | Self::Kernel => 6 * GIB,
            Self::Pristine | Self::Fuzz => GIB,
        }
    }
}

/// As it is typed.
impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value();
        f.write_str(value.as_ref().map_or("", |value| value.get_name()))
    }
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

/// No question is asked.
static YES: AtomicBool = AtomicBool::new(false);

/// Has setup ask no questions.
pub fn assume_yes() {
    YES.store(true, Ordering::Relaxed);
}

pub fn verb(args: &Args) -> Result<ExitCode> {
    if args.remove {
        return remove::all(&cache()?);
    }
    if !args.check {
        ensure(args.level)?;
    }
    let needs = check_needs(args.level)?;
    for need in &needs {
        match &need.state {
            Ok(place) => println!("ok       {:<15} {place}", need.name),
            Err(remedy) => println!("missing  {:<15} {remedy}", need.name),
        }
    }
    let ready = needs.iter().all(|need| need.state.is_ok());
    Ok(if ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Installs what is missing for a level, after it has said what that is.
pub fn ensure(level: Level) -> Result<()> {
    preflight::check(level)?;
    if level.includes(Level::Build) {
        preflight::crates()?;
    }
    let needs_bpf = needs_bpf(level)?;
    let cache = cache()?;
    let plan = Plan::make(level, needs_bpf && given().is_none(), &cache)?;
    if !plan.is_empty() {
        eprint!("`cargo xtask {level}` is missing:\n{plan}");
        if plan.changes_machine() {
            preflight::writable(&cache)?;
            let record = Record::path(&cache);
            eprintln!("`cargo xtask setup --remove` undoes it (record: {}).", record.display());
            ask()?;
        }
        plan.carry_out(&cache)?;
        let left = programs::missing(level);
        let left: Vec<_> = left.iter().map(|program| program.name).collect();
        ensure!(left.is_empty(), "apt-get succeeded, yet there is still no {}", left.join(", "));
    }
    if needs_bpf && given().is_none() {
        write_record(&cache, &bpf()?)?;
    }
    Ok(())
}

/// What compiles the BPF programs, once [`ensure`] has seen to it that there is something.
pub fn bpf() -> Result<Bpf> {
    if let Some(bpf) = given() {
        return Ok(bpf);
    }
    let found = bpf::find().context("no compiler for the BPF programs")?;
    let linker = linker::find(&found, &cache()?).context("no bpf-linker that fits the compiler")?;
    Ok(Bpf { toolchain: found.toolchain, linker })
}

/// The path of a program that cargo builds, once [`ensure`] has seen to it.
pub fn tool(tool: &Tool) -> Result<PathBuf> {
    tool.find(&cache()?).with_context(|| format!("there is no {}", tool.name))
}

/// Whether the BPF programs are compiled here.
fn needs_bpf(level: Level) -> Result<bool> {
    Ok(level.includes(Level::Lint) || level.includes(Level::Build) && !prebuilt::is_current()?)
}

/// Asks whether to go on, where there is somebody to answer.
fn ask() -> Result<()> {
    let is_asked = io::stdin().is_terminal() && io::stderr().is_terminal();
    if YES.load(Ordering::Relaxed)
        || !is_asked
        || env::var_os("CI").is_some_and(|ci| !ci.is_empty())
    {
        return Ok(());
    }
    eprint!("Go on? [Y/n] ");
    io::stderr().flush().context("ask on the terminal")?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).context("read the answer")?;
    match answer.trim().to_lowercase().as_str() {
        "" | "y" | "yes" => Ok(()),
        _ => bail!("nothing was installed"),
    }
}

/// What the environment prescribes. `samport/build.rs` reads the same two variables.
fn given() -> Option<Bpf> {
    let name = env::var("SAMPORT_BPF_TOOLCHAIN").ok()?;
    let linker = PathBuf::from(env::var_os("SAMPORT_BPF_LINKER")?);
    Some(Bpf { toolchain: Toolchain::named(name), linker })
}

/// Looks for everything `level` needs and changes nothing.
fn check_needs(level: Level) -> Result<Vec<Need>> {
    let cache = cache()?;
    let mut needs = Vec::new();
    if needs_bpf(level)? {
        needs.extend(survey_bpf(&cache));
    } else if level.includes(Level::Build) {
        needs.push(Need::found("BPF programs", "prebuilt, in samport-ebpf/prebuilt".to_owned()));
    }
    needs.extend(programs::needed(level).map(|program| {
        let way_out = || format!("package {}, for {}", program.packages[0], program.purpose);
        let place = program.find().map(|file| file.display().to_string());
        Need { name: program.name.to_owned(), state: place.ok_or_else(way_out) }
    }));
    needs.extend(tools::TOOLS.into_iter().filter(|tool| level.includes(tool.level)).map(|tool| {
        let place = tool.find(&cache).map(|file| file.display().to_string());
        let way_out = || format!("`cargo install {}`, for {}", tool.name, tool.purpose);
        Need { name: tool.name.to_owned(), state: place.ok_or_else(way_out) }
    }));
    if level.includes(Level::Run) {
        needs.push(bpffs::check());
    }
    Ok(needs)
}

fn survey_bpf(cache: &Path) -> Vec<Need> {
    const REMEDY: &str = "`cargo xtask setup` finds or installs it";
    if let Some(bpf) = given() {
        return vec![
            Need::found("BPF compiler", format!("{} (SAMPORT_BPF_TOOLCHAIN)", bpf.toolchain.name)),
            Need::found("bpf-linker", format!("{} (SAMPORT_BPF_LINKER)", bpf.linker.display())),
        ];
    }
    let Some(found) = bpf::find() else {
        return vec![
            Need::missing("BPF compiler", REMEDY),
            Need::missing("bpf-linker", "which one depends on the BPF compiler"),
        ];
    };
    let compiler = Need::found("BPF compiler", found.to_string());
    let Some(linker) = linker::find(&found, cache) else {
        return vec![compiler, Need::missing("bpf-linker", REMEDY)];
    };
    let place = linker.display().to_string();
    let path = record_path(cache);
    let bpf = Bpf { toolchain: found.toolchain, linker };
    let recorded = fs::read_to_string(&path).is_ok_and(|text| text == record(&bpf));
    let record = if recorded {
        Need::found("record of both", path.display().to_string())
    } else {
        Need::missing("record of both", "`cargo xtask setup` writes it for the build")
    };
    vec![compiler, Need::found("bpf-linker", place), record]
}

impl Need {
    fn found(name: &str, place: String) -> Self {
        Self { name: name.to_owned(), state: Ok(place) }
    }

    fn missing(name: &str, remedy: &str) -> Self {
        Self { name: name.to_owned(), state: Err(remedy.to_owned()) }
    }
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

/// The folder of links to programs that lie outside of PATH. xtask has it in its own.
pub fn bin(cache: &Path) -> PathBuf {
    cache.join("bin")
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
    fn a_level_includes_those_it_needs() {
        assert!(Level::Test.includes(Level::Build) && Level::Test.includes(Level::Package));
        assert!(Level::Kernel.includes(Level::Demo) && Level::Demo.includes(Level::Run));
        assert!(!Level::Run.includes(Level::Demo) && !Level::Test.includes(Level::Bench));
        assert!(!Level::Fuzz.includes(Level::Build) && !Level::Test.includes(Level::Lint));
    }

    #[test]
    fn a_level_is_called_as_it_is_typed() {
        assert_eq!(Level::Pristine.to_string(), "pristine");
    }
}
