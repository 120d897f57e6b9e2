//! What setup is about to do: found out before anything is done, and shown on one screen.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use super::record::Record;
use super::tools::{TOOLS, Tool};
use super::{Level, apt, bpf, bpffs, linker, preflight, programs};
use crate::sh;

/// Everything that is missing for a level, and how it is got.
#[derive(Default)]
pub struct Plan {
    /// Packages to ask apt for, each with what it is for.
    packages: BTreeMap<String, &'static str>,
    /// What apt makes of that.
    summary: apt::Summary,
    /// In this order, after the packages.
    steps: Vec<Step>,
}

/// Something other than installing a package.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Step {
    /// A component of rustup's for a toolchain, or for the default one.
    Component {
        toolchain: Option<String>,
        name: &'static str,
    },
    AddSource(String),
    Nightly,
    Linker(linker::LinkerSource),
    Tool(&'static Tool),
    Bpffs,
}

/// Packages that may be removed: Debian's other busybox, whose place the static one takes.
const REPLACEABLE: [&str; 1] = ["busybox"];

impl Plan {
    /// Finds out what is missing and how to get it. Fetches apt's lists if a package is needed; changes nothing else.
    pub fn make(level: Level, needs_bpf: bool, cache: &Path) -> Result<Self> {
        let mut plan = Self::default();
        let missing = programs::missing(level);
        let toolchain = needs_bpf.then(bpf::find).flatten();
        let asks_apt =
            !missing.is_empty() || needs_bpf && linker_of(toolchain.as_ref(), cache).is_none();
        if asks_apt {
            // Before the network is asked: the record has to be written before anything is installed.
            preflight::writable(cache)?;
            if apt::is_there() {
                apt::update()?;
            }
        }
        plan.add_programs(&missing)?;
        if needs_bpf {
            plan.add_toolchain(toolchain, level, cache)?;
        }
        let tools = TOOLS.into_iter().filter(|tool| level.includes(tool.level));
        plan.steps.extend(tools.filter(|tool| tool.find(cache).is_none()).map(Step::Tool));
        if level.includes(Level::Lint) {
            plan.add_lints()?;
        }
        if level.includes(Level::Run) && !bpffs::is_mounted() {
            plan.steps.push(Step::Bpffs);
        }
        plan.ask_apt()?;
        Ok(plan)
    }

    pub fn is_empty(&self) -> bool {
        self.packages.is_empty() && self.steps.is_empty()
    }

    /// Whether it does more than what a restart of the machine undoes.
    pub fn changes_machine(&self) -> bool {
        !self.packages.is_empty() || self.steps.iter().any(|step| *step != Step::Bpffs)
    }

