//! What is left when samport ends by itself: nothing.

use std::fs;
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use samport::dataplane::objects::Kind;
use samport_tests::bpf::{Foreign, HOOK_LIMIT};
use samport_tests::daemon::{
    Daemon, HASH_SEED_FILE, clean, hash_seed_file, samport, samport_binary,
};
use samport_tests::load::ask;
use samport_tests::served::Served;
use samport_tests::traces::{Objects, alone, assert_traces, traces, undisturbed};
use samport_tests::{Lab, TIMEOUT, eventually};

use crate::{ended, ended_with, lab};

/// A clean exit: no program, link, map, qdisc, pin or record left.
fn assert_ends_clean(options: &[&str]) {
    let lab = lab(2);
    let before = traces(lab.host());
    let served = Served::start(lab, options);
    assert_eq!(ask(&served.lab, served.fronts()[0], 20).total(), 20);
    let objects = Objects::of(served.lab.host());
    let enough = objects.count(Kind::Program) >= 3 && objects.count(Kind::Map) >= 10;
    assert!(enough, "{objects:?}");
    assert_ne!(traces(served.lab.host()), before);
    let Served { daemon, lab, .. } = served;
    daemon.stop();
    assert_traces(lab.host(), &before);
    objects.assert_gone();
}

/// Case 85.
#[test]
fn a_clean_exit_leaves_nothing() {
    assert_ends_clean(&[]);
}

/// Case 85.
#[test]
fn a_clean_exit_leaves_nothing_of_forward_stack() {
    assert_ends_clean(&["--forward", "stack"]);
}

/// Case 85.
#[test]
fn a_clean_exit_leaves_no_filter_and_no_qdisc() {
    assert_ends_clean(&["--hook", "tc"]);
}

/// Case 85.
#[test]
fn a_clean_exit_leaves_no_filter_and_no_qdisc_of_forward_stack() {
    assert_ends_clean(&["--hook", "tc", "--forward", "stack"]);
}

/// Case 85: also when devices have come and gone in between.
#[test]
fn a_clean_exit_leaves_nothing_of_a_device_that_has_gone() {
    let lab = lab(2);
    let before = traces(lab.host());
    let mut served = Served::start(lab, &["--drain", "1"]);
    let objects = Objects::of(served.lab.host());
    served.lab.remove_backend("web-2").unwrap();
    served.file.remove("web-2");
    served.daemon.wait_for_line("- web-2", TIMEOUT);
    let (name, addresses) = served.add_backend();
    served.change(("+", &name, ""), |file| file.add_all(&name, addresses));
    let Served { daemon, lab, .. } = served;
    daemon.stop();
    assert_traces(lab.host(), &before);
    objects.assert_gone();
}

/// Case 85: SIGINT (Ctrl-C) is an end like SIGTERM.
#[test]
fn ctrl_c_is_a_clean_exit() {
    let lab = lab(1);
    let before = traces(lab.host());
    let served = Daemon::start(&lab, &["-i", "eth0", "-p", "80", "--backend", "172.30.0.10"]);
    served.signal(Signal::INT);
    served.wait_for_line("removed everything", TIMEOUT);
    served.stop();
    assert_traces(lab.host(), &before);
}

/// Case 85: SIGTERM in the middle of the start. The waits are there to hit different moments.
#[test]
fn a_signal_at_any_moment_of_the_start_leaves_nothing() {
    let lab = lab(1);
    let before = traces(lab.host());
    for milliseconds in (0..160).step_by(16) {
        let args = ["-i", "eth0", "-p", "80", "--backend", "172.30.0.10"];
        let daemon = Daemon::launch(lab.host(), &args);
        thread::sleep(Duration::from_millis(milliseconds));
        drop(daemon);
        assert_traces(lab.host(), &before);
    }
}

/// Cases 85 and 87: an error half-way: programs are loaded and pinned, the second interface is missing.
#[test]
fn an_unknown_second_interface_leaves_nothing() {
    let lab = lab(1);
    let before = traces(lab.host());
    let args = ["run", "-i", "eth0", "-i", "eth7", "-p", "80", "--backend", "172.30.0.10"];
    ended(lab.host(), &args).assert(1, &["eth7", "eth0"]);
    assert_traces(lab.host(), &before);
}

