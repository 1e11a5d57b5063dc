//! Command lines without their secrets.

/// What stands in place of a secret.
const MASK: &str = "REDACTED";
/// What stands in place of a program given on the command line, which may hold anything.
const CODE: &str = "<code>";
/// The most arguments kept.
const ARGUMENTS_MAX: usize = 64;
/// The most bytes kept of an argument.
const ARGUMENT_MAX: usize = 512;

/// Parts of names whose values are secret.
const SECRET_NAMES: &[&str] = &[
    "accesskey",
    "apikey",
    "auth",
    "cert",
    "cookie",
    "credential",
    "dsn",
    "jwt",
    "key",
    "passphrase",
    "passwd",
    "password",
    "pwd",
    "salt",
    "secret",
    "session",
    "signature",
    "token",
];
/// Words around which such a part means nothing secret.
const HARMLESS_NAMES: &[&str] = &["keyfile", "certfile", "certs", "certreqs", "keyboard"];

/// How well-known tokens begin.
const TOKEN_PREFIXES: &[&str] = &[
    "AKIA",
    "ASIA",
    "eyJ",
    "ghp_",
    "gho_",
    "ghs_",
    "github_pat_",
    "glpat-",
    "npm_",
    "pypi-",
    "sk-",
    "sk_live_",
    "xoxa-",
    "xoxb-",
    "xoxp-",
];

/// Masks what may be secret in a command line: the values of options, variables and query parameters
/// whose names speak of secrets, credentials in URLs, authorisation headers, well-known kinds of
/// tokens, and Python code. Long lines are cut off.
pub(super) fn arguments(cmdline: &[String]) -> Vec<String> {
    let mut masked = Vec::with_capacity(cmdline.len().min(ARGUMENTS_MAX));
    let mut secret_follows = false;
    let mut code_follows = false;
    let mut program_seen = false;
    for (index, argument) in cmdline.iter().enumerate().take(ARGUMENTS_MAX) {
        let is_option = argument.starts_with('-');
        masked.push(if code_follows {
            CODE.to_owned()
        } else if secret_follows && !argument.starts_with("--") {
            MASK.to_owned()
        } else {
            cut(&text(argument))
        });
        // `-c CODE` is the interpreter's only before the program's name.
        code_follows = !program_seen && index > 0 && is_code_option(argument);
        program_seen |= code_follows || index > 0 && !is_option;
        if !program_seen && argument.starts_with("-m") {
            program_seen = true;
        }
        secret_follows = is_option && !argument.contains('=') && is_secret_name(argument);
    }
    if cmdline.len() > ARGUMENTS_MAX {
        masked.push(format!("<{} more>", cmdline.len() - ARGUMENTS_MAX));
    }
    masked
}

/// Masks what may be secret in one argument.
fn text(argument: &str) -> String {
    if TOKEN_PREFIXES
        .iter()
        .any(|prefix| argument.starts_with(prefix))
    {
        return MASK.to_owned();
    }
    // `--name=value`, `NAME=value`
    if let Some((name, value)) = argument.split_once('=')
        && is_name(name)
    {
        let value = if is_secret_name(name) {
            MASK.to_owned()
        } else {
            text(value)
        };
        return format!("{name}={value}");
    }
    // `Authorization: Bearer …`
    if let Some((name, _)) = argument.split_once(':')
        && is_name(name)
        && is_secret_name(name)
    {
        return format!("{name}:{MASK}");
    }
    for scheme in ["Bearer ", "Basic ", "bearer ", "basic "] {
        if let Some((front, _)) = argument.split_once(scheme) {
            return format!("{front}{scheme}{MASK}");
        }
    }
    query(&credentials(argument))
}

/// Masks the credentials of every URL in the text: `scheme://user:password@host`.
fn credentials(text: &str) -> String {
    let mut masked = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((front, behind)) = rest.split_once("://") {
        masked.push_str(front);
        masked.push_str("://");
        // A password may contain `@`, but neither part may contain what ends an authority.
        let end = behind
            .find(['/', '?', '#', ' ', '"', '\'', ','])
            .unwrap_or(behind.len());
        let (authority, after) = behind.split_at(end);
        match authority.rsplit_once('@') {
            Some((_, host)) => {
                masked.push_str(MASK);
                masked.push('@');
                masked.push_str(host);
                rest = after;
            }
            // A password with a slash in it is not valid in a URL, but seen: better too much masked.
            None => match behind.split([' ', '"', '\'']).next() {
                Some(word) if word.contains('@') && authority.contains(':') => {
                    masked.push_str(MASK);
                    rest = &behind[word.len()..];
                }
                _ => {
                    masked.push_str(authority);
                    rest = after;
                }
            },
        }
    }
    masked.push_str(rest);
    masked
}

/// Masks the values of query parameters whose names speak of secrets.
fn query(text: &str) -> String {
    let Some((front, parameters)) = text.split_once('?') else {
        return text.to_owned();
    };
    let parameters: Vec<String> = parameters
        .split('&')
        .map(|parameter| match parameter.split_once('=') {
            Some((name, _)) if is_secret_name(name) => format!("{name}={MASK}"),
            _ => parameter.to_owned(),
        })
        .collect();
    format!("{front}?{}", parameters.join("&"))
}

