//! The same with containers of a Docker engine, by its own clock.

use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use samport_tests::Lab;
use samport_tests::daemon::Daemon;
use samport_tests::docker::{Dockerd, Options, SERVER_IMAGE, has_program};
use samport_tests::speed::{Figure, Report};

use super::events::{last_of, until_shared};
use super::ms;
use super::prober::Prober;
use crate::{Args, interrupt};

const TIMEOUT: Duration = Duration::from_secs(20);

/// Adds the series `real`, if there is an engine.
pub fn measure(
    args: &Args,
    start: &mut Figure,
    kill: &mut Figure,
    report: &mut Report,
) -> Result<()> {
    if !has_program("dockerd") {
        report.skip("events of real containers: there is no dockerd".to_owned());
        return Ok(());
    }
    let lab = Lab::builder().backends(0).build()?;
    let docker = Dockerd::start_in(lab, Options::default());
    docker.import_server_image();
    let url = docker.url();
    let arguments = ["-i", "eth0", "-p", "80:9090", "--endpoint", &url];
    let _daemon = Daemon::start(docker.lab(), &arguments);
    let front = docker.lab().front(80);
    let client = Prober::start(docker.lab().client(), front);
    for round in 0..args.rounds() {
        interrupt::go_on()?;
        let name = format!("one-{round}");
        create(&docker, &name);
        let begin = Instant::now();
        docker.cli(&["start", &name]);
        ensure!(
            client.wait_for(|one| one.begun >= begin && one.backend == name, TIMEOUT),
            "{name}"
        );
        let at = event(&docker, &name, "start")?;
        let answered = client.answered();
        let first = answered.iter().find(|one| one.backend == name).context("no answer")?;
        start.series("real").samples.push(ms_between(at, first.begun_at));
        docker.cli(&["rm", "-f", &name]);
    }
    drop(client);

    create(&docker, "stays");
    docker.cli(&["start", "stays"]);
    let clients = [Prober::start(docker.lab().client(), front)];
    for round in 0..args.rounds() {
        interrupt::go_on()?;
        let (name, begin) = (format!("two-{round}"), Instant::now());
        create(&docker, &name);
        docker.cli(&["start", &name]);
        until_shared(&clients, &name, begin)?;
        docker.cli(&["kill", "--signal", "TERM", &name]);
        last_of(&clients, &name)?;
        let at = event(&docker, &name, "kill")?;
        let answered = clients[0].answered();
        let last = answered.iter().rev().find(|one| one.backend == name).context("no answer")?;
        kill.series("real").samples.push(ms_between(at, last.begun_at));
        docker.cli(&["rm", "-f", &name]);
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// A container that goes on serving for a while when it is told to end.
fn create(docker: &Dockerd, name: &str) {
    let instance = format!("INSTANCE={name}");
    let label = ["--label", "samport.port=80", "-e", "LINGER_MS=2000", "-e", &instance];
    docker.cli(&[&["create", "--name", name][..], &label, &[SERVER_IMAGE]].concat());
}

/// When the engine says that something has happened to a container.
fn event(docker: &Dockerd, name: &str, what: &str) -> Result<SystemTime> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() + 1;
    let (name, what) = (format!("container={name}"), format!("event={what}"));
    let said = docker.cli(&[
        "events",
        "--since",
        "0",
        "--until",
        &now.to_string(),
        "--filter",
        &name,
        "--filter",
        &what,
        "--format",
        "{{.TimeNano}}",
    ]);
    let at = said.lines().next().with_context(|| format!("no {what} of {name}"))?;
    Ok(UNIX_EPOCH + Duration::from_nanos(at.parse()?))
}

fn ms_between(from: SystemTime, to: SystemTime) -> f64 {
    ms(to.duration_since(from).unwrap_or_default())
}
