//! Statements, told as the steps that CPython's `sqlite3` makes.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use proptest::prelude::*;

use super::*;

const TGID: u32 = 7;
const DB: u64 = 0x1000;

/// A statement that is ready, and one that has run: by the result and the rows it returned. As SQLite has
/// had them since 3.38.
const READY: [u32; 4] = [1, u32::MAX, 0, 9];

const fn ran(rows: u32, code: i32) -> [u32; 4] {
    [1 + 2 * rows, 12, code.cast_unsigned(), 9]
}

/// A text, and its rows, batch, wait and error.
type Told = (String, Option<u64>, Option<u64>, u64, Option<i32>);

/// A process at work, and what became of it.
#[derive(Default)]
struct Story {
    statements: Statements,
    out: Vec<Statement>,
    now: u64,
}

impl Story {
    fn new() -> Self {
        Self::default()
    }

    fn step(&mut self, tid: u32, what: StatementWhat, object: u64, state: [u32; 4], text: &str) {
        self.now += 10;
        let step = Step {
            header: Header {
                ts: self.now,
                tgid: TGID,
                tid,
                ..Header::default()
            },
            object,
            db: DB,
            state,
            what: what as u16,
            ..Step::default()
        };
        let who = Identity::from_bits(u64::from(tid));
        self.statements
            .on_step(&step, text.as_bytes(), b"/a.db", who, &mut self.out);
    }

    fn prepared(&mut self, tid: u32, text: &str) {
        self.step(tid, StatementWhat::Prepared, 0, [0; 4], text);
    }

    fn begun(&mut self, tid: u32, object: u64, text: &str) {
        self.step(tid, StatementWhat::Begun, object, READY, text);
    }

    fn ended(&mut self, tid: u32, object: u64, state: [u32; 4]) {
        self.step(tid, StatementWhat::Ended, object, state, "");
    }

    fn finalized(&mut self, tid: u32, object: u64, state: [u32; 4], text: &str) {
        self.step(tid, StatementWhat::Finalized, object, state, text);
    }

    fn many(&mut self, tid: u32) {
        self.step(tid, StatementWhat::Many, 0, [0; 4], "");
    }

    fn one(&mut self, tid: u32) {
        self.step(tid, StatementWhat::One, 0, [0; 4], "");
    }

    fn executed(&mut self, tid: u32, object: u64, text: &str) {
        self.begun(tid, object, text);
        self.ended(tid, object, ran(0, 0));
    }

    fn failed(&mut self, tid: u32, code: i32) {
        self.now += 10;
        let step = Step {
            header: Header {
                ts: self.now,
                tgid: TGID,
                tid,
                ..Header::default()
            },
            what: StatementWhat::Failed as u16,
            code,
            ..Step::default()
        };
        self.statements
            .on_step(&step, b"", b"", Identity::UNKNOWN, &mut self.out);
    }

    fn slept(&mut self, tid: u32) {
        self.step(tid, StatementWhat::Waiting, 0, [0; 4], "");
        self.step(tid, StatementWhat::Waited, 0, [0; 4], "");
    }

    /// What is over: texts, rows, batches, waits and errors.
    fn told(&mut self) -> Vec<Told> {
        self.statements.flush(u64::MAX, &mut self.out);
        self.out
            .drain(..)
            .map(|one| {
                let text = one.text.unwrap().to_string();
                (text, one.rows, one.batch, one.waited, one.error)
            })
            .collect()
    }
}

fn plain(text: &str, rows: u64) -> Told {
    (text.to_owned(), Some(rows), None, 0, None)
}

