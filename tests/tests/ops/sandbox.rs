//! What the sandbox of `samport run` prevents, tried from inside: by a thread of this program, which has all of root's
//! capabilities, after the very function that `samport run` calls. Landlock and seccomp are a thread's.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::net::{TcpListener, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::thread;

use rustix::net::sockopt::{self, Ipv4PathMtuDiscovery};
use samport::lab::Watched;
use samport::system::sandbox::{Grant, Purpose, restrict};
use samport_tests::TIMEOUT;
use samport_tests::bpf::{Map, open_pin};
use samport_tests::daemon::{Backends, samport_command};
use samport_tests::served::TARGET;
use tempfile::TempDir;

/// What a thread finds that may use folders for these purposes.
fn inside<T: Send>(grants: &[(&Path, Purpose)], tries: impl FnOnce() -> T + Send) -> T {
    let grants = grants
        .iter()
        .map(|(folder, purpose)| Grant { folder: folder.to_path_buf(), purpose: *purpose });
    let grants: Vec<Grant> = grants.collect();
    let found = thread::scope(|scope| {
        let within = scope.spawn(move || {
            let sandbox = restrict(&grants).unwrap();
            assert!(sandbox.landlock_abi.is_some_and(|abi| abi > 0), "{sandbox:?}");
            assert!(sandbox.seccomp && sandbox.missing.is_empty(), "{sandbox:?}");
            tries()
        });
        within.join()
    });
    found.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Panics unless it is refused in this way.
fn assert_refused<T>(what: &str, how: ErrorKind, tried: io::Result<T>) {
    match tried {
        Ok(_) => panic!("{what} is not prevented"),
        Err(error) => assert_eq!(error.kind(), how, "{what}: {error}"),
    }
}

fn assert_denied<T>(what: &str, tried: io::Result<T>) {
    assert_refused(what, ErrorKind::PermissionDenied, tried);
}

/// A system call with numbers for arguments.
fn call(number: libc::c_long, arguments: [usize; 4]) -> io::Result<libc::c_long> {
    let [a, b, c, d] = arguments;
    // SAFETY: the arguments are numbers, null pointers and paths that live until the call has returned.
    let result = unsafe { libc::syscall(number, a, b, c, d) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A folder with a file in it.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("there"), "before").unwrap();
    folder
}

#[test]
fn nothing_is_written_elsewhere() {
    let (own, other) = (folder(), folder());
    let (own, other) = (own.path(), other.path());
    inside(&[(own, Purpose::Files)], || {
        let there = other.join("there");
        assert_denied("writing", fs::write(&there, "after"));
        assert_denied("appending", File::options().append(true).open(&there));
        assert_denied(
            "truncating",
            call(libc::SYS_truncate, [path(&there).as_ptr() as usize, 0, 0, 0]),
        );
        assert_denied("making", fs::write(other.join("new"), ""));
        assert_denied("making a folder", fs::create_dir(other.join("new")));
        assert_denied("making a socket", UnixListener::bind(other.join("new")));
        assert_denied("making a link", std::os::unix::fs::symlink("/", other.join("new")));
        assert_denied("removing", fs::remove_file(&there));
        assert_denied("renaming", fs::rename(&there, other.join("new")));
        assert_denied("taking away", fs::rename(&there, own.join("taken")));
        assert_denied("bringing", fs::rename(own.join("there"), other.join("new")));
        assert_eq!(fs::read_to_string(&there).unwrap(), "before", "reading is not prevented");
        // What samport does with locks and records.
        fs::write(own.join("new"), "1").unwrap();
        fs::rename(own.join("new"), own.join("record")).unwrap();
        File::options().truncate(true).write(true).open(own.join("record")).unwrap();
        drop(UnixListener::bind(own.join("socket")).unwrap());
        fs::remove_file(own.join("socket")).unwrap();
        assert_denied("making a folder beneath its own", fs::create_dir(own.join("folder")));
    });
    assert_eq!(fs::read_dir(other).unwrap().count(), 1);
}

#[test]
fn each_purpose_allows_what_it_is_for_and_no_more() {
    let (sockets, empty, pins) = (folder(), folder(), folder_of_pins());
    let (sockets, empty, pins) = (sockets.path(), empty.path(), pins.path());
    fs::create_dir(empty.join("folder")).unwrap();
    let grants =
        [(sockets, Purpose::Sockets), (empty, Purpose::EmptyFolders), (pins, Purpose::Pins)];
    inside(&grants, || {
        drop(UnixListener::bind(sockets.join("socket")).unwrap());
        fs::remove_file(sockets.join("socket")).unwrap();
        assert_denied("a file beside a socket", fs::write(sockets.join("new"), ""));
        assert_denied("a file for an empty folder", fs::write(empty.join("folder/new"), ""));
        assert_denied("removing a file there", fs::remove_file(empty.join("there")));
        fs::remove_dir(empty.join("folder")).unwrap();
        fs::create_dir(pins.join("instance")).unwrap();
        fs::rename(pins.join("instance"), pins.join("other")).unwrap();
        fs::remove_dir(pins.join("other")).unwrap();
    });
}

/// A folder in bpffs, whose names have no dots.
fn folder_of_pins() -> TempDir {
    tempfile::Builder::new().prefix("samport-test-").tempdir_in("/sys/fs/bpf").unwrap()
}

/// A pin is made by bpf(2), which asks Landlock as every other way to make a file does.
#[test]
fn pins_are_made_in_their_own_folder_only() {
    let (own, other) = (folder_of_pins(), folder_of_pins());
    let (own, other) = (own.path().join("map"), other.path().join("map"));
    let make = |pin: &Path| Map::pin_hash(pin, "sandbox", [4, 4, 1]);
    make(&other).unwrap();
    inside(&[(own.parent().unwrap(), Purpose::Pins)], || {
        assert_denied("a pin elsewhere", make(&other.with_file_name("new")));
        assert_denied("removing a pin elsewhere", fs::remove_file(&other));
        make(&own).unwrap();
        // Opening is no matter of Landlock's.
        open_pin(&own).unwrap();
        open_pin(&other).unwrap();
        fs::remove_file(&own).unwrap();
    });
    fs::remove_file(&other).unwrap();
}

#[test]
fn no_mode_and_no_owner_is_changed() {
    let own = folder();
    let there = own.path().join("there");
    inside(&[(own.path(), Purpose::Files)], || {
        let file = File::open(&there).unwrap();
        let set = fs::Permissions::from_mode;
        assert_denied("chmod", fs::set_permissions(&there, set(0o755)));
        assert_denied("fchmod", file.set_permissions(set(0o4755)));
        assert_denied("chown", std::os::unix::fs::chown(&there, Some(1), None));
        assert_denied("fchown", std::os::unix::fs::fchown(&file, Some(1), None));
        assert_denied("utimes", file.set_modified(std::time::UNIX_EPOCH));
        // The mode of its own files.
        file.set_permissions(set(0o600)).unwrap();
    });
}

#[test]
fn no_program_and_no_process_is_started() {
    inside(&[], || {
        assert_denied("a child", Command::new("true").status());
        let error = Command::new("true").exec();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "exec: {error}");
        let plain = libc::SIGCHLD.unsigned_abs() as usize;
        assert_denied("clone", call(libc::SYS_clone, [plain, 0, 0, 0]));
        assert_refused("clone3", ErrorKind::Unsupported, call(libc::SYS_clone3, [0, 0, 0, 0]));
        // Threads are, and inherit all of it.
        let inherited =
            thread::spawn(|| (fs::write("/tmp/samport-test", ""), Command::new("true").status()));
        let (written, started) = inherited.join().unwrap();
        assert_denied("writing by a thread", written);
        assert_denied("a child of a thread", started);
    });
}

