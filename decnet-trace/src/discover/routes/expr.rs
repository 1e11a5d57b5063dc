//! Expressions of Python, as far as routes are written with them.

use super::lex::{Text, Token};

/// How deep expressions may lie in each other; what lies deeper is skipped.
const DEPTH_MAX: u32 = 32;

/// An expression.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Expr {
    /// A text.
    Text(String),
    /// Texts and others, joined: an f-string, or a sum.
    Sum(Vec<Expr>),
    /// `app`, `users.router`, `self.app`
    Name(String),
    /// A call of a name.
    Call(Box<Call>),
    /// A list, a tuple or a set.
    List(Vec<Expr>),
    /// Each of the elements: a starred one, or the variable of a loop.
    Each(Box<Expr>),
    /// None of these.
    Other,
}

/// A call of a name.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Call {
    /// What is called.
    pub(super) name: String,
    /// By position.
    pub(super) arguments: Vec<Expr>,
    /// By name.
    pub(super) keywords: Vec<(String, Expr)>,
}

impl Call {
    /// An argument by its name, or else by its place.
    pub(super) fn argument(&self, at: usize, name: &str) -> Option<&Expr> {
        self.keyword(name).or_else(|| self.arguments.get(at))
    }

    /// An argument by its name.
    pub(super) fn keyword(&self, name: &str) -> Option<&Expr> {
        let found = self.keywords.iter().find(|(keyword, _)| keyword == name);
        found.map(|(_, value)| value)
    }

    /// The last name of what is called: `FastAPI` of `fastapi.FastAPI`.
    pub(super) fn last_name(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or_default()
    }
}

/// Reads expressions out of a line.
#[derive(Debug)]
pub(super) struct Reader<'t, 'a> {
    tokens: &'t [Token<'a>],
    at: usize,
    depth: u32,
}

