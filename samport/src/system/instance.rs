//! One running samport: its name, its lock and the record others read of it.
//!
//! The name says which interfaces and ports it serves in which network namespace, so that two
//! instances for the same thing have the same name. The lock is held as long as the process lives;
//! an instance whose lock is free is a leftover.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Permissions};
use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::{
    DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _,
    PermissionsExt as _,
};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::model::allow::Networks;
use crate::model::limits::Limits;
use crate::model::overrides::Overrides;
use crate::model::ports::Listen;
use crate::plan::{IdManifest, Role};
use crate::system::exit::{Exit, coded};
use crate::system::privileges::Privileges;
use crate::system::shared_folder::{self, SharedFolder};

/// Where locks and records are kept.
pub const RUN: &str = "/run/samport";
/// The modes of that folder, and of what is in it.
const FOLDER_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;
/// How often, and how long apart, a lock is tried before it counts as held.
const LOCK_TRIES: u32 = 10;
/// Longest path of a socket: `sun_path` with its zero (unix(7)).
const LONGEST_SOCKET: usize = 107;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// A running instance. Dropping it removes its record and releases its lock.
pub struct Instance {
    name: String,
    lock: File,
    keep: bool,
}

/// What an instance says of itself to `status`, `clean` and other instances.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Version of this format.
    pub schema: u32,
    /// Process id.
    pub pid: u32,
    /// Version of samport.
    pub version: String,
    /// Version of its maps' layout; 0 for those that were before anybody took over.
    #[serde(default)]
    pub layout: u32,
    /// Inode of the network namespace it works in.
    pub namespace: u64,
    /// Interfaces clients come in by.
    pub interfaces: Vec<String>,
    /// Ports it serves.
    pub ports: Vec<Listen>,
    /// Those of them that it serves on the addresses inside of the machine too.
    #[serde(default)]
    pub inside: BTreeSet<Listen>,
    /// How its programs are attached.
    pub hook: String,
    /// Whether clients on the machine itself are served.
    #[serde(default)]
    pub local: bool,
    /// Its control socket.
    #[serde(default)]
    pub socket: PathBuf,
    /// When it was started, in milliseconds since 1970.
    #[serde(default)]
    pub started_ms: u64,
    /// How much it remembers, and for how long.
    #[serde(default)]
    pub limits: Limits,
    /// The file of the seed that its choices by hash are keyed by; empty for one that knows no seed.
    #[serde(default)]
    pub hash_seed_file: PathBuf,
    /// What its process may do.
    #[serde(default)]
    pub privileges: Option<Privileges>,
    /// Its services.
    #[serde(default)]
    pub services: Vec<ServiceRecord>,
    /// This node's name, if it has a cluster.
    #[serde(default)]
    pub node: Option<String>,
    /// The other nodes.
    #[serde(default)]
    pub nodes: Vec<NodeRecord>,
    /// Netlink filters, which nothing else would find again.
    pub filters: Vec<FilterRecord>,
    /// Backends by the id the kernel counts them under.
    pub backends: Vec<BackendRecord>,
    /// Who is meant by the kernel's numbers: for who takes over.
    #[serde(default)]
    pub ledger: IdManifest,
    /// What the operator has ordered.
    #[serde(default)]
    pub orders: Overrides,
    /// Containers that are left out, and why; not all of them, if they are very many.
    #[serde(default)]
    pub left_out: Vec<String>,
    /// What labels restrict ports to: JSON has only strings for keys.
    #[serde(default)]
    pub restricted: Vec<(Listen, Networks)>,
}

/// Another node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeRecord {
    /// What it is called.
    pub name: String,
    /// Where its tunnel ends.
    pub address: SocketAddr,
    /// Whether it answers probes.
    pub up: bool,
    /// Whether it says that it is drained.
    #[serde(default)]
    pub drains: bool,
    /// Since when it does, or does not, in milliseconds since 1970; 0 for one that was not probed yet.
    pub since_ms: u64,
    /// Bytes of the largest IP packet that arrives there whole, if that is known.
    pub path_mtu: Option<u16>,
    /// The number of its ready containers behind each port.
    pub services: BTreeMap<Listen, u32>,
}

/// A service.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ServiceRecord {
    /// What clients dial.
    pub listen: Listen,
    /// What its containers call it, if they do.
    pub name: Option<String>,
    /// How it chooses.
    pub balance: String,
}

/// A tc filter of ours.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FilterRecord {
    /// Which of our programs it is.
    #[serde(default)]
    pub role: Option<Role>,
    /// Device.
    pub ifindex: u32,
    /// At egress rather than ingress.
    pub egress: bool,
    /// Priority the kernel gave it.
    pub priority: u16,
    /// Handle the kernel gave it.
    pub handle: u32,
    /// Whether the clsact qdisc under it is ours too.
    pub made_qdisc: bool,
}

