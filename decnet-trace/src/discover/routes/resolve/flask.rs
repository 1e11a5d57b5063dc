//! What Flask, and what is made like it, has of its own: blueprints, and files.

use super::{At, Resolver, Value};
use crate::{
    discover::routes::expr::{Call, Expr},
    policy::template::{Builder, Template},
};

/// Classes of applications.
pub(super) const CLASSES: &[&str] = &["Flask", "Quart", "APIFlask", "OpenAPI"];

/// What each of them answers from its making on.
pub(super) const STATIC: &str = "/static/<path:filename>";

impl<'a> Resolver<'a> {
    /// `register_blueprint(blueprint, url_prefix=…)`
    pub(super) fn blueprint(
        &self,
        at: At,
        call: &'a Call,
        prefix: &Builder,
        depth: u32,
        out: &mut Vec<Template>,
    ) {
        let Some(blueprint) = call.argument(0, "blueprint") else {
            return;
        };
        let instead = match call.keyword("url_prefix") {
            None => None,
            Some(Expr::Name(name)) if name == "None" => None,
            Some(value) => match self.text(at, value) {
                Some(text) => Some(text),
                None => return,
            },
        };
        self.each(at, blueprint, |value| {
            if let Value::Object(key) = value {
                self.object(key, prefix, instead.clone(), depth, out);
            }
        });
    }
}
