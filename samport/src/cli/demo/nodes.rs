//! `samport demo --nodes N`: several hosts, each of which serves the containers of all.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};

use super::{Args, Folder, Interrupt, PORTS, TIMEOUT, ask, echo, phase, say, type_in};
use crate::cluster::TUNNEL_PORT;
use crate::lab::cluster::{Cluster, Host, Options};
use crate::lab::{BackendsFile, Echo, Footprint, Load, Server, Tally, Watched};

/// Threads that ask while a host is cut off: each may lose the request that it waits for then.
const THREADS: usize = 2;

/// Shows it in a lab of this many hosts.
pub(super) fn demonstrate(nodes: u8, args: &Args, interrupt: &Interrupt) -> Result<()> {
    let options =
        Options { hosts: nodes, backends: args.backends.unwrap_or(2), ..Options::default() };
    say(&format!(
        "{nodes} hosts on one network, each with {} servers. Each server is in its own network namespace, as a",
        options.backends
    ));
    say(
        "container is. Servers have the same addresses on every host, and no host has a route to another one's.",
    );
    let prefix = Cluster::new_prefix();
    let mut footprints: Vec<_> = (0..nodes).map(|_| Footprint::with_prefix(&prefix)).collect();
    let shown = Cluster::build_as(&prefix, options)
        .and_then(|cluster| in_cluster(&cluster, &mut footprints, args, interrupt));
    // As after the demo of one host: its error comes first, and Ctrl-C before that.
    let clean = footprints.iter().try_for_each(Footprint::wait_for_lab);
    interrupt.check()?;
    shown?;
    clean?;
    println!("nothing left behind, and the lab has gone:");
    for (index, footprint) in footprints.iter().enumerate() {
        println!("    n{}: {footprint} have gone", index + 1);
    }
    Ok(())
}

/// The demo from samport's start to its end; an error also if samport leaves something behind on a host.
fn in_cluster(
    cluster: &Cluster,
    footprints: &mut [Footprint],
    args: &Args,
    interrupt: &Interrupt,
) -> Result<()> {
    for (footprint, host) in footprints.iter_mut().zip(cluster.hosts()) {
        footprint.look_before(host.namespace())?;
    }
    let shown =
        Demo::start(cluster, footprints, interrupt).and_then(|mut demo| demo.show(args, interrupt));
    let mut hosts = footprints.iter().zip(cluster.hosts());
    let clean = hosts.try_for_each(|(footprint, host)| {
        footprint.wait_for_samport(host.namespace()).with_context(|| format!("on {}", host.name()))
    });
    match (shown, clean) {
        (Err(why), Err(left)) if interrupt.check().is_ok() => bail!("{why:#}\n{left:#}"),
        (shown, clean) => shown.and(clean),
    }
}

/// What runs in the lab. Fields are dropped in their order: samport first.
struct Demo<'a> {
    samports: Vec<Watched>,
    servers: Vec<Server>,
    _folder: Folder,
    cluster: &'a Cluster,
    footprints: &'a mut [Footprint],
}

impl<'a> Demo<'a> {
    fn start(
        cluster: &'a Cluster,
        footprints: &'a mut [Footprint],
        interrupt: &Interrupt,
    ) -> Result<Self> {
        let folder = Folder::new()?;
        let nodes = folder.0.join("nodes.toml");
        let text = cluster.nodes_file_of(&[&PORTS.0.to_string()]);
        fs::write(&nodes, &text).with_context(|| format!("write {}", nodes.display()))?;
        println!();
        type_in(&format!("cat {}", nodes.display()));
        println!("{text}");
        let (mut servers, mut samports) = (Vec::new(), Vec::new());
        for host in cluster.hosts() {
            interrupt.check()?;
            servers.extend(host.serve(PORTS.1)?);
            samports.push(start_samport(host, &folder.0, &nodes)?);
        }
        let mut demo = Self { samports, servers, _folder: folder, cluster, footprints };
        demo.wait_until_all_are_up()?;
        demo.look()?;
        Ok(demo)
    }

    /// Each has to be ready, and to know that the others are.
    fn wait_until_all_are_up(&self) -> Result<()> {
        for (own, samport) in self.samports.iter().enumerate() {
            samport.wait_for_line("ready: ", TIMEOUT)?;
            for (_, other) in
                self.cluster.hosts().iter().enumerate().filter(|(index, _)| *index != own)
            {
                samport.wait_for_line(&up(other), TIMEOUT)?;
            }
        }
        Ok(())
    }

    /// Notes what samport has now on each host.
    fn look(&mut self) -> Result<()> {
        for (footprint, host) in self.footprints.iter_mut().zip(self.cluster.hosts()) {
            footprint.look(host.namespace())?;
        }
        Ok(())
    }

