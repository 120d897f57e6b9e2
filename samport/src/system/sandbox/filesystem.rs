//! Landlock: nothing is written, made, removed or executed outside of the folders that are granted.

use anyhow::{Context as _, Result};
use landlock::{
    ABI, AccessFs, BitFlags, LandlockStatus, PathBeneath, PathFd, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, RulesetStatus, make_bitflags,
};

use super::{Grant, Purpose};

/// The newest rights that are asked for; a kernel with an older Landlock (5.13) enforces those that it knows.
const NEWEST: ABI = ABI::V5;

/// Restricts the calling thread. The version that is enforced, or why none is.
///
/// # Errors
/// A folder that cannot be opened, or rules that the kernel refuses.
pub(super) fn restrict(grants: &[Grant]) -> Result<Result<u32, &'static str>> {
    let handled = AccessFs::from_write(NEWEST) | AccessFs::Execute;
    let mut ruleset = Ruleset::default()
        .handle_access(handled)
        .and_then(Ruleset::create)
        .context("cannot make a Landlock ruleset")?;
    for Grant { folder, purpose } in grants {
        let shown = folder.display();
        let opened = PathFd::new(folder).with_context(|| format!("cannot open {shown}"))?;
        ruleset = ruleset
            .add_rule(PathBeneath::new(opened, rights(*purpose)))
            .with_context(|| format!("cannot let Landlock grant {shown}"))?;
    }
    let status = ruleset.restrict_self().context("cannot enforce Landlock")?;
    Ok(match status.landlock {
        LandlockStatus::NotImplemented => Err(
            "it has no Landlock (Linux 5.13, CONFIG_SECURITY_LANDLOCK), or a container engine hides it",
        ),
        LandlockStatus::NotEnabled => {
            Err("Landlock is not enabled (boot parameter lsm=landlock,…)")
        }
        _ if status.ruleset == RulesetStatus::NotEnforced => Err("it enforces no Landlock"),
        LandlockStatus::Available { effective_abi, kernel_abi } => {
            let abi = kernel_abi.unwrap_or(effective_abi as i32);
            Ok(u32::try_from(abi).unwrap_or_default())
        }
    })
}

fn rights(purpose: Purpose) -> BitFlags<AccessFs> {
    match purpose {
        Purpose::Files => {
            make_bitflags!(AccessFs::{MakeReg | WriteFile | Truncate | RemoveFile | MakeSock})
        }
        // A pin is a regular file for the kernel's security hooks. Renaming a folder removes one and makes one.
        Purpose::Pins => make_bitflags!(AccessFs::{MakeReg | RemoveFile | MakeDir | RemoveDir}),
        Purpose::Sockets => make_bitflags!(AccessFs::{MakeSock | RemoveFile}),
        Purpose::EmptyFolders => AccessFs::RemoveDir.into(),
    }
}
