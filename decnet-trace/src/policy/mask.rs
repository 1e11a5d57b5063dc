//! Masking of free texts: a `User-Agent`, a header's value, a host's name, URLs within other texts.
//!
//! Nothing is allocated where nothing is masked.

use std::borrow::Cow;

use super::{
    segment::{CARD_MIN, DECODINGS, MASK, SECRET_MIN, find_card, is_secret, may_hold_at},
    template::decoded,
};

/// Masks the words of a text that look like secrets, and card numbers that several words make up.
pub(super) fn words(text: &str) -> Cow<'_, str> {
    match cards(text) {
        Cow::Borrowed(text) => single_words(text),
        Cow::Owned(text) => Cow::Owned(single_words(&text).into_owned()),
    }
}

fn single_words(text: &str) -> Cow<'_, str> {
    each(
        text,
        |c| is_end(c) || c == '=',
        |word| is_secret(word).then_some(MASK),
    )
}

/// What ends a word.
fn is_end(c: char) -> bool {
    c.is_whitespace() || "()<>[]{}\"',;".contains(c)
}

/// The front of a text, of at most so many bytes; a word that the end would cut in two is left out, for
/// half a secret may not look like one.
pub(super) fn whole_words(text: &str, max: usize) -> &str {
    if text.len() <= max {
        return text;
    }
    let front = &text[..text.floor_char_boundary(max)];
    match text[front.len()..].starts_with(is_end) {
        true => front,
        false => &front[..front.rfind(is_end).unwrap_or(0)],
    }
}

/// Masks the labels of a host's name that look like secrets. An address has none.
pub(super) fn host(host: &str) -> Cow<'_, str> {
    if host.len() < SECRET_MIN {
        return Cow::Borrowed(host);
    }
    match cards(host) {
        Cow::Borrowed(host) => labels(host),
        Cow::Owned(host) => Cow::Owned(labels(&host).into_owned()),
    }
}

fn labels(host: &str) -> Cow<'_, str> {
    each(
        host,
        |c| matches!(c, '.' | ':'),
        |label| {
            // A shorter one is no e-mail address.
            (label.len() >= SECRET_MIN && is_secret(label)).then_some(MASK)
        },
    )
}

fn cards(text: &str) -> Cow<'_, str> {
    if text.len() < CARD_MIN {
        return Cow::Borrowed(text);
    }
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = find_card(rest.as_bytes()) {
        out.push_str(&rest[..at.start]);
        out.push_str(MASK);
        rest = &rest[at.end..];
    }
    match out.is_empty() {
        true => Cow::Borrowed(text),
        false => Cow::Owned(out + rest),
    }
}

/// What stands in place of the credentials in a URL.
pub(super) const CREDENTIALS: &str = "REDACTED:REDACTED";

/// Masks the credentials of the URLs in a text, `https://user:password@host`; all of the text where
/// percent-encoding hides such a URL.
pub(super) fn credentials(text: &str) -> Cow<'_, str> {
    if !may_hold_at(text.as_bytes()) {
        return Cow::Borrowed(text);
    }
    masked_credentials(text)
}

fn masked_credentials(text: &str) -> Cow<'_, str> {
    let masked = plain_credentials(text);
    match hides_credentials(&masked) {
        true => Cow::Borrowed(MASK),
        false => masked,
    }
}

/// The same in each segment of a path, or parameter of a query.
pub(super) fn credentials_between<'t>(text: &'t str, separators: &[char]) -> Cow<'t, str> {
    if !may_hold_at(text.as_bytes()) {
        return Cow::Borrowed(text);
    }
    masked_between(text, separators)
}

fn masked_between<'t>(text: &'t str, separators: &[char]) -> Cow<'t, str> {
    let masked = plain_credentials(text);
    if !hides_credentials(&masked) {
        return masked;
    }
    let each = each(
        &masked,
        |c| separators.contains(&c),
        |piece| hides_credentials(piece).then_some(MASK),
    );
    Cow::Owned(match hides_credentials(&each) {
        // A URL that is percent-encoded in part only.
        true => MASK.to_owned(),
        false => each.into_owned(),
    })
}

