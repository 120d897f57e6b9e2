//! Programs of others on the same hooks.

use std::fs;
use std::path::{Path, PathBuf};

use samport::dataplane::pins;
use samport_tests::bpf::{Foreign, Hook, detach_link, programs_on};
use samport_tests::daemon::{Daemon, clean, samport_binary};
use samport_tests::load::{Load, ask, get};
use samport_tests::served::{Served, text};
use samport_tests::traces::{assert_traces, tc, traces, undisturbed};
use samport_tests::{Lab, Server, TIMEOUT, eventually, own_mounts};

use crate::lab;
use crate::takeover::{OpenConnections, taken_over};

/// Case 79: Another tcx program on the hook: both run; each survives the other.
#[test]
fn a_tcx_program_that_was_there_runs_and_stays() {
    let lab = lab(1);
    let _foreign = Foreign::attach(lab.host(), "eth0");
    let before = traces(lab.host());
    let served = Served::start(lab, &[]);
    assert_eq!(programs_on(served.lab.host(), "eth0", Hook::Ingress).len(), 2);
    let [v4, v6] = served.fronts();
    assert_eq!(ask(&served.lab, v4, 20).total(), 20);
    // The other one drops TCP over IPv6, and it comes first.
    let error = served.lab.client().run(|| {
        let timeout = std::time::Duration::from_millis(500);
        std::net::TcpStream::connect_timeout(&v6, timeout).unwrap_err()
    });
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
    let Served { daemon, lab, .. } = served;
    daemon.stop();
    assert_traces(lab.host(), &before);
}

/// Case 79: one that comes later gets what is not ours, and its going does us no harm.
#[test]
fn a_tcx_program_that_comes_later_runs_behind_ours() {
    let served = Served::start(lab(1), &[]);
    let [v4, v6] = served.fronts();
    let foreign = Foreign::attach(served.lab.host(), "eth0");
    let _own = served.lab.host().run(|| Server::bind("host", 81)).unwrap();
    for front in [v4, v6] {
        assert_eq!(ask(&served.lab, front, 10).total(), 10);
    }
    assert_eq!(ask(&served.lab, served.lab.front(81), 10).of("host"), 10);
    let own_v6 = served.lab.front_v6(81);
    let timeout = std::time::Duration::from_millis(500);
    let tried = served.lab.client().run(|| std::net::TcpStream::connect_timeout(&own_v6, timeout));
    assert!(tried.is_err(), "the other program has not seen what we passed on");
    drop(foreign);
    assert_eq!(ask(&served.lab, own_v6, 10).of("host"), 10);
    assert_eq!(ask(&served.lab, v6, 10).total(), 10);
}

/// A filter of somebody else, in classic BPF (`return 0`), which every kernel with cls_bpf has.
fn add_filter(lab: &Lab, hook: &str) {
    let filter = ["filter", "add", "dev", "eth0", hook, "bpf", "bytecode", "1,6 0 0 0,"];
    tc(lab.host(), &[&filter[..], &["flowid", "1:1"]].concat());
}

/// The same under a clsact qdisc of its own.
fn add_foreign_filter(lab: &Lab) {
    tc(lab.host(), &["qdisc", "add", "dev", "eth0", "clsact"]);
    add_filter(lab, "ingress");
}

/// A clsact qdisc and a filter of others survive a clean exit.
fn assert_filter_survives(options: &[&str]) {
    let lab = lab(2);
    add_foreign_filter(&lab);
    let before = traces(lab.host());
    let served = Served::start(lab, options);
    for front in served.fronts() {
        assert_eq!(ask(&served.lab, front, 20).total(), 20);
    }
    let Served { daemon, lab, .. } = served;
    daemon.stop();
    assert_traces(lab.host(), &before);
}

/// Case 85.
#[test]
fn a_filter_of_others_survives_a_clean_exit_beside_tcx() {
    assert_filter_survives(&[]);
}

/// Case 85.
#[test]
fn a_filter_of_others_survives_a_clean_exit_beside_our_filters() {
    assert_filter_survives(&["--hook", "tc"]);
}

/// Case 85: the same for `clean` after SIGKILL.
#[test]
fn programs_and_filters_of_others_survive_clean() {
    for hook in ["tcx", "tc"] {
        let _undisturbed = undisturbed();
        let lab = lab(1);
        add_foreign_filter(&lab);
        let _foreign = Foreign::attach(lab.host(), "eth0");
        let before = traces(lab.host());
        let mut served = Served::start(lab, &["--hook", hook]);
        served.daemon.kill9();
        assert_ne!(traces(served.lab.host()), before);
        clean(served.lab.host(), &[]);
        assert_traces(served.lab.host(), &before);
    }
}

