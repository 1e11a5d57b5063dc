//! What a policy leaves of texts that are no requests: for looking at a set of rules.

use std::borrow::Cow;

use super::{
    PolicyConfig, header, http,
    mask::{self, CREDENTIALS},
    redact,
    rules::Place,
    sql::{self, Sanitised},
    target::Target,
};

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
        url(&self.0, text)
    }

    /// A statement of a database.
    pub fn sql(&self, text: &str) -> String {
        let Sanitised { text, .. } = sql::sanitise(text);
        self.0.rules.apply(Place::Statement, &text).into_owned()
    }

    /// The `User-Agent` of a request.
    pub fn user_agent(&self, text: &str) -> String {
        http::shown_agent(text, &self.0).into_owned()
    }

    /// A value of the header of this name, in lower case.
    pub fn header(&self, name: &str, value: &str) -> String {
        header::shown(name, value, &self.0)
    }

    /// The rules of the configuration that find something in a text of this place: each with its number,
    /// from 1, and what it finds as the rules before it leave the text.
    pub fn found(&self, place: Place, text: &str) -> Vec<(usize, String)> {
        let sanitised;
        let text = match place {
            Place::Statement => {
                sanitised = sql::sanitise(text).text;
                sanitised.as_str()
            }
            Place::Path => Target::parse("GET", text).path,
            Place::Query => Target::parse("GET", text).query.unwrap_or_default(),
            Place::UserAgent | Place::Header => text,
        };
        self.0.rules.found(place, text)
    }
}

/// A URL, or a path with or without a query, as it may be shown.
pub(super) fn url(config: &PolicyConfig, text: &str) -> String {
    let target = Target::parse("GET", text);
    let mut out = String::with_capacity(text.len());
    if let Some(scheme) = target.scheme {
        out.push_str(scheme);
        out.push_str("://");
    }
    if target.credentials.is_some() {
        out.push_str(CREDENTIALS);
        out.push('@');
    }
    let authority = target.authority.unwrap_or_default();
    out.push_str(&match config.redact {
        true => mask::host(authority),
        false => Cow::Borrowed(authority),
    });
    let path = config.rules.apply(Place::Path, target.path);
    out.push_str(&match config.redact {
        true => redact::path(&path),
        false => redact::path_credentials(&path),
    });
    if let Some(query) = target.query.filter(|query| !query.is_empty()) {
        let query = config.rules.apply(Place::Query, query);
        out.push('?');
        out.push_str(&match config.redact {
            true => redact::query(&query, &config.query_allow),
            false => redact::query_credentials(&query),
        });
    }
    out
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

    /// Statements lose their literals, and what rules find; which rules found what is told, by place.
    #[test]
    fn redacts_statements() {
        let config = PolicyConfig {
            rules: Rules::new(vec![
                Rule::new("tenant_[a-z]+", "tenant", &[Place::Statement]).unwrap(),
                Rule::new("SELECT tenant", "X", &[]).unwrap(),
                Rule::new("nothing", "", &[]).unwrap(),
            ]),
            ..PolicyConfig::default()
        };
        let redactor = Redactor::new(config);
        let sql = "SELECT tenant_blue FROM t WHERE a = 'tenant_red' AND b = 4111";
        assert_eq!(redactor.sql(sql), "X FROM t WHERE a = ? AND b = ?");
        let found = redactor.found(Place::Statement, sql);
        let want = [(1, "tenant_blue"), (2, "SELECT tenant")].map(|(n, t)| (n, t.to_owned()));
        assert_eq!(found, want);
        assert_eq!(redactor.found(Place::Path, "/tenant_blue?nothing"), []);
        let agent = "bot (alice@example.com)";
        assert!(!redactor.user_agent(agent).contains("alice"));
    }
}
