//! SQL without its literals: what is left says what was done, and nothing of whom it was done to.
//!
//! It works on tokens, not on a grammar, so that no dialect, broken text or text cut short gets past it:
//! strings, blobs and numbers become `?` wherever they stand, comments go. What stands in double quotes
//! is kept only where it must be a name, for SQLite takes it for a string where no such column is
//! (<https://sqlite.org/quirks.html>, §8). Lists of `IN` and rows of `VALUES` are folded into one.

use std::sync::Arc;

use rustc_hash::FxHashMap;
use smol_str::SmolStr;

/// The most texts whose sanitised forms are kept.
const CACHE_MAX: usize = 4096;

/// The longest name of a table, in bytes.
const NAME_MAX: usize = 128;

/// What can be said of a statement.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sanitised {
    /// The text without its literals and comments.
    pub text: SmolStr,
    /// What it does: its first keyword, or that of the statement behind `WITH`.
    pub operation: Option<&'static str>,
    /// The one table that it is about; `None` where there are several.
    pub collection: Option<SmolStr>,
}

/// Sanitised texts, by what they were made of.
#[derive(Debug, Default)]
pub(super) struct Cache(FxHashMap<Arc<str>, Arc<Sanitised>>);

impl Cache {
    pub(super) fn get(&mut self, sql: &Arc<str>) -> Arc<Sanitised> {
        if let Some(known) = self.0.get(sql) {
            return Arc::clone(known);
        }
        if self.0.len() >= CACHE_MAX {
            self.0.clear();
        }
        let made = Arc::new(sanitise(sql));
        self.0.insert(Arc::clone(sql), Arc::clone(&made));
        made
    }
}

/// The keywords that statements begin with.
const OPERATIONS: [&str; 24] = [
    "ALTER",
    "ANALYZE",
    "ATTACH",
    "BEGIN",
    "CALL",
    "COMMIT",
    "CREATE",
    "DELETE",
    "DETACH",
    "DROP",
    "END",
    "EXPLAIN",
    "INSERT",
    "PRAGMA",
    "REINDEX",
    "RELEASE",
    "REPLACE",
    "ROLLBACK",
    "SAVEPOINT",
    "SELECT",
    "TRUNCATE",
    "UPDATE",
    "VACUUM",
    "VALUES",
];

/// The keywords behind which a name stands, whatever its quotes.
const BEFORE_NAMES: [&str; 12] = [
    "AS",
    "COLUMN",
    "EXISTS",
    "FROM",
    "INDEX",
    "INTO",
    "JOIN",
    "REFERENCES",
    "TABLE",
    "TRIGGER",
    "UPDATE",
    "VIEW",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A keyword or a bare name.
    Word,
    /// A name in quotes that are for names alone.
    Name,
    /// A name, or a string: in double quotes.
    Doubtful,
    /// A string, a blob or a number.
    Literal,
    /// A parameter.
    Parameter,
    /// Anything else: one character, or `::`.
    Sign,
}

#[derive(Clone, Copy, Debug)]
struct Token<'a> {
    kind: Kind,
    text: &'a str,
    /// Whether something that is left out stood before it.
    spaced: bool,
}

impl Token<'_> {
    fn is(&self, keyword: &str) -> bool {
        self.kind == Kind::Word && self.text.eq_ignore_ascii_case(keyword)
    }

    fn is_sign(&self, sign: &str) -> bool {
        self.kind == Kind::Sign && self.text == sign
    }

    /// Whether it stands for a value that is not shown, or not there.
    const fn is_value(&self) -> bool {
        matches!(self.kind, Kind::Literal | Kind::Parameter)
    }
}

/// Takes a statement apart, and its literals out.
pub fn sanitise(sql: &str) -> Sanitised {
    let mut tokens: Vec<_> = Tokens { sql, at: 0 }.collect();
    decide_doubtful(&mut tokens);
    hide_keys(&mut tokens);
    let main = main_statement(&tokens);
    Sanitised {
        operation: main.and_then(|at| operation(&tokens[at])),
        collection: main
            .and_then(|at| collection(&tokens, at))
            .map(SmolStr::from),
        text: text(&tokens).into(),
    }
}

/// The tokens of a text.
struct Tokens<'a> {
    sql: &'a str,
    at: usize,
}

