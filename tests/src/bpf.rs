//! The `bpf` system call, for what no tool of Debian 12 shows or does: programs of somebody else on
//! a tcx hook, the list of those that are there, and ids of maps that are not opened for it.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketType, socket};
use samport::lab::Namespace;

// Numbers of linux/bpf.h.
const BPF_MAP_DELETE_ELEM: i64 = 3;
const BPF_MAP_GET_NEXT_KEY: i64 = 4;
const BPF_PROG_LOAD: i64 = 5;
const BPF_OBJ_GET: i64 = 7;
const BPF_PROG_GET_FD_BY_ID: i64 = 13;
const BPF_OBJ_GET_INFO_BY_FD: i64 = 15;
const BPF_PROG_QUERY: i64 = 16;
const BPF_LINK_CREATE: i64 = 28;
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

    /// A link for a hook, with flags of its.
    fn linked(
        namespace: &Namespace,
        device: &str,
        [hook, flags]: [u32; 2],
        load: fn() -> io::Result<OwnedFd>,
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

/// A kind of BPF object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Programs.
    Program,
    /// Maps.
    Map,
    /// Links.
    Link,
}

/// Ids of all objects of a kind in the kernel.
#[must_use]
pub fn all_ids(kind: Kind) -> BTreeSet<u32> {
    let all = samport::dataplane::inventory().expect("list BPF objects");
    match kind {
        Kind::Program => all.programs,
        Kind::Map => all.maps,
        Kind::Link => all.links,
    }
}

/// The id of the object pinned at a path, whatever its kind.
pub fn id_of_pin(path: &Path) -> io::Result<u32> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr: Attr = [0; 128];
    put(&mut attr, 0, &(path.as_ptr() as u64).to_ne_bytes());
    let object = open(BPF_OBJ_GET, &mut attr)?;
    // The kinds' structures all have the id in the second place.
    Ok(word(&info_of(&object, &mut [])?, 4))
}

/// Deletes everything in the hash map pinned at a path, whose keys have this length in bytes; how many
/// entries there were.
pub fn clear_map(path: &Path, key_len: usize) -> io::Result<usize> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr: Attr = [0; 128];
    put(&mut attr, 0, &(path.as_ptr() as u64).to_ne_bytes());
    let map = open(BPF_OBJ_GET, &mut attr)?;
    let mut key = vec![0_u8; key_len];
    let mut deleted = 0;
    loop {
        // Without a key to start from, the kernel gives the first one.
        let mut attr: Attr = [0; 128];
        put(&mut attr, 0, &map.as_raw_fd().cast_unsigned().to_ne_bytes());
        put(&mut attr, 16, &(key.as_mut_ptr() as u64).to_ne_bytes());
        match bpf(BPF_MAP_GET_NEXT_KEY, &mut attr) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(deleted),
            next => next?,
        };
        let mut attr: Attr = [0; 128];
        put(&mut attr, 0, &map.as_raw_fd().cast_unsigned().to_ne_bytes());
        put(&mut attr, 8, &(key.as_mut_ptr() as u64).to_ne_bytes());
        bpf(BPF_MAP_DELETE_ELEM, &mut attr)?;
        deleted += 1;
    }
}

/// Ids of the maps a program uses; none if it has just gone.
#[must_use]
pub fn maps_of_program(id: u32) -> BTreeSet<u32> {
    let mut ids = [0; 64];
    let ask = |ids: &mut [u32; 64]| {
        let mut attr: Attr = [0; 128];
        put(&mut attr, 0, &id.to_ne_bytes());
        let program = open(BPF_PROG_GET_FD_BY_ID, &mut attr)?;
        Ok::<_, io::Error>(word(&info_of(&program, ids)?, 52))
    };
    let count = ask(&mut ids).map_or(0, |count| usize::try_from(count).unwrap_or(0));
    ids.into_iter().take(count).collect()
}

/// `struct bpf_prog_info`, `bpf_map_info` or `bpf_link_info`, as far as 128 bytes go. A program's
/// maps are written to `map_ids`, if there is room; other kinds must not be asked for them.
fn info_of(object: &OwnedFd, map_ids: &mut [u32]) -> io::Result<Attr> {
    let mut info: Attr = [0; 128];
    if !map_ids.is_empty() {
        put(&mut info, 52, &u32::try_from(map_ids.len()).unwrap_or(0).to_ne_bytes());
        put(&mut info, 56, &(map_ids.as_mut_ptr() as u64).to_ne_bytes());
    }
    let mut attr: Attr = [0; 128];
    put(&mut attr, 0, &object.as_raw_fd().cast_unsigned().to_ne_bytes());
    put(&mut attr, 4, &128_u32.to_ne_bytes());
    put(&mut attr, 8, &(info.as_mut_ptr() as u64).to_ne_bytes());
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(info)
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

fn word(attr: &Attr, at: usize) -> u32 {
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
