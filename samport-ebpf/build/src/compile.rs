//! Compiles the kernel programs, to the same bytes wherever the checkout, the home and cargo's registry are.

use std::env;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::{OBJECTS, Objects, Versions, elf};

const TARGET: &str = "bpfel-unknown-none";

/// Raise it when something else in this crate changes what the objects are.
const FORMAT: u32 = 1;

/// Cargo's settings as environment variables: a profile cannot set lto or panic for one package. All that changes
/// bytes is here, so that neither the workspace's profile nor the environment can.
const SETTINGS: [(&str, &str); 12] = [
    // Building core needs -Z build-std, which a stable compiler only takes with this.
    ("RUSTC_BOOTSTRAP", "1"),
    // More than one codegen unit breaks the 512-byte stack limit of BPF.
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1"),
    ("CARGO_PROFILE_RELEASE_LTO", "true"),
    ("CARGO_PROFILE_RELEASE_PANIC", "abort"),
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3"),
    ("CARGO_PROFILE_RELEASE_DEBUG", "2"),
    ("CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS", "false"),
    ("CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS", "false"),
    ("CARGO_PROFILE_RELEASE_STRIP", "false"),
    ("CARGO_INCREMENTAL", "0"),
    // Paths in BTF are those of packages, not of this machine.
    ("CARGO_UNSTABLE_TRIM_PATHS", "true"),
    ("CARGO_PROFILE_RELEASE_TRIM_PATHS", "all"),
];

const FLAGS: [&str; 5] = [
    // aya-ebpf asks for it. It decides what a probe's registers are called and whether C's char has a sign, neither
    // of which these programs use: one object is for all machines.
    "--cfg=bpf_target_arch=\"x86_64\"",
    "-Cdebuginfo=2",
    "-Clink-arg=--btf",
    // LLVM puts the source's lines into BTF for the verifier's log. It could not find the files under trimmed paths;
    // this hands it their text, which DWARF 5 has a place for.
    "-Cdwarf-version=5",
    "-Zembed-source=yes",
];

/// Where to compile with what.
pub struct Compiler {
    /// The checkout.
    pub root: PathBuf,
    /// The toolchain by the name that `rustup run` takes.
    pub toolchain: String,
    /// The folder of bpf-linker, if it is not in PATH.
    pub linker: Option<PathBuf>,
    /// Cargo's target folder.
    pub target_dir: PathBuf,
}

/// What the objects depend on beside sources, as a part of their key.
pub(crate) fn settings() -> String {
    let mut text = format!("format {FORMAT}\ntarget {TARGET}\n");
    for (name, value) in SETTINGS {
        let _ = writeln!(text, "{name}={value}");
    }
    for flag in FLAGS {
        let _ = writeln!(text, "{flag}");
    }
    text
}

impl Compiler {
    /// The call of cargo that compiles the objects.
    pub fn command(&self) -> Result<Command> {
        let mut cargo = self.program("cargo")?;
        cargo.args(["build", "--package", "samport-ebpf", "--bins", "--release", "--locked"]);
        cargo.args(["--target", TARGET, "-Z", "build-std=core", "--target-dir"]);
        cargo.arg(&self.target_dir).envs(SETTINGS);
        cargo.env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"));
        Ok(cargo)
    }

    /// What `command` has left behind, without DWARF.
    pub fn objects(&self) -> Result<Objects> {
        let object = |name: &str| {
            let path = self.target_dir.join(TARGET).join("release").join(name);
            let bytes =
                fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let stripped = elf::strip(&bytes);
            Ok((name.to_owned(), stripped.with_context(|| path.display().to_string())?))
        };
        OBJECTS.into_iter().map(object).collect()
    }

    /// The versions of what compiles.
    pub fn versions(&self) -> Result<Versions> {
        let rustc = output(self.program("rustc")?.arg("-vV"))?;
        let rustc_llvm = rustc.lines().find_map(|line| line.strip_prefix("LLVM version: "));
        let linker = output(self.program("bpf-linker")?.arg("--version"))?;
        // LLVM's own options end the linker before it opens a file.
        let mut llvm = self.program("bpf-linker")?;
        let llvm =
            output(llvm.args(["--llvm-args=--version", "--output", "/dev/null", "/dev/null"]))?;
        Ok(Versions {
            rustc_llvm: rustc_llvm.context("`rustc -vV` names no LLVM")?.to_owned(),
            rustc: first_line(&rustc),
            linker: first_line(&linker),
            linker_llvm: first_line(&llvm),
        })
    }

    /// A program of the toolchain, or of PATH without rustup. bpf-linker is found in both cases.
    fn program(&self, name: &str) -> Result<Command> {
        let mut command = if name != "bpf-linker" && is_in_path("rustup") {
            let mut rustup = Command::new("rustup");
            rustup.args(["run", &self.toolchain, name]);
            rustup
        } else {
            Command::new(name)
        };
        // An outer cargo's choice of compiler is not meant for this one.
        for variable in ["RUSTC", "RUSTC_WORKSPACE_WRAPPER", "RUSTFLAGS"] {
            command.env_remove(variable);
        }
        let path = env::var_os("PATH").unwrap_or_default();
        let folders = self.linker.iter().cloned().chain(env::split_paths(&path));
        command.env("PATH", env::join_paths(folders).context("cannot put bpf-linker into PATH")?);
        command.current_dir(&self.root);
        Ok(command)
    }
}

fn is_in_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

fn output(command: &mut Command) -> Result<String> {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(OsStr::to_string_lossy).collect();
    let text = words.join(" ");
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot start `{text}`"))?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`{text}` failed ({}): {}", output.status, error.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().trim().to_owned()
}