#[test]
fn no_other_kinds_of_sockets_are_opened() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let engine = UnixListener::bind(folder.path().join("engine")).unwrap();
    inside(&[], || {
        let open = |family: libc::c_int, kind: libc::c_int| {
            let arguments = [family, kind].map(|one| one.unsigned_abs() as usize);
            call(libc::SYS_socket, [arguments[0], arguments[1], 0, 0])
        };
        for (name, family, kind) in [
            ("packet", libc::AF_PACKET, libc::SOCK_RAW),
            ("alg", libc::AF_ALG, libc::SOCK_SEQPACKET),
            ("vsock", libc::AF_VSOCK, libc::SOCK_STREAM),
            ("xdp", libc::AF_XDP, libc::SOCK_RAW),
            ("bluetooth", libc::AF_BLUETOOTH, libc::SOCK_RAW),
            ("can", libc::AF_CAN, libc::SOCK_RAW),
        ] {
            // Refused by the filter, and not because the kernel has none of the kind.
            let error = open(family, kind).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{name}: {error}");
        }
        open(libc::AF_NETLINK, libc::SOCK_RAW).unwrap();
        open(libc::AF_INET6, libc::SOCK_STREAM).unwrap();
        // As probes of other nodes have it.
        let probe = UdpSocket::bind("127.0.0.1:0").unwrap();
        sockopt::set_ip_mtu_discover(&probe, Ipv4PathMtuDiscovery::PROBE).unwrap();
        probe.connect("127.0.0.1:6080").unwrap();
        probe.send(&[0]).unwrap();
        std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        UnixStream::connect(engine.local_addr().unwrap().as_pathname().unwrap()).unwrap();
    });
}

