//! Distribution packages, and the tools the tests take from them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::{Level, Need};
use crate::sh;

/// A program that has to be in PATH, or a file that has to be where it is said to be.
struct Tool {
    program: &'static str,
    package: &'static str,
    purpose: &'static str,
    /// The first level that needs it.
    level: Level,
}

const TOOLS: [Tool; 22] = [
    tool("ip", "iproute2", "the lab of network namespaces"),
    tool("tc", "iproute2", "the lab of network namespaces"),
    tool("ethtool", "ethtool", "the lab of network namespaces"),
    tool("tcpdump", "tcpdump", "the packet captures of failed tests"),
    tool("bpftool", "bpftool", "the tests of what is attached"),
    // The daemon, not the client: a client alone is often there to talk to another machine.
    tool("dockerd", "docker.io", "the container tests"),
    tool("docker-compose", "docker-compose", "the container tests"),
    tool("podman", "podman", "the container tests"),
    // Where Podman looks for it.
    tool("/usr/lib/podman/netavark", "netavark", "the container tests"),
    tool("runc", "runc", "the container tests"),
    tool("busybox", "busybox-static", "the image of the container tests"),
    tool("curl", "curl", "the requests of the container tests"),
    tool("tmux", "tmux", "the tests of `samport top`"),
    tool("iptables", "iptables", "the container tests and the comparisons"),
    tool("systemd-analyze", "systemd", "the test of the Debian package"),
    tool("xz", "xz-utils", "the modules of the kernels to test on"),
    tool("zstd", "zstd", "the modules of the kernels to test on"),
    tool(
        "/usr/lib/python3/dist-packages/prometheus_client/openmetrics/parser.py",
        "python3-prometheus-client",
        "the tests of metrics",
    ),
    contender("nft", "nftables"),
    contender("haproxy", "haproxy"),
    contender("nginx", "nginx-light"),
    contender("/usr/lib/nginx/modules/ngx_stream_module.so", "libnginx-mod-stream"),
];

const fn tool(program: &'static str, package: &'static str, purpose: &'static str) -> Tool {
    Tool { program, package, purpose, level: Level::Test }
}

const fn contender(program: &'static str, package: &'static str) -> Tool {
    Tool {
        program,
        package,
        purpose: "the benchmark: samport is measured beside it",
        level: Level::Bench,
    }
}

impl Tool {
    fn find(&self) -> Option<PathBuf> {
        let path = Path::new(self.program);
        if path.is_absolute() {
            return path.is_file().then(|| path.to_owned());
        }
        sh::find(self.program)
    }

    fn is_there(&self) -> bool {
        // Debian's other busybox needs libraries that an image made of it alone does not have.
        self.find().is_some_and(|file| self.package != "busybox-static" || is_static(&file))
    }
}

fn missing(level: Level) -> impl Iterator<Item = &'static Tool> {
    TOOLS.iter().filter(move |tool| tool.level <= level && !tool.is_there())
}

pub fn survey(level: Level) -> impl Iterator<Item = Need> {
    TOOLS.iter().filter(move |tool| tool.level <= level).map(|tool| match tool.find() {
        Some(file) if tool.is_there() => Need::found(tool.program, file.display().to_string()),
        _ => {
            Need::missing(tool.program, &format!("package {}: for {}", tool.package, tool.purpose))
        }
    })
}

/// Installs the tools that are missing for `level`.
pub fn ensure(level: Level, apt: &mut Apt) -> Result<()> {
    let tools: Vec<&Tool> = missing(level).collect();
    if tools.is_empty() {
        return Ok(());
    }
    let packages = unique(tools.iter().map(|tool| tool.package));
    let purposes = unique(tools.iter().map(|tool| tool.purpose)).join(", ");
    if !can_install() {
        bail!("install by hand what gives {}: for {purposes}", names(&tools));
    }
    let by_hand = || format!("install by hand {}: for {purposes}", packages.join(" "));
    // It may take the place of Debian's other busybox; nothing else may remove a package.
    let (busybox, others): (Vec<&str>, Vec<&str>) =
        packages.iter().partition(|package| **package == "busybox-static");
    if !others.is_empty() {
        apt.install(&others, &format!("for {purposes}")).with_context(by_hand)?;
    }
    if !busybox.is_empty() {
        apt.replace(&busybox, &format!("for {purposes}")).with_context(by_hand)?;
    }
    let left: Vec<&Tool> = missing(level).collect();
    if !left.is_empty() {
        bail!("apt-get succeeded, yet these are not in PATH: {}", names(&left));
    }
    Ok(())
}

