//! What a lab and the samport in it have made on the machine, by identity, and whether it is gone afterwards. What
//! others make and remove meanwhile, another samport or another lab too, is neither looked for nor counted.

use std::fmt;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use super::namespace::names;
use super::traces::{listed, objects_of, text};
use super::{Builder, Namespace, Traces, output_of};
use crate::dataplane::objects::Objects;

/// How long the kernel may take to free what its last user has let go of.
const SETTLE: Duration = Duration::from_secs(5);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// What a lab and the samport in it have had so far.
///
/// BPF objects are known by their ids, which are looked up while samport has them. One that is made and left between
/// two looks is found all the same, if it keeps one that was seen, as every program of samport's keeps its maps and
/// every link its program. Names in bpffs and `/run` end with the namespace's inode, programs and qdiscs are on the
/// devices of the lab's host: so these are compared while the host is there. Namespaces and devices are the lab's by
/// its prefix.
#[derive(Debug)]
pub struct Footprint {
    prefix: String,
    /// What the host had before samport was started.
    before: Traces,
    objects: Objects,
}

impl Footprint {
    /// Of a lab that is about to be built.
    #[must_use]
    pub fn of(lab: &Builder) -> Self {
        Self::with_prefix(lab.prefix())
    }

    /// Of a lab with this prefix, and one of its hosts.
    #[must_use]
    pub fn with_prefix(prefix: &str) -> Self {
        let prefix = prefix.to_owned();
        Self { prefix, before: Traces::new(), objects: Objects::default() }
    }

    /// Looks at the lab's host before samport is started in it.
    pub fn look_before(&mut self, host: &Namespace) -> Result<()> {
        self.before = host.traces()?;
        Ok(())
    }

    /// Looks at what samport has now: to be called while it runs, after each change.
    pub fn look(&mut self, host: &Namespace) -> Result<()> {
        self.objects.extend(&objects_of(host)?);
        Ok(())
    }

    /// What samport has left, to be asked after its end and before the lab's.
    pub fn left_by_samport(&self, host: &Namespace) -> Result<Vec<String>> {
        let mut left = self.objects.left()?.described();
        left.extend(host.traces()?.difference(&self.before).cloned());
        Ok(left)
    }

    /// What the lab has left, to be asked after its end: names of namespaces, and devices that are in the caller's.
    pub fn left_by_lab(&self) -> Result<Vec<String>> {
        let is_ours = |name: &str| name.starts_with(&self.prefix);
        let namespaces = names()?.into_iter().filter(|name| is_ours(name));
        let mut left: Vec<String> = namespaces.map(|name| format!("namespace {name}")).collect();
        let devices = listed(&output_of(Command::new("ip").args(["-j", "link", "show"]))?)?;
        let devices = devices.iter().filter(|device| is_ours(text(device, "ifalias")));
        left.extend(devices.map(|device| {
            format!("device {} ({})", text(device, "ifname"), text(device, "ifalias"))
        }));
        Ok(left)
    }

    /// Waits until samport has left nothing; an error names what is left.
    pub fn wait_for_samport(&self, host: &Namespace) -> Result<()> {
        let mut left = wait_until_gone(|| self.left_by_samport(host))?;
        if left.is_empty() {
            return Ok(());
        }
        let seen = self.objects.left()?;
        let mut all = seen.clone();
        all.add_keepers()?;
        left.extend(all.without(&seen).described().iter().map(|one| format!("kept by {one}")));
        bail!("left behind by samport:\n  {}", left.join("\n  "))
    }

    /// Waits until the lab has left nothing; an error names what is left.
    pub fn wait_for_lab(&self) -> Result<()> {
        let left = wait_until_gone(|| self.left_by_lab())?;
        ensure!(left.is_empty(), "left behind by the lab:\n  {}", left.join("\n  "));
        Ok(())
    }
}

/// How much there was of samport's in the kernel.
impl fmt::Display for Footprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.objects.fmt(f)
    }
}

/// What is left when the kernel has had its time.
fn wait_until_gone(left: impl Fn() -> Result<Vec<String>>) -> Result<Vec<String>> {
    let begin = Instant::now();
    loop {
        let left = left()?;
        if left.is_empty() || begin.elapsed() > SETTLE {
            return Ok(left);
        }
        thread::sleep(PAUSE);
    }
}