impl<'a> Iterator for Tokens<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        let begin = self.at;
        self.skip();
        let spaced = self.at > begin;
        let start = self.at;
        let kind = self.token()?;
        Some(Token {
            kind,
            text: &self.sql[start..self.at],
            spaced,
        })
    }
}

impl<'a> Tokens<'a> {
    fn rest(&self) -> &'a str {
        &self.sql[self.at..]
    }

    fn byte(&self, ahead: usize) -> u8 {
        self.sql
            .as_bytes()
            .get(self.at + ahead)
            .copied()
            .unwrap_or(0)
    }

    /// Passes over white space, control characters and comments.
    fn skip(&mut self) {
        loop {
            let rest = self.rest();
            let first = self.byte(0);
            if rest.starts_with("--") {
                self.at += rest.find('\n').unwrap_or(rest.len());
            } else if let Some(comment) = rest.strip_prefix("/*") {
                self.at += comment.find("*/").map_or(rest.len(), |end| end + 4);
            } else if !rest.is_empty() && (first <= b' ' || first == 0x7f) {
                self.at += 1;
            } else {
                return;
            }
        }
    }

    fn token(&mut self) -> Option<Kind> {
        let first = self.rest().chars().next()?;
        Some(match first {
            '\'' => {
                self.quoted(b'\'');
                Kind::Literal
            }
            '"' => match self.quoted(b'"') {
                true => Kind::Doubtful,
                false => Kind::Literal,
            },
            '`' => match self.quoted(b'`') {
                true => Kind::Name,
                false => Kind::Literal,
            },
            '[' => self.bracketed(),
            '0'..='9' => self.number(),
            '.' if self.byte(1).is_ascii_digit() => self.number(),
            '?' => {
                self.at += 1;
                self.pass(|c| c.is_ascii_digit());
                Kind::Parameter
            }
            '$' => self.dollar(),
            ':' if self.byte(1) == b':' => {
                self.at += 2;
                Kind::Sign
            }
            ':' | '@' | '#' if is_name(self.second()) => {
                self.at += 1;
                self.pass(is_name);
                Kind::Parameter
            }
            c if is_name(c) => {
                self.pass(is_name);
                // x'…', N'…', and whatever other dialects put before a string.
                match self.byte(0) {
                    b'\'' => {
                        self.quoted(b'\'');
                        Kind::Literal
                    }
                    _ => Kind::Word,
                }
            }
            c => {
                self.at += c.len_utf8();
                Kind::Sign
            }
        })
    }

    fn second(&self) -> char {
        self.rest().chars().nth(1).unwrap_or('\0')
    }

    fn pass(&mut self, wanted: impl Fn(char) -> bool) {
        let rest = self.rest();
        self.at += rest.find(|c| !wanted(c)).unwrap_or(rest.len());
    }

    /// Passes over what stands in quotes, which are doubled within; whether they end.
    fn quoted(&mut self, quote: u8) -> bool {
        let bytes = self.sql.as_bytes();
        self.at += 1;
        while let Some(&byte) = bytes.get(self.at) {
            self.at += 1;
            if byte == quote {
                if self.byte(0) != quote {
                    return true;
                }
                self.at += 1;
            }
        }
        false
    }

    fn bracketed(&mut self) -> Kind {
        match self.rest().find(']') {
            Some(end) => {
                self.at += end + 1;
                Kind::Name
            }
            None => {
                self.at = self.sql.len();
                Kind::Literal
            }
        }
    }

    /// `1`, `1.5e-3`, `0xff`, `1_000`, and what is glued to it.
    fn number(&mut self) -> Kind {
        loop {
            self.pass(|c| is_name(c) || c == '.');
            let ends_in_exponent = self.sql[..self.at].ends_with(['e', 'E']);
            if ends_in_exponent && matches!(self.byte(0), b'+' | b'-') {
                self.at += 1;
            } else {
                return Kind::Literal;
            }
        }
    }

    /// `$name`, `$1`, or a string between `$tag$` and the same.
    fn dollar(&mut self) -> Kind {
        let rest = self.rest();
        let tag = rest[1..]
            .find('$')
            .map(|end| &rest[..end + 2])
            .filter(|tag| tag[1..tag.len() - 1].chars().all(is_name));
        if let Some(tag) = tag {
            let end = rest[tag.len()..].find(tag);
            self.at += end.map_or(rest.len(), |end| end + 2 * tag.len());
            return Kind::Literal;
        }
        self.at += 1;
        self.pass(is_name);
        Kind::Parameter
    }
}

