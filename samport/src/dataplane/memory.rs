//! What the kernel maps of an instance hold at most, and how much memory that takes.

use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _};

use anyhow::{Context as _, Result};

use super::pins;

/// A map.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MapSize {
    /// Its name.
    pub name: String,
    /// Most entries it holds.
    pub entries: u32,
    /// Memory the kernel has locked for it, in bytes.
    pub bytes: u64,
}

/// The pinned maps of an instance, by name.
pub fn maps(instance: &str) -> Result<Vec<MapSize>> {
    let pins = pins::pins_of(instance);
    let names = pins.iter().filter_map(|pin| pin.strip_prefix("map_"));
    names.map(|name| size(instance, name)).collect()
}

fn size(instance: &str, name: &str) -> Result<MapSize> {
    let map = pins::open(&pins::map_of(instance, name))?;
    let entries = map.info().with_context(|| format!("ask about {name}"))?.max_entries();
    // The information about a map says nothing of its memory; its descriptor does (proc(5)).
    let path = format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd());
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let bytes = locked(&text).with_context(|| format!("{path} says nothing of memory"))?;
    Ok(MapSize { name: name.to_owned(), entries, bytes })
}

fn locked(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("memlock:"))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_what_the_kernel_says_of_a_descriptor() {
        assert_eq!(locked("pos:\t0\nmax_entries:\t8\nmemlock:\t4096\nmap_id:\t7\n"), Some(4_096));
        assert_eq!(locked("pos:\t0\n"), None);
    }
}
