//! The Rust toolchain that compiles for the kernel.
//!
//! The target has no precompiled `core`, so the toolchain needs the library's source.

use std::cmp::Reverse;
use std::env;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::packages::{self, Apt};
use super::rustc::{self, Rustc};
use crate::sh;

/// Where Debian's Rust packages are. rustup takes a path for the name of a toolchain.
const SYSTEM: &str = "/usr";
const PACKAGES: [&str; 4] = ["rustc-web", "cargo-web", "rust-web-src", "rust-web-clippy"];

/// A toolchain by the name `rustup run` takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toolchain {
    pub name: String,
}

impl Toolchain {
    pub fn named(name: String) -> Self {
        Self { name }
    }

    /// A program of this toolchain. Without rustup there is but one toolchain, in PATH.
    pub fn command(&self, program: &str) -> Command {
        if sh::find("rustup").is_none() {
            return Command::new(program);
        }
        let mut command = Command::new("rustup");
        command.args(["run", &self.name, program]);
        command
    }

    /// Whether this is the distribution's, not one of rustup's.
    pub fn is_system(&self) -> bool {
        self.name == SYSTEM
    }
}

/// A toolchain that can compile the BPF programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub toolchain: Toolchain,
    pub rustc: Rustc,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Rustc { release: (major, minor), llvm } = self.rustc;
        write!(f, "{} (rustc {major}.{minor}, LLVM {llvm})", self.toolchain.name)
    }
}

/// What the machine offers for compiling BPF programs.
#[derive(Default)]
struct Findings {
    /// A rustup nightly with the library's source.
    nightly: Option<Found>,
    /// The distribution's Rust, with the library's source.
    system: Option<Found>,
    /// A nightly without the library's source.
    bare_nightly: Option<String>,
    /// Debian's packages can be installed.
    can_install_packages: bool,
    has_rustup: bool,
}

/// What to do about the toolchain.
#[derive(Debug, PartialEq, Eq)]
enum Choice {
    Use(Found),
    InstallPackages,
    AddSource(String),
    InstallNightly,
    GiveUp,
}

/// The toolchain to use if one is there already.
pub fn find() -> Option<Found> {
    match choose(&look()) {
        Choice::Use(found) => Some(found),
        _ => None,
    }
}

/// The toolchain to use, installed if none is there.
pub fn ensure(apt: &mut Apt) -> Result<Found> {
    let mut findings = look();
    match choose(&findings) {
        Choice::Use(found) => return Ok(found),
        Choice::InstallPackages => {
            if let Err(error) = install_packages(apt) {
                eprintln!("setup: no BPF compiler from apt-get: {error:#}");
            }
            findings = Findings { can_install_packages: false, ..look() };
        }
        _ => {}
    }
    let installed = match choose(&findings) {
        Choice::Use(found) => return Ok(found),
        Choice::AddSource(nightly) => add_source(&nightly),
        Choice::InstallNightly => install_nightly(),
        Choice::InstallPackages | Choice::GiveUp => Ok(()),
    };
    installed.context(BY_HAND)?;
    find().context(BY_HAND)
}

const BY_HAND: &str = "no compiler for the BPF programs; \
    by hand: rustup (https://rustup.rs) and \
    `rustup toolchain install nightly --component rust-src`, \
    or Debian's rustc-web, cargo-web and rust-web-src";

fn choose(findings: &Findings) -> Choice {
    let ready = findings.nightly.as_ref().or(findings.system.as_ref());
    match (ready, &findings.bare_nightly) {
        (Some(found), _) => Choice::Use(found.clone()),
        (None, _) if findings.can_install_packages => Choice::InstallPackages,
        (None, Some(nightly)) if findings.has_rustup => Choice::AddSource(nightly.clone()),
        (None, None) if findings.has_rustup => Choice::InstallNightly,
        (None, _) => Choice::GiveUp,
    }
}

fn look() -> Findings {
    let has_rustup = sh::find("rustup").is_some();
    let nightlies = if has_rustup { nightlies() } else { Vec::new() };
    let (ready, bare): (Vec<_>, Vec<_>) =
        nightlies.into_iter().partition(|folder| has_source(folder));
    Findings {
        nightly: ready.iter().find_map(|folder| usable(folder, &name(folder))),
        system: has_source(Path::new(SYSTEM)).then(|| usable(SYSTEM.as_ref(), SYSTEM)).flatten(),
        bare_nightly: bare.first().map(|folder| name(folder)),
        can_install_packages: packages::can_install() && sh::is_root(),
        has_rustup,
    }
}