    fn add_programs(&mut self, missing: &[&'static programs::Program]) -> Result<()> {
        let mut nowhere = Vec::new();
        for program in missing {
            let offered = program.packages.iter().find(|package| apt::candidate(package).is_some());
            match offered {
                Some(package) => {
                    self.packages.entry((*package).to_owned()).or_insert(program.purpose);
                }
                None => nowhere.push(format!("{} (for {})", program.name, program.purpose)),
            }
        }
        ensure!(
            nowhere.is_empty(),
            "no package of this system has {}; install what has them by hand",
            nowhere.join(", ")
        );
        Ok(())
    }

    fn add_toolchain(
        &mut self,
        found: Option<bpf::Found>,
        level: Level,
        cache: &Path,
    ) -> Result<()> {
        const PURPOSE: &str = "compiling the BPF programs";
        let Some(found) = found else {
            let way = bpf::way()?;
            let linker = match way {
                bpf::ToolchainSource::Packages { llvm } => linker::LinkerSource::Build { llvm },
                // Which LLVM it has is known when it is there.
                bpf::ToolchainSource::AddSource(_) | bpf::ToolchainSource::Nightly => {
                    linker::LinkerSource::Download
                }
            };
            match way {
                bpf::ToolchainSource::Packages { llvm } => {
                    let packages = bpf::packages(llvm);
                    self.packages.extend(packages.into_iter().map(|name| (name, PURPOSE)));
                }
                bpf::ToolchainSource::AddSource(nightly) => {
                    self.steps.push(Step::AddSource(nightly));
                }
                bpf::ToolchainSource::Nightly => self.steps.push(Step::Nightly),
            }
            return self.add_linker(linker);
        };
        if level.includes(Level::Lint) {
            let mut clippy = found.toolchain.command("cargo");
            let has_clippy = sh::probe(clippy.args(["clippy", "--version"])).is_some();
            if !has_clippy && found.toolchain.is_system() {
                self.packages.insert("rust-web-clippy".to_owned(), "linting the BPF programs");
            } else if !has_clippy {
                let toolchain = Some(found.toolchain.name.clone());
                self.steps.push(Step::Component { toolchain, name: "clippy" });
            }
        }
        if linker::find(&found, cache).is_some() {
            return Ok(());
        }
        let way = linker::way(found.rustc.llvm);
        let can_use =
            matches!(way, linker::LinkerSource::Build { .. }) || !found.toolchain.is_system();
        let llvm = found.rustc.llvm;
        ensure!(can_use, "no bpf-linker: no package of this system has LLVM {llvm}");
        self.add_linker(way)
    }

    fn add_linker(&mut self, way: linker::LinkerSource) -> Result<()> {
        match way {
            linker::LinkerSource::Build { llvm } => {
                let packages = linker::packages(llvm).into_iter();
                let packages = packages.filter(|package| !apt::is_installed(package));
                self.packages.extend(packages.map(|name| (name, "building bpf-linker")));
            }
            linker::LinkerSource::Download => {
                for (program, package) in linker::DOWNLOADERS {
                    if sh::find(program).is_some() {
                        continue;
                    }
                    ensure!(apt::is_there(), "downloading bpf-linker takes {program}: install it");
                    self.packages.insert(package.to_owned(), "downloading bpf-linker");
                }
            }
        }
        self.steps.push(Step::Linker(way));
        Ok(())
    }

    /// rustfmt and clippy for the host.
    fn add_lints(&mut self) -> Result<()> {
        for (verb, name) in [("fmt", "rustfmt"), ("clippy", "clippy")] {
            if sh::probe(sh::cargo().args([verb, "--version"])).is_none() {
                ensure!(sh::find("rustup").is_some(), "no `cargo {verb}`: install {name} by hand");
                self.steps.push(Step::Component { toolchain: None, name });
            }
        }
        Ok(())
    }

    fn ask_apt(&mut self) -> Result<()> {
        if self.packages.is_empty() {
            return Ok(());
        }
        ensure!(apt::is_there(), "install by hand what gives {}", self.names().join(", "));
        self.summary = apt::simulate(&self.names())?;
        let unwanted: Vec<_> = self.summary.removed.iter().map(String::as_str).collect();
        let unwanted: Vec<_> =
            unwanted.into_iter().filter(|name| !REPLACEABLE.contains(name)).collect();
        if !unwanted.is_empty() {
            bail!(
                "apt-get would remove {} to install {}; install what is missing by hand",
                unwanted.join(" "),
                self.names().join(" ")
            );
        }
        Ok(())
    }

    fn names(&self) -> Vec<&str> {
        self.packages.keys().map(String::as_str).collect()
    }

    /// Does it. What is about to change is recorded before.
    pub fn carry_out(&self, cache: &Path) -> Result<()> {
        if !self.packages.is_empty() {
            let log = cache.join("apt.log");
            Record::update(cache, |record| {
                record.packages.extend(self.summary.new.iter().cloned());
                record.replaced.extend(self.summary.removed.iter().cloned());
            })?;
            eprintln!("setup: installing {} packages with apt-get", self.summary.new.len());
            apt::install(&self.names(), &self.summary.new, &log)?;
            programs::link_bpftool(&super::bin(cache)).context("link bpftool")?;
        }
        self.steps.iter().try_for_each(|step| step.carry_out(cache))
    }
}

impl Step {
    fn carry_out(&self, cache: &Path) -> Result<()> {
        match self {
            Self::Component { toolchain, name } => {
                let mut rustup = Command::new("rustup");
                rustup.args(["component", "add", name]);
                if let Some(toolchain) = toolchain {
                    rustup.args(["--toolchain", toolchain]);
                    let added = format!("{toolchain} {name}");
                    Record::update(cache, |record| {
                        record.components.insert(added);
                    })?;
                }
                eprintln!("setup: adding {name} with rustup: to lint");
                sh::run(&mut rustup)
            }
            Self::AddSource(nightly) => {
                let added = format!("{nightly} rust-src");
                Record::update(cache, |record| {
                    record.components.insert(added);
                })?;
                bpf::add_source(nightly)
            }
            Self::Nightly => {
                Record::update(cache, |record| {
                    record.toolchains.insert("nightly".to_owned());
                })?;
                bpf::install_nightly()
            }
            Self::Linker(way) => {
                Record::update(cache, |record| {
                    record.folders.insert(linker::folder(*way, cache));
                })?;
                linker::install(*way, cache)
            }
            Self::Tool(tool) => {
                Record::update(cache, |record| {
                    record.folders.insert(tool.folder(cache));
                })?;
                tool.build(cache)
            }
            Self::Bpffs => {
                // A mount does not outlive the machine, and without a record there is nothing to undo.
                let _ = Record::update(cache, |record| record.bpffs = true);
                bpffs::mount()
            }
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Component { toolchain: Some(toolchain), name } => {
                write!(f, "{name} of {toolchain} (rustup), for linting")
            }
            Self::Component { toolchain: None, name } => write!(f, "{name} (rustup), for linting"),
            Self::AddSource(nightly) => {
                write!(f, "rust-src of {nightly} (rustup), for compiling the BPF programs")
            }
            Self::Nightly => {
                f.write_str("a nightly Rust (rustup, 1 GB), for compiling the BPF programs")
            }
            Self::Linker(linker::LinkerSource::Build { llvm }) => {
                write!(f, "bpf-linker (built by cargo with LLVM {llvm}, a minute or two)")
            }
            Self::Linker(linker::LinkerSource::Download) => {
                f.write_str("bpf-linker (its release, 100 MB)")
            }
            Self::Tool(tool) => write!(f, "{} {}, for {}", tool.name, tool.version, tool.purpose),
            Self::Bpffs => f.write_str("the BPF file system, mounted at /sys/fs/bpf"),
        }
    }
}

/// One screen: what is installed, how much it is and why.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut by_purpose: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (package, purpose) in &self.packages {
            by_purpose.entry(purpose).or_default().push(package);
        }
        for (purpose, packages) in by_purpose {
            writeln!(f, "  {}, for {purpose}", packages.join(" "))?;
        }
        for step in &self.steps {
            writeln!(f, "  {step}")?;
        }
        if self.packages.is_empty() {
            return Ok(());
        }
        let apt::Summary { new, upgraded, removed, download, disk } = &self.summary;
        write!(f, "apt-get installs {} packages, the ones they depend on included", new.len())?;
        write!(f, ": {download} to download, {disk} of the disk.")?;
        if !upgraded.is_empty() {
            write!(f, " It upgrades {}.", upgraded.join(" "))?;
        }
        if !removed.is_empty() {
            write!(f, " It removes {}, whose place one of them takes.", removed.join(" "))?;
        }
        let has_services = programs::units(new.iter().map(String::as_str)).is_empty();
        if !has_services {
            f.write_str(" The services they bring are neither started nor enabled.")?;
        }
        f.write_char('\n')
    }
}

