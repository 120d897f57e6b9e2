//! Help, and what wrong usage gets, as they are printed: `samport/snapshots`.

use std::collections::BTreeMap;

use clap::{Command, CommandFactory as _, FromArgMatches as _};

use super::file::File;
use super::{Cli, resolved, run};
use crate::control::reconcile::check_interfaces;
use crate::model::snapshots::Pages;
use crate::net::netlink::Device;
use crate::system::exit::code_of;

/// A command whose help depends on neither the terminal nor the environment.
fn fixed(command: Command, width: usize) -> Command {
    let command = command.term_width(width).mut_args(|arg| arg.hide_env_values(true));
    command.mut_subcommands(|one| fixed(one, width))
}

/// A command that no variable says anything to.
fn alone(command: Command) -> Command {
    command.mut_args(|arg| arg.env(None::<&str>)).mut_subcommands(alone)
}

/// The words of every command, `samport` itself first.
fn verbs() -> Vec<Vec<String>> {
    fn below(command: &Command, words: &[String], all: &mut Vec<Vec<String>>) {
        all.push(words.to_vec());
        for verb in command.get_subcommands() {
            below(verb, &[words, &[verb.get_name().to_owned()]].concat(), all);
        }
    }
    let mut all = Vec::new();
    below(&Cli::command(), &["samport".to_owned()], &mut all);
    all
}

/// What `-h` and `--help` print of every command.
fn help(flag: &str, command: &Command) -> Vec<(String, String)> {
    let of = |words: Vec<String>| {
        let words = [words, vec![flag.to_owned()]].concat();
        let shown = command.clone().try_get_matches_from(&words).unwrap_err();
        (words.join(" "), shown.render().to_string())
    };
    verbs().into_iter().map(of).collect()
}

fn short() -> Vec<(String, String)> {
    help("-h", &resolved::on_a_page(fixed(Cli::command(), 80)))
}

fn long() -> Vec<(String, String)> {
    help("--help", &fixed(Cli::command(), 100))
}

#[test]
fn help_in_short_is_as_it_was() {
    let mut pages = Pages::default();
    for (words, text) in short() {
        pages.add(&words, &text);
    }
    pages.assert("help");
}

#[test]
fn help_at_length_is_as_it_was() {
    let mut pages = Pages::default();
    for (words, text) in long() {
        pages.add(&words, &text);
    }
    pages.assert("manual");
}

/// What people see first is read without scrolling, on any terminal.
#[test]
fn help_in_short_is_a_page_of_eighty_columns_and_sixty_lines() {
    for (words, text) in short() {
        let longest = text.lines().map(|line| line.chars().count()).max();
        assert!(longest <= Some(80) && text.lines().count() <= 60, "{words}:\n{text}");
    }
    let (words, text) = &long()[0];
    let longest = text.lines().map(|line| line.chars().count()).max();
    assert!(longest <= Some(80) && text.lines().count() <= 60, "{words}:\n{text}");
}

/// Whatever more there is to say stands in a paragraph after it, which `--help` shows.
#[test]
fn help_of_every_verb_and_flag_begins_with_a_line_of_seventy_characters() {
    fn wrong(command: &Command, words: &str, all: &mut Vec<String>) {
        let verbs = command.get_subcommands().map(|verb| (verb.get_name(), verb.get_about()));
        let args = command.get_arguments().map(|arg| (arg.get_id().as_str(), arg.get_help()));
        for (name, help) in verbs.chain(args) {
            let help = help.map(ToString::to_string).unwrap_or_default();
            let is_line = (1..=70).contains(&help.chars().count()) && !help.contains('\n');
            if !is_line || help.ends_with('.') || !help.starts_with(char::is_uppercase) {
                all.push(format!("{words} {name}: {help:?}"));
            }
        }
        for verb in command.get_subcommands() {
            wrong(verb, &format!("{words} {}", verb.get_name()), all);
        }
    }
    let mut all = Vec::new();
    wrong(&Cli::command(), "samport", &mut all);
    assert_eq!(all, [""; 0]);
}

/// What `samport` says of words that it does not take, before it has looked at the machine.
fn refusal(words: &[&str]) -> String {
    let words = [&["samport"], words].concat();
    let matches = match alone(fixed(Cli::command(), 100)).try_get_matches_from(words) {
        Err(error) => {
            let error = resolved::reworded(error);
            return format!("{}(exit code {})", error.render(), error.exit_code());
        }
        Ok(matches) => matches,
    };
    let Some((run::NAME, matches)) = matches.subcommand() else { panic!("{matches:?} is taken") };
    said(&run::Flags::from_arg_matches(matches).unwrap().go_together().unwrap_err())
}

fn said(error: &anyhow::Error) -> String {
    format!("error: {error:#}\n(exit code {})", code_of(error) as u8)
}

