//! Statements of SQLite: uprobes on the library, and on CPython's module for it, as single processes map them.
//!
//! None of them stands on a function that runs for each row. Return probes stand on functions alone
//! that cannot switch C stacks or come back into Python: one that reads a field, one that sleeps.

use core::ptr;

use aya_ebpf::{
    EbpfContext,
    helpers::generated::bpf_get_attach_cookie,
    macros::{uprobe, uretprobe},
    programs::{ProbeContext, RetProbeContext},
};
use decnet_trace_common::{
    counter::Counter,
    event::{Kind, Statement, StatementWhat},
    limits::{FILE_NAME_MAX, SQLITES_MAX, STATEMENT_MAX},
    sqlite::{BTREE_SHARED, DATABASE_BTREE, DB_DATABASES, SHARED_PAGER, STATE, SqliteLayout},
    target::{Target, flags},
};

use crate::{
    emit::{self, count},
    gate,
    maps::{SQLITE_LAYOUTS, STATEMENT_SCRATCH, STATEMENT_SLOTS, StatementScratch},
    python,
    read::{self, mask},
};

/// `sqlite3_prepare_v2(sqlite3 *db, const char *zSql, …)`, and `_v3`.
#[uprobe]
pub(crate) fn sqlite_prepared(ctx: ProbeContext) -> u32 {
    let db = ctx.arg(0).unwrap_or(0);
    let text = ctx.arg(1).unwrap_or(0);
    step(&ctx, StatementWhat::Prepared, |at| {
        at.by_whom();
        at.database(db);
        at.text(text);
        at.file(db);
    });
    0
}

/// `sqlite3_bind_parameter_count(sqlite3_stmt *)`, which CPython calls once before each execution.
#[uprobe]
pub(crate) fn sqlite_begun(ctx: ProbeContext) -> u32 {
    let statement = ctx.arg(0).unwrap_or(0);
    step(&ctx, StatementWhat::Begun, |at| {
        at.by_whom();
        let db = at.statement(statement);
        at.state(statement);
        at.text_of(statement);
        at.file(db);
    });
    0
}

/// `sqlite3_reset(sqlite3_stmt *)`
#[uprobe]
pub(crate) fn sqlite_ended(ctx: ProbeContext) -> u32 {
    let statement = ctx.arg(0).unwrap_or(0);
    if statement == 0 || !may_have_run(&ctx, statement) {
        return 0;
    }
    step(&ctx, StatementWhat::Ended, |at| {
        at.statement(statement);
        at.state(statement);
    });
    0
}

/// `sqlite3_finalize(sqlite3_stmt *)`
#[uprobe]
pub(crate) fn sqlite_finalized(ctx: ProbeContext) -> u32 {
    let statement = ctx.arg(0).unwrap_or(0);
    if statement == 0 || !may_have_run(&ctx, statement) {
        return 0;
    }
    step(&ctx, StatementWhat::Finalized, |at| {
        at.statement(statement);
        at.state(statement);
        at.text_of(statement);
    });
    0
}

/// Return of `sqlite3_errcode(sqlite3 *db)`, which the program calls when something failed.
#[uretprobe]
pub(crate) fn sqlite_failed(ctx: RetProbeContext) -> u32 {
    let code: u64 = ctx.ret();
    step(&ctx, StatementWhat::Failed, |at| {
        at.scratch.statement.code = code as i32;
    });
    0
}

/// `unixSleep(sqlite3_vfs *, int microseconds)`, called where a lock is in the way.
#[uprobe]
pub(crate) fn sqlite_waiting(ctx: ProbeContext) -> u32 {
    step(&ctx, StatementWhat::Waiting, |_| {});
    0
}

/// Return of the same.
#[uretprobe]
pub(crate) fn sqlite_waited(ctx: RetProbeContext) -> u32 {
    step(&ctx, StatementWhat::Waited, |_| {});
    0
}

/// `executemany`, a method of cursors and connections of CPython's module `_sqlite3`.
#[uprobe]
pub(crate) fn sqlite_many(ctx: ProbeContext) -> u32 {
    step(&ctx, StatementWhat::Many, Step::by_whom);
    0
}

/// `execute` of the same, in processes that have called `executemany`.
#[uprobe]
pub(crate) fn sqlite_one(ctx: ProbeContext) -> u32 {
    step(&ctx, StatementWhat::One, |_| {});
    0
}

/// A step under construction, and what it is read with.
struct Step {
    scratch: &'static mut StatementScratch,
    target: &'static Target,
    layout: SqliteLayout,
}

/// Where the library that was hit keeps things.
#[inline(always)]
fn layout(ctx: &impl EbpfContext) -> (u32, SqliteLayout) {
    // SAFETY: the helper takes the program's own context, and cannot fail.
    let library = unsafe { bpf_get_attach_cookie(ctx.as_ptr()) } as u32 & (SQLITES_MAX - 1);
    let layout = SQLITE_LAYOUTS.get(library).copied().unwrap_or_default();
    (library, layout)
}