/// A backend under its kernel id.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BackendRecord {
    /// Index into `BACKENDS` and `BACKEND_STATS`; 0 for one that is not in the kernel yet.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// The port it serves.
    pub port: Listen,
    /// Where it answers.
    pub endpoint: String,
    /// Its weight.
    pub weight: u32,
    /// The name of a [`crate::model::State`].
    pub state: String,
    /// The name of a [`crate::plan::Route`]; empty for one that is not in the kernel yet.
    pub via: String,
    /// Whether its answers find their way to outside clients, as far as that is known and matters.
    #[serde(default)]
    pub route_back: Option<bool>,
}

impl Instance {
    /// Takes the lock of the instance with this name.
    ///
    /// # Errors
    /// [`Exit::Conflict`] if a process holds it; the message names it.
    pub fn claim(name: &str) -> Result<Self> {
        make_folder().with_context(|| format!("cannot make {RUN}"))?;
        let path = lock_path(name);
        loop {
            let mut options = File::options();
            options.create(true).truncate(false).read(true).write(true).mode(FILE_MODE);
            let lock =
                options.open(&path).with_context(|| format!("cannot open {}", path.display()))?;
            if !locks_soon(&lock) {
                let pid = read_record(name).map(|record| record.pid).unwrap_or_default();
                return Err(coded(
                    Exit::Conflict,
                    format!("samport {name} is running already (pid {pid}); stop it first"),
                ));
            }
            // The one before us may have removed the file between our open and our lock.
            let same = fs::metadata(&path)
                .is_ok_and(|on_disk| lock.metadata().is_ok_and(|ours| ours.ino() == on_disk.ino()));
            if same {
                return Ok(Self { name: name.to_owned(), lock, keep: false });
            }
        }
    }

    /// The instance's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its control socket is by default. A name that is too long for a socket's is
    /// not used.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        let path = Path::new(RUN).join(format!("{}.sock", self.name));
        if path.as_os_str().len() <= LONGEST_SOCKET {
            return path;
        }
        Path::new(RUN).join(format!("{}.sock", std::process::id()))
    }

    /// Writes the record, whole or not at all.
    pub fn write(&self, record: &Record) -> Result<()> {
        let path = record_path(&self.name);
        let new = path.with_extension("new");
        let text = serde_json::to_vec_pretty(record).context("cannot encode the record")?;
        // One that was left half written may have another mode.
        let _ = fs::remove_file(&new);
        let mut options = File::options();
        options.create_new(true).write(true).mode(FILE_MODE);
        options
            .open(&new)
            .and_then(|mut file| file.write_all(&text))
            .and_then(|()| fs::rename(&new, &path))
            // On a full disk there is a part of it.
            .inspect_err(|_| drop(fs::remove_file(&new)))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Leaves the record behind for `clean` and for who takes over, or does not.
    pub fn keep(&mut self, keep: bool) {
        self.keep = keep;
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        // While the lock is still held: whoever waits for it finds a clean place.
        if let Ok(record) = read_record(&self.name) {
            remove_socket(&record);
        }
        // Whatever the record says, or if it cannot be read.
        remove_dead_socket(&self.socket());
        let (record, progress) = (record_path(&self.name), progress_path(&self.name));
        // Drafts too, of one that was killed while it wrote.
        let drafts = [record.with_extension("new"), progress_draft(&progress)];
        for path in [record, progress].iter().chain(&drafts) {
            let _ = fs::remove_file(path);
        }
        let _ = fs::remove_file(lock_path(&self.name));
        let _ = rustix::fs::flock(&self.lock, FlockOperation::Unlock);
        shared_folder::remove_unused(Path::new(RUN));
    }
}

/// Makes the folder of locks and records, and keeps it there as long as the result lives.
///
/// # Errors
/// It cannot be made.
pub fn hold_folder() -> Result<SharedFolder> {
    let held = make_folder().and_then(|()| SharedFolder::hold(Path::new(RUN)));
    held.with_context(|| format!("cannot make {RUN}"))
}

/// Where killed instances have their control sockets, if that is not the folder of records: whoever takes over
/// from them, or from their names, removes them.
#[must_use]
pub fn folders_of_abandoned_sockets() -> BTreeSet<PathBuf> {
    let abandoned = known().into_iter().filter(|name| !is_running(name));
    let records = abandoned.filter_map(|name| read_record(&name).ok());
    let folders = records.filter_map(|record| Some(record.socket.parent()?.to_owned()));
    folders.filter(|folder| folder != Path::new(RUN) && folder.is_dir()).collect()
}

