//! Ranges of ports: `80` or `8000-8999`.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context as _, Result, bail};

use super::port;

/// A port, or all from one to another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl FromStr for PortRange {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let end =
            |end: &str| port(end.trim()).with_context(|| format!("invalid port range {text:?}"));
        let (first, last) = (end(first)?, end(last)?);
        if first > last {
            bail!("invalid port range {text:?}: expected FIRST-LAST, e.g. 8000-8999");
        }
        Ok(Self { first, last })
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.first, self.last) {
            (first, last) if first == last => write!(f, "{first}"),
            (first, last) => write!(f, "{first}-{last}"),
        }
    }
}

/// Several of them; all ports if it is empty.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct PortRanges(Vec<PortRange>);

impl PortRanges {
    /// These.
    #[must_use]
    pub const fn new(ranges: Vec<PortRange>) -> Self {
        Self(ranges)
    }

    /// Whether a port is in one of them.
    #[must_use]
    pub fn has(&self, port: u16) -> bool {
        self.0.is_empty() || self.0.iter().any(|one| (one.first..=one.last).contains(&port))
    }
}

impl fmt::Display for PortRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges: Vec<_> = self.0.iter().map(PortRange::to_string).collect();
        f.write_str(&ranges.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(list: &[&str]) -> PortRanges {
        PortRanges::new(list.iter().map(|text| text.parse().unwrap()).collect())
    }

    #[test]
    fn a_port_is_in_a_range_from_its_first_to_its_last() {
        let some = ranges(&["80", "8000-8999"]);
        for (port, is_in) in
            [(79, false), (80, true), (81, false), (7_999, false), (8_000, true), (8_999, true)]
        {
            assert_eq!(some.has(port), is_in, "{port}");
        }
        assert_eq!(some.to_string(), "80,8000-8999");
        assert!(ranges(&[]).has(1));
    }

    #[test]
    fn a_range_that_is_none_is_refused_by_name() {
        for text in ["", "0", "80-", "-80", "90-80", "80-65536", "http", "80-90-100"] {
            let error = format!("{:#}", text.parse::<PortRange>().unwrap_err());
            assert!(error.contains(&format!("{text:?}")), "{error}");
        }
    }
}
