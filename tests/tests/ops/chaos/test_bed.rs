//! Everything that goes wrong, done to a real samport in a lab.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use samport::dataplane::pins;
use samport::lab::output_of;
use samport_tests::bpf::detach_link;
use samport_tests::daemon::Daemon;
use samport_tests::fake_engine::{Behavior, Container, FakeEngine};
use samport_tests::served::{LISTEN, TARGET, inode};
use samport_tests::{HOST_V6, Lab, Namespace, Server, eventually, own_mounts};
use tempfile::TempDir;

use super::explain::Window;
use super::kernel::{MAX_BACKENDS, attached};
use super::schedule::{Config, Fault};

/// The address that comes and goes.
const ADDRESS: &str = "192.0.2.77/24";
/// Routes of one batch.
const ROUTES: u16 = 2_000;
/// Between two looks whether somebody has put back what was taken off.
const LOOK: Duration = Duration::from_millis(300);
/// Before samport is started again that has ended by itself: what a service manager waits.
const RESTART: Duration = Duration::from_millis(300);

/// The lab, the engine, and samport. Fields are dropped in their order: samport before the lab.
pub struct TestBed {
    daemon: Daemon,
    args: Vec<String>,
    /// samport was killed, and is not to be started yet.
    is_killed: bool,
    launched: Instant,
    /// What has ended by itself, and what may be why.
    pub ended: Vec<String>,
    routes: Option<Routes>,
    pub engine: FakeEngine,
    config: PathBuf,
    servers: Vec<Option<Server>>,
    pub lab: Lab,
    begin: Instant,
    /// What was attached before anything went wrong.
    attached: std::collections::BTreeMap<String, usize>,
    looked: Instant,
    /// Ids of containers that have stopped, by the numbers of their backends.
    stopped: Vec<(usize, String)>,
    /// Faults that may be why samport does not start: how many of them are in force, and when one was last.
    in_the_way: (usize, Instant),
    pub windows: Vec<Window>,
    folder: TempDir,
}

impl TestBed {
    /// samport serves each backend as a container of an engine, by IPv4 and IPv6.
    pub fn start(lab: Lab, hook: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("samport.toml");
        let servers = lab.serve(TARGET).unwrap().into_iter().map(Some).collect();
        lab.host()
            .batch("link add name feed0 type veth peer name feed1\nlink set feed0 up\n")
            .unwrap();
        let engine = FakeEngine::start();
        for number in 0..lab.backends().len() {
            engine.has([container(&lab, number)]);
        }
        let text = format!(
            "iface = \"eth0\"\nport = [\"{LISTEN}:{TARGET}\"]\nendpoint = \"{}\"\nhook = \"{hook}\"\nmax-backends = {MAX_BACKENDS}\n",
            engine.url(),
        );
        let base = config.with_extension("base");
        fs::write(&base, &text).unwrap();
        fs::write(&config, &text).unwrap();
        let args = vec!["--config".to_owned(), config.to_str().unwrap().to_owned()];
        let daemon = Daemon::start(&lab, &[&args[0], &args[1]]);
        let now = Instant::now();
        let mut test_bed = Self {
            daemon,
            args,
            is_killed: false,
            launched: now,
            ended: Vec::new(),
            routes: None,
            engine,
            config,
            servers,
            lab,
            begin: now,
            attached: std::collections::BTreeMap::new(),
            looked: now,
            stopped: Vec::new(),
            in_the_way: (0, now),
            windows: Vec::new(),
            folder,
        };
        test_bed.wait_until_settled();
        test_bed.attached = attached(test_bed.lab.host());
        assert!(!test_bed.attached.is_empty());
        test_bed
    }

    /// Times are counted from now on.
    pub fn begins(&mut self, begin: Instant) {
        self.begin = begin;
    }

