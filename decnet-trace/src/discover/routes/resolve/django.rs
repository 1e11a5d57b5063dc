//! Django's patterns, from the module that the settings name on.

use super::{At, DEPTH_MAX, FUEL, Resolver, TEMPLATES_MAX, Value};
use crate::{
    discover::routes::expr::{Call, Expr},
    policy::template::{Builder, Methods, Template},
};

impl<'a> Resolver<'a> {
    /// Django's: the patterns of the module that the settings name.
    pub(super) fn django(&self, settings: Option<usize>, out: &mut Vec<Template>) {
        let settings = settings
            .into_iter()
            .chain(self.modules.order().iter().copied());
        let Some(urls) = settings
            .filter_map(|module| {
                let name = self.bound((module, 0), "ROOT_URLCONF", &mut { FUEL })?;
                match name {
                    Value::Text(name) => self.modules.get(&name),
                    _ => None,
                }
            })
            .next()
        else {
            return;
        };
        let mut root = Builder::default();
        root.literal("/");
        self.patterns_of(urls, &root, DEPTH_MAX, out);
    }

    fn patterns_of(&self, module: usize, prefix: &Builder, depth: u32, out: &mut Vec<Template>) {
        if let Some(Value::List(list)) = self.bound((module, 0), "urlpatterns", &mut { FUEL }) {
            self.patterns(&list, prefix, depth, out);
        }
    }

    /// A list of `path` and `re_path`.
    fn patterns(
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
            let Expr::Call(call) = item else { continue };
            let is_regex = match call.last_name() {
                "path" => false,
                "re_path" | "url" => true,
                _ => continue,
            };
            let route = call.argument(0, if is_regex { "regex" } else { "route" });
            let Some(route) = route.and_then(|route| self.text(*at, route)) else {
                continue;
            };
            let mut here = prefix.clone();
            match is_regex {
                true => here.regex(&route),
                false => here.angles(&route),
            }
            match call.argument(1, "view") {
                Some(Expr::Call(include)) if include.last_name() == "include" => {
                    self.include(*at, include, &here, depth, out);
                }
                // `admin.site.urls`: the patterns of an object, which are not known.
                Some(Expr::Name(name)) if name.ends_with(".urls") => {}
                _ => {
                    if out.len() < TEMPLATES_MAX {
                        out.extend(here.build(Methods::ALL));
                    }
                }
            }
        }
    }

    fn include(
        &self,
        at: At,
        include: &'a Call,
        prefix: &Builder,
        depth: u32,
        out: &mut Vec<Template>,
    ) {
        let Some(argument) = include.arguments.first() else {
            return;
        };
        let mut value = self.eval(at, argument, &mut { FUEL });
        // `include((patterns, "name"))`
        if let (Value::List(list), Expr::List(_)) = (&value, argument)
            && let [(at, first), (_, Expr::Text(_))] = list[..]
        {
            value = self.eval(at, first, &mut { FUEL });
        }
        match value {
            Value::Text(name) => {
                if let Some(module) = self.modules.get(&name) {
                    self.patterns_of(module, prefix, depth, out);
                }
            }
            Value::Module(module) => self.patterns_of(module, prefix, depth, out),
            Value::List(list) => self.patterns(&list, prefix, depth, out),
            _ => {}
        }
    }
}