impl<'t, 'a> Reader<'t, 'a> {
    pub(super) fn new(tokens: &'t [Token<'a>]) -> Self {
        Self {
            tokens,
            at: 0,
            depth: 0,
        }
    }

    pub(super) fn peek(&self) -> Option<Token<'a>> {
        self.tokens.get(self.at).copied()
    }

    fn peek_at(&self, ahead: usize) -> Option<Token<'a>> {
        self.tokens.get(self.at + ahead).copied()
    }

    /// Takes an operator, if it comes next.
    pub(super) fn take(&mut self, op: u8) -> bool {
        let found = self.peek() == Some(Token::Op(op));
        self.at += usize::from(found);
        found
    }

    /// Takes a keyword, if it comes next.
    pub(super) fn take_word(&mut self, word: &str) -> bool {
        let found = self.peek() == Some(Token::Name(word));
        self.at += usize::from(found);
        found
    }

    /// Takes `name +=`, if that comes next.
    pub(super) fn added_to(&mut self) -> Option<String> {
        let before = self.at;
        let name = self.dotted();
        if name.is_some() && self.take(b'+') && self.take(b'=') {
            return name;
        }
        self.at = before;
        None
    }

    /// Takes a name, if one comes next.
    pub(super) fn name(&mut self) -> Option<&'a str> {
        let Some(Token::Name(name)) = self.peek() else {
            return None;
        };
        self.at += 1;
        Some(name)
    }

    /// Takes names that dots join, with as many dots in front as there are.
    pub(super) fn dotted(&mut self) -> Option<String> {
        let mut out = String::new();
        while self.take(b'.') {
            out.push('.');
        }
        if self.peek() == Some(Token::Name("import")) {
            return Some(out);
        }
        out.push_str(self.name()?);
        while self.peek() == Some(Token::Op(b'.')) {
            self.at += 1;
            out.push('.');
            out.push_str(self.name()?);
        }
        Some(out)
    }

    /// Reads an expression, up to a comma, a closing bracket, a colon, an assignment or the end.
    pub(super) fn expr(&mut self) -> Expr {
        if self.depth >= DEPTH_MAX {
            self.skip();
            return Expr::Other;
        }
        self.depth += 1;
        let mut terms = vec![self.term()];
        while self.take(b'+') {
            terms.push(self.term());
        }
        self.depth -= 1;
        // What goes on otherwise is nothing that routes are made of.
        if !self.is_at_end() {
            self.skip();
            return Expr::Other;
        }
        match terms.pop() {
            Some(term) if terms.is_empty() => term,
            Some(term) => {
                terms.push(term);
                Expr::Sum(terms)
            }
            None => Expr::Other,
        }
    }

    fn is_at_end(&self) -> bool {
        match self.peek() {
            None => true,
            Some(Token::Op(b'=')) => self.peek_at(1) != Some(Token::Op(b'=')),
            Some(Token::Op(op)) => b",)]}:".contains(&op),
            Some(Token::Name("for" | "async")) => true,
            Some(_) => false,
        }
    }

    fn term(&mut self) -> Expr {
        let mut starred = false;
        loop {
            match self.peek() {
                Some(Token::Name("await")) => {}
                Some(Token::Op(b'*')) => starred = true,
                _ => break,
            }
            self.at += 1;
        }
        match self.value() {
            value if starred && value != Expr::Other => Expr::Each(Box::new(value)),
            value => value,
        }
    }

    fn value(&mut self) -> Expr {
        match self.peek() {
            Some(Token::Text(_)) => self.texts(),
            Some(Token::Name("lambda" | "not" | "yield")) => {
                self.skip();
                Expr::Other
            }
            Some(Token::Name(_)) => self.named(),
            Some(Token::Op(b'(')) => {
                let (mut items, is_tuple) = self.items(b')');
                let inner = match (items.pop(), is_tuple) {
                    (Some(item), false) if items.is_empty() => item,
                    (Some(item), _) => {
                        items.push(item);
                        Expr::List(items)
                    }
                    (None, _) => Expr::List(items),
                };
                self.behind(inner)
            }
            Some(Token::Op(b'[')) => {
                let items = self.items(b']').0;
                self.behind(Expr::List(items))
            }
            Some(Token::Op(b'{')) => {
                self.brackets();
                self.behind(Expr::Other)
            }
            _ => {
                if !self.is_at_end() {
                    self.at += 1;
                }
                Expr::Other
            }
        }
    }

    /// A name, and what is called on it.
    fn named(&mut self) -> Expr {
        let Some(name) = self.dotted() else {
            return Expr::Other;
        };
        if self.peek() != Some(Token::Op(b'(')) {
            return self.behind(Expr::Name(name));
        }
        let (arguments, keywords) = self.arguments();
        self.behind(Expr::Call(Box::new(Call {
            name,
            arguments,
            keywords,
        })))
    }

    /// What is done with a value at once (a call's attribute, a subscript) makes it another that is not
    /// known.
    fn behind(&mut self, value: Expr) -> Expr {
        let mut known = true;
        loop {
            match self.peek() {
                Some(Token::Op(b'.')) => self.at += 2,
                Some(Token::Op(b'(' | b'[')) => self.brackets(),
                _ => break,
            }
            known = false;
        }
        if known { value } else { Expr::Other }
    }

    /// The texts that stand beside each other.
    fn texts(&mut self) -> Expr {
        let mut parts = Vec::new();
        while let Some(Token::Text(text)) = self.peek() {
            self.at += 1;
            text_into(text, &mut parts);
        }
        let value = match parts.pop() {
            None => Expr::Text(String::new()),
            Some(part) if parts.is_empty() => part,
            Some(part) => {
                parts.push(part);
                Expr::Sum(parts)
            }
        };
        self.behind(value)
    }

    /// The elements between brackets; whether a comma parted them.
    fn items(&mut self, close: u8) -> (Vec<Expr>, bool) {
        self.at += 1;
        let (mut items, mut is_tuple) = (Vec::new(), false);
        while self.peek().is_some() && !self.take(close) {
            let item = self.expr();
            if let Some(Token::Name("for" | "async")) = self.peek() {
                // A comprehension.
                self.skip_to(close);
                return (vec![Expr::Other], false);
            }
            items.push(item);
            if self.take(b',') {
                is_tuple = true;
            } else if self.peek() != Some(Token::Op(close)) && self.peek().is_some() {
                self.at += 1;
            }
        }
        (items, is_tuple)
    }

    fn arguments(&mut self) -> (Vec<Expr>, Vec<(String, Expr)>) {
        self.at += 1;
        let (mut arguments, mut keywords) = (Vec::new(), Vec::new());
        while self.peek().is_some() && !self.take(b')') {
            if let (Some(Token::Name(name)), Some(Token::Op(b'='))) = (self.peek(), self.peek_at(1))
                && self.peek_at(2) != Some(Token::Op(b'='))
            {
                self.at += 2;
                keywords.push((name.to_owned(), self.expr()));
            } else {
                arguments.push(self.expr());
            }
            if let Some(Token::Name("for" | "async")) = self.peek() {
                self.skip_to(b')');
                return (vec![Expr::Other], keywords);
            }
            if !self.take(b',') && self.peek() != Some(Token::Op(b')')) && self.peek().is_some() {
                self.at += 1;
            }
        }
        (arguments, keywords)
    }

    /// Skips to where the expression ends.
    pub(super) fn skip(&mut self) {
        while let Some(token) = self.peek() {
            match token {
                Token::Op(b'(' | b'[' | b'{') => self.brackets(),
                Token::Op(b',' | b')' | b']' | b'}') => return,
                _ => self.at += 1,
            }
        }
    }

    fn skip_to(&mut self, close: u8) {
        while let Some(token) = self.peek() {
            match token {
                Token::Op(b'(' | b'[' | b'{') => self.brackets(),
                Token::Op(op) if op == close => {
                    self.at += 1;
                    return;
                }
                _ => self.at += 1,
            }
        }
    }

    /// Skips brackets and what is between them.
    fn brackets(&mut self) {
        let mut depth = 0usize;
        while let Some(token) = self.peek() {
            self.at += 1;
            match token {
                Token::Op(b'(' | b'[' | b'{') => depth += 1,
                Token::Op(b')' | b']' | b'}') => {
                    depth = depth.saturating_sub(1);
                    if depth == 0 {
                        return;
                    }
                }
                _ => {}
            }
        }
    }
}

