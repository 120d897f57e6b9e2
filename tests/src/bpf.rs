//! The `bpf` system call: programs of somebody else on a tcx hook, the list of those that are there, entries of
//! pinned maps, how often programs have run. Not every distribution
//! has a bpftool that works on any kernel, and none shows all of this.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketType, socket};
use samport::dataplane::objects::{Kind, ids};
use samport::lab::Namespace;

// Numbers of linux/bpf.h.
const BPF_MAP_CREATE: i64 = 0;
const BPF_MAP_LOOKUP_ELEM: i64 = 1;
const BPF_MAP_UPDATE_ELEM: i64 = 2;
const BPF_MAP_DELETE_ELEM: i64 = 3;
const BPF_MAP_GET_NEXT_KEY: i64 = 4;
const BPF_PROG_LOAD: i64 = 5;
const BPF_OBJ_PIN: i64 = 6;
const BPF_OBJ_GET: i64 = 7;
const BPF_PROG_GET_FD_BY_ID: i64 = 13;
const BPF_OBJ_GET_INFO_BY_FD: i64 = 15;
const BPF_PROG_QUERY: i64 = 16;
const BPF_LINK_CREATE: i64 = 28;
const BPF_LINK_DETACH: i64 = 34;
const MAP_TYPE_HASH: u32 = 1;
const PROG_TYPE_SCHED_CLS: u32 = 3;
const PROG_TYPE_XDP: u32 = 6;
const PROG_TYPE_CGROUP_SOCK_ADDR: u32 = 18;
const CGROUP_INET6_CONNECT: u32 = 11;
const TCX_INGRESS: u32 = 46;
const TCX_EGRESS: u32 = 47;
const XDP: u32 = 37;
const XDP_FLAGS_SKB_MODE: u32 = 2;

/// Most programs one hook of one device takes: one less than `BPF_MPROG_MAX` in linux/bpf_mprog.h.
pub const HOOK_LIMIT: usize = 63;

/// A tcx hook.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hook {
    /// What comes in.
    Ingress,
    /// What goes out.
    Egress,
}

/// `union bpf_attr`: as much of it as is used here. What lies behind is zero.
type Attr = [u8; 128];

/// A program of somebody else at tcx ingress of a device: it drops TCP over IPv6 and hands on the
/// rest.
/// Dropping it takes the program off.
#[derive(Debug)]
pub struct Foreign {
    _link: OwnedFd,
}

impl Foreign {
    /// Attaches it behind the programs that are there.
    #[must_use]
    pub fn attach(namespace: &Namespace, device: &str) -> Self {
        Self::linked(namespace, device, [TCX_INGRESS, 0], load)
    }

    /// Attaches one that passes everything on as a device's XDP program, in generic mode.
    #[must_use]
    pub fn attach_xdp(namespace: &Namespace, device: &str) -> Self {
        // r0 = 2 (XDP_PASS); exit
        let pass = || {
            load_as(PROG_TYPE_XDP, &[instruction(0xb7, 0x00, 0, 2), instruction(0x95, 0x00, 0, 0)])
        };
        Self::linked(namespace, device, [XDP, XDP_FLAGS_SKB_MODE], pass)
    }

    /// The same with a program that uses a map and passes everything on.
    #[must_use]
    pub fn attach_using(namespace: &Namespace, device: &str, map: &OwnedFd) -> Self {
        let program = [
            // r1 = the map, in two instructions
            instruction(0x18, 0x11, 0, map.as_raw_fd()),
            instruction(0, 0, 0, 0),
            // r0 = -1 (TCX_NEXT); exit
            instruction(0xb7, 0x00, 0, -1),
            instruction(0x95, 0x00, 0, 0),
        ];
        let load = || load_as(PROG_TYPE_SCHED_CLS, &program);
        Self::linked(namespace, device, [TCX_INGRESS, 0], load)
    }

    /// A link for a hook, with flags of its.
    fn linked(
        namespace: &Namespace,
        device: &str,
        [hook, flags]: [u32; 2],
        load: impl Fn() -> io::Result<OwnedFd> + Sync,
    ) -> Self {
        let attached = namespace.run(|| {
            let program = load()?;
            let mut attr: Attr = [0; 128];
            put(&mut attr, 0, &program.as_raw_fd().cast_unsigned().to_ne_bytes());
            put(&mut attr, 4, &index_of(device)?.to_ne_bytes());
            put(&mut attr, 8, &hook.to_ne_bytes());
            put(&mut attr, 12, &flags.to_ne_bytes());
            open(BPF_LINK_CREATE, &mut attr)
        });
        let link = attached.unwrap_or_else(|e| panic!("attach a program to {device}: {e}"));
        Self { _link: link }
    }
}