#[test]
fn no_other_process_is_reached() {
    let mut sleep = Command::new("sleep");
    sleep.arg("600");
    let other = Watched::spawn(sleep, None).unwrap();
    let pid = other.pid() as usize;
    inside(&[], || {
        // Looked into by Landlock's rules, even with CAP_SYS_PTRACE.
        assert_denied("its descriptors", fs::read_link(format!("/proc/{pid}/fd/0")));
        assert_denied("its namespace", File::open(format!("/proc/{pid}/ns/net")));
        assert_denied("kill", call(libc::SYS_kill, [pid, 0, 0, 0]));
        assert_denied("tgkill", call(libc::SYS_tgkill, [pid, pid, 0, 0]));
        assert_denied("ptrace", call(libc::SYS_ptrace, [16, pid, 0, 0]));
        assert_denied("reading its memory", call(libc::SYS_process_vm_readv, [pid, 0, 0, 0]));
        assert_denied("its limits", call(libc::SYS_prlimit64, [pid, 7, 0, 0]));
        // Its routes are no secret: samport reads those of containers.
        fs::read_to_string(format!("/proc/{pid}/net/route")).unwrap();
        call(libc::SYS_kill, [std::process::id() as usize, 0, 0, 0]).unwrap();
    });
}

#[test]
fn what_else_root_may_do_is_prevented() {
    let namespace = File::open("/proc/self/ns/net").unwrap();
    let namespace = namespace.as_raw_fd().unsigned_abs() as usize;
    let calls = [
        ("setns", libc::SYS_setns, [namespace, 0, 0, 0]),
        ("unshare", libc::SYS_unshare, [libc::CLONE_NEWNET.unsigned_abs() as usize, 0, 0, 0]),
        ("mount", libc::SYS_mount, [0; 4]),
        ("umount", libc::SYS_umount2, [0; 4]),
        ("chroot", libc::SYS_chroot, [0; 4]),
        ("setuid", libc::SYS_setuid, [0; 4]),
        ("open_by_handle_at", libc::SYS_open_by_handle_at, [0; 4]),
        ("io_uring_setup", libc::SYS_io_uring_setup, [1, 0, 0, 0]),
        ("userfaultfd", libc::SYS_userfaultfd, [0; 4]),
        ("perf_event_open", libc::SYS_perf_event_open, [0; 4]),
        ("keyctl", libc::SYS_keyctl, [0; 4]),
        ("init_module", libc::SYS_init_module, [0; 4]),
        ("kexec_load", libc::SYS_kexec_load, [0; 4]),
        ("memfd_create", libc::SYS_memfd_create, [0; 4]),
    ];
    inside(&[], || {
        for (name, number, arguments) in calls {
            let error = call(number, arguments).expect_err(name);
            assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{name}: {error}");
        }
        // Typing into the terminal.
        let typed = call(libc::SYS_ioctl, [0, usize::try_from(libc::TIOCSTI).unwrap(), 0, 0]);
        assert_eq!(typed.unwrap_err().raw_os_error(), Some(libc::EPERM));
        // What is newer than the filter, or of x32, is not there.
        for number in [libc::SYS_mseal + 1, 9_999, 0x4000_0000] {
            assert_refused("a new system call", ErrorKind::Unsupported, call(number, [0; 4]));
        }
    });
}

/// As many rulesets as the kernel lets one process have (LANDLOCK_MAX_NUM_LAYERS): one more is refused.
const LAYERS: usize = 16;

/// Restricts the process that is about to start a program in nothing but making character devices.
fn fill_landlock() -> io::Result<()> {
    /// `handled_access_fs` of struct landlock_ruleset_attr: LANDLOCK_ACCESS_FS_MAKE_CHAR.
    static MAKE_CHAR: u64 = 1 << 6;
    for _ in 0..LAYERS {
        let attr = &raw const MAKE_CHAR as usize;
        let ruleset = call(libc::SYS_landlock_create_ruleset, [attr, size_of::<u64>(), 0, 0])?;
        let ruleset = usize::try_from(ruleset).unwrap_or_default();
        call(libc::SYS_landlock_restrict_self, [ruleset, 0, 0, 0])?;
    }
    Ok(())
}

#[test]
fn a_sandbox_that_the_kernel_refuses_is_an_error_with_the_way_out() {
    let lab = crate::lab(1);
    let file = Backends::of(&lab, TARGET);
    let start = |options: &[&str]| {
        let args = ["-i", "eth0", "-p", "80:9090", "--file", file.path()];
        let mut command = samport_command(lab.host(), &["run"]);
        command.args(args).args(options);
        // SAFETY: system calls alone, on numbers and a constant.
        unsafe { command.pre_exec(fill_landlock) };
        Watched::spawn(command, None).unwrap()
    };
    let mut refused = start(&[]);
    let line = refused.wait_for_line("the sandbox cannot be set up: ", TIMEOUT).unwrap();
    assert!(line.text.contains("; `--sandbox off` starts samport without it"), "{}", line.text);
    let status = refused.wait(TIMEOUT).unwrap();
    assert_eq!(status.code(), Some(4), "{}", refused.said());
    let mut works = start(&["--sandbox", "off"]);
    works.wait_for_line("ready: ", TIMEOUT).unwrap();
    assert!(works.stop().unwrap().success(), "{}", works.said());
}

fn path(path: &Path) -> CString {
    CString::new(path.to_str().unwrap()).unwrap()
}