    /// Something goes wrong.
    pub fn begin(&mut self, fault: Fault) {
        let begin = self.begin.elapsed();
        let mut window = Window { fault, begin, undone: None, stopped: None, is_local: false };
        match fault {
            Fault::Kill => {
                self.daemon.kill9();
                self.is_killed = true;
            }
            Fault::Freeze => self.signal(Signal::STOP),
            Fault::Engine(behavior) => {
                self.hinder(true);
                self.engine.answer(behavior);
                self.engine.end_events();
            }
            Fault::Front => self.ip(&["link", "set", "eth0", "down"]),
            Fault::Veth(number) => self.set_veth(number, "down"),
            Fault::Routes => self.routes = Some(Routes::start(self.lab.host())),
            Fault::Address => self.ip(&["addr", "add", ADDRESS, "dev", "eth0"]),
            Fault::TakenOff(number) => window.is_local = self.take_off(number),
            Fault::Config(config) => {
                self.hinder(true);
                self.write_config(Some(config));
            }
            Fault::DiskFull => {
                self.hinder(true);
                own_mounts::fill();
            }
            Fault::Container(number) => {
                let name = self.lab.backends()[number].name().to_owned();
                self.stopped.push((number, self.engine.id_of(&name)));
                self.engine.stops(&name);
                // It breaks off, as one that is killed.
                drop(self.servers[number].take());
                window.stopped = Some(self.begin.elapsed());
            }
        }
        eprintln!("{begin:9.3?} {fault:?} begins");
        self.windows.push(window);
    }

    /// It is undone, as far as it is not samport that has to.
    pub fn end(&mut self, fault: Fault) {
        match fault {
            Fault::Kill => {
                self.is_killed = false;
                self.launch();
            }
            Fault::Freeze => self.signal(Signal::CONT),
            Fault::Engine(_) => {
                self.engine.answer(Behavior::Well);
                self.hinder(false);
            }
            Fault::Front => {
                self.ip(&["link", "set", "eth0", "up"]);
                // The kernel has taken it away, as it does.
                let address = format!("{HOST_V6}/64");
                self.ip(&["addr", "add", &address, "dev", "eth0", "nodad"]);
            }
            Fault::Veth(number) => self.set_veth(number, "up"),
            Fault::Routes => drop(self.routes.take()),
            Fault::Address => self.ip(&["addr", "del", ADDRESS, "dev", "eth0"]),
            // Seen by who looks around.
            Fault::TakenOff(_) => return,
            Fault::Config(_) => {
                self.write_config(None);
                self.hinder(false);
            }
            Fault::DiskFull => {
                own_mounts::empty();
                self.hinder(false);
            }
            Fault::Container(number) => {
                self.servers[number] = Some(self.lab.backends()[number].serve(TARGET).unwrap());
                self.engine.starts(container(&self.lab, number));
                return;
            }
        }
        self.undone(fault);
    }

    fn undone(&mut self, fault: Fault) {
        let now = self.begin.elapsed();
        let open = |window: &&mut Window| window.fault == fault && window.undone.is_none();
        if let Some(window) = self.windows.iter_mut().find(open) {
            window.undone = Some(now);
            eprintln!("{now:9.3?} {fault:?} is undone");
        }
    }

    /// Looks around: starts samport again if it has ended, and sees whether programs are back.
    pub fn look(&mut self) {
        if !self.is_killed && !self.daemon.is_running() {
            let (in_force, last) = self.in_the_way;
            let may_be_why = in_force > 0 || last > self.launched;
            let lines = self.daemon.lines();
            let said: Vec<_> = lines.iter().rev().take(3).map(|line| line.text.clone()).collect();
            eprintln!("{:9.3?} samport has ended: {said:?}", self.begin.elapsed());
            if !may_be_why || lines.iter().any(|line| line.text.contains("ready: ")) {
                self.ended.push(format!("{:?}: {said:?}", self.begin.elapsed()));
            }
            thread::sleep(RESTART);
            self.launch();
        }
        if self.looked.elapsed() < LOOK {
            return;
        }
        self.looked = Instant::now();
        let open = self.windows.iter().filter(|one| one.undone.is_none()).map(|one| one.fault);
        for fault in open.collect::<Vec<_>>() {
            let is_over = match fault {
                Fault::TakenOff(_) => attached(self.lab.host()) == self.attached,
                Fault::Container(number) => self.has_followed(number),
                _ => false,
            };
            if is_over {
                self.undone(fault);
            }
        }
    }

    /// Whether samport has the container that runs now, and none of its predecessors: until then connections lead to the
    /// new one under the number of the old one, and end with that.
    fn has_followed(&self, number: usize) -> bool {
        let name = self.lab.backends()[number].name();
        let path = format!("/run/samport/{}.json", self.instance());
        let Ok(record) = fs::read_to_string(path) else { return false };
        let mut stopped = self.stopped.iter().filter(|(of, _)| *of == number);
        self.servers[number].is_some()
            && record.contains(&self.engine.id_of(name))
            && !stopped.any(|(_, id)| record.contains(id))
    }