/// A filter that others add under our qdisc keeps the qdisc: it would go with it.
#[test]
fn a_filter_that_comes_later_keeps_the_qdisc_we_made() {
    let served = Served::start(lab(1), &["--hook", "tc"]);
    add_filter(&served.lab, "egress");
    let Served { daemon, lab, .. } = served;
    daemon.stop();
    let left = tc(lab.host(), &["filter", "show", "dev", "eth0", "egress"]);
    assert!(left.contains("bytecode"), "{left:?}");
    let left = tc(lab.host(), &["filter", "show", "dev", "eth0", "ingress"]);
    assert!(!left.contains("samport"), "{left:?}");
}

/// Takes programs off their hooks while samport serves, and waits until it serves as before. Nothing is left at the end.
fn assert_comes_back(options: &[&str], take_off: impl Fn(&Served) -> u64) {
    let lab = lab(2);
    let before = traces(lab.host());
    let served = Served::start(lab, options);
    for front in served.fronts() {
        assert_eq!(ask(&served.lab, front, 10).total(), 10);
    }
    let mark = served.daemon.mark();
    let taken = take_off(&served);
    served.daemon.wait_for_line_after(mark, "by somebody else; ", TIMEOUT);
    eventually("all programs are counted that were attached again", || {
        let count = served.status().0["control_loop"]["reattached"].as_u64().unwrap();
        (count == taken).then_some(())
    });
    for front in served.fronts() {
        eventually("it is served again", || served.lab.client().run(|| get(front, "/")).ok());
        assert_eq!(ask(&served.lab, front, 40).total(), 40);
    }
    let Served { daemon, lab, .. } = served;
    daemon.stop();
    assert_traces(lab.host(), &before);
}

/// Takes off all programs whose pinned links have names that begin like this. How many.
fn detach_links(served: &Served, begin: &str) -> u64 {
    let name = text(&served.status().0, "name").to_owned();
    let folder = Path::new("/sys/fs/bpf/samport").join(&name);
    let mut links = pins::pins_of(&name);
    let is_other = |pin: &String| begin == "link_" && pin.starts_with("link_local_");
    links.retain(|pin| pin.starts_with(begin) && !is_other(pin));
    assert!(!links.is_empty(), "no pin {begin}… in {:?}", pins::pins_of(&name));
    for link in &links {
        detach_link(&folder.join(link)).unwrap();
    }
    links.len() as u64
}

/// A network manager, another load balancer or a hand removes the qdisc, and every filter with it.
#[test]
fn filters_come_back_when_somebody_removes_their_qdisc() {
    assert_comes_back(&["--hook", "tc"], |served| {
        let host = served.lab.host();
        let count = |device: &str| -> u64 {
            let on = |hook| tc(host, &["filter", "show", "dev", device, hook]);
            let all = [on("ingress"), on("egress")].concat();
            all.lines().filter(|line| line.contains("samport_")).count() as u64
        };
        let veth = served.lab.backends()[0].host_interface();
        let taken = count("eth0") + count(veth);
        for device in ["eth0", veth] {
            tc(host, &["qdisc", "del", "dev", device, "clsact"]);
        }
        taken
    });
}

/// The same of one filter, under a qdisc that stays.
#[test]
fn one_filter_comes_back_that_somebody_removes() {
    assert_comes_back(&["--hook", "tc"], |served| {
        tc(served.lab.host(), &["filter", "del", "dev", "eth0", "ingress"]);
        1
    });
}

/// The same at tcx, whose links anybody with privileges may detach.
#[test]
fn programs_at_tcx_come_back_when_somebody_detaches_them() {
    assert_comes_back(&[], |served| detach_links(served, "link_"));
}

/// The same at XDP.
#[test]
fn the_xdp_program_comes_back_when_somebody_detaches_it() {
    assert_comes_back(&["--hook", "xdp", "--xdp-mode", "generic"], |served| {
        detach_links(served, "link_xdp_")
    });
}

/// The same at the root of the control groups, for clients on the host itself.
#[test]
fn programs_for_the_hosts_own_clients_come_back_when_somebody_detaches_them() {
    let host = |served: &Served| {
        let front = served.fronts()[0];
        served.lab.host().run(|| get(front, "/")).map(|answer| answer.backend)
    };
    assert_comes_back(&[], |served| {
        assert!(host(served).unwrap().starts_with("web-"));
        let taken = detach_links(served, "link_local_");
        eventually("the host is served again", || host(served).ok());
        taken
    });
}

/// Pins of the one instance in a lab, and what `samport status` has counted of those that were made again.
fn pins_of(served: &Served) -> (Vec<String>, u64) {
    let status = served.status().0;
    let repinned = status["control_loop"]["repinned"].as_u64().unwrap();
    (pins::pins_of(text(&status, "name")), repinned)
}

