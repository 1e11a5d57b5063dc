//! What a traced process did on behalf of a request, and waits for the request to be known.

use super::{exchange::Exchange, identity::Identity, statement::Statement};

/// Something that a process did on behalf of a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Outbound {
    /// It called somebody over HTTP.
    Exchange(Box<Exchange>),
    /// It executed a statement of a database.
    Statement(Box<Statement>),
}

impl Outbound {
    /// The process.
    pub const fn tgid(&self) -> u32 {
        match self {
            Self::Exchange(exchange) => exchange.tgid,
            Self::Statement(statement) => statement.tgid,
        }
    }

    /// For whom it was done.
    pub const fn identity(&self) -> Identity {
        match self {
            Self::Exchange(exchange) => Identity::from_bits(exchange.request_context),
            Self::Statement(statement) => statement.identity,
        }
    }

    /// When it began, in nanoseconds of `CLOCK_MONOTONIC`.
    pub const fn start(&self) -> u64 {
        match self {
            Self::Exchange(exchange) => exchange.start,
            Self::Statement(statement) => statement.start,
        }
    }
}
