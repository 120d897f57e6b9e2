//! Package archives of Debian and Ubuntu: where each is, what apt reads of it and what it is signed
//! with. No host is written down here: an address comes from a variable, from this machine's own
//! apt, or from what debootstrap has built in.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use crate::apt::Apt;
use crate::sh;

/// The suites that are known, newest last.
const SUITES: [(&str, Distribution); 6] = [
    ("bullseye", Distribution::Debian),
    ("bookworm", Distribution::Debian),
    ("trixie", Distribution::Debian),
    ("sid", Distribution::Debian),
    ("jammy", Distribution::Ubuntu),
    ("noble", Distribution::Ubuntu),
];
/// The one suite that has neither updates nor security updates: they go straight into it.
const UNSTABLE: &str = "sid";
/// A Debian suite that has Ubuntu's keyring as a package.
const HAS_UBUNTU_KEYS: &str = "trixie";

const DEBIAN_KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const UBUNTU_KEYS: &str = "usr/share/keyrings/ubuntu-archive-keyring.gpg";
const DEBOOTSTRAP_SCRIPTS: &str = "/usr/share/debootstrap/scripts";

/// Prints the mirror that a script of debootstrap names. A script is shell code that calls functions
/// of debootstrap before it defines its own.
const DEFAULT_MIRROR: &str = r#"
default_mirror() { printf '%s\n' "$1"; }
for name in mirror_style download_style finddebs_style variants keyring force_md5 doing_variant; do
    eval "$name() { :; }"
done
FAKECHROOT=true ARCH=$1 SUITE=$2
. "$3"
"#;

/// What is asked of apt about each index it would download; see `man apt-get`, indextargets.
const TARGET_FORMAT: &str = "$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(ORIGIN)|$(LABEL)";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Distribution {
    Debian,
    Ubuntu,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Part {
    /// The suite itself and its updates.
    Main,
    Security,
}

/// A component of an archive that apt is configured to use.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Target {
    address: String,
    suite: String,
    component: String,
    /// `Origin` and `Label` of the archive's Release file, once apt has downloaded it.
    origin: Option<(String, String)>,
}

/// The lines of a `sources.list` for a suite: of Debian main with its updates and security updates,
/// of Ubuntu main and universe with theirs.
pub fn source_list(suite: &str, keyring: &str) -> Result<String> {
    let entries = entries(suite, |part, distribution| {
        let variable = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        address(part, distribution, variable, &targets(), || built_in(distribution, suite))
    })?;
    Ok(render(&entries, distribution(suite)?, keyring))
}

/// The variables that say where a suite's archives are.
pub fn variables(suite: &str) -> &'static str {
    match distribution(suite) {
        Ok(Distribution::Ubuntu) => "SAMPORT_UBUNTU_MIRROR",
        _ => "SAMPORT_DEBIAN_MIRROR and SAMPORT_DEBIAN_SECURITY_MIRROR",
    }
}

/// The keyring that a suite's lists are signed with: this machine's, or for Ubuntu else the one that
/// Debian has as a package, unpacked in a folder where it stays.
pub fn keyring(suite: &str, cache_folder: &Path) -> Result<PathBuf> {
    match distribution(suite)? {
        Distribution::Debian => {
            let file = PathBuf::from(DEBIAN_KEYS);
            ensure!(file.is_file(), "there is no {DEBIAN_KEYS}: install debian-archive-keyring");
            Ok(file)
        }
        Distribution::Ubuntu => {
            let (own, kept) =
                (Path::new("/").join(UBUNTU_KEYS), cache_folder.join("ubuntu-keyring"));
            match [own, kept.join(UBUNTU_KEYS)].into_iter().find(|file| file.is_file()) {
                Some(file) => Ok(file),
                None => ubuntu_keyring(cache_folder, &kept),
            }
        }
    }
}

fn ubuntu_keyring(cache_folder: &Path, to: &Path) -> Result<PathBuf> {
    let begun = to.with_extension("new");
    let _ = fs::remove_dir_all(&begun);
    let apt = Apt::open(&cache_folder.join("apt-keys"), HAS_UBUNTU_KEYS)?;
    apt.unpack(&["ubuntu-keyring"], &begun)?;
    let _ = fs::remove_dir_all(to);
    fs::rename(&begun, to).with_context(|| format!("make {}", to.display()))?;
    Ok(to.join(UBUNTU_KEYS))
}

