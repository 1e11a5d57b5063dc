//! Templates of routes, as frameworks declare them and as a configuration names them.
//!
//! A template is matched as its framework would match it: Starlette's and FastAPI's `{name:int}`,
//! Werkzeug's and Django's `<int:name>`, Django's regular expressions. Matching takes bounded time,
//! whatever the template and the path.

use std::borrow::Cow;

use regex::{Regex, RegexBuilder};

/// The most pieces of a template. One with more is refused.
const PIECES_MAX: usize = 64;

/// The longest template, in bytes.
const TEXT_MAX: usize = 512;

/// The most attempts at a template with several parameters in one segment.
const STEPS_MAX: u32 = 4096;

/// The largest compiled regular expression, in bytes.
const REGEX_MAX: usize = 64 << 10;

/// Methods that a route answers; without any, it answers all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Methods(u16);

impl Methods {
    /// All methods.
    pub const ALL: Self = Self(0);

    /// These as well.
    #[must_use]
    pub fn with(self, method: &str) -> Self {
        Self(self.0 | bit(method))
    }

    /// Whether the method is among them.
    pub fn contain(self, method: &str) -> bool {
        self.0 == 0 || self.0 & bit(method) != 0
    }
}

fn bit(method: &str) -> u16 {
    const KNOWN: &[&str] = &[
        "GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "CONNECT", "QUERY",
    ];
    let at = KNOWN
        .iter()
        .position(|known| known.eq_ignore_ascii_case(method));
    1 << at.unwrap_or(KNOWN.len())
}

/// What a parameter takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Anything up to the next slash.
    Segment,
    /// Digits.
    Int,
    /// A decimal number.
    Float,
    /// A UUID.
    Uuid,
    /// Letters, digits, `-` and `_`.
    Slug,
    /// Anything, slashes too.
    Path {
        /// Nothing as well.
        empty: bool,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Literal(Box<str>),
    Parameter(Kind),
    /// A regular expression, as Django's `re_path` has it.
    Regex(Box<str>),
}

/// Puts a template together, prefix by prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Builder {
    text: String,
    pieces: Vec<Piece>,
}

impl Builder {
    /// A text that stands for itself.
    pub fn literal(&mut self, text: &str) {
        self.text.push_str(text);
        self.push_literal(text);
    }

    /// A text of Starlette's kind: `/users/{user_id}/{rest:path}`.
    pub fn braces(&mut self, text: &str) {
        self.text.push_str(text);
        let mut rest = text;
        while let Some((before, behind)) = rest.split_once('{') {
            let Some((parameter, after)) = behind.split_once('}') else {
                break;
            };
            self.push_literal(before);
            let convertor = parameter.split_once(':').map_or("str", |(_, kind)| kind);
            self.pieces.push(Piece::Parameter(match convertor {
                "int" => Kind::Int,
                "float" => Kind::Float,
                "uuid" => Kind::Uuid,
                "path" => Kind::Path { empty: true },
                _ => Kind::Segment,
            }));
            rest = after;
        }
        self.push_literal(rest);
    }

    /// A text of Werkzeug's and Django's kind: `/users/<int:user_id>/<path:rest>`.
    pub fn angles(&mut self, text: &str) {
        self.text.push_str(text);
        let mut rest = text;
        while let Some((before, behind)) = rest.split_once('<') {
            let Some((parameter, after)) = behind.split_once('>') else {
                break;
            };
            self.push_literal(before);
            let converter = parameter.rsplit_once(':').map_or("str", |(kind, _)| kind);
            let name = converter.split('(').next().unwrap_or_default();
            self.pieces.push(Piece::Parameter(match name.trim() {
                "int" => Kind::Int,
                "float" => Kind::Float,
                "uuid" => Kind::Uuid,
                "slug" => Kind::Slug,
                "path" => Kind::Path { empty: false },
                _ => Kind::Segment,
            }));
            rest = after;
        }
        self.push_literal(rest);
    }

    /// A regular expression of Django's; it is shown as Django's own `simplify_regex` shows it.
    pub fn regex(&mut self, pattern: &str) {
        self.text.push_str(&simplified(pattern));
        self.pieces.push(Piece::Regex(pattern.into()));
    }

