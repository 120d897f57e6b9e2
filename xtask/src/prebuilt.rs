//! `cargo xtask prebuilt`: the kernel programs' objects in the checkout, which spare others the BPF toolchain.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};
use samport_build::compile::Compiler;
use samport_build::{Manifest, OBJECTS, Objects, Source, VARIABLE, Versions, Wanted, elf};

use crate::setup::{self, Bpf, Level};
use crate::sh;

/// Compile the kernel programs and keep the objects in the checkout
///
/// A build takes them from samport-ebpf/prebuilt as long as they are of its sources, so it needs no BPF toolchain.
/// After a change of samport-ebpf, samport-common or what they depend on, run this and commit the folder.
///
/// With --check nothing is written. Exit codes: 0, the objects are what the sources compile to, byte by byte; 1, they
/// are not; 3, the BPF toolchain here has other versions than the one they were compiled with, and bytes say nothing.
#[derive(clap::Args)]
pub struct Args {
    /// Compile and compare with what is there, byte by byte
    #[arg(long)]
    check: bool,
    /// Also fail, with exit code 1, if the versions of the BPF toolchain differ
    #[arg(long, requires = "check")]
    strict: bool,
}

/// The exit code of a check that could not compare bytes.
const NOT_COMPARABLE: u8 = 3;

/// What a check has found.
#[derive(PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The objects are what the sources compile to.
    Same,
    /// They are not; each line names a difference.
    Different(Vec<String>),
    /// They were compiled by another toolchain, of other versions; the lines say which and what it changes.
    NotComparable { versions: Vec<String>, code: Vec<String> },
}

pub fn verb(args: &Args) -> Result<ExitCode> {
    setup::ensure(Level::Lint)?;
    let bpf = setup::bpf()?;
    if !args.check {
        let (objects, versions) = compile(&bpf)?;
        samport_build::write(sh::root(), &objects, versions)?;
        for (name, object) in objects {
            println!(
                "{} ({} bytes)",
                samport_build::folder(sh::root()).join(name).display(),
                object.len()
            );
        }
        return Ok(ExitCode::SUCCESS);
    }
    let outcome = check(&bpf)?;
    print(&outcome);
    Ok(match outcome {
        Outcome::Same => ExitCode::SUCCESS,
        Outcome::NotComparable { .. } if !args.strict => ExitCode::from(NOT_COMPARABLE),
        _ => ExitCode::FAILURE,
    })
}

/// Whether a build takes the prebuilt objects, and so needs no BPF toolchain. An error if they are damaged, or
/// `SAMPORT_BPF` asks for them and they are of other sources.
pub fn is_current() -> Result<bool> {
    let wanted = Wanted::parse(env::var(VARIABLE).ok().as_deref())?;
    Ok(matches!(samport_build::source(sh::root(), wanted)?, Source::Prebuilt(_)))
}

/// Compiles the kernel programs and compares them with the prebuilt objects.
pub fn check(bpf: &Bpf) -> Result<Outcome> {
    let manifest = samport_build::read_manifest(sh::root())?;
    let manifest =
        manifest.context("there are no prebuilt kernel programs: run `cargo xtask prebuilt`")?;
    let prebuilt = samport_build::read(sh::root(), &manifest)?;
    let key = samport_build::key(sh::root())?;
    if key != manifest.key {
        let line = "the sources have changed since they were compiled: run `cargo xtask prebuilt`";
        return Ok(Outcome::Different(vec![line.to_owned()]));
    }
    let (compiled, versions) = compile(bpf)?;
    compare(&manifest, &prebuilt, &versions, &compiled)
}

/// Says on stderr what a check has found.
pub fn print(outcome: &Outcome) {
    match outcome {
        Outcome::Same => eprintln!("the prebuilt kernel programs are what the sources compile to"),
        Outcome::Different(lines) => {
            eprintln!("error: the prebuilt kernel programs are not what the sources compile to:");
            print_lines(lines);
        }
        Outcome::NotComparable { versions, code } => {
            eprintln!(
                "warning: the prebuilt kernel programs were compiled by other versions, here and there:"
            );
            print_lines(versions);
            eprintln!("compared by instructions:");
            print_lines(code);
            eprintln!("hint: `cargo xtask prebuilt` compiles them with the versions here");
        }
    }
}

fn print_lines(lines: &[String]) {
    for line in lines {
        eprintln!("  {line}");
    }
}