/// The folders of rustup's nightlies, the undated one first, then the newest.
fn nightlies() -> Vec<PathBuf> {
    let home = env::var_os("RUSTUP_HOME").map(PathBuf::from);
    let Some(home) = home.or_else(|| Some(super::home().ok()?.join(".rustup"))) else {
        return Vec::new();
    };
    let entries = fs::read_dir(home.join("toolchains")).into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    folders.retain(|folder| name(folder).starts_with("nightly"));
    folders.sort_by_key(|folder| {
        let name = name(folder);
        (name.starts_with("nightly-2"), Reverse(name))
    });
    folders
}

fn name(folder: &Path) -> String {
    folder.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn has_source(sysroot: &Path) -> bool {
    sysroot.join("lib/rustlib/src/rust/library/core").is_dir()
}

fn usable(sysroot: &Path, name: &str) -> Option<Found> {
    let rustc = Rustc::at(&sysroot.join("bin/rustc")).filter(|rustc| rustc.is_new_enough())?;
    let toolchain = Toolchain::named(name.to_owned());
    sh::is_program(&sysroot.join("bin/cargo")).then_some(Found { toolchain, rustc })
}

fn install_packages(apt: &mut Apt) -> Result<()> {
    apt.update()?;
    let offered = packages::candidate(PACKAGES[0]).and_then(|version| rustc::release(&version));
    let (major, minor) = rustc::required();
    match offered {
        Some(offered) if offered >= (major, minor) => {}
        Some((old_major, old_minor)) => {
            bail!("{} is {old_major}.{old_minor}, {major}.{minor} is needed", PACKAGES[0])
        }
        None => bail!("there is no package {}", PACKAGES[0]),
    }
    apt.install(&PACKAGES, "to compile the BPF programs")
}

fn add_source(nightly: &str) -> Result<()> {
    eprintln!("setup: adding rust-src to {nightly} with rustup: to compile the BPF programs");
    sh::run(Command::new("rustup").args(["component", "add", "rust-src", "--toolchain", nightly]))
}

fn install_nightly() -> Result<()> {
    eprintln!("setup: installing a nightly Rust with rustup: to compile the BPF programs");
    let mut rustup = Command::new("rustup");
    rustup.args(["toolchain", "install", "nightly", "--profile", "minimal"]);
    sh::run(rustup.args(["--component", "rust-src"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str) -> Found {
        let rustc = Rustc { release: (1, 99), llvm: 30 };
        Found { toolchain: Toolchain::named(name.to_owned()), rustc }
    }

    fn everything() -> Findings {
        Findings {
            nightly: Some(found("nightly")),
            system: Some(found(SYSTEM)),
            bare_nightly: Some("nightly-2026-01-01".to_owned()),
            can_install_packages: true,
            has_rustup: true,
        }
    }

    #[test]
    fn a_nightly_with_source_comes_first() {
        assert_eq!(choose(&everything()), Choice::Use(found("nightly")));
    }

    #[test]
    fn the_distribution_s_rust_is_used_before_anything_is_installed() {
        let findings = Findings { nightly: None, ..everything() };
        assert_eq!(choose(&findings), Choice::Use(found(SYSTEM)));
    }

    #[test]
    fn packages_are_preferred_to_a_download() {
        let findings = Findings { nightly: None, system: None, ..everything() };
        assert_eq!(choose(&findings), Choice::InstallPackages);
    }

    #[test]
    fn a_nightly_that_is_there_gets_the_source_and_is_not_replaced() {
        let findings =
            Findings { nightly: None, system: None, can_install_packages: false, ..everything() };
        assert_eq!(choose(&findings), Choice::AddSource("nightly-2026-01-01".to_owned()));
    }

    #[test]
    fn rustup_alone_downloads_a_nightly() {
        let findings = Findings { has_rustup: true, ..Findings::default() };
        assert_eq!(choose(&findings), Choice::InstallNightly);
    }

    #[test]
    fn without_rustup_and_packages_there_is_nothing_to_do() {
        assert_eq!(choose(&Findings::default()), Choice::GiveUp);
    }
}
