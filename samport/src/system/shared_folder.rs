//! Folders that all instances share, and that the last one removes: who uses one holds a lock on it.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::fs::FlockOperation;

/// For us alone.
const MODE: u32 = 0o700;
/// How often a folder is made again that another instance has just removed.
const TRIES: u32 = 9;
const PAUSE: Duration = Duration::from_millis(1);

/// A folder that stays as long as this is there. Dropping it removes the folder, if it is empty and no other process
/// holds it.
#[derive(Debug)]
pub struct SharedFolder {
    path: PathBuf,
    lock: File,
}

impl SharedFolder {
    /// Makes the folder where it is missing, and holds it.
    ///
    /// # Errors
    /// It cannot be made, or opened.
    pub fn hold(path: &Path) -> io::Result<Self> {
        for attempt in 1.. {
            match DirBuilder::new().mode(MODE).create(path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            let lock = match File::open(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && attempt < TRIES => {
                    continue;
                }
                opened => opened?,
            };
            let locked = rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared);
            let is_there = fs::metadata(path).is_ok_and(|there| {
                lock.metadata()
                    .is_ok_and(|held| (there.dev(), there.ino()) == (held.dev(), held.ino()))
            });
            // Whoever removes it holds it for a moment; somebody who does so for longer does
            // not keep samport from starting.
            if is_there && (locked.is_ok() || attempt >= TRIES) {
                return Ok(Self { path: path.to_owned(), lock });
            }
            if attempt >= TRIES {
                break;
            }
            thread::sleep(PAUSE);
        }
        Err(io::ErrorKind::NotFound.into())
    }
}

impl Drop for SharedFolder {
    fn drop(&mut self) {
        remove(&self.path, &self.lock);
    }
}

/// Removes a folder that is empty and not held.
pub fn remove_unused(path: &Path) {
    if let Ok(folder) = File::open(path) {
        remove(path, &folder);
    }
}

fn remove(path: &Path, folder: &File) {
    if rustix::fs::flock(folder, FlockOperation::NonBlockingLockExclusive).is_ok() {
        // Fails while there is something in it, and that is right.
        let _ = fs::remove_dir(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_who_holds_a_folder_removes_it() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("shared");
        let first = SharedFolder::hold(&path).unwrap();
        let second = SharedFolder::hold(&path).unwrap();
        remove_unused(&path);
        assert!(path.exists(), "two hold it");
        drop(first);
        assert!(path.exists(), "one holds it");
        drop(second);
        assert!(!path.exists());
    }

    #[test]
    fn a_folder_with_something_in_it_stays() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("shared");
        let held = SharedFolder::hold(&path).unwrap();
        fs::write(path.join("record"), "").unwrap();
        drop(held);
        assert!(path.join("record").exists());
        remove_unused(&path);
        assert!(path.join("record").exists());
    }
}