fn distribution(suite: &str) -> Result<Distribution> {
    let found = SUITES.iter().find(|(name, _)| *name == suite);
    let known = || SUITES.map(|(name, _)| name).join(", ");
    Ok(found.with_context(|| format!("unknown suite \"{suite}\": expected {}", known()))?.1)
}

/// A suite and those that complete it, each with the address of its archive.
fn entries(
    suite: &str,
    address: impl Fn(Part, Distribution) -> Result<String>,
) -> Result<Vec<(String, String)>> {
    let distribution = distribution(suite)?;
    let main = address(Part::Main, distribution)?;
    if suite == UNSTABLE {
        return Ok(vec![(main, suite.to_owned())]);
    }
    let security = address(Part::Security, distribution)?;
    Ok(vec![
        (main.clone(), suite.to_owned()),
        (main, format!("{suite}-updates")),
        (security, format!("{suite}-security")),
    ])
}

fn render(entries: &[(String, String)], distribution: Distribution, keyring: &str) -> String {
    let components = match distribution {
        Distribution::Debian => "main",
        Distribution::Ubuntu => "main universe",
    };
    let line = |(address, suite): &(String, String)| {
        // The lists of a snapshot are older than the time they say they are valid for.
        let check = if is_snapshot(address) { " check-valid-until=no" } else { "" };
        format!("deb [signed-by={keyring}{check}] {address} {suite} {components}\n")
    };
    entries.iter().map(line).collect()
}

/// Whether an address ends with the time of a snapshot: `…/20250520T000000Z`.
fn is_snapshot(address: &str) -> bool {
    let last = address.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let shape: String = last.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    shape == "00000000T000000Z"
}

/// Where a part of a distribution's archive is: as a variable says, else where this machine's apt
/// has it, else where debootstrap would look.
fn address(
    part: Part,
    distribution: Distribution,
    variable: impl Fn(&str) -> Option<String>,
    targets: &[Target],
    built_in: impl FnOnce() -> Option<String>,
) -> Result<String> {
    let (name, path) = match (distribution, part) {
        (Distribution::Debian, Part::Main) => ("SAMPORT_DEBIAN_MIRROR", "debian"),
        (Distribution::Debian, Part::Security) => {
            ("SAMPORT_DEBIAN_SECURITY_MIRROR", "debian-security")
        }
        // Ubuntu has its security updates in the archive itself too.
        (Distribution::Ubuntu, _) => ("SAMPORT_UBUNTU_MIRROR", "ubuntu"),
    };
    if let Some(value) = variable(name) {
        return checked(name, &value);
    }
    if let Some(found) = find(part, distribution, targets) {
        return Ok(found.to_owned());
    }
    // Ubuntu may be configured without its security updates.
    if let (Distribution::Ubuntu, Some(main)) =
        (distribution, find(Part::Main, distribution, targets))
    {
        return Ok(main.to_owned());
    }
    // debootstrap knows of no security archive.
    let is_built_in = (distribution, part) != (Distribution::Debian, Part::Security);
    let Some(found) = is_built_in.then(built_in).flatten() else {
        let what = if is_built_in { "packages" } else { "security updates" };
        bail!(
            "this machine's apt has no archive of {distribution:?}'s {what}; \
             set {name}, like {name}=http://MIRROR/{path}"
        );
    };
    checked("debootstrap", &found)
}

/// An address without the slash at its end, if it looks like one.
fn checked(from: &str, value: &str) -> Result<String> {
    let is_address = value.contains("://") && !value.contains(char::is_whitespace);
    ensure!(
        is_address,
        "invalid {from} \"{value}\": expected an address like http://MIRROR/debian"
    );
    Ok(value.trim_end_matches('/').to_owned())
}

/// The first target that is this part of this distribution's archive.
fn find(part: Part, distribution: Distribution, targets: &[Target]) -> Option<&str> {
    let is_it = |target: &&Target| {
        target.component == "main"
            && is_of(target, distribution)
            && (part == Part::Security) == target.suite.ends_with("-security")
    };
    targets.iter().find(is_it).map(|target| target.address.as_str())
}

/// Whether a target is of a distribution itself, not of somebody who has packages for it.
fn is_of(target: &Target, distribution: Distribution) -> bool {
    match (&target.origin, distribution) {
        (Some((origin, label)), Distribution::Debian) => {
            origin == "Debian" && matches!(label.as_str(), "Debian" | "Debian-Security")
        }
        (Some((origin, label)), Distribution::Ubuntu) => origin == "Ubuntu" && label == "Ubuntu",
        // Before the first `apt-get update`: mirrors keep the names of the folders.
        (None, Distribution::Debian) => {
            has_folder(target, "debian") || has_folder(target, "debian-security")
        }
        (None, Distribution::Ubuntu) => has_folder(target, "ubuntu"),
    }
}

