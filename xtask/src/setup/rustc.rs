//! What a Rust compiler says about itself.

use std::path::Path;
use std::process::Command;

use crate::sh;

/// The release and the LLVM of a Rust compiler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rustc {
    /// Major and minor version.
    pub release: (u32, u32),
    /// LLVM's major version: bpf-linker has to read what this LLVM writes.
    pub llvm: u32,
}

impl Rustc {
    pub fn at(path: &Path) -> Option<Self> {
        parse(&sh::probe(Command::new(path).arg("-vV"))?)
    }

    pub fn is_new_enough(self) -> bool {
        self.release >= required()
    }
}

/// The oldest release that the workspace's `rust-version` allows.
pub fn required() -> (u32, u32) {
    release(env!("CARGO_PKG_RUST_VERSION")).unwrap_or_default()
}

/// Reads the output of `rustc -vV`.
fn parse(text: &str) -> Option<Rustc> {
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key));
    let (llvm, _) = value("LLVM version: ")?.split_once('.')?;
    Some(Rustc { release: release(value("release: ")?)?, llvm: llvm.parse().ok()? })
}

/// The first two numbers of a version such as `1.96.0-nightly`, `1.95` or `1.96.0+dfsg1-1`.
pub fn release(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NIGHTLY: &str = "rustc 1.97.0-nightly (0123abcde 2026-05-01)
binary: rustc
commit-hash: 0123abcde
host: x86_64-unknown-linux-gnu
release: 1.97.0-nightly
LLVM version: 22.1.2
";

    #[test]
    fn release_and_llvm_are_read_from_rustc() {
        assert_eq!(parse(NIGHTLY), Some(Rustc { release: (1, 97), llvm: 22 }));
    }

    #[test]
    fn a_compiler_without_llvm_is_of_no_use() {
        assert_eq!(parse("rustc 1.97.0\nrelease: 1.97.0\n"), None);
    }

    #[test]
    fn distribution_versions_are_releases_too() {
        assert_eq!(release("1.96.0+dfsg1-1~deb12u2"), Some((1, 96)));
        assert_eq!(release("1.95"), Some((1, 95)));
        assert_eq!(release("(none)"), None);
    }

    #[test]
    fn the_workspace_says_which_release_it_needs() {
        assert!(required() > (1, 0));
        assert!(!Rustc { release: (1, 85), llvm: 19 }.is_new_enough());
    }
}
