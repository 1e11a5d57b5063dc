//! The attributes of database spans, as OpenTelemetry's semantic conventions have them
//! (<https://opentelemetry.io/docs/specs/semconv/database/database-spans/>, stable since 1.33).

use std::{borrow::Cow, sync::Arc};

use smol_str::{SmolStr, ToSmolStr as _, format_smolstr};

use super::{
    Link,
    rules::{Place, Rules},
    sql::Sanitised,
};
use crate::{
    correlate::statement::Statement,
    span::{Attribute, Status, Value},
    text,
};

/// The value of `db.system.name`.
const SYSTEM: &str = "sqlite";

/// More attributes than a span has.
const ATTRIBUTES: usize = 16;

/// The little of a statement that metrics go by: all of it of low cardinality.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed<'a> {
    /// The database system.
    pub system: &'static str,
    /// The database.
    pub namespace: Option<&'a str>,
    /// The one table that it is about.
    pub collection: Option<Cow<'a, str>>,
    /// What it does.
    pub operation: Option<&'static str>,
    /// Its error's code and name.
    pub error: Option<(i32, Cow<'static, str>)>,
    /// How long it took, in nanoseconds.
    pub duration: u64,
}

/// What a statement says, taken apart once.
#[derive(Debug)]
pub(super) struct Facts<'a> {
    statement: &'a Statement,
    sql: Option<Arc<Sanitised>>,
    rules: &'a Rules,
}

impl<'a> Facts<'a> {
    pub(super) const fn new(
        statement: &'a Statement,
        sql: Option<Arc<Sanitised>>,
        rules: &'a Rules,
    ) -> Self {
        Self {
            statement,
            sql,
            rules,
        }
    }

    /// A part of the statement's text, as the user's rules leave it.
    fn ruled<'t>(&self, text: &'t str) -> Cow<'t, str> {
        self.rules.apply(Place::Statement, text)
    }

    /// The same, shared with those who have it already where no rule changes it.
    fn shown(&self, text: &SmolStr) -> SmolStr {
        match self.ruled(text) {
            Cow::Borrowed(_) => text.clone(),
            Cow::Owned(ruled) => ruled.into(),
        }
    }

    /// What is done, and to which table: of low cardinality.
    pub(super) fn name(&self) -> SmolStr {
        let Some(Sanitised {
            operation: Some(operation),
            collection,
            ..
        }) = self.sql.as_deref()
        else {
            return SmolStr::new_static(SYSTEM);
        };
        match collection {
            Some(collection) => format_smolstr!("{operation} {}", self.ruled(collection)),
            None => SmolStr::new_static(operation),
        }
    }

    /// What metrics go by.
    pub(super) fn observed(&self) -> Observed<'_> {
        let statement = self.statement;
        let sql = self.sql.as_deref();
        Observed {
            system: SYSTEM,
            namespace: statement.database.as_deref(),
            collection: sql
                .and_then(|sql| sql.collection.as_deref())
                .map(|collection| self.ruled(collection)),
            operation: sql.and_then(|sql| sql.operation),
            error: statement.error.map(|code| (code, error_name(code))),
            duration: statement.end.saturating_sub(statement.start),
        }
    }

    pub(super) const fn status(&self) -> Status {
        match self.statement.error {
            Some(_) => Status::Error(SmolStr::new_static("")),
            None => Status::Unset,
        }
    }

    pub(super) fn attributes(&self, link: Link) -> Vec<Attribute> {
        let mut out: Vec<Attribute> = Vec::with_capacity(ATTRIBUTES);
        let mut put = |name, value| out.push((name, Value::Str(value)));
        let statement = self.statement;
        put("db.system.name", SmolStr::new_static(SYSTEM));
        if let Some(database) = &statement.database {
            put("db.namespace", Arc::clone(database).into());
        }
        if let Some(sql) = self.sql.as_deref() {
            let query = self.shown(&sql.text);
            put(
                "db.query.text",
                match statement.cut {
                    true => format_smolstr!("{query}..."),
                    false => query,
                },
            );
            if let Some(operation) = sql.operation {
                put("db.operation.name", SmolStr::new_static(operation));
            }
            if let Some(collection) = &sql.collection {
                put("db.collection.name", self.shown(collection));
            }
        }
        if let Some(code) = statement.error {
            put("db.response.status_code", code.to_smolstr());
            put("error.type", text::of(error_name(code)));
        }
        put("decnet.link", SmolStr::new_static(link.as_str()));
        if let Some(rows) = statement.rows.filter(|_| self.returns_rows()) {
            out.push(("db.response.returned_rows", int(rows)));
        }
        if let Some(size) = statement.batch {
            out.push(("db.operation.batch.size", int(size)));
        }
        if statement.waited > 0 {
            let seconds = statement.waited as f64 / 1e9;
            out.push(("decnet.db.lock_wait.duration", Value::Float(seconds)));
        }
        out
    }

    /// Whether its rows are worth a word: it returned some, or was meant to.
    fn returns_rows(&self) -> bool {
        let operation = self.sql.as_deref().and_then(|sql| sql.operation);
        self.statement.rows != Some(0) || matches!(operation, Some("SELECT" | "VALUES"))
    }
}

