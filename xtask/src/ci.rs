//! `cargo xtask ci`: everything a change has to pass, on machines that have just been installed.

use std::env;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::setup::{self, Level};
use crate::sh;
use crate::test::Tally;

/// Everything a change has to pass, each part on a machine that has just been installed
///
/// The README's two commands run on a pristine Debian 12 (see `cargo xtask pristine`), then the lints, the comparison of the
/// prebuilt BPF object and a few tests on Linux 6.1. Debian 13 and Ubuntu 24.04 run the demo and the tests of
/// containers, commands and the package. CONTRIBUTING.md says what each part takes.
#[derive(clap::Args)]
pub struct Args {
    /// Also what takes too long for every change: all tests on Debian 13 and Ubuntu 24.04, the selection on Linux 6.1, 6.8 and 6.12, fuzzing, floods of a minute
    #[arg(long)]
    nightly: bool,
    /// Only machines of this suite
    #[arg(long, value_name = "SUITE")]
    suite: Option<String>,
}

/// One machine and what runs on it, one after the other, also after a failure.
struct Machine {
    suite: &'static str,
    parts: &'static [Part],
}

/// A name and a shell command.
type Part = (&'static str, &'static str);

/// The tests that depend on the distribution: engines, command-line tools, the service and the package.
macro_rules! distribution_tests {
    () => {
        "cargo xtask test --program containers \
         && cargo xtask test --program ops package:: service:: check:: top:: metrics::"
    };
}

/// Every change passes these. What bookworm has built is at hand for the others.
const MACHINES: [Machine; 3] = [
    Machine {
        suite: "bookworm",
        parts: &[
            ("demo", "cargo xtask demo"),
            ("test", "cargo xtask test"),
            ("demo of 3 hosts", "cargo xtask demo --nodes 3"),
            ("lint", "cargo xtask lint"),
            // 3: the distribution's compiler has moved, and bytes cannot be compared. Nightly that fails.
            ("prebuilt", "cargo xtask prebuilt --check || [ $? = 3 ]"),
            ("kernel 6.1", "cargo xtask test --kernel 6.1 --quick"),
        ],
    },
    Machine {
        suite: "trixie",
        parts: &[
            // As a newcomer: nothing is built yet.
            ("demo", "CARGO_TARGET_DIR=/root/cold cargo xtask demo"),
            ("test", distribution_tests!()),
            ("remove", REMOVE),
        ],
    },
    Machine {
        suite: "noble",
        parts: &[("demo", "cargo xtask demo"), ("test", distribution_tests!()), ("remove", REMOVE)],
    },
];

/// Attacks for a minute each, as fast as the machine can; what is served beside them is printed.
const FLOODS: &str = "SAMPORT_FLOOD_SECONDS=60 SAMPORT_FORGED_SECONDS=60 cargo xtask test --program netns \
    loses_no_connection evidence::forged_syns blind:: -- --test-threads=1 --nocapture";

/// Nightly, these too.
const NIGHTLY: [Machine; 3] = [
    Machine {
        suite: "bookworm",
        parts: &[
            ("prebuilt, strict", "cargo xtask prebuilt --check --strict"),
            ("kernel 6.1, all", "cargo xtask test --kernel 6.1"),
            ("kernel 6.8", "cargo xtask test --kernel 6.8"),
            ("kernel 6.12", "cargo xtask test --kernel 6.12"),
            ("fuzz", "cargo xtask fuzz --seconds 60"),
            ("floods", FLOODS),
            (
                "events",
                "cargo build -q -p samport && cargo run -q -p samport-tests --example events",
            ),
        ],
    },
    Machine { suite: "trixie", parts: &[("test", "cargo xtask test")] },
    Machine { suite: "noble", parts: &[("test", "cargo xtask test")] },
];

/// No engine that setup has installed starts at the next boot; then `setup --remove`, after which the packages are those
/// that were there before.
const REMOVE: &str = "! find /etc/systemd/system /etc/rc2.d -name 'docker*' -o -name 'containerd*' -o -name 'podman*' \
    -o -name 'S*docker' | grep . && test ! -e /usr/sbin/policy-rc.d && cargo xtask setup --remove \
    && dpkg-query -W -f '${Package} ${db:Status-Status}\\n' | sort | diff /root/packages -";

