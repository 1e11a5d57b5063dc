//! Where an SQLite keeps what the kernel side reads of it.
//!
//! A `sqlite3_stmt` is a `Vdbe` (src/vdbeInt.h), whose first fields have been these since 3.8, the word
//! in brackets up to 3.37 only:
//!
//! ```text
//! sqlite3 *db; Vdbe *pPrev, *pNext; Parse *pParse; ynVar nVar; [u32 magic;] int nMem; int nCursor;
//! u32 cacheCtr; int pc; int rc;
//! ```
//!
//! The offsets of `nVar` and of `zSql` are taken from the code of `sqlite3_bind_parameter_count` and
//! `sqlite3_sql`, which return them. What stands from [`STATE`] bytes behind `nVar` on is so
//! `nCursor? cacheCtr pc rc ?`: a statement that is ready to run has a `cacheCtr` of 1, a `pc` of −1 and
//! an `rc` of 0, which tells where they are.
//!
//! A database's file: `sqlite3.aDb[0].pBt->pBt->pPager->zFilename`. The last offset differs between
//! versions; the user side finds it in a living process.

use crate::{assert_layout, pod};

/// From `nVar`, where the words of a record's state begin.
pub const STATE: u16 = 12;

/// `offsetof(sqlite3, aDb)`
pub const DB_DATABASES: u64 = 32;

/// `offsetof(Db, pBt)`: of a name and a `Btree*`.
pub const DATABASE_BTREE: u64 = 8;

/// `offsetof(Btree, pBt)`
pub const BTREE_SHARED: u64 = 8;

/// `offsetof(BtShared, pPager)`
pub const SHARED_PAGER: u64 = 0;

/// Where one build of SQLite keeps things. Offsets in bytes; 0 where not known.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SqliteLayout {
    /// `Vdbe.zSql`
    pub sql: u16,
    /// `Vdbe.nVar`
    pub vars: u16,
    /// `Vdbe.pc`: statements in which it is −1 have not run, and their end is not told.
    pub pc: u16,
    /// `Pager.zFilename`
    pub file: u16,
}

assert_layout! { SqliteLayout = 8 }
pod!(SqliteLayout);
