//! What a run may leave on a machine, as `ip`, `tc` and the file system show it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::namespace::own_prefix;
use super::{NETNS_DIR, output_of};

/// Where samport pins its programs, links and maps.
const PINS: &str = "/sys/fs/bpf/samport";

/// Namespaces, links, qdiscs and pins at one moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Footprint(BTreeSet<String>);

impl Footprint {
    /// Looks around: in the caller's namespace and in those that this process has made. Namespaces
    /// of others change at any time and are none of our business.
    pub fn take() -> Result<Self> {
        let mut found = BTreeSet::new();
        look_in(&mut found, None)?;
        for name in own_namespaces()? {
            found.insert(format!("namespace {name}"));
            // Another thread's lab may go away in between: nothing to record.
            let _ = look_in(&mut found, Some(&name));
        }
        pins(&mut found, Path::new(PINS))?;
        Ok(Self(found))
    }

    /// How many things of each kind there are.
    #[must_use]
    pub fn summary(&self) -> String {
        let count = |kind: &str| self.0.iter().filter(|thing| thing.starts_with(kind)).count();
        let kinds = ["namespace", "link", "qdisc", "pin"];
        kinds.map(|kind| format!("{} {kind}s", count(kind))).join(", ")
    }

    /// What was not there before (`+`) and what is no longer there (`-`).
    #[must_use]
    pub fn changes_since(&self, before: &Self) -> Vec<String> {
        let more = self.0.difference(&before.0).map(|thing| format!("+ {thing}"));
        let less = before.0.difference(&self.0).map(|thing| format!("- {thing}"));
        more.chain(less).collect()
    }
}

fn own_namespaces() -> Result<Vec<String>> {
    if !Path::new(NETNS_DIR).exists() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(NETNS_DIR).with_context(|| format!("list {NETNS_DIR}"))?;
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    Ok(names.filter(|name| name.starts_with(&own_prefix())).collect())
}

fn look_in(found: &mut BTreeSet<String>, namespace: Option<&str>) -> Result<()> {
    let place = namespace.unwrap_or("here");
    let links = listing("ip", &["-j", "-d", "link", "show"], namespace)?;
    for link in links.as_array().into_iter().flatten() {
        let xdp = if link.get("xdp").is_some() { " with XDP" } else { "" };
        found.insert(format!("link {}{xdp} ({place})", text(link, "ifname")));
    }
    let qdiscs = listing("tc", &["-j", "qdisc", "show"], namespace)?;
    for qdisc in qdiscs.as_array().into_iter().flatten() {
        let (kind, device) = (text(qdisc, "kind"), text(qdisc, "dev"));
        found.insert(format!("qdisc {kind} on {device} ({place})"));
    }
    Ok(())
}

fn listing(program: &str, args: &[&str], namespace: Option<&str>) -> Result<Value> {
    let mut command = Command::new(program);
    if let Some(namespace) = namespace {
        command.args(["-n", namespace]);
    }
    let output = output_of(command.args(args))?;
    serde_json::from_str(&output).with_context(|| format!("read the JSON of {program}"))
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or("?")
}

fn pins(found: &mut BTreeSet<String>, folder: &Path) -> Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    found.insert(format!("pin {}", folder.display()));
    let entries = fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            pins(found, &path)?;
        } else {
            found.insert(format!("pin {}", path.display()));
        }
    }
    Ok(())
}
