//! A terminal that tests type into and read, by tmux.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use samport::lab::{Namespace, output_of};
use tempfile::TempDir;

use crate::{TIMEOUT, eventually};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// A shell in a namespace, on a screen of its own. Dropping it ends everything on it.
pub struct Screen {
    socket: PathBuf,
    _folder: TempDir,
}

impl Screen {
    /// Starts a shell with so many columns and lines.
    #[must_use]
    pub fn open(namespace: &Namespace, (width, height): (u16, u16)) -> Self {
        let folder = tempfile::tempdir().expect("make a folder");
        let socket = folder.path().join("tmux.sock");
        let mut command = namespace.command("tmux");
        // UTF-8 whatever the locale, nobody's configuration, and no colours but those asked for.
        command.arg("-u").arg("-S").arg(&socket).args(["-f", "/dev/null", "new-session", "-d"]);
        command.args(["-x", &width.to_string(), "-y", &height.to_string(), "sh"]);
        for variable in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "TMUX"] {
            command.env_remove(variable);
        }
        command.env("PS1", "$ ").env("ENV", "");
        output_of(command.stdin(Stdio::null())).unwrap_or_else(|e| panic!("{e:#}"));
        Self { socket, _folder: folder }
    }

    fn tmux(&self, args: &[&str]) -> String {
        let mut command = Command::new("tmux");
        command.arg("-u").arg("-S").arg(&self.socket).args(args);
        output_of(&mut command).unwrap_or_else(|e| panic!("{e:#}"))
    }

    /// Types a line.
    pub fn enter(&self, line: &str) {
        self.tmux(&["send-keys", "-l", line]);
        self.press("Enter");
    }

    /// Presses a key: a character, or `Enter`, `Down`, `Escape`, `C-c`.
    pub fn press(&self, key: &str) {
        self.tmux(&["send-keys", key]);
    }

    /// Makes it larger or smaller.
    pub fn resize(&self, (width, height): (u16, u16)) {
        self.tmux(&["resize-window", "-x", &width.to_string(), "-y", &height.to_string()]);
    }

    /// What stands on it.
    #[must_use]
    pub fn text(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    /// The same with its colours, as escape sequences.
    #[must_use]
    pub fn coloured(&self) -> String {
        self.tmux(&["capture-pane", "-p", "-e"])
    }

    /// What stands on it once that is right; panics with what there is if it does not become so.
    pub fn wait_until(&self, what: &str, is_right: impl Fn(&str) -> bool) -> String {
        let begin = Instant::now();
        loop {
            let text = self.text();
            if is_right(&text) {
                return text;
            }
            assert!(begin.elapsed() < TIMEOUT, "no {what:?} on the screen:\n{text}");
            thread::sleep(LOOK);
        }
    }

    /// What stands on it once it contains a text.
    pub fn wait_for(&self, text: &str) -> String {
        self.wait_until(text, |shown| shown.contains(text))
    }

    /// The process id of its shell.
    #[must_use]
    pub fn pid(&self) -> u32 {
        let pid = self.tmux(&["display-message", "-p", "#{pane_pid}"]);
        pid.trim().parse().unwrap_or_else(|_| panic!("{pid:?} is no process id"))
    }

    /// Panics unless what runs on it ends, and its shell takes commands and shows what they print.
    pub fn assert_usable(&self) {
        // What is typed before that is not the shell's.
        let children = format!("/proc/{0}/task/{0}/children", self.pid());
        let is_alone = || fs::read_to_string(&children).is_ok_and(|pids| pids.trim().is_empty());
        eventually("the shell is alone", || is_alone().then_some(()));
        self.enter("echo usable-$((6*7))");
        self.wait_for("usable-42");
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let mut command = Command::new("tmux");
        command.arg("-S").arg(&self.socket).arg("kill-server");
        if let Err(error) = output_of(&mut command) {
            eprintln!("{error:#}");
        }
    }
}
