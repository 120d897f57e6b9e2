//! Text that others have written, made fit for a terminal, a log and a list: names, labels, answers of engines. The one
//! place where that is decided; all output of samport passes here.

use std::borrow::Cow;
use std::fmt::Write as _;

/// A text in one line: what controls a terminal, ends a line or reorders what is shown is written as an escape, like
/// `\n` or `\u001b`.
#[must_use]
pub fn line(text: &str) -> Cow<'_, str> {
    escaped(text, |_| false)
}

/// A text of ours in several lines, with what others have written in it.
#[must_use]
pub fn lines(text: &str) -> Cow<'_, str> {
    escaped(text, |c| c == '\n')
}

fn escaped(text: &str, is_ours: impl Fn(char) -> bool) -> Cow<'_, str> {
    let is_fit = |c: char| is_ours(c) || is_plain(c);
    if text.chars().all(is_fit) {
        return text.into();
    }
    let mut fit = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_fit(c) {
            fit.push(c);
        } else {
            push_escape(&mut fit, c);
        }
    }
    fit.into()
}

/// As JSON writes it: what is printed as JSON stays what it is.
fn push_escape(to: &mut String, c: char) {
    match c {
        '\n' => to.push_str("\\n"),
        '\r' => to.push_str("\\r"),
        '\t' => to.push_str("\\t"),
        _ => {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // A String takes everything.
                let _ = write!(to, "\\u{unit:04x}");
            }
        }
    }
}

/// Whether a character is shown as itself and does nothing else: no control character (C1 included), no format
/// character (direction, zero width, tags), no separator of lines.
fn is_plain(c: char) -> bool {
    let is_format = matches!(c,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{feff}'
        | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}');
    !c.is_control() && !is_format
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_plain_stays_and_the_rest_is_shown_as_an_escape() {
        for (text, shown) in [
            ("web-1 ü 漢 \"x\" a\\b", "web-1 ü 漢 \"x\" a\\b"),
            ("a\u{1b}[31mb", "a\\u001b[31mb"),
            ("a\nwarning: b\r\t", "a\\nwarning: b\\r\\t"),
            // CSI in one character, DEL, NUL.
            ("\u{9b}2J\u{7f}\0", "\\u009b2J\\u007f\\u0000"),
            ("\u{202e}gpj.exe\u{2066}", "\\u202egpj.exe\\u2066"),
            ("a\u{200b}b\u{2028}c\u{feff}", "a\\u200bb\\u2028c\\ufeff"),
        ] {
            assert_eq!(line(text), shown);
        }
        assert_eq!(lines("one\n two\u{7}\n"), "one\n two\\u0007\n");
        assert!(matches!(line("web-1"), Cow::Borrowed(_)));
    }

    #[test]
    fn json_stays_the_same_json() {
        let value = serde_json::json!({ "name": "a\u{9b}\n\u{e0041}\"\\", "other": "\u{202e}" });
        for text in [value.to_string(), format!("{value:#}")] {
            let fit = lines(&text);
            assert!(!fit.contains(['\u{9b}', '\u{202e}', '\u{e0041}']), "{fit}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(&fit).unwrap(), value);
        }
    }
}
