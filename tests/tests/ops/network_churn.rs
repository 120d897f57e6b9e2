//! A routing daemon, and container starts by the hundred, change the host's network faster than anybody can follow.

use std::fmt::Write as _;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Instant;

use samport_tests::http;
use samport_tests::load::ask;
use samport_tests::served::Served;
use samport_tests::{Lab, Namespace, eventually};

use crate::lab;

/// Routes of one batch.
const ROUTES: u32 = 20_000;
/// Batches that have to pass while samport is watched: 200,000 routes come, and as many go.
const BATCHES: u64 = 20;
/// The group of the veths that come and go.
const GROUP: u32 = 7;
/// More than samport may grow by, in kB: it holds nothing of what it is told of routes.
const GROWTH: u64 = 64 * 1024;

/// Changes of the network that go on until this is dropped.
struct Churn {
    is_over: Arc<AtomicBool>,
    batches: Arc<AtomicU64>,
    workers: Vec<JoinHandle<()>>,
}

impl Churn {
    /// Of routes, and of veths if so many are to come and go.
    fn start(host: &Namespace, veths: u32) -> Self {
        host.batch(
            "link add name feed0 type veth peer name feed1\nlink set feed0 up\nlink set feed1 up\n",
        )
        .unwrap();
        let mut churn =
            Self { is_over: Arc::default(), batches: Arc::default(), workers: Vec::new() };
        for net in [10, 11, 12, 13] {
            churn.work(host, &routes("add", net), &routes("del", net));
        }
        if veths > 0 {
            let add = |number| {
                format!(
                    "link add name {number}feed group {GROUP} type veth peer name {number}peer\n"
                )
            };
            // All of them under one lock: the kernel tells of them faster than anybody can read.
            let del = format!("link del group {GROUP}\n");
            churn.work(host, &(0..veths).map(add).collect::<String>(), &del);
        }
        churn
    }

    fn work(&mut self, host: &Namespace, there: &str, back: &str) {
        let (is_over, batches) = (Arc::clone(&self.is_over), Arc::clone(&self.batches));
        let scripts = [there, back].map(|text| {
            let script = tempfile::NamedTempFile::new().unwrap();
            fs::write(script.path(), text).unwrap();
            script
        });
        let mut commands = scripts.each_ref().map(|script| {
            let mut command = host.command("ip");
            command.arg("-batch").arg(script.path());
            command
        });
        self.workers.push(std::thread::spawn(move || {
            let _scripts = scripts;
            while !is_over.load(Relaxed) {
                for command in &mut commands {
                    assert!(command.status().unwrap().success(), "{command:?}");
                    batches.fetch_add(1, Relaxed);
                }
            }
        }));
    }

    /// Waits until so many batches more have passed.
    fn wait_for(&self, batches: u64) {
        let goal = self.batches.load(Relaxed) + batches;
        eventually("routes come and go", || (self.batches.load(Relaxed) >= goal).then_some(()));
    }
}

impl Drop for Churn {
    fn drop(&mut self) {
        self.is_over.store(true, Relaxed);
        for worker in self.workers.drain(..) {
            // It says itself what has failed.
            let _ = worker.join();
        }
    }
}

fn routes(verb: &str, net: u8) -> String {
    (0..ROUTES).fold(String::new(), |mut text, number| {
        let [_, b, c, d] = (number << 2).to_be_bytes();
        writeln!(text, "route {verb} {net}.{b}.{c}.{d}/30 dev feed0").unwrap();
        text
    })
}

/// The most memory a process has had so far, in kB.
fn peak_memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn resyncs(served: &Served, cause: &str) -> u64 {
    served.status().0["control_loop"]["resyncs"][cause].as_u64().unwrap()
}

/// A backend comes and goes, and the operator is heard.
fn come_and_go(served: &mut Served) {
    let (name, addresses) = served.add_backend();
    let begin = Instant::now();
    served.change(("+", &name, ""), |file| file.add_all(&name, addresses));
    eprintln!("{name} served after {:?}", begin.elapsed());
    for front in served.fronts() {
        assert!(ask(&served.lab, front, 40).of(&name) > 0, "{front}");
    }
    let begin = Instant::now();
    served.order(&["drain", &name]);
    eprintln!("drain ordered in {:?}", begin.elapsed());
    served.change(("-", &name, "gone"), |file| file.remove(&name));
}

/// Row D1 of the field faults: netlink overruns, and the loop goes on.
#[test]
fn routes_and_veths_by_the_thousand_keep_nobody_waiting() {
    let metrics = "127.0.0.1:9464";
    let mut served = Served::start(lab(1), &["--drain", "1", "--metrics", metrics]);
    let before = peak_memory(served.daemon.pid());
    let churn = Churn::start(served.lab.host(), 300);
    for _ in 0..6 {
        churn.wait_for(3);
        come_and_go(&mut served);
    }
    churn.wait_for(BATCHES);
    served.order(&["healthcheck"]);
    eventually("lost messages are counted", || (resyncs(&served, "netlink") > 0).then_some(()));
    let host = served.lab.host();
    let text = host.run(|| http::get(metrics.parse().unwrap(), "/metrics")).unwrap().body;
    let line = text.lines().find(|line| line.contains("resyncs_total{source=\"netlink\"}"));
    let counted: u64 = line.unwrap().rsplit(' ').next().unwrap().parse().unwrap();
    assert!(counted > 0, "{text}");
    let grown = peak_memory(served.daemon.pid()) - before;
    eprintln!("grown by {grown} kB; lost messages {} times", resyncs(&served, "netlink"));
    assert!(grown < GROWTH, "samport has grown by {grown} kB");

    // It is heard while all that goes on.
    let Served { daemon, lab, .. } = served;
    let begin = Instant::now();
    daemon.stop();
    eprintln!("stopped in {:?}", begin.elapsed());
    churn.wait_for(1);
    drop(churn);
    drop::<Lab>(lab);
}