/// Makes the folder, for us alone: whoever can open a lock can hold it, and keep the next samport from starting.
fn make_folder() -> io::Result<()> {
    if let Err(error) = fs::DirBuilder::new().mode(FOLDER_MODE).create(RUN)
        && error.kind() != io::ErrorKind::AlreadyExists
    {
        return Err(error);
    }
    let metadata = fs::metadata(RUN)?;
    // Made by Docker as a mount, or by a samport of before.
    if metadata.mode() & 0o077 != 0 && metadata.uid() == rustix::process::geteuid().as_raw() {
        fs::set_permissions(RUN, Permissions::from_mode(FOLDER_MODE))?;
    }
    Ok(())
}

/// Whether this user may see which instances there are.
///
/// # Errors
/// [`Exit::Privileges`] if not.
pub fn check_visible() -> Result<()> {
    match fs::read_dir(RUN) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(coded(Exit::Privileges, format!("{RUN} is root's; run it as root, with sudo")))
        }
        _ => Ok(()),
    }
}

/// Removes the control socket a record names. It may be gone, or be another instance's, already.
pub fn remove_socket(record: &Record) {
    remove_dead_socket(&record.socket);
}

fn remove_dead_socket(path: &Path) {
    let metadata = fs::symlink_metadata(path);
    let is_socket = metadata.is_ok_and(|metadata| metadata.file_type().is_socket());
    if is_socket && UnixStream::connect(path).is_err() {
        let _ = fs::remove_file(path);
    }
}

/// Takes a lock, unless somebody holds it. Who only looks whether it is held holds it for a moment.
fn locks_soon(lock: &File) -> bool {
    (0..LOCK_TRIES).any(|attempt| {
        if attempt > 0 {
            std::thread::sleep(LOCK_PAUSE);
        }
        rustix::fs::flock(lock, FlockOperation::NonBlockingLockExclusive).is_ok()
    })
}

/// The name for serving these ports on these interfaces in this network namespace, like
/// `eth0:80+53udp@4026531840`. Only characters that bpffs takes.
#[must_use]
pub fn name_for(interfaces: &[String], ports: &[Listen], namespace: u64) -> String {
    let (mut interfaces, mut ports) = (interfaces.to_vec(), ports.to_vec());
    interfaces.sort();
    ports.sort_unstable();
    let interfaces = interfaces.join("+");
    let plain: String =
        interfaces.chars().map(|c| if c == '.' || c == '/' { '_' } else { c }).collect();
    let brief = |port: &Listen| port.brief().replace('/', "").replace('.', "_");
    let ports: Vec<String> = ports.iter().map(brief).collect();
    let ports = if ports.is_empty() { "labels".to_owned() } else { ports.join("+") };
    format!("{plain}:{ports}@{namespace}")
}

/// Refuses to serve what another running instance in this namespace serves.
///
/// # Errors
/// [`Exit::Conflict`], naming the other one.
pub fn refuse_overlap(
    interfaces: &[String],
    ports: &[Listen],
    namespace: u64,
    own: Option<&str>,
) -> Result<()> {
    let others = known().into_iter().filter(|name| Some(name.as_str()) != own);
    for name in others.filter(|name| is_running(name)) {
        let Ok(other) = read_record(&name) else { continue };
        if other.pid == std::process::id() {
            continue;
        }
        if other.namespace == namespace
            && let Some((port, theirs)) = clash(interfaces, ports, &other)
        {
            let [port, theirs] = [port, theirs].map(Listen::brief);
            let whose = if port == theirs { String::new() } else { format!(" with {theirs}") };
            return Err(coded(
                Exit::Conflict,
                format!(
                    "port {port} on {} is served by samport {name} (pid {}){whose}; stop it, or choose \
                     another port",
                    other.interfaces.join(", "),
                    other.pid
                ),
            ));
        }
    }
    Ok(())
}

/// A port of ours and one of another instance's that mean the same packets: on a common interface every
/// common address, elsewhere one that is given to both.
fn clash(interfaces: &[String], ports: &[Listen], other: &Record) -> Option<(Listen, Listen)> {
    let meet = interfaces.iter().any(|interface| other.interfaces.contains(interface));
    let pairs = ports.iter().flat_map(|port| other.ports.iter().map(|theirs| (*port, *theirs)));
    let clashes = |(port, theirs): &(Listen, Listen)| {
        port.overlaps(*theirs) && (meet || port == theirs && port.addr.is_some())
    };
    pairs.into_iter().find(clashes)
}

