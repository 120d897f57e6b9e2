//! `cargo xtask pristine`: a machine that has just been installed, for one command.

mod cache;
mod child;
mod furnish;
mod layout;
mod rootfs;
mod run_folder;

use std::ffi::OsString;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus};
use std::str::FromStr;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use rustix::mount::MountPropagationFlags;
use rustix::thread::UnshareFlags;

use self::cache::Cache;
use self::child::Signals;
use self::furnish::{Rust, below};
use self::layout::Layout;
use self::rootfs::Recipe;
use self::run_folder::RunFolder;
use crate::setup::{self, Level};
use crate::sh;

/// What README.md asks for before anything is built, on every suite. Rust comes from rustup.
const REQUIRED: [&str; 4] = ["git", "ca-certificates", "gcc", "libc6-dev"];
/// Where apt keeps what it has downloaded.
const ARCHIVES: &str = "var/cache/apt/archives";

/// Run a command on a machine that has just been installed
///
/// Makes a minimal root file system of a Debian or Ubuntu suite, with the packages and the Rust
/// toolchain that README.md asks for and nothing else. CMD runs there as root, in a clone of the
/// checkout's HEAD commit, in its own mount, pid, ipc and uts namespaces; its exit code is passed
/// on. The network is this machine's. Afterwards the root file system is removed, and whatever CMD
/// left running is killed.
///
/// Needs root. Kept between runs: packed root file systems (for a week), .deb files and downloaded
/// crates. Package archives are those of this machine's apt, or SAMPORT_DEBIAN_MIRROR,
/// SAMPORT_DEBIAN_SECURITY_MIRROR and SAMPORT_UBUNTU_MIRROR. The root file system is made below
/// TMPDIR, by default /var/tmp.
#[derive(clap::Args, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub struct Args {
    /// Suite of Debian or Ubuntu, such as bookworm, trixie, sid or noble
    #[arg(long, default_value = "bookworm")]
    suite: String,
    /// Packages to install beside those of README.md
    #[arg(long, value_name = "PKG", value_delimiter = ',')]
    with: Vec<String>,
    /// Run CMD in a network namespace that has only a loopback device; all crates of Cargo.lock are
    /// downloaded before, so that xtask can be compiled
    #[arg(long)]
    offline: bool,
    /// Mount HOME read-only, except for the checkout; CARGO_HOME and RUSTUP_HOME are below /opt
    #[arg(long)]
    read_only_home: bool,
    /// Put the root file system on one of this size, in memory: 700M, 4G
    #[arg(long, value_name = "SIZE", value_parser = size)]
    disk: Option<u64>,
    /// Run CMD as an unprivileged user with its own HOME, checkout and Rust
    #[arg(long)]
    user: bool,
    /// Use DIR as the checkout's target folder, so that another suite can run what this one builds
    #[arg(long, value_name = "DIR", conflicts_with_all = ["user", "read_only_home"])]
    target: Option<PathBuf>,
    /// Show a folder or file of this machine at another place
    #[arg(long = "bind", value_name = "DIR:PLACE")]
    binds: Vec<Bind>,
    /// Folder for what is kept between runs [default: ~/.cache/samport/pristine]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Leave the root file system after the run, and say where it is
    #[arg(long, conflicts_with = "disk")]
    keep: bool,
    /// The command, after `--`
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// A folder or file of this machine, and where it is in the other.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Bind {
    folder: PathBuf,
    place: PathBuf,
}

impl FromStr for Bind {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || anyhow!("expected DIR:PLACE, PLACE an absolute path");
        let (folder, place) = text.split_once(':').ok_or_else(wrong)?;
        ensure!(!folder.is_empty() && place.starts_with('/') && place != "/", wrong());
        Ok(Self { folder: folder.into(), place: place.into() })
    }
}

/// A number of bytes: 4096, 512K, 700M, 4G.
fn size(text: &str) -> Result<u64> {
    let (digits, factor) = match text.char_indices().next_back() {
        Some((at, 'k' | 'K')) => (&text[..at], 1 << 10),
        Some((at, 'm' | 'M')) => (&text[..at], 1 << 20),
        Some((at, 'g' | 'G')) => (&text[..at], 1 << 30),
        _ => (text, 1),
    };
    let number: Option<u64> = digits.parse().ok();
    let size = number.and_then(|number| number.checked_mul(factor)).filter(|size| *size > 0);
    size.context("expected a number of bytes, such as 700M or 4G")
}