/// Whether a statement may have run since it was reset; it has not where that can be told.
#[inline(always)]
fn may_have_run(ctx: &impl EbpfContext, statement: u64) -> bool {
    let (_, layout) = layout(ctx);
    layout.pc == 0 || read::user::<i32>(statement + u64::from(layout.pc)) != Some(-1)
}

/// Makes a record of a step, which `fill` fills in.
#[inline(always)]
fn step(ctx: &impl EbpfContext, what: StatementWhat, fill: impl FnOnce(&mut Step)) -> Option<()> {
    let (current, target) = gate::traced(flags::SOCKETS)?;
    let (library, layout) = layout(ctx);
    let Some(scratch) = take() else {
        count(Counter::StatementBusy);
        return None;
    };
    // SAFETY: the record is the scratch's own, and zero is a value of it.
    unsafe { emit::zero(&raw mut scratch.statement) };
    scratch.statement.header = emit::header(Kind::Statement, current);
    scratch.statement.what = what as u16;
    scratch.statement.library = library as u16;
    let mut step = Step {
        scratch,
        target,
        layout,
    };
    fill(&mut step);
    let scratch = step.scratch;
    let text = u64::from(scratch.statement.text_len) + u64::from(scratch.statement.file_len);
    let len = size_of::<Statement>() + mask::<0x1fff>(text) as usize;
    scratch.statement.header.len = len as u16;
    emit::record(ptr::from_mut(&mut scratch.statement).cast(), len);
    scratch.taken = 0;
    Some(())
}

impl Step {
    /// Notes for whom the thread runs.
    #[inline(always)]
    fn by_whom(&mut self) {
        let state = python::thread_state(self.target);
        self.scratch.statement.context = python::context(self.target, state);
    }

    #[inline(always)]
    fn database(&mut self, db: u64) {
        self.scratch.statement.db = db;
    }

    /// Notes a statement and its database, which it returns: the first field of a `Vdbe`.
    #[inline(always)]
    fn statement(&mut self, statement: u64) -> u64 {
        let db = read::user(statement).unwrap_or(0);
        self.scratch.statement.object = statement;
        self.scratch.statement.db = db;
        db
    }

    #[inline(always)]
    fn state(&mut self, statement: u64) {
        if self.layout.vars != 0 {
            let at = statement + u64::from(self.layout.vars) + u64::from(STATE);
            let state = &mut self.scratch.statement.state;
            // Zeros where it fails.
            read::user_bytes(state.as_mut_ptr().cast(), size_of_val(state) as u32, at);
        }
    }

    /// The text that a statement was made of.
    #[inline(always)]
    fn text_of(&mut self, statement: u64) {
        if self.layout.sql != 0
            && let Some(text) = read::user(statement + u64::from(self.layout.sql))
        {
            self.text(text);
        }
    }

    #[inline(always)]
    fn text(&mut self, address: u64) {
        if address != 0 {
            let to = self.scratch.text.as_mut_ptr();
            let len = read::user_string(to, STATEMENT_MAX as u32 + 1, address);
            self.scratch.statement.text_len = len as u16;
        }
    }

    /// The name of a database's file, behind the text.
    #[inline(always)]
    fn file(&mut self, db: u64) -> Option<()> {
        if self.layout.file == 0 || db == 0 {
            return None;
        }
        let databases: u64 = read::user(db + DB_DATABASES)?;
        let btree: u64 = read::user(databases + DATABASE_BTREE)?;
        let shared: u64 = read::user(btree + BTREE_SHARED)?;
        let pager: u64 = read::user(shared + SHARED_PAGER)?;
        let name: u64 = read::user(pager + u64::from(self.layout.file))?;
        if name == 0 {
            return None;
        }
        let at = mask::<0xfff>(u64::from(self.scratch.statement.text_len)) as usize;
        // SAFETY: `at` is below 4,096, and the room goes far beyond that.
        let to = unsafe { self.scratch.text.as_mut_ptr().add(at) };
        let len = read::user_string(to, FILE_NAME_MAX as u32 + 1, name);
        self.scratch.statement.file_len = len as u16;
        Some(())
    }
}

/// A scratch that no other program uses. The CPU stays the same until it is given back, for programs
/// do not migrate.
#[inline(always)]
fn take() -> Option<&'static mut StatementScratch> {
    for slot in 0..STATEMENT_SLOTS {
        let scratch = STATEMENT_SCRATCH.get_ptr_mut(slot)?;
        // SAFETY: the pointer is into the map; whoever finds a zero there, and leaves a one, has it.
        unsafe {
            if exchange(&raw mut (*scratch).taken, 1) == 0 {
                return Some(&mut *scratch);
            }
        }
    }
    None
}

/// Puts a word into memory, and takes what was there, in one.
///
/// # Safety
///
/// `to` must be writable.
#[inline(always)]
unsafe fn exchange(to: *mut u64, new: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let mut word = new;
        // SAFETY: one instruction on memory that the caller vouches for.
        unsafe {
            core::arch::asm!("{0} = xchg_64({1} + 0, {0})", inout(reg) word, in(reg) to, options(nostack));
        }
        word
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        // SAFETY: as the caller promises.
        unsafe { ptr::replace(to, new) }
    }
}
