//! Showing that something goes on.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

/// How often a line is printed where there is no terminal.
const INTERVAL: Duration = Duration::from_secs(10);
/// What fits beside the label and the percentage on a narrow terminal, in characters.
const WIDTH: usize = 60;

/// The progress of one piece of work, on stderr: a line that is written over on a terminal, elsewhere a line every ten
/// seconds.
pub struct Progress {
    label: &'static str,
    is_terminal: bool,
    printed: Instant,
}

impl Progress {
    pub fn new(label: &'static str) -> Self {
        let is_terminal = io::stderr().is_terminal();
        Self { label, is_terminal, printed: Instant::now() }
    }

    /// Shows how far it is, in percent, and what is done.
    pub fn show(&mut self, percent: f64, text: &str) {
        let text: String = text.chars().take(WIDTH).collect();
        let mut stderr = io::stderr().lock();
        // Whoever does not read it loses nothing else.
        if self.is_terminal {
            let _ = write!(stderr, "\r\x1b[K{}: {percent:3.0} % {text}", self.label);
            let _ = stderr.flush();
        } else if self.printed.elapsed() >= INTERVAL {
            self.printed = Instant::now();
            let _ = writeln!(stderr, "{}: {percent:3.0} % {text}", self.label);
        }
    }

    /// Takes the line away.
    pub fn end(self) {
        if self.is_terminal {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}
