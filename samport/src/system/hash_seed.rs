//! The seed of `maglev` and `source-hash` in its file: made at random where it is missing, and secret.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Result;
use rustix::fs::Access;
use rustix::rand::GetRandomFlags;
use samport_common::seed::Seed;

use crate::system::exit::{Exit, coded};

/// What its file is called by default.
pub const NAME: &str = "hash-seed";
/// Where it is by default.
pub const DEFAULT: &str = "/var/lib/samport/hash-seed";
/// Where it is instead, until the next reboot, if it cannot be kept there.
const UNTIL_REBOOT: &str = "/run/samport/hash-seed";

/// Bits of a mode that let others read or write.
const OTHERS: u32 = 0o077;
/// More than a seed's file has.
const MOST_BYTES: u64 = 256;
/// How often a file is made again that was gone before it was read.
const TRIES: u32 = 9;

/// A seed and its file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SeedFile {
    /// The file.
    pub path: PathBuf,
    /// What is in it.
    pub seed: Seed,
}

/// The file that a run would use.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Look {
    /// It is there.
    There(PathBuf),
    /// It would be made.
    New(PathBuf),
    /// It is there, or would be made, and is lost at the next reboot; why.
    UntilReboot(PathBuf, String),
}

/// Reads the seed, and makes it where it is missing: in the named file, or in the usual one.
///
/// # Errors
/// [`Exit::Usage`], with the way out, if the file cannot be read or made, is not for us alone, or holds no seed.
pub fn open(named: Option<&Path>) -> Result<SeedFile> {
    Places::usual().open(named)
}

/// Which file [`open`] would use. Changes nothing.
///
/// # Errors
/// Those of [`open`], as far as they can be foreseen.
pub fn look(named: Option<&Path>) -> Result<Look> {
    Places::usual().look(named)
}

/// Where a seed is without --hash-seed-file.
#[derive(Clone, Copy)]
struct Places<'a> {
    usual: &'a Path,
    until_reboot: &'a Path,
}

/// Why there is no seed.
#[derive(Debug)]
enum SeedError {
    /// A file that is not there cannot be made.
    Unmade(io::Error),
    /// There is one, which cannot be used.
    Unusable(anyhow::Error),
}

impl Places<'_> {
    fn usual() -> Places<'static> {
        Places { usual: Path::new(DEFAULT), until_reboot: Path::new(UNTIL_REBOOT) }
    }

    fn open(self, named: Option<&Path>) -> Result<SeedFile> {
        if let Some(path) = named {
            return found_or_made(path).map_err(|trouble| trouble.of(path));
        }
        let why = match with_folder(self.usual) {
            Ok(file) => return Ok(file),
            Err(SeedError::Unmade(why)) => why,
            Err(unusable) => return Err(unusable.of(self.usual)),
        };
        let file = with_folder(self.until_reboot);
        let file = file.map_err(|trouble| trouble.of(self.until_reboot))?;
        tracing::warn!("{}", self.not_kept(&why));
        Ok(file)
    }

    fn look(self, named: Option<&Path>) -> Result<Look> {
        let path = named.unwrap_or(self.usual);
        if read(path)?.is_some() {
            return Ok(Look::There(path.to_owned()));
        }
        // The usual folder would be made too.
        let may = match may_make(path) {
            Err(error) if error.kind() == ErrorKind::NotFound && named.is_none() => {
                may_make(folder_of(path))
            }
            may => may,
        };
        match (may, named) {
            (Ok(()), _) => Ok(Look::New(path.to_owned())),
            (Err(error), Some(_)) => Err(SeedError::Unmade(error).of(path)),
            (Err(error), None) => {
                read(self.until_reboot)?;
                Ok(Look::UntilReboot(self.until_reboot.to_owned(), self.not_kept(&error)))
            }
        }
    }

    /// The trouble, a semicolon, and the way out.
    fn not_kept(self, why: &io::Error) -> String {
        format!(
            "the hash seed cannot be kept in {} ({why}) and is lost at the next reboot, after which `maglev` and \
             `source-hash` lead clients to other backends; make that folder writable, or name a file with \
             --hash-seed-file",
            self.usual.display()
        )
    }
}

impl SeedError {
    fn of(self, path: &Path) -> anyhow::Error {
        match self {
            Self::Unmade(error) => coded(
                Exit::Usage,
                format!(
                    "cannot make the hash seed file {}: {error}; make its folder, or name another file with \
                     --hash-seed-file",
                    path.display()
                ),
            ),
            Self::Unusable(error) => error,
        }
    }
}