fn compile(bpf: &Bpf) -> Result<(Objects, Versions)> {
    let compiler = Compiler {
        root: sh::root().to_owned(),
        toolchain: bpf.toolchain.name.clone(),
        linker: Some(bpf.linker.clone()),
        target_dir: sh::target_dir()?.join("prebuilt"),
    };
    let versions = compiler.versions()?;
    let mut cargo = compiler.command()?;
    eprintln!("compiling the kernel programs with {} and {}", versions.rustc, versions.linker);
    let status = cargo
        .status()
        .with_context(|| format!("cannot start {}", cargo.get_program().display()))?;
    // Without the environment, which is long.
    let mut shown = Command::new(cargo.get_program());
    shown.args(cargo.get_args());
    sh::succeeded(&shown, status)?;
    Ok((compiler.objects()?, versions))
}

fn compare(
    manifest: &Manifest,
    prebuilt: &Objects,
    versions: &Versions,
    compiled: &Objects,
) -> Result<Outcome> {
    let versions = versions.differences(&manifest.versions);
    let mut lines = Vec::new();
    for name in OBJECTS {
        let (old, new) = (&prebuilt[name], &compiled[name]);
        if versions.is_empty() && old == new {
            continue;
        }
        let functions = differing(&elf::functions(old)?, &elf::functions(new)?);
        lines.push(format!("{name}: {}", functions.describe("functions")));
        if versions.is_empty() {
            let sections = differing(&elf::sections(old)?, &elf::sections(new)?);
            lines.push(format!("{name}: {}", sections.describe("sections")));
        }
    }
    Ok(match (versions.is_empty(), lines.is_empty()) {
        (true, true) => Outcome::Same,
        (true, false) => Outcome::Different(lines),
        (false, _) => Outcome::NotComparable { versions, code: lines },
    })
}

/// Which of a number of things are not the same.
struct Differing {
    names: Vec<String>,
    total: usize,
}

impl Differing {
    fn describe(&self, things: &str) -> String {
        const SHOWN: usize = 8;
        let shown =
            self.names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
        let more = if self.names.len() > SHOWN { ", …" } else { "" };
        let names = if shown.is_empty() { shown } else { format!(": {shown}{more}") };
        format!("{} of {} {things} differ{names}", self.names.len(), self.total)
    }
}

fn differing(old: &BTreeMap<String, Vec<u8>>, new: &BTreeMap<String, Vec<u8>>) -> Differing {
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let differ = names.iter().filter(|name| old.get(**name) != new.get(**name));
    Differing { names: differ.map(|name| (*name).clone()).collect(), total: names.len() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prebuilt() -> (Manifest, Objects) {
        let manifest = samport_build::read_manifest(sh::root()).unwrap().unwrap();
        let objects = samport_build::read(sh::root(), &manifest).unwrap();
        (manifest, objects)
    }

    /// The objects with one byte of a function of the first changed, and the function's name.
    fn changed(objects: &Objects) -> (Objects, String) {
        let mut objects = objects.clone();
        let object = objects.get_mut(OBJECTS[0]).unwrap();
        // One that calls no other: its bytes are as they are in the file.
        let functions = elf::functions(object).unwrap();
        let mut places = functions.into_iter().rev().filter_map(|(name, code)| {
            let place = object.windows(code.len()).position(|window| window == code)?;
            Some((name, place))
        });
        let (name, place) = places.next().unwrap();
        drop(places);
        object[place] ^= 1;
        (objects, name)
    }

    #[test]
    fn objects_of_one_toolchain_are_compared_byte_by_byte() {
        let (manifest, objects) = prebuilt();
        let outcome = compare(&manifest, &objects, &manifest.versions, &objects).unwrap();
        assert_eq!(outcome, Outcome::Same);
    }

    #[test]
    fn what_differs_is_named() {
        let (manifest, objects) = prebuilt();
        let (other, function) = changed(&objects);
        let outcome = compare(&manifest, &objects, &manifest.versions, &other).unwrap();
        let Outcome::Different(lines) = outcome else { panic!("{outcome:?}") };
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(
            lines[0].starts_with("samport-ebpf: 1 of ") && lines[0].ends_with(&function),
            "{lines:?}"
        );
        assert!(lines[1].contains(" sections differ: "), "{lines:?}");
    }

    #[test]
    fn another_toolchain_is_named_with_both_versions_and_never_passes() {
        let (manifest, objects) = prebuilt();
        let other =
            Versions { linker_llvm: "LLVM version 99.0".to_owned(), ..manifest.versions.clone() };
        let outcome = compare(&manifest, &objects, &other, &objects).unwrap();
        let Outcome::NotComparable { versions, code } = outcome else { panic!("{outcome:?}") };
        let there = &manifest.versions.linker_llvm;
        assert_eq!(versions, [format!("bpf-linker-llvm: \"LLVM version 99.0\", {there:?}")]);
        assert_eq!(code.len(), OBJECTS.len());
        assert!(code[0].starts_with("samport-ebpf: 0 of "), "{code:?}");
    }
}
