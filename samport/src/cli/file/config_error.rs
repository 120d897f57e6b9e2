//! What is wrong with a text, and where: shown as compilers do.

use std::fmt;
use std::ops::Range;

/// Something that is wrong at some bytes of a text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct ConfigError {
    /// Where, in bytes.
    pub(super) at: Range<usize>,
    /// What, and the way out.
    pub(super) what: String,
}

impl ConfigError {
    /// A fault there.
    pub(super) fn new(at: Range<usize>, what: impl Into<String>) -> Self {
        Self { at, what: what.into() }
    }

    /// The fault for people: file, line and column, what it is, and the line with a mark under it.
    pub(super) fn shown(&self, path: &dyn fmt::Display, text: &str) -> String {
        let Position { line, column, words, width } = Position::of(&self.at, text);
        let what = self.what.trim_end();
        let number = line.to_string();
        let (margin, mark) = (" ".repeat(number.len()), "^".repeat(width));
        let pad = " ".repeat(column - 1);
        format!("{path}:{line}:{column}: {what}\n {number} | {words}\n {margin} | {pad}{mark}")
    }
}

/// A place in a text as people find it.
#[derive(PartialEq, Eq, Debug)]
struct Position<'a> {
    /// From 1.
    line: usize,
    /// From 1, in characters.
    column: usize,
    /// The whole line.
    words: &'a str,
    /// Characters that are meant, as far as they are in this line; 1 at least.
    width: usize,
}

impl<'a> Position<'a> {
    fn of(at: &Range<usize>, text: &'a str) -> Self {
        let begin = text.floor_char_boundary(at.start);
        let end = text.floor_char_boundary(at.end.max(begin));
        let (before, after) = text.split_at(begin);
        let from = before.rfind('\n').map_or(0, |newline| newline + 1);
        let until = after.find('\n').map_or(text.len(), |newline| begin + newline);
        Self {
            line: line_of(begin, text),
            column: text[from..begin].chars().count() + 1,
            words: text[from..until].trim_end_matches('\r'),
            width: text[begin..end.min(until)].chars().count().max(1),
        }
    }
}

/// The line a byte is in, from 1.
pub(super) fn line_of(byte: usize, text: &str) -> usize {
    text.as_bytes().iter().take(byte).filter(|byte| **byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_shown_with_its_line_and_a_mark_under_it() {
        let text = "iface = \"eth0\"\nport = [\"80:x\"]\n";
        let begin = text.find("\"80:x\"").unwrap();
        let shown = ConfigError::new(begin..begin + 6, "no port").shown(&"s.toml", text);
        let expected = "s.toml:2:9: no port\n 2 | port = [\"80:x\"]\n   |         ^^^^^^";
        assert_eq!(shown, expected);
    }

    #[test]
    fn any_place_can_be_shown() {
        let text = "a\u{e4} = 1\r\nb";
        for (at, line, column, width) in [
            (0..1, 1, 1, 1),
            // Columns are characters; a place inside of one is its beginning.
            (2..3, 1, 2, 1),
            (3..4, 1, 3, 1),
            (0..text.len(), 1, 1, 7),
            (9..9, 2, 1, 1),
            (text.len()..text.len(), 2, 2, 1),
            (99..999, 2, 2, 1),
        ] {
            let place = Position::of(&at, text);
            assert_eq!((place.line, place.column, place.width), (line, column, width), "{at:?}");
        }
        assert_eq!(Position::of(&(0..1), text).words, "a\u{e4} = 1");
    }
}
