//! seccomp: system calls that samport has no use for fail with EPERM, and those that it does not know with ENOSYS, as
//! on a kernel that does not have them.

use std::collections::BTreeMap;
use std::env::consts::ARCH;

use anyhow::{Context as _, Result};
use seccompiler::SeccompCmpArgLen::{Dword, Qword};
use seccompiler::SeccompCmpOp::{Eq, MaskedEq, Ne};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter, sock_filter,
};

/// The newest system call that was looked at. Newer ones do not exist for samport; libc does without them, as it does
/// on older kernels. So do those of x32, whose numbers are all larger.
const NEWEST: libc::c_long = libc::SYS_mseal;

/// System calls that never succeed.
const NEVER: &[libc::c_long] = &[
    // Programs and processes. Threads are made by clone, of which there is a rule below.
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_memfd_create,
    libc::SYS_memfd_secret,
    // Other processes: looking into them, and what they have open.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_process_mrelease,
    libc::SYS_kcmp,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_tkill,
    // Modes and owners, which Landlock does not look at; fchmod has a rule below.
    libc::SYS_fchmodat,
    libc::SYS_fchmodat2,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    libc::SYS_utimensat,
    libc::SYS_truncate,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_mknodat,
    // Files by handle: with CAP_DAC_READ_SEARCH it opens any file of a file system, also out of a container.
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_fanotify_init,
    libc::SYS_fanotify_mark,
    // Users and groups.
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setgroups,
    // Namespaces and mounts: containers' namespaces are asked for by netlink, and bpffs is mounted by now.
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_mount_setattr,
    // The machine.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_syslog,
    libc::SYS_personality,
    // Parts of the kernel in which much has been found, and that samport does not use.
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_userfaultfd,
    libc::SYS_perf_event_open,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
];

/// Those that only x86 has, or has in addition to newer ones.
#[cfg(target_arch = "x86_64")]
const NEVER_HERE: &[libc::c_long] = &[
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_lchown,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_futimesat,
    libc::SYS_link,
    libc::SYS_symlink,
    libc::SYS_mknod,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_modify_ldt,
    libc::SYS_uselib,
    libc::SYS_kexec_file_load,
];
#[cfg(not(target_arch = "x86_64"))]
const NEVER_HERE: &[libc::c_long] = &[libc::SYS_kexec_file_load];

/// Families of addresses that a socket may be of.
const FAMILIES: [libc::c_int; 4] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];

/// The mode that files of samport have: the only one that fchmod may set.
const FILE_MODE: u64 = 0o600;

/// Filters the calling thread's system calls, or says why they are not.
///
/// # Errors
/// The kernel has seccomp and refuses the filter.
pub(super) fn filter() -> Result<Result<(), String>> {
    let Ok(arch) = TargetArch::try_from(ARCH) else {
        return Ok(Err(format!("samport has no filter for {ARCH}")));
    };
    if let Err(error) = is_supported() {
        return Ok(Err(format!("the kernel has no seccomp ({error})")));
    }
    for program in [unknown(), denied(arch)?] {
        apply_filter(&program).context("cannot install the system call filter")?;
    }
    Ok(Ok(()))
}

/// Whether the kernel has filters (CONFIG_SECCOMP_FILTER), and whoever runs us lets us have one.
fn is_supported() -> std::io::Result<()> {
    /// Of linux/seccomp.h.
    const SECCOMP_GET_ACTION_AVAIL: libc::c_long = 2;
    let action = libc::SECCOMP_RET_ERRNO;
    // SAFETY: it reads a number that lives until the call has returned.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &raw const action) };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// The program for [`NEWEST`]. clone3, whose flags no filter can see, belongs to the system calls that do not exist:
/// libc makes threads by clone then.
fn unknown() -> BpfProgram {
    let statement = |code: u32, k: u32| instruction(code, 0, 0, k);
    let number = |call: libc::c_long| u32::try_from(call).unwrap_or(u32::MAX);
    let fails = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs();
    vec![
        // The number is the first word of struct seccomp_data.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, 0, number(libc::SYS_clone3)),
        instruction(libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K, 0, 1, number(NEWEST)),
        statement(libc::BPF_RET | libc::BPF_K, fails),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ]
}

fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code: u16::try_from(code).unwrap_or_default(), jt, jf, k }
}

/// The program for what is known and not needed. A process of another architecture's system calls is ended.
fn denied(arch: TargetArch) -> Result<BpfProgram> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        NEVER.iter().chain(NEVER_HERE).map(|call| (*call, Vec::new())).collect();
    for (call, when) in conditional()? {
        rules.insert(call, when);
    }
    let denied = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, denied, arch);
    filter.and_then(BpfProgram::try_from).context("cannot make the system call filter")
}

/// System calls that fail with certain arguments: with one of the rules, whose conditions all hold.
fn conditional() -> Result<Vec<(libc::c_long, Vec<SeccompRule>)>> {
    let own = u64::from(std::process::id());
    let not_us = || rule(&[(0, Dword, Ne, own)]);
    let other_family: Vec<_> =
        FAMILIES.iter().map(|family| (0, Dword, Ne, u64::from(family.unsigned_abs()))).collect();
    let of_terminal = |request: libc::Ioctl| rule(&[(1, Dword, Eq, request & 0xffff_ffff)]);
    Ok(vec![
        // Of processes, not of threads.
        (libc::SYS_clone, vec![rule(&[(0, Qword, MaskedEq(THREAD), 0)])?]),
        (libc::SYS_socket, vec![rule(&other_family)?]),
        (libc::SYS_fchmod, vec![rule(&[(1, Dword, Ne, FILE_MODE)])?]),
        (libc::SYS_kill, vec![not_us()?]),
        (libc::SYS_tgkill, vec![not_us()?]),
        (libc::SYS_prlimit64, vec![rule(&[(0, Dword, Ne, 0), (0, Dword, Ne, own)])?]),
        // Typing into the terminal that samport was started from.
        (libc::SYS_ioctl, vec![of_terminal(libc::TIOCSTI)?, of_terminal(libc::TIOCLINUX)?]),
    ])
}

/// The flag of clone that says that it makes a thread.
const THREAD: u64 = libc::CLONE_THREAD.unsigned_abs() as u64;

fn rule(conditions: &[(u8, SeccompCmpArgLen, SeccompCmpOp, u64)]) -> Result<SeccompRule> {
    let conditions = conditions.iter().map(|(argument, length, operator, value)| {
        SeccompCondition::new(*argument, length.clone(), operator.clone(), *value)
    });
    let conditions: Result<Vec<_>, _> = conditions.collect();
    let rule = conditions.and_then(SeccompRule::new);
    rule.context("cannot make a rule of the system call filter")
}