/// Cases 85 and 87: an error after the first interface has been attached to: the second one's hook is full.
#[test]
fn a_full_hook_on_the_second_interface_leaves_nothing_on_the_first() {
    let lab = lab(1);
    let host = lab.host();
    host.ip(&["link", "add", "eth1", "type", "veth", "peer", "name", "eth2"]).unwrap();
    host.ip(&["link", "set", "eth1", "up"]).unwrap();
    let _foreign: Vec<_> = (0..HOOK_LIMIT - 1).map(|_| Foreign::attach(host, "eth1")).collect();
    let before = traces(host);
    let args =
        ["-i", "eth0", "-i", "eth1", "-p", "80", "--backend", "172.30.0.10", "--hook", "tcx"];
    // With one place left it works, and leaves it free.
    Daemon::start(&lab, &args).stop();
    assert_traces(host, &before);

    let _last = Foreign::attach(host, "eth1");
    let before = traces(host);
    ended(host, &[&["run"], &args[..]].concat())
        .assert(6, &["eth1 has as many programs", "--hook tc"]);
    assert_traces(host, &before);
}

/// Case 87: bpffs missing: samport mounts it, says so, and works.
#[test]
fn where_bpffs_is_missing_it_is_mounted() {
    let lab = lab(1);
    let _servers = lab.serve(80).unwrap();
    // The mounts of this shell are its own; they go when it ends.
    let mut shell = lab.host().command("unshare");
    shell.args(["-m", "sh", "-c", "umount /sys/fs/bpf && exec \"$@\"", "sh"]);
    shell.arg(samport_binary()).env(HASH_SEED_FILE, hash_seed_file());
    shell.args(["run", "-i", "eth0", "-p", "80", "--backend", "172.30.0.10"]);
    let mut child = samport::lab::Watched::spawn(shell, None).unwrap();
    child.wait_for_line("mounting bpffs", TIMEOUT).unwrap();
    child.wait_for_line("ready", TIMEOUT).unwrap();
    assert_eq!(ask(&lab, lab.front(80), 10).total(), 10);
    assert!(child.stop().unwrap().success(), "{}", child.said());
}

/// Case 87: no bpffs and no place for it: the kernel lacks something, and nothing is attached.
#[test]
fn where_there_is_no_place_for_bpffs_it_says_so() {
    let lab = lab(1);
    let before = traces(lab.host());
    let script = "mount -t tmpfs none /sys/fs && exec \"$@\"";
    let wrapper = ["unshare", "-m", "sh", "-c", script, "sh"];
    let args = ["run", "-i", "eth0", "-p", "80", "--backend", "172.30.0.10", "--no-local"];
    ended_with(lab.host(), &wrapper, &args).assert(4, &["no place for bpffs", "mount sysfs"]);
    assert_traces(lab.host(), &before);
}

/// `--keep` leaves everything working, and `clean` removes it.
fn assert_keeps(options: &[&str]) {
    let _undisturbed = undisturbed();
    let lab = lab(2);
    let before = traces(lab.host());
    let served = Served::start(lab, &[&["--keep"], options].concat());
    let objects = Objects::of(served.lab.host());
    let fronts = served.fronts();
    let Served { daemon, lab, servers: _servers, .. } = served;
    daemon.stop();
    for front in fronts {
        assert_eq!(ask(&lab, front, 20).total(), 20);
    }
    clean(lab.host(), &[]);
    assert_traces(lab.host(), &before);
    objects.assert_gone();
    assert!(lab.get(fronts[0], "/").is_err());
}

#[test]
fn keep_leaves_everything_working_until_clean() {
    assert_keeps(&[]);
}

#[test]
fn keep_leaves_filters_working_until_clean() {
    assert_keeps(&["--hook", "tc"]);
}

#[test]
fn clean_with_nothing_to_clean_says_so_and_succeeds() {
    let _alone = alone();
    let lab = lab(0);
    // What killed instances of others have left goes first.
    assert!(samport(lab.host(), &["clean"]).status.success());
    let output = samport(lab.host(), &["clean"]);
    assert!(output.status.success());
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("nothing to clean"), "{said}");
}

/// No file of a run stays in its folder, whatever other instances do there.
#[test]
fn records_and_locks_go_with_their_instance() {
    let served = Served::start(lab(1), &[]);
    let own = format!("@{}", samport_tests::served::inode(served.lab.host()));
    let files = || {
        let entries = fs::read_dir("/run/samport").into_iter().flatten().flatten();
        entries.filter(|one| one.file_name().to_string_lossy().contains(&own)).count()
    };
    eventually("a lock, a record, the loop's progress and a socket", || {
        (files() == 4).then_some(())
    });
    let Served { daemon, lab: _lab, .. } = served;
    daemon.stop();
    assert_eq!(files(), 0);
}

/// The lab's helpers themselves: an empty lab has no traces.
#[test]
fn a_fresh_host_has_no_traces() {
    let lab: Lab = lab(1);
    assert!(traces(lab.host()).is_empty());
}
