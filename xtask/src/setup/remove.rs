//! `cargo xtask setup --remove`.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};

use super::record::Record;
use super::{apt, bpffs};
use crate::sh;

/// Undoes what the record says, and forgets each part once it is undone.
pub fn all(cache: &Path) -> Result<ExitCode> {
    let record = Record::load(cache)?;
    if record == Record::default() {
        println!(
            "setup has changed nothing on this machine ({} is empty)",
            Record::path(cache).display()
        );
        return Ok(ExitCode::SUCCESS);
    }
    show(&record);
    super::ask()?;
    for folder in &record.folders {
        remove_folder(cache, folder)?;
    }
    for toolchain in &record.toolchains {
        sh::run(Command::new("rustup").args(["toolchain", "uninstall", toolchain]))?;
    }
    for component in &record.components {
        let (toolchain, name) = component.split_once(' ').unwrap_or(("", component));
        sh::run(Command::new("rustup").args([
            "component",
            "remove",
            name,
            "--toolchain",
            toolchain,
        ]))?;
    }
    Record::update(cache, |record| {
        record.folders.clear();
        record.toolchains.clear();
        record.components.clear();
    })?;
    packages(&record, cache)?;
    if record.bpffs {
        bpffs::unmount()?;
    }
    // What the build was told, and links to what has just gone.
    for left in [super::record_path(cache), cache.join("apt.log"), super::bin(cache)] {
        let _ = fs::remove_file(&left).or_else(|_| fs::remove_dir_all(&left));
    }
    Record::update(cache, |record| *record = Record::default())?;
    println!("setup's changes are undone; the checkout's target folder and cargo's crates stay");
    Ok(ExitCode::SUCCESS)
}

fn show(record: &Record) {
    let list = |words: &mut dyn Iterator<Item = String>| words.collect::<Vec<_>>().join(" ");
    let parts = [
        ("packages, unless something else needs them", list(&mut record.packages.iter().cloned())),
        ("folders", list(&mut record.folders.iter().map(|path| path.display().to_string()))),
        ("toolchains of rustup's", list(&mut record.toolchains.iter().cloned())),
        ("components of rustup's", list(&mut record.components.iter().cloned())),
    ];
    eprintln!("setup has installed, and removes now:");
    for (what, names) in parts.iter().filter(|(_, names)| !names.is_empty()) {
        eprintln!("  {what}: {names}");
    }
    if !record.replaced.is_empty() {
        let replaced = list(&mut record.replaced.iter().cloned());
        eprintln!("It installs again what it had removed: {replaced}");
    }
}

/// Only below the cache: whatever a record says, nothing else was made by setup.
fn remove_folder(cache: &Path, folder: &Path) -> Result<()> {
    if folder.parent() != Some(cache) {
        return Ok(());
    }
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// Purges those that are still there and that nothing else needs.
fn packages(record: &Record, cache: &Path) -> Result<()> {
    let log = cache.join("apt.log");
    let installed: Vec<&str> = record.packages.iter().map(String::as_str).collect();
    let installed: Vec<&str> =
        installed.into_iter().filter(|name| apt::is_installed(name)).collect();
    if !installed.is_empty() {
        let removable = apt::removable(&installed)?;
        let kept: Vec<&str> =
            installed.into_iter().filter(|name| !removable.iter().any(|own| own == name)).collect();
        if !kept.is_empty() {
            eprintln!("setup: kept, since something else needs them: {}", kept.join(" "));
        }
        let removable: Vec<&str> = removable.iter().map(String::as_str).collect();
        if !removable.is_empty() {
            eprintln!("setup: removing {} packages with apt-get", removable.len());
            apt::purge(&removable, &log)?;
        }
    }
    let replaced: Vec<&str> = record.replaced.iter().map(String::as_str).collect();
    if !replaced.is_empty() {
        apt::install(&replaced, &[], &log)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_outside_of_the_cache_is_left_alone() {
        let cache = std::env::temp_dir().join(format!("samport-remove-{}", std::process::id()));
        let (inside, outside) = (cache.join("tool-1.0"), cache.join("a/b"));
        for folder in [&inside, &outside] {
            fs::create_dir_all(folder).unwrap();
        }
        for folder in [&inside, &outside, &cache.join("never-made")] {
            remove_folder(&cache, folder).unwrap();
        }
        assert!(!inside.exists() && outside.exists());
        fs::remove_dir_all(&cache).unwrap();
    }
}
