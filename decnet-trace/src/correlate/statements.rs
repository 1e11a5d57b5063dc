//! Steps of SQLite's statements become statements that are over. No I/O and no clock.
//!
//! * An execution begins where the program asks how many parameters the statement has
//!   ([`StatementWhat::Begun`]), or where its text was compiled for it just before, and ends with the
//!   statement's reset.
//! * What is compiled, executed and thrown away without parameters (BEGIN, COMMIT, scripts) begins
//!   where it is compiled and ends where it is thrown away.
//! * What cannot be compiled ends where the program asks for the error.
//! * Executions of one statement that follow a call of `executemany` on a thread, with nothing in between, are
//!   one. Calls of `execute` are told as well, once a process has called `executemany`.

use std::sync::Arc;

use decnet_trace_common::{
    event::{Header, Statement as Step, StatementWhat},
    limits::{FILE_NAME_MAX, STATEMENT_MAX},
};
use rustc_hash::FxHashMap;

use super::{identity::Identity, statement::Statement};

/// The most statements that are open at once.
const OPEN_MAX: usize = 1 << 16;

/// How long a statement may be open where there are too many, in nanoseconds.
const OPEN_FOR: u64 = 600_000_000_000;

/// The most threads that are remembered.
const THREADS_MAX: usize = 1 << 14;

/// The most texts that are compiled on a thread without being executed yet.
const PREPARED_MAX: usize = 8;

/// The most texts and names that are kept, so that a known one is not copied.
const TEXTS_MAX: usize = 4096;

/// How long the last execution waits for the next of its batch, in nanoseconds.
const BATCH_WAIT: u64 = 200_000_000;

/// Results that are no errors: `SQLITE_OK`, `SQLITE_ROW`, `SQLITE_DONE`.
const FINE: [i32; 3] = [0, 100, 101];

/// Pairs the steps of statements.
#[derive(Debug, Default)]
pub struct Statements {
    open: FxHashMap<(u32, u64), Open>,
    threads: FxHashMap<(u32, u32), Thread>,
    /// In which of its two places a library keeps the state of a statement.
    libraries: FxHashMap<u16, usize>,
    texts: Texts,
    counters: Counters,
}

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Statements that are over.
    pub ended: u64,
    /// Statements that began and were then begun again: never executed, or their end was not seen.
    pub abandoned: u64,
    /// Statements that were not followed for want of room.
    pub full: u64,
    /// Waits for locks that could not be put to a statement.
    pub waits: u64,
}

impl Counters {
    /// All of them by name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        [
            ("statements", self.ended),
            ("statements_abandoned", self.abandoned),
            ("statements_lost_full", self.full),
            ("statement_waits_unclear", self.waits),
        ]
        .into_iter()
    }
}

/// A statement that was begun.
#[derive(Debug)]
struct Open {
    tid: u32,
    work: Work,
    /// The executions before it of the same batch.
    batch: Option<Batch>,
}

/// Something that SQLite was told to do.
#[derive(Clone, Debug)]
struct Work {
    identity: Identity,
    start: u64,
    db: u64,
    text: Option<Arc<str>>,
    cut: bool,
    database: Option<Arc<str>>,
    waited: u64,
}

/// Executions that are over, to which more may come.
#[derive(Debug)]
struct Batch {
    object: u64,
    /// The executions before the last one, as one, and how many they are.
    before: Option<(Statement, u64)>,
    last: Statement,
}

#[derive(Debug, Default)]
struct Thread {
    /// Texts being compiled, and what is not executed yet; the latest last.
    prepared: Vec<Work>,
    /// What it did last.
    last: Last,
    /// Statements that it began and has not ended.
    open: u32,
    waiting: Option<u64>,
    many: Many,
    batch: Option<Batch>,
}

/// What a thread has of an `executemany`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Many {
    #[default]
    Nothing,
    /// It was called, for this owner, and has executed nothing yet.
    Called(Identity),
    /// It executes this statement for this owner.
    Executes(u64, Identity),
}

impl Many {
    /// What it is once a statement was begun.
    fn begun(self, object: u64, identity: Identity) -> Self {
        match self {
            Self::Called(of) | Self::Executes(_, of) if of != identity => Self::Nothing,
            Self::Executes(one, _) if one != object => Self::Nothing,
            Self::Nothing => Self::Nothing,
            _ => Self::Executes(object, identity),
        }
    }
}

/// What a thread did last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Last {
    /// It began to compile the latest of [`Thread::prepared`].
    Prepared,
    /// It began this statement.
    Begun(u64),
    #[default]
    Other,
}