fn linker_of(found: Option<&bpf::Found>, cache: &Path) -> Option<std::path::PathBuf> {
    linker::find(found?, cache)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_says_what_it_installs_how_much_and_why() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let summary = apt::Summary {
            new: words("docker.io containerd tmux"),
            upgraded: words("libc6"),
            removed: words("busybox"),
            download: "210 MB".to_owned(),
            disk: "812 MB".to_owned(),
        };
        let packages = [("tmux", "tests of `samport top`"), ("docker.io", "container tests")];
        let packages = packages.map(|(name, purpose)| (name.to_owned(), purpose)).into();
        let steps = vec![Step::Tool(&super::super::tools::CARGO_DEB), Step::Bpffs];
        let plan = Plan { packages, summary, steps };
        let expected = "  docker.io, for container tests
  tmux, for tests of `samport top`
  cargo-deb 3.8.0, for making the Debian package (built by cargo, a minute or two)
  the BPF file system, mounted at /sys/fs/bpf
apt-get installs 3 packages, the ones they depend on included: 210 MB to download, 812 MB of the disk. \
It upgrades libc6. It removes busybox, whose place one of them takes. \
The services they bring are neither started nor enabled.
";
        assert_eq!(plan.to_string(), expected);
        assert!(plan.changes_machine() && !plan.is_empty());
    }

    #[test]
    fn mounting_alone_changes_nothing_for_good() {
        let plan = Plan { steps: vec![Step::Bpffs], ..Plan::default() };
        assert!(!plan.changes_machine() && !plan.is_empty());
        assert!(Plan::default().is_empty());
    }
}
