//! The attributes of database spans, as OpenTelemetry's semantic conventions have them
//! (<https://opentelemetry.io/docs/specs/semconv/database/database-spans/>, stable since 1.33).

use std::borrow::Cow;

use super::Link;
use crate::{
    correlate::statement::Statement,
    span::{Attribute, Status, Value},
};

/// What a statement says, taken apart once.
#[derive(Debug)]
pub(super) struct Facts<'a> {
    statement: &'a Statement,
}

impl<'a> Facts<'a> {
    pub(super) const fn new(statement: &'a Statement) -> Self {
        Self { statement }
    }

    /// The span's name: of low cardinality.
    pub(super) const fn name(&self) -> Cow<'static, str> {
        Cow::Borrowed("sqlite")
    }

    pub(super) const fn status(&self) -> Status {
        match self.statement.error {
            Some(_) => Status::Error(Cow::Borrowed("")),
            None => Status::Unset,
        }
    }

    pub(super) fn attributes(&self, link: Link) -> Vec<Attribute> {
        let mut out = vec![("db.system.name", Value::Str("sqlite".into()))];
        if let Some(database) = &self.statement.database {
            out.push(("db.namespace", Value::Str(database.to_string().into())));
        }
        if let Some(rows) = self.statement.rows {
            let rows = i64::try_from(rows).unwrap_or(i64::MAX);
            out.push(("db.response.returned_rows", Value::Int(rows)));
        }
        out.push(("decnet.link", Value::Str(link.as_str().into())));
        out
    }
}
