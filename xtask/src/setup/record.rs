//! What setup has changed on this machine, so that `setup --remove` can undo that and nothing else.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// The record's file in samport's cache folder. It is written before each step, so that one that is interrupted is undone
/// too.
const FILE: &str = "setup.json";

/// Everything setup has done that was not so before.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Record {
    /// Packages that were not installed before.
    pub packages: BTreeSet<String>,
    /// Packages that had to go for one of those.
    pub replaced: BTreeSet<String>,
    /// Folders that were made in the cache, for tools that cargo builds.
    pub folders: BTreeSet<PathBuf>,
    /// rustup's toolchains that were not there before.
    pub toolchains: BTreeSet<String>,
    /// Components that were added to rustup's toolchains: toolchain, a space, component.
    pub components: BTreeSet<String>,
    /// The BPF file system was not mounted.
    pub bpffs: bool,
}

impl Record {
    pub fn path(cache: &Path) -> PathBuf {
        cache.join(FILE)
    }

    /// Reads it; an empty one if nothing was done yet.
    pub fn load(cache: &Path) -> Result<Self> {
        let path = Self::path(cache);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| {
                format!("{} is not a record of setup; move it away", path.display())
            }),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }

    /// Changes the record and writes it.
    pub fn update(cache: &Path, change: impl FnOnce(&mut Self)) -> Result<()> {
        let mut record = Self::load(cache)?;
        change(&mut record);
        record.save(cache)
    }

    fn save(&self, cache: &Path) -> Result<()> {
        let path = Self::path(cache);
        if *self == Self::default() {
            return match fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    Err(error).with_context(|| format!("remove {}", path.display()))
                }
                _ => Ok(()),
            };
        }
        fs::create_dir_all(cache).with_context(|| format!("create {}", cache.display()))?;
        let new = path.with_extension("new");
        let text = serde_json::to_vec_pretty(self).context("write the record of setup")?;
        fs::write(&new, text).with_context(|| format!("write {}", new.display()))?;
        fs::rename(&new, &path).with_context(|| format!("write {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written_and_an_empty_one_leaves_no_file() {
        let folder = std::env::temp_dir().join(format!("samport-record-{}", std::process::id()));
        assert_eq!(Record::load(&folder).unwrap(), Record::default());
        Record::update(&folder, |record| {
            record.packages.insert("tmux".to_owned());
            record.bpffs = true;
        })
        .unwrap();
        let record = Record::load(&folder).unwrap();
        assert!(record.packages.contains("tmux") && record.bpffs);
        Record::update(&folder, |record| *record = Record::default()).unwrap();
        assert!(!Record::path(&folder).exists());
        fs::write(Record::path(&folder), "{").unwrap();
        let error = format!("{:#}", Record::load(&folder).unwrap_err());
        assert!(error.contains("setup.json"), "{error}");
        fs::remove_dir_all(&folder).unwrap();
    }
}
