//! Finding tests and the cases they name in Rust source.
//!
//! Tokens are enough for that, and unlike a syntax tree they show the tests within `proptest!` and
//! any other macro in the same way as those outside.

use std::iter::Peekable;

use anyhow::{Result, anyhow};
use proc_macro2::token_stream::IntoIter;
use proc_macro2::{Delimiter, Span, TokenStream, TokenTree};

use super::mention;

/// A test that names cases.
#[derive(PartialEq, Eq, Debug)]
pub struct Test {
    pub name: String,
    /// Line of its name.
    pub line: usize,
    pub cases: Vec<u16>,
}

/// What a file has to say about cases.
#[derive(Default)]
pub struct Scan {
    pub tests: Vec<Test>,
    /// Mentions that count for no test, with the line of each.
    pub problems: Vec<(usize, String)>,
}

/// Scans a source file.
///
/// # Errors
/// The source cannot be cut into tokens.
pub fn scan(source: &str) -> Result<Scan> {
    let tokens: TokenStream = source.parse().map_err(|error| anyhow!("{error}"))?;
    let mut scan = Scan::default();
    scan.walk(tokens);
    Ok(scan)
}

/// What stands before an item.
#[derive(Default)]
struct Attributes {
    docs: String,
    first_doc: Option<Span>,
    is_test: bool,
}

impl Scan {
    fn walk(&mut self, tokens: TokenStream) {
        let mut tokens = tokens.into_iter().peekable();
        let mut attributes = Attributes::default();
        while let Some(token) = tokens.next() {
            match token {
                TokenTree::Punct(hash) if hash.as_char() == '#' => {
                    let inner = is_punct(&mut tokens, '!');
                    if inner {
                        tokens.next();
                    }
                    let Some(content) = bracketed(&mut tokens) else { continue };
                    attributes.add(content);
                    if inner {
                        // Of the module or macro we are in, not of what follows.
                        self.no_test(&std::mem::take(&mut attributes));
                    }
                }
                TokenTree::Ident(word) if word == "fn" => {
                    let attributes = std::mem::take(&mut attributes);
                    match tokens.peek() {
                        Some(TokenTree::Ident(name)) if attributes.is_test => {
                            self.test(name.to_string(), name.span(), &attributes);
                        }
                        _ => self.no_test(&attributes),
                    }
                }
                TokenTree::Ident(word) if ["async", "pub", "unsafe"].iter().any(|w| word == w) => {}
                TokenTree::Group(group) => {
                    self.no_test(&std::mem::take(&mut attributes));
                    self.walk(group.stream());
                }
                _ => self.no_test(&std::mem::take(&mut attributes)),
            }
        }
        self.no_test(&attributes);
    }

    fn test(&mut self, name: String, at: Span, attributes: &Attributes) {
        let line = at.start().line;
        match mention::cases(&attributes.docs) {
            Ok(cases) if cases.is_empty() => {}
            Ok(cases) => self.tests.push(Test { name, line, cases }),
            Err(error) => self.problems.push((line, error.to_string())),
        }
    }

    /// A mention on anything but a test would look like cover and be none.
    fn no_test(&mut self, attributes: &Attributes) {
        let Some(at) = attributes.first_doc else { return };
        let problem = match mention::cases(&attributes.docs) {
            Ok(cases) if cases.is_empty() => return,
            Ok(cases) => format!("the doc comment of no test names {cases:?}: name them at tests"),
            Err(error) => error.to_string(),
        };
        self.problems.push((at.start().line, problem));
    }
}

impl Attributes {
    /// Adds what stands within `#[` and `]`; a doc comment comes as `doc = "its text"`.
    fn add(&mut self, content: TokenStream) {
        let mut path = String::new();
        for token in content {
            match token {
                TokenTree::Ident(word) => path = word.to_string(),
                TokenTree::Punct(punct) if ":=".contains(punct.as_char()) => {}
                TokenTree::Literal(text) if path == "doc" => {
                    self.first_doc.get_or_insert(text.span());
                    self.docs.push(' ');
                    self.docs.push_str(text.to_string().trim_matches('"'));
                }
                _ => break,
            }
        }
        self.is_test |= path == "test";
    }
}

