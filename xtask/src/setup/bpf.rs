//! The Rust toolchain that compiles for the kernel.
//!
//! The target has no precompiled `core`, so the toolchain needs the library's source.

use std::cmp::Reverse;
use std::env;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::rustc::{self, Rustc};
use super::{apt, linker};
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
    has_rustup: bool,
}

/// How a toolchain can be had that is not there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ToolchainSource {
    /// The distribution's packages, with the LLVM that their compiler has.
    Packages { llvm: u32 },
    /// The library's source, added to a nightly of rustup's.
    AddSource(String),
    /// A nightly of rustup's.
    Nightly,
}

/// The toolchain to use if one is there already.
pub fn find() -> Option<Found> {
    let findings = look();
    findings.nightly.or(findings.system)
}

/// How to get a toolchain where it is missing. It is decided by what the archive offers, before anything is done.
///
/// # Errors
/// There is no way; what could be done by hand.
pub fn way() -> Result<ToolchainSource> {
    let packages = offered();
    if let Err(error) = &packages {
        eprintln!("setup: {error:#}: asking rustup instead");
    }
    choose(&look(), packages.ok()).context(BY_HAND)
}

const BY_HAND: &str = "no compiler for the BPF programs; \
    by hand: rustup (https://rustup.rs) and \
    `rustup toolchain install nightly --component rust-src`, \
    or Debian's rustc-web, cargo-web and rust-web-src";

fn choose(findings: &Findings, packages: Option<u32>) -> Option<ToolchainSource> {
    if let Some(llvm) = packages {
        return Some(ToolchainSource::Packages { llvm });
    }
    if !findings.has_rustup {
        return None;
    }
    Some(match &findings.bare_nightly {
        Some(nightly) => ToolchainSource::AddSource(nightly.clone()),
        None => ToolchainSource::Nightly,
    })
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

/// The LLVM of the compiler that the distribution's packages would bring, if they would do.
fn offered() -> Result<u32> {
    ensure!(apt::is_there(), "there is no apt-get");
    let compiler = PACKAGES[0];
    let version = apt::candidate(compiler)
        .with_context(|| format!("this distribution has no package {compiler}"))?;
    let (major, minor) = rustc::required();
    let is_enough = rustc::release(&version).is_some_and(|offered| offered >= (major, minor));
    ensure!(is_enough, "{compiler} is {version} here, and {major}.{minor} is needed");
    let llvm = llvm_of(&apt::depends(compiler), apt::depends);
    let llvm = llvm.with_context(|| format!("{compiler} {version} depends on no libllvm"))?;
    let packages = packages(llvm);
    let packages: Vec<&str> = packages.iter().map(String::as_str).collect();
    // Where Debian's rustc is installed, or its rustup, these packages take its place.
    let removed = apt::simulate(&packages)?.removed;
    ensure!(removed.is_empty(), "{compiler} would remove {}", removed.join(" "));
    Ok(llvm)
}

/// The LLVM that a compiler of these dependencies has: Debian's depends on it by its standard library's packages.
fn llvm_of(dependencies: &[String], depends: fn(&str) -> Vec<String>) -> Option<u32> {
    let own = dependencies.iter().find_map(|name| name.strip_prefix("libllvm")?.parse().ok());
    own.or_else(|| {
        let mut libraries = dependencies.iter().filter(|name| name.starts_with("libstd-rust"));
        libraries.find_map(|name| llvm_of(&depends(name), depends))
    })
}

/// The distribution's packages of the compiler and of what bpf-linker is built with.
pub fn packages(llvm: u32) -> Vec<String> {
    PACKAGES.iter().map(|name| (*name).to_owned()).chain(linker::packages(llvm)).collect()
}

/// Adds the library's source to a nightly.
pub fn add_source(nightly: &str) -> Result<()> {
    eprintln!("setup: adding rust-src to {nightly} with rustup: to compile the BPF programs");
    sh::run(Command::new("rustup").args(["component", "add", "rust-src", "--toolchain", nightly]))
}

/// Installs a nightly with the library's source.
pub fn install_nightly() -> Result<()> {
    eprintln!("setup: installing a nightly Rust with rustup: to compile the BPF programs");
    let mut rustup = Command::new("rustup");
    rustup.args(["toolchain", "install", "nightly", "--profile", "minimal"]);
    sh::run(rustup.args(["--component", "rust-src", "--component", "clippy"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(bare_nightly: Option<&str>) -> Findings {
        let bare_nightly = bare_nightly.map(str::to_owned);
        Findings { bare_nightly, has_rustup: true, ..Findings::default() }
    }

    #[test]
    fn packages_are_preferred_to_a_download() {
        assert_eq!(choose(&findings(None), Some(22)), Some(ToolchainSource::Packages { llvm: 22 }));
    }

    #[test]
    fn a_nightly_that_is_there_gets_the_source_and_is_not_replaced() {
        let way = choose(&findings(Some("nightly-2026-01-01")), None);
        assert_eq!(way, Some(ToolchainSource::AddSource("nightly-2026-01-01".to_owned())));
    }

    #[test]
    fn rustup_alone_downloads_a_nightly() {
        assert_eq!(choose(&findings(None), None), Some(ToolchainSource::Nightly));
    }

    #[test]
    fn the_llvm_of_a_compiler_is_found_through_its_standard_library() {
        fn names(names: &[&str]) -> Vec<String> {
            names.iter().map(|name| (*name).to_owned()).collect()
        }
        let of = |dependencies: &[&str]| {
            llvm_of(&names(dependencies), |name| match name {
                "libstd-rust-web-dev" => names(&["libstd-rust-web-1.96", "gcc"]),
                "libstd-rust-web-1.96" => names(&["libc6", "libllvm22"]),
                _ => Vec::new(),
            })
        };
        assert_eq!(of(&["libc6", "libstd-rust-web-dev"]), Some(22));
        assert_eq!(of(&["libllvm19"]), Some(19));
        assert_eq!(of(&["libc6"]), None);
    }

    #[test]
    fn without_rustup_and_packages_there_is_nothing_to_do() {
        assert_eq!(choose(&Findings::default(), None), None);
    }
}
