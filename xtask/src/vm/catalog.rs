//! Which kernels there are to test with, and which suite has each.

use anyhow::{Context as _, Result};

/// A kernel of a distribution.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    /// Its release, as far as one names it: `6.1`.
    pub release: &'static str,
    /// The distribution it is the kernel of.
    pub of: &'static str,
    /// The suite that has it.
    pub suite: &'static str,
    /// The package of its image, or one that depends on the newest image of this release.
    pub package: &'static str,
}

const CLOUD: &str = "linux-image-cloud-amd64";
const VIRTUAL: &str = "linux-image-virtual";

/// All of them, oldest first.
pub const KERNELS: [Kernel; 6] = [
    Kernel { release: "5.10", of: "Debian 11", suite: "bullseye", package: CLOUD },
    Kernel { release: "5.15", of: "Ubuntu 22.04", suite: "jammy", package: VIRTUAL },
    Kernel { release: "6.1", of: "Debian 12", suite: "bookworm", package: CLOUD },
    Kernel {
        release: "6.8.0-31",
        of: "Ubuntu 24.04 as released",
        suite: "noble",
        package: "linux-image-6.8.0-31-generic",
    },
    Kernel { release: "6.8", of: "Ubuntu 24.04", suite: "noble", package: VIRTUAL },
    Kernel { release: "6.12", of: "Debian 13", suite: "trixie", package: CLOUD },
];

impl Kernel {
    /// Whether its package is one image's, and not the newest's.
    pub fn is_fixed(&self) -> bool {
        let version = self.package.strip_prefix("linux-image-").unwrap_or_default();
        version.starts_with(|first: char| first.is_ascii_digit())
    }
}

/// The kernel of a release.
pub fn find(release: &str) -> Result<&'static Kernel> {
    KERNELS.iter().find(|kernel| kernel.release == release).with_context(|| {
        let known: Vec<_> = KERNELS.iter().map(|kernel| kernel.release).collect();
        format!("no archive is known for Linux {release}: there are {}", known.join(", "))
    })
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
            "no archive is known for Linux 4.4: there are 5.10, 5.15, 6.1, 6.8.0-31, 6.8, 6.12"
        );
    }
}
