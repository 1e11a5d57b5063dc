//! The store: spans and profile samples in an SQLite file, for a machine without a collector.
//!
//! * [`schema`]: the tables, and how an older file becomes one of this version.
//! * [`folder`]: the folder, its lock and its files.
//! * [`row`]: a span as a row, and back.
//! * [`intern`]: texts that many rows share.
//! * [`age`]: how old rows are, whatever the wall clock does.
//! * [`writer`]: batches, each one transaction.
//! * [`retention`]: what is too old or too much goes, a little at a time.
//! * [`reader`]: what was stored, also while it is written to.
//! * [`trace`]: the spans of a trace as a tree.

use std::{path::PathBuf, time::Duration};

mod age;
mod error;
mod folder;
mod intern;
pub mod reader;
mod retention;
mod row;
mod schema;
pub mod trace;
mod writer;

pub use error::{Kind, StoreError};
pub use row::StoredSpan;
pub use schema::VERSION;
pub use writer::{Now, Store};

/// Where the store is, and how much it keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreConfig {
    /// The folder that the files are in; made with mode 0700 where it is missing.
    pub folder: PathBuf,
    /// Whether the user named the folder: then one that cannot be used is an error, and otherwise a
    /// warning.
    pub is_required: bool,
    /// Rows older than this are deleted.
    pub max_age: Duration,
    /// The most bytes that the store's files take together; from [`SIZE_MIN`] on. The oldest rows are
    /// deleted first.
    pub max_size: u64,
}

/// The folder of the store where nothing else is said.
pub const FOLDER: &str = "/var/lib/decnet-trace";

/// The least that [`StoreConfig::max_size`] can be.
pub const SIZE_MIN: u64 = 8 << 20;

/// The least that [`StoreConfig::max_age`] can be.
pub const AGE_MIN: Duration = Duration::from_secs(60);

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            folder: FOLDER.into(),
            is_required: false,
            max_age: Duration::from_hours(24),
            max_size: 512 << 20,
        }
    }
}

#[cfg(test)]
mod tests;