#[test]
fn errors_are_as_they_were() {
    let mut pages = Pages::default();
    for line in [
        "",
        "no-such",
        "stat",
        "run -i eth0 --no-such",
        "run -p 80",
        "run -i eth0 -p 0",
        "run -i eth0 -p 65536",
        "run -i eth0 -p http",
        "run -i eth0 -p 80:x",
        "run -i eth0 -p 80/sctp",
        "run -i eth0 -p ::1:80",
        "run -i eth0 -p 1.2.3:80",
        "run -i eth0 -p 0.0.0.0:80",
        "run -i eth0 -p 80 -p 80:81",
        "run -i eth0 -i eth0 -p 80",
        "run -i eth0 -p 80 --backend web-1",
        "run -i eth0 -p 80 --backend 10.0.0.1:x",
        "run -i eth0 -p 80 --backend [::1]x",
        "run -i eth0 -p 80 --backend =10.0.0.1",
        "run -i eth0 -p 80 --backend 10.0.0.1@x",
        "run -i eth0 --backend 10.0.0.1",
        "run -i eth0 -p 80 --provider docker --backend 10.0.0.1",
        "run -i eth0 -p 80 --provider static",
        "run -i eth0 -p 80 --provider file",
        "run -i eth0 -p 80 --provider static --backend 10.0.0.1 --file b.toml",
        "run -i eth0 -p 80 --provider docker,docker",
        "run -i eth0 -p 80 --provider docker,file",
        "run -i eth0 -p 80 --provider docker,podman --endpoint /run/d.sock",
        "run -i eth0 -p 80 --provider swarm",
        "run -i eth0 -p 80 --filter web",
        "run -i eth0 -p 80 --allow office",
        "run -i eth0 --label-ports 90-80",
        "run -i eth0 --label-ports x",
        "run -i eth0 -p 80 --balance fair",
        "run -i eth0 -p 80 --affinity soon",
        "run -i eth0 -p 80 --affinity 31d",
        "run -i eth0 -p 80 --drain soon",
        "run -i eth0 -p 80 --udp-timeout 31d",
        "run -i eth0 -p 80 --udp-timeout 0",
        "run -i eth0 -p 80 --health http",
        "run -i eth0 -p 80 --health https:/x",
        "run -i eth0 -p 80 --health maybe",
        "run -i eth0 -p 80 --health http://host/path",
        "run -i eth0 -p 80 --health http:0/path",
        "run -i eth0 -p 80 --health-interval 0",
        "run -i eth0 -p 80 --health-rise 0",
        "run -i eth0 -p 80 --flows 1",
        "run -i eth0 -p 80 --metrics 9464",
        "run -q -v -i eth0",
        "status -o xml",
        "explain 192.0.2.1 192.0.2.7:80",
        "explain 192.0.2.1:1000 192.0.2.7:80/sctp",
        "explain 192.0.2.1:1000 192.0.2.7:0",
        "drain",
        "weight web-1 many",
        "balance fair",
        "wait",
        "top --interval 1ms",
        "trace --verdict dropped",
        "config",
        "completions tcsh",
    ] {
        pages.add(format!("samport {line}").trim_end(), &refusal(&words(line)));
    }
    let devices =
        [Device { is_ethernet: false, ..Device::named(1, "lo") }, Device::named(2, "eth0")];
    let devices: BTreeMap<_, _> = devices.map(|device| (device.ifindex, device)).into();
    for name in ["eth7", "lo"] {
        let error = check_interfaces(&[name.to_owned()], &devices).unwrap_err();
        pages.add(&format!("samport run -i {name} -p 80"), &said(&error));
    }
    for text in [
        "iface = 'eth0'\nprot = 80",
        "zebra = 1",
        "iface = 'eth0'\nport = ['80:x']",
        "port = [80, 65536]",
        "balance = 'fair'",
        "drain = 'soon'",
        "no-local = 'yes'",
        "connect-failover = true",
        "drain = [1]",
        "[[backend]]\naddress = 'web-1'",
        "[[backend]]\nport = 80",
        "port = ",
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("samport.toml");
        std::fs::write(&path, text).unwrap();
        let error = said(&File::read(&path, &resolved::flags()).unwrap_err());
        let folder = format!("{}/", folder.path().display());
        pages.add(
            &format!("samport.toml: {}", text.replace('\n', "; ")),
            &error.replace(&folder, ""),
        );
    }
    pages.assert("errors");
}

#[test]
fn errors_about_a_cluster_are_as_they_were() {
    let mut pages = Pages::default();
    for line in [
        "run -i eth0 -p 80 --cluster swarm",
        "run -i eth0 -p 80 --cluster file",
        "run -i eth0 -p 80 --cluster-file n.toml",
        "run -i eth0 -p 80 --node n1",
        "run -i eth0 -p 80 --node a/b --cluster file --cluster-file n.toml",
        "run -i eth0 -p 80 --node-address 192.0.2.1",
        "run -i eth0 -p 80 --node-address 127.0.0.1",
        "run -i eth0 -p 6080/udp --node n1 --cluster file --cluster-file n.toml",
        "run -i eth0 -p 80 --spread near",
        "run -i eth0 -p 80 --max-nodes 257",
    ] {
        pages.add(&format!("samport {line}"), &refusal(&words(line)));
    }
    pages.assert("cluster");
}

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}
