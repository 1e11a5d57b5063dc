//! Rules of redaction that the configuration adds: patterns and what stands in their place.

use std::borrow::Cow;

use regex::{Regex, RegexBuilder};

/// The largest compiled pattern, in bytes.
const REGEX_MAX: usize = 1 << 20;

/// A place that a request can carry text in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The path of a URL, of requests served and made.
    Path,
    /// The query of a URL.
    Query,
    /// `User-Agent`
    UserAgent,
    /// The text of a database statement.
    Statement,
    /// The value of a header that the configuration asks for.
    Header,
}

impl Place {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Path,
        Self::Query,
        Self::UserAgent,
        Self::Statement,
        Self::Header,
    ];

    /// The name that configurations use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Path => "path",
            Self::Query => "query",
            Self::UserAgent => "user-agent",
            Self::Statement => "statement",
            Self::Header => "header",
        }
    }
}

/// A rule.
#[derive(Clone, Debug)]
pub struct Rule {
    pattern: Regex,
    replacement: Box<str>,
    places: Box<[Place]>,
}

impl Rule {
    /// A rule for these places; for all of them where none is given. `$1` and `${name}` in the
    /// replacement stand for groups of the pattern.
    ///
    /// # Errors
    ///
    /// When the pattern is no regular expression, or too large a one; in one line.
    pub fn new(pattern: &str, replacement: &str, places: &[Place]) -> Result<Self, String> {
        Ok(Self {
            pattern: compile(pattern)?,
            replacement: replacement.into(),
            places: match places {
                [] => Place::ALL.into(),
                places => places.into(),
            },
        })
    }
}

/// Compiles a pattern.
///
/// # Errors
///
/// When it is none; in one line.
pub fn compile(pattern: &str) -> Result<Regex, String> {
    RegexBuilder::new(pattern)
        .size_limit(REGEX_MAX)
        .build()
        .map_err(|error| {
            let text = error.to_string();
            // The last line says what is wrong, those above it show where.
            let last = text.lines().last().unwrap_or_default();
            last.trim().trim_start_matches("error: ").to_owned()
        })
}

/// Rules, in their order.
#[derive(Clone, Debug, Default)]
pub struct Rules(Box<[Rule]>);

impl Rules {
    /// These rules.
    pub fn new(rules: Vec<Rule>) -> Self {
        Self(rules.into())
    }

    /// What the rules for a place find in a text, one after the other: each that finds something by its
    /// number, from 1, with the first that it finds.
    pub fn found(&self, place: Place, text: &str) -> Vec<(usize, String)> {
        let mut text = Cow::Borrowed(text);
        let mut found = Vec::new();
        for (at, rule) in self.0.iter().enumerate() {
            if !rule.places.contains(&place) {
                continue;
            }
            if let Some(first) = rule.pattern.find(&text) {
                found.push((at + 1, first.as_str().to_owned()));
                text = Cow::Owned(
                    rule.pattern
                        .replace_all(&text, &*rule.replacement)
                        .into_owned(),
                );
            }
        }
        found
    }

    /// A text with what the rules for its place find replaced. Nothing is allocated where they find
    /// nothing.
    pub fn apply<'t>(&self, place: Place, text: &'t str) -> Cow<'t, str> {
        let mut out = Cow::Borrowed(text);
        for rule in self.0.iter().filter(|rule| rule.places.contains(&place)) {
            if let Cow::Owned(ruled) = rule.pattern.replace_all(&out, &*rule.replacement) {
                out = Cow::Owned(ruled);
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    /// Rules apply one after the other, at their places only, with the groups of their patterns.
    #[test]
    fn rules_apply_in_order() {
        let rules = Rules::new(vec![
            Rule::new(r"customer-(\w)\w*", "customer-$1", &[Place::Path]).unwrap(),
            Rule::new("(?i)Customer-S", "X", &[]).unwrap(),
        ]);
        assert_eq!(rules.apply(Place::Path, "/customer-smith/a"), "/X/a");
        assert_eq!(rules.apply(Place::Query, "c=customer-smith"), "c=Xmith");
        assert!(matches!(
            rules.apply(Place::Statement, "SELECT 1"),
            Cow::Borrowed(_)
        ));
    }

    /// A pattern that is none is refused in one line that says why.
    #[test]
    fn refuses_broken_patterns() {
        let error = Rule::new("a(b", "", &[]).unwrap_err();
        assert_eq!(error, "unclosed group");
        assert!(compile("(a{1000}){1000}").is_err());
    }
}