/// A query that is compiled for it begins with that, and one from the cache with its parameters; both
/// end with their reset, and know their rows, thread, database and owner.
#[test]
fn queries() {
    let mut story = Story::new();
    story.prepared(1, "SELECT 1");
    story.begun(1, 5, "SELECT 1");
    story.ended(1, 5, ran(3, 0));
    story.begun(1, 5, "SELECT 1");
    story.ended(1, 5, ran(0, 0));
    let first = story.out.first().unwrap();
    assert_eq!((first.start, first.end), (10, 30));
    assert_eq!((first.tgid, first.tid), (TGID, 1));
    assert_eq!(first.database.as_deref(), Some("/a.db"));
    assert_eq!(first.identity, Identity::from_bits(1));
    assert_eq!(story.told(), [plain("SELECT 1", 3), plain("SELECT 1", 0)]);
}

/// `executemany` is one statement, two of them are two, and the same by `execute` are as many as there were.
#[test]
fn batches() {
    let mut story = Story::new();
    for _ in 0..2 {
        story.many(1);
        for _ in 0..4 {
            story.executed(1, 5, "INSERT");
        }
    }
    story.executed(1, 6, "UPDATE");
    let many = ("INSERT".to_owned(), Some(0), Some(4), 0, None);
    assert_eq!(story.told(), [many.clone(), many, plain("UPDATE", 0)]);
    for _ in 0..3 {
        story.executed(1, 5, "INSERT");
    }
    assert_eq!(story.told(), vec![plain("INSERT", 0); 3]);
}

/// What is executed by `execute` right behind an `executemany` is not of its batch, even one without rows.
#[test]
fn batches_stop_at_execute() {
    for rows in [0, 3] {
        let mut story = Story::new();
        story.many(1);
        for _ in 0..rows {
            story.executed(1, 5, "INSERT");
        }
        for _ in 0..2 {
            story.one(1);
            story.executed(1, 5, "INSERT");
        }
        let mut expected = vec![plain("INSERT", 0); 2];
        if rows > 0 {
            expected.insert(0, ("INSERT".to_owned(), Some(0), Some(rows), 0, None));
        }
        assert_eq!(story.told(), expected);
    }
}

/// What `executemany` has compiled and begun for it comes in between: its text, and a transaction.
#[test]
fn batches_that_begin() {
    let mut story = Story::new();
    story.executed(1, 6, "UPDATE");
    story.many(1);
    story.prepared(1, "INSERT");
    story.prepared(1, "BEGIN ");
    story.finalized(1, 9, ran(0, 0), "BEGIN ");
    story.executed(1, 5, "INSERT");
    story.executed(1, 5, "INSERT");
    let many = ("INSERT".to_owned(), Some(0), Some(2), 0, None);
    assert_eq!(story.told(), [plain("UPDATE", 0), plain("BEGIN ", 0), many]);
}

/// An `executemany` without any rows executes nothing, and what another owner executes on its thread later is
/// none of it; nor is what is executed once another statement was.
#[test]
fn batches_stop_at_others() {
    let mut story = Story::new();
    story.many(1);
    story.begun(2, 5, "INSERT");
    story.ended(2, 5, ran(0, 0));
    let step = |story: &mut Story, what, state| {
        story.now += 10;
        let step = Step {
            header: Header {
                ts: story.now,
                tgid: TGID,
                tid: 1,
                ..Header::default()
            },
            object: 5,
            db: DB,
            state,
            what: what as u16,
            ..Step::default()
        };
        let another = Identity::from_bits(99);
        story
            .statements
            .on_step(&step, b"INSERT", b"/a.db", another, &mut story.out);
    };
    for _ in 0..2 {
        step(&mut story, StatementWhat::Begun, READY);
        step(&mut story, StatementWhat::Ended, ran(0, 0));
    }
    assert_eq!(story.told(), vec![plain("INSERT", 0); 3]);
    story.many(1);
    for (object, text) in [(5, "INSERT"), (6, "UPDATE"), (5, "INSERT"), (5, "INSERT")] {
        story.executed(1, object, text);
    }
    let (insert, update) = (plain("INSERT", 0), plain("UPDATE", 0));
    assert_eq!(
        story.told(),
        [insert.clone(), update, insert.clone(), insert]
    );
}

