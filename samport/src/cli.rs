//! The command line: one file a verb.

mod backends;
mod balance;
mod check;
mod clean;
mod cluster;
mod commands;
mod config;
mod connection;
mod demo;
#[cfg(test)]
mod examples;
mod explain;
mod file;
mod flows;
mod health;
mod healthcheck;
mod instances;
mod limits;
mod manuals;
mod output;
mod progress;
mod provenance;
#[cfg(test)]
mod reference;
mod resolved;
mod run;
mod sigpipe;
#[cfg(test)]
mod snapshots;
mod status;
mod table;
mod top;
mod trace;
mod units;
mod version;
mod wait;

use std::fmt;
use std::process::ExitCode;

use anyhow::Result;
use clap::builder::styling::{AnsiColor, Style};
use clap::{ArgAction, ColorChoice, CommandFactory as _, Parser, Subcommand};
use tracing::{Event, Level, Subscriber};
use tracing_log::NormalizeEvent as _;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::registry::LookupSpan;

use crate::discovery::Unreachable;
use crate::system::descriptors;
use crate::system::escape;
use crate::system::exit::{Exit, code_of};
use crate::system::privileges;

const AFTER_HELP: &str = "\
Exit codes: 0 ok, 1 failure, 2 wrong usage, 3 Docker or samport does not answer,
4 the kernel lacks something or a check failed, 5 missing privileges,
6 a port or hook is taken, 7 timeout.";

/// Where flags of all verbs stand in help: after those of the verb.
const GLOBAL: usize = 900;

/// What is wrong, what may be, and what is right; without colours they are stripped on the way out.
const BAD: Style = AnsiColor::Red.on_default().bold();
const DOUBTFUL: Style = AnsiColor::Yellow.on_default();
const GOOD: Style = AnsiColor::Green.on_default();

/// Several containers behind one port of a Linux host, without a proxy.
#[derive(Parser, Debug)]
#[command(name = "samport", version, after_help = AFTER_HELP, max_term_width = 100)]
struct Cli {
    /// Log only warnings and errors.
    #[arg(short, long, global = true, display_order = GLOBAL, conflicts_with = "verbose")]
    quiet: bool,
    /// Log more; -vv logs the verdict on every packet
    #[arg(short, long, global = true, display_order = GLOBAL, action = ArgAction::Count)]
    verbose: u8,
    /// Choose when to use colours
    ///
    /// auto: on a terminal, unless NO_COLOR is set.
    #[arg(long, global = true, display_order = GLOBAL, value_enum, default_value = "auto", value_name = "WHEN")]
    color: ColorChoice,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Balance ports of this host over containers until stopped
    Run(Box<run::Args>),
    /// Show services and packet counters
    ///
    /// Of every samport on this machine, and of those that were killed and have left their programs in the
    /// kernel.
    Status(status::Args),
    /// List backends with state, weight and connection counts
    Backends(backends::Args),
    /// Show a live view; keys drain a backend or change its weight
    Top(top::Args),
    /// List open connections with client and backend
    ///
    /// Connections of this machine's own processes are not among them: their sockets are connected to the
    /// backend, and `ss` shows them.
    Flows(flows::Args),
    /// Show where a packet would go, and why
    ///
    /// It reads the kernel's tables, whether samport runs or not, and changes nothing.
    Explain(explain::Args),
    /// Show packets and their verdicts live
    ///
    /// Ctrl-C ends it. Packets cost no more than usual while nothing is traced. One trace can run at a time.
    Trace(trace::Args),
    /// Stop new connections to a backend; open ones finish
    ///
    /// A command returns once the kernel has applied it. Commands are not persistent: they last until samport
    /// exits.
    Drain(commands::DrainArgs),
    /// Send new connections to a drained backend again
    ///
    /// A command returns once the kernel has applied it. Commands are not persistent: they last until samport
    /// exits.
    Undrain(commands::UndrainArgs),
    /// Change the weight of a backend or a group
    ///
    /// A command returns once the kernel has applied it. Commands are not persistent: they last until samport
    /// exits.
    Weight(commands::WeightArgs),
    /// Change how backends are chosen
    ///
    /// A command returns once the kernel has applied it. Commands are not persistent: they last until samport
    /// exits.
    Balance(commands::BalanceArgs),
    /// Reset an allow-list that labels of removed containers have set
    Allow(commands::AllowArgs),
    /// Wait until enough backends are healthy
    Wait(wait::Args),
    /// Check whether `run` would work, without changing anything
    ///
    /// The flags are those of `samport run`.
    Check(check::Args),
    /// Exit with 0 if samport and all its services are healthy
    ///
    /// For the HEALTHCHECK of samport's own container. Fails if samport does not answer, if a service has no
    /// backend, or if the control loop, which keeps the kernel up to date every 10 seconds, has not completed a
    /// round for 30 seconds.
    Healthcheck(healthcheck::Args),
    /// Check a configuration file, or show the settings in force
    Config(config::Args),
    /// Remove what a killed samport has left in the kernel
    ///
    /// A samport that runs is left alone.
    Clean(clean::Args),
    /// Show samport at work in network namespaces, without Docker
    Demo(demo::Args),
    /// Print completions for a shell
    Completions(manuals::CompletionsArgs),
    /// Write manual pages of all commands
    Man(manuals::ManArgs),
    /// Print the version, and that of the kernel maps' layout
    Version(version::Args),
}