fn is_code_option(argument: &str) -> bool {
    argument
        .strip_prefix('-')
        .is_some_and(|letters| !letters.starts_with('-') && letters.ends_with('c'))
}

/// Whether the text can be an option's or a variable's name.
fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// Whether the value of this name should not be seen.
fn is_secret_name(name: &str) -> bool {
    let mut plain: String = name
        .chars()
        .filter(|c| c.is_ascii_alphanumeric())
        .map(|c| c.to_ascii_lowercase())
        .collect();
    for harmless in HARMLESS_NAMES {
        plain = plain.replace(harmless, "");
    }
    SECRET_NAMES.iter().any(|secret| plain.contains(secret))
}

fn cut(text: &str) -> String {
    if text.len() <= ARGUMENT_MAX {
        return text.to_owned();
    }
    let mut end = ARGUMENT_MAX;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn masked(line: &str) -> String {
        let cmdline: Vec<String> = line.split('|').map(str::to_owned).collect();
        arguments(&cmdline).join("|")
    }

    /// Secrets go, wherever command lines hold them; what is none stays readable.
    #[test]
    fn masks_secrets() {
        for (line, expected) in [
            (
                "app|--password|hunter2|--port|80",
                "app|--password|REDACTED|--port|80",
            ),
            ("app|--db-password=hunter2", "app|--db-password=REDACTED"),
            ("app|--api-key|-x1", "app|--api-key|REDACTED"),
            ("app|--token|--verbose", "app|--token|--verbose"),
            (
                "env|SECRET_KEY=abc|PORT=80",
                "env|SECRET_KEY=REDACTED|PORT=80",
            ),
            ("app|--dsn=postgres://u:p@db/x", "app|--dsn=REDACTED"),
            (
                "app|postgres://u:p@db:5432/shop?sslmode=off",
                "app|postgres://REDACTED@db:5432/shop?sslmode=off",
            ),
            ("app|--url=redis://:p@h/0", "app|--url=redis://REDACTED@h/0"),
            (
                "app|http://h/?a=1&api_key=2&b=3",
                "app|http://h/?a=1&api_key=REDACTED&b=3",
            ),
            ("app|mysql://u:p@ss@db/x", "app|mysql://REDACTED@db/x"),
            ("app|mysql://u:p/ss@db/x", "app|mysql://REDACTED"),
            ("app|http://h/user@example", "app|http://h/user@example"),
            (
                "app|-H|Authorization: Bearer abc",
                "app|-H|Authorization:REDACTED",
            ),
            ("app|X-Thing: Bearer abc", "app|X-Thing: Bearer REDACTED"),
            ("app|ghp_abcdef", "app|REDACTED"),
            ("app|--flag=eyJhbGciOi", "app|--flag=REDACTED"),
            ("python|-c|print('x')|--port", "python|-c|<code>|--port"),
            ("python|-uc|print('x')", "python|-uc|<code>"),
            (
                "python|-m|gunicorn|-c|conf.py",
                "python|-m|gunicorn|-c|conf.py",
            ),
            ("python|gunicorn|-c|conf.py", "python|gunicorn|-c|conf.py"),
            (
                "python|-m|uvicorn|shop.main:app|--ssl-keyfile|/etc/k.pem",
                "python|-m|uvicorn|shop.main:app|--ssl-keyfile|/etc/k.pem",
            ),
            (
                "python|-m|uvicorn|--timeout-keep-alive|5",
                "python|-m|uvicorn|--timeout-keep-alive|5",
            ),
        ] {
            assert_eq!(masked(line), expected, "{line}");
        }
    }

    /// Long lines are cut off, between characters.
    #[test]
    fn cuts_long_lines() {
        let mut cmdline = vec!["é".repeat(ARGUMENT_MAX)];
        cmdline.resize(ARGUMENTS_MAX + 5, "x".to_owned());
        let masked = arguments(&cmdline);
        assert_eq!(masked.len(), ARGUMENTS_MAX + 1);
        assert_eq!(masked[ARGUMENTS_MAX], "<5 more>");
        assert_eq!(masked[0], format!("{}…", "é".repeat(ARGUMENT_MAX / 2)));
    }

    proptest! {
        /// A secret value never survives, whatever stands around it.
        #[test]
        fn no_secret_survives(
            before in proptest::collection::vec("[a-z=-]{1,8}", 0..3),
            option in "--(db-)?(password|token|secret|api-key)",
            value in "[A-Z0-9]{12,20}",
            form in 0..4,
        ) {
            let mut cmdline = vec!["app".to_owned()];
            cmdline.extend(before);
            match form {
                0 => cmdline.extend([option, value.clone()]),
                1 => cmdline.push(format!("{option}={value}")),
                2 => cmdline.push(format!("pg://user:{value}@host/db")),
                _ => cmdline.push(format!("http://host/?x=1&token={value}")),
            }
            let masked = arguments(&cmdline).join(" ");
            prop_assert!(!masked.contains(&value), "{}", masked);
        }

        /// No command line makes it panic.
        #[test]
        fn survives_any_arguments(cmdline in proptest::collection::vec("\\PC{0,40}", 0..6)) {
            let _ = arguments(&cmdline);
        }
    }
}