/// Takes the program of a pinned link off what it is attached to, as `bpftool link detach` does.
///
/// # Errors
/// Why the kernel refuses.
pub fn detach_link(pin: &Path) -> io::Result<()> {
    let link = open_pin(pin)?;
    let mut attr: Attr = [0; 128];
    put(&mut attr, 0, &link.as_raw_fd().cast_unsigned().to_ne_bytes());
    bpf(BPF_LINK_DETACH, &mut attr).map(drop)
}

/// Most programs one hook of one control group takes (`BPF_CGROUP_MAX_PROGS` in linux/bpf-cgroup.h).
pub const CGROUP_LIMIT: usize = 64;

/// Attaches a program of somebody else, which forbids nothing, to the connect6 hook of a control
/// group. Dropping the link takes it off.
pub fn attach_to_connect6(cgroup: &Path) -> io::Result<OwnedFd> {
    let cgroup = std::fs::File::open(cgroup)?;
    // r0 = 1; exit
    let program = [instruction(0xb7, 0x00, 0, 1), instruction(0x95, 0x00, 0, 0)];
    let mut attr: Attr = [0; 128];
    put(&mut attr, 0, &PROG_TYPE_CGROUP_SOCK_ADDR.to_ne_bytes());
    put(&mut attr, 4, &u32::try_from(program.len()).unwrap_or(0).to_ne_bytes());
    put(&mut attr, 8, &(program.as_ptr() as u64).to_ne_bytes());
    put(&mut attr, 16, &(c"GPL".as_ptr() as u64).to_ne_bytes());
    put(&mut attr, 68, &CGROUP_INET6_CONNECT.to_ne_bytes());
    let program = open(BPF_PROG_LOAD, &mut attr)?;
    let mut attr: Attr = [0; 128];
    put(&mut attr, 0, &program.as_raw_fd().cast_unsigned().to_ne_bytes());
    put(&mut attr, 4, &cgroup.as_raw_fd().cast_unsigned().to_ne_bytes());
    put(&mut attr, 8, &CGROUP_INET6_CONNECT.to_ne_bytes());
    open(BPF_LINK_CREATE, &mut attr)
}

/// Opens what is pinned at a path, whatever its kind.
pub fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr: Attr = [0; 128];
    put(&mut attr, 0, &(path.as_ptr() as u64).to_ne_bytes());
    open(BPF_OBJ_GET, &mut attr)
}

/// Opens a program by its id.
pub fn open_program(id: u32) -> io::Result<OwnedFd> {
    let mut attr: Attr = [0; 128];
    put(&mut attr, 0, &id.to_ne_bytes());
    open(BPF_PROG_GET_FD_BY_ID, &mut attr)
}

/// Pins an object at a path.
pub fn pin(object: &OwnedFd, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr: Attr = [0; 128];
    put(&mut attr, 0, &(path.as_ptr() as u64).to_ne_bytes());
    put(&mut attr, 8, &object.as_raw_fd().cast_unsigned().to_ne_bytes());
    bpf(BPF_OBJ_PIN, &mut attr).map(drop)
}

/// A map, but none of those that have a value for each CPU.
#[derive(Debug)]
pub struct Map {
    fd: OwnedFd,
    /// Lengths in bytes.
    key_len: usize,
    value_len: usize,
}

impl Map {
    /// Opens the map that is pinned at a path.
    pub fn open(path: &Path) -> io::Result<Self> {
        let fd = open_pin(path)?;
        let info = info_of(&fd)?;
        let len = |at| usize::try_from(word(&info, at)).map_err(io::Error::other);
        Ok(Self { key_len: len(8)?, value_len: len(12)?, fd })
    }

    /// Makes a hash table and pins it at a path, where the lengths of a key and a value are in bytes.
    pub fn pin_hash(
        path: &Path,
        name: &str,
        [key_len, value_len, entries]: [u32; 3],
    ) -> io::Result<()> {
        let mut attr: Attr = [0; 128];
        for (index, number) in [MAP_TYPE_HASH, key_len, value_len, entries].into_iter().enumerate()
        {
            put(&mut attr, 4 * index, &number.to_ne_bytes());
        }
        put(&mut attr, 28, name.as_bytes());
        let map = open(BPF_MAP_CREATE, &mut attr)?;
        pin(&map, path)
    }