fn plain_credentials(text: &str) -> Cow<'_, str> {
    let mut out = String::new();
    let (mut done, mut from) = (0, 0);
    while let Some(at) = text[from..].find("://") {
        let begin = from + at + 3;
        from = begin;
        let url = &text[begin..];
        let url = &url[..url.find(is_end).unwrap_or(url.len())];
        let authority = &url[..url.find(['/', '?', '#', '&']).unwrap_or(url.len())];
        // What follows a colon and is no port is a password, which may hold anything.
        let is_port = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
        let (_, behind) = authority.rsplit_once(':').unwrap_or_default();
        let user = match authority.rfind('@') {
            None if !is_port(behind) && !authority.starts_with('[') => url.rfind('@'),
            found => found,
        };
        if let Some(end) = user.filter(|end| url[..*end] != *CREDENTIALS) {
            out.push_str(&text[done..begin]);
            out.push_str(CREDENTIALS);
            done = begin + end;
            from = done;
        }
    }
    match out.is_empty() {
        true => Cow::Borrowed(text),
        false => Cow::Owned(out + &text[done..]),
    }
}

fn hides_credentials(text: &str) -> bool {
    if !text.contains('%') || !text.contains('@') && !text.contains("40") {
        return false;
    }
    let mut text = Cow::Borrowed(text);
    for _ in 0..DECODINGS {
        match decoded(&text) {
            Cow::Owned(next) if next != text => text = Cow::Owned(next),
            _ => break,
        }
    }
    matches!(plain_credentials(&text), Cow::Owned(_))
}