fn has_folder(target: &Target, name: &str) -> bool {
    let (_, path) = target.address.split_once("://").unwrap_or_default();
    path.split('/').skip(1).any(|folder| folder == name)
}

/// What this machine's apt is configured to use, empty where there is no apt.
fn targets() -> Vec<Target> {
    let ask = |options: &[&str]| {
        let mut command = Command::new("apt-get");
        command.env("LC_ALL", "C").arg("indextargets").args(options);
        sh::probe(command.args(["--format", TARGET_FORMAT])).unwrap_or_default()
    };
    // What has been downloaded says who made it; the rest is there with --no-release-info only.
    let known = parse(&ask(&[]), read_mirrors);
    let all = parse(&ask(&["--no-release-info"]), read_mirrors);
    merge(known, all)
}

/// Those whose origin is known, then the others.
fn merge(known: Vec<Target>, all: Vec<Target>) -> Vec<Target> {
    let is_known = |target: &Target| {
        let same = |k: &Target| (&k.address, &k.suite) == (&target.address, &target.suite);
        known.iter().any(same)
    };
    let others: Vec<_> = all.into_iter().filter(|target| !is_known(target)).collect();
    known.into_iter().chain(others).collect()
}

/// Reads lines of [`TARGET_FORMAT`]. A field that apt does not know stays as it is in the format.
fn parse(output: &str, read_mirrors: impl Fn(&str) -> Option<String>) -> Vec<Target> {
    let mut targets = Vec::new();
    for line in output.lines() {
        let fields: Vec<&str> = line.split('|').collect();
        let [address, suite, component, origin, label] = fields[..] else { continue };
        let Some(address) = usable(address, &read_mirrors) else { continue };
        let is_known = !origin.starts_with("$(") && !label.starts_with("$(");
        let origin = is_known.then(|| (origin.to_owned(), label.to_owned()));
        let (suite, component) = (suite.to_owned(), component.to_owned());
        let target = Target { address, suite, component, origin };
        if !targets.contains(&target) {
            targets.push(target);
        }
    }
    targets
}

/// An address that works on another root file system too: a file of mirrors, as images for clouds
/// have it, stands for the first of them, and a disk is of no use.
fn usable(address: &str, read_mirrors: impl Fn(&str) -> Option<String>) -> Option<String> {
    let address = address.trim_end_matches('/');
    let Some(file) = address.strip_prefix("mirror+file:") else {
        return ["http://", "https://"]
            .iter()
            .any(|scheme| address.starts_with(scheme))
            .then(|| address.to_owned());
    };
    let text = read_mirrors(&format!("/{}", file.trim_start_matches('/')))?;
    let mut lines = text.lines().map(str::trim);
    let first = lines.find(|line| !line.is_empty() && !line.starts_with('#'))?;
    let first = first.split_whitespace().next()?;
    Some(first.trim_end_matches('/').to_owned())
}

fn read_mirrors(file: &str) -> Option<String> {
    fs::read_to_string(file).ok()
}

/// Where debootstrap looks for a suite, if it is installed and has one built in for it. An older one
/// knows an older suite of the same archive.
fn built_in(distribution: Distribution, suite: &str) -> Option<String> {
    let same = SUITES.iter().filter(|(_, of)| *of == distribution).map(|(name, _)| *name);
    let scripts =
        [suite].into_iter().chain(same).map(|s| (s, Path::new(DEBOOTSTRAP_SCRIPTS).join(s)));
    let (suite, script) = scripts.into_iter().find(|(_, script)| script.is_file())?;
    default_mirror(&script, suite)
}

fn default_mirror(script: &Path, suite: &str) -> Option<String> {
    let architecture = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let mut command = Command::new("sh");
    command.args(["-c", DEFAULT_MIRROR, "sh", architecture, suite]).arg(script);
    // The end of a script may fail without the rest of debootstrap: only what it prints counts.
    let output = command.stdin(Stdio::null()).output().ok()?;
    let output = String::from_utf8(output.stdout).ok()?;
    output.lines().next().map(str::to_owned)
}

#[cfg(test)]
mod tests;
