//! Python source as logical lines of tokens.
//!
//! Only as much is told apart as reading routes takes: names, texts, brackets and the rest. It never
//! fails: what is not Python comes out as tokens that mean nothing. Time is linear in the text.

/// The most tokens of a logical line that are kept; what follows on that line is skipped.
const TOKENS_MAX: usize = 65_536;

/// How deep f-strings may lie in each other.
const DEPTH_MAX: u32 = 8;

/// A piece of a logical line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token<'a> {
    /// A name or a keyword.
    Name(&'a str),
    /// A text.
    Text(Text<'a>),
    /// One character of an operator or a bracket; `**` and `==` are two each.
    Op(u8),
    /// A number, or anything else.
    Other,
}

/// A text as it stands in the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Text<'a> {
    /// What stands between the quotes.
    pub(super) body: &'a str,
    /// `r"…"`
    pub(super) raw: bool,
    /// `f"…"` or `t"…"`
    pub(super) formatted: bool,
    /// `b"…"`
    pub(super) bytes: bool,
}

/// Reads logical lines.
#[derive(Debug)]
pub(super) struct Lines<'a> {
    source: &'a str,
    at: usize,
    /// How far the line is indented that the next statement shares.
    shared: Option<usize>,
}

impl<'a> Lines<'a> {
    pub(super) fn new(source: &'a str) -> Self {
        Self {
            source: source.strip_prefix('\u{feff}').unwrap_or(source),
            at: 0,
            shared: None,
        }
    }

    /// The next logical line that holds anything, and how far it is indented; `None` at the end.
    pub(super) fn next_into(&mut self, line: &mut Vec<Token<'a>>) -> Option<usize> {
        line.clear();
        let mut indent = self.shared.unwrap_or(0);
        let mut fresh = self.shared.take().is_none();
        let mut depth = 0usize;
        loop {
            let Some(byte) = self.byte(0) else {
                return (!line.is_empty()).then_some(indent);
            };
            match byte {
                b'\n' | b'\r' => {
                    self.at += 1;
                    if depth == 0 {
                        if !line.is_empty() {
                            return Some(indent);
                        }
                        (indent, fresh) = (0, true);
                    }
                    continue;
                }
                b' ' | b'\t' | 0x0c => {
                    if fresh {
                        indent = match byte {
                            b'\t' => (indent / 8 + 1) * 8,
                            b' ' => indent + 1,
                            _ => 0,
                        };
                    }
                    self.at += 1;
                    continue;
                }
                b'#' => {
                    self.at = self.line_end(self.at);
                    continue;
                }
                // The line goes on behind its end.
                b'\\' => {
                    self.at += 1;
                    if self.byte(0) == Some(b'\r') {
                        self.at += 1;
                    }
                    if self.byte(0) == Some(b'\n') {
                        self.at += 1;
                    }
                    continue;
                }
                // Statements that share a line are lines.
                b';' if depth == 0 => {
                    self.at += 1;
                    if !line.is_empty() {
                        self.shared = Some(indent);
                        return Some(indent);
                    }
                    continue;
                }
                _ => fresh = false,
            }
            let token = self.token(byte);
            if let Token::Op(op) = token {
                match op {
                    b'(' | b'[' | b'{' => depth += 1,
                    b')' | b']' | b'}' => depth = depth.saturating_sub(1),
                    _ => {}
                }
            }
            if line.len() < TOKENS_MAX {
                line.push(token);
            }
        }
    }

    fn byte(&self, ahead: usize) -> Option<u8> {
        self.source.as_bytes().get(self.at + ahead).copied()
    }

    fn line_end(&self, from: usize) -> usize {
        let rest = &self.source.as_bytes()[from..];
        memchr::memchr2(b'\n', b'\r', rest).map_or(self.source.len(), |at| from + at)
    }

    fn token(&mut self, byte: u8) -> Token<'a> {
        let start = self.at;
        if is_name_start(byte) {
            while self.byte(0).is_some_and(is_name_part) {
                self.at += 1;
            }
            let name = &self.source[start..self.at];
            if let Some(b'"' | b'\'') = self.byte(0)
                && let Some(text) = prefixed(name)
            {
                return Token::Text(self.text(text));
            }
            return Token::Name(name);
        }
        match byte {
            b'"' | b'\'' => Token::Text(self.text(Text::PLAIN)),
            b'0'..=b'9' => {
                while self.byte(0).is_some_and(|b| is_name_part(b) || b == b'.') {
                    self.at += 1;
                }
                Token::Other
            }
            _ => {
                self.at += 1;
                Token::Op(byte)
            }
        }
    }

    /// Reads the text whose first quote comes next.
    fn text(&mut self, kind: Text<'a>) -> Text<'a> {
        let (body, end) = text_end(self.source, self.at, kind.formatted, 0);
        let start = self.at + if self.is_triple() { 3 } else { 1 };
        self.at = end;
        Text {
            body: self.source.get(start..body).unwrap_or_default(),
            ..kind
        }
    }

    fn is_triple(&self) -> bool {
        let quote = self.byte(0);
        self.byte(1) == quote && self.byte(2) == quote
    }
}

impl Text<'_> {
    const PLAIN: Self = Self {
        body: "",
        raw: false,
        formatted: false,
        bytes: false,
    };
}

