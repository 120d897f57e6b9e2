//! A network made for one measurement, with servers and a contender at work in it.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use samport::lab::Backend;
use samport_tests::{Lab, Namespace};

use super::client::{After, Load};
use super::contenders::{Contender, Running};
use super::outcome::Outcome;
use super::sample::Sample;
use super::server::{self, Servers};
use super::{FRONT_PORT, rules};
use crate::{Args, machine};

/// Fields are dropped from first to last.
pub struct TestBed<S> {
    pub running: Running,
    _servers: S,
    pub lab: Lab,
}

/// Where the client is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum From {
    /// On another machine.
    Client,
    /// On the host itself; it dials 127.0.0.1 where others dial the host.
    Host,
}

/// What is measured over questions and answers.
pub struct RequestOptions {
    pub from: From,
    pub backends: u8,
    pub at_once: usize,
    pub after: After,
    pub time: Duration,
}

impl RequestOptions {
    /// As many at a time and for as long as the user wants.
    pub fn new(args: &Args, from: From, backends: u8, after: After) -> Self {
        let time = Duration::from_secs_f64(args.seconds());
        Self { from, backends, at_once: args.at_once.into(), after, time }
    }

    /// One measurement in a network made for it. The same backends would know the client's ports from
    /// the contender before, with other timestamps, and refuse them (`PAWSTimewait` in nstat).
    pub fn measure(&self, contender: Contender) -> Result<Sample> {
        let (sample, ()) = self.measure_with(contender, |_| Ok(()), |()| Ok(()))?;
        Ok(sample)
    }

    /// The same with something of the caller's in that network, that is looked at before all is taken apart.
    pub fn measure_with<T, L>(
        &self,
        contender: Contender,
        beside: impl FnOnce(&Lab) -> Result<T>,
        look: impl FnOnce(T) -> Result<L>,
    ) -> Result<(Sample, L)> {
        let lab = Lab::builder().backends(self.backends).build()?;
        let places = contender.places(&lab);
        let shares_port = places.len() > 1 && places[0].name() == places[1].name();
        let listeners = places.iter().map(|place| server::listener(place, shares_port));
        let servers = Servers::start(listeners.collect::<Result<_>>()?, self.after)?;
        if self.from == From::Host && contender == Contender::Direct {
            // What starts on a host meets its rules however it goes on: they are the same for all.
            rules::docker_without_ports(&lab)?;
        }
        let site = TestBed::new(lab, servers, contender)?;
        let mut target = site.running.target;
        let client = match self.from {
            From::Client => site.lab.client(),
            From::Host => {
                if SocketAddr::V4(target) == site.lab.front(FRONT_PORT) {
                    target.set_ip(Ipv4Addr::LOCALHOST);
                }
                site.lab.host()
            }
        };
        let beside = beside(&site.lab)?;
        let load = Load::new(client, target, self.backends.into(), self.at_once, self.after)?;
        load.warm_up()?;
        let sample = site.watch(|| Ok(load.run(self.time)))?;
        let looked_at = look(beside)?;
        site.tear_down()?;
        Ok((sample, looked_at))
    }
}

impl<S> TestBed<S> {
    pub fn new(lab: Lab, servers: S, contender: Contender) -> Result<Self> {
        let running = contender.set_up(&lab)?;
        Ok(Self { running, _servers: servers, lab })
    }

    /// Puts a load on it, and looks at what else there is to see meanwhile.
    pub fn watch(&self, load: impl FnOnce() -> Result<Outcome>) -> Result<Sample> {
        let backends = self.lab.backends().iter().map(Backend::namespace);
        let namespaces: Vec<_> = backends.chain([self.lab.client(), self.lab.host()]).collect();
        watch(&namespaces, &self.running.pids(), load)
    }

    /// Ends it all, and waits until the kernel has taken it apart.
    pub fn tear_down(self) -> Result<()> {
        drop(self);
        machine::wait_for_teardown()
    }
}

/// Puts a load on a network, and looks at what else there is to see meanwhile: CPU time, that of these processes included,
/// and how often anybody in these namespaces waited for an answer in vain.
pub fn watch(
    namespaces: &[&Namespace],
    pids: &[u32],
    load: impl FnOnce() -> Result<Outcome>,
) -> Result<Sample> {
    let timeouts = || namespaces.iter().copied().map(machine::tcp_timeouts).sum::<Result<u64>>();
    let busy_before = machine::busy_share()?;
    let timeouts_before = timeouts()?;
    let ticks = machine::cpu_ticks_of(pids)?;
    let outcome = load()?;
    let cpu_ticks = machine::cpu_ticks_of(pids)? - ticks;
    let timeouts = timeouts()? - timeouts_before;
    Ok(Sample { outcome, cpu_ticks, timeouts, busy_before })
}
