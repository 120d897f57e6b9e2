//! Running other programs: each is shown before it runs and named when it fails.

use std::env;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context as _, Result, anyhow, bail};

/// The root of the checkout.
pub fn root() -> &'static Path {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest)
}

/// Cargo's target folder. This program runs from it, so asking neither the environment nor
/// cargo's configuration can disagree with what cargo really does.
pub fn target_dir() -> Result<PathBuf> {
    let exe = env::current_exe().context("find this program's own path")?;
    let folder = exe.parent().and_then(Path::parent);
    Ok(folder.with_context(|| format!("{} is in no target folder", exe.display()))?.to_owned())
}

/// `cargo`, to be run at the root of the checkout.
pub fn cargo() -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(root());
    command
}

/// Shows a command, runs it and fails unless it succeeds.
pub fn run(command: &mut Command) -> Result<()> {
    echo(command);
    let status = command.status().with_context(|| format!("cannot start `{}`", text(command)))?;
    succeeded(command, status)
}

/// Shows a command and becomes it: signals and the exit code pass through. Returns only to say why
/// it could not.
pub fn exec(command: &mut Command) -> anyhow::Error {
    echo(command);
    let error = command.exec();
    anyhow!(error).context(format!("cannot start `{}`", text(command)))
}

/// Runs a command silently and returns its standard output, or nothing if it fails.
pub fn probe(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    if !output.status.success() {
        return None;
    }
    String::from_utf8(output.stdout).ok()
}

/// Runs a command silently and fails with what it has said unless it succeeds.
pub fn quietly(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot start `{}`", text(command)))?;
    succeeded(command, output.status)
        .with_context(|| String::from_utf8_lossy(&output.stderr).trim().to_owned())
}

/// Fails, naming the command and how it ended, unless `status` is success.
pub fn succeeded(command: &Command, status: ExitStatus) -> Result<()> {
    match status.code() {
        Some(0) => Ok(()),
        Some(code) => bail!("`{}` failed with exit code {code}", text(command)),
        None => bail!("`{}` was ended by a {status}", text(command)),
    }
}

pub fn echo(command: &Command) {
    eprintln!("$ {}", text(command));
}

/// A command as one would type it.
pub fn text(command: &Command) -> String {
    let mut text = String::new();
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            let _ = write!(text, "{}={} ", name.display(), quoted(value));
        }
    }
    text.push_str(&quoted(command.get_program()));
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&quoted(argument));
    }
    text
}

fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+./:,@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.into_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// `program`, run as root: through sudo unless we are root already. The environment is kept,
/// SAMPORT_* variables are part of the command line's precedence.
pub fn as_root(program: impl AsRef<OsStr>) -> Result<Command> {
    if is_root() {
        return Ok(Command::new(program));
    }
    let program = program.as_ref();
    if find("sudo").is_none() {
        bail!("{} has to run as root, and there is no sudo: try again as root", program.display());
    }
    let mut command = Command::new("sudo");
    command.arg("-E").arg(program);
    Ok(command)
}

/// Makes cargo run test and benchmark programs as root while it compiles as the user, so that no
/// file of the target folder ends up owned by root.
pub fn run_tests_as_root(cargo: &mut Command) -> Result<()> {
    if is_root() {
        return Ok(());
    }
    if find("sudo").is_none() {
        bail!("the tests load BPF programs and need root, and there is no sudo: try again as root");
    }
    let host = host_target()?.to_uppercase().replace('-', "_");
    cargo.env(format!("CARGO_TARGET_{host}_RUNNER"), "sudo -E");
    Ok(())
}

/// The target that cargo compiles for here.
pub fn host_target() -> Result<String> {
    let version = probe(Command::new("rustc").arg("-vV")).context("`rustc -vV` failed")?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("`rustc -vV` names no host")?.to_owned())
}

/// Where a program is, looked for in PATH.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|folder| folder.join(program)).find(|file| is_program(file))
}

/// Whether a path is a file that may be executed.
pub fn is_program(file: &Path) -> bool {
    file.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

/// Adds the folders of system tools to PATH: `su` and many desktops leave them out, and `ip`,
/// `tc` and `dockerd` live there. `first` comes before all others.
///
/// # Safety
///
/// No other thread may run.
pub unsafe fn add_folders_to_path(first: Option<PathBuf>) {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = first.into_iter().chain(env::split_paths(&path)).collect();
    for folder in ["/usr/local/sbin", "/usr/sbin", "/sbin"] {
        if !folders.iter().any(|known| known == Path::new(folder)) {
            folders.push(folder.into());
        }
    }
    if let Ok(path) = env::join_paths(folders) {
        // SAFETY: the caller vouches that no other thread runs.
        unsafe { env::set_var("PATH", path) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_reads_as_typed() {
        let mut command = Command::new("cargo");
        command.env("A", "1").args(["test", "--", "two words", ""]);
        assert_eq!(text(&command), "A=1 cargo test -- 'two words' ''");
    }

    #[test]
    fn a_failure_names_the_command_and_its_exit_code() {
        let mut command = Command::new("sh");
        command.args(["-c", "exit 3"]);
        let error = run(&mut command).unwrap_err().to_string();
        assert_eq!(error, "`sh -c 'exit 3'` failed with exit code 3");
    }

    #[test]
    fn a_program_that_does_not_exist_is_named() {
        let error = run(&mut Command::new("no-such-program")).unwrap_err();
        assert!(format!("{error:#}").starts_with("cannot start `no-such-program`: "));
    }
}