    /// The text so far.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The template; `None` where it is too long, or its regular expression is none here.
    pub fn build(&self, methods: Methods) -> Option<Template> {
        if self.pieces.len() > PIECES_MAX || self.text.len() > TEXT_MAX {
            return None;
        }
        let has_regex = self.pieces.iter().any(|p| matches!(p, Piece::Regex(_)));
        Some(Template {
            text: self.text.as_str().into(),
            matcher: match has_regex {
                true => Matcher::Regex(self.compile()?),
                false => Matcher::Pieces(self.pieces.as_slice().into()),
            },
            methods,
        })
    }

    fn push_literal(&mut self, text: &str) {
        if !text.is_empty() {
            self.pieces.push(Piece::Literal(text.into()));
        }
    }

    fn compile(&self) -> Option<Regex> {
        let mut pattern = String::from(r"\A");
        let last = self.pieces.len() - 1;
        for (at, piece) in self.pieces.iter().enumerate() {
            match piece {
                Piece::Literal(text) => pattern.push_str(&regex::escape(text)),
                Piece::Parameter(kind) => pattern.push_str(kind.pattern()),
                Piece::Regex(text) => {
                    // Django searches; what is not tied to the beginning may stand further on.
                    let tied = text.strip_prefix('^').or_else(|| text.strip_prefix(r"\A"));
                    if tied.is_none() {
                        pattern.push_str(".*?");
                    }
                    pattern.push_str("(?:");
                    pattern.push_str(&tied.unwrap_or(text).replace(r"\Z", r"\z"));
                    pattern.push(')');
                    if at == last {
                        pattern.push_str(".*");
                    }
                }
            }
        }
        pattern.push_str(r"\z");
        RegexBuilder::new(&pattern)
            .size_limit(REGEX_MAX)
            .dfa_size_limit(REGEX_MAX)
            .build()
            .ok()
    }
}

impl Kind {
    const fn pattern(self) -> &'static str {
        match self {
            Self::Segment => "[^/]+",
            Self::Int => "[0-9]+",
            Self::Float => r"[0-9]+(?:\.[0-9]+)?",
            Self::Uuid => "[0-9a-fA-F]{8}-?(?:[0-9a-fA-F]{4}-?){3}[0-9a-fA-F]{12}",
            Self::Slug => "[-a-zA-Z0-9_]+",
            Self::Path { empty: true } => ".*",
            Self::Path { empty: false } => "[^/].*",
        }
    }

    /// The most bytes of the front of a text that such a parameter takes.
    fn extent(self, text: &str) -> usize {
        let while_all = |test: fn(u8) -> bool| {
            let end = text.bytes().position(|byte| !test(byte));
            end.unwrap_or(text.len())
        };
        match self {
            Self::Segment => memchr::memchr(b'/', text.as_bytes()).unwrap_or(text.len()),
            Self::Int => while_all(|b| b.is_ascii_digit()),
            Self::Float => while_all(|b| b.is_ascii_digit() || b == b'.'),
            Self::Uuid => while_all(|b| b.is_ascii_hexdigit() || b == b'-'),
            Self::Slug => while_all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'),
            Self::Path { empty: false } if text.starts_with('/') => 0,
            Self::Path { .. } => text.len(),
        }
    }

    /// Whether a text within the extent is one.
    fn takes(self, text: &str) -> bool {
        match self {
            Self::Float => text
                .split_once('.')
                .is_none_or(|(_, behind)| !behind.is_empty() && !behind.contains('.')),
            Self::Uuid => text.len() == 32 && !text.contains('-') || text.len() == 36,
            Self::Path { empty: true } => true,
            _ => !text.is_empty(),
        }
    }
}

/// A route as it was declared.
#[derive(Clone, Debug)]
pub struct Template {
    text: Box<str>,
    matcher: Matcher,
    methods: Methods,
}

#[derive(Clone, Debug)]
enum Matcher {
    Pieces(Box<[Piece]>),
    Regex(Regex),
}

impl Template {
    /// A template of Starlette's kind for all methods; `None` where it is too long.
    pub fn new(text: &str) -> Option<Self> {
        let mut builder = Builder::default();
        builder.braces(text);
        builder.build(Methods::ALL)
    }

    /// The text as it was declared, prefixes included.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The methods that it answers.
    pub fn methods(&self) -> Methods {
        self.methods
    }

    /// Whether a path, decoded, is one of the route's.
    pub fn matches(&self, path: &str) -> bool {
        match &self.matcher {
            Matcher::Pieces(pieces) => matches(pieces, path, &mut { STEPS_MAX }),
            Matcher::Regex(regex) => regex.is_match(path),
        }
    }

