//! Adding up what the test programs print.

use std::io::{BufRead as _, BufReader, Read};

use anyhow::{Context as _, Result};

/// The line after which what has failed runs once more. Who passes then is flaky; nothing else counts.
pub const AGAIN: &str = "what has failed runs once more, by itself";
/// The line after that.
pub const AGAIN_OVER: &str = "what has failed has run once more";

/// The sums over all test programs whose output was given to [`Tally::line`].
#[derive(Default)]
pub struct Tally {
    pub passed: u64,
    pub failed: u64,
    pub ignored: u64,
    failures: Vec<String>,
    /// Failed first and passed by themselves; among the passed.
    flaky: Vec<String>,
    /// The names after the last `failures:`. A test program prints that word twice, before the
    /// output of failed tests and before their names; the later one replaces the earlier.
    listed: Option<Vec<String>>,
    /// A test program has started and not yet printed its result.
    running: bool,
    /// Between [`AGAIN`] and [`AGAIN_OVER`].
    runs_again: bool,
}

impl Tally {
    /// Prints what a program prints, as it comes, and adds it up; `seen` is given each line too.
    pub fn pass_through(&mut self, output: impl Read, mut seen: impl FnMut(&str)) -> Result<()> {
        for line in BufReader::new(output).split(b'\n') {
            // Tests may print what is not UTF-8.
            let line = String::from_utf8_lossy(&line.context("read the output")?).into_owned();
            println!("{line}");
            self.line(&line);
            seen(&line);
        }
        self.end();
        Ok(())
    }

    pub fn line(&mut self, line: &str) {
        if line == AGAIN || line == AGAIN_OVER {
            self.runs_again = line == AGAIN;
        } else if self.runs_again {
            let name = line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... ok"));
            if let Some(name) = name {
                self.passed_again(name);
            }
        } else if is_start(line) {
            self.close_unfinished();
            self.running = true;
        } else if line == "failures:" {
            self.listed = Some(Vec::new());
        } else if let Some([passed, failed, ignored]) = result(line) {
            self.passed += passed;
            self.failed += failed;
            self.ignored += ignored;
            self.failures.extend(self.listed.take().unwrap_or_default());
            self.running = false;
        } else if let (Some(listed), Some(name)) = (&mut self.listed, line.strip_prefix("    ")) {
            listed.push(name.to_owned());
        }
    }

    /// To be called after the last line.
    pub fn end(&mut self) {
        self.close_unfinished();
    }

    /// Puts this before the name of every failed test.
    pub fn named(&mut self, prefix: &str) {
        for name in self.failures.iter_mut().chain(&mut self.flaky) {
            name.insert_str(0, prefix);
        }
    }

    /// Counts a failure that no test program has told of.
    pub fn failure(&mut self, name: String) {
        self.failed += 1;
        self.failures.push(name);
    }

    /// Prints a line of the runner's own and records it.
    pub fn say(&mut self, line: &str) {
        println!("{line}");
        self.line(line);
    }

    fn passed_again(&mut self, name: &str) {
        if let Some(at) = self.failures.iter().position(|one| one == name) {
            self.failed -= 1;
            self.passed += 1;
            self.flaky.push(self.failures.remove(at));
        }
    }

    /// The names of tests that failed and passed by themselves, in the order they were printed.
    pub fn flaky(&self) -> &[String] {
        &self.flaky
    }

    /// The names of the failed tests, in the order they were printed.
    pub fn failures(&self) -> impl Iterator<Item = &str> {
        self.failures.iter().map(String::as_str)
    }

    /// A test program that crashed takes its tests with it: that has to count as a failure.
    fn close_unfinished(&mut self) {
        if self.running {
            self.failure("a test program ended before its result: see above".to_owned());
        }
        self.running = false;
        self.listed = None;
    }
}

/// Whether a line is `running N tests`.
fn is_start(line: &str) -> bool {
    let count = line.strip_prefix("running ").and_then(|rest| rest.split_once(' '));
    count.is_some_and(|(count, what)| {
        count.parse::<u64>().is_ok() && (what == "tests" || what == "test")
    })
}

/// The numbers of passed, failed and ignored tests in a `test result:` line.
fn result(line: &str) -> Option<[u64; 3]> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let mut counts = counts.split("; ");
    let mut count = |name: &str| counts.next()?.strip_suffix(name)?.trim().parse().ok();
    Some([count("passed")?, count("failed")?, count("ignored")?])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(output: &str) -> Tally {
        let mut tally = Tally::default();
        output.lines().for_each(|line| tally.line(line));
        tally.end();
        tally
    }

    const TWO_PASS: &str = "\nrunning 2 tests\ntest a ... ok\ntest b ... ok\n\n\
        test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 4 filtered out; finished in 0.01s\n";

    const ONE_FAILS: &str = "
running 2 tests
test good ... ok
test lab::bad ... FAILED

failures:

---- lab::bad stdout ----
    indented output of the test
left != right


failures:
    lab::bad

test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.02s
";

    #[test]
    fn results_of_several_programs_add_up() {
        let tally = tally(&[TWO_PASS, ONE_FAILS, TWO_PASS].concat());
        assert_eq!((tally.passed, tally.failed, tally.ignored), (5, 1, 2));
    }

    #[test]
    fn failed_tests_are_named_and_their_output_is_not() {
        let tally = tally(ONE_FAILS);
        assert_eq!(tally.failures().collect::<Vec<_>>(), ["lab::bad"]);
    }

    #[test]
    fn a_test_that_passes_by_itself_is_flaky_and_no_failure() {
        let result = "test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 9 filtered out";
        let again =
            format!("{AGAIN}\nrunning 1 test\ntest lab::bad ... ok\n{result}\n{AGAIN_OVER}\n");
        let flaky = tally(&[ONE_FAILS, &again, TWO_PASS].concat());
        assert_eq!((flaky.passed, flaky.failed), (4, 0));
        assert_eq!(flaky.flaky(), ["lab::bad"]);
        assert_eq!(flaky.failures().count(), 0);
    }

    #[test]
    fn a_test_that_fails_by_itself_too_is_one_failure() {
        let again = format!("{AGAIN}\n{ONE_FAILS}\n{AGAIN_OVER}\n");
        let failed = tally(&[ONE_FAILS, &again].concat());
        assert_eq!((failed.passed, failed.failed), (1, 1));
        assert_eq!(failed.failures().collect::<Vec<_>>(), ["lab::bad"]);
        assert!(failed.flaky().is_empty());
    }

    #[test]
    fn a_program_that_crashes_counts_as_a_failure() {
        let crashed = "\nrunning 3 tests\ntest a ... ok\n";
        for output in [crashed.to_owned(), [crashed, TWO_PASS].concat()] {
            assert_eq!(tally(&output).failed, 1, "{output}");
        }
    }

    #[test]
    fn other_lines_count_nothing() {
        let tally = tally("running late\ntest result: unclear\n    indented\n");
        assert_eq!((tally.passed, tally.failed, tally.ignored), (0, 0, 0));
    }
}
