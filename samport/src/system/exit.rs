//! Exit codes, and errors that carry one.

use std::fmt;

use anyhow::Error;

/// How the program ends. The numbers are documented and stay.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Exit {
    /// Anything without another number.
    Failure = 1,
    /// The command line is wrong.
    Usage = 2,
    /// A daemon (Docker's) does not answer.
    Unreachable = 3,
    /// The kernel lacks something.
    Kernel = 4,
    /// The process lacks privileges.
    Privileges = 5,
    /// A port or a hook is taken.
    Conflict = 6,
    /// Something took too long.
    Timeout = 7,
}

/// An error's exit code, put into its chain by [`coded`] or [`Coded::exit`].
#[derive(Debug)]
struct Code {
    exit: Exit,
    message: String,
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Code {}

/// A new error with an exit code.
pub fn coded(exit: Exit, message: impl fmt::Display) -> Error {
    Error::new(Code { exit, message: message.to_string() })
}

/// Adds an exit code and what was tried to an error.
pub trait Coded<T> {
    /// The result, its error explained by `message` and ending the program with `exit`.
    fn exit(self, exit: Exit, message: impl fmt::Display) -> anyhow::Result<T>;
}

impl<T, E: Into<Error>> Coded<T> for Result<T, E> {
    fn exit(self, exit: Exit, message: impl fmt::Display) -> anyhow::Result<T> {
        self.map_err(|error| error.into().context(Code { exit, message: message.to_string() }))
    }
}

/// The exit code of an error: the outermost one in its chain, or plain failure.
#[must_use]
pub fn code_of(error: &Error) -> Exit {
    error.downcast_ref::<Code>().map_or(Exit::Failure, |code| code.exit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[test]
    fn a_code_survives_more_context() {
        let error = coded(Exit::Conflict, "port 80 is taken").context("start");
        assert_eq!(code_of(&error), Exit::Conflict);
        let io: Result<(), _> = Err(std::io::Error::other("no"));
        let error = io.exit(Exit::Unreachable, "talk to dockerd").context("start").unwrap_err();
        assert_eq!(code_of(&error), Exit::Unreachable);
        assert_eq!(format!("{error:#}"), "start: talk to dockerd: no");
        assert_eq!(code_of(&anyhow::anyhow!("else")), Exit::Failure);
    }
}
