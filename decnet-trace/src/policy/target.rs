//! The target of a request, in the forms of RFC 9112 §3.2.

/// A request's target, taken apart. The fragment, which no client should send, is left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Target<'a> {
    /// The scheme of an absolute target.
    pub(super) scheme: Option<&'a str>,
    /// The credentials in an absolute target's authority, without the `@`.
    pub(super) credentials: Option<&'a str>,
    /// The host and port of an absolute target, or of one of `CONNECT`.
    pub(super) authority: Option<&'a str>,
    /// The path; empty for `CONNECT`.
    pub(super) path: &'a str,
    /// The query, without the `?`.
    pub(super) query: Option<&'a str>,
}

impl<'a> Target<'a> {
    /// Takes a target apart; anything is one.
    pub(super) fn parse(method: &str, target: &'a str) -> Self {
        let target = before(target, b'#').0;
        if method == "CONNECT" {
            let (credentials, authority) = split_credentials(target);
            return Self {
                credentials,
                authority: Some(authority),
                ..Self::default()
            };
        }
        // A path is none, and that is what nearly all are.
        let absolute = match target.as_bytes() {
            [b'/', ..] => None,
            _ => target
                .split_once("://")
                .filter(|(scheme, _)| is_scheme(scheme)),
        };
        let (scheme, authority, rest) = match absolute {
            Some((scheme, rest)) => {
                let end = memchr::memchr2(b'/', b'?', rest.as_bytes()).unwrap_or(rest.len());
                (Some(scheme), Some(&rest[..end]), &rest[end..])
            }
            None => (None, None, target),
        };
        let (path, query) = before(rest, b'?');
        let (credentials, authority) = match authority.map(split_credentials) {
            Some((credentials, authority)) => (credentials, Some(authority)),
            None => (None, None),
        };
        Self {
            scheme,
            credentials,
            authority,
            path: if absolute.is_some() && path.is_empty() {
                "/"
            } else {
                path
            },
            query,
        }
    }
}

/// Splits at the first such byte, and leaves that out.
fn before(text: &str, byte: u8) -> (&str, Option<&str>) {
    match memchr::memchr(byte, text.as_bytes()) {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    }
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
}

fn split_credentials(authority: &str) -> (Option<&str>, &str) {
    match authority.rsplit_once('@') {
        Some((credentials, host)) => (Some(credentials), host),
        None => (None, authority),
    }
}

/// A host and, where it is given, a port: the value of `Host`, or the authority of a URL. `None` where
/// it is neither a name nor an address, so that garbage does not pass for one.
pub(super) fn host_and_port(authority: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']')?;
            host.parse::<std::net::Ipv6Addr>().ok()?;
            match rest {
                "" => (host, None),
                rest => (host, Some(rest.strip_prefix(':')?)),
            }
        }
        None => before(authority, b':'),
    };
    let is_name = !host.is_empty()
        && host.len() <= 253
        && host
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b) || b >= 0x80);
    if !is_name && !authority.starts_with('[') {
        return None;
    }
    match port {
        None | Some("") => Some((host, None)),
        Some(port) if port.bytes().all(|b| b.is_ascii_digit()) => {
            Some((host, Some(port.parse().ok()?)))
        }
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The four forms of a target are told apart.
    #[test]
    fn takes_targets_apart() {
        let origin = |path, query| Target {
            path,
            query,
            ..Target::default()
        };
        for (method, target, want) in [
            ("GET", "/", origin("/", None)),
            ("GET", "/a/b?c=d?e", origin("/a/b", Some("c=d?e"))),
            ("GET", "/a?", origin("/a", Some(""))),
            ("GET", "/a#b?c", origin("/a", None)),
            ("OPTIONS", "*", origin("*", None)),
            ("GET", "/go/http://x/y", origin("/go/http://x/y", None)),
            (
                "GET",
                "http://u:p@h.example:81/a?b",
                Target {
                    scheme: Some("http"),
                    credentials: Some("u:p"),
                    authority: Some("h.example:81"),
                    path: "/a",
                    query: Some("b"),
                },
            ),
            (
                "GET",
                "https://h?b@c",
                Target {
                    scheme: Some("https"),
                    authority: Some("h"),
                    path: "/",
                    query: Some("b@c"),
                    ..Target::default()
                },
            ),
            (
                "CONNECT",
                "h.example:443",
                Target {
                    authority: Some("h.example:443"),
                    ..Target::default()
                },
            ),
        ] {
            assert_eq!(Target::parse(method, target), want, "{method} {target}");
        }
    }

    /// Hosts of all kinds are read; what is none is refused.
    #[test]
    fn reads_hosts() {
        for (text, want) in [
            ("example.com", Some(("example.com", None))),
            ("example.com:8080", Some(("example.com", Some(8080)))),
            ("example.com:", Some(("example.com", None))),
            ("127.0.0.1:80", Some(("127.0.0.1", Some(80)))),
            ("[::1]", Some(("::1", None))),
            ("[::1]:8000", Some(("::1", Some(8000)))),
            ("docker", Some(("docker", None))),
            ("my_service", Some(("my_service", None))),
            ("", None),
            (":80", None),
            ("a b", None),
            ("a:b", None),
            ("a:70000", None),
            ("a:+80", None),
            ("[::1", None),
            ("[x]:1", None),
            ("::1", None),
            ("<script>", None),
        ] {
            assert_eq!(host_and_port(text), want, "{text}");
        }
    }

    proptest! {
        /// What begins as a path is all path and query, whatever URLs stand in it.
        #[test]
        fn paths_have_no_scheme(target in "/([a-c/?]|://|http://a){0,12}") {
            let scheme = target.split_once("://").filter(|(scheme, _)| is_scheme(scheme));
            prop_assert_eq!(scheme, None);
            let parsed = Target::parse("GET", &target);
            prop_assert_eq!((parsed.scheme, parsed.authority), (None, None));
            let query = parsed.query.map_or(String::new(), |query| format!("?{query}"));
            prop_assert_eq!(format!("{}{query}", parsed.path), target);
        }

        /// Any text is a target, and its parts are found in it.
        #[test]
        fn never_panics(method in "GET|CONNECT|\\PC*", target in "\\PC*") {
            let parsed = Target::parse(&method, &target);
            prop_assert!(target.contains(parsed.path) || parsed.path == "/");
            let _ = host_and_port(&target);
        }
    }
}