/// A text with some of its pieces replaced.
fn each<'t>(
    text: &'t str,
    is_end: impl Fn(char) -> bool,
    instead: impl Fn(&str) -> Option<&'static str>,
) -> Cow<'t, str> {
    let mut out = String::new();
    let (mut done, mut at) = (0, 0);
    for piece in text.split(is_end) {
        if let Some(instead) = instead(piece) {
            out.push_str(&text[done..at]);
            out.push_str(instead);
            done = at + piece.len();
        }
        let end = at + piece.len();
        at = end + text[end..].chars().next().map_or(0, char::len_utf8);
    }
    match done {
        0 => Cow::Borrowed(text),
        _ => {
            out.push_str(&text[done..]);
            Cow::Owned(out)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What browsers, libraries, probes and robots call themselves.
    const AGENTS: &[&str] = &[
        "curl/8.5.0",
        "Wget/1.21.4",
        "python-requests/2.31.0",
        "python-httpx/0.27.0",
        "python-urllib3/2.2.1",
        "Python-urllib/3.12",
        "Python/3.11 aiohttp/3.9.5",
        "Go-http-client/1.1",
        "okhttp/4.12.0",
        "node-fetch/1.0 (+https://github.com/bitinn/node-fetch)",
        "PostmanRuntime/7.37.3",
        "Apache-HttpClient/4.5.14 (Java/17.0.10)",
        "kube-probe/1.29",
        "Prometheus/2.51.0",
        "Grafana/10.4.1",
        "ELB-HealthChecker/2.0",
        "GoogleHC/1.0",
        "Amazon-Route53-Health-Check-Service (ref 6f1c9e0a-3f6b-4f0e-9a3e-0c3a3f2b1d4e; report http://amzn.to/1vsZADi)",
        "OTel-OTLP-Exporter-Python/1.24.0",
        "kubectl/v1.29.3 (linux/amd64) kubernetes/6813625",
        "docker/26.0.0 go/go1.21.8 git-commit/8b79278 kernel/5.15.0-101-generic os/linux arch/amd64 UpstreamClient(Docker-Client/26.0.0 \\(linux\\))",
        "Boto3/1.34.69 md/Botocore#1.34.69 ua/2.0 os/linux#5.15.0-1056-aws md/arch#x86_64 lang/python#3.11.8 md/pyimpl#CPython cfg/retry-mode#legacy Botocore/1.34.69",
        "aws-sdk-go/1.44.0 (go1.19; linux; amd64) exec-env/AWS_ECS_FARGATE",
        "HashiCorp Terraform/1.7.5 (+https://www.terraform.io) terraform-provider-aws/5.42.0 (+https://registry.terraform.io/providers/hashicorp/aws)",
        "Mozilla/5.0 (X11; Linux x86_64; rv:124.0) Gecko/20100101 Firefox/124.0",
        "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/124.0.0.0 Safari/537.36 Edg/124.0.2478.51",
        "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.4.1 Safari/605.1.15",
        "Mozilla/5.0 (iPhone; CPU iPhone OS 17_4_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) CriOS/124.0.6367.88 Mobile/15E148 Safari/604.1",
        "Mozilla/5.0 (Linux; Android 13; SM-G998B Build/TP1A.220624.014; wv) AppleWebKit/537.36 (KHTML, like Gecko) Version/4.0 Chrome/124.0.6367.82 Mobile Safari/537.36",
        "Mozilla/5.0 (iPhone; CPU iPhone OS 16_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Mobile/20G75 [FBAN/FBIOS;FBAV/434.0.0.31.104;FBBV/539847502;FBDV/iPhone14,2]",
        "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
        "Mozilla/5.0 (compatible; YandexBot/3.0; +http://yandex.com/bots)",
        "Mozilla/5.0 (compatible; bingbot/2.0; +http://www.bing.com/bingbot.htm) Chrome/116.0.1938.76 Safari/537.36",
        "facebookexternalhit/1.1 (+http://www.facebook.com/externalhit_uatext.php)",
        "Slackbot-LinkExpanding 1.0 (+https://api.slack.com/robots)",
        "Mozilla/5.0 (compatible; AhrefsBot/7.0; +http://ahrefs.com/robot/)",
        "Dalvik/2.1.0 (Linux; U; Android 13; Pixel 7 Build/TQ3A.230805.001)",
    ];

    /// What software calls itself stays whole.
    #[test]
    fn agents_stay_whole() {
        let masked = AGENTS.iter().map(|agent| words(agent));
        let masked: Vec<_> = masked
            .filter(|shown| matches!(shown, Cow::Owned(_)))
            .collect();
        assert!(masked.is_empty(), "{masked:#?}");
    }

    /// Secrets among the words of a text are masked, the rest is kept to the letter.
    #[test]
    fn masks_words() {
        for (text, want) in [
            (
                "Mozilla/5.0 (compatible; bot; +https://x.example; bot@x.example)",
                "Mozilla/5.0 (compatible; bot; +https://x.example; REDACTED)",
            ),
            ("a@b.cc", "REDACTED"),
            ("a @ b", "a @ b"),
            (
                "app/1 eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.dozjgNryP4J3jVmN x",
                "app/1 REDACTED x",
            ),
            ("app/eyJhbGciOiJub25lIn0.e30 x", "REDACTED x"),
            (
                "app (key=pLaNt3dT0k3nQx7vB2mZ9sK4wR8yH1jF)",
                "app (key=REDACTED)",
            ),
            ("app/4111111111111111", "app/REDACTED"),
            ("app 4111 1111 1111 1111 x", "app REDACTED x"),
            (
                "app 5555555555554444,4111-1111-1111-1111",
                "app REDACTED,REDACTED",
            ),
            ("a=4111111111111111; b", "a=REDACTED; b"),
            ("bot (+https://u:p@x.example)", "bot (REDACTED)"),
            (
                "é\u{3000}alice@example.com\u{3000}é",
                "é\u{3000}REDACTED\u{3000}é",
            ),
        ] {
            assert_eq!(words(text), want, "{text}");
        }
    }

    /// A text that is too long ends with a whole word.
    #[test]
    fn cuts_between_words() {
        let agent = format!("{} alice@example.com)", "x".repeat(240));
        for max in 241..258 {
            assert_eq!(whole_words(&agent, max).len(), 240);
        }
        assert_eq!(whole_words(&agent, 258), agent.trim_end_matches(')'));
        assert_eq!(whole_words(&agent, 259), agent);
        assert_eq!(whole_words(&"é".repeat(200), 255), "");
    }

    /// Names of hosts and addresses stay, but for labels that look like secrets.
    #[test]
    fn masks_hosts() {
        for name in [
            "localhost",
            "api.example.com",
            "192.168.100.100",
            "2001:db8:1234:5678:9abc:def0:1234:5678",
            "xn--bcher-kva.example",
            "host.docker.internal",
            "shop-backend.production.svc.cluster.local",
            "ec2-54-200-12-34.us-west-2.compute.amazonaws.com",
            "ip-172-31-255-255.eu-central-1.compute.internal",
            "mydb.c9akciq32rmd.us-east-1.rds.amazonaws.com",
            "d111111abcdef8.cloudfront.net",
            "generativelanguage.googleapis.com",
            "4f66ad9a0b2e",
            "6f1c9e0a-3f6b-4f0e-9a3e-0c3a3f2b1d4e.example.com",
        ] {
            assert_eq!(host(name), name);
        }
        for (name, want) in [
            (
                "ghp_16C7e42F292c6912E7710c838347Ae178B4a.example.com",
                "REDACTED.example.com",
            ),
            ("d41d8cd98f00b204e9800998ecf8427e.h:80", "REDACTED.h:80"),
            ("a.4111111111111111.example", "a.REDACTED.example"),
            ("4111.1111.1111.1111.example", "REDACTED.example"),
            ("4111-1111-1111-1111.example", "REDACTED.example"),
        ] {
            assert_eq!(host(name), want);
        }
    }

    /// Credentials of URLs within other texts are masked, and where they are encoded all of it is.
    #[test]
    fn masks_credentials() {
        for (text, want) in [
            ("https://u:p@h/", "https://REDACTED:REDACTED@h/"),
            ("https://u@h", "https://REDACTED:REDACTED@h"),
            ("https://u:p/ss@h/x", "https://REDACTED:REDACTED@h/x"),
            ("http://a/b@c", "http://a/b@c"),
            ("http://a:80/b@c", "http://a:80/b@c"),
            ("http://[::1]:80/b@c", "http://[::1]:80/b@c"),
            ("http://a (c@d)", "http://a (c@d)"),
            (
                "a://u:p@h/?n=b://v:q@i",
                "a://REDACTED:REDACTED@h/?n=b://REDACTED:REDACTED@i",
            ),
            ("https%3A%2F%2Fu%3Ap%40h%2F", MASK),
            ("https%253A%252F%252Fu%253Ap%2540h", MASK),
            ("https://u:p%40h/", MASK),
            ("https%3A%2F%2Fh%2Fa%40b", "https%3A%2F%2Fh%2Fa%40b"),
            ("alice@example.com", "alice@example.com"),
        ] {
            assert_eq!(credentials(text), want, "{text}");
        }
        for (text, want) in [
            ("/go/https://u:p@h/x", "/go/https://REDACTED:REDACTED@h/x"),
            ("/go/https%3A%2F%2Fu%3Ap%40h/x", "/go/REDACTED/x"),
            ("/go/https%3A//u%3Ap%40h/x", MASK),
            ("/users/alice%40example.com", "/users/alice%40example.com"),
        ] {
            assert_eq!(credentials_between(text, &['/']), want, "{text}");
        }
        assert_eq!(
            credentials_between("a=1&next=https%3A%2F%2Fu%3Ap%40h&b=2", &['&', '=']),
            "a=1&next=REDACTED&b=2"
        );
    }

    proptest! {
        /// What is passed over because it can hold no credentials holds none, and a host's name that is too short
        /// for a secret has none.
        #[test]
        fn passes_over_nothing(
            urls in "(://|[a-c:@/%;=&]|%40|%25|%3A|%2F|[ .]){0,40}",
            name in "[a-f0-9.:@%-]{0,16}",
            any in "\\PC{0,40}",
        ) {
            for text in [urls, name, any] {
                prop_assert_eq!(credentials(&text), masked_credentials(&text), "{}", text);
                let separators = ['/', ';', '='];
                let between = credentials_between(&text, &separators);
                prop_assert_eq!(between, masked_between(&text, &separators), "{}", text);
                let numbers = cards(&text);
                prop_assert_eq!(host(&text), labels(&numbers), "{}", text);
            }
        }

        /// Any text is masked, and masking again changes nothing.
        #[test]
        fn holds_for_anything(text in "\\PC{0,80}", urls in "(://|[a-c:@/%]|%40|%25|%3A|%2F|[ .]){0,40}") {
            for text in [text, urls] {
                for mask in [words, host, credentials] {
                    let masked = mask(&text);
                    prop_assert_eq!(&mask(&masked), &masked, "{}", text);
                }
                prop_assert!(whole_words(&text, 20).len() <= 20);
            }
        }

        /// A secret never comes out of a text that it stands in as a word.
        #[test]
        fn hides_secrets_anywhere(
            before in "([a-zA-Z]{0,8}[/ ;,(=]){0,4}",
            after in "([ ;,)=][a-zA-Z]{0,8}){0,4}",
            secret in prop_oneof![
                Just("alice@example.com"), Just("4111111111111111"), Just("4111 1111 1111 1111"),
                Just("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.dozjgNryP4J3jVmN"),
                Just("pLaNt3dT0k3nQx7vB2mZ9sK4wR8yH1jF"),
            ],
        ) {
            let text = format!("{before}{secret}{after}");
            prop_assert!(!words(&text).contains(secret), "{}", text);
        }
    }
}
