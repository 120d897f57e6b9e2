//! Child processes that end with this one, and the signals that end both.

use std::io::Read as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Signal, WaitOptions};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};
use signal_hook::{flag, low_level};

use crate::sh;

/// How long a command may take to end after Ctrl-C, which the terminal sends to it too.
const GRACE: Duration = Duration::from_secs(10);

/// The signals that ask this program to end. From `install` on they end only its children, so that
/// what it has made is removed.
pub struct Signals {
    wake: UnixStream,
    pending: Vec<(i32, Arc<AtomicBool>)>,
    received: Option<i32>,
}

impl Signals {
    pub fn install() -> Result<Self> {
        let (wake, sender) = UnixStream::pair().context("make a pair of sockets")?;
        let mut pending = Vec::new();
        for signal in [SIGINT, SIGTERM, SIGHUP, SIGCHLD] {
            let is_pending = Arc::new(AtomicBool::new(false));
            // The flag before the wake-up: handlers run in the order of their registration.
            flag::register(signal, Arc::clone(&is_pending)).context("handle a signal")?;
            let sender = sender.try_clone().context("copy a socket")?;
            low_level::pipe::register(signal, sender).context("handle a signal")?;
            if signal != SIGCHLD {
                pending.push((signal, is_pending));
            }
        }
        // A child that is killed may leave children: they are waited for too.
        let own = Some(rustix::process::getpid());
        rustix::process::set_child_subreaper(own).context("adopt orphans")?;
        Ok(Self { wake, pending, received: None })
    }

    /// The signal that has asked this program to end, if one has.
    pub fn received(&mut self) -> Option<i32> {
        self.take();
        self.received
    }

    fn take(&mut self) -> Option<i32> {
        let pending = self.pending.iter().find(|(_, flag)| flag.swap(false, Ordering::Relaxed));
        let signal = pending.map(|(signal, _)| *signal);
        self.received = self.received.or(signal);
        signal
    }

    /// Fails if a signal has asked this program to end.
    pub fn check(&mut self) -> Result<()> {
        match self.received() {
            Some(signal) => bail!("ended by {}", name(signal)),
            None => Ok(()),
        }
    }

    /// Runs a command to its end and returns its status. It is killed when this program is, or when a
    /// signal other than the first Ctrl-C arrives.
    pub fn wait(&mut self, command: &mut Command) -> Result<ExitStatus> {
        self.check()?;
        end_with_parent(command);
        let mut child =
            command.spawn().with_context(|| format!("cannot start `{}`", sh::text(command)))?;
        let mut deadline: Option<Instant> = None;
        loop {
            if let Some(status) = child.try_wait().context("wait for a child")? {
                return Ok(status);
            }
            let is_over = deadline.is_some_and(|deadline| deadline <= Instant::now());
            match self.take() {
                Some(SIGINT) if deadline.is_none() => deadline = Some(Instant::now() + GRACE),
                None if !is_over => {}
                _ => return kill(&mut child),
            }
            self.sleep(deadline.map(|deadline| deadline.duration_since(Instant::now())))?;
        }
    }

    /// Runs a command and fails unless it succeeds.
    pub fn run(&mut self, command: &mut Command) -> Result<()> {
        let status = self.wait(command)?;
        self.check()?;
        sh::succeeded(command, status)
    }

    /// Sleeps until a signal arrives, at most for some time.
    pub fn sleep(&mut self, at_most: Option<Duration>) -> Result<()> {
        // Zero would mean no limit.
        let at_most = at_most.map(|time| time.max(Duration::from_millis(1)));
        self.wake.set_read_timeout(at_most).context("set a socket's timeout")?;
        // An error is the timeout or an interruption; the caller looks at everything again anyway.
        let _ = self.wake.read(&mut [0; 64]);
        Ok(())
    }
}

/// Kills a child and waits until the processes it has started have ended too.
fn kill(child: &mut Child) -> Result<ExitStatus> {
    child.kill().context("kill a child")?;
    let status = child.wait().context("wait for a child")?;
    while let Ok(Some(_)) = rustix::process::wait(WaitOptions::empty()) {}
    Ok(status)
}

fn end_with_parent(command: &mut Command) {
    let tie = || Ok(rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?);
    // SAFETY: between fork and exec it makes one system call and allocates nothing.
    unsafe { command.pre_exec(tie) };
}

fn name(signal: i32) -> &'static str {
    low_level::signal_name(signal).unwrap_or("a signal")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Signals of this test only: handlers are the whole process's, and `cargo test` has threads.
    fn signals() -> (Signals, Arc<AtomicBool>, Arc<AtomicBool>) {
        let (wake, _) = UnixStream::pair().unwrap();
        let (interrupt, terminate) = (Arc::default(), Arc::default());
        let pending = vec![(SIGINT, Arc::clone(&interrupt)), (SIGTERM, Arc::clone(&terminate))];
        (Signals { wake, pending, received: None }, interrupt, terminate)
    }

    #[test]
    fn a_signal_is_taken_once_and_remembered() {
        let (mut signals, interrupt, _) = signals();
        assert_eq!(signals.received(), None);
        signals.check().unwrap();
        interrupt.store(true, Ordering::Relaxed);
        assert_eq!(signals.take(), Some(SIGINT));
        assert_eq!(signals.take(), None);
        assert_eq!(signals.received(), Some(SIGINT));
        assert_eq!(signals.check().unwrap_err().to_string(), "ended by SIGINT");
    }

    #[test]
    fn nothing_is_started_after_a_signal() {
        let (mut signals, _, terminate) = signals();
        terminate.store(true, Ordering::Relaxed);
        let error = signals.wait(&mut Command::new("true")).unwrap_err();
        assert_eq!(error.to_string(), "ended by SIGTERM");
    }
}