/// Pins that somebody else removes, all or one, are made again, so that samport can still be killed and taken over
/// from without a connection lost.
#[test]
fn pins_come_back_when_somebody_removes_them() {
    for options in [&[][..], &["--hook", "tc"], &["--hook", "xdp", "--xdp-mode", "generic"]] {
        let _undisturbed = undisturbed();
        let lab = lab(2);
        let before = traces(lab.host());
        let mut served = Served::start(lab, options);
        let mut kept = OpenConnections::open(&served, 5);
        let load = Load::start(served.lab.client(), served.fronts()[0], 1);
        let (all, repinned) = pins_of(&served);
        assert_eq!(repinned, 0);
        let name = text(&served.status().0, "name").to_owned();
        let folder = pins::folder_of(&name);
        let mut expected = 0;
        for removed in [vec![all[0].clone()], all.clone()] {
            let mark = served.daemon.mark();
            expected += removed.len() as u64;
            for pin in &removed {
                fs::remove_file(folder.join(pin)).unwrap();
            }
            if removed.len() == all.len() {
                fs::remove_dir(&folder).unwrap();
            }
            let said = format!("pins in {} ({}) were removed", folder.display(), removed.len());
            served.daemon.wait_for_line_after(mark, &said, TIMEOUT);
            eventually("they are counted", || (pins_of(&served).1 == expected).then_some(()));
            assert_eq!(pins_of(&served).0, all);
        }
        served = taken_over(served, &samport_binary(), options);
        served.daemon.wait_for_line("taking over from samport ", TIMEOUT);
        kept.assert_answered("taken over by pins that were made again");
        assert!(load.wait_for_more(20, TIMEOUT));
        load.stop().assert_no_failure();
        let Served { daemon, lab, .. } = served;
        daemon.stop();
        assert_traces(lab.host(), &before);
    }
}

/// Without a bpffs there is no place for pins: that is said, with the way out, and everybody is served meanwhile. A new one is
/// used after a restart: to Landlock it is not the one in which samport may write.
#[test]
fn a_bpffs_that_somebody_unmounts_is_named_and_a_new_one_is_used_after_a_restart() {
    own_mounts::run(|| {
        let _undisturbed = undisturbed();
        let served = Served::start(lab(1), &[]);
        let (all, _) = pins_of(&served);
        let mark = served.daemon.mark();
        own_mounts::unmount_bpffs();
        let said = "/sys/fs/bpf is no bpffs any more; mount it again (mount -t bpf bpf /sys/fs/bpf), and restart";
        served.daemon.wait_for_line_after(mark, said, TIMEOUT);
        for front in served.fronts() {
            assert_eq!(ask(&served.lab, front, 20).total(), 20);
        }
        own_mounts::mount_bpffs();
        let Served { daemon, file, servers, lab } = served;
        daemon.stop();
        let daemon = Daemon::start(&lab, &["-i", "eth0", "-p", "80:9090", "--file", file.path()]);
        let served = Served { daemon, file, servers, lab };
        assert_eq!(pins_of(&served).0.len(), all.len());
        let Served { daemon, lab, .. } = served;
        daemon.stop();
        assert_traces(lab.host(), &std::collections::BTreeSet::new());
    });
}

/// A control group for this process's children, removed when dropped.
struct ControlGroup(PathBuf);

impl ControlGroup {
    fn new(name: &str) -> Self {
        let folder = samport::system::cgroups::root().unwrap().join(name);
        fs::create_dir(&folder).unwrap();
        Self(folder)
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        eventually("the control group is empty", || fs::remove_dir(&self.0).ok());
    }
}

/// A process takes a port of the host that samport serves already. Its user and its unit are named, and it gets none of
/// the clients.
#[test]
fn a_process_that_takes_a_served_port_later_is_named_once() {
    let name = format!("samport-test-{}.service", std::process::id());
    let group = ControlGroup::new(&name);
    let served = Served::start(lab(1), &[]);
    // A program that is at hand and listens: another samport, which serves its metrics there.
    let procs = group.0.join("cgroup.procs");
    let enter = format!("echo $$ > {} && exec \"$0\" \"$@\"", procs.display());
    let args = ["-i", "eth0", "-p", "81:9090", "--file", served.file.path()];
    let args = [&args[..], &["--metrics", "0.0.0.0:80"]].concat();
    let late = Daemon::start_through(served.lab.host(), &["sh", "-c", &enter], &args, &[]);
    let said = "port 80 is served, and listened on by";
    let line = served.daemon.wait_for_line(said, TIMEOUT);
    let by = format!("{said} a process of user root in unit {name} since: ");
    assert!(line.text.contains(&by), "{}", line.text);
    assert_eq!(ask(&served.lab, served.fronts()[0], 20).of("web-1"), 20);
    let count = |text| served.daemon.lines().iter().filter(|line| line.text.contains(text)).count();
    // Another look comes after half a minute.
    std::thread::sleep(std::time::Duration::from_secs(32));
    assert_eq!(count(said), 1);
    late.stop();
    served.daemon.stop();
}
