//! A child process whose lines are kept and waited for.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};

use super::describe;

/// How long a child may take to end after SIGTERM before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_mins(1);
/// How long its last lines may take after that: only grandchildren that hold the pipes need as much.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// A line of the child's output, standard output and standard error in the order they came.
#[derive(Clone, Debug)]
pub struct Line {
    /// When it came.
    pub at: Instant,
    /// Without its end.
    pub text: String,
}

#[derive(Default)]
struct Output {
    lines: Vec<Line>,
    open_pipes: usize,
}

#[derive(Default)]
struct Shared {
    output: Mutex<Output>,
    news: Condvar,
}

impl Shared {
    fn output(&self) -> MutexGuard<'_, Output> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gets every line of a child as it comes.
pub type Echo = Arc<dyn Fn(&str) + Send + Sync>;

/// A running child. It gets SIGTERM when dropped, and when the thread that started it ends.
pub struct Watched {
    child: Child,
    description: String,
    shared: Arc<Shared>,
}

impl Watched {
    /// Starts a command. `echo` gets every line as it comes.
    ///
    /// The child ends with the calling thread, also when that is killed: call it from one that lives
    /// as long as the child is to.
    pub fn spawn(mut command: Command, echo: Option<&Echo>) -> Result<Self> {
        let description = describe(&command);
        // SAFETY: the hook makes one system call and allocates nothing.
        unsafe { command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::TERM))?)) };
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {description}"))?;
        let shared = Arc::new(Shared::default());
        let mut pipes: Vec<Box<dyn Read + Send>> = Vec::new();
        pipes.extend(child.stdout.take().map(|pipe| Box::new(pipe) as _));
        pipes.extend(child.stderr.take().map(|pipe| Box::new(pipe) as _));
        shared.output().open_pipes = pipes.len();
        for pipe in pipes {
            let (shared, echo) = (Arc::clone(&shared), echo.map(Arc::clone));
            thread::spawn(move || collect(pipe, &shared, echo.as_deref()));
        }
        Ok(Self { child, description, shared })
    }

    /// The child's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All lines so far.
    #[must_use]
    pub fn lines(&self) -> Vec<Line> {
        self.shared.output().lines.clone()
    }

    /// How many lines there are so far: what [`Self::wait_for_line_after`] starts from.
    #[must_use]
    pub fn mark(&self) -> usize {
        self.shared.output().lines.len()
    }

    /// The first line that contains a text, as soon as there is one.
    pub fn wait_for_line(&self, text: &str, timeout: Duration) -> Result<Line> {
        self.wait_for_line_after(0, text, timeout)
    }

    /// The same, not counting lines that were there at the mark.
    pub fn wait_for_line_after(&self, mark: usize, text: &str, timeout: Duration) -> Result<Line> {
        let deadline = Instant::now() + timeout;
        let mut output = self.shared.output();
        loop {
            if let Some(line) = output.lines[mark..].iter().find(|line| line.text.contains(text)) {
                return Ok(line.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let ended = output.open_pipes == 0;
            if ended || left.is_zero() {
                drop(output);
                let how = if ended { "ended" } else { "still runs" };
                bail!(
                    "no line with {text:?}: {} {how}, and said:\n{}",
                    self.description,
                    self.said()
                );
            }
            let waited = self.shared.news.wait_timeout(output, left);
            output = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Everything the child has said, indented.
    #[must_use]
    pub fn said(&self) -> String {
        let mut said = String::new();
        for line in self.lines() {
            let _ = writeln!(said, "    {}", line.text);
        }
        said
    }

    /// Whether the child has not ended.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal, if the child has not ended.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if !self.is_running() {
            return Ok(());
        }
        kill_process(Pid::from_child(&self.child), signal)
            .with_context(|| format!("send {signal:?} to {}", self.description))
    }

    /// Waits for the child's end, and for its last lines.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + timeout;
        while self.is_running() {
            if Instant::now() > deadline {
                bail!("{} does not end; it has said:\n{}", self.description, self.said());
            }
            thread::sleep(Duration::from_millis(2));
        }
        let status = self.child.wait().with_context(|| format!("wait for {}", self.description))?;
        self.drain();
        Ok(status)
    }

    /// Asks the child to end, with SIGTERM, and waits until it has.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait(STOP_TIMEOUT)
    }

    /// Waits for the last lines of a child that has ended, not for grandchildren that hold the pipes.
    fn drain(&self) {
        let still_open = |output: &mut Output| output.open_pipes > 0;
        let _ =
            self.shared.news.wait_timeout_while(self.shared.output(), DRAIN_TIMEOUT, still_open);
    }

    /// Kills the child, which cannot clean up.
    pub fn kill9(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::KILL)?;
        self.wait(STOP_TIMEOUT)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("{error:#}; killing it");
            let _ = self.kill9();
        }
    }
}

fn collect(
    pipe: Box<dyn Read + Send>,
    shared: &Shared,
    echo: Option<&(dyn Fn(&str) + Send + Sync)>,
) {
    let mut pipe = BufReader::new(pipe);
    let mut bytes = Vec::new();
    while matches!(pipe.read_until(b'\n', &mut bytes), Ok(1..)) {
        let text = String::from_utf8_lossy(&bytes).trim_end().to_owned();
        bytes.clear();
        if let Some(echo) = echo {
            echo(&text);
        }
        shared.output().lines.push(Line { at: Instant::now(), text });
        shared.news.notify_all();
    }
    shared.output().open_pipes -= 1;
    shared.news.notify_all();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_for_a_childs_end_has_all_that_it_has_said() {
        for _ in 0..20 {
            let mut command = Command::new("seq");
            command.arg("5000");
            let mut child = Watched::spawn(command, None).unwrap();
            assert!(child.wait(STOP_TIMEOUT).unwrap().success());
            assert_eq!(child.lines().len(), 5_000);
        }
    }
}
