//! The external programs that samport, its tests and its tools start, and the packages that have them.
//!
//! One table. A test reads every program name that the code starts and fails when one is not here, or at a level that
//! does not reach the code that starts it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Level::{self, Bench, Demo, Fuzz, Kernel, Package, Pristine, Test};
use super::elf;
use crate::sh;

/// A program that has to be in PATH, or a file that has to be at its path.
pub struct Program {
    /// Its name in PATH, or an absolute path.
    pub name: &'static str,
    /// The packages that have it, by distribution and release: the first one that the archive offers is installed.
    pub packages: &'static [&'static str],
    /// What it is needed for, as it follows "for".
    pub purpose: &'static str,
    /// The levels that need it; those that include one of them do too.
    pub levels: &'static [Level],
    /// What it takes for the one that is found to be good.
    check: Check,
}

/// What a program that was found has to be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Check {
    /// Nothing more.
    Exists,
    /// Without shared libraries: an image made of it alone has none.
    Static,
    /// Started with these arguments, it ends with 0.
    Runs(&'static [&'static str]),
    /// Compose, as a plugin of the Docker client or as a separate program that starts.
    Compose,
}

/// All of them.
pub const PROGRAMS: [Program; 30] = [
    program("ip", &["iproute2"], "network namespaces", &[Demo, Pristine]),
    program("tc", &["iproute2"], "network namespaces", &[Demo]),
    program("ss", &["iproute2"], "network namespaces", &[Test]),
    program("ethtool", &["ethtool"], "network namespaces", &[Demo]),
    program("iptables", &["iptables"], "the rules that Docker makes", &[Demo]),
    program("ip6tables", &["iptables"], "the rules that Docker makes", &[Demo]),
    program("iptables-legacy", &["iptables"], "the rules that Docker makes", &[Test]),
    program("nft", &["nftables"], "tests beside other firewalls", &[Test, Bench]),
    // Ubuntu's program in PATH looks for one of the running kernel's version.
    Program {
        check: Check::Runs(&["version"]),
        ..program(
            "bpftool",
            &["bpftool", "linux-tools-generic"],
            "looking at what is left in other kernels",
            &[Kernel],
        )
    },
    // The daemon and the client: one alone is often there to talk to another machine.
    program("dockerd", &["docker.io"], "container tests", &[Test, Bench]),
    program("docker", &["docker-cli", "docker.io"], "container tests", &[Test, Bench]),
    Program {
        check: Check::Compose,
        ..program(
            "docker-compose",
            &["docker-compose-v2", "docker-compose"],
            "container tests",
            &[Test],
        )
    },
    program("podman", &["podman"], "container tests", &[Test]),
    // Where Podman looks for it.
    program("/usr/lib/podman/netavark", &["netavark"], "container tests", &[Test]),
    program("runc", &["runc"], "container tests", &[Test, Bench]),
    Program {
        check: Check::Static,
        ..program("busybox", &["busybox-static"], "the image of a container test", &[Test])
    },
    program("tmux", &["tmux"], "tests of `samport top`", &[Test]),
    program(
        "/usr/lib/python3/dist-packages/prometheus_client/openmetrics/parser.py",
        &["python3-prometheus-client"],
        "tests of the metrics' text",
        &[Test],
    ),
    program("/usr/bin/python3", &["python3"], "tests of the metrics' text", &[Test]),
    program("systemd-analyze", &["systemd"], "the test of the Debian package", &[Test]),
    program("dpkg-shlibdeps", &["dpkg-dev"], "making the Debian package", &[Package]),
    program("c++", &["g++"], "building libFuzzer", &[Fuzz]),
    program("xz", &["xz-utils"], "unpacking other kernels", &[Kernel]),
    program("zstd", &["zstd"], "unpacking other kernels", &[Kernel]),
    program("mmdebstrap", &["mmdebstrap"], "making root file systems", &[Pristine]),
    // Its scripts have the address of Ubuntu's archive.
    program("debootstrap", &["debootstrap"], "making root file systems", &[Pristine]),
    program("gzip", &["gzip"], "making root file systems", &[Pristine]),
    contender("haproxy", &["haproxy"]),
    contender("nginx", &["nginx-light", "nginx"]),
    contender("/usr/lib/nginx/modules/ngx_stream_module.so", &["libnginx-mod-stream"]),
];

/// Packages that bring services, with the units: they are not started and not enabled when setup installs them.
pub const SERVICES: [(&str, &[&str]); 6] = [
    ("docker.io", &["docker.service", "docker.socket"]),
    ("containerd", &["containerd.service"]),
    (
        "podman",
        &[
            "podman.service",
            "podman.socket",
            "podman-auto-update.service",
            "podman-auto-update.timer",
            "podman-restart.service",
            "podman-clean-transient.service",
        ],
    ),
    ("haproxy", &["haproxy.service"]),
    ("nginx", &["nginx.service"]),
    ("nginx-common", &["nginx.service"]),
];