    /// All values, in the order of the map's keys.
    pub fn values(&self) -> io::Result<Vec<Vec<u8>>> {
        let mut values = Vec::new();
        let mut last = None;
        while let Some(key) = self.key_after(last.as_deref())? {
            match self.value(&key) {
                Ok(value) => values.push(value),
                // Deleted in between.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            last = Some(key);
        }
        Ok(values)
    }

    /// Writes each value again as `change` leaves it.
    pub fn change(&self, change: impl Fn(&mut [u8])) -> io::Result<()> {
        let mut last = None;
        while let Some(key) = self.key_after(last.as_deref())? {
            let mut value = self.value(&key)?;
            change(&mut value);
            bpf(BPF_MAP_UPDATE_ELEM, &mut self.attr_with(&key, &mut value))?;
            last = Some(key);
        }
        Ok(())
    }

    /// The value of a key.
    fn value(&self, key: &[u8]) -> io::Result<Vec<u8>> {
        let mut value = vec![0_u8; self.value_len];
        bpf(BPF_MAP_LOOKUP_ELEM, &mut self.attr_with(key, &mut value))?;
        Ok(value)
    }

    /// [`Self::attr`] of a command that reads or writes bytes here.
    fn attr_with(&self, key: &[u8], bytes: &mut [u8]) -> Attr {
        let mut attr = self.attr(key);
        put(&mut attr, 16, &(bytes.as_mut_ptr() as u64).to_ne_bytes());
        attr
    }

    /// Deletes everything in a hash table; how many entries there were.
    pub fn clear(&self) -> io::Result<usize> {
        let mut deleted = 0;
        while let Some(key) = self.key_after(None)? {
            bpf(BPF_MAP_DELETE_ELEM, &mut self.attr(&key))?;
            deleted += 1;
        }
        Ok(deleted)
    }

    /// The key behind another one, or the first one.
    fn key_after(&self, last: Option<&[u8]>) -> io::Result<Option<Vec<u8>>> {
        let mut key = vec![0_u8; self.key_len];
        // Without a key to start from, the kernel gives the first one.
        let mut attr = self.attr_with(last.unwrap_or_default(), &mut key);
        match bpf(BPF_MAP_GET_NEXT_KEY, &mut attr) {
            Ok(_) => Ok(Some(key)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What begins every command about one key; no key is a null pointer.
    fn attr(&self, key: &[u8]) -> Attr {
        let mut attr: Attr = [0; 128];
        put(&mut attr, 0, &self.fd.as_raw_fd().cast_unsigned().to_ne_bytes());
        let key = if key.is_empty() { 0 } else { key.as_ptr() as u64 };
        put(&mut attr, 8, &key.to_ne_bytes());
        attr
    }
}

/// How often a program has run, and how long in all, while the kernel counted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Runs {
    /// The program's id.
    pub id: u32,
    /// The program's name: its first 15 bytes.
    pub program: String,
    /// How often.
    pub count: u64,
    /// How long in all.
    pub time_ns: u64,
}

/// The runs of all programs in the kernel that have run.
pub fn runs() -> io::Result<Vec<Runs>> {
    let mut all = Vec::new();
    for id in ids(Kind::Program).map_err(io::Error::other)? {
        let program = match open_program(id) {
            Ok(program) => program,
            // Unloaded in between.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        // `struct bpf_prog_info` up to `verified_insns`.
        let mut info = [0_u8; 224];
        info_into(&program, &mut info)?;
        let number = |at: usize| u64::from(word(&info, at)) | u64::from(word(&info, at + 4)) << 32;
        let (time_ns, count) = (number(192), number(200));
        let name = info[64..80].split(|byte| *byte == 0).next().unwrap_or_default();
        if count > 0 {
            let program = String::from_utf8_lossy(name).into_owned();
            all.push(Runs { id, program, count, time_ns });
        }
    }
    Ok(all)
}

/// `struct bpf_map_info`, as far as 128 bytes go.
fn info_of(object: &OwnedFd) -> io::Result<Attr> {
    let mut info: Attr = [0; 128];
    info_into(object, &mut info)?;
    Ok(info)
}

fn info_into(object: &OwnedFd, info: &mut [u8]) -> io::Result<()> {
    let mut attr: Attr = [0; 128];
    put(&mut attr, 0, &object.as_raw_fd().cast_unsigned().to_ne_bytes());
    put(&mut attr, 4, &u32::try_from(info.len()).map_err(io::Error::other)?.to_ne_bytes());
    put(&mut attr, 8, &(info.as_mut_ptr() as u64).to_ne_bytes());
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr).map(drop)
}

/// Ids of the programs on a tcx hook of a device, in their order; none where the kernel has no tcx.
pub fn programs_on(namespace: &Namespace, device: &str, hook: Hook) -> Vec<u32> {
    let mut ids = [0u32; HOOK_LIMIT];
    let found = namespace.run(|| {
        let mut attr: Attr = [0; 128];
        let kind = if hook == Hook::Ingress { TCX_INGRESS } else { TCX_EGRESS };
        put(&mut attr, 0, &index_of(device)?.to_ne_bytes());
        put(&mut attr, 4, &kind.to_ne_bytes());
        put(&mut attr, 16, &(ids.as_mut_ptr() as u64).to_ne_bytes());
        put(&mut attr, 24, &u32::try_from(ids.len()).unwrap_or(0).to_ne_bytes());
        bpf(BPF_PROG_QUERY, &mut attr)?;
        Ok::<_, io::Error>(word(&attr, 24))
    });
    let count = match found {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => 0,
        found => found.unwrap_or_else(|e| panic!("ask for the programs on {device}: {e}")),
    };
    ids[..usize::try_from(count).unwrap_or(0)].to_vec()
}

/// Loads the program. In C: `if (skb->protocol == htons(ETH_P_IPV6) && load_byte(skb, 20) ==
/// IPPROTO_TCP) return TCX_DROP; return TCX_NEXT;`
fn load() -> io::Result<OwnedFd> {
    let ipv6 = i32::from(0x86dd_u16.to_be());
    let program = [
        // r6 = r1: where loads from the packet look for it
        instruction(0xbf, 0x16, 0, 0),
        // r2 = *(u32 *)(r1 + offsetof(struct __sk_buff, protocol))
        instruction(0x61, 0x12, 16, 0),
        // r0 = -1 (TCX_NEXT)
        instruction(0xb7, 0x00, 0, -1),
        // if r2 != IPv6: to the end
        instruction(0x55, 0x02, 4, ipv6),
        // r0 = byte 20 of the frame, the IPv6 header's next header
        instruction(0x30, 0x00, 0, 20),
        // if r0 == 6 (TCP): skip one more
        instruction(0x15, 0x00, 3, 6),
        // r0 = -1 (TCX_NEXT)
        instruction(0xb7, 0x00, 0, -1),
        // exit, twice: the second is where the first jump leads
        instruction(0x95, 0x00, 0, 0),
        instruction(0x95, 0x00, 0, 0),
        // r0 = 2 (TCX_DROP); exit
        instruction(0xb7, 0x00, 0, 2),
        instruction(0x95, 0x00, 0, 0),
    ];
    load_as(PROG_TYPE_SCHED_CLS, &program)
}

/// Loads a program of a type, called `foreign`.
fn load_as(kind: u32, program: &[u64]) -> io::Result<OwnedFd> {
    let mut attr: Attr = [0; 128];
    put(&mut attr, 0, &kind.to_ne_bytes());
    put(&mut attr, 4, &u32::try_from(program.len()).unwrap_or(0).to_ne_bytes());
    put(&mut attr, 8, &(program.as_ptr() as u64).to_ne_bytes());
    put(&mut attr, 16, &(c"GPL".as_ptr() as u64).to_ne_bytes());
    put(&mut attr, 48, b"foreign");
    open(BPF_PROG_LOAD, &mut attr)
}

/// A `struct bpf_insn`.
fn instruction(code: u8, registers: u8, offset: i16, value: i32) -> u64 {
    let (offset, value) = (offset.to_ne_bytes(), value.to_ne_bytes());
    u64::from_ne_bytes([
        code, registers, offset[0], offset[1], value[0], value[1], value[2], value[3],
    ])
}

fn put(attr: &mut Attr, at: usize, bytes: &[u8]) {
    attr[at..at + bytes.len()].copy_from_slice(bytes);
}

fn word(attr: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([attr[at], attr[at + 1], attr[at + 2], attr[at + 3]])
}

/// A command that makes a descriptor.
fn open(command: i64, attr: &mut Attr) -> io::Result<OwnedFd> {
    let fd = bpf(command, attr)?;
    // SAFETY: the kernel has just made the descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn bpf(command: i64, attr: &mut Attr) -> io::Result<RawFd> {
    // SAFETY: the attributes are as long as we say, and what they point to lives in our callers.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), attr.len()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    RawFd::try_from(result).map_err(io::Error::other)
}

fn index_of(device: &str) -> io::Result<u32> {
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    Ok(name_to_index(&socket, device)?)
}
