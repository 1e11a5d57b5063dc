//! What is too old or too much goes, the oldest first, some rows with each transaction.
//!
//! Rows go in the order in which they came, so that whole pages become free, which what comes next is
//! written to: at its bound the file neither grows nor moves.

use std::time::Duration;

use rusqlite::{Connection, OptionalExtension as _};

use super::{StoreConfig, error::Result};

/// How long a minute is, in seconds: rows are stored in it for no longer.
pub(super) const MINUTE: u64 = 60;

/// The size of a page; SQLite's default.
const PAGE: u64 = 4096;

/// How many free pages are given back to the file system with each batch, once there are too many.
const SHRINK_PAGES: u32 = 512;

/// The bounds of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    /// Seconds.
    max_age: u64,
    /// The most pages that the database has.
    pages: u64,
    /// The most of them that are in use after a sweep; what is left is for the next batch.
    used: u64,
    /// The most bytes that the write-ahead log takes.
    pub(super) log: u64,
    /// At how many pages of the log it is written back.
    pub(super) checkpoint: u64,
}

impl Bounds {
    /// Of the size, the log and its index get an eighth, and at most 32 MiB.
    pub(super) fn of(config: &StoreConfig) -> Self {
        let side = (config.max_size / 8).clamp(1 << 20, 32 << 20);
        let log = side - side / 16;
        let pages = config.max_size.saturating_sub(side) / PAGE;
        Self {
            max_age: config.max_age.max(Duration::from_secs(1)).as_secs(),
            pages,
            used: pages - pages / 32,
            log,
            checkpoint: (log / PAGE / 4).min(1000),
        }
    }
}

/// The oldest minute, and where the next begins.
struct Oldest {
    minute: i64,
    /// The id that no span of it has reached.
    end: i64,
    /// When its last row was stored at the latest, by the store's own clock.
    over: u64,
    /// Whether rows are still stored in it.
    is_last: bool,
}

impl Oldest {
    /// Whether everything in it is older than `max_age` at `now`.
    fn is_expired(&self, bounds: &Bounds, now: u64) -> bool {
        self.over + bounds.max_age <= now
    }
}

fn oldest(connection: &Connection) -> rusqlite::Result<Option<Oldest>> {
    let mut statement = connection
        .prepare_cached("SELECT id, clock, first_span FROM minutes ORDER BY id LIMIT 2")?;
    let mut rows = statement.query([])?;
    let Some(first) = rows.next()? else {
        return Ok(None);
    };
    let unsigned = |number: i64| u64::try_from(number).unwrap_or(0);
    let (minute, clock): (_, u64) = (first.get(0)?, unsigned(first.get(1)?));
    let over = clock + MINUTE;
    Ok(Some(match rows.next()? {
        Some(next) => Oldest {
            minute,
            end: next.get(2)?,
            over: over.min(unsigned(next.get(1)?)),
            is_last: false,
        },
        None => Oldest {
            minute,
            end: i64::MAX,
            over,
            is_last: true,
        },
    }))
}

fn pages(connection: &Connection) -> rusqlite::Result<(u64, u64)> {
    let pragma = |sql| -> rusqlite::Result<u64> {
        let number: i64 = connection
            .prepare_cached(sql)?
            .query_row([], |row| row.get(0))?;
        Ok(u64::try_from(number).unwrap_or(0))
    };
    let all = pragma("PRAGMA page_count")?;
    Ok((all, all.saturating_sub(pragma("PRAGMA freelist_count")?)))
}

/// Whether there is something to delete, or to give back.
pub(super) fn is_due(connection: &Connection, bounds: &Bounds, now: u64) -> Result<bool> {
    let (all, used) = pages(connection)?;
    if all > bounds.pages || used > bounds.used {
        return Ok(true);
    }
    Ok(oldest(connection)?.is_some_and(|oldest| oldest.is_expired(bounds, now)))
}

/// Deletes up to `rows` spans, and what goes with them, as far as they are too old or too much; `now` is
/// the time of the store's own clock.
pub(super) fn sweep(connection: &Connection, bounds: &Bounds, now: u64, rows: usize) -> Result<()> {
    let mut left = i64::try_from(rows).unwrap_or(i64::MAX);
    while left > 0 {
        let Some(oldest) = oldest(connection)? else {
            return Ok(());
        };
        let is_expired = oldest.is_expired(bounds, now);
        if !is_expired && pages(connection)?.1 <= bounds.used {
            return Ok(());
        }
        let first: Option<i64> = connection
            .prepare_cached("SELECT min(id) FROM spans")?
            .query_row([], |row| row.get(0))?;
        let end = oldest.end;
        if let Some(first) = first.filter(|first| *first < end) {
            // Little at a time where it is too much, so that no more goes than must.
            let part = if is_expired { left } else { left.min(500) };
            connection
                .prepare_cached("DELETE FROM spans WHERE id < ?1")?
                .execute([first.saturating_add(part).min(end)])?;
            left -= part;
        } else {
            connection
                .prepare_cached("DELETE FROM samples WHERE minute = ?1")?
                .execute([oldest.minute])?;
            if oldest.is_last && !is_expired {
                // The minute that is being stored has nothing left that could go.
                return Ok(());
            }
            connection
                .prepare_cached("DELETE FROM minutes WHERE id = ?1")?
                .execute([oldest.minute])?;
            forget(connection, now)?;
            left -= 100;
        }
    }
    Ok(())
}

/// Deletes what nothing refers to that is left.
fn forget(connection: &Connection, now: u64) -> rusqlite::Result<()> {
    let oldest: Option<i64> = connection
        .prepare_cached("SELECT clock FROM minutes ORDER BY id LIMIT 1")?
        .query_row([], |row| row.get(0))
        .optional()?;
    let before = oldest.unwrap_or(i64::try_from(now).unwrap_or(i64::MAX));
    for table in ["resources", "operations", "attribute_sets", "stacks"] {
        connection
            .prepare_cached(&format!("DELETE FROM {table} WHERE kept_until < ?1"))?
            .execute([before])?;
    }
    Ok(())
}

/// Gives pages back to the file system while there are more than may be: somebody lowered the bound.
pub(super) fn shrink(connection: &Connection, bounds: &Bounds) -> Result<()> {
    let (all, used) = pages(connection)?;
    if all > bounds.pages && all > used {
        // A page is given back with each step.
        let mut vacuum =
            connection.prepare_cached(&format!("PRAGMA incremental_vacuum({SHRINK_PAGES})"))?;
        let mut steps = vacuum.query([])?;
        while steps.next()?.is_some() {}
    }
    Ok(())
}
