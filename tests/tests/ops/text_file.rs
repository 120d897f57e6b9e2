//! A file that samport reads and follows.

use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;

/// The file, in a folder that is removed with it.
pub struct TextFile {
    path: PathBuf,
    _folder: TempDir,
}

impl TextFile {
    /// A file of this name.
    pub fn new(name: &str, text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = Self { path: folder.path().join(name), _folder: folder };
        file.write(text);
        file
    }

    /// Whole, as careful writers do.
    pub fn write(&self, text: &str) {
        let new = self.path.with_extension("new");
        fs::write(&new, text).unwrap();
        fs::rename(&new, &self.path).unwrap();
    }

    /// Where it is.
    pub fn path(&self) -> &str {
        self.path.to_str().unwrap()
    }
}