impl Statements {
    /// One that has seen nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// What was counted so far.
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// In which of its two places a library keeps the state of a statement, once that is known.
    pub fn place(&self, library: u16) -> Option<usize> {
        self.libraries.get(&library).copied()
    }

    /// Takes a step, done for `identity`; statements that are over are pushed to `out`.
    pub fn on_step(
        &mut self,
        step: &Step,
        text: &[u8],
        file: &[u8],
        identity: Identity,
        out: &mut Vec<Statement>,
    ) {
        let Header { tgid, tid, ts, .. } = step.header;
        let Some(what) = StatementWhat::from_u16(step.what) else {
            return;
        };
        if self.threads.len() >= THREADS_MAX {
            self.flush(u64::MAX, out);
            self.threads.clear();
        }
        match what {
            StatementWhat::Prepared => {
                let work = self.work(step, text, file, identity);
                let thread = self.thread(tgid, tid, out);
                if thread.prepared.len() >= PREPARED_MAX {
                    thread.prepared.remove(0);
                }
                thread.prepared.push(work);
                thread.last = Last::Prepared;
            }
            StatementWhat::Begun => self.begin(step, text, file, identity, out),
            StatementWhat::Ended => self.end(step, out),
            StatementWhat::Finalized => {
                if self.open.contains_key(&(tgid, step.object)) {
                    self.end(step, out);
                } else {
                    self.finalize(step, text, out);
                }
            }
            StatementWhat::Failed => self.fail(step, out),
            StatementWhat::Waiting => {
                if let Some(thread) = self.threads.get_mut(&(tgid, tid)) {
                    thread.waiting = Some(ts);
                }
            }
            StatementWhat::Waited => self.waited(tgid, tid, ts),
            StatementWhat::Many => {
                self.thread(tgid, tid, out).many = Many::Called(identity);
            }
            StatementWhat::One => self.thread(tgid, tid, out).many = Many::Nothing,
        }
    }

    /// Hands out executions to which no more came until `now`.
    pub fn flush(&mut self, now: u64, out: &mut Vec<Statement>) {
        for thread in self.threads.values_mut() {
            if let Some(batch) = thread
                .batch
                .take_if(|batch| now.saturating_sub(batch.last.end) > BATCH_WAIT)
            {
                batch.close(out, &mut self.counters);
            }
        }
    }

    /// Whether [`Self::flush`] has something to wait for.
    pub fn is_waiting(&self) -> bool {
        self.threads.values().any(|thread| thread.batch.is_some())
    }

    /// Records were lost: what is half-seen must not be paired.
    pub fn events_lost(&mut self, out: &mut Vec<Statement>) {
        self.flush(u64::MAX, out);
        self.counters.abandoned += self.open.len() as u64;
        self.open.clear();
        self.threads.clear();
    }

    /// A process ended, or executes another program.
    pub fn forget_process(&mut self, tgid: u32, out: &mut Vec<Statement>) {
        self.open.retain(|&(of, _), _| of != tgid);
        let ended = self.threads.extract_if(|&(of, _), _| of == tgid);
        for batch in ended.filter_map(|(_, thread)| thread.batch) {
            batch.close(out, &mut self.counters);
        }
    }

    /// The thread, with no executions that wait for more.
    fn thread(&mut self, tgid: u32, tid: u32, out: &mut Vec<Statement>) -> &mut Thread {
        let thread = self.threads.entry((tgid, tid)).or_default();
        if let Some(batch) = thread.batch.take() {
            batch.close(out, &mut self.counters);
        }
        thread
    }

    fn work(&mut self, step: &Step, text: &[u8], file: &[u8], identity: Identity) -> Work {
        Work {
            identity,
            start: step.header.ts,
            db: step.db,
            cut: text.len() >= STATEMENT_MAX,
            text: (!text.is_empty()).then(|| self.texts.get(text)),
            database: (!file.is_empty() && file.len() < FILE_NAME_MAX)
                .then(|| self.texts.get(file)),
            waited: 0,
        }
    }

