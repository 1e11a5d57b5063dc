//! Batches of spans and profiles, each one transaction.

use std::{
    collections::hash_map::RandomState,
    fmt,
    hash::{BuildHasher as _, Hash as _, Hasher as _},
    path::PathBuf,
    thread,
    time::Duration,
};

use rusqlite::{
    Connection, OpenFlags, OptionalExtension as _, Transaction, TransactionBehavior, params,
};

pub use super::age::Now;
use super::{
    StoreConfig,
    age::{AgeClock, Last, boot},
    error::{Kind, Result, StoreError},
    folder::Held,
    intern::{ATTRIBUTE_SETS, Interned, OPERATIONS, RESOURCES, STACKS},
    retention::{self, Bounds, MINUTE},
    row::{Parts, kind_name},
    schema,
};
use crate::{
    profile::{
        Profile,
        label::{self, Style},
    },
    span::{Resource, Span},
};

/// How long another program that writes to the file is waited for.
const BUSY: Duration = Duration::from_secs(2);

/// How many rows are deleted with each batch, at least.
const SWEEP_MIN: usize = 2000;

/// After how many spans of a batch others are let run, about a quarter of a millisecond of work: a batch is a
/// second's, and whoever shares the CPU would wait for all of it.
const YIELD_EVERY: usize = 64;

/// A store that is written to.
pub struct Store {
    connection: Connection,
    held: Held,
    bounds: Bounds,
    clock: AgeClock,
    boot: String,
    minute: Option<Minute>,
    interned: InternedTables,
    /// Keys of what is remembered; random, so that nobody can choose texts that have the same.
    keys: RandomState,
    /// Kept for their room.
    shared: Vec<u8>,
    own: Vec<u8>,
}

struct InternedTables {
    resources: Interned,
    operations: Interned,
    attribute_sets: Interned,
    stacks: Interned,
}

/// The minute that rows are stored in.
#[derive(Clone, Copy)]
struct Minute {
    id: i64,
    /// When it began, by the store's own clock.
    clock: u64,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("held", &self.held)
            .finish_non_exhaustive()
    }
}

/// What was found when a store was opened.
#[derive(Debug)]
pub struct Opened {
    /// The store.
    pub store: Store,
    /// Where a file went that was broken.
    pub set_aside: Option<PathBuf>,
}

impl Store {
    /// Opens the store in a folder, and makes it where it is missing. A broken file is given another
    /// name, and a new one made in its place.
    ///
    /// # Errors
    ///
    /// When another agent has it, it is of a newer version, or folder or file cannot be used.
    pub fn open(config: &StoreConfig, now: &Now) -> Result<Opened> {
        let held = Held::take(&config.folder)?;
        match Self::open_held(held, config, now) {
            Ok(store) => Ok(Opened {
                store,
                set_aside: None,
            }),
            Err((held, error)) if error.kind() == Kind::Corrupt => {
                let set_aside = Some(held.set_aside()?);
                let store = Self::open_held(held, config, now).map_err(|(_, error)| error)?;
                Ok(Opened { store, set_aside })
            }
            Err((_, error)) => Err(error),
        }
    }

    /// Gives the store up because its file is broken, and begins anew with another; where the broken
    /// one went stands beside it.
    ///
    /// # Errors
    ///
    /// When that fails too.
    pub fn begin_anew(self, config: &StoreConfig, now: &Now) -> Result<Opened> {
        let Self {
            connection, held, ..
        } = self;
        // A broken file may not close well, and is closed all the same.
        drop(connection);
        let set_aside = Some(held.set_aside()?);
        let store = Self::open_held(held, config, now).map_err(|(_, error)| error)?;
        Ok(Opened { store, set_aside })
    }

    fn open_held(held: Held, config: &StoreConfig, now: &Now) -> Result<Self, (Held, StoreError)> {
        let bounds = Bounds::of(config);
        match connect(&held, &bounds).and_then(|connection| {
            let last = last_minute(&connection)?;
            Ok((connection, last))
        }) {
            Ok((connection, last)) => {
                let boot = boot();
                Ok(Self {
                    clock: AgeClock::open(last.as_ref(), now, &boot, config.max_age),
                    connection,
                    held,
                    bounds,
                    boot,
                    minute: None,
                    interned: InternedTables {
                        resources: Interned::new(RESOURCES),
                        operations: Interned::new(OPERATIONS),
                        attribute_sets: Interned::new(ATTRIBUTE_SETS),
                        stacks: Interned::new(STACKS),
                    },
                    keys: RandomState::new(),
                    shared: Vec::new(),
                    own: Vec::new(),
                })
            }
            Err(error) => Err((held, error)),
        }
    }

