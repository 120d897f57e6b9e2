//! `samport check`: what would be in the way of `samport run`, before anything is touched. [`collect`] asks
//! the machine and changes nothing on it; [`evaluate`] says what the answers mean, and is pure.

mod collect;
mod evaluate;
mod facts;
mod firewall;
mod nodes;

use std::fmt;

use crate::system::exit::Exit;

pub use collect::{CheckOptions, collect};
pub use evaluate::evaluate;
pub use facts::Limits;

/// How it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Level {
    /// As it should be.
    Good,
    /// It will work, and there is something to know.
    Warning,
    /// It will not work; how `samport check` ends.
    Failure(Exit),
}

impl Level {
    /// As it stands before the line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Good => "ok",
            Self::Warning => "warn",
            Self::Failure(_) => "FAIL",
        }
    }
}

/// One line: how it is, and the way out if it is not well.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// How it is.
    pub level: Level,
    /// What was found.
    pub what: String,
    /// What to do about it.
    pub way_out: Option<String>,
}

impl Finding {
    fn good(what: impl Into<String>) -> Self {
        Self { level: Level::Good, what: what.into(), way_out: None }
    }

    fn warning(what: impl Into<String>, way_out: impl Into<String>) -> Self {
        Self { level: Level::Warning, what: what.into(), way_out: Some(way_out.into()) }
    }

    /// From what `samport run` would say: the trouble, a semicolon, and the way out.
    fn said(level: Level, sentence: &str) -> Self {
        let (what, way_out) = match sentence.split_once("; ") {
            Some((what, way_out)) => (what, Some(way_out.to_owned())),
            None => (sentence, None),
        };
        Self { level, what: what.to_owned(), way_out }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<4}  {}", self.level.name(), self.what)?;
        self.way_out.iter().try_for_each(|way_out| write!(f, " → {way_out}"))
    }
}

/// How the program is to end: without privileges nothing else is certain, a file that is not as it should be is
/// put right soon, and an engine that does not answer counts only if everything else is well.
#[must_use]
pub fn exit_of(findings: &[Finding]) -> Option<Exit> {
    let found = |exit: &Exit| findings.iter().any(|one| one.level == Level::Failure(*exit));
    [Exit::Privileges, Exit::Kernel, Exit::Usage, Exit::Unreachable].into_iter().find(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_its_level_and_the_way_out() {
        let failed = Level::Failure(Exit::Kernel);
        let one = Finding::said(failed, "port 80 is taken by nginx (pid 7); stop it, or choose");
        assert_eq!(one.to_string(), "FAIL  port 80 is taken by nginx (pid 7) → stop it, or choose");
        assert_eq!(Finding::good("kernel 6.18").to_string(), "ok    kernel 6.18");
        assert_eq!(Finding::warning("ufw", "--allow").to_string(), "warn  ufw → --allow");
        assert_eq!(Finding::said(failed, "no way").way_out, None);
    }

    #[test]
    fn the_exit_code_is_that_of_the_gravest_failure() {
        let failed = |exit| Finding::said(Level::Failure(exit), "x");
        let (fine, warned) = (Finding::good("x"), Finding::warning("x", "y"));
        let engine = failed(Exit::Unreachable);
        assert_eq!(exit_of(&[fine.clone(), warned.clone()]), None);
        assert_eq!(exit_of(&[warned, engine.clone(), fine]), Some(Exit::Unreachable));
        let all = [engine, failed(Exit::Usage), failed(Exit::Kernel), failed(Exit::Privileges)];
        assert_eq!(exit_of(&all[..2]), Some(Exit::Usage));
        assert_eq!(exit_of(&all[..3]), Some(Exit::Kernel));
        assert_eq!(exit_of(&all), Some(Exit::Privileges));
    }
}