/// The execution that fails stands apart, and a batch is of one thread.
#[test]
fn batches_end() {
    let mut story = Story::new();
    story.many(1);
    for code in [0, 0, 19] {
        story.begun(1, 5, "INSERT");
        story.ended(1, 5, ran(0, code));
    }
    let many = ("INSERT".to_owned(), Some(0), Some(2), 0, None);
    let failed = ("INSERT".to_owned(), Some(0), None, 0, Some(19));
    assert_eq!(story.told(), [many, failed]);
    story.many(1);
    story.executed(1, 5, "INSERT");
    story.executed(2, 5, "INSERT");
    assert_eq!(story.told(), vec![plain("INSERT", 0); 2]);
}

/// Transactions that CPython opens and closes by itself, and scripts, of which what is compiled is all
/// that is left; what SQLite asks of itself meanwhile is its own affair.
#[test]
fn without_parameters() {
    let mut story = Story::new();
    story.prepared(1, "INSERT");
    story.prepared(1, "BEGIN ");
    // Nothing has shown yet where the state is.
    story.finalized(1, 9, ran(0, 0), "BEGIN ");
    assert_eq!(story.told(), []);
    story.begun(1, 5, "INSERT");
    story.ended(1, 5, ran(0, 0));
    story.prepared(1, "COMMIT");
    story.finalized(1, 9, ran(0, 0), "COMMIT");
    story.prepared(1, "CREATE TABLE a(b); SELECT 1;");
    story.prepared(1, "SELECT*FROM\"main\".sqlite_master");
    story.finalized(1, 8, ran(2, 0), "SELECT*FROM\"main\".sqlite_master");
    story.finalized(1, 7, ran(0, 0), "CREATE TABLE a(b);");
    story.prepared(1, " SELECT 1;");
    story.finalized(1, 7, ran(1, 0), " SELECT 1;");
    // Thrown away from the cache: not executed.
    story.finalized(1, 5, READY, "INSERT");
    assert_eq!(
        story.told(),
        [
            plain("INSERT", 0),
            plain("COMMIT", 0),
            plain("CREATE TABLE a(b);", 0),
            plain(" SELECT 1;", 1)
        ]
    );
}

/// What cannot be compiled failed; the error of what was compiled is its own; a success is no failure.
#[test]
fn failures() {
    let mut story = Story::new();
    story.prepared(1, "selec 1");
    story.failed(1, 1);
    story.failed(1, 1);
    story.prepared(1, "INSERT");
    story.begun(1, 5, "INSERT");
    story.ended(1, 5, ran(0, 2067));
    story.failed(1, 2067);
    story.prepared(1, "SELECT 1");
    story.failed(1, 0);
    let syntax = ("selec 1".to_owned(), None, None, 0, Some(1));
    let unique = ("INSERT".to_owned(), Some(0), None, 0, Some(2067));
    assert_eq!(story.told(), [syntax, unique]);
}

/// Cursors may be open side by side, and end in any order, with their statement too.
#[test]
fn open_cursors() {
    let mut story = Story::new();
    story.begun(1, 5, "A");
    story.begun(1, 6, "B");
    story.begun(2, 7, "C");
    story.ended(1, 5, ran(1, 0));
    story.finalized(1, 7, ran(9, 0), "C");
    story.ended(1, 6, ran(2, 0));
    let told = story.told();
    assert_eq!(told, [plain("A", 1), plain("C", 9), plain("B", 2)]);
}

/// A schema that changed makes SQLite compile the statement anew while it executes it: it goes on.
#[test]
fn compiled_anew() {
    let mut story = Story::new();
    story.begun(1, 5, "A");
    story.ended(1, 5, READY);
    story.ended(1, 5, ran(4, 0));
    assert_eq!(story.told(), [plain("A", 4)]);
}

