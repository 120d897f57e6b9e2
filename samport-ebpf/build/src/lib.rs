//! Where a build takes the kernel programs from: the prebuilt objects in the checkout if they fit the sources, else
//! the compiler. `samport/build.rs` and `cargo xtask prebuilt` share this crate, so both mean the same by "fits".
//! docs/internals/design/0010-prebuilt-objects.md has the reasons.

pub mod compile;
pub mod elf;
mod key;
mod manifest;
mod sections;

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};

pub use self::key::{inputs, key};
pub use self::manifest::{Manifest, Versions};

/// The objects, by the names of the kernel crate's binaries.
pub const OBJECTS: [&str; 2] = ["samport-ebpf", "samport-harness"];

/// The environment variable that decides where the objects come from.
pub const VARIABLE: &str = "SAMPORT_BPF";

/// The objects' bytes by name.
pub type Objects = BTreeMap<String, Vec<u8>>;

/// What `SAMPORT_BPF` asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wanted {
    /// The prebuilt objects if they fit the sources, else compiled ones: without the variable.
    Either,
    /// `prebuilt`: an error if they do not fit.
    Prebuilt,
    /// `build`: compiled, whatever is prebuilt.
    Build,
}

impl Wanted {
    /// Reads the value of `SAMPORT_BPF`, if it is set.
    pub fn parse(value: Option<&str>) -> Result<Self> {
        match value {
            None | Some("") => Ok(Self::Either),
            Some("prebuilt") => Ok(Self::Prebuilt),
            Some("build") => Ok(Self::Build),
            Some(other) => bail!("invalid {VARIABLE} {other:?}: expected prebuilt or build"),
        }
    }
}

/// Where a build takes the objects from.
#[derive(PartialEq, Eq, Debug)]
pub enum Source {
    /// The checkout has these, and they fit its sources.
    Prebuilt(Objects),
    /// They have to be compiled; the text says why.
    Compile(String),
}

/// The folder of the prebuilt objects in the checkout at `root`.
#[must_use]
pub fn folder(root: &Path) -> PathBuf {
    root.join("samport-ebpf/prebuilt")
}

/// The file of the key, the versions and the checksums.
#[must_use]
pub fn manifest_path(root: &Path) -> PathBuf {
    folder(root).join("manifest")
}

/// Says where a build of the checkout at `root` takes the objects from. Damaged files are an error, not a reason to
/// compile: the checkout is not what was committed, and whoever reads a warning may not be who can tell why.
pub fn source(root: &Path, wanted: Wanted) -> Result<Source> {
    if wanted == Wanted::Build {
        return Ok(Source::Compile(format!("{VARIABLE}=build")));
    }
    match prebuilt(root)? {
        Ok(objects) => Ok(Source::Prebuilt(objects)),
        Err(reason) if wanted == Wanted::Prebuilt => {
            bail!("{VARIABLE}=prebuilt: {reason}; `cargo xtask prebuilt` compiles them")
        }
        Err(reason) => Ok(Source::Compile(reason)),
    }
}

/// The prebuilt objects, or why there are none for these sources.
fn prebuilt(root: &Path) -> Result<Result<Objects, String>> {
    let Some(manifest) = read_manifest(root)? else {
        return Ok(Err("there are no prebuilt kernel programs".to_owned()));
    };
    if manifest.key != key(root)? {
        return Ok(Err("the prebuilt kernel programs are of other sources".to_owned()));
    }
    read(root, &manifest).map(Ok)
}

/// The manifest of the checkout at `root`, if it has one.
pub fn read_manifest(root: &Path) -> Result<Option<Manifest>> {
    let path = manifest_path(root);
    match fs::read_to_string(&path) {
        Ok(text) => text.parse().map(Some).with_context(|| damaged(&path)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| damaged(&path)),
    }
}

/// Reads the objects and refuses those that are not what the manifest says.
pub fn read(root: &Path, manifest: &Manifest) -> Result<Objects> {
    let read = |name: &str| {
        let path = folder(root).join(name);
        let bytes = fs::read(&path).with_context(|| damaged(&path))?;
        let found = manifest::sha256(&bytes);
        let expected = manifest.checksum(name)?;
        ensure!(
            found == expected,
            "{}: sha256 {found}, expected {expected} ({} bytes)",
            damaged(&path),
            bytes.len()
        );
        Ok((name.to_owned(), bytes))
    };
    OBJECTS.into_iter().map(read).collect()
}

/// Writes objects and their manifest into the checkout at `root`. The manifest comes last: an interrupted call leaves
/// objects that are refused.
pub fn write(root: &Path, objects: &Objects, versions: Versions) -> Result<Manifest> {
    let manifest = Manifest::new(key(root)?, versions, objects);
    fs::create_dir_all(folder(root)).context("cannot create the folder of prebuilt objects")?;
    let text = manifest.to_string();
    let files = objects.iter().map(|(name, bytes)| (folder(root).join(name), bytes.as_slice()));
    for (path, bytes) in files.chain([(manifest_path(root), text.as_bytes())]) {
        fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(manifest)
}

fn damaged(path: &Path) -> String {
    let way_out =
        "`git checkout samport-ebpf/prebuilt` restores it, SAMPORT_BPF=build does without";
    format!("damaged prebuilt kernel programs: {} ({way_out})", path.display())
}

#[cfg(test)]
mod tests;
