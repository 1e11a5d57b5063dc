//! One module's source: what its names are bound to, and what it does with routers.

use rustc_hash::FxHashMap;

use super::{
    expr::{Call, Expr, Reader},
    lex::{Lines, Token},
};

/// The most statements of one module that say something about routes.
const EVENTS_MAX: usize = 8192;

/// The most names of one module.
const NAMES_MAX: usize = 65_536;

/// A scope within a module: 0 is the module's own.
pub(super) type ScopeId = usize;

/// What a name is bound to.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Binding {
    /// The value of an expression.
    Value(Expr),
    /// `import a.b as name`: the module.
    Module(String),
    /// `from module import name`
    From(String, String),
    /// `def`
    Function(ScopeId),
    /// `class`
    Class(ScopeId),
}

/// A module, a class or a function.
#[derive(Debug, Default)]
pub(super) struct Scope {
    /// The scope around it.
    pub(super) parent: Option<ScopeId>,
    /// Whether it is a class's.
    pub(super) is_class: bool,
    /// A function's parameters.
    pub(super) parameters: Vec<String>,
    /// What its names are bound to, in the order of the source.
    pub(super) names: FxHashMap<String, Vec<Binding>>,
    /// What it returns.
    pub(super) returns: Vec<Expr>,
}

/// A method of a router or an application that was called, as a statement or a decorator.
#[derive(Debug)]
pub(super) struct Event {
    pub(super) scope: ScopeId,
    /// The router: `app`, `self.router`, `users.router`.
    pub(super) receiver: String,
    /// The method: `get`, `include_router`.
    pub(super) method: String,
    pub(super) call: Call,
}

/// What a module's source says.
#[derive(Debug, Default)]
pub(super) struct Source {
    pub(super) scopes: Vec<Scope>,
    pub(super) events: Vec<Event>,
    /// Other calls, as statements: `init_app(app)`.
    pub(super) calls: Vec<(ScopeId, Call)>,
    /// Modules whose every name is taken over.
    pub(super) stars: Vec<String>,
    /// Modules that are imported, or named in a text: as written, with the name behind `from … import`.
    pub(super) imports: Vec<(String, Option<String>)>,
}

/// Methods that declare routes, or put routers into others.
const METHODS: &[&str] = &[
    "add_api_route",
    "add_api_websocket_route",
    "add_route",
    "add_url_rule",
    "add_websocket_route",
    "api_route",
    "append",
    "delete",
    "extend",
    "get",
    "head",
    "include_router",
    "mount",
    "options",
    "patch",
    "post",
    "put",
    "query",
    "register_blueprint",
    "route",
    "trace",
    "websocket",
    "websocket_route",
];

impl Source {
    /// Reads a module. Anything is one.
    pub(super) fn read(text: &str) -> Self {
        let mut source = Self {
            scopes: vec![Scope::default()],
            ..Self::default()
        };
        let mut open: Vec<(usize, ScopeId)> = Vec::new();
        let mut lines = Lines::new(text);
        let mut line = Vec::new();
        let mut names = 0;
        while let Some(indent) = lines.next_into(&mut line) {
            while open.last().is_some_and(|(outer, _)| *outer >= indent) {
                open.pop();
            }
            let scope = open.last().map_or(0, |(_, scope)| *scope);
            if let Some(inner) = source.statement(scope, &line) {
                open.push((indent, inner));
            }
            names += 1;
            if source.events.len() >= EVENTS_MAX || names >= NAMES_MAX {
                break;
            }
        }
        source
    }

