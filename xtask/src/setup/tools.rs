//! Programs that cargo builds into samport's cache.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::Level;
use crate::sh;

/// A program of crates.io.
#[derive(PartialEq, Eq, Debug)]
pub struct Tool {
    pub name: &'static str,
    pub version: &'static str,
    /// What it is needed for, as it follows "for", and how long building it takes.
    pub purpose: &'static str,
    pub level: Level,
}

pub const CARGO_DEB: Tool = Tool {
    name: "cargo-deb",
    version: "3.8.0",
    purpose: "making the Debian package (built by cargo, a minute or two)",
    level: Level::Package,
};

/// Without a sanitizer it asks for no nightly, and samport-common, which forbids `unsafe`, gives a sanitizer nothing to
/// find.
pub const CARGO_FUZZ: Tool = Tool {
    name: "cargo-fuzz",
    version: "0.13.2",
    purpose: "fuzzing (built by cargo, half a minute)",
    level: Level::Fuzz,
};

/// Newer ones may ask for a newer compiler than the workspace does.
pub const CARGO_DENY: Tool = Tool {
    name: "cargo-deny",
    version: "0.20.2",
    purpose: "checking licences and duplicates of crates (built by cargo, two to four minutes)",
    level: Level::Lint,
};

/// All of them.
pub const TOOLS: [&Tool; 3] = [&CARGO_DEB, &CARGO_FUZZ, &CARGO_DENY];

impl Tool {
    /// Where it is, if it is there.
    pub fn find(&self, cache: &Path) -> Option<PathBuf> {
        let built = self.folder(cache).join("bin").join(self.name);
        sh::find(self.name).or_else(|| sh::is_program(&built).then_some(built))
    }

    /// Where it is built into.
    pub fn folder(&self, cache: &Path) -> PathBuf {
        cache.join(format!("{}-{}", self.name, self.version))
    }

    pub fn build(&self, cache: &Path) -> Result<()> {
        let Self { name, version, .. } = self;
        eprintln!("setup: building {name} {version}, for {}", self.purpose);
        let mut cargo = sh::cargo();
        cargo.args(["install", name, "--version", version, "--locked", "--force", "--root"]);
        sh::run(cargo.arg(self.folder(cache)))
            .with_context(|| format!("no {name}; by hand: `cargo install {name}`"))
    }
}