/// Prints how long each stage takes.
struct Stages {
    suite: String,
    began: Instant,
}

impl Stages {
    fn new(suite: &str) -> Self {
        Self { suite: suite.to_owned(), began: Instant::now() }
    }

    fn done(&mut self, what: &str) {
        let seconds = self.began.elapsed().as_secs_f64();
        eprintln!("pristine {}: {what} {seconds:.1} s", self.suite);
        self.began = Instant::now();
    }
}

pub fn verb(args: &Args) -> Result<ExitCode> {
    if !sh::is_root() {
        bail!("pristine mounts file systems and needs root; try again as root");
    }
    setup::ensure(Level::Pristine)?;
    let mut signals = Signals::install()?;
    let result = run(args, &mut signals);
    match (result, signals.received()) {
        // As shells say it; the signal's own effect would have been the same.
        (Err(_), Some(signal)) => Ok(exit_code(128 + signal)),
        (result, _) => result.map(exit_code),
    }
}

fn exit_code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
}

/// The exit code of the command.
fn run(args: &Args, signals: &mut Signals) -> Result<i32> {
    let mut stages = Stages::new(&args.suite);
    let rust = Rust::find()?;
    let cache = match &args.cache {
        Some(folder) => Cache::open(folder)?,
        None => Cache::open(&setup::cache()?.join("pristine"))?,
    };
    let args = &args.absolute()?;
    let recipe = Recipe::new(args, &cache, signals)?;
    let layout = Layout::new(args.user, args.read_only_home);
    let mut run = RunFolder::make()?;
    enter_mount_namespace()?;
    let packed = recipe.packed(&cache, run.path(), signals, &mut stages)?;
    if let Some(size) = args.disk {
        run.mount_disk(size)?;
    }
    let root = run.root();
    rootfs::unpack(&packed, &root, signals)?;
    furnish::network(&root, &recipe, signals)?;
    rust.install(&root, &layout)?;
    stages.done("root file system unpacked");

    let checkout = below(&root, &layout.checkout);
    let commit = furnish::clone(run.path(), &checkout, signals)?;
    if let Some(target) = &args.target {
        furnish::set_times(&checkout, &commit, target)?;
    }
    stages.done(&format!("checkout of {} cloned", &commit[..7]));

    let debs = root.join(ARCHIVES);
    let registry = below(&root, &layout.cargo_home).join("registry");
    if args.offline {
        let home = run.path().join("cargo");
        alone(&cache, signals, || cache.fill(&args.suite, None, &home.join("registry")))?;
        furnish::fetch_crates(&checkout, &home, signals)?;
        let fetch = || cache.fetch(&args.suite, &home, &home.join("registry"));
        alone(&cache, signals, fetch)?;
        fs::remove_dir_all(&home).context("remove the cargo home")?;
        stages.done("crates downloaded");
    }
    // A small disk is to be filled by what the command does.
    let archives = args.disk.is_none().then_some(debs.as_path());
    if args.disk.is_none() || args.offline {
        alone(&cache, signals, || cache.fill(&args.suite, archives, &registry))?;
    }
    if args.user {
        furnish::user(&root, &layout, signals)?;
    }
    stages.done("downloads of earlier runs added");

    let mut command = layout.command(args, &root, &rust.toolchain);
    let status = signals.wait(&mut command)?;
    // A signal may have cut off what was being downloaded.
    signals.check()?;
    let code = code_of(status);
    stages.done(&format!("{}, exit code {code},", text(&args.command)));
    alone(&cache, signals, || cache.fetch(&args.suite, &debs, &registry))?;
    if args.keep {
        eprintln!("pristine: kept {}", run.keep()?.display());
    }
    drop(run);
    stages.done("put away");
    Ok(code)
}