const fn program(
    name: &'static str,
    packages: &'static [&'static str],
    purpose: &'static str,
    levels: &'static [Level],
) -> Program {
    Program { name, packages, purpose, levels, check: Check::Exists }
}

const fn contender(name: &'static str, packages: &'static [&'static str]) -> Program {
    program(name, packages, "the benchmark: samport is measured beside it", &[Bench])
}

impl Program {
    /// Where it is, if it is there and good.
    pub fn find(&self) -> Option<PathBuf> {
        if self.check == Check::Compose {
            return compose();
        }
        let path = Path::new(self.name);
        let found = if path.is_absolute() {
            path.is_file().then(|| path.to_owned())
        } else {
            sh::find(self.name)
        };
        found.filter(|file| match self.check {
            Check::Static => elf::is_static(file),
            Check::Runs(arguments) => sh::probe(Command::new(file).args(arguments)).is_some(),
            Check::Exists | Check::Compose => true,
        })
    }

    fn is_needed(&self, level: Level) -> bool {
        self.levels.iter().any(|own| level.includes(*own))
    }
}

/// The programs that a level needs.
pub fn needed(level: Level) -> impl Iterator<Item = &'static Program> {
    PROGRAMS.iter().filter(move |program| program.is_needed(level))
}

/// The programs that a level needs and that are not there.
pub fn missing(level: Level) -> Vec<&'static Program> {
    needed(level).filter(|program| program.find().is_none()).collect()
}

/// The units of those packages that bring services.
pub fn units<'a>(packages: impl Iterator<Item = &'a str>) -> Vec<&'static str> {
    let mut units = Vec::new();
    for package in packages {
        let own = SERVICES.iter().find(|(name, _)| *name == package);
        units.extend(own.into_iter().flat_map(|(_, units)| units.iter().copied()));
    }
    units
}

/// Compose: the plugin where Docker's client looks for it, or a program in PATH. One in Python has to start: 1.29 does
/// not on Python 3.12.
fn compose() -> Option<PathBuf> {
    let folders = ["/usr/local/lib", "/usr/local/libexec", "/usr/lib", "/usr/libexec"];
    let plugins = folders.map(|folder| format!("{folder}/docker/cli-plugins/docker-compose"));
    let plugin = plugins.into_iter().map(PathBuf::from).find(|file| sh::is_program(file));
    plugin.or_else(|| {
        let file = sh::find("docker-compose")?;
        let starts = || sh::probe(Command::new(&file).arg("version")).is_some();
        (elf::is_elf(&file) || starts()).then_some(file)
    })
}

/// Ubuntu's bpftool lies in a folder of its kernel's version, whichever kernel runs: a link in this folder, which xtask
/// has in its PATH, makes it the one that is found.
pub fn link_bpftool(folder: &Path) -> std::io::Result<()> {
    let kernels = fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    let kernels = kernels.filter(|entry| {
        entry.file_name().to_string_lossy().starts_with("linux-tools-")
            && sh::is_program(&entry.path().join("bpftool"))
    });
    let Some(newest) = kernels.map(|entry| entry.path()).max() else { return Ok(()) };
    fs::create_dir_all(folder)?;
    let link = folder.join("bpftool");
    let _ = fs::remove_file(&link);
    std::os::unix::fs::symlink(newest.join("bpftool"), link)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_program_is_named_once() {
        let names: BTreeSet<_> = PROGRAMS.iter().map(|program| program.name).collect();
        assert_eq!(names.len(), PROGRAMS.len());
    }

    #[test]
    fn every_program_has_a_package_and_a_level() {
        for program in &PROGRAMS {
            assert!(!program.packages.is_empty() && !program.levels.is_empty(), "{}", program.name);
        }
    }

    #[test]
    fn running_needs_no_program_of_the_demo_and_the_demo_none_of_the_tests() {
        assert_eq!(needed(Level::Run).count(), 0);
        let demo: Vec<_> = needed(Demo).map(|program| program.name).collect();
        assert_eq!(demo, ["ip", "tc", "ethtool", "iptables", "ip6tables"]);
        assert!(needed(Test).count() > demo.len());
    }

    #[test]
    fn services_are_known_by_the_package_that_brings_them() {
        assert_eq!(units(["tmux", "haproxy"].into_iter()), ["haproxy.service"]);
        assert!(units(["docker.io"].into_iter()).contains(&"docker.socket"));
    }
}
