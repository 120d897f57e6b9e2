//! QEMU, found or fetched, and a machine in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::{apt, setup, sh};

const PROGRAM: &str = "qemu-system-x86_64";
const PACKAGE: &str = "qemu-system-x86";

/// A QEMU for this machine's own kind of processor.
pub struct Qemu {
    program: PathBuf,
    /// Where it was unpacked, if it is not the system's.
    unpacked: Option<PathBuf>,
}

impl Qemu {
    /// The system's, or one that is unpacked in the cache: installing it could remove what is there.
    pub fn ensure(cache: &Path) -> Result<Self> {
        if let Some(program) = sh::find(PROGRAM) {
            return Ok(Self { program, unpacked: None });
        }
        let folder = cache.join("qemu");
        let program = folder.join("usr/bin").join(PROGRAM);
        if !program.is_file() {
            fetch(&folder)?;
        }
        Ok(Self { program, unpacked: Some(folder) })
    }

    /// A machine that is about to boot. Its first serial port is the kernel's console, written to a
    /// file; what it says on the second comes out of the command.
    ///
    /// Its time is counted in instructions (one a nanosecond), not on our clock: a busy machine makes
    /// it slower, but nothing in it times out sooner. Software emulation, whatever the host can do.
    pub fn machine(&self, kernel: &Path, image: &Path, console: &Path) -> Command {
        let mut command = Command::new(&self.program);
        if let Some(folder) = &self.unpacked {
            let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];
            let libraries = libraries.map(|part| folder.join(part).display().to_string());
            command.env("LD_LIBRARY_PATH", libraries.join(":"));
            for data in ["usr/share/seabios", "usr/share/qemu"] {
                command.arg("-L").arg(folder.join(data));
            }
        }
        command.args(["-machine", "q35", "-accel", "tcg,thread=single", "-cpu", "max"]);
        command.args(["-icount", "shift=0,sleep=off", "-smp", "1", "-m", "1536"]);
        command.args(["-nodefaults", "-nic", "none", "-display", "none", "-no-reboot"]);
        command.arg("-kernel").arg(kernel).arg("-initrd").arg(image);
        command.args(["-append", "console=ttyS0 loglevel=4 panic=-1 mitigations=off"]);
        command.arg("-serial").arg(format!("file:{}", console.display()));
        command.args(["-serial", "stdio"]).stdin(Stdio::null());
        command
    }
}

fn fetch(folder: &Path) -> Result<()> {
    ensure!(setup::has_apt(), "install by hand what gives {PROGRAM}: for older kernels");
    eprintln!("setup: unpacking {PACKAGE} in {}: to boot other kernels in", folder.display());
    // Beside the folder, which is there only when it is complete.
    let begun = folder.with_extension("new");
    let _ = fs::remove_dir_all(&begun);
    let packages = missing()?;
    let packages: Vec<&str> = packages.iter().map(String::as_str).collect();
    apt::unpack(Command::new("apt-get"), &packages, &folder.with_extension("packages"), &begun)?;
    fs::rename(&begun, folder).with_context(|| format!("make {}", folder.display()))
}

/// QEMU and everything it needs that is not installed, each with its version.
fn missing() -> Result<Vec<String>> {
    let mut simulation = Command::new("apt-get");
    simulation.args(["install", "--simulate", "--no-install-recommends", PACKAGE]);
    let output = sh::probe(simulation.env("LC_ALL", "C"));
    let output = output.with_context(|| format!("apt-get knows no package {PACKAGE}"))?;
    Ok(output.lines().filter_map(installed).collect())
}

/// The package of a line like `Inst seabios (1.16.2-1 Debian:12.15/oldstable [all])`.
fn installed(line: &str) -> Option<String> {
    let mut words = line.strip_prefix("Inst ")?.split(' ');
    let name = words.next()?;
    let version = words.find_map(|word| word.strip_prefix('('))?;
    Some(format!("{name}={version}"))
}

#[cfg(test)]
mod tests {
    use super::installed;

    #[test]
    fn what_would_be_installed_is_read_from_a_simulation() {
        let new = "Inst seabios (1.16.2-1 Debian:12.15/oldstable [all])";
        assert_eq!(installed(new).as_deref(), Some("seabios=1.16.2-1"));
        let upgraded = "Inst libfdt1 [1.6] (1.7-1 Debian:12.15/oldstable [amd64]) []";
        assert_eq!(installed(upgraded).as_deref(), Some("libfdt1=1.7-1"));
        assert_eq!(installed("Remv qemu-utils [1:10.0]"), None);
        assert_eq!(installed("Conf seabios (1.16.2-1 Debian [all])"), None);
    }
}
