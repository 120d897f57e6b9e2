//! Output whose reader has gone: `samport status -o json | head -1`.

use std::any::Any;
use std::panic;
use std::process;

use super::Verb;

/// What a shell says of a program that SIGPIPE has ended: 128 and the signal's number.
const EXIT: i32 = 141;
/// How Rust's macros, and those of `anstream`, panic about it.
const SAID: &str = "failed printing to stdout: Broken pipe";

/// From now on a reader that has enough ends this program without a word, as it does others. The verbs that have
/// something to clean up go on as they were; the demo cleans up and then calls [`end_if_reader_has_gone`].
pub(super) fn end_with_reader(verb: &Verb) {
    let cleans_up = match verb {
        Verb::Run(_) => return,
        Verb::Demo(_) => true,
        _ => false,
    };
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |panic| match panic.payload_as_str() {
        Some(said) if said.starts_with(SAID) => {
            if !cleans_up {
                process::exit(EXIT);
            }
        }
        _ => usual(panic),
    }));
}

/// Ends the program, if that is what a thread has panicked about.
pub(super) fn end_if_reader_has_gone(panic: &(dyn Any + Send)) {
    if panic.downcast_ref::<String>().is_some_and(|said| said.starts_with(SAID)) {
        process::exit(EXIT);
    }
}
