//! `samport demo` as a user runs it. Alone in its binary: it compares everything on the machine before
//! and after, and other tests come and go.

use std::process::Command;

use samport_tests::daemon::samport_binary;
use samport_tests::require_root;

/// Three fair shares are outside of 3 σ once in 120 runs; twice in a row is no chance.
const TRIES: u32 = 2;

#[test]
fn the_demo_is_fair_fails_no_request_and_leaves_nothing_behind() {
    require_root();
    let mut said = String::new();
    let fair = (0..TRIES).any(|_| {
        let demo = Command::new(samport_binary()).arg("demo").output().unwrap();
        said = String::from_utf8_lossy(&[demo.stdout, demo.stderr].concat()).into_owned();
        let fair = said.contains("each share is within 3 σ of equal");
        assert!(demo.status.success() || !fair, "{said}");
        fair
    });
    assert!(fair, "{said}");
    for line in [", 0 failed", "nothing left behind"] {
        assert!(said.contains(line), "no {line:?} in:\n{said}");
    }
}