/// The kind of text that a prefix announces.
fn prefixed<'a>(name: &str) -> Option<Text<'a>> {
    if name.len() > 2 {
        return None;
    }
    let mut text = Text::PLAIN;
    for letter in name.bytes() {
        match letter.to_ascii_lowercase() {
            b'r' => text.raw = true,
            b'b' => text.bytes = true,
            b'f' | b't' => text.formatted = true,
            b'u' => {}
            _ => return None,
        }
    }
    Some(text)
}

fn is_name_start(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

fn is_name_part(byte: u8) -> bool {
    is_name_start(byte) || byte.is_ascii_digit()
}

/// Where the body of the text that begins with the quote at `at` ends, and where what follows begins.
/// A text that is not closed ends with its line, or with the source where it is triple-quoted.
fn text_end(source: &str, at: usize, formatted: bool, depth: u32) -> (usize, usize) {
    let bytes = source.as_bytes();
    let quote = bytes[at];
    let triple = bytes.get(at + 1) == Some(&quote) && bytes.get(at + 2) == Some(&quote);
    let width = if triple { 3 } else { 1 };
    let closes = |at: usize| {
        bytes.get(at) == Some(&quote)
            && (!triple || bytes.get(at + 1) == Some(&quote) && bytes.get(at + 2) == Some(&quote))
    };
    let mut at = at + width;
    // Brackets open in a replacement field.
    let mut fields = 0usize;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'\\' => {
                at += 2;
                continue;
            }
            b'\n' if !triple && fields == 0 => return (at, at),
            b'{' if formatted && fields == 0 && bytes.get(at + 1) == Some(&b'{') => {
                at += 2;
                continue;
            }
            b'{' if formatted => fields += 1,
            b'}' if fields > 0 => fields -= 1,
            // Since Python 3.12 a field may hold the very quotes that enclose it; before, they end it.
            b'"' | b'\'' if fields > 0 && depth < DEPTH_MAX => {
                if let Some(end) = nested(source, at, depth) {
                    at = end;
                    continue;
                }
                if closes(at) {
                    return (at, at + width);
                }
            }
            _ if closes(at) => return (at, at + width),
            _ => {}
        }
        at += 1;
    }
    (source.len(), source.len())
}

/// Where what follows a text within a field begins; `None` where it is not closed on its line.
fn nested(source: &str, at: usize, depth: u32) -> Option<usize> {
    let bytes = source.as_bytes();
    let before = |back: usize| {
        at.checked_sub(back)
            .map(|at| bytes[at].to_ascii_lowercase())
    };
    let formatted = [1, 2].into_iter().any(|back| before(back) == Some(b'f'));
    let (body, end) = text_end(source, at, formatted, depth + 1);
    (end > body && !bytes[at..end].contains(&b'\n')).then_some(end)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines(source: &str) -> Vec<(usize, String)> {
        let mut reader = Lines::new(source);
        let (mut line, mut all) = (Vec::new(), Vec::new());
        while let Some(indent) = reader.next_into(&mut line) {
            let text = line.iter().map(|token| match token {
                Token::Name(name) => (*name).to_owned(),
                Token::Text(text) => format!("'{}'", text.body),
                Token::Op(op) => char::from(*op).to_string(),
                Token::Other => "0".to_owned(),
            });
            all.push((indent, text.collect::<Vec<_>>().join(" ")));
        }
        all
    }

    /// Logical lines are told as Python tells them: brackets, backslashes and texts of several lines
    /// hold them together, semicolons part them, comments and empty lines are none.
    #[test]
    fn reads_logical_lines() {
        let source = "\u{feff}import a  # b\n\n@app.get(\n  '/x',  # c\n  name=\"y\"\n)\n\
            def f():\n\t'''doc\n@no.get('/z')\n'''\n    a = 1 + \\\n 2; b = 3\r\n";
        let want = [
            (0, "import a"),
            (0, "@ app . get ( '/x' , name = 'y' )"),
            (0, "def f ( ) :"),
            (8, "'doc\n@no.get('/z')\n'"),
            (4, "a = 0 + 0"),
            (4, "b = 0"),
        ];
        let want = want.map(|(indent, text)| (indent, text.to_owned()));
        assert_eq!(lines(source), want);
    }

    /// Texts end where they end: escapes, prefixes, and fields of f-strings with quotes in them, old
    /// and new.
    #[test]
    fn reads_texts() {
        for (source, want) in [
            (r#"'a\'b' c"#, r#"'a\'b' c"#),
            (r#"rb'a\'' b"#, r#"'a\'' b"#),
            (r#"f"{x['a']}/y" c"#, r#"'{x['a']}/y' c"#),
            (r#"f"{x["a"]}/y" c"#, r#"'{x["a"]}/y' c"#),
            (r#"f"{{a" c"#, r#"'{{a' c"#),
            ("'open\nb", "'open'"),
            ("\"\"\"open\nb", "'open\nb'"),
        ] {
            assert_eq!(lines(source)[0].1, want, "{source}");
        }
        assert_eq!(lines("x = u'a' 'b'")[0].1, "x = 'a' 'b'");
        assert_eq!(lines("'open\nb").len(), 2);
    }

    proptest! {
        /// Anything is read, to its end.
        #[test]
        fn survives_anything(source in "([a-z@ (){}\\[\\]'\"\\\\\n#fé:;]|\"\"\"|f'\\{){0,200}") {
            let _ = lines(&source);
        }
    }
}
