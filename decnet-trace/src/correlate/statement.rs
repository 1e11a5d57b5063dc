//! A statement that a traced process executed in a database of its own.

use std::sync::Arc;

use super::identity::Identity;

/// A statement that is over. What is not known for certain is `None`.
#[derive(Clone, Debug, PartialEq)]
pub struct Statement {
    /// The process.
    pub tgid: u32,
    /// The thread that began it.
    pub tid: u32,
    /// For whom it was executed.
    pub identity: Identity,
    /// When it began, in nanoseconds of `CLOCK_MONOTONIC`.
    pub start: u64,
    /// When it was over, likewise.
    pub end: u64,
    /// Its text, with its literals: nothing may leave the policy but a sanitised copy.
    pub text: Option<Arc<str>>,
    /// Whether [`Self::text`] is only its beginning.
    pub cut: bool,
    /// The database's file.
    pub database: Option<Arc<str>>,
    /// How many rows it returned.
    pub rows: Option<u64>,
    /// How often it was executed with other parameters, where that was done in one go.
    pub batch: Option<u64>,
    /// For how long it waited for locks of others, in nanoseconds; 0 where it did not.
    pub waited: u64,
    /// The code of the error that it ended with.
    pub error: Option<i32>,
}
