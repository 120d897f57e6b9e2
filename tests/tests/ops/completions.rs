//! `completions` and `man`.

use std::io::Write as _;
use std::process::{Command, Stdio};

use samport_tests::daemon::samport_binary;

#[test]
fn bash_understands_its_completions() {
    let output = Command::new(samport_binary()).args(["completions", "bash"]).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let script = String::from_utf8(output.stdout).unwrap();
    for word in ["undrain", "--max-backends", "round-robin", "complete -F _samport"] {
        assert!(script.contains(word), "no {word} in\n{script}");
    }
    let mut bash = Command::new("bash").arg("-n").stdin(Stdio::piped()).spawn().unwrap();
    bash.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(bash.wait().unwrap().success());
}

#[test]
fn completions_of_an_unknown_shell_are_refused_with_those_that_exist() {
    let output = Command::new(samport_binary()).args(["completions", "csh"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(["bash", "zsh", "fish"].iter().all(|shell| said.contains(shell)), "{said}");
}

#[test]
fn every_command_has_a_manual_page() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("share/man1");
    let status = Command::new(samport_binary()).arg("man").arg(&folder).status().unwrap();
    assert!(status.success());
    let page = |name: &str| std::fs::read_to_string(folder.join(format!("{name}.1"))).unwrap();
    for (verb, flags) in crate::help::VERBS {
        let page = page(&format!("samport-{}", verb.replace(' ', "-")));
        assert!(page.contains(".SH SYNOPSIS"), "{page}");
        // roff has hyphens escaped.
        for flag in flags.iter().filter_map(|flag| flag.split_once("--")) {
            let flag = flag.1.replace('-', "\\-");
            assert!(page.contains(&format!("\\-\\-{flag}")), "no {flag} in\n{page}");
        }
    }
    assert!(page("samport").contains("undrain"));
}
