//! Headers that the configuration asks for: which it may, and how their values are shown.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::{Mutex, PoisonError},
};

use smol_str::SmolStr;

use super::{
    PolicyConfig,
    client::ClientAddress,
    mask, redactor,
    rules::Place,
    segment::{MASK, is_secret},
};
use crate::{
    correlate::wanted::Kept,
    span::{Attribute, Value},
};

/// What names of headers that carry credentials have in them, in lower case and with hyphens. Command lines
/// have a list of their own (`discover/redact.rs`): its words are shorter, and would refuse `X-Keyword`.
const CREDENTIALS: &[&str] = &[
    "accesskey",
    "apikey",
    "auth-",
    "-auth",
    "authent",
    "authoriz",
    "cookie",
    "credential",
    "csrf",
    "dpop",
    "jwt",
    "oidc",
    "passphrase",
    "passw",
    "pwd",
    "saml",
    "secret",
    "session",
    "signature",
    "token",
    "xsrf",
];

/// Names of keys that open nothing.
const HARMLESS: &[&str] = &["cache-key", "idempotency-key", "surrogate-key"];

/// The longest name.
const NAME_MAX: usize = 64;

/// Whether a header may be asked for.
///
/// # Errors
///
/// When it is no name of a header, or one that carries credentials; in one line.
pub fn check(name: &str) -> Result<(), String> {
    let lower = name.to_ascii_lowercase();
    if name.len() > NAME_MAX || http::HeaderName::try_from(&lower).is_err() {
        return Err(format!("{name:?} is no name of a header"));
    }
    let mut words = lower.replace('_', "-");
    for harmless in HARMLESS {
        words = words.replace(harmless, "");
    }
    let is_key = words.split('-').any(|word| word == "key");
    match is_key || CREDENTIALS.iter().any(|word| words.contains(word)) {
        true => Err(format!(
            "{name:?} carries credentials, which are never kept; leave it out"
        )),
        false => Ok(()),
    }
}

/// The attribute of a header, of a request or a response. One name is kept for as long as the process
/// lives: there are as many as configurations name.
pub fn attribute(is_request: bool, name: &str) -> &'static str {
    static KNOWN: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());

    let side = if is_request { "request" } else { "response" };
    let text = format!("http.{side}.header.{}", name.to_ascii_lowercase());
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = known.get(text.as_str()) {
        return known;
    }
    let text: &'static str = text.leak();
    known.insert(text);
    text
}

/// Adds the attributes of the headers that were kept: each name has the list of its values.
pub(super) fn attributes(kept: &[Kept], config: &PolicyConfig, out: &mut Vec<Attribute>) {
    for (name, value) in kept {
        let header = name.rsplit('.').next().unwrap_or_default();
        let value = SmolStr::from(shown(header, value, config));
        match out.iter_mut().find(|(known, _)| known == name) {
            Some((_, Value::StrList(values))) => {
                let known = std::mem::take(values).into_iter();
                *values = known.chain([value]).collect();
            }
            _ => out.push((name, Value::StrList([value].into()))),
        }
    }
}

/// A value of the header of this name, in lower case, as it may be shown.
pub(super) fn shown(name: &str, value: &str, config: &PolicyConfig) -> String {
    let ruled = config.rules.apply(Place::Header, value);
    match name {
        "referer" | "origin" | "location" | "content-location" | "refresh" | "link" => {
            redactor::url(config, &ruled)
        }
        // A client's address by another name.
        "x-forwarded-for" | "x-real-ip" | "x-client-ip" | "true-client-ip" | "cf-connecting-ip"
        | "forwarded" | "via" => match config.client_address {
            ClientAddress::Whole => ruled.into_owned(),
            _ => addresses(&ruled, &config.client_address),
        },
        _ if !config.redact => mask::credentials(&ruled).into_owned(),
        _ if is_secret(&ruled) => MASK.to_owned(),
        _ => mask::words(&ruled).into_owned(),
    }
}

/// A list of addresses, each as clients' addresses are shown; what is none is masked.
fn addresses(text: &str, how: &ClientAddress) -> String {
    let shown = text.split(',').map(|part| {
        let part = part.trim();
        part.parse::<IpAddr>()
            .map_or_else(|_| MASK.to_owned(), |address| how.shown(address))
    });
    shown.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    /// What carries credentials can never be asked for, however it is written.
    #[test]
    fn credentials_are_refused() {
        for name in [
            "Authorization",
            "PROXY-AUTHORIZATION",
            "cookie",
            "Set-Cookie",
            "X-Api-Key",
            "apikey",
            "X-Auth-Token",
            "x-amz-security-token",
            "x-csrf-token",
            "WWW-Authenticate",
            "x-session-id",
            "x-hub-signature-256",
            "Ocp-Apim-Subscription-Key",
            "X-Functions-Key",
            "X-Access-Key",
            "X_API_KEY",
            "X-AccessKey",
            "X-Idempotency-Key-Private-Key",
            "X-Goog-IAP-JWT-Assertion",
            "Cf-Access-Jwt-Assertion",
            "X-Amzn-Oidc-Data",
            "DPoP",
        ] {
            let error = check(name).unwrap_err();
            assert!(error.contains("never kept"), "{error}");
        }
        for name in ["", "a b", "x:y", "ü"] {
            assert!(check(name).unwrap_err().contains("is no name"), "{name}");
        }
        for name in [
            "X-Request-Id",
            "accept-language",
            "cache-control",
            "x-tenant",
            "x-keyword",
            "keep-alive",
            "idempotency-key",
            "X-Cache-Key",
            "surrogate-key",
        ] {
            check(name).unwrap();
        }
    }

    /// Values of one header are one attribute; what looks like a secret in them is masked, URLs lose
    /// their queries, and addresses are shown as clients' are.
    #[test]
    fn values_are_masked() {
        let name = |name| attribute(true, name);
        assert_eq!(name("X-Tenant"), "http.request.header.x-tenant");
        assert_eq!(attribute(false, "x"), "http.response.header.x");
        let kept = [
            ("X-Tenant", "blue"),
            ("X-Tenant", "alice@example.com; card=4111111111111111"),
            ("referer", "https://u:p@h/a/alice@example.com?t=geheim"),
            ("x-forwarded-for", "203.0.113.77, unknown"),
        ]
        .map(|(header, value): (_, &str)| (name(header), value.into()));
        let config = PolicyConfig {
            client_address: ClientAddress::Cut,
            ..PolicyConfig::default()
        };
        let mut out = Vec::new();
        attributes(&kept, &config, &mut out);
        let list = |values: &[&'static str]| {
            Value::StrList(values.iter().copied().map(Into::into).collect())
        };
        assert_eq!(
            out,
            [
                (name("x-tenant"), list(&["blue", "REDACTED"])),
                (
                    name("referer"),
                    list(&["https://REDACTED:REDACTED@h/a/REDACTED?t=REDACTED"])
                ),
                (name("x-forwarded-for"), list(&["203.0.113.0, REDACTED"])),
            ]
        );
    }
}
