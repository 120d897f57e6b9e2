//! Sets of numbers as one writes them: `1-43,89`.

use std::ops::RangeInclusive;
use std::str::FromStr;

use anyhow::{Context as _, Error, Result, ensure};

/// Numbers and ranges of numbers, both ends included.
#[derive(Clone, Debug)]
pub struct Ranges(Vec<RangeInclusive<u8>>);

impl Ranges {
    pub fn contains(&self, number: u8) -> bool {
        self.0.iter().any(|range| range.contains(&number))
    }
}

impl FromStr for Ranges {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        text.split(',').map(range).collect::<Result<_>>().map(Self)
    }
}

fn range(text: &str) -> Result<RangeInclusive<u8>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| {
        text.trim().parse::<u8>().with_context(|| format!("`{text}` is no number of a case"))
    };
    let (first, last) = (number(first)?, number(last)?);
    ensure!(first <= last, "`{text}` is empty: its end is before its beginning");
    Ok(first..=last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_ranges_are_read() {
        let ranges: Ranges = "1-3, 7,9-9".parse().unwrap();
        assert!((0..=255).filter(|number| ranges.contains(*number)).eq([1, 2, 3, 7, 9]));
    }

    #[test]
    fn what_is_no_range_is_refused_by_name() {
        for text in ["", "x", "1-", "300", "5-2", "1,,2"] {
            assert!(text.parse::<Ranges>().is_err(), "{text}");
        }
    }
}
