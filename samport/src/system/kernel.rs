//! The kernel that runs.

use anyhow::{Context as _, Result};

/// Major and minor number of its version.
///
/// # Errors
/// If procfs does not have it.
pub fn version() -> Result<(u16, u8)> {
    let version = procfs::sys::kernel::Version::current();
    let version = version.context("the kernel's version cannot be read")?;
    Ok((u16::from(version.major), version.minor))
}