fn names(tools: &[&Tool]) -> String {
    tools.iter().map(|tool| tool.program).collect::<Vec<_>>().join(", ")
}

fn unique(words: impl Iterator<Item = &'static str>) -> Vec<&'static str> {
    let mut unique = Vec::new();
    for word in words {
        if !unique.contains(&word) {
            unique.push(word);
        }
    }
    unique
}

/// Whether this is a system with Debian's package manager.
pub fn can_install() -> bool {
    sh::find("apt-get").is_some()
}

/// The version of a package that apt would install.
pub fn candidate(package: &str) -> Option<String> {
    let policy = sh::probe(Command::new("apt-cache").args(["policy", package]).env("LC_ALL", "C"))?;
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    (version != "(none)").then(|| version.to_owned())
}

/// apt-get, whose package lists are fetched once in a run and only if something is installed.
#[derive(Default)]
pub struct Apt {
    is_updated: bool,
}

impl Apt {
    pub fn update(&mut self) -> Result<()> {
        if self.is_updated {
            return Ok(());
        }
        eprintln!("setup: fetching the package lists with apt-get: something is missing");
        sh::run(sh::as_root("apt-get")?.args(["update", "--quiet"]))?;
        self.is_updated = true;
        Ok(())
    }

    /// Installs packages, but not at the price of removing others: `rustc-web` would remove
    /// `rustc`, and Debian's `rustup` with it.
    pub fn install(&mut self, packages: &[&str], purpose: &str) -> Result<()> {
        self.run(&["--no-remove"], packages, purpose)
    }

    /// Installs packages in the place of those they conflict with.
    pub fn replace(&mut self, packages: &[&str], purpose: &str) -> Result<()> {
        self.run(&[], packages, purpose)
    }

    fn run(&mut self, options: &[&str], packages: &[&str], purpose: &str) -> Result<()> {
        self.update()?;
        eprintln!("setup: installing {} with apt-get: {purpose}", packages.join(" "));
        let mut apt = sh::as_root("env")?;
        apt.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "--yes", "--quiet"]);
        apt.arg("--no-install-recommends").args(options).args(packages);
        sh::run(&mut apt)
    }
}

/// Whether a program is an ELF file that names no dynamic loader.
fn is_static(file: &Path) -> bool {
    fs::read(file).is_ok_and(|bytes| names_loader(&bytes) == Some(false))
}

/// Whether a 64-bit little-endian ELF file has a `PT_INTERP` program header (elf(5)).
fn names_loader(elf: &[u8]) -> Option<bool> {
    const PT_INTERP: u64 = 3;
    let number = |offset: usize, size: usize| -> Option<u64> {
        let bytes = elf.get(offset..offset.checked_add(size)?)?;
        Some(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    };
    if !elf.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let table = usize::try_from(number(32, 8)?).ok()?;
    let size = usize::try_from(number(54, 2)?).ok()?;
    let count = usize::try_from(number(56, 2)?).ok()?;
    let kind = |index: usize| number(table.checked_add(index * size)?, 4);
    (0..count).map(kind).try_fold(false, |found, kind| Some(found || kind? == PT_INTERP))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_with_shared_libraries_names_a_loader() {
        let test = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(names_loader(&test), Some(cfg!(not(target_feature = "crt-static"))));
    }

    #[test]
    fn what_is_no_program_is_neither_static_nor_dynamic() {
        assert_eq!(names_loader(b"#!/bin/sh\n"), None);
        assert_eq!(names_loader(b"\x7fELF\x02\x01 cut off"), None);
    }

    #[test]
    fn a_package_is_named_once() {
        assert_eq!(unique(["a", "b", "a"].into_iter()), ["a", "b"]);
    }

    #[test]
    fn building_needs_no_tools_of_the_tests() {
        assert_eq!(survey(Level::Build).count(), 0);
        assert_eq!(survey(Level::Bench).count(), TOOLS.len());
    }
}