    fn show(&mut self, args: &Args, interrupt: &Interrupt) -> Result<()> {
        self.spread(args.requests, interrupt)?;
        self.cut_off(interrupt)?;
        println!();
        self.look()?;
        for (samport, host) in self.samports.iter_mut().zip(self.cluster.hosts()) {
            println!("{}$ kill -TERM {}", host.name(), samport.pid());
            let status = samport.stop()?;
            ensure!(status.success(), "samport on {} ended with {status}", host.name());
        }
        Ok(())
    }

    /// The article's loop at each host: all servers answer alike.
    fn spread(&self, requests: u32, interrupt: &Interrupt) -> Result<()> {
        let names: Vec<_> = self.servers.iter().map(Server::name).collect();
        for host in self.cluster.hosts() {
            let front = host.fronts(PORTS.0)[0];
            println!();
            say(&format!(
                "{} is {}: every server of every host answers there.",
                front.ip(),
                host.name()
            ));
            ask(self.cluster.client(), front, requests, &names, interrupt)?;
        }
        Ok(())
    }

    /// Cuts the last host off, and puts it back, under load at the first one.
    fn cut_off(&self, interrupt: &Interrupt) -> Result<()> {
        let ([dialled, .., cut], [samport, ..]) = (self.cluster.hosts(), &self.samports[..]) else {
            bail!("two hosts are the least");
        };
        println!();
        say(&format!("The same under load, while {} is cut off and comes back.", cut.name()));
        let load = Load::start(self.cluster.client(), dialled.fronts(PORTS.0)[0], THREADS);
        let before = phase(&load, interrupt)?;

        let (mark, begin) = (samport.mark(), Instant::now());
        self.cluster.cut_off(cut)?;
        let line = samport.wait_for_line_after(mark, &down(cut), TIMEOUT)?;
        println!("{} is down after {:.1} s", cut.name(), (line.at - begin).as_secs_f64());
        let without = phase(&load, interrupt)?;

        let (mark, begin) = (samport.mark(), Instant::now());
        self.cluster.join(cut)?;
        let line = samport.wait_for_line_after(mark, &up(cut), TIMEOUT)?;
        println!("{} is up again after {:.1} s", cut.name(), (line.at - begin).as_secs_f64());
        let after = phase(&load, interrupt)?;

        let report = load.stop();
        let name = cut.name();
        println!(
            "with {name}:\n{before}\nwithout {name}:\n{without}\nwith {name} again:\n{after}\n"
        );
        let answered = |tally: &Tally| -> u32 {
            cut.backends().iter().map(|backend| tally.of(&cut.server_name(backend))).sum()
        };
        ensure!(answered(&without) == 0, "{name} answered while it was cut off");
        ensure!(answered(&after) > 0, "{name} has not answered since it is back");
        // Of a request that had arrived there, and of no other.
        ensure!(report.failures.len() <= THREADS, "{report}");
        println!(
            "{} answered, {} failed that {name} was answering when it was cut off",
            report.tally.total(),
            report.failures.len()
        );
        Ok(())
    }
}

/// What samport says of a host.
fn up(host: &Host) -> String {
    format!("node {} ({}:{TUNNEL_PORT}) is up", host.name(), host.v4())
}

fn down(host: &Host) -> String {
    format!("node {} ({}:{TUNNEL_PORT}) is down", host.name(), host.v4())
}

fn start_samport(host: &Host, folder: &Path, nodes: &Path) -> Result<Watched> {
    let name = host.name();
    let file = backends_file(host, folder.join(format!("{name}.toml")))?;
    let ports = format!("{}:{}", PORTS.0, PORTS.1);
    let own = file.to_string_lossy();
    let nodes = nodes.to_string_lossy();
    let args = [
        &["run", "-i", "eth0", "-p", &ports, "--provider", "file", "--file", &own][..],
        &["--cluster", "file", "--cluster-file", &nodes, "--node", &name],
    ]
    .concat();
    println!("{name}$ samport {}", args.join(" "));
    let mut command = host.namespace().command("/proc/self/exe");
    // The machine's own is not made for a demo.
    command.args(&args).env("SAMPORT_HASH_SEED_FILE", folder.join("hash-seed"));
    let of_node: Echo = Arc::new(move |line| echo(&format!("    {name}: {line}")));
    Watched::spawn(command, Some(&of_node))
}

fn backends_file(host: &Host, path: PathBuf) -> Result<PathBuf> {
    let mut file = BackendsFile::create(path)?;
    for backend in host.backends() {
        file.add(backend.name(), backend.v4(PORTS.1))?;
    }
    Ok(file.path().to_owned())
}
