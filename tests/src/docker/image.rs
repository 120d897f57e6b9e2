//! The image of the test containers: one static binary.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use samport::lab::output_of;

use crate::profile_folder;

/// Name of the image once it is imported.
pub const SERVER_IMAGE: &str = "samport-test";

/// A tar file with `/server` for `docker import` and `podman import`. It is compiled once for
/// each state of its source and kept under Cargo's target folder.
pub fn server_image() -> Result<PathBuf> {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    let main = tests.join("image/main.rs");
    let sources = [main.clone()].into_iter().chain(server_sources(tests)?);
    let mut hasher = DefaultHasher::new();
    for source in sources {
        let text = fs::read(&source).with_context(|| format!("read {}", source.display()))?;
        text.hash(&mut hasher);
    }
    let folder = profile_folder().with_file_name("samport-image");
    let tar = folder.join(format!("{:016x}.tar", hasher.finish()));
    if !tar.exists() {
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        compile(&main, &folder, &tar)?;
    }
    Ok(tar)
}

fn server_sources(tests: &Path) -> Result<Vec<PathBuf>> {
    let folder = tests.join("../samport/src/lab/server");
    let entries = fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))?;
    let mut sources = entries.flatten().map(|entry| entry.path()).collect::<Vec<_>>();
    sources.sort();
    Ok(sources)
}

/// Compiles in a folder of its own and moves the result: two tests may do so at the same time.
fn compile(main: &Path, folder: &Path, tar: &Path) -> Result<()> {
    let scratch = tempfile::tempdir_in(folder).context("make a folder to compile in")?;
    let (server, new) = (scratch.path().join("server"), scratch.path().join("new.tar"));
    output_of(
        Command::new("rustc")
            .args([
                "--edition",
                "2024",
                "-O",
                "-C",
                "target-feature=+crt-static",
                "-C",
                "strip=symbols",
            ])
            // The binary uses a part of the server only; clippy sees all of it elsewhere.
            .args(["--cap-lints", "allow", "-o"])
            .args([&server, main]),
    )?;
    output_of(
        Command::new("tar").arg("-cf").arg(&new).arg("-C").arg(scratch.path()).arg("server"),
    )?;
    fs::rename(&new, tar).with_context(|| format!("make {}", tar.display()))
}
