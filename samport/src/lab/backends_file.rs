//! The file of `samport run --provider file`, written as one replaces a file that is being read.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

/// The file and what is in it. Every change is written immediately.
#[derive(Debug)]
pub struct BackendsFile {
    path: PathBuf,
    contents: Contents,
}

#[derive(Default, Serialize, Debug)]
struct Contents {
    backend: Vec<Entry>,
}

#[derive(Serialize, Debug)]
struct Entry {
    name: String,
    address: SocketAddr,
    weight: u32,
}

impl BackendsFile {
    /// Makes a file without backends.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self> {
        let file = Self { path: path.into(), contents: Contents::default() };
        file.write()?;
        Ok(file)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a backend of weight 1.
    pub fn add(&mut self, name: &str, address: SocketAddr) -> Result<()> {
        self.add_weighted(name, address, 1)
    }

    /// Adds a backend.
    pub fn add_weighted(&mut self, name: &str, address: SocketAddr, weight: u32) -> Result<()> {
        self.contents.backend.push(Entry { name: name.to_owned(), address, weight });
        self.write()
    }

    /// Gives all entries of a name another weight.
    pub fn set_weight(&mut self, name: &str, weight: u32) -> Result<()> {
        for entry in self.contents.backend.iter_mut().filter(|entry| entry.name == name) {
            entry.weight = weight;
        }
        self.write()
    }

    /// Takes all entries of a name out.
    pub fn remove(&mut self, name: &str) -> Result<()> {
        let before = self.contents.backend.len();
        self.contents.backend.retain(|entry| entry.name != name);
        ensure!(
            self.contents.backend.len() < before,
            "no backend {name} in {}",
            self.path.display()
        );
        self.write()
    }

    /// Puts any text in the file's place, right or wrong.
    pub fn write_text(&self, text: &str) -> Result<()> {
        let new = self.path.with_extension("new");
        fs::write(&new, text)
            .and_then(|()| fs::rename(&new, &self.path))
            .with_context(|| format!("write {}", self.path.display()))
    }

    fn write(&self) -> Result<()> {
        self.write_text(&toml::to_string(&self.contents).context("write backends as TOML")?)
    }
}