    /// Whether something that was taken off is not back yet.
    pub fn lacks_programs(&self) -> bool {
        let is_off = |one: &Window| matches!(one.fault, Fault::TakenOff(_));
        self.windows.iter().any(|one| is_off(one) && one.undone.is_none())
    }

    /// Faults that samport has not made up for yet.
    fn open(&self) -> Vec<Fault> {
        self.windows.iter().filter(|one| one.undone.is_none()).map(|one| one.fault).collect()
    }

    /// Waits until samport runs, serves everybody and has nothing to complain of.
    pub fn wait_until_settled(&mut self) {
        let backends = 2 * self.lab.backends().len();
        let mut last = String::new();
        let mut rounds = None;
        eventually("samport has settled", || {
            self.look();
            let status = match self.status() {
                Ok(status) => status,
                Err(why) => {
                    if last != why {
                        eprintln!("not settled: {why}");
                        last = why;
                    }
                    return None;
                }
            };
            let control = &status["control_loop"];
            let all = status["backends"].as_array()?;
            let active = all.iter().filter(|one| one["state"] == "active").count();
            let is_well = (all.len(), active) == (backends, backends)
                && control["error"] == ""
                && self.open().is_empty();
            let now = format!(
                "{} {active} of {backends} active, open: {:?}",
                control["error"],
                self.open()
            );
            if last != now && !is_well {
                eprintln!("not settled: {now}");
                last = now;
            }
            // Two whole rounds without anything to do, one of them by the clock.
            let count = control["rounds"].as_u64()?;
            if !is_well {
                rounds = None;
                return None;
            }
            let first = *rounds.get_or_insert(count);
            (count >= first + 2).then_some(())
        });
    }

