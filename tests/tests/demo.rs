//! `samport demo` as a user runs it. Alone in its binary: it compares everything on the machine before
//! and after, and other tests come and go.

use std::process::Command;

use samport_tests::daemon::samport_binary;
use samport_tests::require_root;

#[test]
fn the_demo_is_fair_fails_no_request_and_leaves_nothing_behind() {
    require_root();
    let demo = Command::new(samport_binary()).arg("demo").output().unwrap();
    let said = String::from_utf8_lossy(&demo.stdout);
    let complained = String::from_utf8_lossy(&demo.stderr);
    assert!(demo.status.success(), "{said}\n{complained}");
    for line in ["each share is within 3 σ of equal", ", 0 failed", "nothing left behind"] {
        assert!(said.contains(line), "no {line:?} in:\n{said}");
    }
}
