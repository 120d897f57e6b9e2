//! `samport demo` as a user runs it: alone, and on a machine where others come and go.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use samport::lab::NETNS_DIR;
use samport_tests::bpf::Foreign;
use samport_tests::daemon::samport_binary;
use samport_tests::served::Served;
use samport_tests::traces::undisturbed;
use samport_tests::{Lab, Namespace, eventually, require_root};

/// Runs the demo with these options to its end, which has to be a good one; what it has said.
fn demo(options: &[&str]) -> String {
    let demo = Command::new(samport_binary()).arg("demo").args(options).output().unwrap();
    let said = String::from_utf8_lossy(&[demo.stdout, demo.stderr].concat()).into_owned();
    assert!(demo.status.success(), "{said}");
    said
}

/// Runs the demo; panics unless it is fair, fails no request and finds nothing left behind.
fn assert_demo_works() {
    let said = demo(&[]);
    for line in ["each share is within 4 σ of equal", ", 0 failed", "nothing left behind"] {
        assert!(said.contains(line), "no {line:?} in:\n{said}");
    }
}

#[test]
fn the_demo_is_fair_fails_no_request_and_leaves_nothing_behind() {
    require_root();
    assert_demo_works();
}

/// Three hosts, one of which is cut off and comes back.
#[test]
fn the_demo_of_several_hosts_is_fair_and_leaves_nothing_behind() {
    require_root();
    let said = demo(&["--nodes", "3"]);
    for line in [
        "192.0.2.3 is n3",
        "each share is within 4 σ of equal: 50 ± 26",
        "n3 is down after",
        "n3 is up again after",
        "nothing left behind",
        " BPF programs, ",
    ] {
        assert!(said.contains(line), "no {line:?} in:\n{said}");
    }
}

/// `samport demo | head -1`.
#[test]
fn a_reader_that_has_enough_ends_the_demo_which_leaves_nothing_behind() {
    require_root();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(samport_binary());
    let child = command.arg("demo").stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
    let prefix = format!("sp{}-", child.id());
    let ended = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!((ended.status.code(), said.as_ref()), (Some(141), ""));
    let left: Vec<_> = std::fs::read_dir(NETNS_DIR)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with(&prefix))
        .collect();
    assert_eq!(left, [""; 0]);
}

/// Another samport gains and loses a backend, ends and is started again, one is killed, and programs and links of
/// somebody else come and go, all while the demo runs.
#[test]
fn the_demo_leaves_nothing_behind_beside_another_samport_and_other_users_of_bpf() {
    require_root();
    let _undisturbed = undisturbed();
    let (ended, rounds) = (AtomicBool::new(false), [const { AtomicU32::new(0) }; 2]);
    let others: [fn(); 2] = [another_samport, other_programs];
    let so_far = || rounds.each_ref().map(|round| round.load(Ordering::Relaxed));
    thread::scope(|scope| {
        for (other, round) in others.into_iter().zip(&rounds) {
            let ended = &ended;
            scope.spawn(move || {
                while !ended.load(Ordering::Relaxed) {
                    other();
                    round.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let _end = End(&ended);
        let all_are_at_it = || so_far().iter().all(|rounds| *rounds > 0).then_some(());
        eventually("the others are at it", all_are_at_it);
        let before = so_far();
        assert_demo_works();
        let after = so_far();
        for (before, after) in before.into_iter().zip(after) {
            assert!(after > before, "nothing has happened beside the demo: {before} rounds");
        }
    });
}

/// Ends the others, also after a panic.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn another_samport() {
    let lab = Lab::builder().backends(1).build().unwrap();
    let mut served = Served::start(lab, &["--drain", "0"]);
    let (name, addresses) = served.add_backend();
    served.change(("+", &name, ""), |file| file.add_all(&name, addresses));
    served.change(("-", &name, ""), |file| file.remove(&name));
    served.daemon.kill9();
    drop(served);
}

/// Programs at tcx and XDP, loaded, attached, taken off again.
fn other_programs() {
    let namespace = Namespace::new("other").unwrap();
    namespace.ip(&["link", "add", "eth0", "type", "veth", "peer", "name", "eth1"]).unwrap();
    let _attached = [Foreign::attach(&namespace, "eth0"), Foreign::attach_xdp(&namespace, "eth1")];
}