    /// Stores spans and a profile, and deletes some of what is too old or too much: all of it, or,
    /// where it fails, nothing.
    ///
    /// # Errors
    ///
    /// When the file cannot be written to. It can be tried again.
    pub fn write<'a>(
        &mut self,
        spans: impl IntoIterator<Item = &'a Span>,
        profile: Option<&Profile>,
        now: &Now,
    ) -> Result<()> {
        self.check_log()?;
        let result = self.write_all(spans.into_iter(), profile, now);
        if result.is_err() {
            // What was remembered may have been rolled back.
            self.minute = None;
            self.interned.resources.forget();
            self.interned.operations.forget();
            self.interned.attribute_sets.forget();
            self.interned.stacks.forget();
        }
        result
    }

    /// Deletes some of what is too old or too much, while nothing is stored.
    ///
    /// # Errors
    ///
    /// When the file cannot be written to.
    pub fn sweep(&mut self, now: &Now) -> Result<()> {
        if retention::is_due(&self.connection, &self.bounds, self.clock.at(now))? {
            self.write([], None, now)?;
        }
        Ok(())
    }

    fn write_all<'a>(
        &mut self,
        spans: impl Iterator<Item = &'a Span>,
        profile: Option<&Profile>,
        now: &Now,
    ) -> Result<()> {
        let Self {
            connection,
            interned,
            keys,
            shared,
            own,
            ..
        } = self;
        let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
        let mut spans = spans.peekable();
        let mut count = 0;
        if spans.peek().is_some() || profile.is_some_and(|profile| !profile.samples.is_empty()) {
            let at = self.clock.at(now);
            let minute = match self.minute {
                Some(minute) if at < minute.clock + MINUTE => minute,
                _ => begin_minute(&transaction, now, at, &self.boot)?,
            };
            self.minute = Some(minute);
            let mut batch = Batch {
                transaction: &transaction,
                interned,
                keys,
                shared,
                own,
                minute: minute.id,
                at: signed(minute.clock),
                new_sets: 0,
            };
            {
                let mut insert = transaction.prepare_cached(INSERT_SPAN)?;
                for span in spans {
                    count += 1;
                    batch.span(&mut insert, span, count)?;
                    if count.is_multiple_of(YIELD_EVERY) {
                        thread::yield_now();
                    }
                }
            }
            if let Some(profile) = profile {
                batch.profile(profile)?;
            }
        }
        let rows = SWEEP_MIN.max(2 * count);
        retention::sweep(&transaction, &self.bounds, self.clock.at(now), rows)?;
        transaction.commit()?;
        retention::shrink(&self.connection, &self.bounds)?;
        Ok(())
    }

    /// The log is emptied as soon as nobody reads what is in it. A reader that never ends keeps it from
    /// that, and the log must not grow for it.
    fn check_log(&self) -> Result<()> {
        if self.held.log_size() <= self.bounds.log {
            return Ok(());
        }
        let busy: bool =
            self.connection
                .query_row("PRAGMA wal_checkpoint(truncate)", [], |row| row.get(0))?;
        if busy && self.held.log_size() > self.bounds.log {
            return Err(StoreError::new(
                Kind::Other,
                "another program keeps a transaction open in it",
            ));
        }
        Ok(())
    }
}

fn connect(held: &Held, bounds: &Bounds) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let mut connection = Connection::open_with_flags(held.database()?, flags)?;
    connection.busy_timeout(BUSY)?;
    connection.set_prepared_statement_cache_capacity(32);
    schema::prepare(&mut connection)?;
    // References are for who reads; checking them costs more than the rows.
    connection.pragma_update(None, "foreign_keys", false)?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    // The file stays whole at any end of the agent; at the machine's, the last seconds may be missing.
    connection.pragma_update(None, "synchronous", "normal")?;
    connection.pragma_update(None, "journal_size_limit", signed(bounds.log))?;
    connection.pragma_update(None, "wal_autocheckpoint", signed(bounds.checkpoint))?;
    Ok(connection)
}

