//! Packages of any distribution, unpacked beside the system: nothing is installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::{archives, sh};

/// An apt of our own, that knows one suite and of no system's packages.
pub struct Apt {
    folder: PathBuf,
}

impl Apt {
    /// Makes it in a folder and fetches the suite's lists.
    pub fn open(folder: &Path, suite: &str) -> Result<Self> {
        let keyring = archives::keyring(suite, folder)?;
        for part in ["state/lists/partial", "cache/archives/partial"] {
            created(&folder.join(part))?;
        }
        let list = folder.join("sources.list");
        fs::write(&list, archives::source_list(suite, &keyring.display().to_string())?)
            .with_context(|| format!("write {}", list.display()))?;
        let apt = Self { folder: folder.to_owned() };
        sh::run(apt.command("apt-get").args(["update", "--quiet"]))?;
        Ok(apt)
    }

    /// What a package depends on whose name begins like this.
    pub fn dependency(&self, package: &str, beginning: &str) -> Result<String> {
        let output = sh::probe(self.command("apt-cache").args(["depends", package]));
        let output = output.with_context(|| format!("the archive has no package {package}"))?;
        dependency(&output, beginning)
            .with_context(|| format!("{package} depends on no package {beginning}…"))
    }

    /// Downloads packages and unpacks them into a folder.
    pub fn unpack(&self, packages: &[&str], to: &Path) -> Result<()> {
        unpack(self.command("apt-get"), packages, &self.folder.join("packages"), to)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let place = |name: &str| self.folder.join(name).display().to_string();
        command.env("LC_ALL", "C");
        for option in [
            format!("Dir::State={}", place("state")),
            "Dir::State::status=/dev/null".to_owned(),
            format!("Dir::Cache={}", place("cache")),
            format!("Dir::Etc::sourcelist={}", place("sources.list")),
            "Dir::Etc::sourceparts=/dev/null".to_owned(),
            "APT::Architecture=amd64".to_owned(),
            "APT::Architectures=amd64".to_owned(),
            "APT::Sandbox::User=".to_owned(),
            "Acquire::Languages=none".to_owned(),
            // Else an archive that cannot be reached is a warning.
            "APT::Update::Error-Mode=any".to_owned(),
        ] {
            command.arg("-o").arg(option);
        }
        command
    }
}

/// Downloads packages with an `apt-get`, into a folder that is removed again, and unpacks them.
pub fn unpack(mut apt_get: Command, packages: &[&str], through: &Path, to: &Path) -> Result<()> {
    let _ = fs::remove_dir_all(through);
    created(through)?;
    created(to)?;
    sh::run(apt_get.current_dir(through).args(["download", "--quiet"]).args(packages))?;
    let files = fs::read_dir(through).with_context(|| format!("list {}", through.display()))?;
    for file in files.flatten().map(|entry| entry.path()) {
        let mut dpkg = Command::new("dpkg-deb");
        sh::run(dpkg.arg("--extract").arg(file).arg(to))?;
    }
    fs::remove_dir_all(through).with_context(|| format!("remove {}", through.display()))
}

pub fn created(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))
}

/// The packages of the `Depends:` lines of `apt-cache depends`.
pub fn dependencies(output: &str) -> impl Iterator<Item = &str> {
    output.lines().filter_map(|line| line.trim().strip_prefix("Depends: "))
}

fn dependency(output: &str, beginning: &str) -> Option<String> {
    dependencies(output).find(|name| name.starts_with(beginning)).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dependency_is_found_by_its_beginning() {
        let output = "linux-image-virtual\n  Depends: intel-microcode\n  \
                      Depends: linux-image-6.8.0-100-generic\n";
        let image = dependency(output, "linux-image-");
        assert_eq!(image.as_deref(), Some("linux-image-6.8.0-100-generic"));
        assert_eq!(dependency(output, "linux-modules-"), None);
    }
}