fn is_punct(tokens: &mut Peekable<IntoIter>, punct: char) -> bool {
    matches!(tokens.peek(), Some(TokenTree::Punct(next)) if next.as_char() == punct)
}

/// Takes a group in square brackets, if that is what follows.
fn bracketed(tokens: &mut Peekable<IntoIter>) -> Option<TokenStream> {
    let next = tokens.next_if(
        |token| matches!(token, TokenTree::Group(group) if group.delimiter() == Delimiter::Bracket),
    );
    match next {
        Some(TokenTree::Group(group)) => Some(group.stream()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(source: &str) -> Vec<(String, Vec<u16>)> {
        let scan = scan(source).unwrap();
        assert_eq!(scan.problems, []);
        scan.tests.into_iter().map(|test| (test.name, test.cases)).collect()
    }

    #[test]
    fn tests_of_every_form_are_found() {
        for source in [
            "/// Case 7: options.\n#[test]\nfn it() {}",
            "#[test]\n/// Case 7.\nfn it() {}",
            "/// Some words\n/// before. Case\n/// 7: options.\n#[test]\nfn it() {}",
            "/** Case 7. */ #[test] fn it() {}",
            "#[doc = \"Case 7.\"] #[test] #[should_panic(expected = \"x\")] fn it() {}",
            "/// Case 7.\n#[tokio::test]\nasync fn it() {}",
            "/// Case 7.\n#[tokio::test(flavor = \"multi_thread\")]\npub async fn it() {}",
            "#[cfg(test)] mod tests { mod inner { /// Case 7.\n#[test]\nfn it() {} } }",
            "proptest! { #![config(9)]\n/// Case 7.\n#[test]\nfn it(a in 0..9, b in any()) {} }",
        ] {
            assert_eq!(found(source), [("it".to_owned(), vec![7])], "{source}");
        }
    }

    #[test]
    fn a_mention_counts_for_the_next_test_only() {
        let source =
            "/// Case 7.\n#[test] fn a() {} #[test] fn b() {}\n/// Case 9.\n#[test] fn c() {}";
        let expected = [("a".to_owned(), vec![7]), ("c".to_owned(), vec![9])];
        assert_eq!(found(source), expected);
    }

    #[test]
    fn comments_and_strings_are_no_mentions() {
        let source = "// Case 7.\n#[test]\nfn it() { let text = \"/// Case 8\"; /* Case 9. */ }";
        assert_eq!(found(source), []);
    }

    #[test]
    fn a_mention_that_belongs_to_no_test_is_a_problem() {
        for source in [
            "\n/// Case 7: on a helper.\nfn helper() {}",
            "\n/// Case 7.\nstruct S;",
            "\n/// Case 7.\n#[test_case]\nfn it() {}",
            "\n//! Case 7: the whole file.\n#[test]\nfn it() {}",
            "\nour_tests! {\n/// Case 7.\nit => 1 }",
            "\n/// Case 7.\n",
        ] {
            let scan = scan(source).unwrap();
            assert_eq!(scan.tests, [], "{source}");
            let [(line, problem)] = &scan.problems[..] else { panic!("{source}") };
            assert!((2..=3).contains(line) && problem.contains('7'), "{line}: {problem}");
        }
    }

    #[test]
    fn a_wrong_form_at_a_test_is_a_problem() {
        let scan = scan("/// Case 7 and 8.\n#[test]\nfn it() {}").unwrap();
        assert_eq!(scan.tests, []);
        assert_eq!(scan.problems, [(3, "`Case` before [7, 8] has to be `Cases`".to_owned())]);
    }
}
