//! What an application or a router answers, as FastAPI and Starlette declare it; what Flask declares
//! likewise is read here, too.

use super::{At, DEPTH_MAX, FUEL, Key, Resolver, TEMPLATES_MAX, Value, flask, made_by};
use crate::{
    discover::routes::{
        expr::{Call, Expr},
        source::Event,
    },
    policy::template::{Builder, Methods, Template},
};

impl<'a> Resolver<'a> {
    /// What is served: an application, or what wraps one.
    pub(super) fn application(&self, value: &Value<'a>, out: &mut Vec<Template>) {
        match value {
            Value::Function((module, scope)) => {
                let returns = &self.modules.all()[*module].source.scopes[*scope].returns;
                for value in returns {
                    let value = self.eval((*module, *scope), value, &mut { FUEL });
                    if !matches!(value, Value::Function(_)) {
                        self.application(&value, out);
                    }
                }
            }
            value => self.mounted(value, &Builder::default(), DEPTH_MAX, out),
        }
    }

    /// An application, below a prefix.
    fn mounted(&self, value: &Value<'a>, prefix: &Builder, depth: u32, out: &mut Vec<Template>) {
        match value {
            Value::Object(key) => self.object(key, prefix, None, depth, out),
            Value::Call(at, call) => self.unnamed(*at, call, prefix, depth, out),
            _ => {}
        }
    }

    /// One that was made where it was needed, or a wrapper.
    fn unnamed(
        &self,
        at: At,
        call: &'a Call,
        prefix: &Builder,
        depth: u32,
        out: &mut Vec<Template>,
    ) {
        let Some(depth) = depth.checked_sub(1) else {
            return;
        };
        let before = out.len();
        self.made(at, call, prefix, depth, out);
        if out.len() == before {
            let named = call.keywords.iter().map(|(_, value)| value);
            for argument in call.arguments.iter().chain(named) {
                let inner = self.eval(at, argument, &mut { FUEL });
                self.mounted(&inner, prefix, depth, out);
            }
        }
    }

    /// What an application answers from its making on.
    fn made(&self, at: At, call: &'a Call, prefix: &Builder, depth: u32, out: &mut Vec<Template>) {
        let get = Methods::default().with("GET").with("HEAD");
        match call.last_name() {
            "FastAPI" => {
                let urls = [
                    ("openapi_url", "/openapi.json"),
                    ("docs_url", "/docs"),
                    ("swagger_ui_oauth2_redirect_url", "/docs/oauth2-redirect"),
                    ("redoc_url", "/redoc"),
                ];
                for (keyword, default) in urls {
                    let url = match call.keyword(keyword) {
                        None => Some(default.to_owned()),
                        Some(value) => self.text(at, value),
                    };
                    if let Some(url) = url {
                        push(prefix, &url, get, out);
                    }
                }
            }
            name if flask::CLASSES.contains(&name) => {
                push(prefix, flask::STATIC, get, out);
            }
            _ => {}
        }
        let routes = call.keyword("routes").or_else(|| {
            let at = match call.last_name() {
                "Starlette" => 1,
                "Router" => 0,
                _ => return None,
            };
            call.arguments.get(at)
        });
        if let Some(routes) = routes
            && let Value::List(routes) = self.eval(at, routes, &mut { FUEL })
        {
            self.routes(&routes, prefix, depth, out);
        }
    }

    /// A router or an application below a prefix. `instead`: in place of its own prefix.
    pub(super) fn object(
        &self,
        key: &Key,
        prefix: &Builder,
        instead: Option<String>,
        depth: u32,
        out: &mut Vec<Template>,
    ) {
        let Some(depth) = depth.checked_sub(1) else {
            return;
        };
        let (module, scope, name) = key;
        let at = (*module, *scope);
        let bindings = self.modules.all()[*module].source.scopes[*scope]
            .names
            .get(name);
        let maker = made_by(bindings);
        let mut prefix = prefix.clone();
        let own = maker.and_then(|call| call.keyword("prefix").or(call.keyword("url_prefix")));
        match (instead, own) {
            (Some(instead), _) => add(&mut prefix, &instead),
            (None, Some(own)) => match self.text(at, own) {
                Some(own) => add(&mut prefix, &own),
                None => return,
            },
            (None, None) => {}
        }
        let before = out.len();
        if let Some(maker) = maker {
            self.made(at, maker, &prefix, depth, out);
        }
        for (at, event) in self.events.get(key).into_iter().flatten() {
            if out.len() >= TEMPLATES_MAX {
                return;
            }
            self.event(*at, event, &prefix, depth, out);
        }
        if out.len() == before
            && let Some(maker) = maker
        {
            // It may be a wrapper around another.
            let named = maker.keywords.iter().map(|(_, value)| value);
            for argument in maker.arguments.iter().chain(named) {
                let inner = self.eval(at, argument, &mut { FUEL });
                self.mounted(&inner, &prefix, depth, out);
            }
        }
    }

