//! Output whose reader has gone: `samport status -o json | head -1`.

use std::panic;
use std::process;

use super::Verb;

/// What a shell says of a program that SIGPIPE has ended: 128 and the signal's number.
const EXIT: i32 = 141;
/// How Rust's macros, and those of `anstream`, panic about it.
const SAID: &str = "failed printing to stdout: Broken pipe";

/// From now on a reader that has enough ends this program without a word, as it does others. The verbs that have
/// something to clean up go on as they were.
pub(super) fn end_with_reader(verb: &Verb) {
    if matches!(verb, Verb::Run(_) | Verb::Demo(_)) {
        return;
    }
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        if panic.payload_as_str().is_some_and(|said| said.starts_with(SAID)) {
            process::exit(EXIT);
        }
        usual(panic);
    }));
}
