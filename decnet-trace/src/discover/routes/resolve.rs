//! From modules to templates: which router lies where, and what it answers.
//!
//! Values are worked out without running anything: names are followed through assignments, imports,
//! factories and classes. A prefix that cannot be worked out takes what lies below it along: no route
//! is better than a wrong one.

use rustc_hash::FxHashMap;

mod app;
mod django;
mod flask;

use super::{
    expr::{Call, Expr},
    modules::Modules,
    source::{Binding, Event, ScopeId},
};
use crate::policy::template::{Builder, Template};

/// The most templates of one application.
const TEMPLATES_MAX: usize = 2048;

/// How deep routers may lie in each other.
const DEPTH_MAX: u32 = 16;

/// The most steps that working out one value takes.
const FUEL: u32 = 512;

/// How often calls are looked at for routers that they hand on.
const ROUNDS: usize = 4;

/// Classes of applications: what is served by itself.
const APPLICATIONS: &[&str] = &["FastAPI", "Starlette"];

/// A place where names have a meaning.
type At = (usize, ScopeId);

/// A router or an application: the name that it was bound to first.
type Key = (usize, ScopeId, String);

/// What an expression stands for.
#[derive(Clone, Debug)]
enum Value<'a> {
    Text(String),
    Object(Key),
    /// One that has no name.
    Call(At, &'a Call),
    List(Vec<(At, &'a Expr)>),
    Module(usize),
    Function(At),
    Class(At),
    Unknown,
}

/// The templates that an application answers. `served`: the module and the attribute that the server
/// was told; `settings`: Django's.
pub(super) fn templates(
    modules: &Modules,
    served: Option<(usize, Option<&str>)>,
    settings: Option<usize>,
) -> Vec<Template> {
    let mut resolver = Resolver::new(modules);
    resolver.hand_on();
    resolver.collect();
    let mut out = Vec::new();
    if let Some((module, Some(name))) = served {
        let value = resolver.lookup((module, 0), name, &mut { FUEL });
        resolver.application(&value, &mut out);
    }
    if out.is_empty() {
        resolver.django(settings, &mut out);
    }
    if out.is_empty() {
        for key in resolver.roots() {
            resolver.object(&key, &Builder::default(), None, DEPTH_MAX, &mut out);
        }
    }
    out
}

struct Resolver<'a> {
    modules: &'a Modules,
    events: FxHashMap<Key, Vec<(At, &'a Event)>>,
    /// What a function's parameter was called with.
    handed: FxHashMap<Key, Key>,
}

impl<'a> Resolver<'a> {
    fn new(modules: &'a Modules) -> Self {
        Self {
            modules,
            events: FxHashMap::default(),
            handed: FxHashMap::default(),
        }
    }

    /// Finds what functions are called with: `init_app(app)`.
    fn hand_on(&mut self) {
        for _ in 0..ROUNDS {
            let before = self.handed.len();
            for &module in self.modules.order() {
                for (scope, call) in &self.modules.all()[module].source.calls {
                    self.hand((module, *scope), call);
                }
            }
            if self.handed.len() == before {
                return;
            }
        }
    }

    fn hand(&mut self, at: At, call: &'a Call) {
        let Value::Function((module, scope)) = self.lookup(at, &call.name, &mut { FUEL }) else {
            return;
        };
        let parameters = &self.modules.all()[module].source.scopes[scope].parameters;
        let by_place = call.arguments.iter().enumerate();
        let by_place = by_place.filter_map(|(i, value)| Some((parameters.get(i)?, value)));
        let by_name = call
            .keywords
            .iter()
            .filter(|(name, _)| parameters.contains(name));
        let handed: Vec<_> = by_place
            .chain(by_name.map(|(name, value)| (name, value)))
            .filter_map(|(name, value)| match self.eval(at, value, &mut { FUEL }) {
                Value::Object(key) => Some(((module, scope, name.clone()), key)),
                _ => None,
            })
            .collect();
        for (parameter, key) in handed {
            self.handed.entry(parameter).or_insert(key);
        }
    }

    /// Finds which router each call is for.
    fn collect(&mut self) {
        for &module in self.modules.order() {
            for event in &self.modules.all()[module].source.events {
                let at = (module, event.scope);
                if let Value::Object(key) = self.lookup(at, &event.receiver, &mut { FUEL }) {
                    self.events.entry(key).or_default().push((at, event));
                }
            }
        }
    }

    /// Applications, in the order in which they are made.
    fn roots(&self) -> Vec<Key> {
        let mut roots = Vec::new();
        for &module in self.modules.order() {
            let scopes = &self.modules.all()[module].source.scopes;
            for (scope, names) in scopes.iter().enumerate() {
                let mut names: Vec<_> = names
                    .names
                    .iter()
                    .filter(|(_, bindings)| bindings.iter().any(is_application))
                    .map(|(name, _)| name)
                    .collect();
                names.sort_unstable();
                roots.extend(names.into_iter().map(|name| (module, scope, name.clone())));
            }
        }
        roots
    }

    fn eval(&self, at: At, expr: &'a Expr, fuel: &mut u32) -> Value<'a> {
        if *fuel == 0 {
            return Value::Unknown;
        }
        *fuel -= 1;
        match expr {
            Expr::Text(text) => Value::Text(text.clone()),
            Expr::Name(name) => self.lookup(at, name, fuel),
            Expr::Call(call) => match self.returned(at, call, fuel) {
                Some(value) => value,
                None => Value::Call(at, call),
            },
            Expr::Each(inner) => self.eval(at, inner, fuel),
            Expr::List(items) => {
                let mut list = Vec::with_capacity(items.len());
                for item in items {
                    match item {
                        Expr::Each(inner) => match self.eval(at, inner, fuel) {
                            Value::List(more) => list.extend(more),
                            _ => continue,
                        },
                        item => list.push((at, item)),
                    }
                }
                Value::List(list)
            }
            Expr::Sum(terms) => self.sum(at, terms, fuel),
            Expr::Other => Value::Unknown,
        }
    }

    /// Texts joined, or lists; of lists, those that are known.
    fn sum(&self, at: At, terms: &'a [Expr], fuel: &mut u32) -> Value<'a> {
        let mut text = Some(String::new());
        let mut list: Option<Vec<_>> = None;
        for term in terms {
            match self.eval(at, term, fuel) {
                Value::Text(more) => {
                    if let Some(text) = &mut text {
                        text.push_str(&more);
                    }
                }
                Value::List(more) => {
                    text = None;
                    list.get_or_insert_default().extend(more);
                }
                _ => text = None,
            }
        }
        match (list, text) {
            (Some(list), _) => Value::List(list),
            (None, Some(text)) => Value::Text(text),
            (None, None) => Value::Unknown,
        }
    }

    /// What a function that is called gives back.
    fn returned(&self, at: At, call: &Call, fuel: &mut u32) -> Option<Value<'a>> {
        match self.lookup(at, &call.name, fuel) {
            Value::Function((module, scope)) => {
                let returns = &self.modules.all()[module].source.scopes[scope].returns;
                let mut values = returns
                    .iter()
                    .map(|value| self.eval((module, scope), value, fuel));
                values.find(|value| !matches!(value, Value::Unknown))
            }
            _ => None,
        }
    }

    fn lookup(&self, at: At, name: &str, fuel: &mut u32) -> Value<'a> {
        if *fuel == 0 {
            return Value::Unknown;
        }
        *fuel -= 1;
        // `self.app` is bound as it stands; `users.router` is a part of what `users` is.
        let mut ends: Vec<usize> = name.match_indices('.').map(|(at, _)| at).collect();
        ends.push(name.len());
        for &end in ends.iter().rev() {
            let Some(value) = self.bound(at, &name[..end], fuel) else {
                continue;
            };
            let rest = name[end..].split('.').skip(1);
            return rest.fold(value, |value, attribute| {
                self.attribute(&value, attribute, fuel)
            });
        }
        Value::Unknown
    }

    fn attribute(&self, value: &Value<'a>, name: &str, fuel: &mut u32) -> Value<'a> {
        match value {
            Value::Module(module) => self
                .bound((*module, 0), name, fuel)
                .or_else(|| {
                    let parent = &self.modules.all()[*module].name;
                    let below = self.modules.get(&format!("{parent}.{name}"))?;
                    Some(Value::Module(below))
                })
                .unwrap_or(Value::Unknown),
            Value::Class(class) => {
                let names = &self.modules.all()[class.0].source.scopes[class.1].names;
                let own = format!("self.{name}");
                match names
                    .get_key_value(name)
                    .or_else(|| names.get_key_value(&own))
                {
                    Some((name, bindings)) => self.value_of(*class, name, bindings, fuel),
                    None => Value::Unknown,
                }
            }
            // An instance's attributes are its class's.
            Value::Object((module, scope, object)) => {
                let at = (*module, *scope);
                let names = &self.modules.all()[*module].source.scopes[*scope].names;
                match made_by(names.get(object)) {
                    Some(call) => self.attribute_of(at, call, name, fuel),
                    None => Value::Unknown,
                }
            }
            Value::Call(at, call) => self.attribute_of(*at, call, name, fuel),
            _ => Value::Unknown,
        }
    }

    fn attribute_of(&self, at: At, call: &'a Call, name: &str, fuel: &mut u32) -> Value<'a> {
        match self.lookup(at, &call.name, fuel) {
            class @ Value::Class(_) => self.attribute(&class, name, fuel),
            _ => Value::Unknown,
        }
    }

    /// What a name, dots and all, is bound to here or in a scope around; `None` where it is not.
    fn bound(&self, at: At, name: &str, fuel: &mut u32) -> Option<Value<'a>> {
        let (module, mut scope) = at;
        let source = &self.modules.all()[module].source;
        let mut is_own = true;
        loop {
            let here = &source.scopes[scope];
            // A class's names are not those of its methods, but for the object's own.
            if is_own || !here.is_class || name.starts_with("self.") {
                if let Some(bindings) = here.names.get(name) {
                    return Some(self.value_of((module, scope), name, bindings, fuel));
                }
                if here.parameters.iter().any(|parameter| parameter == name) {
                    let key = (module, scope, name.to_owned());
                    let handed = self.handed.get(&key).cloned();
                    return Some(handed.map_or(Value::Unknown, Value::Object));
                }
            }
            is_own = false;
            match here.parent {
                Some(parent) => scope = parent,
                None => break,
            }
        }
        source.stars.iter().find_map(|star| {
            if *fuel == 0 {
                return None;
            }
            *fuel -= 1;
            let star = self.modules.get(&self.modules.absolute(module, star)?)?;
            (star != module).then(|| self.bound((star, 0), name, fuel))?
        })
    }

    fn value_of(&self, at: At, name: &str, bindings: &'a [Binding], fuel: &mut u32) -> Value<'a> {
        let mut found = Value::Unknown;
        for binding in bindings {
            let value = match binding {
                Binding::Value(Expr::Call(call)) => match self.returned(at, call, fuel) {
                    Some(value) => value,
                    None => Value::Object((at.0, at.1, name.to_owned())),
                },
                Binding::Value(value) => self.eval(at, value, fuel),
                Binding::Module(module) => self
                    .modules
                    .get(module)
                    .map_or(Value::Unknown, Value::Module),
                Binding::From(module, name) => self.imported(at.0, module, name, fuel),
                Binding::Function(scope) => Value::Function((at.0, *scope)),
                Binding::Class(scope) => Value::Class((at.0, *scope)),
            };
            found = match (found, value) {
                // `urlpatterns += […]`
                (Value::List(mut list), Value::List(more)) => {
                    list.extend(more);
                    Value::List(list)
                }
                // A router stays the one it was when it is wrapped.
                (Value::Object(key), _) => Value::Object(key),
                (found, Value::Unknown) => found,
                (_, value) => value,
            };
        }
        found
    }

    fn imported(&self, from: usize, module: &str, name: &str, fuel: &mut u32) -> Value<'a> {
        let Some(module) = self.modules.absolute(from, module) else {
            return Value::Unknown;
        };
        if *fuel == 0 {
            return Value::Unknown;
        }
        *fuel -= 1;
        let submodule = || self.modules.get(&format!("{module}.{name}"));
        self.modules
            .get(&module)
            .and_then(|id| self.bound((id, 0), name, fuel))
            .filter(|value| !matches!(value, Value::Unknown))
            .or_else(|| submodule().map(Value::Module))
            .unwrap_or(Value::Unknown)
    }

    fn text(&self, at: At, expr: &'a Expr) -> Option<String> {
        match self.eval(at, expr, &mut { FUEL }) {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// The call that a name was bound to first.
fn made_by(bindings: Option<&Vec<Binding>>) -> Option<&Call> {
    bindings
        .into_iter()
        .flatten()
        .find_map(|binding| match binding {
            Binding::Value(Expr::Call(call)) => Some(&**call),
            _ => None,
        })
}

fn is_application(binding: &Binding) -> bool {
    let Binding::Value(Expr::Call(call)) = binding else {
        return false;
    };
    let class = call.last_name();
    APPLICATIONS.contains(&class) || flask::CLASSES.contains(&class)
}
