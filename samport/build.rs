//! Leaves the kernel programs in `OUT_DIR/samport-ebpf`, and what they are measured with in
//! `OUT_DIR/samport-harness`: the prebuilt objects of `samport-ebpf/prebuilt` if they fit the sources, else compiled
//! ones. `SAMPORT_BPF=prebuilt` and `SAMPORT_BPF=build` force one of them.
//!
//! Which toolchain compiles is what `cargo xtask setup` found, kept in a file of two lines (`toolchain=…`,
//! `linker=…`) in samport's cache folder; `SAMPORT_BPF_TOOLCHAIN` and `SAMPORT_BPF_LINKER` override it; without
//! either, rustup's nightly and the `bpf-linker` in PATH. With `AYA_BUILD_SKIP=1` an empty object is left, enough for
//! `cargo check` and clippy.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use samport_build::compile::Compiler;
use samport_build::{OBJECTS, Objects, Source, VARIABLE, Wanted};

fn main() -> Result<()> {
    let out = PathBuf::from(env::var_os("OUT_DIR").context("OUT_DIR is not set")?);
    println!("cargo:rerun-if-env-changed=AYA_BUILD_SKIP");
    let objects = match env::var("AYA_BUILD_SKIP").as_deref() {
        // include_bytes! needs a file also then.
        Ok("1" | "true") => OBJECTS.map(|name| (name.to_owned(), Vec::new())).into(),
        _ => objects(&out)?,
    };
    for (name, bytes) in objects {
        let path = out.join(name);
        fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn objects(out: &Path) -> Result<Objects> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let root = root.canonicalize().context("cannot find the checkout")?;
    // Folders with everything in them, prebuilt objects included.
    for input in ["samport-ebpf", "samport-common", "Cargo.toml", "Cargo.lock"] {
        println!("cargo:rerun-if-changed={}", root.join(input).display());
    }
    println!("cargo:rerun-if-env-changed={VARIABLE}");
    // The objects are for little-endian machines.
    let is_big = env::var("CARGO_CFG_TARGET_ENDIAN").is_ok_and(|endian| endian == "big");
    ensure!(!is_big, "the kernel programs are for little-endian machines");

    let wanted = Wanted::parse(env::var(VARIABLE).ok().as_deref())?;
    match samport_build::source(&root, wanted)? {
        Source::Prebuilt(objects) => Ok(objects),
        Source::Compile(reason) => compile(root, out).with_context(|| {
            format!("cannot compile the kernel programs ({reason}); `cargo xtask setup` installs what that needs")
        }),
    }
}

fn compile(root: PathBuf, out: &Path) -> Result<Objects> {
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
    let compiler = Compiler {
        root,
        toolchain: setting("SAMPORT_BPF_TOOLCHAIN", "toolchain").unwrap_or("nightly".to_owned()),
        linker: setting("SAMPORT_BPF_LINKER", "linker").map(PathBuf::from),
        // A target folder apart: the outer cargo holds a lock on its own.
        target_dir: out.join("kernel"),
    };
    let mut cargo = compiler.command()?;
    // The compiler's warnings are the outer cargo's: it repeats them at each later build.
    let output = cargo.env("CARGO_TERM_QUIET", "true").output();
    let output =
        output.with_context(|| format!("cannot start {}", cargo.get_program().display()))?;
    let messages = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{cargo:?}: {}\n{messages}", output.status);
    for line in messages.lines() {
        println!("cargo:warning={line}");
    }
    compiler.objects()
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
