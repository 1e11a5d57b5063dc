//! Texts that many rows share: each stands once in a table of its own, and rows have its number.
//!
//! A row is kept as long as something is that was stored until the time that it says (`kept_until`, in
//! seconds of the store's own clock). That lies ahead, so that it is written again once in a while, and
//! not with each use.

use std::hash::Hasher as _;

use rusqlite::{Connection, OptionalExtension as _, ToSql, params};
use rustc_hash::{FxHashMap, FxHasher};

/// How far ahead a row is kept, in seconds.
const AHEAD: i64 = 15 * 60;

/// How many rows are remembered; beyond, all are forgotten and looked up again.
const REMEMBERED_MAX: usize = 4096;

/// The statements of a table.
pub(super) struct Table {
    /// id by hash and key: `?1` the hash, then the key's columns.
    find: &'static str,
    /// A new row: the hash, the time, then the key's columns.
    insert: &'static str,
    /// `?1` the time, `?2` the id.
    keep: &'static str,
}

pub(super) const RESOURCES: Table = Table {
    find: "SELECT id FROM resources WHERE hash = ?1 AND service = ?2 AND pid = ?3 AND attributes = ?4",
    insert: "INSERT INTO resources (hash, kept_until, service, pid, attributes) \
             VALUES (?1, ?2, ?3, ?4, ?5)",
    keep: "UPDATE resources SET kept_until = ?1 WHERE id = ?2",
};

pub(super) const OPERATIONS: Table = Table {
    find: "SELECT id FROM operations WHERE hash = ?1 AND service = ?2 AND kind = ?3 AND name = ?4 \
           AND method IS ?5 AND route IS ?6",
    insert: "INSERT INTO operations (hash, kept_until, service, kind, name, method, route) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    keep: "UPDATE operations SET kept_until = ?1 WHERE id = ?2",
};

pub(super) const ATTRIBUTE_SETS: Table = Table {
    find: "SELECT id FROM attribute_sets WHERE hash = ?1 AND attributes = ?2",
    insert: "INSERT INTO attribute_sets (hash, kept_until, attributes) VALUES (?1, ?2, ?3)",
    keep: "UPDATE attribute_sets SET kept_until = ?1 WHERE id = ?2",
};

pub(super) const STACKS: Table = Table {
    find: "SELECT id FROM stacks WHERE hash = ?1 AND frames = ?2",
    insert: "INSERT INTO stacks (hash, kept_until, frames) VALUES (?1, ?2, ?3)",
    keep: "UPDATE stacks SET kept_until = ?1 WHERE id = ?2",
};

#[derive(Clone, Copy)]
struct Entry {
    id: i64,
    kept_until: i64,
}

/// A table's rows as far as they are remembered.
pub(super) struct Interned {
    table: Table,
    entries: FxHashMap<u64, Entry>,
}

impl Interned {
    pub(super) fn new(table: Table) -> Self {
        Self {
            table,
            entries: FxHashMap::default(),
        }
    }

    /// Forgets what is remembered: a transaction that made some of it was rolled back.
    pub(super) fn forget(&mut self) {
        self.entries.clear();
    }

    /// The number of a row that is remembered under `key` and kept for what is stored at this time.
    pub(super) fn get(&self, key: u64, at: i64) -> Option<i64> {
        let entry = self.entries.get(&key)?;
        (entry.kept_until >= at).then_some(entry.id)
    }

    /// The number of the row with these columns, which is made where it is missing. It is remembered
    /// under `key`.
    pub(super) fn put(
        &mut self,
        connection: &Connection,
        key: u64,
        at: i64,
        columns: &[&dyn ToSql],
    ) -> rusqlite::Result<i64> {
        let hash = hash_of(columns)?;
        let kept_until = at + AHEAD;
        let found: Option<i64> = connection
            .prepare_cached(self.table.find)?
            .query_row(&*[&[&hash as &dyn ToSql], columns].concat(), |row| {
                row.get(0)
            })
            .optional()?;
        let id = match found {
            Some(id) => {
                connection
                    .prepare_cached(self.table.keep)?
                    .execute(params![kept_until, id])?;
                id
            }
            None => connection
                .prepare_cached(self.table.insert)?
                .insert(&*[&[&hash as &dyn ToSql, &kept_until], columns].concat())?,
        };
        if self.entries.len() >= REMEMBERED_MAX {
            self.entries.clear();
        }
        self.entries.insert(key, Entry { id, kept_until });
        Ok(id)
    }
}