/// The characters of names; SQLite takes all that is not ASCII for letters.
fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || !c.is_ascii()
}

/// What stands in double quotes is a name where only a name can stand, and a literal otherwise.
fn decide_doubtful(tokens: &mut [Token<'_>]) {
    // Within the parentheses behind `INTO name` there are names.
    let mut columns = false;
    for at in 0..tokens.len() {
        let before = |n: usize| at.checked_sub(n).map(|at| tokens[at]);
        let is_before = |n: usize, keyword: &str| before(n).is_some_and(|token| token.is(keyword));
        if tokens[at].is_sign("(") {
            columns = is_before(2, "INTO")
                || (before(2).is_some_and(|token| token.is_sign(".")) && is_before(4, "INTO"));
        } else if tokens[at].is_sign(")") {
            columns = false;
        }
        if tokens[at].kind != Kind::Doubtful {
            continue;
        }
        let behind_keyword = before(1).is_some_and(|token| {
            token.kind == Kind::Word
                && BEFORE_NAMES.iter().any(|keyword| token.is(keyword))
                // IS DISTINCT FROM "a" compares.
                && !(token.is("FROM") && is_before(2, "DISTINCT"))
        });
        let is_qualified = before(1).is_some_and(|token| token.is_sign("."))
            || tokens.get(at + 1).is_some_and(|token| token.is_sign("."));
        tokens[at].kind = match columns || behind_keyword || is_qualified {
            true => Kind::Name,
            false => Kind::Literal,
        };
    }
}

/// A key may stand bare behind its pragma (`PRAGMA key = secret`).
fn hide_keys(tokens: &mut [Token<'_>]) {
    if !tokens.first().is_some_and(|token| token.is("PRAGMA")) {
        return;
    }
    let names_key = |token: &Token<'_>| {
        token.kind == Kind::Word && token.text.to_ascii_lowercase().contains("key")
    };
    if let Some(at) = tokens.iter().position(names_key) {
        for token in &mut tokens[at + 1..] {
            if token.kind != Kind::Sign {
                token.kind = Kind::Literal;
            }
        }
    }
}

/// Where the statement proper begins: behind the tables of `WITH`.
fn main_statement(tokens: &[Token<'_>]) -> Option<usize> {
    let first = tokens.first()?;
    if !first.is("WITH") {
        return Some(0);
    }
    let mut depth = 0_usize;
    tokens.iter().position(|token| {
        match token.text {
            "(" => depth += 1,
            ")" => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth == 0
            && ["SELECT", "INSERT", "REPLACE", "UPDATE", "DELETE", "VALUES"]
                .iter()
                .any(|keyword| token.is(keyword))
    })
}

fn operation(token: &Token<'_>) -> Option<&'static str> {
    OPERATIONS.into_iter().find(|operation| token.is(operation))
}

/// The one table of the statement that begins at `main`.
fn collection(tokens: &[Token<'_>], main: usize) -> Option<String> {
    let first = tokens.get(main)?;
    let rest = &tokens[main + 1..];
    let behind = |keyword: &str| at_top(rest, keyword).map(|at| &rest[at + 1..]);
    if first.is("SELECT") {
        // What FROM names may be a table of WITH, and what else there is may be more tables.
        let from = behind("FROM").filter(|_| main == 0)?;
        let (name, len) = name(from)?;
        let several = from.get(len).is_some_and(|token| token.is_sign("("))
            || at_top(from, "JOIN").is_some()
            || at_top_comma(from)
            || ["UNION", "EXCEPT", "INTERSECT"]
                .iter()
                .any(|keyword| at_top(from, keyword).is_some());
        return (!several).then_some(name);
    }
    let at = if first.is("INSERT") || first.is("REPLACE") {
        behind("INTO")?
    } else if first.is("DELETE") {
        behind("FROM")?
    } else if first.is("UPDATE") {
        match rest {
            [or, _, rest @ ..] if or.is("OR") => rest,
            rest => rest,
        }
    } else if ["CREATE", "DROP", "ALTER", "TRUNCATE"]
        .iter()
        .any(|keyword| first.is(keyword))
    {
        let table = rest.iter().take(3).position(|token| token.is("TABLE"))?;
        match &rest[table + 1..] {
            [a, b, c, rest @ ..] if a.is("IF") && b.is("NOT") && c.is("EXISTS") => rest,
            [a, b, rest @ ..] if a.is("IF") && b.is("EXISTS") => rest,
            rest => rest,
        }
    } else {
        return None;
    };
    name(at).map(|(name, _)| name)
}

/// Where a keyword stands outside of all parentheses.
fn at_top(tokens: &[Token<'_>], keyword: &str) -> Option<usize> {
    top(tokens)
        .find(|(_, token)| token.is(keyword))
        .map(|(at, _)| at)
}

/// Whether FROM names several tables: a comma before what follows them.
fn at_top_comma(tokens: &[Token<'_>]) -> bool {
    top(tokens)
        .map(|(_, token)| token)
        .take_while(|token| {
            !["WHERE", "GROUP", "ORDER", "LIMIT", "HAVING", "WINDOW"]
                .iter()
                .any(|keyword| token.is(keyword))
        })
        .any(|token| token.is_sign(","))
}

/// The tokens outside of all parentheses.
fn top<'a, 'b>(tokens: &'b [Token<'a>]) -> impl Iterator<Item = (usize, &'b Token<'a>)> {
    let mut depth = 0_usize;
    tokens.iter().enumerate().filter(move |(_, token)| {
        if token.is_sign("(") {
            depth += 1;
        } else if token.is_sign(")") {
            depth = depth.saturating_sub(1);
        }
        depth == 0
    })
}

/// A name, maybe of several parts, at the beginning; and of how many tokens it is.
fn name(tokens: &[Token<'_>]) -> Option<(String, usize)> {
    let mut name = bare(tokens.first()?)?.to_owned();
    let mut len = 1;
    while let [dot, part, ..] = &tokens[len..]
        && dot.is_sign(".")
    {
        name.push('.');
        name.push_str(bare(part)?);
        len += 2;
    }
    (name.len() <= NAME_MAX).then_some((name, len))
}

/// A name without its quotes.
fn bare<'a>(token: &Token<'a>) -> Option<&'a str> {
    match token.kind {
        Kind::Word => Some(token.text),
        Kind::Name => token.text.get(1..token.text.len().checked_sub(1)?),
        _ => None,
    }
}

/// The tokens as a text again, lists folded.
fn text(tokens: &[Token<'_>]) -> String {
    let mut out = String::new();
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        if token.spaced && !out.is_empty() {
            out.push(' ');
        }
        match token.kind {
            Kind::Literal => out.push('?'),
            // A name with a quote in it is more likely a string that was cut in two.
            Kind::Name if token.text.contains('\'') => out.push('?'),
            _ => out.push_str(token.text),
        }
        at += 1;
        if token.is("IN")
            && let Some(len) = list(&tokens[at..])
        {
            out.push_str(" (?)");
            at += len;
        } else if token.is("VALUES")
            && let Some(first) = list(&tokens[at..])
        {
            out.push_str(if tokens[at].spaced { " " } else { "" });
            for (index, value) in tokens[at..at + first].iter().enumerate() {
                if value.spaced && index > 0 {
                    out.push(' ');
                }
                out.push_str(match value.kind {
                    Kind::Literal => "?",
                    _ => value.text,
                });
            }
            at += first;
            let mut more = false;
            while let [comma, rest @ ..] = &tokens[at..]
                && comma.is_sign(",")
                && let Some(len) = list(rest)
            {
                at += 1 + len;
                more = true;
            }
            out.push_str(if more { ", ..." } else { "" });
        }
    }
    out
}

/// Of how many tokens a list of values in parentheses is, if one begins here.
fn list(tokens: &[Token<'_>]) -> Option<usize> {
    let [open, rest @ ..] = tokens else {
        return None;
    };
    if !open.is_sign("(") {
        return None;
    }
    for (index, token) in rest.iter().enumerate() {
        match token {
            token if token.is_sign(")") => return (index > 0).then_some(index + 2),
            token if token.is_value() || token.is("NULL") => {}
            token if token.is_sign(",") || token.is_sign("-") || token.is_sign("+") => {}
            _ => return None,
        }
    }
    None
}

#[cfg(test)]
#[path = "sql_tests.rs"]
mod tests;
