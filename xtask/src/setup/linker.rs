//! bpf-linker, which has to read the bitcode of the toolchain's LLVM.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::apt;
use super::bpf::Found;
use crate::sh;

const NAME: &str = "bpf-linker";
const VERSION: &str = "0.13.0";
const RELEASES: &str = "https://github.com/aya-rs/bpf-linker/releases/download";

/// The folder of a bpf-linker that works with the toolchain.
pub fn find(found: &Found, cache: &Path) -> Option<PathBuf> {
    let built = built(cache, found.rustc.llvm).join("bin");
    if works(&built) {
        return Some(built);
    }
    // A bpf-linker in PATH or from a release has its own LLVM. That of a nightly is the kind
    // it is made for; beside the distribution's Rust we know better and build with its LLVM.
    if found.toolchain.is_system() {
        return None;
    }
    let in_path = sh::find(NAME).and_then(|file| {
        let folder = file.parent()?.to_owned();
        reads(&file, found.rustc.llvm).then_some(folder)
    });
    in_path.or_else(|| Some(released(cache))).filter(|folder| works(folder))
}

fn built(cache: &Path, llvm: u32) -> PathBuf {
    cache.join(format!("{NAME}-{VERSION}-llvm-{llvm}"))
}

fn released(cache: &Path) -> PathBuf {
    cache.join(format!("{NAME}-{VERSION}-release"))
}

/// Whether the linker starts: it does not when the LLVM it was built with has been removed.
fn works(folder: &Path) -> bool {
    sh::probe(Command::new(folder.join(NAME)).arg("--version")).is_some()
}

/// Whether a linker reads the bitcode of LLVM `llvm`. One that is linked with an older LLVM does
/// not; one that names no library has a recent LLVM inside, which is how releases are made.
fn reads(file: &Path, llvm: u32) -> bool {
    fs::read(file).is_ok_and(|bytes| linked_llvm(&bytes).is_none_or(|own| own >= llvm))
}

/// The number in the `libLLVM.so.22.1` or `libLLVM-22.so` a program is linked with.
fn linked_llvm(program: &[u8]) -> Option<u32> {
    const LIBRARY: &[u8] = b"libLLVM";
    let numbers = program.windows(LIBRARY.len()).enumerate().filter(|(_, word)| *word == LIBRARY);
    let mut numbers = numbers.filter_map(|(start, _)| {
        let rest = program.get(start + LIBRARY.len()..)?;
        let rest = rest.strip_prefix(b".so.").or_else(|| rest.strip_prefix(b"-"))?;
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit());
        String::from_utf8(digits.copied().collect()).ok()?.parse().ok()
    });
    numbers.next()
}

fn llvm_prefix(llvm: u32) -> PathBuf {
    PathBuf::from(format!("/usr/lib/llvm-{llvm}"))
}

/// How bpf-linker can be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LinkerSource {
    /// Built with the distribution's LLVM of this version.
    Build { llvm: u32 },
    /// The project's own build, which has an LLVM inside.
    Download,
}

/// How to get a bpf-linker for a compiler with this LLVM: with the distribution's LLVM where the archive has it.
pub fn way(llvm: u32) -> LinkerSource {
    let has_it = |package: &String| apt::is_installed(package) || apt::candidate(package).is_some();
    if apt::is_there() && packages(llvm).iter().all(has_it) {
        LinkerSource::Build { llvm }
    } else {
        LinkerSource::Download
    }
}

/// Programs that a download needs, and their packages.
pub const DOWNLOADERS: [(&str, &str); 2] = [("curl", "curl"), ("zstd", "zstd")];

/// Installs it.
pub fn install(way: LinkerSource, cache: &Path) -> Result<()> {
    match way {
        LinkerSource::Build { llvm } => build(llvm, cache).with_context(|| {
            format!("no {NAME}; by hand: install {}, then again", packages(llvm).join(" "))
        }),
        LinkerSource::Download => download(cache).with_context(|| {
            format!("no {NAME}; by hand: `cargo install cargo-binstall && cargo binstall {NAME}`")
        }),
    }
}

/// The folder that this makes in the cache.
pub fn folder(way: LinkerSource, cache: &Path) -> PathBuf {
    match way {
        LinkerSource::Build { llvm } => built(cache, llvm),
        LinkerSource::Download => released(cache),
    }
}

/// The packages that bpf-linker is built with.
pub fn packages(llvm: u32) -> [String; 4] {
    let polly = format!("libpolly-{llvm}-dev");
    [format!("llvm-{llvm}-dev"), polly, "libzstd-dev".into(), "zlib1g-dev".into()]
}

/// The command that builds bpf-linker into `root`.
fn cargo_install(root: &Path) -> Command {
    let mut cargo = sh::cargo();
    cargo.args(["install", NAME, "--version", VERSION, "--locked", "--root"]).arg(root);
    cargo
}

fn build(llvm: u32, cache: &Path) -> Result<()> {
    eprintln!("setup: building {NAME} {VERSION} with LLVM {llvm}, a minute or two: to link BPF");
    let mut cargo = cargo_install(&built(cache, llvm));
    // Without it the build takes whichever LLVM it meets first, and fails.
    cargo.env("LLVM_PREFIX", llvm_prefix(llvm));
    // An interrupted or outdated installation may be on record there.
    cargo.args(["--force", "--no-default-features", "--features", &format!("llvm-{llvm}")]);
    sh::run(&mut cargo)
}

fn download(cache: &Path) -> Result<()> {
    let folder = released(cache);
    let archive = folder.join("archive.tar.zst");
    eprintln!("setup: downloading {NAME} {VERSION}: to link BPF");
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let url =
        format!("{RELEASES}/v{VERSION}/{NAME}-{}-unknown-linux-musl.tar.zst", env::consts::ARCH);
    let mut curl = Command::new("curl");
    curl.args(["--fail", "--location", "--proto", "=https", "--show-error", "--silent"]);
    sh::run(curl.arg("--output").arg(&archive).arg(url))?;
    sh::run(Command::new("tar").arg("-C").arg(&folder).arg("-xf").arg(&archive))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_llvm_of_a_linker_is_read_from_its_library() {
        assert_eq!(linked_llvm(b"\0libLLVM.so.22.1\0"), Some(22));
        assert_eq!(linked_llvm(b"libLLVM: no\0libLLVM-19.so\0"), Some(19));
        assert_eq!(linked_llvm(b"static"), None);
    }

    #[test]
    fn each_llvm_has_a_linker_of_its_own() {
        let cache = Path::new("/cache");
        assert_eq!(built(cache, 22), cache.join("bpf-linker-0.13.0-llvm-22"));
        assert_ne!(built(cache, 22), built(cache, 23));
    }
}
