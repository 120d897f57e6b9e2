//! How a doc comment names cases: `Case N`, or `Cases N, M and K`.

use anyhow::{Result, bail};

/// The numbers of the cases a doc comment names, in its order.
///
/// # Errors
/// What is nearly a mention, so that none is overlooked: in lower case, or of the wrong number.
pub fn cases(text: &str) -> Result<Vec<u16>> {
    let mut found = Vec::new();
    let mut words = text.split_whitespace().peekable();
    while let Some(word) = words.next() {
        let word = word.trim_start_matches(|c: char| !c.is_alphanumeric());
        if !matches!(word, "Case" | "Cases" | "case" | "cases") {
            continue;
        }
        let mut numbers = Vec::new();
        while let Some((number, more)) = words.peek().and_then(|next| number(next)) {
            words.next();
            numbers.push(number);
            if words.next_if_eq(&"and").is_none() && !more {
                break;
            }
        }
        let right = match numbers.len() {
            0 => continue,
            1 => "Case",
            _ => "Cases",
        };
        if word != right {
            bail!("`{word}` before {numbers:?} has to be `{right}`");
        }
        found.append(&mut numbers);
    }
    Ok(found)
}

/// The number a word begins with, and whether a comma right behind lets another one follow.
fn number(word: &str) -> Option<(u16, bool)> {
    let end = word.find(|c: char| !c.is_ascii_digit()).unwrap_or(word.len());
    let (digits, rest) = word.split_at(end);
    let ends = rest.chars().all(|c| c.is_ascii_punctuation());
    digits.parse().ok().filter(|_| ends).map(|number| (number, rest == ","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_in_use_is_understood() {
        for (text, expected) in [
            (" Case 87.", &[87][..]),
            (" Case 87: absent.", &[87]),
            (" Case 46, with weights of the command line.", &[46]),
            (" Case 5", &[5]),
            (" Cases 12 and 13: TCP.", &[12, 13]),
            (" Cases 53, 73 and 85: 300 requests to one port.", &[53, 73, 85]),
            (" Cases 53, 73, and 85.", &[53, 73, 85]),
            (" Case 54: no new ones. Case 56: after that, a RST.", &[54, 56]),
            (" The small side of it (Case 62).", &[62]),
        ] {
            assert_eq!(cases(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn what_names_no_case_is_none() {
        for text in ["", "In this case: nothing.", "Case by case", "Cases, 5 of them", "Case 3a"] {
            assert!(cases(text).unwrap().is_empty(), "{text}");
        }
    }

    #[test]
    fn what_is_nearly_a_mention_is_refused() {
        for text in ["Case 71 and 73: both.", "Case 85, 87: an error.", "Cases 5.", "as in case 32"]
        {
            assert!(cases(text).is_err(), "{text}");
        }
    }
}
