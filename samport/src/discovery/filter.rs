//! `--filter`: which containers are meant.

use std::mem::discriminant;
use std::str::FromStr;

use anyhow::{Result, bail};

use super::container::ContainerView;

/// One `--filter KIND=VALUE`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Filter {
    /// `label=KEY` or `label=KEY=VALUE`.
    Label(String, Option<String>),
    /// `name=GLOB`: `*` stands for any text, `?` for one character.
    Name(String),
    /// `image=NAME`; without a tag it means every tag.
    Image(String),
    /// `network=NAME`.
    Network(String),
}

impl FromStr for Filter {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        const WAY_OUT: &str = "expected label=KEY[=VALUE], name=GLOB, image=NAME or network=NAME";
        let Some((kind, value)) = text.split_once('=') else {
            bail!("invalid filter {text:?}: {WAY_OUT}");
        };
        if value.is_empty() || value.starts_with('=') {
            bail!("invalid filter {text:?}: no value of {kind:?}, {WAY_OUT}");
        }
        match kind {
            "label" => Ok(match value.split_once('=') {
                Some((key, value)) => Self::Label(key.to_owned(), Some(value.to_owned())),
                None => Self::Label(value.to_owned(), None),
            }),
            "name" => Ok(Self::Name(value.to_owned())),
            "image" => Ok(Self::Image(value.to_owned())),
            "network" => Ok(Self::Network(value.to_owned())),
            _ => bail!("invalid filter {text:?}: unknown kind {kind:?}, {WAY_OUT}"),
        }
    }
}

impl Filter {
    fn matches(&self, container: &ContainerView) -> bool {
        match self {
            Self::Label(key, None) => container.labels.contains_key(key),
            Self::Label(key, Some(value)) => container.labels.get(key) == Some(value),
            Self::Name(pattern) => glob(pattern, &container.name),
            Self::Image(name) => same_image(name, &container.image),
            Self::Network(name) => container.networks.contains_key(name),
        }
    }
}

/// All `--filter`s of a run. Those of one kind are alternatives, the kinds must all agree.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Filters(Vec<Filter>);

impl Filters {
    /// Takes the filters as given; none means that labels decide.
    #[must_use]
    pub fn new(filters: Vec<Filter>) -> Self {
        Self(filters)
    }

    /// Whether there are no filters.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the container is meant. Without filters, every one is.
    #[must_use]
    pub fn matches(&self, container: &ContainerView) -> bool {
        self.0.iter().all(|one| {
            let mut kind = self.0.iter().filter(|other| discriminant(*other) == discriminant(one));
            kind.any(|filter| filter.matches(container))
        })
    }

    /// Whether a filter names this network.
    #[must_use]
    pub fn names_network(&self, network: &str) -> bool {
        self.0.iter().any(|filter| matches!(filter, Filter::Network(name) if name == network))
    }
}

/// Whether `text` fits `pattern`, in which `*` is any run of characters and `?` is one.
fn glob(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<_>, Vec<_>) = (pattern.chars().collect(), text.chars().collect());
    let (mut at, mut seen) = (0, 0);
    // Where to go on when a later character does not fit: after the last `*`, one character on.
    let mut retry = None;
    while seen < text.len() {
        match pattern.get(at) {
            Some('*') => {
                at += 1;
                retry = Some((at, seen));
            }
            Some(c) if *c == '?' || *c == text[seen] => {
                at += 1;
                seen += 1;
            }
            _ => match retry.as_mut() {
                Some((after_star, from)) => {
                    *from += 1;
                    (at, seen) = (*after_star, *from);
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|c| *c == '*')
}

/// Whether `image`, as a container names it, is the one `wanted`.
fn same_image(wanted: &str, image: &str) -> bool {
    let (wanted, image) = (short_image(wanted), short_image(image));
    wanted == image || wanted == repository(image)
}

/// Podman writes names out in full where Docker leaves out its own registry.
fn short_image(name: &str) -> &str {
    let name = name.strip_prefix("docker.io/").unwrap_or(name);
    name.strip_prefix("library/").unwrap_or(name)
}

/// The name without digest and tag. A colon before the last slash belongs to a registry's port.
fn repository(image: &str) -> &str {
    let image = image.split_once('@').map_or(image, |(name, _)| name);
    match image.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => image,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::container::Attachment;

    fn web_1() -> ContainerView {
        ContainerView {
            name: "shop-web-1".into(),
            image: "registry:5000/shop/web:1.2".into(),
            labels: [("tier", "web"), ("team", "")].map(|(k, v)| (k.into(), v.into())).into(),
            networks: [("front".to_owned(), Attachment::default())].into(),
            ..ContainerView::default()
        }
    }

    fn matches(filters: &[&str]) -> bool {
        Filters::new(filters.iter().map(|f| f.parse().unwrap()).collect()).matches(&web_1())
    }

    #[test]
    fn each_kind_looks_at_its_own_part() {
        for (filter, expected) in [
            ("label=tier", true),
            ("label=tier=web", true),
            ("label=tier=db", false),
            ("label=tier=", false),
            ("label=team=", true),
            ("label=none", false),
            ("name=shop-web-1", true),
            ("name=shop-*", true),
            ("name=shop", false),
            ("image=registry:5000/shop/web", true),
            ("image=registry:5000/shop/web:1.2", true),
            ("image=registry:5000/shop/web:1.3", false),
            ("image=registry", false),
            ("image=web", false),
            ("network=front", true),
            ("network=back", false),
        ] {
            assert_eq!(matches(&[filter]), expected, "{filter}");
        }
    }

    #[test]
    fn one_kind_is_alternatives_and_kinds_must_agree() {
        assert!(matches(&[]));
        assert!(matches(&["name=other", "name=shop-*"]));
        assert!(matches(&["name=other", "name=shop-*", "label=tier=web"]));
        assert!(!matches(&["name=shop-*", "label=tier=db"]));
        assert!(!matches(&["name=other", "label=tier=web"]));
    }

    #[test]
    fn globs_know_star_and_question_mark_only() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("a*", "a", true),
            ("*a", "bab", false),
            ("*ab", "aab", true),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            ("web-?", "web-1", true),
            ("web-?", "web-12", false),
            ("?", "é", true),
            ("[ab]", "a", false),
            ("a**", "a", true),
        ] {
            assert_eq!(glob(pattern, text), expected, "{pattern} on {text}");
        }
    }

    #[test]
    fn images_are_compared_without_what_goes_without_saying() {
        for (wanted, image, expected) in [
            ("nginx", "nginx", true),
            ("nginx", "nginx:1.25", true),
            ("nginx", "nginx@sha256:00ff", true),
            ("nginx", "nginx:1.25@sha256:00ff", true),
            ("nginx", "docker.io/library/nginx:latest", true),
            ("docker.io/nginx", "nginx", true),
            ("nginx:1.25", "nginx", false),
            ("nginx", "nginx-light", false),
            ("app", "localhost:5000/app", false),
            ("localhost:5000/app", "localhost:5000/app:2", true),
        ] {
            assert_eq!(same_image(wanted, image), expected, "{wanted} on {image}");
        }
    }

    #[test]
    fn what_is_no_filter_is_refused_by_name() {
        for text in ["", "web", "label", "label=", "label==x", "name=", "state=running", "=x"] {
            let error = text.parse::<Filter>().unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")), "{error}");
            assert!(error.contains("name=GLOB"), "{error}");
        }
    }
}
