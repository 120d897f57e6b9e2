//! What a process may do beyond its capabilities: Landlock says where it may write, seccomp which system calls it may
//! make. Both hold for the calling thread and for every thread that it starts, until they end.
//!
//! Why these rules and no others: docs/internals/design/0019-least-privilege.md.

mod filesystem;
mod syscalls;

use std::path::PathBuf;

use anyhow::Result;
use serde::{Deserialize, Serialize};

/// A folder, and what may be done in it and beneath it. Everything may be read everywhere, as far as modes allow.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Grant {
    /// The folder; it must exist.
    pub folder: PathBuf,
    /// What for.
    pub purpose: Purpose,
}

/// What a folder is written for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// Files and sockets come, change and go.
    Files,
    /// Pins come and go, in folders that come and go.
    Pins,
    /// Sockets come, and files go: a folder that `--socket` names.
    Sockets,
    /// Empty folders go.
    EmptyFolders,
}

/// The message where there is no sandbox.
pub const OFF: &str = "the sandbox is off (--sandbox off): the kernel prevents neither writing outside of samport's own \
                       folders nor system calls that it does not need";

/// What of it the kernel enforces.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Sandbox {
    /// The version of Landlock that is enforced.
    pub landlock_abi: Option<u32>,
    /// Whether system calls are filtered.
    pub seccomp: bool,
    /// Whether nothing was asked of the kernel.
    pub is_off: bool,
    /// What is not enforced, and why.
    pub missing: Vec<String>,
}

/// Restricts the calling thread, and all that it starts from now on. What the kernel lacks is part of the result and
/// is no error.
///
/// # Errors
/// A folder that cannot be opened, or a kernel that has Landlock or seccomp and refuses the rules.
pub fn restrict(grants: &[Grant]) -> Result<Sandbox> {
    let mut sandbox = Sandbox::default();
    match filesystem::restrict(grants)? {
        Ok(abi) => sandbox.landlock_abi = Some(abi),
        Err(why) => sandbox.missing.push(format!(
            "writing outside of samport's own folders is not prevented by the kernel: {why}"
        )),
    }
    match syscalls::filter()? {
        Ok(()) => sandbox.seccomp = true,
        Err(why) => sandbox
            .missing
            .push(format!("system calls that samport does not need are not prevented: {why}")),
    }
    Ok(sandbox)
}
