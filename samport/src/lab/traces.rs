//! What samport has in one network namespace: by its name or place, and by the kernel's ids.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::{Namespace, output_of};
use crate::dataplane::objects::Objects;
use crate::dataplane::{Tcx, pins, programs_at_tcx};
use crate::system::instance;

const PINS: &str = "/sys/fs/bpf/samport";
const RUN: &str = "/run/samport";

/// What has a name or a place, each as one line.
pub type Traces = BTreeSet<String>;

impl Namespace {
    /// Inode of the namespace. The names of samport's instances in it end with it, and no other namespace has it
    /// as long as this one is there.
    pub fn inode(&self) -> Result<u64> {
        // The thread's, not the process's: that one is elsewhere.
        let path = "/proc/thread-self/ns/net";
        let metadata = self.run(|| fs::metadata(path)).with_context(|| format!("read {path}"))?;
        Ok(metadata.ino())
    }

    /// Pins and records of the instances in it, and the programs, filters and qdiscs on its devices.
    pub fn traces(&self) -> Result<Traces> {
        let of_instance = format!("@{}", self.inode()?);
        let mut found = Traces::new();
        for path in [names(RUN)?, names(PINS)?].concat() {
            if path.to_string_lossy().contains(&of_instance) {
                found.insert(path.display().to_string());
                found.extend(names(&path)?.iter().map(|pin| pin.display().to_string()));
            }
        }
        for device in listed(&self.ip(&["-j", "-d", "link", "show"])?)? {
            let name = text(&device, "ifname");
            if let Some(xdp) = device.get("xdp") {
                found.insert(format!("xdp of {name}: program {}", xdp["prog"]["id"]));
            }
            for (hook, id, program) in self.run(|| tcx_of(name))? {
                found.insert(format!("tcx {hook} of {name}: program {id} {program}"));
            }
            for hook in ["ingress", "egress"] {
                let filters = self.tc(&["filter", "show", "dev", name, hook])?;
                found.extend(filters.lines().map(|line| format!("tc {hook} of {name}: {line}")));
            }
        }
        let qdiscs = self.tc(&["qdisc", "show"])?;
        found.extend(qdiscs.lines().filter(|line| line.contains("clsact")).map(str::to_owned));
        Ok(found)
    }

    fn tc(&self, args: &[&str]) -> Result<String> {
        output_of(Command::new("tc").args(["-n", self.name()]).args(args))
    }
}

fn tcx_of(device: &str) -> Result<Vec<(&'static str, u32, String)>> {
    match programs_at_tcx(device) {
        Ok(programs) => Ok(programs),
        Err(Tcx::Unknown(why)) => bail!("programs at tcx of {device}: {why}"),
        Err(_) => Ok(Vec::new()),
    }
}

/// BPF objects of the instances in a namespace: those their processes have descriptors of, those that are pinned,
/// and what goes with them.
pub fn objects_of(namespace: &Namespace) -> Result<Objects> {
    let of_instance = format!("@{}", namespace.inode()?);
    let mut objects = Objects::default();
    for name in pins::instances().into_iter().filter(|name| name.ends_with(&of_instance)) {
        objects.extend(&Objects::pinned_in(&pins::folder_of(&name))?);
    }
    for name in instance::known().into_iter().filter(|name| name.ends_with(&of_instance)) {
        if instance::is_running(&name) {
            objects.extend(&Objects::held_by(instance::read_record(&name)?.pid)?);
        }
    }
    objects.add_programs_and_maps()?;
    Ok(objects)
}

/// Paths in a folder; none if it is no folder or not there.
fn names(folder: impl AsRef<Path>) -> Result<Vec<PathBuf>> {
    let folder = folder.as_ref();
    match fs::read_dir(folder) {
        Ok(entries) => Ok(entries.flatten().map(|entry| entry.path()).collect()),
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Ok(Vec::new()),
            _ => Err(error).with_context(|| format!("list {}", folder.display())),
        },
    }
}

/// What `ip -j` or `tc -j` has printed.
pub(super) fn listed(output: &str) -> Result<Vec<Value>> {
    // Nothing at all rather than an empty list, from some versions.
    if output.trim().is_empty() {
        return Ok(Vec::new());
    }
    serde_json::from_str(output).with_context(|| format!("read JSON: {output}"))
}

pub(super) fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or("?")
}