impl Args {
    /// The same with paths that mean the same everywhere.
    fn absolute(&self) -> Result<Self> {
        let absolute = |path: &Path| {
            path.canonicalize().with_context(|| format!("cannot find {}", path.display()))
        };
        let mut args = self.clone();
        if let Some(target) = &mut args.target {
            fs::create_dir_all(&target).with_context(|| format!("make {}", target.display()))?;
            *target = absolute(target)?;
        }
        for bind in &mut args.binds {
            bind.folder = absolute(&bind.folder)?;
        }
        Ok(args)
    }
}

/// Takes part in the downloads that are kept, alone.
fn alone(cache: &Cache, signals: &mut Signals, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let _lock = cache.lock("downloads", signals)?;
    work()
}

/// Whatever this process mounts from here on ends with it, however it ends.
fn enter_mount_namespace() -> Result<()> {
    // SAFETY: it takes neither a descriptor nor memory away from anything, and no thread runs that
    // could miss a mount.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }
        .context("cannot make a mount namespace; pristine needs the rights of root")?;
    let flags = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", flags).context("make mounts private")
}

/// What a shell would say.
fn code_of(status: ExitStatus) -> i32 {
    status.code().or_else(|| Some(128 + status.signal()?)).unwrap_or(1)
}

/// A command as one would type it, shortened.
fn text(command: &[OsString]) -> String {
    const LENGTH: usize = 60;
    let words = command.join(std::ffi::OsStr::new(" ")).to_string_lossy().replace('\n', " ");
    match words.char_indices().nth(LENGTH) {
        Some((at, _)) => format!("{}…", &words[..at]),
        None => words,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn parsed(words: &[&str]) -> Result<Args, clap::Error> {
        Ok(Cli::try_parse_from([&["pristine"], words].concat())?.args)
    }

    pub fn args(words: &[&str]) -> Args {
        parsed(words).unwrap_or_else(|e| panic!("{e}"))
    }

    #[test]
    fn a_machine_has_what_the_readme_asks_for_and_nothing_else() {
        const INSTALL: &str = "apt-get install -y --no-install-recommends ";
        let readme = fs::read_to_string(sh::root().join("README.md")).unwrap();
        let lines: Vec<&str> =
            readme.lines().filter_map(|line| line.strip_prefix(INSTALL)).collect();
        let [packages] = lines[..] else {
            panic!("README.md has {} lines `{INSTALL}…`, expected 1", lines.len());
        };
        let packages: Vec<&str> = packages.split_whitespace().collect();
        assert_eq!(packages, REQUIRED);
    }

    #[test]
    fn the_command_comes_after_two_hyphens() {
        let args = args(&["--with", "jq,tmux", "--", "sh", "-c", "x"]);
        assert_eq!((args.suite.as_str(), args.with.len()), ("bookworm", 2));
        assert_eq!(args.command, ["sh", "-c", "x"]);
        assert!(parsed(&["--suite", "noble"]).is_err());
        assert!(parsed(&["--user", "--target", "t", "--", "true"]).is_err());
        assert!(parsed(&["--keep", "--disk", "1G", "--", "true"]).is_err());
    }

    #[test]
    fn a_size_is_a_number_of_bytes() {
        assert_eq!(size("4096").unwrap(), 4096);
        assert_eq!(size("700M").unwrap(), 700 << 20);
        assert_eq!(size("4g").unwrap(), 4 << 30);
        for wrong in ["", "0", "G", "-1", "1T", "99999999999G"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_bind_is_a_folder_and_an_absolute_place() {
        let bind: Bind = "a/b:/c:d".parse().unwrap();
        assert_eq!((bind.folder, bind.place), ("a/b".into(), "/c:d".into()));
        for wrong in ["a", "a:b", ":/b", "a:/"] {
            assert!(wrong.parse::<Bind>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_long_command_is_shortened() {
        let words = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert_eq!(text(&words("cargo xtask demo")), "cargo xtask demo");
        assert_eq!(text(&words(&"é".repeat(61))), format!("{}…", "é".repeat(60)));
    }

    #[test]
    fn a_command_ended_by_a_signal_has_the_code_a_shell_gives_it() {
        assert_eq!(code_of(ExitStatus::from_raw(3 << 8)), 3);
        assert_eq!(code_of(ExitStatus::from_raw(9)), 137);
    }
}