/// Parameters that do not fit: begun, never executed, begun again.
#[test]
fn never_executed() {
    let mut story = Story::new();
    story.begun(1, 5, "A");
    story.ended(1, 5, READY);
    story.begun(1, 5, "A");
    story.ended(1, 5, ran(1, 0));
    assert_eq!(story.told(), [plain("A", 1)]);
    assert_eq!(story.statements.counters().abandoned, 1);
}

/// Waits for locks belong to what the thread began last, and to nothing where that is not clear.
#[test]
fn waits() {
    let mut story = Story::new();
    story.begun(1, 5, "A");
    story.slept(1);
    story.slept(1);
    story.ended(1, 5, ran(1, 0));
    story.prepared(1, "COMMIT");
    story.slept(1);
    story.finalized(1, 9, ran(0, 0), "COMMIT");
    story.slept(1);
    story.begun(1, 5, "A");
    story.begun(1, 6, "B");
    story.slept(1);
    story.ended(1, 5, ran(1, 0));
    story.ended(1, 6, ran(1, 0));
    let waited = |text: &str, rows, waited| (text.to_owned(), Some(rows), None, waited, None);
    assert_eq!(
        story.told(),
        [
            waited("A", 1, 20),
            waited("COMMIT", 0, 10),
            plain("A", 1),
            plain("B", 1)
        ]
    );
    assert_eq!(story.statements.counters().waits, 2);
}

/// Before 3.38 the state stands a word further on; where it was never seen, rows and errors are not said.
#[test]
fn older_and_unknown_layouts() {
    let mut story = Story::new();
    story.step(1, StatementWhat::Begun, 5, [3, 1, u32::MAX, 0], "A");
    story.step(1, StatementWhat::Ended, 5, [3, 5, 12, 0], "");
    assert_eq!(story.told(), [plain("A", 2)]);
    let mut story = Story::new();
    story.step(1, StatementWhat::Begun, 5, [7, 7, 7, 7], "A");
    story.step(1, StatementWhat::Ended, 5, [9, 9, 9, 9], "");
    assert_eq!(story.told(), [("A".to_owned(), None, None, 0, None)]);
}

/// After a loss nothing half-seen is paired, and a process that ended leaves nothing.
#[test]
fn losses_and_ends() {
    let mut story = Story::new();
    story.begun(1, 5, "A");
    story.statements.events_lost(&mut story.out);
    story.ended(1, 5, ran(1, 0));
    story.begun(1, 6, "B");
    story.statements.forget_process(TGID, &mut story.out);
    story.ended(1, 6, ran(1, 0));
    assert_eq!(story.told(), []);
    assert!(story.statements.open.is_empty() && story.statements.threads.is_empty());
}

proptest! {
    /// No order of steps makes it panic; no statement ends before it began, and none that was not begun
    /// or compiled ends.
    #[test]
    fn survives_any_order(steps in proptest::collection::vec(
        (0_u16..10, 0_u32..3, 0_u64..4, proptest::array::uniform4(0_u32..4), 0_i32..3), 0..200,
    )) {
        let mut story = Story::new();
        let mut beginnings = 0;
        for (what, tid, object, state, code) in steps {
            story.now += 1;
            let state = if state[0] == 0 { READY } else { state };
            beginnings += usize::from(matches!(what, 1 | 2));
            let step = Step {
                header: Header { ts: story.now, tgid: TGID, tid, ..Header::default() },
                object, db: DB, state, what, code, ..Step::default()
            };
            let text = ["SELECT 1", "BEGIN", "", "COMMIT"][object as usize];
            story.statements.on_step(&step, text.as_bytes(), b"", Identity::UNKNOWN, &mut story.out);
        }
        story.statements.flush(u64::MAX, &mut story.out);
        prop_assert!(story.out.len() <= beginnings);
        prop_assert!(story.out.iter().all(|one| one.start <= one.end));
    }
}
