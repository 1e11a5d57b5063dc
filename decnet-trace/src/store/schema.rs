//! The tables, and how an older file becomes one of this version. docs/store.md explains them to who
//! opens the file with other tools.

use rusqlite::{Connection, TransactionBehavior};

use super::error::{Kind, Result, StoreError};

/// "DCNT", by which `file` and this module know a store.
const APPLICATION_ID: i32 = 0x4443_4e54;

/// Each script brings a file from the version that is its place to the next.
const MIGRATIONS: &[&str] = &[V1];

/// The version that this program writes: SQLite's `user_version`.
pub const VERSION: i32 = MIGRATIONS.len() as i32;

/// Spans whose ids begin with the same bits share a part of each index: what is inserted and deleted
/// together lies together, so that a batch changes a few pages of an index and not one for each span.
pub(super) const BUCKET_BITS: u32 = 13;

const V1: &str = "
    -- A row for each minute in which something was stored.
    CREATE TABLE minutes (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        start INTEGER NOT NULL,        -- nanoseconds since the Unix epoch, by the wall clock
        clock INTEGER NOT NULL,        -- seconds of the store's own clock, which only runs forward
        uptime INTEGER NOT NULL,       -- seconds since the machine was started
        boot TEXT NOT NULL,            -- which start of the machine that was
        first_span INTEGER NOT NULL    -- the id of the first span stored in it
    ) STRICT;

    -- What many rows share. A row is kept until what was stored by `kept_until` (of `minutes.clock`) is
    -- deleted.
    CREATE TABLE resources (
        id INTEGER PRIMARY KEY,
        hash INTEGER NOT NULL,
        kept_until INTEGER NOT NULL,
        service TEXT NOT NULL,
        pid INTEGER NOT NULL,
        attributes TEXT NOT NULL
    ) STRICT;
    CREATE INDEX resources_by_hash ON resources (hash);

    CREATE TABLE operations (
        id INTEGER PRIMARY KEY,
        hash INTEGER NOT NULL,
        kept_until INTEGER NOT NULL,
        service TEXT NOT NULL,
        kind TEXT NOT NULL,
        name TEXT NOT NULL,
        method TEXT,
        route TEXT
    ) STRICT;
    CREATE INDEX operations_by_hash ON operations (hash);

    CREATE TABLE attribute_sets (
        id INTEGER PRIMARY KEY,
        hash INTEGER NOT NULL,
        kept_until INTEGER NOT NULL,
        attributes TEXT NOT NULL
    ) STRICT;
    CREATE INDEX attribute_sets_by_hash ON attribute_sets (hash);

    CREATE TABLE stacks (
        id INTEGER PRIMARY KEY,
        hash INTEGER NOT NULL,
        kept_until INTEGER NOT NULL,
        frames TEXT NOT NULL
    ) STRICT;
    CREATE INDEX stacks_by_hash ON stacks (hash);

    CREATE TABLE spans (
        id INTEGER PRIMARY KEY AUTOINCREMENT,  -- in the order of arrival, and never given twice
        trace_id BLOB NOT NULL,
        span_id BLOB NOT NULL,
        parent_id BLOB,
        parent_is_remote INTEGER NOT NULL,
        is_request INTEGER NOT NULL,           -- 1: served, 0: a call
        operation INTEGER NOT NULL REFERENCES operations (id),
        resource INTEGER NOT NULL REFERENCES resources (id),
        start INTEGER NOT NULL,                -- nanoseconds since the Unix epoch
        duration INTEGER NOT NULL,             -- nanoseconds
        status INTEGER,
        error TEXT,
        link TEXT,
        path TEXT,
        query TEXT,
        client_address TEXT,
        peer_address TEXT,
        peer_port INTEGER,
        request_size INTEGER,
        response_size INTEGER,
        request_body_size INTEGER,
        response_body_size INTEGER,
        queue INTEGER,                         -- nanoseconds
        trace_state TEXT,
        attributes TEXT,
        attribute_set INTEGER REFERENCES attribute_sets (id)
    ) STRICT;
    CREATE INDEX spans_by_trace ON spans (id >> 13, substr(trace_id, 1, 4));
    CREATE INDEX spans_by_duration ON spans (id >> 13, duration, operation) WHERE is_request;
    CREATE INDEX spans_by_operation ON spans (operation);
    CREATE INDEX spans_with_error ON spans (is_request) WHERE error IS NOT NULL;

    CREATE TABLE samples (
        minute INTEGER NOT NULL REFERENCES minutes (id),
        resource INTEGER NOT NULL REFERENCES resources (id),
        thread TEXT NOT NULL,
        stack INTEGER NOT NULL REFERENCES stacks (id),
        count INTEGER NOT NULL,
        cpu INTEGER NOT NULL,                  -- nanoseconds
        PRIMARY KEY (minute, resource, thread, stack)
    ) STRICT, WITHOUT ROWID;

    CREATE VIEW all_spans AS
        SELECT s.id, strftime('%Y-%m-%dT%H:%M:%fZ', s.start / 1e9, 'unixepoch') AS time,
            o.service, r.pid, o.kind, o.name, o.method, o.route, s.status, s.error,
            s.duration / 1e6 AS milliseconds, s.queue / 1e6 AS queue_milliseconds, s.path, s.query,
            s.client_address, s.link, lower(hex(s.trace_id)) AS trace_id,
            lower(hex(s.span_id)) AS span_id, lower(hex(s.parent_id)) AS parent_id, s.start, s.duration,
            json_patch(coalesce(a.attributes, '{}'), coalesce(s.attributes, '{}')) AS attributes,
            s.is_request
        FROM spans s
            JOIN operations o ON o.id = s.operation
            JOIN resources r ON r.id = s.resource
            LEFT JOIN attribute_sets a ON a.id = s.attribute_set;
    CREATE VIEW requests AS SELECT * FROM all_spans WHERE is_request;
    CREATE VIEW profile AS
        SELECT strftime('%Y-%m-%dT%H:%M:%SZ', m.start / 1e9, 'unixepoch') AS minute, r.service, r.pid,
            p.thread, p.count, p.cpu / 1e9 AS cpu_seconds, k.frames
        FROM samples p
            JOIN minutes m ON m.id = p.minute
            JOIN resources r ON r.id = p.resource
            JOIN stacks k ON k.id = p.stack;
