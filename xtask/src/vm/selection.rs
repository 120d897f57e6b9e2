//! Which tests run on every kernel: what differs between kernels at least once, and no more, because
//! software emulation is slow.

use std::collections::BTreeSet;
use std::fmt::Write as _;

/// Tests of one test program, by their full names.
struct Chosen {
    program: &'static str,
    /// What every change has to pass.
    quick: &'static [&'static str],
    /// What takes too long for that.
    more: &'static [&'static str],
}

const CHOSEN: [Chosen; 4] = [
    Chosen {
        program: "prog_run",
        quick: &[
            // Every program goes through this kernel's verifier.
            "programs_stay_below_their_instruction_ceilings",
        ],
        more: &[],
    },
    Chosen {
        program: "netns",
        quick: &[
            "kernels::hook_auto_takes_the_best_that_the_kernel_has",
            "kernels::hook_tcx_serves_or_is_refused_with_the_way_out_where_the_kernel_has_none",
            "forwarding::hook_tc_and_forward_neigh_go_together",
            "outbound::a_client_that_has_a_flow_keeps_it",
            "local::the_other_end_of_a_connection_is_what_was_dialled",
        ],
        more: &[
            // Clients of every kind, TCP and UDP, IPv4 and IPv6.
            "matrix::everybody_is_served_by_tc_filters",
            "xdp::generic_xdp_sends_into_the_containers",
            // Routes are looked up by a helper that has changed with every other release.
            "spoof::a_container_of_another_bridge_takes_over_no_flow_of_an_outside_client",
            "spoof::who_is_reached_by_another_interface_is_refused_as_rp_filter_says",
            "sources::a_client_that_is_reached_by_another_interface_than_it_comes_in_by_is_served",
            "outbound::questions_from_ports_that_the_kernel_chooses_are_answered",
            "local::connections_of_the_host_to_a_backend_that_goes_are_ended",
            "local_counts::two_hundred_refused_connections_of_the_host_leave_nothing_open",
            "local_counts::an_unanswered_connection_of_the_host_counts_until_it_is_given_up",
            "operator::a_drained_backend_gets_no_new_flow_keeps_its_old_ones_and_comes_back",
            "listing::what_opens_and_closes_is_followed",
        ],
    },
    Chosen {
        program: "ops",
        quick: &["cleanup::a_clean_exit_leaves_no_filter_and_no_qdisc"],
        more: &["killed::a_killed_samport_serves_by_filters_until_clean"],
    },
    Chosen {
        program: "demo",
        quick: &[],
        more: &["the_demo_is_fair_fails_no_request_and_leaves_nothing_behind"],
    },
];

/// Which tests run.
#[derive(Clone, Copy, Debug)]
pub enum Which<'a> {
    /// Those that are chosen for every change.
    Quick,
    /// All that are chosen for all kernels.
    Chosen,
    /// Those whose names contain one of these.
    Named(&'a [String]),
}

/// What runs in the machine.
pub struct Selection {
    /// A line for each test program: its name and its arguments.
    pub script: String,
    /// Tests that have to pass, by program and name; empty if that is not known before.
    pub expected: BTreeSet<String>,
}

/// The test programs.
pub fn programs() -> impl Iterator<Item = &'static str> {
    CHOSEN.iter().map(|chosen| chosen.program)
}

impl Selection {
    /// These tests of each program.
    pub fn new(which: Which) -> Self {
        let mut selection = Self { script: String::new(), expected: BTreeSet::new() };
        for Chosen { program, quick, more } in &CHOSEN {
            let tests = match which {
                Which::Quick => quick.to_vec(),
                Which::Chosen => [*quick, *more].concat(),
                Which::Named(filters) => {
                    selection.add(program, &filters.join(" "));
                    continue;
                }
            };
            if !tests.is_empty() {
                selection.expected.extend(tests.iter().map(|test| (*test).to_owned()));
                selection.add(program, &format!("--exact {}", tests.join(" ")));
            }
        }
        selection
    }

    fn add(&mut self, program: &str, arguments: &str) {
        let _ = writeln!(self.script, "{program} --test-threads=1 {arguments}");
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;
    use crate::sh;

    /// The file a test is in: `tests/netns/matrix.rs` for `matrix::…` of `netns`.
    fn file_of(program: &str, test: &str) -> PathBuf {
        let folder = sh::root().join("tests/tests");
        match test.rsplit_once("::") {
            Some((module, _)) => folder.join(program).join(module.replace("::", "/") + ".rs"),
            None if folder.join(program).is_dir() => folder.join(program).join("main.rs"),
            None => folder.join(format!("{program}.rs")),
        }
    }

    #[test]
    fn every_chosen_test_exists() {
        for Chosen { program, quick, more } in CHOSEN {
            for test in [quick, more].concat() {
                let file = file_of(program, test);
                let source = fs::read_to_string(&file).unwrap_or_default();
                let function = format!("fn {}()", test.rsplit("::").next().unwrap());
                assert!(source.contains(&function), "{test} is not in {}", file.display());
            }
        }
    }

    #[test]
    fn without_a_filter_the_chosen_tests_are_named_and_have_to_pass() {
        let selection = Selection::new(Which::Chosen);
        let demo = "the_demo_is_fair_fails_no_request_and_leaves_nothing_behind";
        assert!(selection.script.ends_with(&format!("demo --test-threads=1 --exact {demo}\n")));
        assert!(selection.expected.contains(demo));
    }

    #[test]
    fn quick_are_some_of_the_chosen_and_programs_without_any_do_not_start() {
        let [quick, all] = [Which::Quick, Which::Chosen].map(Selection::new);
        assert!(quick.expected.is_subset(&all.expected) && quick.expected.len() < 10);
        assert!(!quick.script.contains("demo") && quick.script.contains("prog_run"));
    }

    #[test]
    fn filters_are_given_to_every_test_program() {
        let selection = Selection::new(Which::Named(&["xdp::".to_owned(), "local".to_owned()]));
        let lines: Vec<_> = selection.script.lines().collect();
        assert_eq!(lines[0], "prog_run --test-threads=1 xdp:: local");
        assert_eq!(lines.len(), CHOSEN.len());
        assert!(selection.expected.is_empty());
    }
}
