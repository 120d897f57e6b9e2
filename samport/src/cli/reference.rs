//! docs/reference/commands.md, made from the command line itself, so that it says what the program does.

use std::fmt::Write as _;
use std::fs;

use clap::{Arg, Command, CommandFactory as _};

use super::Cli;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/commands.md");
/// Writes the page instead of comparing it.
const WRITE: &str = "SAMPORT_WRITE_REFERENCE";

const HEAD: &str = "\
# Commands and flags

Made from the program itself by `SAMPORT_WRITE_REFERENCE=1 cargo test -p samport --lib reference`; a test fails
when it is stale. A flag counts before its environment variable, that before the configuration file
([configuration.md](configuration.md)), and that before the default.

";

#[test]
fn the_reference_is_what_the_program_says() {
    let page = page();
    if std::env::var_os(WRITE).is_some() {
        fs::write(PAGE, &page).unwrap();
    }
    // No diff of the whole: what it says is nothing to act on.
    let is_fresh = fs::read_to_string(PAGE).unwrap_or_default() == page;
    assert!(is_fresh, "{PAGE} is stale: {WRITE}=1 cargo test -p samport --lib reference");
}

#[test]
fn the_reference_has_names_variables_defaults_and_values() {
    let page = page();
    for part in [
        "\n## samport run\n",
        "| `-i`, `--iface <IFACE>` | `SAMPORT_IFACE` | |",
        "| `--drain <TIME>` | `SAMPORT_DRAIN` | `30s` |",
        "`auto`, `peer`, `neigh`, `stack`",
        "\n## samport config show\n",
        "\n## samport completions\n",
        "| `<DIR>` | | required |",
    ] {
        assert!(page.contains(part), "no {part:?} in\n{page}");
    }
}

fn page() -> String {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let mut page = HEAD.to_owned();
    section(&mut page, "samport, and every command", &command, |_| true);
    verbs(&mut page, "samport", &command);
    page.truncate(page.trim_end().len());
    page.push('\n');
    page
}

fn verbs(page: &mut String, of: &str, command: &Command) {
    for verb in command.get_subcommands().filter(|verb| verb.get_name() != "help") {
        let title = format!("{of} {}", verb.get_name());
        section(page, &title, verb, |arg| !arg.is_global_set());
        verbs(page, &title, verb);
    }
}

fn section(page: &mut String, title: &str, command: &Command, shown: impl Fn(&Arg) -> bool) {
    let about = command.get_long_about().or_else(|| command.get_about());
    let about = about.map(ToString::to_string).unwrap_or_default();
    // Writing to a String cannot fail.
    let _ = writeln!(page, "## {title}\n\n{about}\n");
    let is_ours = |arg: &&Arg| !arg.is_hide_set() && !is_of_clap(arg) && shown(arg);
    let args: Vec<&Arg> = command.get_arguments().filter(is_ours).collect();
    if args.is_empty() {
        return;
    }
    page.push_str("| flag | environment | default | meaning |\n| --- | --- | --- | --- |\n");
    for arg in args {
        page.push_str(&row(arg));
    }
    page.push('\n');
}

fn row(arg: &Arg) -> String {
    let variable = arg.get_env().map(|name| format!(" `{}`", name.to_string_lossy()));
    format!(
        "| {} |{} |{} | {} |\n",
        name(arg),
        variable.unwrap_or_default(),
        default(arg),
        meaning(arg)
    )
}

/// `--help` and `--version` are the same everywhere.
fn is_of_clap(arg: &Arg) -> bool {
    matches!(arg.get_id().as_str(), "help" | "version")
}

fn name(arg: &Arg) -> String {
    let takes = arg.get_action().takes_values();
    let values = arg.get_value_names().unwrap_or_default();
    let values: Vec<String> = values.iter().map(|name| format!(" <{name}>")).collect();
    let values = if takes { values.concat() } else { String::new() };
    let short = arg.get_short().map(|short| format!("`-{short}`"));
    let long = arg.get_long().map(|long| format!("`--{long}{values}`"));
    let names: Vec<String> = short.into_iter().chain(long).collect();
    let names = if names.is_empty() { format!("`{}`", values.trim()) } else { names.join(", ") };
    names.replace('|', "\\|")
}

fn default(arg: &Arg) -> String {
    if arg.is_required_set() {
        return " required".to_owned();
    }
    if !arg.get_action().takes_values() {
        return String::new();
    }
    let values = arg.get_default_values().iter();
    values.map(|value| format!(" `{}`", value.to_string_lossy())).collect::<Vec<_>>().concat()
}

fn meaning(arg: &Arg) -> String {
    let help = arg.get_long_help().or_else(|| arg.get_help());
    let help = help.map(ToString::to_string).unwrap_or_default();
    // The first line is a heading.
    let help = help.replace("\n\n", ". ").replace('\n', " ").replace('|', "\\|");
    let values = arg.get_possible_values();
    if !arg.get_action().takes_values() || values.is_empty() {
        return help;
    }
    let values: Vec<String> = values.iter().map(|one| format!("`{}`", one.get_name())).collect();
    format!("{}. One of {}", help.trim_end_matches('.'), values.join(", "))
}