fn last_minute(connection: &Connection) -> Result<Option<Last>> {
    let last = connection
        .query_row(
            "SELECT start, clock, uptime, boot FROM minutes ORDER BY id DESC LIMIT 1",
            [],
            |row| {
                let unsigned = |column| {
                    row.get::<_, i64>(column)
                        .map(|n| u64::try_from(n).unwrap_or(0))
                };
                Ok(Last {
                    start: unsigned(0)?,
                    clock: unsigned(1)?,
                    uptime: unsigned(2)?,
                    boot: row.get(3)?,
                })
            },
        )
        .optional()?;
    Ok(last)
}

fn begin_minute(
    transaction: &Transaction<'_>,
    now: &Now,
    clock: u64,
    boot: &str,
) -> rusqlite::Result<Minute> {
    let mut insert = transaction.prepare_cached(
        "INSERT INTO minutes (start, clock, uptime, boot, first_span) VALUES (?1, ?2, ?3, ?4, \
         1 + coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'spans'), 0))",
    )?;
    let id = insert.insert(params![
        signed(now.unix),
        signed(clock),
        signed(now.uptime),
        boot
    ])?;
    Ok(Minute { id, clock })
}

const INSERT_SPAN: &str = "
    INSERT INTO spans (trace_id, span_id, parent_id, parent_is_remote, is_request, operation, resource,
        start, duration, status, error, link, path, query, client_address, peer_address, peer_port,
        request_size, response_size, request_body_size, response_body_size, queue, trace_state,
        attributes, attribute_set)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20,
        ?21, ?22, ?23, ?24, ?25)";

/// A transaction under way.
struct Batch<'a> {
    transaction: &'a Transaction<'a>,
    interned: &'a mut InternedTables,
    keys: &'a RandomState,
    shared: &'a mut Vec<u8>,
    own: &'a mut Vec<u8>,
    minute: i64,
    /// When it began, by the store's own clock.
    at: i64,
    new_sets: usize,
}