    /// The scope that a statement opens, if it is one of a class or a function.
    fn statement(&mut self, scope: ScopeId, line: &[Token<'_>]) -> Option<ScopeId> {
        let mut reader = Reader::new(line);
        match line.first()? {
            Token::Op(b'@') => {
                reader.take(b'@');
                if let Expr::Call(call) = reader.expr() {
                    self.called(scope, *call);
                }
            }
            Token::Name("async" | "def" | "class") => {
                reader.take_word("async");
                let is_class = reader.take_word("class");
                if !is_class && !reader.take_word("def") {
                    // `async with`, `async for`
                    return None;
                }
                let name = reader.name()?;
                let parameters = match is_class {
                    true => Vec::new(),
                    false => parameters(&mut reader),
                };
                let inner = self.scopes.len();
                self.scopes.push(Scope {
                    parent: Some(scope),
                    is_class,
                    parameters,
                    ..Scope::default()
                });
                let binding = match is_class {
                    true => Binding::Class(inner),
                    false => Binding::Function(inner),
                };
                self.bind(scope, name, binding);
                return Some(inner);
            }
            Token::Name("import") => {
                reader.take_word("import");
                self.import(scope, &mut reader);
            }
            Token::Name("from") => {
                reader.take_word("from");
                self.import_from(scope, &mut reader);
            }
            Token::Name("return") => {
                reader.take_word("return");
                let value = reader.expr();
                self.scopes[scope].returns.push(value);
            }
            Token::Name("for") => {
                reader.take_word("for");
                let name = reader.name()?;
                if reader.take_word("in") {
                    let each = Expr::Each(Box::new(reader.expr()));
                    self.bind(scope, name, Binding::Value(each));
                }
            }
            Token::Name(_) => self.assignment(scope, reader),
            _ => {}
        }
        None
    }

    /// `a = b = value`, `a: T = value`, `a += value`, or a value alone.
    fn assignment(&mut self, scope: ScopeId, mut reader: Reader<'_, '_>) {
        let mut targets = Vec::new();
        if let Some(name) = reader.added_to() {
            targets.push(name);
        }
        loop {
            let value = reader.expr();
            let Expr::Name(name) = &value else {
                return self.value(scope, &targets, value);
            };
            if reader.take(b':') {
                let _annotation = reader.expr();
            }
            if !reader.take(b'=') {
                return self.value(scope, &targets, value);
            }
            targets.push(name.clone());
        }
    }

    fn value(&mut self, scope: ScopeId, targets: &[String], value: Expr) {
        if targets.is_empty() {
            if let Expr::Call(call) = value {
                self.called(scope, *call);
            }
            return;
        }
        self.nested_references(&value, 8);
        for target in targets {
            if let ("ROOT_URLCONF", Expr::Text(module)) = (target.as_str(), &value) {
                self.imports.push((module.clone(), None));
            }
            self.bind(scope, target, Binding::Value(value.clone()));
        }
    }

    fn bind(&mut self, scope: ScopeId, name: &str, binding: Binding) {
        // An attribute of the object is one in all its methods.
        let scope = match self.scopes[scope].parent {
            Some(class) if name.starts_with("self.") && self.scopes[class].is_class => class,
            _ => scope,
        };
        let names = &mut self.scopes[scope].names;
        names.entry(name.to_owned()).or_default().push(binding);
    }

    fn called(&mut self, scope: ScopeId, call: Call) {
        self.references(&call);
        let Some((receiver, method)) = call
            .name
            .rsplit_once('.')
            .filter(|(_, method)| METHODS.contains(method))
        else {
            if self.calls.len() < EVENTS_MAX {
                self.calls.push((scope, call));
            }
            return;
        };
        // A list that something is added to is only of interest where it is one of routes.
        let receiver = match (method, receiver.strip_suffix(".routes")) {
            (_, Some(of)) => of,
            ("append" | "extend", None) => return,
            _ => receiver,
        };
        // An application's router is the application.
        let receiver = match receiver.strip_suffix(".router") {
            // `users.router.get(…)` may be the router of a module.
            Some(app) if self.is_bound(scope, app) => app,
            _ => receiver,
        };
        self.events.push(Event {
            scope,
            receiver: receiver.to_owned(),
            method: method.to_owned(),
            call,
        });
    }

    /// Whether a name is bound to a value here, and not to a module.
    fn is_bound(&self, scope: ScopeId, name: &str) -> bool {
        let mut at = Some(scope);
        while let Some(scope) = at.and_then(|at| self.scopes.get(at)) {
            if let Some(bindings) = scope.names.get(name) {
                return bindings
                    .iter()
                    .any(|b| matches!(b, Binding::Value(Expr::Call(_))));
            }
            at = scope.parent;
        }
        false
    }

    /// Modules that a call names in a text.
    fn references(&mut self, call: &Call) {
        let named = match call.last_name() {
            "include" | "import_module" | "import_string" => call.arguments.first(),
            "setdefault" => match call.arguments.first() {
                Some(Expr::Text(name)) if name == "DJANGO_SETTINGS_MODULE" => call.arguments.get(1),
                _ => None,
            },
            "run" => call.argument(0, "app"),
            _ => None,
        };
        if let Some(Expr::Text(name)) = named {
            let module = name.split(':').next().unwrap_or_default();
            self.imports.push((module.to_owned(), None));
        }
    }

    /// The same, within lists and arguments: `path("x/", include("shop.urls"))`.
    fn nested_references(&mut self, value: &Expr, depth: u32) {
        match value {
            _ if depth == 0 => {}
            Expr::List(items) | Expr::Sum(items) => {
                for item in items {
                    self.nested_references(item, depth - 1);
                }
            }
            Expr::Call(call) => {
                self.references(call);
                for argument in &call.arguments {
                    self.nested_references(argument, depth - 1);
                }
            }
            _ => {}
        }
    }

    fn import(&mut self, scope: ScopeId, reader: &mut Reader<'_, '_>) {
        while let Some(module) = reader.dotted() {
            self.imports.push((module.clone(), None));
            if reader.take_word("as") {
                if let Some(name) = reader.name() {
                    self.bind(scope, name, Binding::Module(module));
                }
            } else {
                // `import a.b` binds `a`, and `a.b` is found below it.
                let top = module.split('.').next().unwrap_or_default().to_owned();
                self.bind(scope, &top.clone(), Binding::Module(top));
            }
            if !reader.take(b',') {
                break;
            }
        }
    }

    fn import_from(&mut self, scope: ScopeId, reader: &mut Reader<'_, '_>) {
        let Some(module) = reader.dotted() else {
            return;
        };
        if !reader.take_word("import") {
            return;
        }
        if reader.take(b'*') {
            self.imports.push((module.clone(), None));
            self.stars.push(module);
            return;
        }
        reader.take(b'(');
        while let Some(name) = reader.name() {
            let bound = match reader.take_word("as") {
                true => reader.name().unwrap_or(name),
                false => name,
            };
            self.imports.push((module.clone(), Some(name.to_owned())));
            let binding = Binding::From(module.clone(), name.to_owned());
            self.bind(scope, bound, binding);
            if !reader.take(b',') {
                break;
            }
        }
    }
}

/// The names of a function's parameters.
fn parameters(reader: &mut Reader<'_, '_>) -> Vec<String> {
    let mut names = Vec::new();
    // Type parameters come first (PEP 695).
    if reader.peek() == Some(Token::Op(b'[')) {
        let _ = reader.expr();
    }
    if !reader.take(b'(') {
        return names;
    }
    while !matches!(reader.peek(), None | Some(Token::Op(b')'))) {
        names.push(reader.name().unwrap_or_default().to_owned());
        reader.skip();
        if !reader.take(b',') {
            // The end, or a bracket that closes another: nothing that Python takes.
            break;
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Names, imports, scopes and calls are found where they stand.
    #[test]
    fn reads_a_module() {
        let source = Source::read(
            "import a.b, c as d\nfrom .x import (y, z as w,)\nfrom m import *\n\
             app: FastAPI = FastAPI()\n\
             @app.get('/a')\n@other\nasync def f(x=1):\n    if x:\n        r = R()\n        return r\n\
             class C:\n    P: str = '/p'\napp.router.include_router(y.router)\n\
             os.environ.setdefault('DJANGO_SETTINGS_MODULE', 'm.settings')\n\
             urlpatterns = [path('x/', include('m.urls'))]\n\
             if __name__ == '__main__':\n    uvicorn.run('m.main:app', port=1)\n",
        );
        let imports: Vec<_> = source
            .imports
            .iter()
            .map(|(module, name)| (module.as_str(), name.as_deref()))
            .collect();
        let want = [
            ("a.b", None),
            ("c", None),
            (".x", Some("y")),
            (".x", Some("z")),
            ("m", None),
            ("m.settings", None),
            ("m.urls", None),
            ("m.main", None),
        ];
        assert_eq!(imports, want);
        let events: Vec<_> = source
            .events
            .iter()
            .map(|event| (event.receiver.as_str(), event.method.as_str()))
            .collect();
        assert_eq!(events, [("app", "get"), ("app", "include_router")]);
        let module = &source.scopes[0];
        assert_eq!(module.names["w"], [Binding::From(".x".into(), "z".into())]);
        assert_eq!(module.names["a"], [Binding::Module("a".into())]);
        let [Binding::Function(f)] = module.names["f"][..] else {
            panic!("no function");
        };
        assert_eq!(source.scopes[f].returns, [Expr::Name("r".into())]);
        assert!(source.scopes[f].names.contains_key("r"));
        let [Binding::Class(c)] = module.names["C"][..] else {
            panic!("no class");
        };
        assert_eq!(
            source.scopes[c].names["P"],
            [Binding::Value(Expr::Text("/p".into()))]
        );
    }

    /// Parameters that another bracket closes come to an end.
    #[test]
    fn mismatched_brackets() {
        for text in [
            "def f(]:\n    pass\n",
            "def f(a, }\n",
            "class C:\n    def f(self, b=1]): pass\n",
        ] {
            let source = Source::read(text);
            assert!(source.scopes.len() > 1, "{text}");
            assert!(source.scopes.iter().all(|scope| scope.parameters.len() < 3));
        }
    }

    proptest! {
        /// Anything is a module.
        #[test]
        fn survives_anything(text in "(@|def |class |from |import |return |for | in |\n|    |[a-z.,:=+*()\\[\\]]|'/x'){0,200}") {
            let _ = Source::read(&text);
        }
    }
}