    fn event(
        &self,
        at: At,
        event: &'a Event,
        prefix: &Builder,
        depth: u32,
        out: &mut Vec<Template>,
    ) {
        let call = &event.call;
        match event.method.as_str() {
            "include_router" => {
                let Some(router) = call.argument(0, "router") else {
                    return;
                };
                let Some(prefix) = self.prefixed(at, prefix, call.keyword("prefix")) else {
                    return;
                };
                self.each(at, router, |value| self.mounted(value, &prefix, depth, out));
            }
            "register_blueprint" => self.blueprint(at, call, prefix, depth, out),
            "mount" => self.mount(at, call, prefix, depth, out),
            "append" => {
                if let Some(route) = call.arguments.first() {
                    self.routes(&[(at, route)], prefix, depth, out);
                }
            }
            "extend" => {
                if let Some(routes) = call.arguments.first()
                    && let Value::List(routes) = self.eval(at, routes, &mut { FUEL })
                {
                    self.routes(&routes, prefix, depth, out);
                }
            }
            method => {
                let Some(path) = call
                    .argument(0, "path")
                    .or_else(|| call.keyword("rule"))
                    .and_then(|path| self.text(at, path))
                else {
                    return;
                };
                let methods = match method {
                    "websocket" | "websocket_route" => Methods::default().with("GET"),
                    "add_websocket_route" | "add_api_websocket_route" => {
                        Methods::default().with("GET")
                    }
                    "route" | "add_route" | "add_url_rule" => {
                        self.methods(at, call.keyword("methods"), &["GET", "HEAD"])
                    }
                    "api_route" | "add_api_route" => {
                        self.methods(at, call.keyword("methods"), &["GET"])
                    }
                    method => Methods::default().with(method),
                };
                push(prefix, &path, methods, out);
            }
        }
    }

    /// Does something with a value, or with each of those in a list.
    pub(super) fn each(&self, at: At, expr: &'a Expr, mut visit: impl FnMut(&Value<'a>)) {
        match self.eval(at, expr, &mut { FUEL }) {
            Value::List(items) => {
                for (at, item) in items {
                    visit(&self.eval(at, item, &mut { FUEL }));
                }
            }
            value => visit(&value),
        }
    }

    fn prefixed(&self, at: At, prefix: &Builder, more: Option<&'a Expr>) -> Option<Builder> {
        let mut prefix = prefix.clone();
        if let Some(more) = more {
            add(&mut prefix, &self.text(at, more)?);
        }
        Some(prefix)
    }

    fn methods(&self, at: At, expr: Option<&'a Expr>, default: &[&str]) -> Methods {
        let of = |names: &[&str]| {
            names
                .iter()
                .fold(Methods::default(), |all, name| all.with(name))
        };
        let Some(expr) = expr else {
            return of(default);
        };
        match self.eval(at, expr, &mut { FUEL }) {
            Value::List(items) => {
                let texts: Option<Vec<_>> = items
                    .iter()
                    .map(|(at, item)| self.text(*at, item))
                    .collect();
                match texts {
                    Some(texts) => of(&texts.iter().map(String::as_str).collect::<Vec<_>>()),
                    None => Methods::ALL,
                }
            }
            _ => Methods::ALL,
        }
    }

    /// `mount(path, app)`, `Mount(path, app=…)` or `Mount(path, routes=…)`: whatever lies below the path
    /// is the mounted application's.
    fn mount(&self, at: At, call: &'a Call, prefix: &Builder, depth: u32, out: &mut Vec<Template>) {
        let Some(path) = call
            .argument(0, "path")
            .and_then(|path| self.text(at, path))
        else {
            return;
        };
        let mut below = prefix.clone();
        add(&mut below, path.trim_end_matches('/'));
        if let Some(app) = call.argument(1, "app") {
            let app = self.eval(at, app, &mut { FUEL });
            self.mounted(&app, &below, depth, out);
        } else if let Some(routes) = call.keyword("routes")
            && let Value::List(routes) = self.eval(at, routes, &mut { FUEL })
        {
            self.routes(&routes, &below, depth, out);
        }
        // At the root it would take what only looks like another's.
        if !path.trim_end_matches('/').is_empty() {
            push(&below, "/{path:path}", Methods::ALL, out);
        }
    }

    /// A list of `Route`, `Mount` and the like.
    fn routes(
        &self,
        list: &[(At, &'a Expr)],
        prefix: &Builder,
        depth: u32,
        out: &mut Vec<Template>,
    ) {
        let Some(depth) = depth.checked_sub(1) else {
            return;
        };
        for (at, item) in list {
            let (at, call) = match item {
                Expr::Call(call) => (*at, &**call),
                item => match self.eval(*at, item, &mut { FUEL }) {
                    Value::Call(at, call) => (at, call),
                    _ => continue,
                },
            };
            let default: &[&str] = match call.last_name() {
                "Mount" => {
                    self.mount(at, call, prefix, depth, out);
                    continue;
                }
                "Route" => &["GET", "HEAD"],
                "APIRoute" | "WebSocketRoute" | "APIWebSocketRoute" => &["GET"],
                _ => continue,
            };
            let Some(path) = call
                .argument(0, "path")
                .and_then(|path| self.text(at, path))
            else {
                continue;
            };
            let methods = self.methods(at, call.keyword("methods"), default);
            push(prefix, &path, methods, out);
        }
    }
}

/// Adds a piece of a path, of Starlette's kind or Werkzeug's.
fn add(builder: &mut Builder, text: &str) {
    match text.contains('<') {
        true => builder.angles(text),
        false => builder.braces(text),
    }
}

fn push(prefix: &Builder, path: &str, methods: Methods, out: &mut Vec<Template>) {
    let mut whole = prefix.clone();
    add(&mut whole, path);
    if whole.text().starts_with('/') && out.len() < TEMPLATES_MAX {
        out.extend(whole.build(methods));
    }
}
