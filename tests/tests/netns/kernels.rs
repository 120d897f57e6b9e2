//! What depends on the kernel's release, true of every one: `cargo xtask test --kernel` runs it on
//! others than this machine's.

use samport_tests::daemon::{Backends, samport};
use samport_tests::served::{Served, text};

use crate::forwarding::assert_serves;
use crate::lab;

/// The first release with tcx.
const TCX: (u32, u32) = (6, 6);

/// The release of the kernel that runs.
fn release() -> (u32, u32) {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(|word| word.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

#[test]
fn hook_auto_takes_the_best_that_the_kernel_has() {
    let served = Served::start(lab(2), &["--hook", "auto"]);
    assert_serves(&served);
    let hook = if release() >= TCX { "tcx" } else { "tc" };
    assert_eq!(text(&served.status().0, "hook"), hook);
}

#[test]
fn hook_tcx_serves_or_is_refused_with_the_way_out_where_the_kernel_has_none() {
    let lab = lab(1);
    if release() >= TCX {
        let served = Served::start(lab, &["--hook", "tcx"]);
        return assert_eq!(text(&served.status().0, "hook"), "tcx");
    }
    let backends = Backends::of(&lab, 9090);
    let args = ["run", "-i", "eth0", "-p", "80:9090", "--file", backends.path(), "--hook", "tcx"];
    let output = samport(lab.host(), &args);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(said.contains("no tcx (it came with 6.6); use --hook tc or auto"), "{said}");
}