fn int(number: u64) -> Value {
    Value::Int(i64::try_from(number).unwrap_or(i64::MAX))
}

/// The name of a result code (<https://sqlite.org/rescode.html>): of the extended one where it is
/// known, of the primary one otherwise, or the number.
fn error_name(code: i32) -> Cow<'static, str> {
    let known = match code {
        261 => Some("SQLITE_BUSY_RECOVERY"),
        262 => Some("SQLITE_LOCKED_SHAREDCACHE"),
        275 => Some("SQLITE_CONSTRAINT_CHECK"),
        517 => Some("SQLITE_BUSY_SNAPSHOT"),
        531 => Some("SQLITE_CONSTRAINT_COMMITHOOK"),
        773 => Some("SQLITE_BUSY_TIMEOUT"),
        787 => Some("SQLITE_CONSTRAINT_FOREIGNKEY"),
        1043 => Some("SQLITE_CONSTRAINT_FUNCTION"),
        1299 => Some("SQLITE_CONSTRAINT_NOTNULL"),
        1555 => Some("SQLITE_CONSTRAINT_PRIMARYKEY"),
        1811 => Some("SQLITE_CONSTRAINT_TRIGGER"),
        2067 => Some("SQLITE_CONSTRAINT_UNIQUE"),
        2323 => Some("SQLITE_CONSTRAINT_VTAB"),
        2579 => Some("SQLITE_CONSTRAINT_ROWID"),
        2835 => Some("SQLITE_CONSTRAINT_PINNED"),
        3091 => Some("SQLITE_CONSTRAINT_DATATYPE"),
        _ => None,
    };
    let primary = usize::try_from(code & 0xff)
        .ok()
        .and_then(|index| PRIMARY.get(index.wrapping_sub(1)));
    match known.or(primary.copied()) {
        Some(name) => Cow::Borrowed(name),
        None => Cow::Owned(code.to_string()),
    }
}

