//! The few things that have to be read from Cargo's files, line by line: a TOML crate would be a third of the time
//! that everybody waits for the build script. The files are this project's own, and cargo has read them already.

/// A section of a TOML file: its header without brackets, and its lines.
pub struct Section<'a> {
    pub header: &'a str,
    pub lines: Vec<&'a str>,
}

impl<'a> Section<'a> {
    /// The text of a key's value, as it is written.
    pub fn value(&self, key: &str) -> Option<&'a str> {
        self.lines.iter().find_map(|line| entry(line).filter(|(name, _)| *name == key)).map(|e| e.1)
    }

    /// The keys. `zerocopy.workspace = true` has the key `zerocopy`.
    pub fn keys(&self) -> impl Iterator<Item = &'a str> {
        self.lines.iter().filter_map(|line| entry(line)).map(|(name, _)| name)
    }
}

/// The sections of a TOML file without comments and empty lines.
pub fn sections(text: &str) -> Vec<Section<'_>> {
    let mut sections = Vec::new();
    for line in text.lines().map(str::trim_end) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(header) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            let header = header.trim_start_matches('[').trim_end_matches(']');
            sections.push(Section { header, lines: Vec::new() });
        } else if let Some(section) = sections.last_mut() {
            section.lines.push(line);
        }
    }
    sections
}

fn entry(line: &str) -> Option<(&str, &str)> {
    let (name, value) = line.split_once('=')?;
    let name = name.trim();
    Some((name.split('.').next().unwrap_or(name), value.trim()))
}
