//! What a running samport may do: no more than it needs, in every thread, and that is enough.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use samport::system::privileges::{USES, Until};
use samport_tests::daemon::{Backends, Daemon};
use samport_tests::load::{Connection, ask, get};
use samport_tests::served::{Served, TARGET};
use samport_tests::traces::{assert_traces, traces, undisturbed};
use samport_tests::{Lab, TIMEOUT};

use crate::{ended_with, lab};

/// The names of the capabilities that are needed, in lower case and without their prefix.
fn needed() -> Vec<String> {
    let needed = USES.iter().filter(|one| one.needed);
    needed.map(|one| one.capability.to_string()[4..].to_lowercase()).collect()
}

/// What starts a program with these capabilities and no way to others.
fn only(capabilities: &[String]) -> [String; 3] {
    let set = capabilities.join(",+");
    ["setpriv".to_owned(), format!("--bounding-set=-all,+{set}"), format!("--inh-caps=-all,+{set}")]
}

/// The masks of all threads of a process, by what /proc calls them.
fn masks(pid: u32) -> BTreeMap<String, BTreeSet<String>> {
    let mut masks: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten() {
        // One that has just ended has none.
        let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
        for (name, value) in status.lines().filter_map(|line| line.split_once(":\t")) {
            if name.starts_with("Cap") || ["NoNewPrivs", "Seccomp"].contains(&name) {
                masks.entry(name.to_owned()).or_default().insert(value.to_owned());
            }
        }
    }
    masks
}

/// Panics unless each thread has these capabilities, no others, and no way to get any.
fn assert_has_only(pid: u32, names: &[&str]) {
    assert_has(pid, names, names);
}

/// The same where the bounding set has others too, which no_new_privs makes worthless.
fn assert_has(pid: u32, names: &[&str], bounding: &[&str]) {
    let masks = masks(pid);
    let mask = |names: &[&str]| BTreeSet::from([format!("{:016x}", mask_of(names))]);
    for (set, names) in [("CapPrm", names), ("CapEff", names), ("CapBnd", bounding)] {
        assert_eq!(masks[set], mask(names), "{set}: {masks:?}");
    }
    for set in ["CapInh", "CapAmb"] {
        assert_eq!(masks[set], mask(&[]), "{set}: {masks:?}");
    }
    assert_eq!(masks["NoNewPrivs"], BTreeSet::from(["1".to_owned()]), "{masks:?}");
    // SECCOMP_MODE_FILTER.
    assert_eq!(masks["Seccomp"], BTreeSet::from(["2".to_owned()]), "{masks:?}");
}

fn mask_of(names: &[&str]) -> u64 {
    let meant = USES.iter().filter(|one| names.contains(&one.capability.to_string().as_str()));
    meant.fold(0, |mask, one| mask | one.capability.bitmask())
}

fn assert_no_complaint(daemon: &Daemon) {
    let lines = daemon.lines();
    assert!(lines.iter().all(|line| !line.text.contains("privileges")), "{lines:?}");
    assert!(lines.iter().all(|line| !line.text.contains("does not need")), "{lines:?}");
}

/// Capabilities go all the same, and everybody can see that the rest does not.
#[test]
fn without_the_sandbox_the_log_and_status_say_so() {
    let served = Served::start(lab(1), &["--sandbox", "off"]);
    let seccomp = &masks(served.daemon.pid())["Seccomp"];
    let inherited = fs::read_to_string("/proc/self/status").unwrap();
    let inherited = inherited.lines().find_map(|line| line.strip_prefix("Seccomp:\t")).unwrap();
    assert_eq!(seccomp, &BTreeSet::from([inherited.to_owned()]), "none but that of this test's");
    served.daemon.wait_for_line("the sandbox is off (--sandbox off)", TIMEOUT);
    let told = &served.status().0["privileges"];
    assert_eq!((&told["sandbox_off"], &told["seccomp"]), (&true.into(), &false.into()), "{told}");
    assert!(told["landlock_abi"].is_null() && told["missing"].as_array().unwrap().len() == 1);
    let wide = served.order(&["status", "-o", "wide"]);
    assert!(wide.contains("; sandbox off (--sandbox off)"), "{wide}");
    assert_eq!(ask(&served.lab, served.fronts()[0], 10).total(), 10);
    served.daemon.stop();
}

