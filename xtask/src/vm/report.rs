//! What the machine has said, and whether that is a pass. Pure.

use std::collections::BTreeSet;

use crate::test::Tally;

/// What came out of the machine's second serial port so far.
#[derive(Default)]
pub struct Report {
    /// The results of the test programs.
    pub tally: Tally,
    /// The kernel's release, as itself says it.
    pub kernel: Option<String>,
    passed: BTreeSet<String>,
    /// What was said to be wrong beside the tests.
    wrong: Vec<String>,
    ended: bool,
}

impl Report {
    pub fn line(&mut self, line: &str) {
        let Some(words) = line.strip_prefix("vm: ") else {
            self.passed.extend(passed(line));
            self.tally.line(line);
            return;
        };
        match words.split_once(' ').unwrap_or((words, "")) {
            ("kernel", release) => self.kernel = Some(release.to_owned()),
            ("end", "") => self.ended = true,
            // Its tests have said so already.
            ("failed", _) => {}
            ("left", thing) => self.wrong.push(format!("left behind: {thing}")),
            ("no", module) => self.wrong.push(format!("the kernel does not load {module}")),
            _ => self.wrong.push(format!("it has said {words:?}")),
        }
    }

    /// To be called after the last line: the results, with a failure for everything that is missing
    /// for a pass on this kernel.
    pub fn evaluate(mut self, release: &str, expected: &BTreeSet<String>) -> Tally {
        self.tally.end();
        match &self.kernel {
            None => self.wrong.push("it has not booted".to_owned()),
            Some(kernel) if !is_release(kernel, release) => {
                self.wrong.push(format!("it has booted Linux {kernel}"));
            }
            Some(_) => {}
        }
        if !self.ended {
            self.wrong.push("it has not come to its end".to_owned());
        }
        // What has failed is a failure already.
        self.passed.extend(self.tally.failures().map(str::to_owned));
        let missing = expected.difference(&self.passed);
        self.wrong.extend(missing.map(|test| format!("{test} has not run")));
        let name = format!("on Linux {release}: ");
        self.tally.named(&name);
        for what in self.wrong {
            self.tally.failure(format!("{name}{what}"));
        }
        self.tally
    }
}

/// The test of a line `test NAME ... ok`.
fn passed(line: &str) -> Option<String> {
    let test = line.strip_prefix("test ")?.strip_suffix(" ... ok")?;
    Some(test.to_owned())
}

/// Whether `6.1.0-56-cloud-amd64` is a `6.1`.
fn is_release(kernel: &str, release: &str) -> bool {
    kernel.strip_prefix(release).is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "vm: kernel 6.1.0-56-cloud-amd64\n\nrunning 1 test\ntest a::b ... ok\n\n\
        test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 9 filtered out; finished in 1s\n\
        vm: end\n";

    /// The number of passed tests and the failures.
    fn judged(output: &str) -> (u64, Vec<String>) {
        let mut report = Report::default();
        output.lines().for_each(|line| report.line(line));
        let tally = report.evaluate("6.1", &BTreeSet::from(["a::b".to_owned()]));
        assert_eq!(tally.failed, tally.failures().count() as u64);
        (tally.passed, tally.failures().map(str::to_owned).collect())
    }

    fn failures_without(part: &str) -> Vec<String> {
        assert!(GOOD.contains(part));
        judged(&GOOD.replace(part, "")).1
    }

    #[test]
    fn a_machine_that_ran_what_it_should_and_left_nothing_passes() {
        assert_eq!(judged(GOOD), (1, Vec::new()));
    }

    #[test]
    fn a_machine_that_did_not_run_is_no_pass() {
        let missing = ["it has not booted", "it has not come to its end", "a::b has not run"];
        let missing = missing.map(|what| format!("on Linux 6.1: {what}"));
        assert_eq!(judged(""), (0, missing.to_vec()));
    }

    #[test]
    fn a_machine_that_ended_before_its_last_line_is_no_pass() {
        assert_eq!(failures_without("vm: end\n"), ["on Linux 6.1: it has not come to its end"]);
    }

    #[test]
    fn a_chosen_test_that_did_not_run_is_no_pass() {
        assert_eq!(failures_without("test a::b ... ok\n"), ["on Linux 6.1: a::b has not run"]);
    }

    #[test]
    fn a_test_that_failed_is_one_failure() {
        let failed = GOOD.replace("... ok", "... FAILED").replace("1 passed; 0", "0 passed; 1");
        let failed = failed.replace("\n\ntest result", "\n\nfailures:\n    a::b\n\ntest result");
        assert_eq!(judged(&failed), (0, vec!["on Linux 6.1: a::b".to_owned()]));
    }

    #[test]
    fn another_kernel_than_was_asked_for_is_no_pass() {
        let other = judged(&GOOD.replace("6.1.0-56", "6.12.4")).1;
        assert_eq!(other, ["on Linux 6.1: it has booted Linux 6.12.4-cloud-amd64"]);
    }

    #[test]
    fn what_is_left_behind_is_named() {
        let left = judged(&GOOD.replace("vm: end", "vm: left prog 12: sched_cls\nvm: end")).1;
        assert_eq!(left, ["on Linux 6.1: left behind: prog 12: sched_cls"]);
    }
}
