//! Masking: what leaves the policy carries no secrets, as far as they can be told.
//!
//! Nothing is allocated where nothing is masked.

use std::borrow::Cow;

use super::{
    mask,
    segment::{MASK, is_harmless, is_secret},
};

/// The longest path and query that are kept, in bytes; the rest is cut off.
pub(super) const TEXT_MAX: usize = 2048;

/// The most parameters of a query that are kept.
const PARAMETERS_MAX: usize = 64;

/// Masks the segments of a path that look like secrets (e-mail addresses, cards, tokens), and the
/// values of matrix parameters (`;name=value`).
pub fn path(path: &str) -> Cow<'_, str> {
    if path.len() <= TEXT_MAX && is_harmless(path) {
        return Cow::Borrowed(path);
    }
    masked_path(path)
}

fn masked_path(path: &str) -> Cow<'_, str> {
    match path_credentials(cut_at(path, '/')) {
        Cow::Borrowed(path) => segments(path),
        Cow::Owned(path) => Cow::Owned(segments(&path).into_owned()),
    }
}

/// A path of which nothing is masked but the credentials of URLs in it.
pub(super) fn path_credentials(path: &str) -> Cow<'_, str> {
    mask::credentials_between(path, &['/', ';', '='])
}

/// A query of which nothing is masked but likewise.
pub(super) fn query_credentials(query: &str) -> Cow<'_, str> {
    mask::credentials_between(query, &['&', '='])
}

fn segments(path: &str) -> Cow<'_, str> {
    let mut out: Option<String> = None;
    let mut done = 0;
    let mut at = 0;
    for segment in path.split('/') {
        let (name, parameters) = match segment.split_once(';') {
            Some((name, parameters)) => (name, Some(parameters)),
            None => (segment, None),
        };
        if is_secret(name) {
            let out = out.get_or_insert_with(|| String::with_capacity(path.len()));
            out.push_str(&path[done..at]);
            out.push_str(MASK);
            done = at + name.len();
        }
        if let Some(parameters) = parameters {
            let out = out.get_or_insert_with(|| String::with_capacity(path.len()));
            out.push_str(&path[done..at + name.len()]);
            for parameter in parameters.split(';') {
                out.push(';');
                push_parameter(out, parameter, &[]);
            }
            done = at + segment.len();
        }
        at += segment.len() + 1;
    }
    match out {
        None => Cow::Borrowed(path),
        Some(mut out) => {
            out.push_str(&path[done..]);
            Cow::Owned(out)
        }
    }
}

/// Masks the values of a query, but for the allowed names, of whose values only the credentials of URLs
/// are masked; names are kept unless they look like secrets themselves. Values that are empty stay empty.
pub fn query<'a>(query: &'a str, allowed: &[Box<str>]) -> Cow<'a, str> {
    let kept = cut_at(query, '&');
    let whole = kept.len() == query.len();
    let clean = |parameter: &str| match parameter.split_once('=') {
        Some((name, value)) => {
            let is_shown = || matches!(mask::credentials(value), Cow::Borrowed(v) if v == value);
            (value.is_empty() || is_allowed(name, allowed) && is_shown()) && !is_secret(name)
        }
        None => !is_secret(parameter),
    };
    if whole && kept.split('&').count() <= PARAMETERS_MAX && kept.split('&').all(clean) {
        return Cow::Borrowed(kept);
    }
    let mut out = String::with_capacity(kept.len());
    for (i, parameter) in kept.split('&').take(PARAMETERS_MAX).enumerate() {
        if i > 0 {
            out.push('&');
        }
        push_parameter(&mut out, parameter, allowed);
    }
    Cow::Owned(out)
}

fn push_parameter(out: &mut String, parameter: &str, allowed: &[Box<str>]) {
    let (name, value) = match parameter.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (parameter, None),
    };
    out.push_str(if is_secret(name) { MASK } else { name });
    if let Some(value) = value {
        out.push('=');
        match value {
            "" => {}
            value if is_allowed(name, allowed) => out.push_str(&mask::credentials(value)),
            _ => out.push_str(MASK),
        }
    }
}

fn is_allowed(name: &str, allowed: &[Box<str>]) -> bool {
    allowed.iter().any(|a| **a == *name)
}

/// The front of a text that is too long, up to a separator: a secret cut in two may not look like one.
fn cut_at(text: &str, separator: char) -> &str {
    let front = cut(text, TEXT_MAX);
    match front.rfind(separator) {
        Some(at) if front.len() < text.len() => &front[..at],
        _ => front,
    }
}

