//! `--help` and `version`.

use std::process::Command;

use samport_tests::daemon::samport_binary;

/// What a command prints; it needs no root and no namespace.
fn printed(args: &[&str]) -> String {
    let output = Command::new(samport_binary()).args(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {output:?}");
    assert!(output.stderr.is_empty(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Every verb, and the flags it has.
pub const VERBS: [(&str, &[&str]); 19] = [
    (
        "run",
        &[
            "--config",
            "-i, --iface",
            "-p, --port",
            "--backend",
            "--provider",
            "--endpoint",
            "--file",
            "--filter",
            "--allow",
            "--forward",
            "--hook",
            "--drain",
            "--socket",
            "--hash-seed-file",
            "--sandbox",
            "--metrics",
            "--keep",
            "Health:",
            "--health",
            "--health-interval",
            "--health-timeout",
            "--health-rise",
            "--health-fall",
            "Limits:",
            "--flows",
            "--flows6",
            "--tcp-syn-timeout",
            "--tcp-timeout",
            "--tcp-fin-timeout",
            "--tcp-rst-timeout",
            "--udp-timeout",
            "--udp-unanswered-timeout",
        ],
    ),
    ("status", &["-o, --output"]),
    ("backends", &["-o, --output", "--instance", "--socket"]),
    ("top", &["--interval", "--instance", "--socket"]),
    ("flows", &["-o, --output", "--limit", "--follow", "--instance"]),
    ("healthcheck", &["--instance", "--socket"]),
    ("drain", &["--wait", "--timeout", "--instance", "--socket"]),
    ("undrain", &["--instance", "--socket"]),
    ("weight", &["--instance", "--socket"]),
    ("balance", &["--instance", "--socket"]),
    ("wait", &["--healthy", "--timeout", "-o, --output", "--instance", "--socket"]),
    ("config check", &["<FILE>"]),
    ("config show", &["-o, --output", "--config", "-i, --iface", "--drain"]),
    ("clean", &["--dry-run", "--instance", "-o, --output"]),
    ("demo", &["--backends", "--requests"]),
    (
        "check",
        &[
            "-i, --iface",
            "-p, --port",
            "--provider",
            "--endpoint",
            "--allow",
            "--label-ports",
            "--service-conflict",
            "--max-backends",
            "--hash-seed-file",
            "-o, --output",
        ],
    ),
    ("completions", &[]),
    ("man", &[]),
    ("version", &["-o, --output"]),
];

#[test]
fn help_of_every_verb_names_each_of_its_flags() {
    for (verb, flags) in VERBS {
        let help = printed(&verb.split(' ').chain(["--help"]).collect::<Vec<_>>());
        for flag in flags.iter().chain(&["-q, --quiet", "-v, --verbose", "-h, --help"]) {
            assert!(help.contains(flag), "no {flag} in the help of {verb}:\n{help}");
        }
        assert!(help.contains(&format!("samport {verb}")), "{help}");
    }
}

#[test]
fn help_names_every_verb_and_the_exit_codes() {
    let help = printed(&["--help"]);
    for (verb, _) in VERBS {
        let verb = verb.split(' ').next().unwrap();
        assert!(help.contains(&format!("\n  {verb}")), "no {verb} in\n{help}");
    }
    for code in ["0 ok", "1 failure", "2 ", "3 ", "4 ", "5 ", "6 ", "7 "] {
        assert!(help.contains(code), "no exit code {code:?} in\n{help}");
    }
}

#[test]
fn version_names_the_program_and_the_layout_of_its_maps() {
    let version = printed(&["version"]);
    assert!(version.starts_with(&format!("samport {}", env!("CARGO_PKG_VERSION"))), "{version}");
    assert!(version.contains("layout"), "{version}");
    assert!(printed(&["--version"]).starts_with("samport "));
}

#[test]
fn a_reader_that_has_enough_is_no_error() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(samport_binary());
    let ended = command.args(["version", "-o", "json"]).stdout(writer).output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!((ended.status.code(), said.as_ref()), (Some(141), ""));
}

/// What people see first is read without scrolling.
#[test]
fn help_in_short_is_a_page() {
    for (verb, _) in VERBS {
        let mut command = Command::new(samport_binary());
        let output = command.args(verb.split(' ')).arg("-h").env("COLUMNS", "80").output().unwrap();
        let help = String::from_utf8(output.stdout).unwrap();
        assert!(help.lines().count() <= 60, "{help}");
        let long = help.lines().find(|line| line.chars().count() > 80);
        assert_eq!(long, None, "{help}");
        assert!(!help.contains("[env: "), "{help}");
    }
    let help = printed(&["-h"]);
    assert!(help.lines().count() <= 60, "{help}");
}
