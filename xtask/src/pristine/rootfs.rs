//! The minimal root file system of a suite: made by mmdebstrap, packed, and kept for a week.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};

use super::cache::Cache;
use super::child::Signals;
use super::{Args, REQUIRED, Stages};
use crate::{archives, sh};

/// How long a packed root file system is used: updates of its packages belong to a new machine.
const LIFETIME: Duration = Duration::from_hours(7 * 24);
/// What apt of this machine is told about its network, which apt of another needs too.
const NETWORK_OPTIONS: [&str; 7] = [
    "Acquire::http::",
    "Acquire::https::",
    "Acquire::ForceIPv",
    "Acquire::Retries",
    "Acquire::Check-Valid-Until",
    "Acquire::Check-Date",
    "Acquire::Max-FutureTime",
];
/// Where a distribution keeps its own keys.
const KEYRINGS: &str = "/usr/share/keyrings";

/// What is in a root file system, and where its packages come from.
pub struct Recipe {
    suite: String,
    packages: Vec<String>,
    /// The file of keys on this machine.
    keyring: PathBuf,
    /// Lines of apt.conf.
    pub options: Vec<String>,
}

impl Recipe {
    pub fn new(args: &Args, cache: &Cache, signals: &mut Signals) -> Result<Self> {
        let mut packages: Vec<String> = REQUIRED.map(str::to_owned).into();
        packages.extend(args.with.iter().cloned());
        // Before anything is downloaded: it says which variable is missing.
        archives::source_list(&args.suite, KEYRINGS)?;
        // Ubuntu's keys may have to be downloaded.
        let lock = cache.lock("keyring", signals)?;
        let keyring = archives::keyring(&args.suite, cache.folder())
            .with_context(|| unreachable(&args.suite))?;
        drop(lock);
        let options = sh::probe(Command::new("apt-config").args(["dump", "Acquire"]));
        let options = network_options(&options.unwrap_or_default());
        Ok(Self { suite: args.suite.clone(), packages, keyring, options })
    }

    /// The lines of `sources.list` in the root file system, which has the keys at its own place.
    pub fn sources(&self) -> Result<String> {
        let name = self.keyring.file_name().context("the keyring has no name")?;
        archives::source_list(&self.suite, &format!("{KEYRINGS}/{}", name.display()))
    }

    /// The name of the packed file: another one when something else is to be in it.
    fn name(&self) -> Result<String> {
        let mut hasher = DefaultHasher::new();
        (self.sources()?, &self.packages).hash(&mut hasher);
        Ok(format!("{}-{:016x}.tar", self.suite, hasher.finish()))
    }

    /// The packed root file system, made if the last one is older than this week.
    pub fn packed(
        &self,
        cache: &Cache,
        folder: &Path,
        signals: &mut Signals,
        stages: &mut Stages,
    ) -> Result<PathBuf> {
        let file = cache.folder().join(self.name()?);
        // Two runs that need the same one make it once.
        let _lock = cache.lock(&self.suite, signals)?;
        remove_old(cache.folder());
        if file.is_file() {
            return Ok(file);
        }
        eprintln!("pristine {}: making a root file system, once a week", self.suite);
        let new = file.with_extension("tar.new");
        let mut command = self.mmdebstrap(folder, &new)?;
        sh::echo(&command);
        signals.run(&mut in_namespaces(&mut command)).with_context(|| unreachable(&self.suite))?;
        fs::rename(&new, &file).with_context(|| format!("make {}", file.display()))?;
        stages.done("root file system made");
        Ok(file)
    }

    fn mmdebstrap(&self, folder: &Path, to: &Path) -> Result<Command> {
        // apt's own user reads them, which this user's cache is closed to.
        let keyring = folder.join("keyring.gpg");
        let list = folder.join("sources.list");
        fs::copy(&self.keyring, &keyring)
            .with_context(|| format!("copy {}", self.keyring.display()))?;
        let sources = archives::source_list(&self.suite, &keyring.display().to_string())?;
        fs::write(&list, sources).context("write sources.list")?;
        let mut command = Command::new("mmdebstrap");
        command.args(["--quiet", "--mode=root", "--format=tar", "--variant=minbase"]);
        // Ubuntu's minbase has no apt.
        command.arg(format!("--include=apt,{}", self.packages.join(",")));
        command.args(self.options.iter().map(|option| format!("--aptopt={option}")));
        command.arg(&self.suite).arg(to).arg(&list).env("TMPDIR", folder);
        Ok(command)
    }
}

