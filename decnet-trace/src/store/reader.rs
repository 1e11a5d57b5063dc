//! What was stored: read while an agent writes, and after it has gone.

use std::{collections::BTreeSet, fmt, ops::RangeInclusive, path::Path, time::Duration};

use globset::GlobMatcher;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension as _, params};
use rustc_hash::FxHashSet;

pub use super::error::{Kind, Result, StoreError};
use super::{
    folder,
    row::{SELECT, StoredSpan},
    schema::{self, BUCKET_BITS},
};

/// How long a writer is waited for that just then begins its log anew.
const BUSY: Duration = Duration::from_secs(5);

/// The most spans of a trace that are read.
pub const TRACE_SPANS_MAX: usize = 10_000;

/// How long a minute is, in nanoseconds, with a second for when it began late.
const MINUTE: u64 = 61_000_000_000;

/// By how much a minute may have begun before the first span was stored in it, in nanoseconds, and the clocks of
/// spans may differ from the store's.
const LATE: i64 = 2_000_000_000;

/// A store that is read.
pub struct Reader {
    connection: Connection,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").finish_non_exhaustive()
    }
}

/// Which requests.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Of this service.
    pub service: Option<String>,
    /// Whose route matches.
    pub route: Option<GlobMatcher>,
    /// That began at this time or later, in nanoseconds since the Unix epoch.
    pub since: u64,
    /// That failed.
    pub errors: bool,
}

/// In which order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The one that began last comes first.
    Last,
    /// The slowest comes first.
    Slowest,
}

