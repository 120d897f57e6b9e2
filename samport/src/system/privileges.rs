//! What the process may do: at first what starting takes, and once it is ready only what is left to do.
//!
//! Capabilities are a thread's. The thread `samport run` starts on keeps what loading takes until it is ready;
//! every other one has from its first moment what it is to keep.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use anyhow::{Context as _, Result};
use caps::{CapSet, Capability, CapsHashSet};
use procfs::process::Process;
use serde::{Deserialize, Serialize};

use crate::system::exit::{Exit, coded};
use crate::system::sandbox::{self, Grant, Sandbox};
use crate::system::user;

/// What a process may do, and what the kernel keeps it from.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct Privileges {
    /// Its user's name, or number.
    pub user: String,
    /// Capabilities that each of its threads keeps.
    pub capabilities: Vec<String>,
    /// The version of Landlock that keeps it from writing outside of its own folders; null if nothing does.
    pub landlock_abi: Option<u32>,
    /// Whether seccomp keeps it from system calls that it does not need.
    pub seccomp: bool,
    /// Whether `--sandbox off` has left both out.
    #[serde(default)]
    pub sandbox_off: bool,
    /// What the kernel does not prevent, and why.
    pub missing: Vec<String>,
}

/// How long a capability is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Until {
    /// Until the programs are loaded, and what else is done once.
    Ready,
    /// Until it ends.
    End,
}

/// A capability, and why samport has it.
#[derive(Clone, Copy, Debug)]
pub struct Use {
    /// Which one.
    pub capability: Capability,
    /// How long it is kept.
    pub until: Until,
    /// Whether nothing goes without it.
    pub needed: bool,
    /// What for.
    pub why: &'static str,
}

/// All of them. docs/concepts/security.md has the same table, and `dist/samport.service` those that are needed.
pub const USES: [Use; 7] = [
    Use {
        capability: Capability::CAP_BPF,
        until: Until::End,
        needed: true,
        why: "makes the maps and loads the programs; changes the maps, which kernels before 5.19 require it for",
    },
    Use {
        capability: Capability::CAP_NET_ADMIN,
        until: Until::End,
        needed: true,
        why: "attaches programs to devices and control groups, lists the links of containers' namespaces, and ends \
              the host's own sockets to a backend that is gone",
    },
    Use {
        capability: Capability::CAP_PERFMON,
        until: Until::Ready,
        needed: true,
        why: "the verifier requires it for arithmetic on pointers to packets",
    },
    Use {
        capability: Capability::CAP_SYS_PTRACE,
        until: Until::Ready,
        needed: false,
        why: "names the process that listens on a port already",
    },
    Use {
        capability: Capability::CAP_SYS_ADMIN,
        until: Until::Ready,
        needed: false,
        why: "mounts bpffs where it is not mounted",
    },
    Use {
        capability: Capability::CAP_NET_BIND_SERVICE,
        until: Until::Ready,
        needed: false,
        why: "serves --metrics at a port below 1024",
    },
    Use {
        capability: FILES,
        until: Until::End,
        needed: false,
        why: "with --file or --config only: reads a file that only its owner may read",
    },
];

const FILES: Capability = Capability::CAP_DAC_READ_SEARCH;

/// What every thread has once samport is ready.
static FOR_GOOD: OnceLock<CapsHashSet> = OnceLock::new();

/// What else is enforced.
static SANDBOX: OnceLock<Sandbox> = OnceLock::new();

/// Refuses early what the kernel would refuse half-way.
///
/// # Errors
/// [`Exit::Privileges`], naming the capabilities that are missing.
pub fn require() -> Result<()> {
    let have = caps::read(None, CapSet::Effective).context("cannot read our capabilities")?;
    let missing = missing(&have);
    if missing.is_empty() {
        return Ok(());
    }
    let missing: Vec<String> = missing.iter().map(ToString::to_string).collect();
    let missing = missing.join(" and ");
    Err(coded(Exit::Privileges, format!("samport lacks {missing}; run it as root, with sudo")))
}