/// Inode of the network namespace this process is in.
pub fn network_namespace() -> Result<u64> {
    let metadata = fs::metadata("/proc/self/ns/net").context("cannot look at /proc/self/ns/net")?;
    Ok(metadata.ino())
}

/// A path to the network namespace with this inode, if any process or name holds it.
#[must_use]
pub fn path_of_namespace(inode: u64) -> Option<PathBuf> {
    let of_processes = fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| {
        entry.file_name().to_str()?.parse::<u32>().ok()?;
        Some(entry.path().join("ns/net"))
    });
    let named = ["/run/netns", "/run/docker/netns"]
        .into_iter()
        .flat_map(|folder| fs::read_dir(folder).into_iter().flatten().flatten())
        .map(|entry| entry.path());
    named
        .chain(of_processes)
        .find(|path| fs::metadata(path).is_ok_and(|metadata| metadata.ino() == inode))
}

/// The record of an instance, if there is one that can be read.
pub fn read_record(name: &str) -> Result<Record> {
    let path = record_path(name);
    let mut text = String::new();
    File::open(&path)
        .and_then(|mut file| file.read_to_string(&mut text))
        .with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("cannot understand {}", path.display()))
}

/// Whether some samport of this network namespace has made the clsact qdisc of a device.
#[must_use]
pub fn made_qdisc_on(ifindex: u32) -> bool {
    let Ok(here) = network_namespace() else { return false };
    known().iter().filter_map(|name| read_record(name).ok()).any(|record| {
        record.namespace == here
            && record.filters.iter().any(|filter| filter.ifindex == ifindex && filter.made_qdisc)
    })
}

/// Whether a process holds the instance's lock.
#[must_use]
pub fn is_running(name: &str) -> bool {
    let Ok(lock) = File::open(lock_path(name)) else { return false };
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared) {
        Ok(()) => false,
        Err(error) => error == rustix::io::Errno::WOULDBLOCK,
    }
}

/// Names of all instances that have left a lock or a record.
#[must_use]
pub fn known() -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(RUN)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let path = entry.path();
            let ours = path.extension().is_some_and(|e| e == "json" || e == "lock");
            ours.then(|| path.file_stem()?.to_str().map(str::to_owned)).flatten()
        })
        .collect();
    names.sort();
    names.dedup();
    names
}

fn lock_path(name: &str) -> PathBuf {
    Path::new(RUN).join(format!("{name}.lock"))
}

/// Where an instance's control loop writes down how it gets on.
#[must_use]
pub fn progress_path(name: &str) -> PathBuf {
    Path::new(RUN).join(format!("{name}.loop"))
}

/// Where that is written before it takes the place of the one before.
#[must_use]
pub fn progress_draft(path: &Path) -> PathBuf {
    path.with_extension("loop-new")
}

fn record_path(name: &str) -> PathBuf {
    Path::new(RUN).join(format!("{name}.json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_hold_only_what_bpffs_takes_in_one_order() {
        let ports = [Listen::udp(80), Listen::tcp(443), Listen::tcp(80)];
        let name = name_for(&["eth0.100".into(), "br/0".into()], &ports, 42);
        assert_eq!(name, "br_0+eth0_100:80+80udp+443@42");
        let ports = [Listen::tcp(80), Listen::tcp(443), Listen::udp(80)];
        assert_eq!(name, name_for(&["br/0".into(), "eth0.100".into()], &ports, 42));
        let ports = ["198.51.100.7:80/udp", "[::1]:80"].map(|text| text.parse().unwrap());
        assert_eq!(name_for(&["eth0".into()], &ports, 42), "eth0:[::1]:80+198_51_100_7:80udp@42");
    }

    #[test]
    fn ports_clash_on_a_common_interface_and_where_both_are_given_one_address() {
        let listen = |text: &str| -> Listen { text.parse().unwrap() };
        let ports = vec![listen("80"), listen("192.0.2.1:443")];
        let other = Record { interfaces: vec!["eth0".into()], ports, ..Record::default() };
        for (interface, port, theirs) in [
            ("eth0", "80", Some("80")),
            ("eth0", "192.0.2.1:80", Some("80")),
            ("eth0", "443", Some("192.0.2.1:443")),
            ("eth0", "192.0.2.2:443", None),
            ("eth0", "80/udp", None),
            ("eth1", "80", None),
            ("eth1", "192.0.2.1:80", None),
            ("eth1", "443", None),
            ("eth1", "192.0.2.1:443", Some("192.0.2.1:443")),
        ] {
            let found = clash(&[interface.to_owned()], &[listen(port)], &other);
            assert_eq!(
                found,
                theirs.map(|theirs| (listen(port), listen(theirs))),
                "{interface} {port}"
            );
        }
    }
}
