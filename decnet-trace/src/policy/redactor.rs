//! What a policy leaves of texts that are no requests: for looking at a set of rules.

use std::borrow::Cow;

use super::{PolicyConfig, redact, rules::Place, segment::MASK, target::Target};

/// Redacts single texts as spans' texts are redacted.
#[derive(Debug)]
pub struct Redactor(PolicyConfig);

impl Redactor {
    /// Goes by this policy.
    pub fn new(config: PolicyConfig) -> Self {
        Self(config)
    }

    /// A URL, or a path with or without a query.
    pub fn url(&self, text: &str) -> String {
        let target = Target::parse("GET", text);
        let mut out = String::with_capacity(text.len());
        if let Some(scheme) = target.scheme {
            out.push_str(scheme);
            out.push_str("://");
        }
        if target.credentials.is_some() {
            out.push_str(&format!("{MASK}:{MASK}@"));
        }
        out.push_str(target.authority.unwrap_or_default());
        let path = self.0.rules.apply(Place::Path, target.path);
        out.push_str(&match self.0.redact {
            true => redact::path(&path),
            false => Cow::Borrowed(&*path),
        });
        if let Some(query) = target.query.filter(|query| !query.is_empty()) {
            let query = self.0.rules.apply(Place::Query, query);
            out.push('?');
            out.push_str(&match self.0.redact {
                true => redact::query(&query, &self.0.query_allow),
                false => Cow::Borrowed(&*query),
            });
        }
        out
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;
    use crate::policy::{Rules, rules::Rule};

    /// What is masked in a request's URL is masked here, and rules come on top.
    #[test]
    fn redacts_urls() {
        let config = PolicyConfig {
            query_allow: vec!["page".into()],
            rules: Rules::new(vec![
                Rule::new("customer-[a-z]+", "customer-*", &[Place::Path]).unwrap(),
            ]),
            ..PolicyConfig::default()
        };
        let redactor = Redactor::new(config);
        for (text, want) in [
            (
                "https://u:p@h:8/a/alice@example.com?q=x&page=2#f",
                "https://REDACTED:REDACTED@h:8/a/REDACTED?q=REDACTED&page=2",
            ),
            ("/customer-smith/4111111111111111", "/customer-*/REDACTED"),
            ("/a?customer-x=customer-y", "/a?customer-x=REDACTED"),
        ] {
            assert_eq!(redactor.url(text), want, "{text}");
        }
    }
}
