//! Who holds a socket, where the process is not to be seen: its user and its control group, which sock_diag tells
//! everybody of. Looking into another process takes CAP_SYS_PTRACE, and Landlock prevents it.

use std::fs;
use std::os::unix::fs::DirEntryExt as _;
use std::path::{Path, PathBuf};

use nix::unistd::{Uid, User};

use crate::model::ports::Listen;
use crate::net::sock_diag::{Holder, Sockets};
use crate::system::cgroups;
use crate::system::escape;

/// Folders of control groups that are looked at, at most: there may be very many, and a name is a convenience.
const MOST_FOLDERS: usize = 20_000;

/// Returns words for the process that holds a socket on a port.
pub(super) fn describe(at: Listen, inode: u64) -> String {
    let holder = Sockets::open()
        .and_then(|mut sockets| sockets.holder(at.protocol, at.port, inode))
        .inspect_err(|error| tracing::debug!("ask who listens on port {}: {error}", at.brief()));
    let Ok(Some(Holder { uid, cgroup })) = holder else { return in_words(None, None) };
    let account = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    let user = account.map_or_else(|| uid.to_string(), |account| account.name);
    let root = cgroups::root().ok();
    let path = root.and_then(|root| path_of(cgroup?, &root));
    in_words(Some(&user), path.as_deref())
}

/// The folder of a control group, relative to the root of all that are to be seen. None for that root itself.
fn path_of(cgroup: u64, root: &Path) -> Option<PathBuf> {
    let mut rest = vec![root.to_owned()];
    let mut seen = 0;
    while let Some(folder) = rest.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if entry.ino() == cgroup {
                    return Some(entry.path().strip_prefix(root).ok()?.to_owned());
                }
                seen += 1;
                if seen > MOST_FOLDERS {
                    return None;
                }
                rest.push(entry.path());
            }
        }
    }
    None
}

fn in_words(user: Option<&str>, cgroup: Option<&Path>) -> String {
    let of_user = user.map_or_else(String::new, |user| format!(" of user {}", escape::line(user)));
    let Some(path) = cgroup else {
        return format!("another process{of_user} (`ss -lnptu` as root says which)");
    };
    let names: Vec<_> = path.iter().map(|name| name.to_string_lossy()).collect();
    if let Some(id) = names.iter().rev().find_map(|name| container_in(name)) {
        return format!("a process{of_user} in container {id}");
    }
    let is_unit = |name: &str| [".service", ".scope"].iter().any(|end| name.ends_with(end));
    if let Some(unit) = names.iter().rev().find(|name| is_unit(name)) {
        return format!("a process{of_user} in unit {}", escape::line(unit));
    }
    let path = path.to_string_lossy();
    format!("a process{of_user} in control group /{}", escape::line(&path))
}

/// The short id of the container that a control group is of: engines name it by the long one, in whatever is around it.
fn container_in(name: &str) -> Option<&str> {
    const LONG: usize = 64;
    const SHORT: usize = 12;
    let mut words = name.split(|c: char| !c.is_ascii_alphanumeric());
    let is_id = |word: &&str| {
        word.len() == LONG && word.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    Some(&words.find(is_id)?[..SHORT])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_group_says_which_container_or_unit_it_is() {
        let id = "0123456789abcdef".repeat(4);
        let container = "a process of user root in container 0123456789ab";
        for (path, expected) in [
            (format!("system.slice/docker-{id}.scope"), container),
            (format!("system.slice/docker-{id}.scope/init.scope"), container),
            (format!("docker/{id}"), container),
            (format!("machine.slice/libpod-{id}.scope/container"), container),
            (format!("kubepods.slice/pod1.slice/cri-containerd-{id}.scope"), container),
            ("system.slice/nginx.service".into(), "a process of user root in unit nginx.service"),
            (
                "user.slice/user-7.slice/user@7.service/app.slice/web.service/sub".into(),
                "a process of user root in unit web.service",
            ),
            (
                "user.slice/user-7.slice/session-3.scope".into(),
                "a process of user root in unit session-3.scope",
            ),
            ("lxc/web".into(), "a process of user root in control group /lxc/web"),
            ("a\u{1b}b".into(), "a process of user root in control group /a\\u001bb"),
        ] {
            assert_eq!(in_words(Some("root"), Some(Path::new(&path))), expected, "{path}");
        }
        assert_eq!(
            in_words(Some("root"), None),
            "another process of user root (`ss -lnptu` as root says which)"
        );
        assert_eq!(in_words(None, None), "another process (`ss -lnptu` as root says which)");
    }

    #[test]
    fn the_kernel_tells_who_has_made_a_socket() {
        let listener = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
        let listen = Listen::tcp(listener.local_addr().unwrap().port());
        let (_, inode) = super::super::takers(&[listen]).next().unwrap();
        let of = |inode| {
            let mut sockets = Sockets::open().unwrap();
            sockets.holder(listen.protocol, listen.port, inode).unwrap()
        };
        let holder = of(inode).unwrap();
        assert_eq!(holder.uid, nix::unistd::geteuid().as_raw());
        assert!(holder.cgroup.is_some(), "Linux 5.8 and newer");
        assert_eq!(of(1), None);
    }
}