/// Parses the command line, does what it says and gives the documented exit code.
#[must_use]
pub fn main() -> ExitCode {
    let cli = resolved::command_line();
    match cli.color {
        // As anstream finds it by the environment and the terminal.
        ColorChoice::Auto => {}
        ColorChoice::Always => anstream::ColorChoice::Always.write_global(),
        ColorChoice::Never => anstream::ColorChoice::Never.write_global(),
    }
    start_logging(&cli);
    sigpipe::end_with_reader(&cli.verb);
    match act(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::from(exit_of(&error) as u8)
        }
    }
}

fn act(cli: Cli) -> Result<()> {
    match cli.verb {
        Verb::Run(args) => {
            // Threads inherit what they may do.
            descriptors::raise_limit();
            let prepared = run::prepare(&args, cli.verbose > 0)?;
            on_threads(run::run(&args, prepared))
        }
        Verb::Status(args) => status::run(&args),
        Verb::Backends(args) => on_threads(backends::run(args)),
        Verb::Top(args) => on_threads(top::run(args)),
        Verb::Flows(args) => flows::run(&args),
        Verb::Explain(args) => on_threads(explain::run(args)),
        Verb::Trace(args) => on_threads(trace::run(args)),
        Verb::Drain(args) => on_threads(commands::drain(args)),
        Verb::Undrain(args) => on_threads(commands::undrain(args)),
        Verb::Weight(args) => on_threads(commands::weight(args)),
        Verb::Balance(args) => on_threads(commands::balance(args)),
        Verb::Allow(args) => on_threads(commands::allow(args)),
        Verb::Wait(args) => on_threads(wait::run(args)),
        Verb::Check(args) => on_threads(check::run(args)),
        Verb::Healthcheck(args) => on_threads(healthcheck::run(args)),
        Verb::Config(args) => config::run(&args),
        Verb::Clean(args) => clean::run(&args),
        Verb::Demo(args) => on_threads(demo::run(args)),
        Verb::Completions(args) => {
            manuals::completions(&args, Cli::command());
            Ok(())
        }
        Verb::Man(args) => manuals::man(&args, Cli::command()),
        Verb::Version(args) => version::run(&args),
    }
}

/// Runs a verb that waits for several things.
fn on_threads(verb: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .on_thread_start(privileges::narrow)
        .enable_all()
        .build()?;
    runtime.block_on(verb)
}

fn exit_of(error: &anyhow::Error) -> Exit {
    if error.downcast_ref::<Unreachable>().is_some() { Exit::Unreachable } else { code_of(error) }
}

/// Log lines go to stderr; data goes to stdout. `SAMPORT_LOG` overrides the flags.
fn start_logging(cli: &Cli) {
    let default = match (cli.quiet, cli.verbose) {
        (true, _) => "warn",
        (false, 0) => "warn,samport=info",
        (false, 1) => "info,samport=debug,samport_ebpf=debug",
        (false, _) => "debug",
    };
    let filter = EnvFilter::try_from_env("SAMPORT_LOG").unwrap_or_else(|_| default.into());
    tracing_subscriber::fmt()
        .with_writer(anstream::stderr)
        .with_env_filter(filter)
        .event_format(Plain)
        .init();
}

/// One line an event, for people: what happened, and how bad it is only if it is.
struct Plain;

impl<S, N> FormatEvent<S, N> for Plain
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        match *event.normalized_metadata().as_ref().unwrap_or(event.metadata()).level() {
            Level::ERROR => write!(writer, "{BAD}error:{BAD:#} ")?,
            Level::WARN => write!(writer, "{DOUBTFUL}warning:{DOUBTFUL:#} ")?,
            Level::INFO => {}
            Level::DEBUG | Level::TRACE => {
                // aya's lines come through the log crate; this is where they really come from.
                let normal = event.normalized_metadata();
                let target = normal.as_ref().unwrap_or(event.metadata()).target();
                write!(writer, "  {target}: ")?;
            }
        }
        let mut fields = String::new();
        context.field_format().format_fields(Writer::new(&mut fields), event)?;
        // A line that others have put into the text does not begin as one of ours does.
        writeln!(writer, "{}", escape::lines(&fields).replace('\n', "\n  "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