/// The same command in namespaces that end with it: its mounts and processes do too.
fn in_namespaces(command: &mut Command) -> Command {
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "--pid", "--mount-proc", "--fork", "--kill-child"]);
    unshare.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            unshare.env(name, value);
        }
    }
    unshare
}

fn unreachable(suite: &str) -> String {
    format!(
        "cannot make the root file system of {suite}; if its archive cannot be reached, set {} to \
         one that can",
        archives::variables(suite)
    )
}

/// Removes packed root file systems of more than a week ago.
fn remove_old(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_packed = path.extension().is_some_and(|end| end == "tar");
        let made = entry.metadata().and_then(|data| data.modified());
        if is_packed && made.is_ok_and(|made| is_old(made, SystemTime::now())) {
            let _ = fs::remove_file(path);
        }
    }
}

fn is_old(made: SystemTime, now: SystemTime) -> bool {
    now.duration_since(made).is_ok_and(|age| age > LIFETIME)
}

/// What of `apt-config dump` is about the network.
fn network_options(dump: &str) -> Vec<String> {
    let is_network = |line: &&str| {
        // A program that finds the proxy is in this machine only.
        let is_program = line.contains("Auto-Detect") || line.contains("AutoDetect");
        NETWORK_OPTIONS.iter().any(|begin| line.starts_with(begin))
            && !is_program
            && !line.ends_with("\"\";")
    };
    dump.lines().filter(is_network).map(|line| line.trim_end_matches(';').to_owned()).collect()
}

/// Unpacks a root file system, as it was packed: with the owners' numbers and file capabilities.
pub fn unpack(packed: &Path, root: &Path, signals: &mut Signals) -> Result<()> {
    let file = File::open(packed).with_context(|| format!("open {}", packed.display()))?;
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--numeric-owner", "--same-permissions"]);
    tar.args(["--xattrs", "--xattrs-include=*", "--directory"]).arg(root).stdin(file);
    signals.run(&mut tar).with_context(|| format!("unpack {}", packed.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(packages: &[&str]) -> Recipe {
        Recipe {
            suite: "sid".to_owned(),
            packages: packages.iter().map(|name| (*name).to_owned()).collect(),
            keyring: "/usr/share/keyrings/debian-archive-keyring.gpg".into(),
            options: vec!["Acquire::Check-Date \"false\"".to_owned()],
        }
    }

    #[test]
    fn what_apt_is_told_about_the_network_is_kept() {
        let dump = "Acquire \"\";\nAcquire::Check-Date \"false\";\nAcquire::Languages:: \"none\";\n\
                    Acquire::http \"\";\nAcquire::http::Proxy \"http://proxy.test:3128\";\n\
                    Acquire::http::Proxy-Auto-Detect \"/usr/bin/find-proxy\";\n";
        assert_eq!(
            network_options(dump),
            ["Acquire::Check-Date \"false\"", "Acquire::http::Proxy \"http://proxy.test:3128\""]
        );
    }

    #[test]
    fn a_root_file_system_is_used_for_a_week() {
        let now = SystemTime::now();
        assert!(!is_old(now - Duration::from_hours(6 * 24), now));
        assert!(is_old(now - Duration::from_hours(8 * 24), now));
        // A clock that was set back.
        assert!(!is_old(now + Duration::from_hours(1), now));
    }

    #[test]
    fn mmdebstrap_runs_in_namespaces_with_its_variables() {
        let mut command = Command::new("mmdebstrap");
        command.env("TMPDIR", "/t").args(["sid", "a.tar"]);
        let wrapped = in_namespaces(&mut command);
        let expected = "TMPDIR=/t unshare --mount --pid --mount-proc --fork --kill-child \
                        mmdebstrap sid a.tar";
        assert_eq!(sh::text(&wrapped), expected);
    }

    #[test]
    fn another_package_is_another_root_file_system() {
        let hash = |packages: &[&str]| {
            let mut hasher = DefaultHasher::new();
            recipe(packages).packages.hash(&mut hasher);
            hasher.finish()
        };
        assert_ne!(hash(&["git", "gcc"]), hash(&["git", "gcc", "tmux"]));
        assert_eq!(hash(&["git"]), hash(&["git"]));
    }
}
