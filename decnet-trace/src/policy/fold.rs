//! Folding: what looks like an id in a path gives way to a placeholder.

use super::segment::{SECRET_MIN, Secret, Shape, is_hash, parts, shape};

/// The most segments of a folded path; the rest is one placeholder.
const SEGMENTS_MAX: usize = 12;

/// The longest folded path, in bytes.
const ROUTE_MAX: usize = 200;

/// The placeholder for the rest of a path that is too long or too deep.
const REST: &str = "{rest}";

/// Folds a path: what looks like an id gives way to a placeholder. A folded path folds to itself.
pub(super) fn fold(path: &str, out: &mut String) {
    let start = out.len();
    for (i, segment) in path.split('/').enumerate() {
        if i > 0 {
            out.push('/');
        }
        if i > SEGMENTS_MAX || out.len() - start + segment.len() > ROUTE_MAX {
            out.push_str(REST);
            return;
        }
        // Matrix parameters are no part of a route.
        let end = memchr::memchr(b';', segment.as_bytes()).unwrap_or(segment.len());
        let segment = &segment[..end];
        match shape(segment) {
            Shape::Number => out.push_str("{id}"),
            Shape::Uuid => out.push_str("{uuid}"),
            Shape::Hash => out.push_str("{hash}"),
            Shape::Date => out.push_str("{date}"),
            Shape::Secret(Secret::Email) => out.push_str("{email}"),
            Shape::Secret(Secret::Card) => out.push_str("{card}"),
            Shape::Secret(Secret::Token) => out.push_str("{token}"),
            Shape::Plain if is_word(segment) || is_version(segment) => out.push_str(segment),
            Shape::Plain => fold_parts(segment, out),
        }
    }
}

/// Without a digit there is no id in a plain segment that is too short for a hash of letters alone.
fn is_word(segment: &str) -> bool {
    segment.len() < SECRET_MIN && !segment.bytes().any(|b| b.is_ascii_digit())
}

/// `v1`, `v1.43`, `2.0`.
fn is_version(segment: &str) -> bool {
    let number = segment.strip_prefix(['v', 'V']).unwrap_or(segment);
    let is_short = |n: &str| (1..=3).contains(&n.len()) && n.bytes().all(|b| b.is_ascii_digit());
    segment.len() <= 12
        && (number.len() < segment.len() || number.contains('.'))
        && number.split('.').all(is_short)
}

/// Folds the parts of a segment that look like ids: `item-42` is `item-{id}`, `report_0007.pdf` is
/// `report_{id}.pdf`.
fn fold_parts(segment: &str, out: &mut String) {
    let mut done = 0;
    for part in parts(segment.as_bytes()) {
        let at = part.as_ptr() as usize - segment.as_ptr() as usize;
        // The two digits of a percent-encoded byte are no part.
        let escape = match part {
            [a, b, ..] if segment[..at].ends_with('%') && is_hex(*a) && is_hex(*b) => 2,
            _ => 0,
        };
        let part = &part[escape..];
        if part.is_empty() {
            continue;
        }
        let at = at + escape;
        let placeholder = if is_hash(part) && !part.iter().all(u8::is_ascii_digit) {
            "{hash}"
        } else if is_id(part) {
            "{id}"
        } else {
            continue;
        };
        out.push_str(&segment[done..at]);
        out.push_str(placeholder);
        done = at + part.len();
    }
    out.push_str(&segment[done..]);
}

fn is_hex(byte: u8) -> bool {
    byte.is_ascii_hexdigit()
}

