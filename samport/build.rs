//! Compiles `samport-ebpf` for the kernel and leaves the object in `OUT_DIR/samport-ebpf`, and what it
//! is measured with in `OUT_DIR/samport-harness`.
//!
//! Which toolchain does it is what `cargo xtask setup` found, kept in a file of two lines
//! (`toolchain=…`, `linker=…`) in samport's cache folder; `SAMPORT_BPF_TOOLCHAIN` and
//! `SAMPORT_BPF_LINKER` override it; without either, rustup's nightly and the `bpf-linker` in PATH.
//! With `AYA_BUILD_SKIP=1` an empty object is left, enough for `cargo check` and clippy.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use aya_build::{Package, Toolchain};

fn main() -> Result<()> {
    let out = PathBuf::from(env::var_os("OUT_DIR").context("OUT_DIR is not set")?);
    // include_bytes! needs a file even when the build is skipped.
    for object in ["samport-ebpf", "samport-harness"] {
        fs::write(out.join(object), b"").context("write an empty BPF object")?;
    }

    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let ebpf = root.join("samport-ebpf");
    let common = root.join("samport-common/src");
    println!("cargo:rerun-if-changed={}", common.display());

    let found = toolchain_file().and_then(|path| {
        println!("cargo:rerun-if-changed={}", path.display());
        fs::read_to_string(path).ok()
    });
    let setting = |variable: &str, key: &str| {
        println!("cargo:rerun-if-env-changed={variable}");
        env::var(variable).ok().or_else(|| {
            let lines = found.as_deref()?.lines();
            lines
                .filter_map(|line| line.split_once('='))
                .find(|(k, _)| *k == key)
                .map(|(_, v)| v.to_owned())
        })
    };
    let toolchain = setting("SAMPORT_BPF_TOOLCHAIN", "toolchain");
    let linker = setting("SAMPORT_BPF_LINKER", "linker");

    // SAFETY: a build script is alone in its process and has started no thread yet.
    unsafe {
        // Building core needs -Z build-std, which a stable compiler only takes with this.
        env::set_var("RUSTC_BOOTSTRAP", "1");
        // What cargo says is handed on as warnings, which the outer cargo repeats at each later build.
        env::set_var("CARGO_TERM_QUIET", "true");
        // More than one codegen unit breaks the 512-byte stack limit of BPF.
        env::set_var("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1");
        env::set_var("CARGO_PROFILE_RELEASE_LTO", "true");
        env::set_var("CARGO_PROFILE_RELEASE_PANIC", "abort");
        env::set_var("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3");
        env::set_var("CARGO_PROFILE_RELEASE_DEBUG", "2");
        if let Some(linker) = linker {
            let path = env::var_os("PATH").unwrap_or_default();
            let paths = std::iter::once(PathBuf::from(linker)).chain(env::split_paths(&path));
            env::set_var("PATH", env::join_paths(paths).context("put bpf-linker into PATH")?);
        }
    }

    let package = Package {
        name: "samport-ebpf",
        root_dir: ebpf.to_str().context("the checkout's path is not UTF-8")?,
        ..Package::default()
    };
    let toolchain = toolchain.as_deref().map_or(Toolchain::Nightly, Toolchain::Custom);
    aya_build::build_ebpf([package], toolchain)
        .context("build the BPF program; `cargo xtask setup` installs what that needs")
}

/// Where `cargo xtask setup` leaves what it found.
fn toolchain_file() -> Option<PathBuf> {
    for variable in ["SAMPORT_CACHE", "XDG_CACHE_HOME", "HOME"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    let cache = env::var_os("SAMPORT_CACHE").map(PathBuf::from).or_else(|| {
        let base = env::var_os("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")))?;
        Some(base.join("samport"))
    })?;
    Some(cache.join("bpf-toolchain"))
}
