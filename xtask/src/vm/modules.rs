//! The parts of a kernel that are modules: the ones the tests need, in the order they are loaded.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use walkdir::WalkDir;

/// What the tests need, in addition to what these need. A kernel that has one built in has no such file.
pub const WANTED: [&str; 21] = [
    "veth",
    "bridge",
    "br_netfilter",
    "macvlan",
    "sch_ingress",
    "cls_bpf",
    "inet_diag",
    "tcp_diag",
    "udp_diag",
    // What Docker's rules are made of; the system's iptables speaks nf_tables.
    "nf_tables",
    "nft_compat",
    "nft_chain_nat",
    "nf_conntrack",
    "nf_nat",
    "x_tables",
    "xt_MASQUERADE",
    "xt_conntrack",
    "xt_tcpudp",
    "xt_addrtype",
    "xt_statistic",
    "xt_nat",
];

/// The modules below a folder, by their names.
pub struct Modules(BTreeMap<String, PathBuf>);

impl Modules {
    pub fn below(folder: &Path) -> Self {
        let files = WalkDir::new(folder).into_iter().flatten().map(walkdir::DirEntry::into_path);
        Self(files.filter_map(|file| Some((name_of(&file)?, file))).collect())
    }

    /// Writes these modules and those they need into a folder; their files' names, in the order in
    /// which they can be loaded.
    pub fn copy(&self, wanted: &[&str], to: &Path) -> Result<Vec<String>> {
        let (mut order, mut seen) = (Vec::new(), BTreeSet::new());
        for name in wanted {
            self.copy_one(name, to, &mut seen, &mut order)?;
        }
        Ok(order)
    }

    fn copy_one(
        &self,
        name: &str,
        to: &Path,
        seen: &mut BTreeSet<String>,
        order: &mut Vec<String>,
    ) -> Result<()> {
        let Some(file) = self.0.get(name) else { return Ok(()) };
        if !seen.insert(name.to_owned()) {
            return Ok(());
        }
        let module = plain(file).with_context(|| format!("read {}", file.display()))?;
        for needed in needed_by(&module) {
            self.copy_one(&needed, to, seen, order)?;
        }
        let copy = format!("{name}.ko");
        fs::write(to.join(&copy), module).with_context(|| format!("write {copy}"))?;
        order.push(copy);
        Ok(())
    }
}

/// The name of a module's file, if it is one: `nf-nat.ko.xz` has `nf_nat`.
fn name_of(file: &Path) -> Option<String> {
    let name = file.file_name()?.to_str()?;
    let (name, rest) = name.split_once(".ko")?;
    matches!(rest, "" | ".xz" | ".zst").then(|| name.replace('-', "_"))
}

/// The module itself, whatever it is packed with.
fn plain(file: &Path) -> Result<Vec<u8>> {
    let program = match file.extension().and_then(OsStr::to_str) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => return Ok(fs::read(file)?),
    };
    let mut command = Command::new(program);
    command.args(["--decompress", "--stdout"]).arg(file).stdin(Stdio::null());
    let output = command.output().with_context(|| format!("cannot start {program}"))?;
    if !output.status.success() {
        bail!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output.stdout)
}

/// What a module says it needs: `depends=` among the words of its `.modinfo`.
fn needed_by(module: &[u8]) -> Vec<String> {
    let words = module.split(|byte| *byte == 0);
    let depends = words.filter_map(|word| word.strip_prefix(b"depends=".as_slice()));
    let names = depends.flat_map(|names| names.split(|byte| *byte == b','));
    let text = |name: &[u8]| String::from_utf8_lossy(name).replace('-', "_");
    names.filter(|name| !name.is_empty()).map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_modules_name_has_no_dashes_and_does_not_say_how_it_is_packed() {
        for (file, name) in [
            ("net/veth.ko", Some("veth")),
            ("net/nf-nat.ko.xz", Some("nf_nat")),
            ("net/br_netfilter.ko.zst", Some("br_netfilter")),
            ("modules.dep", None),
            ("veth.ko.txt", None),
        ] {
            assert_eq!(name_of(Path::new(file)).as_deref(), name, "{file}");
        }
    }

    #[test]
    fn a_module_comes_after_what_it_needs_and_once() {
        let folder = std::env::temp_dir().join(format!("samport-modules-{}", std::process::id()));
        let copies = folder.join("copies");
        fs::create_dir_all(&copies).unwrap();
        for (file, says) in [
            ("top.ko", "\u{7f}ELF\0license=GPL\0depends=the-middle,base\0"),
            ("the-middle.ko", "depends=base\0"),
            ("base.ko", "depends=\0"),
            ("other.ko", "depends=base\0"),
        ] {
            fs::write(folder.join(file), says).unwrap();
        }
        let order = Modules::below(&folder).copy(&["top", "base", "built_in"], &copies).unwrap();
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(order, ["base.ko", "the_middle.ko", "top.ko"]);
    }
}