/// Those that are needed, as one would write them.
#[must_use]
pub fn needed() -> String {
    let needed = USES.iter().filter(|one| one.needed);
    needed.map(|one| one.capability.to_string()).collect::<Vec<_>>().join(" ")
}

fn missing(have: &CapsHashSet) -> Vec<Capability> {
    let needed = USES.iter().filter(|one| one.needed).map(|one| one.capability);
    needed.filter(|one| !have.contains(one) && !stands_in(have, *one)).collect()
}

/// Before there was CAP_BPF, or in a container engine that does not know it, another included it.
fn stands_in(have: &CapsHashSet, missing: Capability) -> bool {
    let is_newer = matches!(missing, Capability::CAP_BPF | Capability::CAP_PERFMON);
    is_newer && have.contains(&Capability::CAP_SYS_ADMIN)
}

/// What is kept of what there is.
fn kept(have: &CapsHashSet, until: Until, files: bool) -> CapsHashSet {
    let uses = USES.iter().filter(|one| until == Until::Ready || one.until == Until::End);
    let uses = uses.filter(|one| files || one.capability != FILES);
    let mut kept: CapsHashSet = uses.map(|one| one.capability).collect();
    kept.retain(|one| have.contains(one));
    if !have.contains(&Capability::CAP_BPF) && have.contains(&Capability::CAP_SYS_ADMIN) {
        kept.insert(Capability::CAP_SYS_ADMIN);
    }
    kept
}

/// Gives up what starting does not take, and all ways to get it back. To be called while there is one thread
/// only. `files` says whether files of other people may have to be read.
///
/// # Errors
/// The kernel does not let us give up what we have, which it always does.
pub fn shed(files: bool) -> Result<()> {
    let have = caps::read(None, CapSet::Permitted).context("cannot read our capabilities")?;
    let for_good = kept(&have, Until::End, files);
    rustix::thread::set_no_new_privs(true).context("cannot give up new privileges")?;
    caps::clear(None, CapSet::Ambient).context("cannot give up ambient capabilities")?;
    for one in caps::read(None, CapSet::Bounding).context("cannot read the bounding set")? {
        // It takes CAP_SETPCAP. Without that nothing is lost: no program that is started gets more than we have.
        if !for_good.contains(&one) && caps::drop(None, CapSet::Bounding, one).is_err() {
            break;
        }
    }
    hold(&kept(&have, Until::Ready, files))?;
    FOR_GOOD.get_or_init(|| for_good);
    Ok(())
}

/// Prevents what capabilities say nothing of, for the calling thread and those it will start: writing elsewhere, and
/// system calls that nothing needs. To be called while there is one thread only. What the kernel
/// does not enforce is logged.
///
/// # Errors
/// [`Exit::Kernel`] with those of [`sandbox::restrict`], and the way out.
pub fn restrict(grants: &[Grant]) -> Result<()> {
    let restricted = sandbox::restrict(grants).map_err(|error| {
        let message = format!(
            "the sandbox cannot be set up: {error:#}; `--sandbox off` starts samport without it \
             (docs/concepts/security.md)"
        );
        coded(Exit::Kernel, message)
    })?;
    remember(restricted);
    Ok(())
}

/// Leaves out [`restrict`], because the operator wants it so, which the log and `status` say.
pub fn leave_unrestricted() {
    remember(Sandbox {
        is_off: true,
        missing: vec![sandbox::OFF.to_owned()],
        ..Sandbox::default()
    });
}

fn remember(sandbox: Sandbox) {
    for missing in &sandbox.missing {
        tracing::warn!("{missing}");
    }
    SANDBOX.get_or_init(|| sandbox);
}

/// What every thread keeps, if that was ever said: for `status`.
#[must_use]
pub fn held() -> Option<Privileges> {
    let (for_good, sandbox) = (FOR_GOOD.get()?, SANDBOX.get()?);
    let mut capabilities: Vec<_> = for_good.iter().map(ToString::to_string).collect();
    capabilities.sort();
    Some(Privileges {
        user: user::name_of_ours(),
        capabilities,
        landlock_abi: sandbox.landlock_abi,
        seccomp: sandbox.seccomp,
        sandbox_off: sandbox.is_off,
        missing: sandbox.missing.clone(),
    })
}