impl Reader {
    /// Opens the store in a folder. What is read through it is the state of the moment of the first
    /// question. Nothing is written to the store itself; SQLite may make the two files beside it anew.
    ///
    /// # Errors
    ///
    /// When there is none ([`Kind::Missing`]), it is of a newer version, or it cannot be read.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder::database(folder);
        std::fs::metadata(&path)?;
        let connection = match open(&path) {
            Ok(connection) => connection,
            // The folder cannot be written to, and no agent has it open: then the file does not change.
            Err(error) if is_read_only(&error) => {
                let mut url = String::from("file:");
                for byte in path.as_os_str().as_encoded_bytes() {
                    match byte {
                        b'/' | b'.' | b'-' | b'_' => url.push(char::from(*byte)),
                        byte if byte.is_ascii_alphanumeric() => url.push(char::from(*byte)),
                        byte => url.push_str(&format!("%{byte:02x}")),
                    }
                }
                url.push_str("?immutable=1");
                open(Path::new(&url))?
            }
            Err(error) => return Err(error.into()),
        };
        let version = schema::version(&connection)?;
        match version {
            0 => {
                return Err(StoreError::new(
                    Kind::Missing,
                    "nothing is stored in it yet",
                ));
            }
            version if version > schema::VERSION => return Err(schema::newer(version)),
            _ => {}
        }
        connection.execute_batch("BEGIN")?;
        Ok(Self { connection })
    }

    /// The requests that services answered, at most `count`.
    ///
    /// # Errors
    ///
    /// When the store cannot be read.
    pub fn requests(&self, filter: &Filter, order: Order, count: usize) -> Result<Vec<StoredSpan>> {
        let Some(ids) = self.ids_since(filter.since)? else {
            return Ok(Vec::new());
        };
        let operations = self.operations(filter)?;
        let wanted = Wanted {
            filter,
            operations: operations.as_ref(),
            ids,
            count,
        };
        match order {
            Order::Last if filter.errors || operations.is_none() => self.last(&wanted),
            Order::Last => self.last_of_operations(&wanted),
            Order::Slowest => self.slowest(&wanted),
        }
    }

    /// The spans of a trace, as they came; at most [`TRACE_SPANS_MAX`].
    ///
    /// # Errors
    ///
    /// When the store cannot be read.
    pub fn trace(&self, trace_id: &[u8; 16]) -> Result<Vec<StoredSpan>> {
        match self.ids()? {
            Some(ids) => self.trace_among(trace_id, &ids),
            None => Ok(Vec::new()),
        }
    }

    /// Likewise, but only those that came in the minutes around a span of it. It takes less time where
    /// much is stored.
    ///
    /// # Errors
    ///
    /// When the store cannot be read.
    pub fn trace_around(&self, span: &StoredSpan) -> Result<Vec<StoredSpan>> {
        let Some(ids) = self.ids_since(span.start.saturating_sub(MINUTE))? else {
            return Ok(Vec::new());
        };
        // The minutes of the wall clock may repeat: the last that may be meant ends it.
        let after: Option<i64> = self.connection.query_row(
            "SELECT min(first_span) FROM minutes WHERE start > ?1 AND first_span > ?2",
            params![signed(span.end().saturating_add(2 * MINUTE)), span.id],
            |row| row.get(0),
        )?;
        let ids = (*ids.start()).min(span.id)..=after.unwrap_or(*ids.end());
        self.trace_among(&span.trace_id, &ids)
    }

    /// The traces whose ids begin with these hexadecimal digits, at most `count`.
    ///
    /// # Errors
    ///
    /// When the store cannot be read.
    pub fn traces_with_prefix(&self, prefix: &str, count: usize) -> Result<Vec<[u8; 16]>> {
        let Some((low, high)) = bounds_of_prefix(prefix) else {
            return Ok(Vec::new());
        };
        let Some(ids) = self.ids()? else {
            return Ok(Vec::new());
        };
        let mut found = BTreeSet::new();
        let mut statement = self.connection.prepare_cached(&format!(
            "SELECT DISTINCT trace_id FROM spans INDEXED BY spans_by_trace \
             WHERE id >> {BUCKET_BITS} = ?1 AND substr(trace_id, 1, 4) BETWEEN ?2 AND ?3 \
             AND trace_id BETWEEN ?4 AND ?5 LIMIT ?6"
        ))?;
        for bucket in buckets(&ids) {
            let parameters = params![bucket, &low[..4], &high[..4], low, high, count as i64];
            let rows = statement.query_map(parameters, |row| row.get::<_, [u8; 16]>(0))?;
            for row in rows {
                found.insert(row?);
            }
            if found.len() >= count {
                break;
            }
        }
        Ok(found.into_iter().take(count).collect())
    }

    fn trace_among(
        &self,
        trace_id: &[u8; 16],
        ids: &RangeInclusive<i64>,
    ) -> Result<Vec<StoredSpan>> {
        let mut statement = self.connection.prepare_cached(&format!(
            "SELECT id FROM spans INDEXED BY spans_by_trace \
             WHERE id >> {BUCKET_BITS} = ?1 AND substr(trace_id, 1, 4) = ?2 AND trace_id = ?3"
        ))?;
        let mut found = Vec::new();
        for bucket in buckets(ids) {
            let parameters = params![bucket, &trace_id[..4], trace_id];
            let rows = statement.query_map(parameters, |row| row.get::<_, i64>(0))?;
            for id in rows {
                found.push(id?);
            }
            if found.len() >= TRACE_SPANS_MAX {
                break;
            }
        }
        found.sort_unstable();
        found.truncate(TRACE_SPANS_MAX);
        self.spans(&found)
    }

    fn spans(&self, ids: &[i64]) -> Result<Vec<StoredSpan>> {
        let mut statement = self
            .connection
            .prepare_cached(&format!("{SELECT} WHERE s.id = ?1"))?;
        let mut spans = Vec::with_capacity(ids.len());
        for id in ids {
            spans.extend(statement.query_row([id], StoredSpan::from_row).optional()?);
        }
        Ok(spans)
    }

    /// The ids of all spans; `None` where there are none.
    fn ids(&self) -> Result<Option<RangeInclusive<i64>>> {
        let end = |function| -> Result<Option<i64>> {
            let sql = format!("SELECT {function}(id) FROM spans");
            Ok(self.connection.query_row(&sql, [], |row| row.get(0))?)
        };
        Ok(end("min")?.zip(end("max")?).map(|(min, max)| min..=max))
    }

    /// The ids of spans that may have begun at that time or later.
    fn ids_since(&self, since: u64) -> Result<Option<RangeInclusive<i64>>> {
        let Some(ids) = self.ids()? else {
            return Ok(None);
        };
        if since == 0 {
            return Ok(Some(ids));
        }
        let first: Option<i64> = self.connection.query_row(
            "SELECT min(first_span) FROM minutes WHERE start >= ?1",
            [signed(since.saturating_sub(MINUTE))],
            |row| row.get(0),
        )?;
        Ok(first.map(|first| first.max(*ids.start())..=*ids.end()))
    }

    /// The operations that a filter lets through; `None` where it lets all.
    fn operations(&self, filter: &Filter) -> Result<Option<FxHashSet<i64>>> {
        if filter.service.is_none() && filter.route.is_none() {
            return Ok(None);
        }
        let mut statement = self
            .connection
            .prepare_cached("SELECT id, service, route FROM operations WHERE kind = 'server'")?;
        let mut rows = statement.query([])?;
        let mut found = FxHashSet::default();
        while let Some(row) = rows.next()? {
            let service: String = row.get(1)?;
            let route: Option<String> = row.get(2)?;
            let matches = filter
                .service
                .as_ref()
                .is_none_or(|wanted| *wanted == service)
                && filter.route.as_ref().is_none_or(|wanted| {
                    route.as_ref().is_some_and(|route| wanted.is_match(route))
                });
            if matches {
                found.insert(row.get(0)?);
            }
        }
        Ok(Some(found))
    }

    fn last(&self, wanted: &Wanted<'_>) -> Result<Vec<StoredSpan>> {
        let sql = match wanted.filter.errors {
            true => {
                "SELECT id, start, operation FROM spans INDEXED BY spans_with_error \
                 WHERE is_request = 1 AND error IS NOT NULL AND id >= ?1 ORDER BY id DESC"
            }
            false => {
                "SELECT id, start, operation FROM spans NOT INDEXED \
                 WHERE is_request = 1 AND id >= ?1 ORDER BY id DESC"
            }
        };
        let mut statement = self.connection.prepare_cached(sql)?;
        let mut rows = statement.query([wanted.ids.start()])?;
        let mut latest = Latest::new(wanted.count);
        let mut minutes = self.minutes()?.into_iter().peekable();
        while let Some(row) = rows.next()? {
            let (id, start) = (row.get(0)?, row.get(1)?);
            if latest.is_complete(id, &mut minutes) {
                break;
            }
            if wanted.has(row.get(2)?) && wanted.is_recent(start) {
                latest.add(start, id);
            }
        }
        self.spans(&latest.ids())
    }

    /// The minutes in which something was stored, the last one first: the first span of each, and a time after
    /// which none of those before it began.
    fn minutes(&self) -> Result<Vec<(i64, i64)>> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT first_span, start FROM minutes ORDER BY id")?;
        let mut rows = statement.query([])?;
        let mut found = Vec::new();
        let mut latest = 0;
        while let Some(row) = rows.next()? {
            // The wall clock may have been set back.
            latest = row.get::<_, i64>(1)?.max(latest);
            found.push((row.get(0)?, latest.saturating_add(LATE)));
        }
        found.reverse();
        Ok(found)
    }

    fn last_of_operations(&self, wanted: &Wanted<'_>) -> Result<Vec<StoredSpan>> {
        let mut statement = self.connection.prepare_cached(
            "SELECT id, start FROM spans INDEXED BY spans_by_operation \
             WHERE operation = ?1 AND id >= ?2 AND start >= ?3 ORDER BY id DESC",
        )?;
        let mut latest = Latest::new(wanted.count);
        let minutes = self.minutes()?;
        for operation in wanted.operations.into_iter().flatten() {
            let since = signed(wanted.filter.since);
            let mut rows = statement.query(params![operation, wanted.ids.start(), since])?;
            let mut minutes = minutes.iter().copied().peekable();
            while let Some(row) = rows.next()? {
                let id = row.get(0)?;
                if latest.is_complete(id, &mut minutes) {
                    break;
                }
                latest.add(row.get(1)?, id);
            }
        }
        self.spans(&latest.ids())
    }

    /// Each bucket's requests from the slowest on, as long as they may be among those asked for.
    fn slowest(&self, wanted: &Wanted<'_>) -> Result<Vec<StoredSpan>> {
        let mut statement = self.connection.prepare_cached(&format!(
            "SELECT id, duration, operation FROM spans INDEXED BY spans_by_duration \
             WHERE is_request AND id >> {BUCKET_BITS} = ?1 ORDER BY duration DESC"
        ))?;
        let mut more = self
            .connection
            .prepare_cached("SELECT start, error IS NOT NULL FROM spans WHERE id = ?1")?;
        let mut found: BTreeSet<(i64, i64)> = BTreeSet::new();
        for bucket in buckets(&wanted.ids) {
            let mut rows = statement.query([bucket])?;
            while let Some(row) = rows.next()? {
                let (id, duration): (i64, i64) = (row.get(0)?, row.get(1)?);
                let least = found.first().map_or(0, |(duration, _)| *duration);
                if found.len() >= wanted.count && duration <= least {
                    break;
                }
                if !wanted.has(row.get(2)?) || !wanted.ids.contains(&id) {
                    continue;
                }
                if wanted.filter.since > 0 || wanted.filter.errors {
                    let (start, failed) = more.query_row([id], |row| {
                        Ok((row.get::<_, i64>(0)?, row.get::<_, bool>(1)?))
                    })?;
                    if !wanted.is_recent(start) || wanted.filter.errors && !failed {
                        continue;
                    }
                }
                found.insert((duration, id));
                if found.len() > wanted.count {
                    found.pop_first();
                }
            }
        }
        let ids: Vec<i64> = found.into_iter().rev().map(|(_, id)| id).collect();
        self.spans(&ids)
    }
}