/// Notes the packages, then runs each part: `== NAME` before it, `== NAME: SECONDS CODE` after it.
const SCRIPT: &str = r#"dpkg-query -W -f '${Package} ${db:Status-Status}\n' | sort >/root/packages
failed=0
while [ $# -gt 0 ]; do
    echo "== $1"
    begin=$(date +%s)
    code=0
    sh -c "$2" </dev/null || code=$?
    echo "== $1: $(($(date +%s) - begin)) $code"
    [ $code = 0 ] || failed=1
    shift 2
done
exit $failed"#;

/// How a part ended.
#[derive(PartialEq, Eq, Debug)]
struct Ended {
    name: String,
    seconds: u64,
    code: u8,
}

pub fn verb(args: &Args) -> Result<ExitCode> {
    setup::ensure(Level::Pristine)?;
    let begin = Instant::now();
    let target = sh::target_dir()?.join("pristine");
    let mut tally = Tally::default();
    let mut table = Vec::new();
    let nightly = args.nightly.then_some(&NIGHTLY).into_iter().flatten();
    let is_wanted = |machine: &&Machine| args.suite.as_deref().is_none_or(|s| s == machine.suite);
    for machine in MACHINES.iter().chain(nightly).filter(is_wanted) {
        let ended = machine.run(&target, &mut tally)?;
        for (name, _) in machine.parts {
            let ended = ended.iter().find(|ended| ended.name == *name);
            let name = format!("{} {name}", machine.suite);
            match ended {
                Some(Ended { seconds, code: 0, .. }) => table.push((name, *seconds, "ok")),
                Some(Ended { seconds, .. }) => {
                    tally.failure(name.clone());
                    table.push((name, *seconds, "FAILED"));
                }
                None => {
                    tally.failure(format!("{name} has not run"));
                    table.push((name, 0, "NOT RUN"));
                }
            }
        }
    }
    for (name, seconds, outcome) in &table {
        eprintln!("{name:<20} {:>3} min {:>2} s  {outcome}", seconds / 60, seconds % 60);
    }
    let seconds = begin.elapsed().as_secs();
    eprintln!("{:<20} {:>3} min {:>2} s", "all", seconds / 60, seconds % 60);
    for name in tally.flaky() {
        eprintln!("flaky, to be found out: {name}");
    }
    for name in tally.failures() {
        eprintln!("failed: {name}");
    }
    println!("{} passed, {} failed", tally.passed, tally.failed);
    let pass = tally.failed == 0 && tally.ignored == 0 && tally.passed > 0;
    Ok(if pass { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Machine {
    /// Makes the machine and runs its parts; those that ended.
    fn run(&self, target: &Path, tally: &mut Tally) -> Result<Vec<Ended>> {
        eprintln!("== {}", self.suite);
        let mut command = Command::new(env::current_exe().context("find this program")?);
        command.args(["pristine", "--suite", self.suite, "--target"]).arg(target);
        command.args(["--", "sh", "-c", SCRIPT, "ci"]);
        for (name, line) in self.parts {
            command.args([name, line]);
        }
        command.current_dir(sh::root()).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().context("cannot start xtask")?;
        let output = child.stdout.take().context("xtask has no standard output")?;
        let mut parts = Vec::new();
        tally.pass_through(output, |line| parts.extend(ended(line)))?;
        child.wait().context("wait for xtask")?;
        Ok(parts)
    }
}

/// Reads `== NAME: SECONDS CODE`.
fn ended(line: &str) -> Option<Ended> {
    let (name, rest) = line.strip_prefix("== ")?.rsplit_once(": ")?;
    let (seconds, code) = rest.split_once(' ')?;
    Some(Ended { name: name.to_owned(), seconds: seconds.parse().ok()?, code: code.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_end_of_a_part_is_read_from_its_line() {
        let expected = Ended { name: "kernel 6.1".to_owned(), seconds: 90, code: 101 };
        assert_eq!(ended("== kernel 6.1: 90 101"), Some(expected));
        assert_eq!(ended("== kernel 6.1"), None);
        assert_eq!(ended("== a: b c"), None);
    }

    #[test]
    fn parts_run_one_after_the_other_also_after_a_failure() {
        let scratch = std::env::temp_dir().join(format!("samport-ci-{}", std::process::id()));
        let script = SCRIPT.replace("/root/packages", &scratch.display().to_string());
        let output = Command::new("sh")
            .args(["-c", &script, "ci", "one", "exit 3", "two", "echo said"])
            .output()
            .unwrap();
        fs::remove_file(&scratch).unwrap();
        assert!(!output.status.success());
        let said = String::from_utf8(output.stdout).unwrap();
        let parts: Vec<_> = said.lines().filter_map(ended).map(|e| (e.name, e.code)).collect();
        assert_eq!(parts, [("one".to_owned(), 3), ("two".to_owned(), 0)]);
        assert!(said.contains("\nsaid\n"), "{said}");
    }

    #[test]
    fn the_readme_s_two_commands_are_the_first_parts_on_debian_12() {
        let commands: Vec<_> = MACHINES[0].parts.iter().map(|(_, command)| *command).collect();
        assert!(commands.starts_with(&["cargo xtask demo", "cargo xtask test"]));
    }

    #[test]
    fn contributing_says_what_each_part_takes() {
        let text = fs::read_to_string(sh::root().join("CONTRIBUTING.md")).unwrap();
        for machine in MACHINES.iter().chain(&NIGHTLY) {
            for (name, _) in machine.parts {
                let row = format!("| {} | {name} |", machine.suite);
                assert!(text.contains(&row), "CONTRIBUTING.md has no row {row}");
            }
        }
    }
}
