//! apt: what an installation would do, and doing it.

mod summary;

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

pub use self::summary::Summary;
use super::programs;
use super::progress::Progress;
use crate::sh;

/// Runs as root: apt-get, without starting the services that packages bring.
const SCRIPT: &str = include_str!("apt/run.sh");

/// Whether this is a system with Debian's package manager.
pub fn is_there() -> bool {
    sh::find("apt-get").is_some()
}

/// Whether the archive offers a package, and in which version.
pub fn candidate(package: &str) -> Option<String> {
    let policy = sh::probe(Command::new("apt-cache").args(["policy", package]).env("LC_ALL", "C"))?;
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    (version != "(none)").then(|| version.to_owned())
}

/// What a package depends on, in the version that would be installed.
pub fn depends(package: &str) -> Vec<String> {
    let output = sh::probe(Command::new("apt-cache").args(["depends", package]).env("LC_ALL", "C"));
    crate::apt::dependencies(&output.unwrap_or_default()).map(str::to_owned).collect()
}

/// Whether a package is installed.
pub fn is_installed(package: &str) -> bool {
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat=${db:Status-Status}", package]);
    sh::probe(&mut query).is_some_and(|status| status == "installed")
}

/// Fetches the lists of packages.
///
/// # Errors
/// Nothing could be fetched. A source that fails beside others that do not is only a warning: it may have nothing that
/// is needed.
pub fn update() -> Result<()> {
    eprintln!("setup: fetching the lists of packages (apt-get update)");
    let mut apt = sh::as_root("env")?;
    apt.args(["LC_ALL=C", "apt-get", "update"]);
    // By itself it ends with 0 when nothing could be fetched.
    apt.args(["-o", "APT::Update::Error-Mode=any", "-o", "Acquire::Retries=1"]);
    let output = apt.stdin(Stdio::null()).output().context("cannot start apt-get")?;
    if output.status.success() {
        return Ok(());
    }
    let [stdout, stderr] =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    let cause = summary::cause(&stderr);
    if stdout.lines().any(|line| line.starts_with("Hit:") || line.starts_with("Get:")) {
        eprintln!("setup: warning: a source of packages could not be fetched: {cause}");
        return Ok(());
    }
    bail!("cannot fetch the lists of packages: {cause}; is there a network?")
}

/// What installing packages would do. Changes nothing.
///
/// # Errors
/// apt-get refuses, for example since there is no such package.
pub fn simulate(packages: &[&str]) -> Result<Summary> {
    let mut apt = Command::new("apt-get");
    apt.args(["install", "--print-uris", "--no-install-recommends"]).args(packages);
    let output = apt.env("LC_ALL", "C").stdin(Stdio::null()).output();
    let output = output.context("cannot start apt-get")?;
    if !output.status.success() {
        let cause = summary::cause(&String::from_utf8_lossy(&output.stderr));
        bail!("apt-get cannot install {}: {cause}", packages.join(" "));
    }
    Ok(Summary::of(&String::from_utf8_lossy(&output.stdout)))
}

/// Installs packages, without what they recommend and without starting or enabling their services. What apt-get says goes
/// to the log.
pub fn install(packages: &[&str], new: &[String], log: &Path) -> Result<()> {
    let units = programs::units(new.iter().map(String::as_str)).join(" ");
    let arguments = ["install", "--no-install-recommends"];
    run(&[&arguments[..], packages].concat(), &units, log)
}

/// Removes packages with their configuration.
pub fn purge(packages: &[&str], log: &Path) -> Result<()> {
    run(&[&["purge"][..], packages].concat(), "", log)
}

/// Those of these packages that can be removed without any other: all of them, unless something that was installed later
/// needs one.
pub fn removable(packages: &[&str]) -> Result<Vec<String>> {
    let simulation = |options: &[&str], packages: &[&str]| {
        let mut apt = Command::new("apt-get");
        apt.args(options).arg("--simulate").args(packages).env("LC_ALL", "C");
        sh::probe(&mut apt).with_context(|| format!("`{}` failed", sh::text(&apt)))
    };
    let all = simulation(&["purge"], packages)?;
    if summary::removed(&all).all(|name| packages.contains(&name)) {
        return Ok(packages.iter().map(|name| (*name).to_owned()).collect());
    }
    // What was not asked for and nothing needs, once the system forgets that these were asked for. Nothing was
    // installed because of a recommendation.
    let mut mark = sh::as_root("apt-mark")?;
    sh::quietly(mark.arg("auto").args(packages))?;
    let options = [
        "-o",
        "APT::AutoRemove::RecommendsImportant=false",
        "-o",
        "APT::AutoRemove::SuggestsImportant=false",
        "autoremove",
    ];
    let superfluous = simulation(&options, &[])?;
    let names = summary::removed(&superfluous).filter(|name| packages.contains(name));
    Ok(names.map(str::to_owned).collect())
}

fn run(arguments: &[&str], units: &str, log: &Path) -> Result<()> {
    let mut shell = sh::as_root("sh")?;
    shell.args(["-c", SCRIPT, "samport-setup"]).arg(log).arg(units).args(arguments);
    shell.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = shell.spawn().context("cannot start apt-get")?;
    let output = child.stdout.take().context("apt-get has no standard output")?;
    let mut progress = Progress::new("apt-get");
    for line in BufReader::new(output).lines() {
        if let Some((percent, text)) = summary::status(&line.context("read apt-get's output")?) {
            progress.show(percent, &text);
        }
    }
    progress.end();
    let status = child.wait().context("wait for apt-get")?;
    if status.success() {
        return Ok(());
    }
    let text = std::fs::read_to_string(log).unwrap_or_default();
    bail!(
        "apt-get {}: {}; all that it said: {}",
        arguments[0],
        summary::cause(&text),
        log.display()
    )
}
