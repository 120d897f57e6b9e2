//! cargo-deb, which only `package` needs.

use std::path::PathBuf;

use anyhow::{Result, bail};

use super::packages::{self, Apt};
use crate::sh;

const NAME: &str = "cargo-deb";
const VERSION: &str = "3.8.0";

/// The path of cargo-deb, installed if it is not there, and what tells it which libraries a program needs.
pub fn ensure() -> Result<PathBuf> {
    if sh::find("dpkg-shlibdeps").is_none() {
        if !packages::can_install() {
            bail!("a Debian package is made on Debian or Ubuntu: there is no dpkg-shlibdeps here");
        }
        Apt::default().install(&["dpkg-dev"], "to make a Debian package")?;
    }
    super::cargo_tool(NAME, VERSION, "a minute: to make a Debian package")
}