/// A hash of the columns that is the same at every start, to find a row by.
fn hash_of(columns: &[&dyn ToSql]) -> rusqlite::Result<i64> {
    use rusqlite::types::{ToSqlOutput, Value, ValueRef};
    let mut hasher = FxHasher::default();
    for column in columns {
        let output = column.to_sql()?;
        let value = match &output {
            ToSqlOutput::Borrowed(value) => *value,
            ToSqlOutput::Owned(value) => ValueRef::from(value as &Value),
            _ => ValueRef::Null,
        };
        match value {
            ValueRef::Null => hasher.write_u8(0),
            ValueRef::Integer(number) => hasher.write_i64(number),
            ValueRef::Real(number) => hasher.write_u64(number.to_bits()),
            ValueRef::Text(bytes) | ValueRef::Blob(bytes) => {
                hasher.write(bytes);
                hasher.write_u8(0xff);
            }
        }
    }
    Ok(hasher.finish() as i64)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;
    use crate::store::schema;

    fn connection() -> Connection {
        let mut connection = Connection::open_in_memory().unwrap();
        schema::prepare(&mut connection).unwrap();
        connection
    }

    fn kept_until(connection: &Connection) -> Vec<i64> {
        let mut statement = connection
            .prepare("SELECT kept_until FROM stacks ORDER BY id")
            .unwrap();
        let rows = statement.query_map([], |row| row.get(0)).unwrap();
        rows.map(Result::unwrap).collect()
    }

    /// A text has one row, also after everything was forgotten, and the row is kept as long as it is
    /// used.
    #[test]
    fn stands_once() {
        let connection = connection();
        let mut stacks = Interned::new(STACKS);
        let a = stacks.put(&connection, 1, 10, &[&"a;b"]).unwrap();
        assert_eq!(stacks.get(1, 10 + AHEAD), Some(a));
        assert_eq!(stacks.get(1, 11 + AHEAD), None);
        assert_eq!(stacks.put(&connection, 1, 40, &[&"a;b"]).unwrap(), a);
        stacks.forget();
        assert_eq!(stacks.get(1, 40), None);
        assert_eq!(stacks.put(&connection, 9, 41, &[&"a;b"]).unwrap(), a);
        assert_ne!(stacks.put(&connection, 2, 41, &[&"a;c"]).unwrap(), a);
        assert_eq!(kept_until(&connection), [41 + AHEAD, 41 + AHEAD]);
    }

    /// Columns that are missing are told apart from empty ones.
    #[test]
    fn missing_is_not_empty() {
        let connection = connection();
        let mut operations = Interned::new(OPERATIONS);
        let none: Option<&str> = None;
        let one = operations
            .put(&connection, 1, 1, &[&"s", &"server", &"GET", &"GET", &none])
            .unwrap();
        let other = operations
            .put(&connection, 2, 1, &[&"s", &"server", &"GET", &"GET", &""])
            .unwrap();
        assert_ne!(one, other);
        operations.forget();
        let again = operations
            .put(&connection, 3, 1, &[&"s", &"server", &"GET", &"GET", &none])
            .unwrap();
        assert_eq!(again, one);
    }

    /// What is remembered is bounded.
    #[test]
    fn remembers_a_bounded_number() {
        let connection = connection();
        connection.execute_batch("BEGIN").unwrap();
        let mut stacks = Interned::new(STACKS);
        for n in 0..REMEMBERED_MAX as u64 + 10 {
            stacks.put(&connection, n, 1, &[&n.to_string()]).unwrap();
        }
        assert!(stacks.entries.len() <= REMEMBERED_MAX);
        let last = REMEMBERED_MAX as u64 + 9;
        assert!(stacks.get(last, 1).is_some());
    }
}
