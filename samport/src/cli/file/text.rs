//! From TOML to words as flags take them, each with its place in the text. Pure.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::config_error::ConfigError;

/// The key whose values may be tables.
const BACKEND: &str = "backend";

/// A key, and what is given for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Entry {
    pub(super) key: Word,
    pub(super) given: Given,
    /// Where the value is.
    pub(super) at: Range<usize>,
}

/// What is given for a key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Given {
    Switch(bool),
    One(Word),
    List(Vec<Word>),
}

/// A word and its place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Word {
    pub(super) text: String,
    pub(super) at: Range<usize>,
}

/// All keys of a text, in the order they are in.
pub(super) fn entries(text: &str) -> Result<Vec<Entry>, ConfigError> {
    let document = DeTable::parse(text).map_err(|error| {
        let at = error.span().unwrap_or_default();
        ConfigError::new(at, format!("this is no TOML: {}", error.message()))
    })?;
    let mut entries = Vec::new();
    for (key, value) in document.into_inner() {
        let key = Word { at: key.span(), text: key.into_inner().into_owned() };
        let at = value.span();
        entries.push(Entry { given: given(&key, value)?, key, at });
    }
    entries.sort_by_key(|entry| entry.key.at.start);
    Ok(entries)
}

fn given(key: &Word, value: Spanned<DeValue<'_>>) -> Result<Given, ConfigError> {
    let at = value.span();
    match value.into_inner() {
        DeValue::Boolean(on) => Ok(Given::Switch(on)),
        DeValue::Array(list) => {
            let words = list.into_iter().map(|one| match (key.text.as_str(), one.get_ref()) {
                (BACKEND, DeValue::Table(_)) => backend(one),
                _ => word(&key.text, one),
            });
            words.collect::<Result<_, _>>().map(Given::List)
        }
        one => word(&key.text, Spanned::new(at, one)).map(Given::One),
    }
}

/// A word or a number.
fn word(key: &str, value: Spanned<DeValue<'_>>) -> Result<Word, ConfigError> {
    let at = value.span();
    let text = match value.into_inner() {
        DeValue::String(text) => text.into_owned(),
        DeValue::Integer(number) if number.radix() == 10 => number.as_str().to_owned(),
        DeValue::Table(_) if key == BACKEND => {
            let what = "write [[backend]], with two brackets, once for each backend";
            return Err(ConfigError::new(at, what));
        }
        DeValue::Table(_) => {
            let what = format!(
                "there is no table {key:?}; keys are the flags' names, like {key}-… = \"…\", before any [[backend]]"
            );
            return Err(ConfigError::new(at, what));
        }
        _ => {
            let what = format!("{key:?} takes a text in quotes or a whole number");
            return Err(ConfigError::new(at, what));
        }
    };
    Ok(Word { text, at })
}

/// A table of `[[backend]]` in the words of `--backend`.
fn backend(table: Spanned<DeValue<'_>>) -> Result<Word, ConfigError> {
    let at = table.span();
    let DeValue::Table(table) = table.into_inner() else {
        return Err(ConfigError::new(at, "a backend is a text in quotes or a table"));
    };
    let (mut address, mut name, mut weight) = (None, None, None);
    for (key, value) in table {
        let place = match key.get_ref().as_ref() {
            "address" => &mut address,
            "name" => &mut name,
            "weight" => &mut weight,
            other => {
                let what = format!("unknown key {other:?}; a backend has address, name and weight");
                return Err(ConfigError::new(key.span(), what));
            }
        };
        *place = Some(word(key.get_ref(), value)?);
    }
    let Some(address) = address else {
        return Err(ConfigError::new(
            at,
            "this backend has no address; give address = \"IP:PORT\"",
        ));
    };
    let mut text = address.text;
    if let Some(Word { text: name, at }) = name {
        if name.is_empty() || name.contains('=') {
            return Err(ConfigError::new(at, "a name has one character at least, and no ="));
        }
        text = format!("{name}={text}");
    }
    if let Some(Word { text: weight, at }) = weight {
        if weight.parse::<u32>().is_err() {
            return Err(ConfigError::new(
                at,
                format!("weight {weight}: give a whole number from 0 up"),
            ));
        }
        text = format!("{text}@{weight}");
    }
    Ok(Word { text, at: address.at })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The keys with their words, and what is wrong with its line and column.
    fn read(text: &str) -> Result<Vec<(String, Vec<String>)>, String> {
        let words = |given| match given {
            Given::Switch(on) => vec![on.to_string()],
            Given::One(word) => vec![word.text],
            Given::List(words) => words.into_iter().map(|word| word.text).collect(),
        };
        let entries = entries(text).map_err(|config_error| config_error.shown(&"f", text))?;
        Ok(entries.into_iter().map(|entry| (entry.key.text, words(entry.given))).collect())
    }

    fn expected(list: &[(&str, &[&str])]) -> Vec<(String, Vec<String>)> {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        list.iter().map(|(key, list)| ((*key).to_owned(), words(list))).collect()
    }

    #[test]
    fn words_numbers_switches_and_lists_are_read_in_their_order() {
        let text =
            "port = [80, '443:8443']\niface = 'eth0'\nno-local = true\nallow = []\nflows = 2_048";
        let read = read(text);
        let list: [(&str, &[&str]); 5] = [
            ("port", &["80", "443:8443"]),
            ("iface", &["eth0"]),
            ("no-local", &["true"]),
            ("allow", &[]),
            ("flows", &["2048"]),
        ];
        assert_eq!(read, Ok(expected(&list)));
        assert_eq!(super::tests::read("# nothing\n"), Ok(vec![]));
    }

    #[test]
    fn tables_of_backends_become_what_the_flag_takes() {
        let text = "[[backend]]\naddress = '10.0.0.2:80'\n\
                    [[backend]]\nname = 'web'\nweight = 3\naddress = '::1'\n";
        assert_eq!(read(text), Ok(expected(&[("backend", &["10.0.0.2:80", "web=::1@3"])])));
        let text = "backend = ['10.0.0.2', { address = '10.0.0.3', weight = 0 }]";
        assert_eq!(read(text), Ok(expected(&[("backend", &["10.0.0.2", "10.0.0.3@0"])])));
    }

    #[test]
    fn what_flags_cannot_take_is_refused_where_it_is() {
        for (text, place, words) in [
            ("port = [80", "f:1:11", "no TOML"),
            ("a = 1\na = 2\n", "f:2:1", "duplicate"),
            ("\ndrain = 1.5", "f:2:9", "\"drain\" takes a text in quotes"),
            ("flows = 0x10", "f:1:9", "whole number"),
            ("drain = 1979-05-27", "f:1:9", "whole number"),
            ("port = [[80]]", "f:1:9", "\"port\" takes"),
            ("[health]\ninterval = 1", "f:1:1", "health-… ="),
            ("[backend]\naddress = '::1'", "f:1:1", "[[backend]]"),
            ("[[backend]]\nadress = '::1'", "f:2:1", "address, name and weight"),
            ("[[backend]]\nname = 'x'", "f:1:1", "has no address"),
            ("[[backend]]\naddress = '::1'\nweight = -1", "f:3:10", "from 0 up"),
            ("[[backend]]\naddress = '::1'\nname = 'a=b'", "f:3:8", "no ="),
        ] {
            let config_error = read(text).unwrap_err();
            assert!(
                config_error.starts_with(place) && config_error.contains(words),
                "{text:?}: {config_error}"
            );
        }
    }
}