    fn begin(
        &mut self,
        step: &Step,
        text: &[u8],
        file: &[u8],
        identity: Identity,
        out: &mut Vec<Statement>,
    ) {
        let Header { tgid, tid, .. } = step.header;
        if let Some(place) = ready(&step.state) {
            self.libraries.insert(step.library, place);
        }
        let mut work = self.work(step, text, file, identity);
        let key = (tgid, step.object);
        if let Some(before) = self.open.remove(&key) {
            self.counters.abandoned += 1;
            self.left(tgid, before.tid);
        }
        let thread = self.threads.entry((tgid, tid)).or_default();
        let batch = thread
            .batch
            .take_if(|batch| batch.object == step.object && batch.last.identity == identity);
        let thread = self.thread(tgid, tid, out);
        if thread.last == Last::Prepared
            && let Some(prepared) = thread
                .prepared
                .pop_if(|prepared| prepared.db == work.db && prepared.is(&work))
        {
            // Compiled for this very execution: it began with that.
            work = Work {
                text: work.text,
                database: work.database,
                ..prepared
            };
        }
        thread.prepared.clear();
        thread.last = Last::Begun(step.object);
        thread.many = thread.many.begun(step.object, identity);
        thread.open += 1;
        if self.open.len() >= OPEN_MAX {
            let old = step.header.ts.saturating_sub(OPEN_FOR);
            self.open.retain(|_, open| open.work.start >= old);
            if self.open.len() >= OPEN_MAX {
                self.counters.full += 1;
                return;
            }
        }
        self.open.insert(key, Open { tid, work, batch });
    }

    fn end(&mut self, step: &Step, out: &mut Vec<Statement>) {
        let Header { tgid, ts, .. } = step.header;
        let key = (tgid, step.object);
        let place = self.place(step.library);
        let state = place.map(|place| State::read(&step.state, place));
        // It has not run (yet): its parameters did not fit, or it is compiled anew, for the schema
        // has changed.
        if state.is_some_and(|state| state.pc == -1) && step.what == StatementWhat::Ended as u16 {
            return;
        }
        let Some(Open { tid, work, batch }) = self.open.remove(&key) else {
            return;
        };
        self.left(tgid, tid);
        if state.is_some_and(|state| state.pc == -1) {
            self.counters.abandoned += 1;
            return;
        }
        let mut statement = work.done(tgid, tid, ts);
        if let Some(state) = state {
            statement.rows = Some(state.rows());
            statement.error = state.error();
        }
        let may_go_on = statement.rows == Some(0) && statement.error.is_none();
        let executes = Many::Executes(step.object, statement.identity);
        let batch = Batch {
            object: step.object,
            before: batch.map(Batch::join),
            last: statement,
        };
        let thread = self.threads.entry((tgid, tid)).or_default();
        thread.last = Last::Other;
        let is_last = !may_go_on || thread.many != executes || tid != step.header.tid;
        if is_last || thread.batch.is_some() {
            batch.split(out, &mut self.counters);
        } else {
            thread.batch = Some(batch);
        }
    }

    /// A statement ended that was never given parameters: it was compiled, executed and thrown away.
    fn finalize(&mut self, step: &Step, text: &[u8], out: &mut Vec<Statement>) {
        let Header { tgid, tid, ts, .. } = step.header;
        let Some(place) = self.place(step.library) else {
            return;
        };
        let state = State::read(&step.state, place);
        let text = self.texts.get(text);
        let thread = self.thread(tgid, tid, out);
        // In a script, what is compiled is all of the rest of it.
        let Some(at) = thread
            .prepared
            .iter()
            .rposition(|prepared| prepared.db == step.db && prepared.begins_with(&text))
        else {
            return;
        };
        let mut work = thread.prepared.remove(at);
        thread.prepared.truncate(at);
        thread.last = Last::Other;
        if state.pc == -1 || is_internal(&text) {
            return;
        }
        work.cut = text.len() >= STATEMENT_MAX;
        work.text = Some(text);
        let mut statement = work.done(tgid, tid, ts);
        statement.rows = Some(state.rows());
        statement.error = state.error();
        self.counters.ended += 1;
        out.push(statement);
    }

    /// The last call on a thread failed: where that was to compile a text, there will be no statement.
    fn fail(&mut self, step: &Step, out: &mut Vec<Statement>) {
        let Header { tgid, tid, ts, .. } = step.header;
        if FINE.contains(&step.code) {
            return;
        }
        let thread = self.thread(tgid, tid, out);
        if thread.last != Last::Prepared {
            return;
        }
        thread.last = Last::Other;
        if let Some(work) = thread.prepared.pop() {
            let mut statement = work.done(tgid, tid, ts);
            statement.error = Some(step.code);
            self.counters.ended += 1;
            out.push(statement);
        }
    }

