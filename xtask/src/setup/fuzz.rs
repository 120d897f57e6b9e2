//! cargo-fuzz, which only `fuzz` needs. Without a sanitizer it asks for no nightly, and
//! samport-common, which forbids `unsafe`, gives a sanitizer nothing to find.

use std::path::PathBuf;

use anyhow::{Result, bail};

use super::packages::{self, Apt};
use crate::sh;

const NAME: &str = "cargo-fuzz";
const VERSION: &str = "0.13.2";

/// The path of cargo-fuzz, installed if it is not there, and a C++ compiler for libFuzzer.
pub fn ensure() -> Result<PathBuf> {
    if sh::find("c++").is_none() {
        if !packages::can_install() {
            bail!("install by hand a C++ compiler that is `c++` in PATH: to build libFuzzer");
        }
        Apt::default().install(&["g++"], "to build libFuzzer")?;
    }
    super::cargo_tool(NAME, VERSION, "half a minute: to fuzz")
}
