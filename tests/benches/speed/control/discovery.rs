//! Many containers that run already when samport starts.

use std::net::Ipv4Addr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use samport_tests::Lab;
use samport_tests::daemon::Daemon;
use samport_tests::engine::{Container, Engine};
use samport_tests::speed::{Better, Figure, Report};

use super::events::{NamespaceProcess, mac_of};
use super::ms_between;
use crate::{Args, interrupt};

const CONTAINERS: u8 = 200;
const NAMESPACES: u8 = 10;
const TIMEOUT: Duration = Duration::from_secs(30);

pub fn measure(args: &Args, report: &mut Report) -> Result<()> {
    let title = format!("{CONTAINERS} containers that are there already: until all of them serve");
    let mut figure = Figure::new("control.discovery", title, "ms", Better::Less);
    in_few_namespaces(args, &mut figure)?;
    if !args.quick {
        in_many_namespaces(&mut figure)?;
    }
    report.add(figure);
    Ok(())
}

/// Several in each namespace, by addresses of their own: 200 namespaces take longer to make than there is.
fn in_few_namespaces(args: &Args, figure: &mut Figure) -> Result<()> {
    let lab = Lab::builder().backends(NAMESPACES).build()?;
    let _servers = lab.serve(9090)?;
    let inhabitants =
        lab.backends().iter().map(NamespaceProcess::of).collect::<Result<Vec<_>>>()?;
    let mut containers = Vec::new();
    let mut numbers = 1..=CONTAINERS;
    for (backend, process) in lab.backends().iter().zip(&inhabitants) {
        let mac = mac_of(backend)?;
        let addresses = numbers.by_ref().take(usize::from(CONTAINERS / NAMESPACES));
        let addresses = addresses.map(|number| (number, Ipv4Addr::new(172, 30, 1, number)));
        let addresses: Vec<_> = addresses.collect();
        let lines = addresses.iter().map(|(_, own)| format!("addr add {own}/16 dev eth0\n"));
        backend.namespace().batch(&lines.collect::<String>())?;
        containers.extend(addresses.into_iter().map(|(number, own)| {
            Container::new(&format!("web-{number}"), process.pid(), own.into(), &mac)
        }));
    }
    lab.host().batch("route add 172.30.1.0/24 dev br0\n")?;
    let rounds = if args.quick { 2 } else { args.rounds() };
    for _ in 0..rounds {
        interrupt::go_on()?;
        start(&lab, &containers, figure, "samport")?;
    }
    Ok(())
}

/// Each of them in a namespace of its own, as containers are.
fn in_many_namespaces(figure: &mut Figure) -> Result<()> {
    let lab = Lab::builder().backends(CONTAINERS).build()?;
    let _servers = lab.serve(9090)?;
    let inhabitants =
        lab.backends().iter().map(NamespaceProcess::of).collect::<Result<Vec<_>>>()?;
    let mut containers = Vec::new();
    for (backend, process) in lab.backends().iter().zip(&inhabitants) {
        let address = backend.v4(0).ip();
        let mac = mac_of(backend)?;
        containers.push(Container::new(backend.name(), process.pid(), address, &mac));
    }
    for _ in 0..5 {
        interrupt::go_on()?;
        start(&lab, &containers, figure, "a veth each")?;
    }
    Ok(())
}

/// One start: the whole of it, from the list of containers on, and from there to the last question about one.
/// What lies between that and the end is mostly the kernel's looking at the programs.
fn start(lab: &Lab, containers: &[Container], figure: &mut Figure, series: &str) -> Result<()> {
    let engine = Engine::start()?;
    engine.has(containers.iter().cloned());
    let begin = Instant::now();
    let arguments = ["-i", "eth0", "-p", "80:9090", "--endpoint", &engine.url()];
    let daemon = Daemon::launch(lab.host(), &arguments);
    let ready = daemon.wait_for_line("ready: ", TIMEOUT).at;
    // Who was not healthy yet comes afterwards.
    let all = loop {
        let lines = daemon.lines();
        let mut serving = lines.iter().filter(|line| line.text.contains("+ web-"));
        if let Some(last) = serving.nth(containers.len() - 1) {
            break last.at.max(ready);
        }
        ensure!(begin.elapsed() < TIMEOUT, "not all of them serve");
        thread::sleep(Duration::from_millis(5));
    };
    let asked = engine.listed().zip(engine.inspected());
    let (list, inspected) = asked.context("nobody has asked for the containers")?;
    for (part, from, to) in [
        ("", begin, all),
        (", from the list on", list, all),
        (", from the list to the last container", list, inspected),
    ] {
        figure.series(&format!("{series}{part}")).samples.push(ms_between(from, to));
    }
    daemon.stop();
    Ok(())
}
