use clap::{Args as _, FromArgMatches as _};

use super::*;
use crate::cli::run::Flags;

fn command() -> Command {
    Flags::augment_args(Command::new("run"))
}

fn file(text: &str) -> Result<File, String> {
    let settings =
        settings(text, &command()).map_err(|config_error| config_error.shown(&"f", text))?;
    Ok(File { path: "f".into(), text: text.to_owned(), settings })
}

/// What the flags' values are with a file and a command line, as `{:?}` shows all of them.
fn merged(text: &str, flags: &[&str]) -> String {
    let matches =
        file(text).unwrap().fill(command()).try_get_matches_from([&["run"], flags].concat());
    format!("{:?}", Flags::from_arg_matches(&matches.unwrap()).unwrap())
}

#[test]
fn every_flag_has_a_key_and_every_key_a_flag() {
    let command = command();
    let flags = command.get_arguments().filter_map(Arg::get_long).count();
    assert_eq!(keys(&command).count(), flags - [NO_KEY].len());
    // Each of them can be said, and arrives where its flag's value does.
    for (key, arg) in keys(&command) {
        let value = match (key, arg.get_default_values()) {
            _ if !arg.get_action().takes_values() => "true".to_owned(),
            (_, [default]) => format!("{:?}", default.to_string_lossy()),
            (
                "iface" | "endpoint" | "file" | "socket" | "hash-seed-file" | "user"
                | "cluster-file" | "node",
                _,
            ) => "'x'".to_owned(),
            ("port" | "syn-flood" | "label-ports", _) => "80".to_owned(),
            ("flows6", _) => "2048".to_owned(),
            ("backend" | "allow" | "node-address", _) => "'10.0.0.1'".to_owned(),
            ("provider" | "cluster", _) => "'file'".to_owned(),
            ("filter", _) => "'name=x'".to_owned(),
            ("metrics", _) => "'127.0.0.1:9'".to_owned(),
            (key, _) => panic!("what is a good value of {key}?"),
        };
        let flag = match value.trim_matches(['\'', '"']) {
            "true" => format!("--{key}"),
            value => format!("--{key}={value}"),
        };
        assert_eq!(merged(&format!("{key} = {value}"), &[]), merged("", &[&flag]));
    }
}

#[test]
fn a_flag_counts_before_the_file_and_a_list_replaces_a_list() {
    let text = "port = [80, 81]\ndrain = '5s'\nno-local = true";
    assert_eq!(
        merged(text, &["-p", "90", "--drain=6"]),
        merged("no-local = true", &["-p90", "--drain=6"])
    );
    assert_eq!(merged(text, &[]), merged("", &["-p80,81", "--drain=5s", "--no-local"]));
    assert_eq!(merged("port = '80,81'", &[]), merged("", &["-p80", "-p81"]));
    assert_eq!(merged("port = 80\nallow = []", &[]), merged("", &["-p80"]));
}

#[test]
fn a_wrong_value_gets_the_flags_own_words_with_its_place() {
    for (text, place, words) in [
        ("iface = 'eth0'\nport = [\"80:x\"]", "f:2:9: ", "\"80:x\""),
        ("port = [80, 65536]", "f:1:13: ", "expected 1-65535"),
        ("balance = 'fair'", "f:1:11: ", "least-conn"),
        ("drain = 'soon'", "f:1:9: ", "30s or 2h5m"),
        ("flows = 7", "f:1:9: ", "1024"),
        ("allow = ['10.0.0.0/8', 'office']", "f:1:24: ", "office"),
        ("connect-failover = true", "f:1:20: ", "expected a text"),
        ("no-local = 'yes'", "f:1:12: ", "true or false"),
        ("keep = 1", "f:1:8: ", "true or false"),
        ("drain = [1]", "f:1:9: ", "one value instead of a list"),
        ("[[backend]]\naddress = 'web-1'", "f:2:11: ", "invalid address \"web-1\""),
    ] {
        let config_error = file(text).unwrap_err();
        assert!(config_error.starts_with(place) && config_error.contains(words), "{config_error}");
        let key = text.split_once([' ', '\n']).unwrap().0;
        assert!(!config_error.lines().next().unwrap().contains("--"), "{key}: {config_error}");
    }
}

#[test]
fn an_unknown_key_is_named_and_the_nearest_one_is_offered() {
    for (text, place, words) in [
        ("iface = 'eth0'\n  prot = 80", "f:2:3: unknown key \"prot\"", "did you mean \"port\"?"),
        ("ifaces = ['eth0']", "f:1:1: ", "\"iface\""),
        ("healht-rise = 1", "f:1:1: ", "\"health-rise\""),
        ("zebra = 1", "f:1:1: ", "the flags of `samport run`"),
        // One file says no other.
        ("config = 'other'", "f:1:1: unknown key", "flags"),
        ("help = true", "f:1:1: unknown key", ""),
    ] {
        let config_error = file(text).unwrap_err();
        assert!(config_error.starts_with(place) && config_error.contains(words), "{config_error}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let error = File::read(Path::new("/nowhere/s.toml"), &command()).unwrap_err();
    assert_eq!(crate::system::exit::code_of(&error), Exit::Usage);
    assert!(error.to_string().contains("/nowhere/s.toml"), "{error:#}");
}

#[test]
fn the_example_has_every_key_with_its_default() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../dist/samport.toml");
    let text = std::fs::read_to_string(path).unwrap();
    let set: Vec<_> = file(&text).unwrap().settings.into_iter().map(|one| one.key).collect();
    assert_eq!(set, ["user"], "the rest is commented: the package makes that user");
    let is_key = |line: &&str| line.contains(" = ") || line.starts_with("[[");
    let lines = text
        .lines()
        .map(|line| line.strip_prefix('#').unwrap_or(line))
        .filter(|line| !line.starts_with(' '));
    let live: Vec<&str> = lines.filter(is_key).collect();
    let File { settings, .. } = file(&live.join("\n")).unwrap();
    let command = command();
    let mut named: Vec<_> = settings.iter().map(|setting| setting.key.as_str()).collect();
    let mut known: Vec<_> = keys(&command).map(|(key, _)| key).collect();
    for (key, arg) in keys(&command) {
        let setting = settings.iter().find(|setting| setting.key == key).unwrap();
        if let [default] = arg.get_default_values() {
            assert_eq!(setting.values, [default.to_string_lossy()], "{key}");
        }
    }
    named.sort_unstable();
    known.sort_unstable();
    assert_eq!(named, known);
}
