//! What is kept between runs, and only this: packed root file systems, .deb files, downloaded crates
//! and their index. None of them hides a missing install step: a package still has to be asked for,
//! and a crate to be compiled. Each run works on its own files, so runs do not meet.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use rustix::fs::FlockOperation;
use walkdir::WalkDir;

use super::child::Signals;
use crate::sh;

/// After this time a downloaded file is downloaded again: most have been superseded by then.
const LIFETIME: Duration = Duration::from_hours(30 * 24);
/// How often a lock is tried that another run holds.
const RETRY: Duration = Duration::from_millis(200);

pub struct Cache {
    folder: PathBuf,
}

impl Cache {
    pub fn open(folder: &Path) -> Result<Self> {
        for part in ["debs", "registry"] {
            let part = folder.join(part);
            fs::create_dir_all(&part).with_context(|| format!("make {}", part.display()))?;
        }
        // mmdebstrap and tar run in other folders.
        let folder = folder.canonicalize().with_context(|| folder.display().to_string())?;
        Ok(Self { folder })
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Waits until no other run holds this lock, and holds it until it is dropped.
    pub fn lock(&self, name: &str, signals: &mut Signals) -> Result<File> {
        let path = self.folder.join(format!("{name}.lock"));
        let file = File::create(&path).with_context(|| format!("make {}", path.display()))?;
        let mut is_told = false;
        while rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            signals.check()?;
            if !is_told {
                eprintln!("pristine: waiting for another run, which holds {}", path.display());
                is_told = true;
            }
            signals.sleep(Some(RETRY))?;
        }
        Ok(file)
    }

    /// Gives a machine what earlier ones have downloaded.
    pub fn fill(&self, suite: &str, archives: Option<&Path>, registry: &Path) -> Result<()> {
        if let Some(archives) = archives {
            let debs = self.debs(suite);
            remove_old(&debs);
            merge(&debs, archives, |_| true)?;
        }
        remove_old(&self.folder.join("registry/cache"));
        for part in ["cache", "index"] {
            merge(&self.folder.join("registry").join(part), &registry.join(part), |_| true)?;
        }
        Ok(())
    }

    /// Takes over what a machine has downloaded.
    pub fn fetch(&self, suite: &str, archives: &Path, registry: &Path) -> Result<()> {
        merge(archives, &self.debs(suite), |file| file.extension().is_some_and(|e| e == "deb"))?;
        // One that a killed cargo has written half of would fail every run after this one.
        merge(&registry.join("cache"), &self.folder.join("registry/cache"), is_whole)?;
        let index = self.folder.join("registry/index");
        let new = self.folder.join("registry/index.new");
        let _ = fs::remove_dir_all(&new);
        merge(&registry.join("index"), &new, |_| true)?;
        if new.is_dir() {
            let _ = fs::remove_dir_all(&index);
            fs::rename(&new, &index).context("replace the index of crates")?;
        }
        Ok(())
    }

    fn debs(&self, suite: &str) -> PathBuf {
        self.folder.join("debs").join(suite)
    }
}

/// Copies the files below one folder that another does not have yet. Archives are linked where
/// possible: neither apt nor cargo writes into one.
fn merge(from: &Path, to: &Path, is_wanted: impl Fn(&Path) -> bool) -> Result<()> {
    for entry in WalkDir::new(from).min_depth(1).into_iter().flatten() {
        let path = entry.path();
        let place = to.join(path.strip_prefix(from)?);
        if !entry.file_type().is_file() || place.exists() || !is_wanted(path) {
            continue;
        }
        let parent = place.parent().unwrap_or(to);
        fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
        let is_archive = path.extension().is_some_and(|end| end == "deb" || end == "crate");
        if !(is_archive && fs::hard_link(path, &place).is_ok()) {
            // Not under its name before it is whole.
            let new = parent.join(format!("{}.new", entry.file_name().display()));
            fs::copy(path, &new).with_context(|| format!("copy {}", path.display()))?;
            fs::rename(&new, &place).with_context(|| format!("make {}", place.display()))?;
        }
    }
    Ok(())
}

/// Whether a .crate file is not cut off: it is a gzip file, which ends with a checksum.
fn is_whole(file: &Path) -> bool {
    let mut gzip = Command::new("gzip");
    sh::probe(gzip.args(["--test", "--stdout"]).stdin(Stdio::null()).arg(file)).is_some()
}

/// Removes files that were downloaded long ago. Their own times are the server's: it is the time of
/// their creation that counts, where the file system keeps it.
fn remove_old(folder: &Path) {
    for entry in WalkDir::new(folder).into_iter().flatten() {
        let created = entry.metadata().ok().and_then(|data| data.created().ok());
        let age = created.and_then(|created| SystemTime::now().duration_since(created).ok());
        if entry.file_type().is_file() && age.is_some_and(|age| age > LIFETIME) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let name = format!("samport-pristine-{name}-test-{}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn a_machine_gets_what_an_earlier_one_has_downloaded_and_nothing_else() {
        let folder = folder("cache");
        let (first, second) = (folder.join("first"), folder.join("second"));
        for (file, text) in [
            ("debs/a_1_amd64.deb", "a"),
            ("debs/lock", ""),
            ("debs/partial/b_1_amd64.deb.part", "half"),
            ("registry/index/x/.cache/se/rde", "index"),
            ("registry/cache/x/cut-off-1.0.0.crate", "no gzip file"),
            ("registry/src/x/serde-1.0.0/lib.rs", "source"),
        ] {
            let file = first.join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        let archive = first.join("registry/cache/x/serde-1.0.0.crate");
        let mut gzip = Command::new("gzip");
        gzip.stdin(Stdio::null()).stdout(File::create(&archive).unwrap());
        assert!(gzip.status().unwrap().success());

        let cache = Cache::open(&folder.join("cache")).unwrap();
        cache.fetch("sid", &first.join("debs"), &first.join("registry")).unwrap();
        cache.fill("sid", Some(&second.join("debs")), &second.join("registry")).unwrap();
        let there = WalkDir::new(&second).sort_by_file_name().into_iter().flatten();
        let there = there.filter(|entry| entry.file_type().is_file());
        let there: Vec<String> = there
            .map(|entry| entry.path().strip_prefix(&second).unwrap().display().to_string())
            .collect();
        // Debian's package of another suite may have the same name and version.
        let other = folder.join("other");
        cache.fill("trixie", Some(&other.join("debs")), &other.join("registry")).unwrap();
        let has_deb = other.join("debs").exists();
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(
            there,
            [
                "debs/a_1_amd64.deb",
                "registry/cache/x/serde-1.0.0.crate",
                "registry/index/x/.cache/se/rde"
            ]
        );
        assert!(!has_deb);
    }
}
