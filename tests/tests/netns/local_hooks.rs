//! The hooks for clients on the host itself: left at work, removed, and not to be had.

use std::io::ErrorKind;
use std::net::TcpStream;
use std::path::{Path, PathBuf};

use samport::lab::Watched;
use samport_tests::bpf::{CGROUP_LIMIT, attach_to_connect6};
use samport_tests::daemon::{HASH_SEED_FILE, clean, hash_seed_file, samport_binary};
use samport_tests::load::get;
use samport_tests::served::{LISTEN, Served, Status, TARGET, text};
use samport_tests::traces::{Objects, assert_traces, traces, undisturbed};
use samport_tests::{TIMEOUT, eventually, require_root};

use crate::lab;
use crate::local::LOCALHOST;

/// Cases 76 and 85: the hooks work on after a SIGKILL, and `clean` removes them.
#[test]
fn a_killed_samport_goes_on_serving_the_host_until_it_is_cleaned_up() {
    let _undisturbed = undisturbed();
    let lab = lab(1);
    let before = traces(lab.host());
    let mut served = Served::start(lab, &[]);
    let objects = Objects::of(served.lab.host());
    let status = served.status().0;
    assert_eq!(status["local"], true);
    let pins = Path::new("/sys/fs/bpf/samport").join(text(&status, "name"));
    assert!(pins.join("link_local_connect4").exists());
    served.daemon.kill9();
    assert_eq!(served.lab.host().run(|| get(LOCALHOST, "/")).unwrap().backend, "web-1");
    clean(served.lab.host(), &[]);
    let error = served.lab.host().run(|| TcpStream::connect(LOCALHOST)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    objects.assert_gone();
    assert_traces(served.lab.host(), &before);
}

/// Where there is no cgroup2, samport says so once and serves everybody else.
#[test]
fn without_cgroup2_the_host_is_not_served_and_everybody_else_is() {
    assert_not_served("exec unshare --mount sh -c 'umount -a -t cgroup2", "no cgroup2 is mounted");
}

/// A hook takes 64 programs. What was attached before that was found out is taken off again.
#[test]
fn where_a_hook_is_full_the_host_is_not_served_and_everybody_else_is() {
    require_root();
    let group = Group::new();
    let _others: Vec<_> =
        (0..CGROUP_LIMIT).map(|_| attach_to_connect6(&group.0).unwrap()).collect();
    // To samport this group is the root of all.
    let begin = format!(
        "echo $$ > {}/cgroup.procs && exec unshare --cgroup --mount sh -c '\
         umount -a -t cgroup2 && mount -t cgroup2 none /sys/fs/cgroup",
        group.0.display()
    );
    assert_not_served(&begin, "connect6 has its 64 programs");
}

/// Starts samport at the end of a shell command, within '; it says why the host is not served.
fn assert_not_served(begin: &str, why: &str) {
    let lab = lab(1);
    let _servers = lab.serve(TARGET).unwrap();
    let command_line = format!(
        "{begin} && exec {} run -i eth0 -p 80 --backend {}'",
        samport_binary().display(),
        lab.backends()[0].v4(TARGET)
    );
    let mut command = lab.host().command("sh");
    command.args(["-c", &command_line]).env(HASH_SEED_FILE, hash_seed_file());
    let mut samport = Watched::spawn(command, None).unwrap();
    samport.wait_for_line_after(0, "ready: ", TIMEOUT).unwrap();
    let said = samport.said();
    assert!(said.contains("not served: ") && said.contains(why), "{said}");
    let status = Status::all_in(lab.host()).remove(0);
    assert_eq!(status.0["local"], false);
    let pins = Path::new("/sys/fs/bpf/samport").join(text(&status.0, "name"));
    assert!(!pins.join("link_local_getpeername4").exists());
    assert_eq!(lab.get(lab.front(LISTEN), "/").unwrap().backend, "web-1");
    let error = lab.host().run(|| TcpStream::connect(LOCALHOST)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    assert!(samport.stop().unwrap().success());
}

/// A control group of one's own.
struct Group(PathBuf);

impl Group {
    fn new() -> Self {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let mut mounts = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let root = mounts.find(|words| words[2] == "cgroup2").expect("cgroup2 is mounted")[1];
        let path = Path::new(root).join(format!("samport-test-{}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        eventually("the control group is empty", || std::fs::remove_dir(&self.0).ok());
    }
}