/// The requests that began last, of those that are looked through, the last to come first. They came in the order of
/// their ends, or later: one that is long, or waited for its place in a trace.
struct Latest {
    count: usize,
    found: BTreeSet<(i64, i64)>,
}

impl Latest {
    const fn new(count: usize) -> Self {
        Self {
            count,
            found: BTreeSet::new(),
        }
    }

    fn add(&mut self, start: i64, id: i64) {
        self.found.insert((start, id));
        if self.found.len() > self.count {
            self.found.pop_first();
        }
    }

    /// Whether neither this span nor any that came before it can be among them.
    fn is_complete(
        &self,
        id: i64,
        minutes: &mut std::iter::Peekable<impl Iterator<Item = (i64, i64)>>,
    ) -> bool {
        let mut began_before = i64::MAX;
        while let Some((_, end)) = minutes.next_if(|(first_span, _)| id < *first_span) {
            began_before = end;
        }
        let first = self.found.first();
        self.found.len() >= self.count && first.is_none_or(|(start, _)| *start >= began_before)
    }

    /// The last one first.
    fn ids(&self) -> Vec<i64> {
        self.found.iter().rev().map(|(_, id)| *id).collect()
    }
}

/// What requests are asked for.
struct Wanted<'a> {
    filter: &'a Filter,
    operations: Option<&'a FxHashSet<i64>>,
    ids: RangeInclusive<i64>,
    count: usize,
}

impl Wanted<'_> {
    fn has(&self, operation: i64) -> bool {
        self.operations
            .is_none_or(|operations| operations.contains(&operation))
    }

    fn is_recent(&self, start: i64) -> bool {
        start >= signed(self.filter.since)
    }
}

fn open(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_URI;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY)?;
    // Opening reads nothing yet.
    connection.pragma_query_value(None, "user_version", |_| Ok(()))?;
    Ok(connection)
}

fn is_read_only(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly | ErrorCode::PermissionDenied)
    )
}

fn buckets(ids: &RangeInclusive<i64>) -> RangeInclusive<i64> {
    ids.start() >> BUCKET_BITS..=ids.end() >> BUCKET_BITS
}

/// The least and the greatest trace id that begins so; `None` where none can.
fn bounds_of_prefix(prefix: &str) -> Option<([u8; 16], [u8; 16])> {
    if prefix.len() > 32 || !prefix.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let bound = |fill: &str| {
        let digits = format!("{prefix}{}", fill.repeat(32 - prefix.len()));
        u128::from_str_radix(&digits, 16)
            .ok()
            .map(u128::to_be_bytes)
    };
    bound("0").zip(bound("f"))
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