    /// What `samport status` says of the instance, if it runs.
    pub fn status(&self) -> Result<serde_json::Value, String> {
        let output = samport_tests::daemon::samport(self.lab.host(), &["status", "-o", "json"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let document: serde_json::Value =
            serde_json::from_slice(&output.stdout).map_err(|_| said.clone())?;
        let all = document["instances"].as_array().map(Vec::as_slice).unwrap_or_default();
        let ours = all.iter().find(|one| one["name"] == self.instance().as_str());
        let running = ours.filter(|one| one["running"] == true).cloned();
        running.ok_or_else(|| format!("it is not among those that run: {said}"))
    }

    /// The instance's name.
    pub fn instance(&self) -> String {
        format!("eth0:{LISTEN}@{}", inode(self.lab.host()))
    }

    /// Stops samport; what is left is the lab, and what one needs to start it again.
    pub fn stop(self) -> Stopped {
        self.print(&self.daemon);
        let Self { daemon, args, engine, servers, lab, folder, .. } = self;
        daemon.stop();
        Stopped { args, _kept: (engine, servers, folder), lab }
    }

    fn launch(&mut self) {
        self.launched = Instant::now();
        let args: Vec<_> = self.args.iter().map(String::as_str).collect();
        let next = Daemon::launch(self.lab.host(), &args);
        let ended = std::mem::replace(&mut self.daemon, next);
        self.print(&ended);
        ended.adopted();
    }

    /// What a samport has said, at its times.
    fn print(&self, daemon: &Daemon) {
        for line in daemon.lines() {
            let at = line.at.saturating_duration_since(self.begin);
            eprintln!("    {at:9.3?} pid {}: {}", daemon.pid(), line.text);
        }
    }

    /// Notes that what may keep samport from starting has begun or ended.
    fn hinder(&mut self, begins: bool) {
        let (in_force, last) = &mut self.in_the_way;
        *in_force = if begins { *in_force + 1 } else { *in_force - 1 };
        *last = Instant::now();
    }

    fn signal(&mut self, signal: Signal) {
        if self.daemon.is_running() {
            self.daemon.signal(signal);
        }
    }

    fn ip(&self, args: &[&str]) {
        self.lab.host().ip(args).unwrap_or_else(|e| panic!("{e:#}"));
    }

    fn set_veth(&self, number: usize, state: &str) {
        self.ip(&["link", "set", self.lab.backends()[number].host_interface(), state]);
    }

    /// Whole, as careful writers do.
    fn write_config(&self, config: Option<Config>) {
        let base = fs::read_to_string(self.config.with_extension("base")).unwrap();
        let text = match config {
            None => base,
            Some(Config::Broken) => format!("{base}\nport = [[["),
            Some(Config::Other(number)) => {
                let balance = ["random", "round-robin", "least-conn", "maglev", "source-hash"];
                let [balance, drain, affinity] = [
                    balance[usize::from(number) % 5],
                    ["1s", "10s"][usize::from(number) / 5 % 2],
                    ["0", "3"][usize::from(number) / 10 % 2],
                ];
                format!(
                    "{base}\nbalance = \"{balance}\"\ndrain = \"{drain}\"\naffinity = {affinity}\n\
                     allow = [\"0.0.0.0/0\", \"::/0\"]\n"
                )
            }
        };
        let new = self.config.with_extension("new");
        fs::write(&new, text).unwrap();
        fs::rename(&new, &self.config).unwrap();
    }

    /// Takes one of the programs off its hook, or a qdisc with all of its filters. Whether it was one for the host's
    /// own clients.
    fn take_off(&self, number: usize) -> bool {
        let instance = self.instance();
        let mut links = pins::pins_of(&instance);
        links.retain(|pin| pin.starts_with("link_"));
        let mut devices: Vec<String> =
            self.lab.backends().iter().map(|one| one.host_interface().to_owned()).collect();
        devices.extend(["eth0", "br0"].map(str::to_owned));
        let are_links = links.iter().any(|pin| !pin.starts_with("link_local_"));
        let choices = links.len() + if are_links { 0 } else { devices.len() };
        let choice = number % choices;
        if let Some(link) = links.get(choice) {
            eprintln!("          {link} is detached");
            // It is being taken away by samport itself, if it is not there.
            let _ = detach_link(&Path::new("/sys/fs/bpf/samport").join(instance).join(link));
            return link.starts_with("link_local_");
        }
        let device = &devices[choice - links.len()];
        eprintln!("          the qdisc of {device} is removed");
        // It is not there while the container is not.
        let mut del = Command::new("tc");
        del.args(["-n", self.lab.host().name(), "qdisc", "del", "dev", device, "clsact"]);
        let _ = output_of(&mut del);
        false
    }
}

/// A world without samport.
pub struct Stopped {
    args: Vec<String>,
    /// Needed by who is started.
    _kept: (FakeEngine, Vec<Option<Server>>, TempDir),
    pub lab: Lab,
}

impl Stopped {
    /// Another samport in it.
    pub fn start_afresh(&self) -> Daemon {
        let args: Vec<_> = self.args.iter().map(String::as_str).collect();
        Daemon::start(&self.lab, &args)
    }
}

/// A container at the address of a backend.
fn container(lab: &Lab, number: usize) -> Container {
    let backend = &lab.backends()[number];
    let labels = [("samport.enable", "true")];
    Container::new(backend.name(), backend.v4(TARGET).ip(), &labels)
        .with_ipv6(backend.v6(TARGET).ip())
}

/// Routes that come and go until this is dropped.
struct Routes {
    is_over: Arc<AtomicBool>,
    worker: Option<JoinHandle<()>>,
}

impl Routes {
    fn start(host: &Namespace) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&is_over);
        let script = |verb: &str| {
            (0..ROUTES).fold(String::new(), |mut text, number| {
                let [a, b] = number.to_be_bytes();
                writeln!(text, "route {verb} 10.{a}.{b}.0/24 dev feed0").unwrap();
                text
            })
        };
        let mut commands = ["add", "del"].map(|verb| {
            let file = tempfile::NamedTempFile::new().unwrap();
            fs::write(file.path(), script(verb)).unwrap();
            let mut command = host.command("ip");
            command.arg("-batch").arg(file.path());
            (command, file)
        });
        let worker = thread::spawn(move || {
            while !stopped.load(Relaxed) {
                for (command, _file) in &mut commands {
                    output_of(command).unwrap_or_else(|e| panic!("{e:#}"));
                }
            }
        });
        Self { is_over, worker: Some(worker) }
    }
}

impl Drop for Routes {
    fn drop(&mut self) {
        self.is_over.store(true, Relaxed);
        // It says itself what has failed.
        let _ = self.worker.take().map(JoinHandle::join);
    }
}
