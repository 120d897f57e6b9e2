//! The key of the objects: a hash of everything they are made from, except the compiler's version.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use hmac_sha256::Hash;

use crate::compile;
use crate::manifest::hex;
use crate::sections::{Section, sections};

/// The crates of this workspace that are compiled for the kernel.
const CRATES: [&str; 2] = ["samport-ebpf", "samport-common"];

/// What tests are in, beside inline ones.
const TESTS: &str = "tests.rs";

/// Crates that only build scripts of the others use: what they depend on does not get into the object.
const BUILD_TOOLS: [&str; 1] = ["aya-build"];

/// The key of the checkout at `root`: a SHA-256 in hex.
pub fn key(root: &Path) -> Result<String> {
    let mut hash = Hash::new();
    for (name, content) in inputs(root)? {
        // With the lengths, no content can pass for a name.
        hash.update(format!("{} {} {name}\n", name.len(), content.len()));
        hash.update(&content);
    }
    Ok(hex(&hash.finalize()))
}

/// What the key is a hash of, by name: files by their path, and the parts of Cargo's files that matter.
pub fn inputs(root: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut inputs = BTreeMap::new();
    let mut dependencies = BTreeSet::new();
    for name in CRATES {
        let manifest = format!("{name}/Cargo.toml");
        let text = read(root, &manifest)?;
        for section in sections(&text).iter().filter(|section| has_dependencies(section)) {
            dependencies.extend(section.keys().map(str::to_owned));
        }
        inputs.insert(manifest, text.into_bytes());
        add_sources(root, &format!("{name}/src"), &mut inputs)?;
    }
    dependencies.retain(|name| !CRATES.contains(&name.as_str()));

    let workspace = workspace(&read(root, "Cargo.toml")?, &dependencies)?;
    inputs.insert("Cargo.toml".to_owned(), workspace.into_bytes());
    let locked = locked(&read(root, "Cargo.lock")?, &dependencies)?;
    inputs.insert("Cargo.lock".to_owned(), locked.into_bytes());
    inputs.insert("(compiler settings)".to_owned(), compile::settings().into_bytes());
    Ok(inputs)
}

fn read(root: &Path, file: &str) -> Result<String> {
    fs::read_to_string(root.join(file)).with_context(|| format!("cannot read {file}"))
}

fn add_sources(root: &Path, folder: &str, inputs: &mut BTreeMap<String, Vec<u8>>) -> Result<()> {
    let context = || format!("cannot read {folder}");
    for entry in fs::read_dir(root.join(folder)).with_context(context)? {
        let entry = entry.with_context(context)?;
        let name = entry.file_name();
        let name = name.to_str().with_context(|| format!("a name in {folder} is not UTF-8"))?;
        let path = format!("{folder}/{name}");
        if entry.file_type().with_context(context)?.is_dir() {
            add_sources(root, &path, inputs)?;
        } else if name != TESTS
            && Path::new(name).extension().is_some_and(|extension| extension == "rs")
        {
            let source = fs::read(entry.path()).with_context(|| format!("cannot read {path}"))?;
            inputs.insert(path, source);
        }
    }
    Ok(())
}

/// Whether a section of a crate's manifest names crates that the object may be made of.
fn has_dependencies(section: &Section) -> bool {
    let kind = section.header.rsplit('.').next();
    matches!(kind, Some("dependencies" | "build-dependencies"))
}

/// What the workspace's manifest says about the crates that are compiled for the kernel.
fn workspace(manifest: &str, dependencies: &BTreeSet<String>) -> Result<String> {
    let mut text = String::new();
    for section in sections(manifest) {
        let profile = section.header.starts_with("profile.release");
        let is_whole =
            profile || section.header == "workspace.package" || section.header.starts_with("patch");
        for line in section.lines {
            let key = line.split('=').next().unwrap_or_default().trim();
            let is_part = match section.header {
                "workspace" => key == "resolver",
                "workspace.dependencies" => dependencies.contains(key),
                _ => is_whole,
            };
            if is_part {
                let is_whole = line.matches('[').count() == line.matches(']').count();
                ensure!(is_whole, "Cargo.toml: {line:?} goes on in the next line");
                text.extend([section.header, ": ", line, "\n"]);
            }
        }
    }
    Ok(text)
}

/// The entries in the lock file of these crates and all that they depend on.
fn locked(lock: &str, dependencies: &BTreeSet<String>) -> Result<String> {
    let blocks: Vec<Section> =
        sections(lock).into_iter().filter(|section| section.header == "package").collect();
    let mut todo: Vec<String> = dependencies.iter().cloned().collect();
    let mut text = BTreeSet::new();
    while let Some(dependency) = todo.pop() {
        // `name`, or `name version` when there are several.
        let mut words = dependency.split(' ');
        let (name, version) = (words.next().unwrap_or_default(), words.next());
        if BUILD_TOOLS.contains(&name) {
            continue;
        }
        let is_meant = |block: &&Section| {
            let is = |key, wanted| block.value(key).is_some_and(|v| v.trim_matches('"') == wanted);
            is("name", name) && version.is_none_or(|version| is("version", version))
        };
        let mut found = blocks.iter().filter(is_meant).peekable();
        ensure!(found.peek().is_some(), "Cargo.lock does not have {dependency}");
        for block in found {
            if text.insert(block.lines.join("\n")) {
                let names = block.lines.iter().filter_map(|line| line.strip_prefix(" \""));
                let names = names.filter_map(|line| line.strip_suffix("\","));
                todo.extend(names.map(str::to_owned));
            }
        }
    }
    Ok(text.into_iter().collect::<Vec<_>>().join("\n"))
}
