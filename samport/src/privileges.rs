//! What the process must be allowed to do.

use anyhow::{Context as _, Result};
use caps::{CapSet, Capability};

use crate::exit::{Exit, coded};

/// Loading programs and attaching them to devices. `CAP_SYS_ADMIN` includes the first.
const NEEDED: [(Capability, &str); 2] =
    [(Capability::CAP_BPF, "CAP_BPF"), (Capability::CAP_NET_ADMIN, "CAP_NET_ADMIN")];

/// Refuses early what the kernel would refuse half-way.
///
/// # Errors
/// [`Exit::Privileges`], naming the capabilities that are missing.
pub fn require() -> Result<()> {
    let have = caps::read(None, CapSet::Effective).context("read our capabilities")?;
    let missing: Vec<_> = NEEDED
        .iter()
        .filter(|(capability, _)| {
            let by_admin =
                *capability == Capability::CAP_BPF && have.contains(&Capability::CAP_SYS_ADMIN);
            !have.contains(capability) && !by_admin
        })
        .map(|(_, name)| *name)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let missing = missing.join(" and ");
    Err(coded(Exit::Privileges, format!("samport lacks {missing}; run it as root, with sudo")))
}
