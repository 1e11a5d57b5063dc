//! Why the store cannot be used.

use std::{fmt, io};

use rusqlite::ErrorCode;

/// What kind of failure it is: what can be done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Another agent writes to it.
    Locked,
    /// It was written by a newer version.
    Newer,
    /// What is in the file is no store, or broken.
    Corrupt,
    /// There is none.
    Missing,
    /// Anything else: no room, no rights, an unreadable disk. It may pass.
    Other,
}

/// A failure of the store.
#[derive(Debug)]
pub struct StoreError {
    kind: Kind,
    message: String,
}

/// The result of working on the store.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

impl StoreError {
    pub(super) fn new(kind: Kind, message: impl fmt::Display) -> Self {
        Self {
            kind,
            message: message.to_string(),
        }
    }

    /// What kind of failure it is.
    pub const fn kind(&self) -> Kind {
        self.kind
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for StoreError {}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        let kind = match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Kind::Corrupt,
            _ => match error {
                // What cannot be there in a store of ours.
                rusqlite::Error::FromSqlConversionFailure(..)
                | rusqlite::Error::InvalidColumnType(..)
                | rusqlite::Error::IntegralValueOutOfRange(..) => Kind::Corrupt,
                _ => Kind::Other,
            },
        };
        Self::new(kind, error)
    }
}

impl From<io::Error> for StoreError {
    fn from(error: io::Error) -> Self {
        let kind = match error.kind() {
            io::ErrorKind::NotFound => Kind::Missing,
            _ => Kind::Other,
        };
        Self::new(kind, error)
    }
}
