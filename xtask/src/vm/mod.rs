//! Tests on other kernels: a machine of QEMU's boots a distribution's kernel and runs the same test
//! programs and the same samport as this one does.

mod catalog;
mod image;
mod modules;
mod qemu;
mod report;
mod selection;

use std::fs;
use std::io::{BufRead as _, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use self::catalog::Kernel;
use self::qemu::Qemu;
use self::report::Report;
use self::selection::Selection;
pub use self::selection::Which;
use crate::apt::{self, Apt};
use crate::test::{self, Tally};
use crate::{setup, sh};

/// A machine that says nothing for this long is taken for dead: ten times what the longest test
/// takes on a machine that has nothing else to do.
const SILENCE: Duration = Duration::from_mins(15);
/// What is shown of the kernel's console when something has failed, in lines.
const CONSOLE_LINES: usize = 30;

/// Runs these tests on the kernel of a release.
pub fn run(release: &str, which: Which) -> Result<Tally> {
    let kernel = catalog::find(release)?;
    ensure!(cfg!(target_arch = "x86_64"), "kernels are booted on x86_64 only");
    let cache = setup::cache()?.join("kernels");
    let qemu = Qemu::ensure(&cache)?;
    let files = kernel_files(kernel, &cache)?;
    let selection = Selection::new(which);
    let programs = test::built(selection::programs())?;
    let folder = sh::target_dir()?.join("kernels").join(release);
    apt::created(&folder)?;
    let image = image::make(&folder, &files, &programs, &selection.script)?;
    let console = folder.join("console");
    let mut machine = qemu.machine(&image_of(&files)?, &image, &console);
    let report = boot(&mut machine).context("run the tests in QEMU")?;
    let tally = report.evaluate(release, &selection.expected);
    if tally.failed > 0 {
        show_end(&console);
    }
    Ok(tally)
}

/// The folder of a kernel, unpacked from its packages if it is not there yet.
fn kernel_files(kernel: &Kernel, cache: &Path) -> Result<PathBuf> {
    let Kernel { release, of, suite, package } = kernel;
    let folder = cache.join(format!("linux-{release}"));
    if folder.is_dir() {
        return Ok(folder);
    }
    eprintln!("setup: unpacking Linux {release} of {of} in {}: to test with", folder.display());
    let apt = Apt::open(&cache.join(format!("apt-{release}")), suite)?;
    let begun = folder.with_file_name(format!("linux-{release}.new"));
    let _ = fs::remove_dir_all(&begun);
    let image = if kernel.is_fixed() {
        (*package).to_owned()
    } else {
        apt.dependency(package, "linux-image-")?
    };
    // Ubuntu has the modules in a package of their own.
    let modules = apt.dependency(&image, "linux-modules-").ok();
    let packages: Vec<&str> =
        [Some(&image), modules.as_ref()].into_iter().flatten().map(String::as_str).collect();
    apt.unpack(&packages, &begun)?;
    fs::rename(&begun, &folder).with_context(|| format!("make {}", folder.display()))?;
    Ok(folder)
}

/// The kernel itself.
fn image_of(folder: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(folder.join("boot")).context("list the kernel's files")?;
    let mut files = entries.flatten().map(|entry| entry.path());
    let is_image = |file: &PathBuf| {
        file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-"))
    };
    files.find(is_image).with_context(|| format!("{} has no kernel", folder.display()))
}

/// Runs the machine to its end, its lines passing through as they come. One that stops talking is
/// killed.
fn boot(machine: &mut Command) -> Result<Report> {
    sh::echo(machine);
    let mut child = machine.stdout(Stdio::piped()).spawn().context("cannot start QEMU")?;
    let output = child.stdout.take().context("QEMU has no standard output")?;
    let mut report = Report::default();
    let followed = follow(&lines_of(output), &mut report);
    if followed.is_err() {
        kill(&mut child);
    }
    let status = child.wait().context("wait for QEMU")?;
    followed?;
    sh::succeeded(machine, status)?;
    Ok(report)
}

fn kill(child: &mut Child) {
    if let Err(error) = child.kill() {
        eprintln!("kill QEMU, process {}: {error}", child.id());
    }
}

/// The lines of a serial port, which ends them in its own way.
fn lines_of(output: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    lines
}

fn follow(lines: &Receiver<String>, report: &mut Report) -> Result<()> {
    loop {
        match lines.recv_timeout(SILENCE) {
            Ok(line) => {
                println!("{line}");
                report.line(&line);
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Err(RecvTimeoutError::Timeout) => {
                anyhow::bail!("the machine has said nothing for {} min", SILENCE.as_secs() / 60)
            }
        }
    }
}

/// Shows the end of the kernel's console.
fn show_end(console: &Path) {
    let text = fs::read(console).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    eprintln!("the kernel's console, {}, ends with:", console.display());
    for line in &lines[lines.len().saturating_sub(CONSOLE_LINES)..] {
        eprintln!("    {}", line.trim_end());
    }
}
