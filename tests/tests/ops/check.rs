//! `samport check`: what it finds, how it ends, and that it touches nothing.

use std::net::TcpListener;
use std::process::Output;

use samport_tests::Lab;
use samport_tests::bpf::Foreign;
use samport_tests::daemon::{samport, samport_binary};
use samport_tests::served::Served;
use samport_tests::traces::{assert_traces, traces};
use serde_json::Value;

use crate::lab;

/// Without an engine, which the tests' namespaces have none of.
const CHECK: [&str; 7] = ["check", "-i", "eth0", "-p", "80", "--provider", "static"];

/// How it ended, and what it printed.
fn checked(lab: &Lab, wrapper: &[&str], args: &[&str]) -> (Option<i32>, String) {
    let before = traces(lab.host());
    let mut command = lab.host().command("env");
    command.args(["-u", "DOCKER_HOST"]).args(wrapper).arg(samport_binary()).args(args);
    let Output { status, stdout, stderr } = command.output().unwrap();
    let said = String::from_utf8(stderr).unwrap();
    assert!(!said.contains("panicked"), "{said}");
    assert_eq!(status.success(), said.is_empty(), "{said}");
    assert_traces(lab.host(), &before);
    (status.code(), String::from_utf8(stdout).unwrap())
}

/// Panics unless it ends with this code and one line begins so and contains that.
fn assert_line(lab: &Lab, wrapper: &[&str], args: &[&str], code: i32, begin: &str, part: &str) {
    let (ended, printed) = checked(lab, wrapper, args);
    assert_eq!(ended, Some(code), "{printed}");
    let mut lines = printed.lines();
    let line = lines.find(|line| line.starts_with(begin) && line.contains(part));
    assert!(line.is_some(), "nothing like {begin:?} … {part:?} in\n{printed}");
}

fn nft(lab: &Lab, text: &str) {
    let status = lab.host().command("nft").arg(text).status().unwrap();
    assert!(status.success(), "nft {text}");
}

#[test]
fn a_machine_that_is_well_gets_ok_and_0() {
    let lab = lab(1);
    let (code, printed) = checked(&lab, &[], &CHECK);
    assert_eq!(code, Some(0), "{printed}");
    assert!(printed.lines().all(|line| line.starts_with("ok    ")), "{printed}");
    for part in [
        "kernel ",
        " · tcx · CAP_BPF CAP_NET_ADMIN CAP_PERFMON · bpffs",
        "eth0: Ethernet, up,",
        "port 80 is free",
    ] {
        assert!(printed.contains(part), "no {part:?} in\n{printed}");
    }
}

#[test]
fn an_engine_that_is_not_there_is_3() {
    let lab = lab(0);
    let args = ["check", "-i", "eth0", "--endpoint", "/nowhere/docker.sock"];
    assert_line(&lab, &[], &args, 3, "FAIL  cannot reach Docker at", "/nowhere/docker.sock");
    let podman = [&args[..], &["--provider", "podman"]].concat();
    assert_line(&lab, &[], &podman, 3, "FAIL  cannot reach Podman at", "podman.socket");
}

#[test]
fn what_run_would_refuse_is_4() {
    let lab = lab(1);
    let _listener = lab.host().run(|| TcpListener::bind("0.0.0.0:80")).unwrap();
    let pid = format!("(pid {}) → stop it", std::process::id());
    assert_line(&lab, &[], &CHECK, 4, "FAIL  port 80 is listened on by", &pid);
    let interface = ["check", "-i", "eth7", "--provider", "static"];
    assert_line(&lab, &[], &interface, 4, "FAIL  there is no interface \"eth7\"", "eth0");
    let engine = ["check", "-p", "80", "--endpoint", "/nowhere/docker.sock"];
    assert_line(&lab, &[], &engine, 4, "FAIL  cannot reach Docker", "no such socket");
}

#[test]
fn a_samport_that_serves_the_same_is_named() {
    let served = Served::start(lab(1), &["--hook", "xdp", "--xdp-mode", "generic"]);
    let pid = format!("(pid {})", served.daemon.pid());
    assert_line(&served.lab, &[], &CHECK, 4, "FAIL  port 80 on eth0 is served by samport", &pid);
    let other = ["check", "-i", "eth0", "-p", "81", "--provider", "static"];
    let (code, printed) = checked(&served.lab, &[], &other);
    assert_eq!(code, Some(0), "{printed}");
    assert!(!printed.contains("samport_"), "our own programs are nothing to warn of:\n{printed}");
}

#[test]
fn without_privileges_it_is_5_and_the_rest_is_said_all_the_same() {
    let lab = lab(1);
    let user = ["setpriv", "--reuid=65534", "--bounding-set=-all"];
    let lacks = "lacks CAP_BPF and CAP_NET_ADMIN";
    assert_line(&lab, &user, &CHECK, 5, "FAIL  samport", lacks);
    assert_line(&lab, &user, &CHECK, 5, "ok    eth0: Ethernet, up", "");
    assert_line(
        &lab,
        &user,
        &CHECK,
        5,
        "warn  cannot find out whether there is a firewall",
        "--allow",
    );
}

