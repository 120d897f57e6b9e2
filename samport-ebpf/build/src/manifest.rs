//! The manifest of the prebuilt objects: lines of `name = value`.

use std::fmt::{self, Write as _};
use std::str::FromStr;

use anyhow::{Context as _, Result, ensure};

use crate::{OBJECTS, Objects};

/// What compiled the objects.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Versions {
    /// The first line of `rustc -vV`.
    pub rustc: String,
    /// The LLVM that rustc writes bitcode with.
    pub rustc_llvm: String,
    /// What bpf-linker says about itself.
    pub linker: String,
    /// The LLVM that bpf-linker makes instructions with.
    pub linker_llvm: String,
}

impl Versions {
    /// Each by its name in the manifest.
    fn lines(&self) -> [(&'static str, &str); 4] {
        [
            ("rustc", &self.rustc),
            ("rustc-llvm", &self.rustc_llvm),
            ("bpf-linker", &self.linker),
            ("bpf-linker-llvm", &self.linker_llvm),
        ]
    }

    /// Names what is not the same, with both versions.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let pairs = self.lines().into_iter().zip(other.lines());
        let pairs = pairs.filter(|((_, here), (_, there))| here != there);
        pairs.map(|((name, here), (_, there))| format!("{name}: {here:?}, {there:?}")).collect()
    }
}

/// What is said of the prebuilt objects.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Manifest {
    /// The key of the sources they were compiled from.
    pub key: String,
    /// What compiled them.
    pub versions: Versions,
    /// The SHA-256 of each of `OBJECTS`.
    checksums: [String; OBJECTS.len()],
}

impl Manifest {
    pub(crate) fn new(key: String, versions: Versions, objects: &Objects) -> Self {
        let checksums =
            OBJECTS.map(|name| objects.get(name).map(|o| sha256(o)).unwrap_or_default());
        Self { key, versions, checksums }
    }

    /// The SHA-256 that an object has to have.
    pub(crate) fn checksum(&self, name: &str) -> Result<&str> {
        let mut pairs = OBJECTS.iter().zip(&self.checksums);
        let (_, checksum) = pairs.find(|(known, _)| **known == name).context("no such object")?;
        Ok(checksum)
    }
}

impl fmt::Display for Manifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "# Written by `cargo xtask prebuilt`: docs/internals/design/0010-prebuilt-objects.md."
        )?;
        writeln!(f, "key = {}", self.key)?;
        for (name, version) in self.versions.lines() {
            writeln!(f, "{name} = {version}")?;
        }
        for (name, checksum) in OBJECTS.iter().zip(&self.checksums) {
            writeln!(f, "sha256 {name} = {checksum}")?;
        }
        Ok(())
    }
}

impl FromStr for Manifest {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let value = |wanted: &str| {
            let mut lines = text.lines().filter_map(|line| line.split_once(" = "));
            let found = lines.find(|(name, _)| *name == wanted).map(|(_, value)| value.to_owned());
            found.with_context(|| format!("the manifest has no line \"{wanted} = …\""))
        };
        let hash = |wanted: &str| {
            let value = value(wanted)?;
            let is_hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
            let is_hash = value.len() == 64 && value.chars().all(is_hex);
            ensure!(is_hash, "invalid {wanted} {value:?}: expected 64 hexadecimal digits");
            Ok(value)
        };
        let mut checksums = [const { String::new() }; OBJECTS.len()];
        for (name, checksum) in OBJECTS.iter().zip(&mut checksums) {
            *checksum = hash(&format!("sha256 {name}"))?;
        }
        let versions = Versions {
            rustc: value("rustc")?,
            rustc_llvm: value("rustc-llvm")?,
            linker: value("bpf-linker")?,
            linker_llvm: value("bpf-linker-llvm")?,
        };
        Ok(Self { key: hash("key")?, versions, checksums })
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&hmac_sha256::Hash::hash(bytes))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}