    /// Whether every path is the route's: nothing of it is literal.
    pub fn is_catch_all(&self) -> bool {
        let Matcher::Pieces(pieces) = &self.matcher else {
            return false;
        };
        pieces.iter().all(|piece| match piece {
            Piece::Literal(text) => **text == *"/",
            Piece::Parameter(_) => true,
            Piece::Regex(_) => false,
        }) && pieces
            .iter()
            .any(|piece| matches!(piece, Piece::Parameter(_)))
    }
}

fn matches(pieces: &[Piece], text: &str, steps: &mut u32) -> bool {
    let Some((piece, rest)) = pieces.split_first() else {
        return text.is_empty();
    };
    match piece {
        Piece::Literal(literal) => text
            .strip_prefix(&**literal)
            .is_some_and(|text| matches(rest, text, steps)),
        Piece::Parameter(kind) => {
            let most = kind.extent(text);
            for end in (0..=most).rev() {
                if *steps == 0 {
                    return false;
                }
                *steps -= 1;
                if text.is_char_boundary(end)
                    && kind.takes(&text[..end])
                    && matches(rest, &text[end..], steps)
                {
                    return true;
                }
            }
            false
        }
        Piece::Regex(_) => false,
    }
}

/// A path as frameworks match it: percent-encoding undone.
pub fn decoded(path: &str) -> Cow<'_, str> {
    if memchr::memchr(b'%', path.as_bytes()).is_none() {
        return Cow::Borrowed(path);
    }
    let hex = |byte: Option<&u8>| byte.and_then(|b| char::from(*b).to_digit(16));
    let bytes = path.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        match (byte, hex(bytes.get(at + 1)), hex(bytes.get(at + 2))) {
            (b'%', Some(high), Some(low)) => {
                out.push((high << 4 | low) as u8);
                at += 3;
            }
            _ => {
                out.push(byte);
                at += 1;
            }
        }
    }
    Cow::Owned(String::from_utf8_lossy(&out).into_owned())
}

/// A regular expression as Django shows it: named groups `<name>`, others `<var>`, without what ties
/// and repeats.
fn simplified(pattern: &str) -> String {
    let mut out = String::new();
    let mut rest = pattern;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        match c {
            '(' => {
                let end = closing(rest);
                let group = &rest[..end];
                rest = rest.get(end + 1..).unwrap_or_default();
                if let Some(group) = group.strip_prefix("?P<") {
                    let name = group.split('>').next().unwrap_or_default();
                    out.push('<');
                    out.push_str(name);
                    out.push('>');
                } else if let Some(group) = group.strip_prefix("?:") {
                    out.push_str(&simplified(group));
                } else if !group.starts_with('?') {
                    out.push_str("<var>");
                }
            }
            '\\' => {
                let Some(escaped) = rest.chars().next() else {
                    break;
                };
                rest = &rest[escaped.len_utf8()..];
                if !matches!(escaped, 'A' | 'Z' | 'b' | 'B') {
                    out.push(escaped);
                }
            }
            '^' | '$' | '?' => {}
            c => out.push(c),
        }
    }
    out
}

