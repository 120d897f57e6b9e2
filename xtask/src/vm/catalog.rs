//! Which kernels there are to test with, and which archive has each.

use anyhow::{Context as _, Result};

/// A kernel of a distribution.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    /// Its release, as far as one names it: `6.1`.
    pub release: &'static str,
    /// The distribution it is the kernel of.
    pub of: &'static str,
    pub archive: Archive,
    /// The package that depends on the newest image of this release.
    pub package: &'static str,
}

/// Where packages come from.
#[derive(Clone, Copy, Debug)]
pub struct Archive {
    /// The suites, each with the address it is at.
    pub suites: &'static [(&'static str, &'static str)],
    pub keyring: Keyring,
}

/// What the archive's lists are signed with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Keyring {
    Debian,
    /// Where Debian has it too.
    Ubuntu,
}

const DEBIAN: &str = "http://deb.debian.org/debian";
const SECURITY: &str = "http://deb.debian.org/debian-security";
const UBUNTU: &str = "http://archive.ubuntu.com/ubuntu";
const CLOUD: &str = "linux-image-cloud-amd64";
const VIRTUAL: &str = "linux-image-virtual";

/// All of them, oldest first.
pub const KERNELS: [Kernel; 5] = [
    debian("5.10", "Debian 11", &[(DEBIAN, "bullseye"), (SECURITY, "bullseye-security")]),
    ubuntu("5.15", "Ubuntu 22.04", &[(UBUNTU, "jammy"), (UBUNTU, "jammy-updates")]),
    debian("6.1", "Debian 12", &[(DEBIAN, "bookworm"), (SECURITY, "bookworm-security")]),
    ubuntu("6.8", "Ubuntu 24.04", &[(UBUNTU, "noble"), (UBUNTU, "noble-updates")]),
    debian("6.12", "Debian 13", &[(DEBIAN, "trixie"), (SECURITY, "trixie-security")]),
];

const fn debian(
    release: &'static str,
    of: &'static str,
    suites: &'static [(&'static str, &'static str)],
) -> Kernel {
    let archive = Archive { suites, keyring: Keyring::Debian };
    Kernel { release, of, archive, package: CLOUD }
}

const fn ubuntu(
    release: &'static str,
    of: &'static str,
    suites: &'static [(&'static str, &'static str)],
) -> Kernel {
    let archive = Archive { suites, keyring: Keyring::Ubuntu };
    Kernel { release, of, archive, package: VIRTUAL }
}

/// The archive that has the keyring of the others, on every Debian.
pub const KEYS: Archive = Archive { suites: &[(DEBIAN, "trixie")], keyring: Keyring::Debian };

/// The kernel of a release.
pub fn find(release: &str) -> Result<&'static Kernel> {
    KERNELS.iter().find(|kernel| kernel.release == release).with_context(|| {
        let known: Vec<_> = KERNELS.iter().map(|kernel| kernel.release).collect();
        format!("no archive is known for Linux {release}: there are {}", known.join(", "))
    })
}

impl Archive {
    /// What apt reads of it.
    pub fn source_list(&self, keyring: &str) -> String {
        let line = |(address, suite): &(&str, &str)| {
            format!("deb [signed-by={keyring}] {address} {suite} main\n")
        };
        self.suites.iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_found_by_its_release_and_another_names_those_there_are() {
        assert_eq!(find("6.1").unwrap().of, "Debian 12");
        let error = find("4.4").unwrap_err().to_string();
        assert_eq!(
            error,
            "no archive is known for Linux 4.4: there are 5.10, 5.15, 6.1, 6.8, 6.12"
        );
    }

    #[test]
    fn an_archive_is_a_line_for_each_suite() {
        let list = find("6.1").unwrap().archive.source_list("/keys.gpg");
        assert_eq!(
            list,
            "deb [signed-by=/keys.gpg] http://deb.debian.org/debian bookworm main\n\
             deb [signed-by=/keys.gpg] http://deb.debian.org/debian-security bookworm-security main\n"
        );
    }
}
