//! What an ELF file says about the shared libraries it needs.

use std::fs;
use std::path::Path;

/// Whether a file is a program in machine code, not a script.
pub fn is_elf(file: &Path) -> bool {
    fs::read(file).is_ok_and(|bytes| bytes.starts_with(b"\x7fELF"))
}

/// Whether a program is an ELF file that names no dynamic loader.
pub fn is_static(file: &Path) -> bool {
    fs::read(file).is_ok_and(|bytes| names_loader(&bytes) == Some(false))
}

/// Whether a 64-bit little-endian ELF file has a `PT_INTERP` program header (elf(5)).
fn names_loader(elf: &[u8]) -> Option<bool> {
    const PT_INTERP: u64 = 3;
    let number = |offset: usize, size: usize| -> Option<u64> {
        let bytes = elf.get(offset..offset.checked_add(size)?)?;
        Some(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    };
    if !elf.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let table = usize::try_from(number(32, 8)?).ok()?;
    let size = usize::try_from(number(54, 2)?).ok()?;
    let count = usize::try_from(number(56, 2)?).ok()?;
    let kind = |index: usize| number(table.checked_add(index * size)?, 4);
    (0..count).map(kind).try_fold(false, |found, kind| Some(found || kind? == PT_INTERP))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_with_shared_libraries_names_a_loader() {
        let test = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(names_loader(&test), Some(cfg!(not(target_feature = "crt-static"))));
    }

    #[test]
    fn what_is_no_program_is_neither_static_nor_dynamic() {
        assert_eq!(names_loader(b"#!/bin/sh\n"), None);
        assert_eq!(names_loader(b"\x7fELF\x02\x01 cut off"), None);
    }
}