/// A number, or letters and digits with too many digits for a name (`sha256`, `iso8859`).
fn is_id(part: &[u8]) -> bool {
    let digits = part.iter().filter(|b| b.is_ascii_digit()).count();
    let changes = part
        .windows(2)
        .filter(|w| w[0].is_ascii_digit() != w[1].is_ascii_digit())
        .count();
    digits == part.len() || digits >= 5 || part.len() >= 8 && digits >= 2 && changes >= 3
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::redact;

    fn folded(path: &str) -> String {
        let mut out = String::new();
        fold(path, &mut out);
        out
    }

    /// Ids fold to placeholders, names stay.
    #[test]
    fn folds_paths() {
        for (path, want) in [
            ("", ""),
            ("*", "*"),
            ("/", "/"),
            ("/users", "/users"),
            ("/users/", "/users/"),
            ("/users/42", "/users/{id}"),
            ("/users/42/orders/7", "/users/{id}/orders/{id}"),
            ("/users/-1", "/users/{id}"),
            ("/users/alice@example.com", "/users/{email}"),
            ("/u/6f1c9e0a-3f6b-4f0e-9a3e-0c3a3f2b1d4e", "/u/{uuid}"),
            ("/commit/d3cad15f", "/commit/{hash}"),
            ("/static/app.d3cad15f.js", "/static/app.{hash}.js"),
            ("/days/2024-02-29/log", "/days/{date}/log"),
            ("/reset/Zm9vYmFyYmF6cXV4MTIzNDU2", "/reset/{token}"),
            ("/pay/4111111111111111", "/pay/{card}"),
            ("/item-42", "/item-{id}"),
            ("/report_0007.pdf", "/report_{id}.pdf"),
            ("/customers/cus_9s6xkz2n", "/customers/cus_{id}"),
            ("/order12345", "/{id}"),
            ("/api/v1/things", "/api/v1/things"),
            ("/v1.43/containers/json", "/v1.43/containers/json"),
            ("/api/2.0/x", "/api/2.0/x"),
            ("/oauth2/token", "/oauth2/token"),
            ("/sha256", "/sha256"),
            ("/x;jsessionid=42/y", "/x/y"),
            ("/openapi.json", "/openapi.json"),
            (
                "/how-to-deploy-fastapi-on-kubernetes",
                "/how-to-deploy-fastapi-on-kubernetes",
            ),
            ("/%E3%81%82%E3%81%84", "/%E3%81%82%E3%81%84"),
            ("/order%20123/x%é", "/order%20{id}/x%é"),
        ] {
            assert_eq!(folded(path), want, "{path}");
        }
        let deep = "/a".repeat(40);
        assert_eq!(folded(&deep), format!("{}/{REST}", "/a".repeat(12)));
        let long = format!("/{}", "ab-".repeat(30));
        assert_eq!(
            folded(&long.repeat(3)),
            format!("{}/{REST}", long.repeat(2))
        );
    }

    proptest! {
        /// A word folds to itself part by part too.
        #[test]
        fn words_have_no_ids(word in "[a-zA-F._%-]{0,16}", any in "\\PC{0,14}") {
            for text in [word, any] {
                let mut parts = String::new();
                fold_parts(&text, &mut parts);
                prop_assert!(!is_word(&text) || parts == text, "{}", text);
            }
        }

        /// Any path folds, to a bounded text.
        #[test]
        fn folds_anything(path in "\\PC*", segments in "(/[a-z0-9.;@%-]{0,40}){0,30}") {
            for path in [path, segments] {
                prop_assert!(folded(&path).len() <= ROUTE_MAX + REST.len() * SEGMENTS_MAX);
            }
        }

        /// What redaction masks in the path does not stand in the route.
        #[test]
        fn routes_hold_no_secrets(path in "(/[a-zA-Z0-9@.;=-]{0,40}){0,6}") {
            let route = folded(&path);
            let masked = redact::path(&path);
            for (raw, shown) in path.split('/').zip(masked.split('/')) {
                let name = raw.split(';').next().unwrap_or_default();
                if shown.starts_with("REDACTED") && !raw.starts_with("REDACTED") {
                    prop_assert!(!route.split('/').any(|s| s == name), "{path} {route}");
                }
            }
        }
    }
}
