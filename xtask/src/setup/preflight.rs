//! What is looked at before anything is downloaded or built: whoever cannot go on should learn so in a second.

use std::env;
use std::fs;
use std::io::{BufRead as _, BufReader, ErrorKind};
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, Result, bail, ensure};

use super::Level;
use crate::sh;

/// Capabilities (capabilities(7)) without which no network namespace can be made and no program attached, by number.
const CAPABILITIES: [(u32, &str); 2] = [(12, "CAP_NET_ADMIN"), (21, "CAP_SYS_ADMIN")];
const MIB: u64 = 1 << 20;

/// Checks the architecture, privileges and room for a level, in this order. Changes nothing and asks no network.
pub fn check(level: Level) -> Result<()> {
    architecture(env::consts::ARCH)?;
    if level.includes(Level::Run) {
        privileges(level)?;
    }
    let target = sh::target_dir()?;
    room(&target, free(&target)?, level.room())
}

fn architecture(name: &str) -> Result<()> {
    match name {
        "x86_64" => Ok(()),
        "aarch64" => {
            eprintln!("setup: warning: samport has not been run on {name} yet");
            Ok(())
        }
        _ => bail!("samport does not run on {name}: it needs x86_64 (or aarch64, untested)"),
    }
}

fn privileges(level: Level) -> Result<()> {
    if !sh::is_root() {
        ensure!(
            sh::find("sudo").is_some(),
            "`cargo xtask {level}` has to be root, for network namespaces and BPF programs; \
             run it as root, or install sudo"
        );
        return Ok(());
    }
    let status = fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    let missing = missing_capabilities(&status);
    ensure!(
        missing.is_empty(),
        "root lacks {} here; in a container, start it with --privileged",
        missing.join(" and ")
    );
    Ok(())
}

/// The capabilities that `/proc/self/status` does not list as effective.
fn missing_capabilities(status: &str) -> Vec<&'static str> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let Some(effective) = line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()) else {
        return Vec::new();
    };
    let lacks =
        |(number, name): &(u32, &'static str)| (effective & 1 << number == 0).then_some(*name);
    CAPABILITIES.iter().filter_map(lacks).collect()
}

/// Free bytes for this user on the file system of a folder.
fn free(folder: &Path) -> Result<u64> {
    let found = rustix::fs::statvfs(folder)
        .with_context(|| format!("look at the file system of {}", folder.display()))?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

/// `needed` is for a target folder that is empty: one that is in use has a part of it already.
fn room(target: &Path, free: u64, needed: u64) -> Result<()> {
    let is_built = target.join("debug/deps").read_dir().is_ok_and(|files| files.count() > 100);
    let needed = if is_built { needed / 4 } else { needed };
    ensure!(
        free >= needed,
        "{} MiB are free on the disk of {}, and building takes {} MiB; \
         free some, or set CARGO_TARGET_DIR to a folder on another disk",
        free / MIB,
        target.display(),
        needed / MIB
    );
    Ok(())
}

/// Checks that a folder exists, or makes it, and that files can be made in it.
pub fn writable(folder: &Path) -> Result<()> {
    let probe = folder.join(format!(".samport-{}", std::process::id()));
    let tried = fs::create_dir_all(folder).and_then(|()| fs::write(&probe, b"?"));
    let _ = fs::remove_file(&probe);
    let Err(error) = tried else { return Ok(()) };
    let way_out = match error.kind() {
        ErrorKind::StorageFull => "free some room",
        _ => "set SAMPORT_CACHE to a folder that can be written to",
    };
    bail!("cannot write to {}: {error}; {way_out}", folder.display())
}

/// Downloads the crates that are not there yet.
///
/// # Errors
/// cargo cannot reach the registry: the reason in one line.
pub fn crates() -> Result<()> {
    let host = sh::host_target()?;
    let fetch = || {
        let mut cargo = sh::cargo();
        cargo.args(["fetch", "--locked", "--target", &host]);
        cargo
    };
    if sh::probe(fetch().arg("--offline")).is_some() {
        return Ok(());
    }
    eprintln!("setup: downloading the crates that samport is built of (cargo fetch)");
    let mut cargo = fetch();
    // One failure is enough to know.
    cargo.env("CARGO_NET_RETRY", "1").stdin(Stdio::null()).stderr(Stdio::piped());
    let mut child = cargo.spawn().context("cannot start cargo")?;
    let stderr = child.stderr.take().context("cargo has no standard error")?;
    let mut last = None;
    for line in BufReader::new(stderr).lines() {
        let line = line.context("read cargo's output")?;
        let line = line.trim();
        if line.starts_with("Updating") || line.starts_with("Downloaded") {
            eprintln!("{line}");
        } else if !line.is_empty() {
            last = Some(line.to_owned());
        }
    }
    if child.wait().context("wait for cargo")?.success() {
        return Ok(());
    }
    let cause = last.unwrap_or_else(|| "cargo has not said why".to_owned());
    bail!("cannot download the crates: {cause}; is there a network?")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_architectures_with_a_64_bit_jit_are_accepted() {
        assert!(architecture("x86_64").is_ok() && architecture("aarch64").is_ok());
        let error = architecture("riscv64").unwrap_err().to_string();
        assert!(error.contains("riscv64") && error.contains("x86_64"), "{error}");
    }

    #[test]
    fn a_root_without_its_capabilities_is_told_which() {
        let all = "Name:\tx\nCapEff:\t000001ffffffffff\n";
        assert!(missing_capabilities(all).is_empty());
        // Docker's default set: CAP_NET_ADMIN and CAP_SYS_ADMIN are not in it.
        let container = "CapEff:\t00000000a80425fb\n";
        assert_eq!(missing_capabilities(container), ["CAP_NET_ADMIN", "CAP_SYS_ADMIN"]);
    }

    #[test]
    fn a_disk_that_is_too_small_is_named_with_both_figures() {
        let target = Path::new("/nowhere/target");
        assert!(room(target, 300 * MIB, 300 * MIB).is_ok());
        let error = room(target, 299 * MIB, 300 * MIB).unwrap_err().to_string();
        assert!(error.contains("299 MiB") && error.contains("300 MiB"), "{error}");
        assert!(error.contains("/nowhere/target") && error.contains("CARGO_TARGET_DIR"), "{error}");
    }

    #[test]
    fn a_folder_that_cannot_be_written_to_is_named_with_the_way_out() {
        // Even root cannot make a folder there.
        let error = writable(Path::new("/proc/samport")).unwrap_err().to_string();
        assert!(error.starts_with("cannot write to /proc/samport: "), "{error}");
        assert!(error.contains("SAMPORT_CACHE"), "{error}");
        assert!(writable(&env::temp_dir()).is_ok());
    }
}
