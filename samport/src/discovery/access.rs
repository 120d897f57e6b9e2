//! Whether a run may open an engine's socket. Root is a user like others there: a run gives up CAP_DAC_OVERRIDE.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;

use caps::{CapSet, Capability};

/// What it takes to open files whatever their modes say.
const OVERRIDES: [Capability; 2] = [Capability::CAP_DAC_OVERRIDE, Capability::CAP_DAC_READ_SEARCH];

/// Whether connecting is refused to who has given up the right to open what is others': asked by a thread that has.
pub(super) fn is_refused(path: &str) -> bool {
    let path = path.to_owned();
    let asked = thread::spawn(move || {
        let given_up = OVERRIDES.map(|one| caps::drop(None, CapSet::Effective, one));
        let connected = UnixStream::connect(path);
        let is_denied = connected.is_err_and(|error| error.kind() == ErrorKind::PermissionDenied);
        is_denied && given_up.iter().all(Result::is_ok)
    });
    asked.join().unwrap_or(false)
}

/// What is in root's way to a path, in words; `None` for who is not root, or if nothing of another user's is.
pub(super) fn obstacle(path: &Path) -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let parts: Vec<_> = path.ancestors().collect();
    // From the root on: the last one that can be looked at is the one that cannot be passed.
    let seen = parts.iter().rev().map_while(|part| Some((part, fs::metadata(part).ok()?)));
    let (part, metadata) = seen.last()?;
    let (uid, mode) = (metadata.uid(), metadata.mode() & 0o777);
    (uid != 0).then(|| format!("{} is user {uid}'s (mode {mode:04o})", part.display()))
}