/// What a text of the source says: its escapes undone, its fields as expressions.
fn text_into(text: Text<'_>, parts: &mut Vec<Expr>) {
    let mut push = |part: Expr| match (parts.last_mut(), part) {
        (Some(Expr::Text(last)), Expr::Text(part)) => last.push_str(&part),
        (_, part) => parts.push(part),
    };
    if text.bytes {
        return push(Expr::Other);
    }
    if !text.formatted {
        return push(Expr::Text(unescaped(text.body, text.raw)));
    }
    let mut rest = text.body;
    let mut literal = String::new();
    while let Some(at) = rest.find(['{', '}']) {
        literal.push_str(&unescaped(&rest[..at], text.raw));
        let brace = &rest[at..=at];
        rest = &rest[at + 1..];
        if let Some(behind) = rest.strip_prefix(brace) {
            literal.push_str(brace);
            rest = behind;
            continue;
        }
        let Some(end) = rest.find('}') else { break };
        let field = rest[..end].trim();
        rest = &rest[end + 1..];
        push(Expr::Text(std::mem::take(&mut literal)));
        let is_name = !field.is_empty()
            && field.split('.').all(|name| {
                name.chars()
                    .next()
                    .is_some_and(|c| c == '_' || c.is_alphabetic())
                    && name.chars().all(|c| c == '_' || c.is_alphanumeric())
            });
        push(match is_name {
            true => Expr::Name(field.to_owned()),
            false => Expr::Other,
        });
    }
    literal.push_str(&unescaped(rest, text.raw));
    push(Expr::Text(literal));
}

/// Undoes the escapes that paths may be written with.
fn unescaped(body: &str, raw: bool) -> String {
    if raw || !body.contains('\\') {
        return body.to_owned();
    }
    let mut out = String::with_capacity(body.len());
    let mut chars = body.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('n') => out.push('\n'),
            Some('t') => out.push('\t'),
            Some('\n') | None => {}
            Some(c @ ('\\' | '\'' | '"')) => out.push(c),
            Some(c) => {
                out.push('\\');
                out.push(c);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::lex::Lines, *};

    fn read(source: &str) -> Expr {
        let mut line = Vec::new();
        Lines::new(source).next_into(&mut line);
        Reader::new(&line).expr()
    }

    fn text(text: &str) -> Expr {
        Expr::Text(text.to_owned())
    }

    fn name(name: &str) -> Expr {
        Expr::Name(name.to_owned())
    }

    /// Texts, names, sums, lists and calls are read; the rest is nothing.
    #[test]
    fn reads_expressions() {
        for (source, want) in [
            ("'a' \"b\"", text("ab")),
            (r"r'\d' '\''", text(r"\d'")),
            ("(('a'))", text("a")),
            ("a.b.c", name("a.b.c")),
            (
                "f'/{a.b}/{{x}}'",
                Expr::Sum(vec![text("/"), name("a.b"), text("/{x}")]),
            ),
            ("f'{a()}'", Expr::Sum(vec![text(""), Expr::Other, text("")])),
            ("P + '/x'", Expr::Sum(vec![name("P"), text("/x")])),
            (
                "[a, *b]",
                Expr::List(vec![name("a"), Expr::Each(Box::new(name("b")))]),
            ),
            ("(a,)", Expr::List(vec![name("a")])),
            ("[x for x in y]", Expr::List(vec![Expr::Other])),
            ("a if b else c", Expr::Other),
            ("a or 'b'", Expr::Other),
            ("x[0]", Expr::Other),
            ("F().router", Expr::Other),
            ("{'a': 'b'}", Expr::Other),
            ("b'a'", Expr::Other),
            ("'%s' % a", Expr::Other),
        ] {
            assert_eq!(read(source), want, "{source}");
        }
    }

    /// Arguments come by place and by name, whatever stands between them.
    #[test]
    fn reads_calls() {
        let Expr::Call(call) =
            read("m.f('/x', lambda a, b: {1: 2}, [1][0], dependencies=[D(e)], prefix='/p', **k)")
        else {
            panic!("no call");
        };
        assert_eq!((call.name.as_str(), call.last_name()), ("m.f", "f"));
        assert_eq!(call.argument(0, "path"), Some(&text("/x")));
        assert_eq!(call.keyword("prefix"), Some(&text("/p")));
    }

    proptest! {
        /// Anything is read, in bounded depth.
        #[test]
        fn survives_anything(source in "([a-z(\\[{,=+.*:]|[)\\]}]|'a'|f'\\{a\\}'|for |1){0,300}") {
            let _ = read(&source);
        }
    }

    /// Depth is bounded.
    #[test]
    fn deep_expressions_do_no_harm() {
        for open in ["(", "[", "f(", "{", "*", "await ", "f(a="] {
            let _ = read(&open.repeat(20_000));
        }
    }
}