#[test]
fn an_interface_that_is_down_or_has_no_address_is_a_warning() {
    let lab = lab(0);
    lab.host().ip(&["addr", "flush", "dev", "eth0"]).unwrap();
    assert_line(&lab, &[], &CHECK, 0, "warn  eth0 has no address", "ip address add");
    lab.host().ip(&["link", "set", "eth0", "down"]).unwrap();
    assert_line(&lab, &[], &CHECK, 0, "warn  eth0 is down", "ip link set eth0 up");
}

#[test]
fn sources_that_samport_cannot_validate_are_a_warning() {
    let lab = lab(0);
    for (family, off) in [("ipv4", "IPv4"), ("ipv6", "IPv6")] {
        let key = format!("net/{family}/conf/lo/forwarding");
        lab.host().sysctl(&key, "0").unwrap();
        let begin = format!("warn  {off} forwarding is off");
        assert_line(&lab, &[], &CHECK, 0, &begin, "conf.lo.forwarding=1");
        lab.host().sysctl(&key, "1").unwrap();
    }
    lab.host().ip(&["rule", "add", "fwmark", "7", "table", "77", "priority", "9"]).unwrap();
    let (_, printed) = checked(&lab, &[], &CHECK);
    assert!(!printed.contains("warn"), "rp_filter is not strict:\n{printed}");
    lab.host().sysctl("net/ipv4/conf/eth0/rp_filter", "1").unwrap();
    let rule = "cannot follow policy rule 9 (fwmark 0x7 lookup 77) → on eth0, use --allow";
    assert_line(&lab, &[], &CHECK, 0, "warn  sources are validated as with rp_filter=2", rule);
}

#[test]
fn programs_of_others_on_the_hooks_are_a_warning() {
    let lab = lab(0);
    let _foreign = Foreign::attach(lab.host(), "eth0");
    let others = "warn  eth0 has other programs at tcx";
    assert_line(&lab, &[], &CHECK, 0, others, "before samport: foreign →");
    let _xdp = Foreign::attach_xdp(lab.host(), "eth0");
    let begin = "warn  eth0 has an XDP program, foreign:";
    assert_line(&lab, &[], &CHECK, 0, begin, "--hook xdp cannot be used");
}

#[test]
fn firewalls_of_each_kind_are_a_warning() {
    let lab = lab(0);
    nft(
        &lab,
        "add table inet guard; add chain inet guard in { type filter hook input priority 0; }",
    );
    let (_, idle) = checked(&lab, &[], &CHECK);
    assert!(idle.contains("ok    no firewall"), "a chain without a rule does nothing:\n{idle}");
    nft(&lab, "add rule inet guard in tcp dport 22 accept");
    let bypass = "traffic on :80 will bypass it → use --allow";
    let guard = "warn  nftables chain \"inet guard in\" is active";
    assert_line(&lab, &[], &CHECK, 0, guard, bypass);
    nft(&lab, "flush table inet guard; add chain inet guard in { policy drop; }");
    let strict = "warn  nftables chain \"inet guard in\" (it drops";
    assert_line(&lab, &[], &CHECK, 0, strict, bypass);
    nft(&lab, "delete table inet guard");
    let legacy = ["-P", "INPUT", "DROP"];
    assert!(lab.host().command("iptables-legacy").args(legacy).status().unwrap().success());
    assert_line(&lab, &[], &CHECK, 0, "warn  iptables-legacy (it drops", bypass);
}

#[test]
fn a_missing_bpffs_is_a_warning_and_stays_missing() {
    let lab = lab(0);
    let hidden = ["unshare", "-m", "sh", "-c"];
    let script = "mount -t tmpfs none /sys/fs/bpf && \"$@\"; code=$?; ls /sys/fs/bpf; exit $code";
    let wrapper = [&hidden[..], &[script, "sh"]].concat();
    let (code, printed) = checked(&lab, &wrapper, &CHECK);
    assert_eq!(code, Some(0), "{printed}");
    let line = "warn  bpffs is not mounted at /sys/fs/bpf → `samport run` mounts it";
    assert!(printed.contains(line), "{printed}");
    assert!(printed.lines().all(|line| line.get(4..6) == Some("  ")), "made something:\n{printed}");
}

#[test]
fn json_says_the_same() {
    let lab = lab(0);
    let args = ["check", "-i", "eth7", "--provider", "static", "-o", "json"];
    let output = samport(lab.host(), &args);
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&document["schema"], &document["ok"]), (&1.into(), &false.into()));
    let findings = document["findings"].as_array().unwrap();
    let failed: Vec<_> = findings.iter().filter(|finding| finding["level"] == "fail").collect();
    assert_eq!(failed.len(), 1, "{document}");
    assert_eq!(failed[0]["what"], "there is no interface \"eth7\"");
    assert!(failed[0]["way_out"].as_str().unwrap().contains("eth0"), "{document}");
}