/// Leaves the calling thread what it is to keep, if that was ever set.
pub fn narrow() {
    if let Some(for_good) = FOR_GOOD.get()
        && let Err(error) = hold(for_good)
    {
        tracing::warn!("a thread keeps more privileges than it needs: {error:#}");
    }
}

/// The same for the thread that has started everything; then none may have more.
pub fn settle() {
    narrow();
    let Some(for_good) = FOR_GOOD.get() else { return };
    for (thread, surplus) in surplus(for_good) {
        tracing::warn!(
            "thread {thread} keeps {surplus}, which it does not need; please report this"
        );
    }
}

fn hold(wanted: &CapsHashSet) -> Result<()> {
    // In this order: what is effective or inheritable is permitted.
    let none = CapsHashSet::new();
    let sets =
        [(CapSet::Effective, wanted), (CapSet::Inheritable, &none), (CapSet::Permitted, wanted)];
    sets.into_iter().try_for_each(|(set, of_set)| {
        caps::set(None, set, of_set).with_context(|| format!("set {set:?} capabilities"))
    })
}

/// Threads that are permitted more than is wanted, and what.
fn surplus(wanted: &CapsHashSet) -> Vec<(String, String)> {
    let tasks = Process::myself().and_then(|process| process.tasks());
    let statuses = tasks.into_iter().flatten().flatten().filter_map(|task| task.status().ok());
    let more = statuses.filter_map(|status| {
        let names: BTreeSet<String> = (caps::all().difference(wanted))
            .filter(|one| status.capprm & one.bitmask() != 0)
            .map(ToString::to_string)
            .collect();
        let names = Vec::from_iter(names).join(" ");
        (!names.is_empty()).then_some((status.name, names))
    });
    more.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(capabilities: &[Capability]) -> CapsHashSet {
        capabilities.iter().copied().collect()
    }

    const NEEDED: [Capability; 3] =
        [Capability::CAP_BPF, Capability::CAP_NET_ADMIN, Capability::CAP_PERFMON];

    #[test]
    fn each_that_is_needed_is_missed() {
        for one in NEEDED {
            let mut have = set(&NEEDED);
            assert_eq!(missing(&have), []);
            have.remove(&one);
            assert_eq!(missing(&have), [one]);
        }
        let old = [Capability::CAP_SYS_ADMIN, Capability::CAP_NET_ADMIN];
        assert_eq!(missing(&set(&old)), []);
        assert_eq!(missing(&set(&old[..1])), [Capability::CAP_NET_ADMIN]);
        assert_eq!(needed(), "CAP_BPF CAP_NET_ADMIN CAP_PERFMON");
    }

    #[test]
    fn the_documented_list_is_this_one() {
        let row = |one: &Use| {
            let kept = if one.until == Until::End { "always" } else { "until it is ready" };
            let needed = if one.needed { "yes" } else { "no" };
            format!("| {} | {kept} | {needed} | {} |", one.capability, one.why)
        };
        let page = include_str!("../../../docs/concepts/security.md");
        let rows: Vec<&str> = page.lines().filter(|line| line.starts_with("| CAP_")).collect();
        assert_eq!(rows, USES.iter().map(row).collect::<Vec<_>>());
    }

    #[test]
    fn of_everything_two_are_kept_for_good_and_no_more_than_there_were() {
        let all = caps::all();
        assert_eq!(kept(&all, Until::End, false), set(&NEEDED[..2]));
        assert_eq!(kept(&all, Until::End, true), set(&[NEEDED[0], NEEDED[1], FILES]));
        assert_eq!(kept(&all, Until::Ready, true).len(), USES.len());
        assert_eq!(kept(&set(&NEEDED), Until::Ready, true), set(&NEEDED));
        let old = set(&[Capability::CAP_SYS_ADMIN, Capability::CAP_NET_ADMIN]);
        assert_eq!(kept(&old, Until::End, false), old, "it stands for CAP_BPF");
    }
}