/// Backends come and go, answers and metrics are had, and nothing stays: all with two capabilities.
#[test]
fn once_it_is_ready_each_thread_has_what_is_left_to_do_and_no_more() {
    let lab = lab(2);
    let before = traces(lab.host());
    let mut served = Served::start(lab, &["--metrics", "127.0.0.1:9464", "--drain", "1"]);
    let with_file = ["CAP_BPF", "CAP_NET_ADMIN", "CAP_DAC_READ_SEARCH"];
    assert_has_only(served.daemon.pid(), &with_file);
    let told = &served.status().0["privileges"];
    assert_eq!(told["user"], "root");
    let mut capabilities = with_file;
    capabilities.sort_unstable();
    assert_eq!(told["capabilities"], serde_json::json!(capabilities));
    assert!(told["landlock_abi"].as_u64().is_some_and(|abi| abi > 0), "{told}");
    assert_eq!((&told["seccomp"], &told["missing"]), (&true.into(), &serde_json::json!([])));
    let (name, addresses) = served.add_backend();
    served.change(("+", &name, ""), |file| file.add_all(&name, addresses));
    served.change(("-", "web-1", "draining"), |file| file.remove("web-1"));
    assert_eq!(ask(&served.lab, served.fronts()[0], 30).total(), 30);
    served.order(&["drain", "web-2"]);
    // A bridge that comes has a program of its own.
    served.lab.host().ip(&["link", "add", "late", "type", "bridge"]).unwrap();
    served.lab.host().ip(&["link", "set", "late", "up"]).unwrap();
    samport_tests::eventually("a program on the bridge", || {
        traces(served.lab.host()).iter().any(|one| one.contains("of late")).then_some(())
    });
    assert_has_only(served.daemon.pid(), &with_file);
    assert_no_complaint(&served.daemon);
    let Served { daemon, lab, .. } = served;
    daemon.stop();
    lab.host().ip(&["link", "del", "late"]).unwrap();
    assert_traces(lab.host(), &before);
}

#[test]
fn without_a_file_to_read_there_are_two_capabilities() {
    let for_good = USES.iter().filter(|one| one.needed && one.until == Until::End);
    let for_good: Vec<String> = for_good.map(|one| one.capability.to_string()).collect();
    assert_eq!(for_good, ["CAP_BPF", "CAP_NET_ADMIN"]);
    let lab = lab(1);
    let backend = lab.backends()[0].v4(TARGET).to_string();
    let args = ["-i", "eth0", "-p", "80:9090", "--backend", &backend];
    for more in [&[][..], &["--hook", "tc"], &["--hook", "xdp"], &["-v"]] {
        let daemon = Daemon::start(&lab, &[&args[..], more].concat());
        assert_has_only(daemon.pid(), &["CAP_BPF", "CAP_NET_ADMIN"]);
        assert_no_complaint(&daemon);
        daemon.stop();
    }
}

fn start_with_only(lab: &Lab, capabilities: &[String], args: &[&str]) -> Daemon {
    let wrapper = only(capabilities);
    Daemon::start_through(lab.host(), &wrapper.each_ref().map(String::as_str), args, &[])
}

/// The list is complete: with nothing else, everything works.
#[test]
fn with_the_capabilities_of_the_list_and_no_others_it_works() {
    let lab = lab(2);
    let before = traces(lab.host());
    let _servers = lab.serve(TARGET).unwrap();
    let mut file = Backends::none();
    file.add("web-1", lab.backends()[0].v4(TARGET));
    for hook in ["tcx", "tc", "xdp"] {
        let args = ["-i", "eth0", "-p", "80:9090", "--hook", hook, "--file", file.path()];
        let daemon = start_with_only(&lab, &needed(), &args);
        // It takes CAP_SETPCAP to make the bounding set smaller.
        let bounding = ["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"];
        assert_has(daemon.pid(), &bounding[..2], &bounding);
        let front = lab.front(80);
        assert_eq!(ask(&lab, front, 10).of("web-1"), 10);
        assert_eq!(lab.host().run(|| get(front, "/")).unwrap().backend, "web-1");
        daemon.stop();
        assert_traces(lab.host(), &before);
    }
}

/// Case 76: what a killed one has left is taken over with these, too.
#[test]
fn with_the_capabilities_of_the_list_and_no_others_it_takes_over() {
    let _undisturbed = undisturbed();
    let lab = lab(1);
    let before = traces(lab.host());
    let _servers = lab.serve(TARGET).unwrap();
    let backend = lab.backends()[0].v4(TARGET).to_string();
    for hook in ["tcx", "tc", "xdp"] {
        let args = ["-i", "eth0", "-p", "80:9090", "--hook", hook, "--backend", &backend];
        let mut killed = start_with_only(&lab, &needed(), &args);
        let mut kept = lab.client().run(|| Connection::open(lab.front(80))).unwrap();
        kept.get("/").unwrap();
        killed.kill9();
        kept.get("/").unwrap();
        let next = start_with_only(&lab, &needed(), &args);
        killed.adopted();
        next.wait_for_line("taking over from samport ", TIMEOUT);
        kept.get("/").unwrap_or_else(|e| panic!("--hook {hook}: the connection is lost: {e}"));
        assert_no_complaint(&next);
        next.stop();
        assert_traces(lab.host(), &before);
    }
}

/// Case 87: the list has nothing that is not needed: without one of them it is named, and nothing is touched.
#[test]
fn without_one_capability_of_the_list_it_is_named() {
    let lab = lab(1);
    let before = traces(lab.host());
    let args = ["run", "-i", "eth0", "-p", "80", "--backend", "172.30.0.10"];
    for missing in needed() {
        let others: Vec<String> = needed().into_iter().filter(|one| *one != missing).collect();
        let wrapper = only(&others);
        let ended = ended_with(lab.host(), &wrapper.each_ref().map(String::as_str), &args);
        ended.assert(5, &[&format!("CAP_{}", missing.to_uppercase()), "root"]);
        assert_traces(lab.host(), &before);
    }
}