";

/// Makes an empty file a store, and an older one a store of this version; what is no store, or is of a
/// newer version, is refused.
pub(super) fn prepare(connection: &mut Connection) -> Result<()> {
    migrate(connection, MIGRATIONS)
}

fn migrate(connection: &mut Connection, migrations: &[&str]) -> Result<()> {
    let version = version(connection)?;
    let current = migrations.len() as i32;
    if version > current {
        return Err(newer(version));
    }
    if version == 0 {
        // Must be told before the first table is made.
        connection.execute_batch("PRAGMA auto_vacuum = incremental")?;
    }
    for (from, script) in migrations.iter().enumerate().skip(version as usize) {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Exclusive)?;
        transaction.execute_batch(script)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", from as i32 + 1)?;
        transaction.commit()?;
    }
    Ok(())
}

/// The version of a file; 0 for an empty one.
pub(super) fn version(connection: &Connection) -> Result<i32> {
    let pragma = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
    let application = pragma("application_id")?;
    let version = pragma("user_version")?;
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    match (application, version, tables) {
        (0, 0, 0) => Ok(0),
        (APPLICATION_ID, 1.., 1..) => Ok(version),
        _ => Err(StoreError::new(
            Kind::Corrupt,
            "it is an SQLite file of something else",
        )),
    }
}

/// Refuses a file that a newer program wrote.
pub(super) fn newer(version: i32) -> StoreError {
    StoreError::new(
        Kind::Newer,
        format_args!(
            "it is of version {version}, and this program knows versions up to {VERSION}; use the \
             newer decnet-trace, or another folder"
        ),
    )
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    /// An empty file becomes a store, and one that is a store stays as it is.
    #[test]
    fn makes_tables_once() {
        let mut connection = Connection::open_in_memory().unwrap();
        assert_eq!(version(&connection).unwrap(), 0);
        for _ in 0..2 {
            prepare(&mut connection).unwrap();
            assert_eq!(version(&connection).unwrap(), VERSION);
        }
        for view in ["requests", "all_spans", "profile"] {
            let sql = format!("SELECT count(*) FROM {view}");
            let rows: i64 = connection.query_row(&sql, [], |row| row.get(0)).unwrap();
            assert_eq!(rows, 0);
        }
    }

    /// Each version's script runs once, in order, and keeps what is there; one that fails leaves the
    /// file as it was.
    #[test]
    fn migrates_forward() {
        let mut connection = Connection::open_in_memory().unwrap();
        let first = "CREATE TABLE t (a) STRICT";
        let first = &first.replace("(a)", "(a INTEGER)");
        migrate(&mut connection, &[first]).unwrap();
        connection.execute("INSERT INTO t VALUES (7)", []).unwrap();
        let second = "ALTER TABLE t ADD COLUMN b INTEGER; UPDATE t SET b = a + 1";
        migrate(&mut connection, &[first, second]).unwrap();
        migrate(&mut connection, &[first, second]).unwrap();
        let third = "UPDATE t SET b = 0; CREATE TABLE broken (";
        migrate(&mut connection, &[first, second, third]).unwrap_err();
        assert_eq!(version(&connection).unwrap(), 2);
        let row = connection.query_row("SELECT a, b FROM t", [], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?))
        });
        assert_eq!(row.unwrap(), (7, 8));
    }

    /// A file of a newer version, or of another program, is not touched.
    #[test]
    fn refuses_what_it_does_not_know() {
        let mut newer = Connection::open_in_memory().unwrap();
        prepare(&mut newer).unwrap();
        newer
            .pragma_update(None, "user_version", VERSION + 1)
            .unwrap();
        assert_eq!(prepare(&mut newer).unwrap_err().kind(), Kind::Newer);
        let mut other = Connection::open_in_memory().unwrap();
        other.execute_batch("CREATE TABLE x (y)").unwrap();
        assert_eq!(prepare(&mut other).unwrap_err().kind(), Kind::Corrupt);
        assert!(other.execute("INSERT INTO x VALUES (1)", []).is_ok());
    }

    /// The index and the queries cut ids into the same buckets.
    #[test]
    fn buckets_agree() {
        assert!(V1.contains(&format!("id >> {BUCKET_BITS}, substr")));
        assert!(V1.contains(&format!("id >> {BUCKET_BITS}, duration,")));
    }
}
