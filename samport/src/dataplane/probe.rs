//! What `samport check` asks about the kernel, and changes nothing by.

use anyhow::{Result, bail};
use aya::programs::{ProgramError, ProgramInfo, SchedClassifier, TcAttachType, loaded_programs};

use super::sock_lb;
use crate::system::cgroups;

/// Whether the kernel has tcx.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Tcx {
    /// It has.
    Present,
    /// It is older than 6.6.
    Absent,
    /// It does not tell; why.
    Unknown(String),
}

/// The names of the programs on both tcx hooks of a device.
///
/// # Errors
/// Why they are not known.
pub fn at_tcx(device: &str) -> Result<Vec<String>, Tcx> {
    let programs = programs_at_tcx(device)?;
    Ok(programs.into_iter().map(|(_, _, name)| name).collect())
}

/// The programs on both tcx hooks of a device: which hook, the program's id and its name.
///
/// # Errors
/// Why they are not known.
pub fn programs_at_tcx(device: &str) -> Result<Vec<(&'static str, u32, String)>, Tcx> {
    let mut found = Vec::new();
    for (hook, word) in [(TcAttachType::Ingress, "ingress"), (TcAttachType::Egress, "egress")] {
        let (_, programs) = SchedClassifier::query_tcx(device, hook).map_err(|e| why_not(&e))?;
        found.extend(programs.iter().map(|program| (word, program.id(), name(program))));
    }
    Ok(found)
}

fn why_not(error: &ProgramError) -> Tcx {
    match error {
        ProgramError::SyscallError(refused)
            if refused.io_error.raw_os_error() == Some(libc::EINVAL) =>
        {
            Tcx::Absent
        }
        ProgramError::SyscallError(refused) => Tcx::Unknown(refused.io_error.to_string()),
        other => Tcx::Unknown(other.to_string()),
    }
}

/// What a program is called, or its number.
#[must_use]
pub fn name_of_program(id: u32) -> String {
    let program = loaded_programs().flatten().find(|program| program.id() == id);
    program.as_ref().map_or_else(|| format!("number {id}"), name)
}

fn name(program: &ProgramInfo) -> String {
    let name = program.name_as_str().filter(|name| !name.is_empty());
    name.map_or_else(|| format!("number {}", program.id()), str::to_owned)
}

/// Whether clients on the machine itself can be served, as far as is to be seen without attaching.
///
/// # Errors
/// What is missing.
pub fn can_serve_local_clients() -> Result<()> {
    if sock_lb::netns_cookie().is_err() {
        bail!(sock_lb::NO_COOKIE);
    }
    cgroups::root().map(drop)
}