    /// A thread slept for a lock: for the sake of what it began last, if nothing else can be meant.
    fn waited(&mut self, tgid: u32, tid: u32, ts: u64) {
        let Some(thread) = self.threads.get_mut(&(tgid, tid)) else {
            return;
        };
        let Some(slept) = thread.waiting.take().map(|since| ts.saturating_sub(since)) else {
            return;
        };
        let work = match thread.last {
            Last::Prepared => thread.prepared.last_mut(),
            Last::Begun(object) if thread.open == 1 => self
                .open
                .get_mut(&(tgid, object))
                .map(|open| &mut open.work),
            _ => None,
        };
        match work {
            Some(work) => work.waited += slept,
            None => self.counters.waits += 1,
        }
    }

    /// A thread has one open statement less.
    fn left(&mut self, tgid: u32, tid: u32) {
        if let Some(thread) = self.threads.get_mut(&(tgid, tid)) {
            thread.open = thread.open.saturating_sub(1);
        }
    }
}

impl Work {
    fn done(self, tgid: u32, tid: u32, end: u64) -> Statement {
        Statement {
            tgid,
            tid,
            identity: self.identity,
            start: self.start,
            end,
            text: self.text,
            cut: self.cut,
            database: self.database,
            rows: None,
            batch: None,
            waited: self.waited,
            error: None,
        }
    }

    /// Whether this is the text of a statement that was compiled of it.
    fn is(&self, other: &Self) -> bool {
        other
            .text
            .as_deref()
            .is_some_and(|text| self.begins_with(text))
    }

    fn begins_with(&self, text: &str) -> bool {
        !text.is_empty()
            && self
                .text
                .as_deref()
                .is_some_and(|prepared| prepared.starts_with(text))
    }
}

impl Batch {
    /// All executions as one, and how many they are.
    fn join(self) -> (Statement, u64) {
        match self.before {
            None => (self.last, 1),
            Some((mut all, executions)) => {
                all.end = self.last.end;
                all.waited += self.last.waited;
                (all, executions + 1)
            }
        }
    }

    /// They are of one `executemany`, all of them.
    fn close(self, out: &mut Vec<Statement>, counters: &mut Counters) {
        let (mut all, executions) = self.join();
        all.batch = (executions > 1).then_some(executions);
        counters.ended += 1;
        out.push(all);
    }

    /// The last one is not of the same `executemany` as those before it, or failed.
    fn split(self, out: &mut Vec<Statement>, counters: &mut Counters) {
        if let Some((mut all, executions)) = self.before {
            all.batch = (executions > 1).then_some(executions);
            counters.ended += 1;
            out.push(all);
        }
        counters.ended += 1;
        out.push(self.last);
    }
}

/// What a statement's `Vdbe` says of its execution.
#[derive(Clone, Copy, Debug)]
struct State {
    /// `cacheCtr`: 1 at the start, and 2 more with each row (src/vdbe.c, `OP_ResultRow`).
    rows: u32,
    /// `pc`: −1 until it runs.
    pc: i32,
    /// `rc`: the result, unless that is a row or the end.
    code: i32,
}

impl State {
    fn read(words: &[u32; 4], place: usize) -> Self {
        let word = |index: usize| words.get(place + index).copied().unwrap_or_default();
        Self {
            rows: word(0),
            pc: word(1).cast_signed(),
            code: word(2).cast_signed(),
        }
    }

    const fn rows(self) -> u64 {
        (self.rows.saturating_sub(1) / 2) as u64
    }

    fn error(self) -> Option<i32> {
        (!FINE.contains(&self.code)).then_some(self.code)
    }
}

/// Where the state of a statement is that is ready to run (src/vdbeaux.c, `sqlite3VdbeRewind`).
fn ready(words: &[u32; 4]) -> Option<usize> {
    words.windows(3).position(|state| state == [1, u32::MAX, 0])
}

/// Whether SQLite asks this of itself, to read its schema (src/vdbe.c, `OP_ParseSchema`; src/prepare.c).
fn is_internal(text: &str) -> bool {
    let text = text.trim_start();
    [
        "SELECT*FROM\"",
        "SELECT name, rootpage, sql FROM ",
        "SELECT*FROM'",
    ]
    .iter()
    .any(|start| text.starts_with(start))
}

/// Texts that are known.
#[derive(Debug, Default)]
struct Texts(FxHashMap<Box<[u8]>, Arc<str>>);

impl Texts {
    fn get(&mut self, bytes: &[u8]) -> Arc<str> {
        if let Some(known) = self.0.get(bytes) {
            return Arc::clone(known);
        }
        if self.0.len() >= TEXTS_MAX {
            self.0.clear();
        }
        let text: Arc<str> = String::from_utf8_lossy(bytes).into();
        self.0.insert(bytes.into(), Arc::clone(&text));
        text
    }
}

#[cfg(test)]
#[path = "tests/statements.rs"]
mod tests;
