//! The little that has to be done to the ELF files that bpf-linker writes: leaving out DWARF, and finding functions.
//! A crate that does both takes longer to compile than everything else that a build script waits for.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};

/// ELF64, little-endian.
const MAGIC: &[u8] = b"\x7fELF\x02\x01";
const HEADER: usize = 64;
const SECTION_HEADER: usize = 64;
const SYMBOL: usize = 24;
const NO_BITS: u64 = 8;
const SYMBOL_TABLE: u64 = 2;
const FUNCTION: u8 = 2;
/// BPF's call, and its kind of a function of the same object.
const CALL: u8 = 0x85;
const CALL_FUNCTION: u8 = 1;

/// A section header, by the names of the ELF specification.
struct Section {
    /// Where the header is in the file.
    header: usize,
    name: String,
    kind: u64,
    offset: usize,
    size: usize,
    link: usize,
    alignment: usize,
}

/// A view of a file that never reads past its end.
struct File<'a>(&'a [u8]);

impl<'a> File<'a> {
    fn bytes(&self, offset: usize, length: usize) -> Result<&'a [u8]> {
        let end = offset.checked_add(length).context("an offset is too large")?;
        self.0.get(offset..end).with_context(|| format!("the file ends before byte {end}"))
    }

    /// A number of `length` bytes.
    fn number(&self, offset: usize, length: usize) -> Result<u64> {
        let bytes = self.bytes(offset, length)?.iter().rev();
        Ok(bytes.fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn size(&self, offset: usize, length: usize) -> Result<usize> {
        usize::try_from(self.number(offset, length)?).context("a size is too large")
    }

    /// The zero-terminated text at `offset`.
    fn text(&self, offset: usize) -> Result<String> {
        let rest = self.0.get(offset..).context("a name is outside of the file")?;
        let length = rest.iter().position(|byte| *byte == 0).context("a name has no end")?;
        Ok(String::from_utf8_lossy(&rest[..length]).into_owned())
    }

    fn sections(&self) -> Result<Vec<Section>> {
        ensure!(self.0.starts_with(MAGIC), "not a 64-bit little-endian ELF file");
        let table = self.size(40, 8)?;
        ensure!(self.size(58, 2)? == SECTION_HEADER, "unexpected size of section headers");
        let (count, names) = (self.size(60, 2)?, self.size(62, 2)?);
        let header = |index: usize| table.saturating_add(index * SECTION_HEADER);
        let names = self.size(header(names) + 24, 8)?;
        let section = |index: usize| {
            let header = header(index);
            Ok(Section {
                header,
                name: self.text(names.saturating_add(self.size(header, 4)?))?,
                kind: self.number(header + 4, 4)?,
                offset: self.size(header + 24, 8)?,
                size: self.size(header + 32, 8)?,
                link: self.size(header + 40, 4)?,
                alignment: self.size(header + 48, 8)?,
            })
        };
        (0..count).map(section).collect()
    }
}

/// Whether loading an object and reading the verifier's log need a section. BTF's relocations are of use to a linker
/// only: what they say is in place already.
fn is_needed(name: &str) -> bool {
    !name.starts_with(".debug_")
        && !name.starts_with(".rel.debug_")
        && !name.starts_with(".rel.BTF")
}

/// Leaves the DWARF sections out. The headers of the sections stay, as unused ones (`SHT_NULL`), so that no index has
/// to change.
pub fn strip(object: &[u8]) -> Result<Vec<u8>> {
    let file = File(object);
    let mut stripped = file.bytes(0, HEADER)?.to_vec();
    let mut headers = Vec::new();
    for section in file.sections()? {
        let mut header = file.bytes(section.header, SECTION_HEADER)?.to_vec();
        if !is_needed(&section.name) {
            header.fill(0);
        } else if section.kind != 0 {
            let alignment = section.alignment.max(1);
            stripped.resize(stripped.len().next_multiple_of(alignment), 0);
            header[24..32].copy_from_slice(&stripped.len().to_le_bytes());
            if section.kind != NO_BITS {
                stripped.extend_from_slice(file.bytes(section.offset, section.size)?);
            }
        }
        headers.extend_from_slice(&header);
    }
    stripped.resize(stripped.len().next_multiple_of(8), 0);
    let table = stripped.len().to_le_bytes();
    stripped[40..48].copy_from_slice(&table);
    stripped.extend_from_slice(&headers);
    Ok(stripped)
}

/// The contents of an object's sections by name.
pub fn sections(object: &[u8]) -> Result<BTreeMap<String, Vec<u8>>> {
    let file = File(object);
    let sections = file.sections()?.into_iter();
    let sections = sections.filter(|section| section.kind != 0 && section.kind != NO_BITS);
    sections.map(|s| Ok((s.name, file.bytes(s.offset, s.size)?.to_vec()))).collect()
}

/// The instructions of an object's functions by name, for saying what another compiler changes. What depends on the
/// rest of the object is left out: the crates' hashes in names, and how far away the functions are that are called.
pub fn functions(object: &[u8]) -> Result<BTreeMap<String, Vec<u8>>> {
    let file = File(object);
    let sections = file.sections()?;
    let mut functions = BTreeMap::new();
    for table in sections.iter().filter(|section| section.kind == SYMBOL_TABLE) {
        let names = sections.get(table.link).context("the symbol table has no names")?.offset;
        for index in 0..table.size / SYMBOL {
            let symbol = table.offset + index * SYMBOL;
            if file.bytes(symbol + 4, 1)?[0] & 0xf != FUNCTION {
                continue;
            }
            let name = file.text(names.saturating_add(file.size(symbol, 4)?))?;
            let section = sections.get(file.size(symbol + 6, 2)?);
            let section = section.with_context(|| format!("{name} is in no section"))?;
            let start = section.offset.saturating_add(file.size(symbol + 8, 8)?);
            let mut code = file.bytes(start, file.size(symbol + 16, 8)?)?.to_vec();
            for instruction in code.chunks_exact_mut(8) {
                if instruction[0] == CALL && instruction[1] >> 4 == CALL_FUNCTION {
                    instruction[4..].fill(0);
                }
            }
            functions.insert(without_hashes(&name), code);
        }
    }
    Ok(functions)
}

/// A mangled name without the crates' hashes: `Cs690fSO3Shnl_12samport_ebpf` is `C12samport_ebpf`.
fn without_hashes(name: &str) -> String {
    let mut parts = name.split("Cs");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.split_once('_') {
            Some((hash, rest)) if hash.chars().all(|c| c.is_ascii_alphanumeric()) => {
                text.extend(["C", rest]);
            }
            _ => text.extend(["Cs", part]),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lose_the_hashes_of_crates() {
        let name =
            "_RINvNtCs690fSO3Shnl_12samport_ebpf4icmpNtCs5m0W2pcfS7V_14samport_common2V4EB4_";
        let plain = "_RINvNtC12samport_ebpf4icmpNtC14samport_common2V4EB4_";
        assert_eq!(without_hashes(name), plain);
        assert_eq!(without_hashes("samport_forward"), "samport_forward");
    }
}