/// The same as [`found_or_made`], with the folder too.
fn with_folder(path: &Path) -> Result<SeedFile, SeedError> {
    let made = DirBuilder::new().mode(0o755).create(folder_of(path));
    match (found_or_made(path), made) {
        // Why the folder is missing says more than that it is.
        (Err(SeedError::Unmade(_)), Err(why)) if why.kind() != ErrorKind::AlreadyExists => {
            Err(SeedError::Unmade(why))
        }
        (found, _) => found,
    }
}

/// The seed of a file, which is made at random where it is missing.
fn found_or_made(path: &Path) -> Result<SeedFile, SeedError> {
    for _ in 0..TRIES {
        if let Some(seed) = read(path).map_err(SeedError::Unusable)? {
            return Ok(SeedFile { path: path.to_owned(), seed });
        }
        match make(path) {
            // Whoever was first has made it; we read what there is.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            made => made.map_err(SeedError::Unmade)?,
        }
    }
    Err(SeedError::Unmade(ErrorKind::NotFound.into()))
}

/// Makes a file with a new seed: whole and on disk, or not at all, and never in the place of another.
fn make(path: &Path) -> io::Result<()> {
    let folder = folder_of(path);
    let name = path.file_name().ok_or(ErrorKind::InvalidInput)?.display();
    let draft = folder.join(format!(".{name}.{:032x}", random()?));
    let text = format!("{:032x}\n", random()?);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    // Unlike a rename it replaces nothing.
    let linked = written.and_then(|()| fs::hard_link(&draft, path));
    let removed = fs::remove_file(&draft);
    linked.and(removed)?;
    File::open(folder)?.sync_all()
}

fn random() -> io::Result<u128> {
    let mut bytes = [0; Seed::BYTES];
    // So few bytes come in one call.
    rustix::rand::getrandom(&mut bytes, GetRandomFlags::empty())?;
    Ok(u128::from_ne_bytes(bytes))
}

fn folder_of(path: &Path) -> &Path {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder.unwrap_or(Path::new("."))
}

/// Whether [`make`] could make a file here.
fn may_make(path: &Path) -> io::Result<()> {
    Ok(rustix::fs::access(folder_of(path), Access::WRITE_OK | Access::EXEC_OK)?)
}

/// What is in a file; `None` if it is missing.
fn read(path: &Path) -> Result<Option<Seed>> {
    let unusable = |why: String| Err(coded(Exit::Usage, why));
    let shown = path.display();
    // One that is no file may let us wait for ever.
    let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if is_missing(&error) => return Ok(None),
        Err(error) => {
            return unusable(format!(
                "cannot read the hash seed file {shown}: {error}; it must be a file of root's, with mode 0600"
            ));
        }
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return unusable(format!(
            "the hash seed file {shown} is no file; remove it, or name another with --hash-seed-file"
        ));
    }
    let (owner, us) = (metadata.uid(), rustix::process::geteuid());
    if owner != 0 && owner != us.as_raw() {
        return unusable(format!(
            "the hash seed file {shown} belongs to user {owner}, who may change it; chown {us} {shown}"
        ));
    }
    let mode = metadata.mode() & 0o777;
    if mode & OTHERS != 0 {
        return unusable(format!(
            "the hash seed file {shown} has mode {mode:04o}: others may read or write it; chmod 600 {shown}"
        ));
    }
    let mut text = String::new();
    let read = file.take(MOST_BYTES).read_to_string(&mut text);
    match read.ok().and_then(|_| parse(text.trim_end())) {
        Some(seed) => Ok(Some(seed)),
        // What is there may be a secret all the same.
        None => unusable(format!(
            "the hash seed file {shown} holds no seed, which is 32 hexadecimal digits in one line; copy it again \
             from where it is good, or remove it and samport makes a new one"
        )),
    }
}

/// Whether there is no file of a name. Making one says what else is missing.
fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

fn parse(digits: &str) -> Option<Seed> {
    let is_whole =
        digits.len() == 2 * Seed::BYTES && digits.bytes().all(|one| one.is_ascii_hexdigit());
    let number = u128::from_str_radix(digits, 16).ok()?;
    is_whole.then(|| Seed::from_bytes(number.to_be_bytes()))
}

#[cfg(test)]
mod tests;