/// The front of a text, of at most so many bytes and whole characters.
pub(super) fn cut(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Secrets in a path are masked, segment by segment, and the rest is kept to the letter.
    #[test]
    fn masks_paths() {
        for (text, want) in [
            ("", ""),
            ("*", "*"),
            ("/", "/"),
            ("//a//", "//a//"),
            ("/users/42", "/users/42"),
            ("/users/alice@example.com/orders", "/users/REDACTED/orders"),
            ("/users/alice%40example.com", "/users/REDACTED"),
            ("/go/https://u@h/x", "/go/https://REDACTED/x"),
            ("/go/https%3A%2F%2Fu%40h/x", "/go/REDACTED/x"),
            ("/pay/4111111111111111/x", "/pay/REDACTED/x"),
            ("/a@b.cc/c@d.ee/e", "/REDACTED/REDACTED/e"),
            (
                "/t/eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.dozjgNryP4J3jVmNHl0w5N",
                "/t/REDACTED",
            ),
            (
                "/cart;jsessionid=1A530637289A03B07199A44E8D531427;x/y",
                "/cart;jsessionid=REDACTED;x/y",
            ),
            (
                "/items/6f1c9e0a-3f6b-4f0e-9a3e-0c3a3f2b1d4e",
                "/items/6f1c9e0a-3f6b-4f0e-9a3e-0c3a3f2b1d4e",
            ),
        ] {
            assert_eq!(path(text), want, "{text}");
        }
    }

    /// Values of a query are masked unless their names are allowed; names stay.
    #[test]
    fn masks_queries() {
        let allowed: [Box<str>; 2] = ["page".into(), "sort".into()];
        for (text, want) in [
            ("", ""),
            ("flag", "flag"),
            ("page=2&sort=name", "page=2&sort=name"),
            ("q=alice&page=2", "q=REDACTED&page=2"),
            ("q=", "q="),
            ("token=a=b&&x", "token=REDACTED&&x"),
            ("alice@example.com", "REDACTED"),
            ("alice@example.com=1", "REDACTED=REDACTED"),
            ("Page=2", "Page=REDACTED"),
            (
                "page=https://u:p@h/&x",
                "page=https://REDACTED:REDACTED@h/&x",
            ),
            ("page=https%3A%2F%2Fu%3Ap%40h", "page=REDACTED"),
            ("page=https%3A%2F%2Fh", "page=https%3A%2F%2Fh"),
        ] {
            assert_eq!(query(text, &allowed), want, "{text}");
        }
    }

    /// A text that is too long is cut where no secret is cut in two.
    #[test]
    fn cuts_between_secrets() {
        let long = format!("{}/alice@example.com/x", "/a".repeat(TEXT_MAX / 2 - 3));
        assert_eq!(path(&long), "/a".repeat(TEXT_MAX / 2 - 3));
        let long = format!("{}&alice@example.com", "a&".repeat(TEXT_MAX / 2 - 3));
        assert!(!query(&long, &[]).contains("alice"));
    }

    /// Where there is nothing to mask, nothing is allocated.
    #[test]
    fn borrows_what_is_clean() {
        assert!(matches!(path("/a/b/42"), Cow::Borrowed(_)));
        assert!(matches!(query("a&b=", &[]), Cow::Borrowed(_)));
    }

    proptest! {
        /// A path that is seen at once to be harmless is one in which nothing is masked.
        #[test]
        fn harmless_paths(
            path in "(/[a-zA-F0-9._;=@%:-]{0,16}){0,6}",
            words in "(/([a-z]{1,9}|[0-9]{1,16}|https:/)){0,6}",
            any in "\\PC{0,60}",
        ) {
            for text in [path, words, any] {
                prop_assert_eq!(super::path(&text), masked_path(&text), "{}", text);
            }
        }

        /// Whatever comes in, the result is bounded, masking again changes nothing, and no value of a
        /// query is left.
        #[test]
        fn holds_for_anything(text in "\\PC{0,300}") {
            let masked = path(&text);
            prop_assert!(masked.len() <= 3 * TEXT_MAX);
            prop_assert_eq!(path(&masked), masked.clone());
            let masked = query(&text, &[]);
            for value in masked.split('&').filter_map(|p| Some(p.split_once('=')?.1)) {
                prop_assert!(value.is_empty() || value == MASK);
            }
            prop_assert_eq!(query(&masked, &[]), masked.clone());
        }

        /// A secret put anywhere into a path never comes out of it.
        #[test]
        fn hides_secrets_anywhere(
            before in "(/[a-z0-9;=.]{0,8}){0,5}",
            after in "(/[a-z0-9;=.]{0,8}){0,5}",
            secret in prop_oneof![
                Just("alice@example.com"), Just("4111111111111111"),
                Just("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.dozjgNryP4J3jVmN"),
            ],
        ) {
            let text = format!("{before}/{secret}{after}");
            prop_assert!(!path(&text).contains(secret));
        }
    }
}