/// Where the group that begins in front of a text is closed; the text's end where it is not.
fn closing(text: &str) -> usize {
    let mut depth = 0usize;
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '(' => depth += 1,
            ')' if depth == 0 => return at,
            ')' => depth -= 1,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use proptest::prelude::*;

    use super::*;

    fn of(build: impl FnOnce(&mut Builder)) -> Template {
        let mut builder = Builder::default();
        build(&mut builder);
        builder.build(Methods::ALL).unwrap()
    }

    /// Starlette's convertors take what Starlette's take.
    #[test]
    fn matches_as_starlette() {
        for (template, path, want) in [
            ("/", "/", true),
            ("/a", "/a/", false),
            ("/u/{id}", "/u/x", true),
            ("/u/{id}", "/u/", false),
            ("/u/{id}", "/u/x/y", false),
            ("/u/{id:int}", "/u/42", true),
            ("/u/{id:int}", "/u/x", false),
            ("/u/{x:float}", "/u/1.5", true),
            ("/u/{x:float}", "/u/1.5.2", false),
            (
                "/u/{x:uuid}",
                "/u/6f1c9e0a-3f6b-4f0e-9a3e-0c3a3f2b1d4e",
                true,
            ),
            ("/u/{x:uuid}", "/u/6f1c", false),
            ("/f/{p:path}", "/f/a/b", true),
            ("/f/{p:path}", "/f/", true),
            ("/f/{p:path}/edit", "/f/a/b/edit", true),
            ("/{a}-{b}.json", "/x-y-z.json", true),
            ("/{a}-{b}.json", "/x.json", false),
        ] {
            let template = Template::new(template).unwrap();
            assert_eq!(template.matches(path), want, "{template:?} {path}");
        }
    }

    /// Werkzeug's and Django's converters take what theirs take.
    #[test]
    fn matches_as_werkzeug() {
        for (template, path, want) in [
            ("/u/<name>", "/u/x", true),
            ("/u/<int:id>", "/u/7", true),
            ("/u/<int:id>", "/u/x", false),
            ("/u/<string(length=2):lang>", "/u/de", true),
            ("/f/<path:p>", "/f/a/b", true),
            ("/f/<path:p>", "/f//b", false),
            ("/f/<path:p>", "/f/", false),
            ("/s/<slug:s>/", "/s/a-b_c/", true),
            ("/s/<slug:s>/", "/s/a.b/", false),
        ] {
            let template = of(|b| b.angles(template));
            assert_eq!(template.matches(path), want, "{template:?} {path}");
        }
    }

    /// Django's regular expressions match as Django matches them, and read as Django shows them.
    #[test]
    fn matches_as_django() {
        let archive = of(|b| {
            b.literal("/");
            b.angles("blog/<slug:who>/");
            b.regex(r"^articles/(?P<year>[0-9]{4})/(?:page-(\d+)/)?$");
        });
        assert_eq!(
            archive.text(),
            "/blog/<slug:who>/articles/<year>/page-<var>/"
        );
        assert!(archive.matches("/blog/me/articles/2024/"));
        assert!(archive.matches("/blog/me/articles/2024/page-2/"));
        assert!(!archive.matches("/blog/me/articles/24/"));
        assert!(!archive.matches("/blog/me/articles/2024/x"));
        let open = of(|b| b.regex("^/legacy"));
        assert!(open.matches("/legacy/anything"));
        let mut broken = Builder::default();
        broken.regex("(?=x)y");
        assert!(broken.build(Methods::ALL).is_none());
    }

    /// Methods are told apart; without any, all are answered.
    #[test]
    fn tells_methods() {
        let methods = Methods::default().with("get").with("PROPFIND");
        assert!(methods.contain("GET") && methods.contain("REPORT"));
        assert!(!methods.contain("POST"));
        assert!(Methods::ALL.contain("POST"));
    }

    /// Percent-encoding is undone, and what is none is left.
    #[test]
    fn decodes() {
        assert_eq!(decoded("/a%20b/%C3%A9/%zz%"), "/a b/é/%zz%");
        assert!(matches!(decoded("/a"), Cow::Borrowed(_)));
    }

    /// A template with nothing literal in it is told.
    #[test]
    fn tells_catch_alls() {
        for (text, want) in [
            ("/{p:path}", true),
            ("/{a}/{b}", true),
            ("/", false),
            ("/a/{b}", false),
        ] {
            assert_eq!(Template::new(text).unwrap().is_catch_all(), want, "{text}");
        }
    }

    proptest! {
        /// Nothing that a service declares or a client asks for makes matching panic or take long.
        #[test]
        fn survives_anything(text in "(\\{[a-z:]{0,5}\\}?|<[a-z:]{0,5}>?|\\PC){0,30}", path in "\\PC{0,200}") {
            let _ = decoded(&path);
            let _ = simplified(&text);
            for build in [Builder::braces, Builder::angles, Builder::regex] {
                let mut builder = Builder::default();
                build(&mut builder, &text);
                if let Some(template) = builder.build(Methods::ALL) {
                    let _ = template.matches(&path);
                }
            }
        }

        /// A parameter takes any segment, and a template its own literal text.
        #[test]
        fn takes_segments(segment in "[^/{}<>]{1,20}") {
            let fits = Template::new("/a/{x}/b").unwrap().matches(&format!("/a/{segment}/b"));
            prop_assert!(fits);
            let itself = format!("/{segment}");
            prop_assert!(Template::new(&itself).unwrap().matches(&itself));
        }
    }
}