impl Batch<'_> {
    /// Stores a span, the `nth` of its batch.
    fn span(
        &mut self,
        insert: &mut rusqlite::Statement<'_>,
        span: &Span,
        nth: usize,
    ) -> rusqlite::Result<()> {
        let parts = Parts::of(span);
        let columns = &parts.columns;
        let resource = self.resource(&span.resource)?;
        let kind = kind_name(span.kind);
        let operation = self.operation(span, kind, columns.method, columns.route)?;
        let set = self.attribute_set(&parts, nth)?;
        parts.write_own(set.is_none(), self.own);
        let parent = (span.parent_id != [0; 8]).then_some(span.parent_id);
        let trace_state = Some(&*span.trace_state).filter(|state| !state.is_empty());
        insert.execute(params![
            span.trace_id,
            span.span_id,
            parent,
            span.parent_is_remote,
            kind == "server",
            operation,
            resource,
            signed(span.start),
            signed(span.end.saturating_sub(span.start)),
            columns.status,
            columns.error,
            columns.link,
            columns.path,
            columns.query,
            columns.client_address,
            columns.peer_address,
            columns.peer_port,
            columns.request_size,
            columns.response_size,
            columns.request_body_size,
            columns.response_body_size,
            columns.queue,
            trace_state,
            text(self.own),
            set,
        ])?;
        Ok(())
    }

    fn resource(&mut self, resource: &Resource) -> rusqlite::Result<i64> {
        // Processes are told apart by their `service.instance.id`, or another attribute.
        let mut hasher = self.keys.build_hasher();
        (resource.tgid, &resource.service_name).hash(&mut hasher);
        if let Some((_, crate::span::Value::Str(instance))) = resource
            .attributes
            .iter()
            .find(|(name, _)| name == "service.instance.id")
        {
            instance.hash(&mut hasher);
        }
        let key = hasher.finish();
        if let Some(id) = self.interned.resources.get(key, self.at) {
            return Ok(id);
        }
        let attributes: serde_json::Map<_, _> = resource
            .attributes
            .iter()
            .filter_map(|(name, value)| {
                let value = serde_json::to_value(super::row::Shown(value)).ok()?;
                Some((name.to_string(), value))
            })
            .collect();
        let attributes = serde_json::Value::Object(attributes).to_string();
        self.interned.resources.put(
            self.transaction,
            key,
            self.at,
            &[&resource.service_name, &resource.tgid, &attributes],
        )
    }

    fn operation(
        &mut self,
        span: &Span,
        kind: &str,
        method: Option<&str>,
        route: Option<&str>,
    ) -> rusqlite::Result<i64> {
        let service = &span.resource.service_name;
        let key = self
            .keys
            .hash_one((service, kind, &*span.name, method, route));
        if let Some(id) = self.interned.operations.get(key, self.at) {
            return Ok(id);
        }
        self.interned.operations.put(
            self.transaction,
            key,
            self.at,
            &[service, &kind, &&*span.name, &method, &route],
        )
    }

    /// The set of the shared attributes; `None` where there are none, or they turn out to differ from
    /// span to span: then sets would take more room than they save.
    fn attribute_set(&mut self, parts: &Parts<'_>, nth: usize) -> rusqlite::Result<Option<i64>> {
        let Some(key) = parts.shared_key(self.keys) else {
            return Ok(None);
        };
        if let Some(id) = self.interned.attribute_sets.get(key, self.at) {
            return Ok(Some(id));
        }
        if self.new_sets > nth / 4 + NEW_SETS_MIN {
            return Ok(None);
        }
        self.new_sets += 1;
        parts.write_shared(self.shared);
        let Some(set) = text(self.shared) else {
            return Ok(None);
        };
        self.interned
            .attribute_sets
            .put(self.transaction, key, self.at, &[&set])
            .map(Some)
    }

    fn profile(&mut self, profile: &Profile) -> rusqlite::Result<()> {
        // Equal functions are one frame, whatever line of them ran: stacks that differ by a line would
        // be hundreds.
        let style = Style {
            by_function: true,
            ..Style::default()
        };
        let mut insert = self.transaction.prepare_cached(
            "INSERT INTO samples (minute, resource, thread, stack, count, cpu) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT DO UPDATE \
             SET count = count + excluded.count, cpu = cpu + excluded.cpu",
        )?;
        let mut frames = String::new();
        for sample in &profile.samples {
            frames.clear();
            label::write_stack(sample, &style, &mut frames);
            let key = self.keys.hash_one(&frames);
            let stack = match self.interned.stacks.get(key, self.at) {
                Some(id) => id,
                None => self
                    .interned
                    .stacks
                    .put(self.transaction, key, self.at, &[&frames])?,
            };
            let resource = self.resource_of_pid(sample.process.tgid, &sample.process.command)?;
            let thread = sample.thread.as_ref().map_or("", |thread| &thread.name);
            let cpu = sample.count.saturating_mul(profile.meta.period());
            insert.execute(params![
                self.minute,
                resource,
                thread,
                stack,
                signed(sample.count),
                signed(cpu)
            ])?;
        }
        Ok(())
    }

    /// The process that samples are of: the last one with that pid that spans came from, or one of which
    /// no more is known than its command.
    fn resource_of_pid(&mut self, pid: u32, command: &str) -> rusqlite::Result<i64> {
        let key = self.keys.hash_one(("pid", pid, command));
        if let Some(id) = self.interned.resources.get(key, self.at) {
            return Ok(id);
        }
        let known: Option<(String, String)> = self
            .transaction
            .prepare_cached(
                "SELECT service, attributes FROM resources WHERE pid = ?1 AND kept_until >= ?2 \
                 ORDER BY id DESC LIMIT 1",
            )?
            .query_row(params![pid, self.at], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let (service, attributes) = known.unwrap_or_else(|| {
            let attributes =
                serde_json::json!({"process.pid": pid, "process.command_line": command});
            ("unknown_service".to_owned(), attributes.to_string())
        });
        self.interned.resources.put(
            self.transaction,
            key,
            self.at,
            &[&service, &pid, &attributes],
        )
    }
}

/// How many new sets of attributes a batch may have whatever its size.
const NEW_SETS_MIN: usize = 64;

/// A text that was made here of texts.
fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes)
        .ok()
        .filter(|text| !text.is_empty())
}

/// SQLite's integers are signed.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