/// The primary result codes from 1 on.
const PRIMARY: [&str; 28] = [
    "SQLITE_ERROR",
    "SQLITE_INTERNAL",
    "SQLITE_PERM",
    "SQLITE_ABORT",
    "SQLITE_BUSY",
    "SQLITE_LOCKED",
    "SQLITE_NOMEM",
    "SQLITE_READONLY",
    "SQLITE_INTERRUPT",
    "SQLITE_IOERR",
    "SQLITE_CORRUPT",
    "SQLITE_NOTFOUND",
    "SQLITE_FULL",
    "SQLITE_CANTOPEN",
    "SQLITE_PROTOCOL",
    "SQLITE_EMPTY",
    "SQLITE_SCHEMA",
    "SQLITE_TOOBIG",
    "SQLITE_CONSTRAINT",
    "SQLITE_MISMATCH",
    "SQLITE_MISUSE",
    "SQLITE_NOLFS",
    "SQLITE_AUTH",
    "SQLITE_FORMAT",
    "SQLITE_RANGE",
    "SQLITE_NOTADB",
    "SQLITE_NOTICE",
    "SQLITE_WARNING",
];

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;
    use std::sync::LazyLock;

    use crate::{
        correlate::identity::Identity,
        policy::{rules::Rule, sql::sanitise},
    };

    static NO_RULES: LazyLock<Rules> = LazyLock::new(Rules::default);

    fn statement() -> Statement {
        Statement {
            tgid: 1,
            tid: 2,
            identity: Identity::UNKNOWN,
            start: 5,
            end: 9,
            text: None,
            cut: false,
            database: Some("/a.db".into()),
            rows: Some(0),
            batch: None,
            waited: 0,
            error: None,
        }
    }

    fn facts<'a>(statement: &'a Statement, sql: &str) -> Facts<'a> {
        Facts::new(statement, Some(Arc::new(sanitise(sql))), &NO_RULES)
    }

    fn has(attributes: &[Attribute], name: &str) -> Option<Value> {
        let found = attributes.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| value.clone())
    }

    /// A query is named for its table and says how many rows it returned; a change does not.
    #[test]
    fn names_and_counts() {
        let query = statement();
        let facts_of_query = facts(&query, "SELECT * FROM users WHERE id = 5");
        assert_eq!(facts_of_query.name(), "SELECT users");
        let attributes = facts_of_query.attributes(Link::Exact);
        let text = Value::Str("SELECT * FROM users WHERE id = ?".into());
        assert_eq!(has(&attributes, "db.query.text"), Some(text));
        let rows = has(&attributes, "db.response.returned_rows");
        assert_eq!(rows, Some(Value::Int(0)));
        assert_eq!(has(&attributes, "decnet.db.lock_wait.duration"), None);
        assert_eq!(facts_of_query.status(), Status::Unset);
        let change = facts(&query, "COMMIT");
        assert_eq!(change.name(), "COMMIT");
        let rows = has(&change.attributes(Link::None), "db.response.returned_rows");
        assert_eq!(rows, None);
        assert_eq!(Facts::new(&query, None, &NO_RULES).name(), "sqlite");
    }

    /// The user's rules reach the text, and the table wherever it is named.
    #[test]
    fn rules_apply() {
        let rule = Rule::new("tenant_[a-z]+", "tenant_*", &[Place::Statement]).unwrap();
        let rules = Rules::new(vec![rule]);
        let query = statement();
        let sql = Arc::new(sanitise("SELECT 1 FROM tenant_smith"));
        let facts = Facts::new(&query, Some(sql), &rules);
        assert_eq!(facts.name(), "SELECT tenant_*");
        let attributes = facts.attributes(Link::Exact);
        for (name, value) in [
            ("db.query.text", "SELECT ? FROM tenant_*"),
            ("db.collection.name", "tenant_*"),
        ] {
            assert_eq!(has(&attributes, name), Some(Value::Str(value.into())));
        }
    }

    /// Failure, waiting, batches and cut texts show.
    #[test]
    fn the_unusual_shows() {
        let unusual = Statement {
            error: Some(2067),
            waited: 1_500_000_000,
            batch: Some(3),
            cut: true,
            ..statement()
        };
        let facts = facts(&unusual, "INSERT INTO t VALUES ('a");
        let attributes = facts.attributes(Link::None);
        for (name, value) in [
            ("error.type", Value::Str("SQLITE_CONSTRAINT_UNIQUE".into())),
            ("db.response.status_code", Value::Str("2067".into())),
            ("db.operation.batch.size", Value::Int(3)),
            ("decnet.db.lock_wait.duration", Value::Float(1.5)),
            (
                "db.query.text",
                Value::Str("INSERT INTO t VALUES (?...".into()),
            ),
        ] {
            assert_eq!(has(&attributes, name).unwrap(), value, "{name}");
        }
        assert_eq!(facts.status(), Status::Error("".into()));
    }

    /// Codes are named as precisely as they are known.
    #[test]
    fn names_errors() {
        for (code, name) in [
            (1, "SQLITE_ERROR"),
            (5, "SQLITE_BUSY"),
            (19 | 200 << 8, "SQLITE_CONSTRAINT"),
            (28, "SQLITE_WARNING"),
            (99, "99"),
            (0, "0"),
            (-1, "-1"),
        ] {
            assert_eq!(error_name(code), name);
        }
    }
}
