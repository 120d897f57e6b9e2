//! What is behind an error.

use std::error::Error;
use std::io;

/// The error and its causes, outermost first.
pub fn causes<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// The kind of the outermost system error among them, if there is one.
#[must_use]
pub fn io_kind(error: &(dyn Error + 'static)) -> Option<io::ErrorKind> {
    causes(error).find_map(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind)
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn a_system_error_is_found_behind_what_was_said_of_it() {
        let refused: Result<(), _> = Err(io::Error::from(io::ErrorKind::PermissionDenied));
        let error = refused.context("make a folder").context("start").unwrap_err();
        assert_eq!(io_kind(&*error), Some(io::ErrorKind::PermissionDenied));
        assert_eq!(io_kind(&*anyhow::anyhow!("else")), None);
    }
}
