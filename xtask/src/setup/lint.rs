//! clippy and rustfmt, which only `lint` needs.

use std::process::Command;

use anyhow::{Context as _, Result};

use super::Bpf;
use super::packages::Apt;
use crate::sh;

/// Installs what `lint` needs beyond the build.
pub fn ensure(bpf: &Bpf) -> Result<()> {
    for (verb, component) in [("fmt", "rustfmt"), ("clippy", "clippy")] {
        if sh::probe(sh::cargo().args([verb, "--version"])).is_none() {
            eprintln!("setup: adding {component} with rustup: to lint");
            sh::run(Command::new("rustup").args(["component", "add", component]))
                .with_context(|| format!("no `cargo {verb}`; install {component} by hand"))?;
        }
    }
    let mut clippy = bpf.toolchain.command("cargo");
    if sh::probe(clippy.args(["clippy", "--version"])).is_some() {
        return Ok(());
    }
    if bpf.toolchain.is_system() {
        return Apt::default().install(&["rust-web-clippy"], "to lint the BPF programs");
    }
    let name = &bpf.toolchain.name;
    eprintln!("setup: adding clippy to {name} with rustup: to lint the BPF programs");
    sh::run(Command::new("rustup").args(["component", "add", "clippy", "--toolchain", name]))
}
