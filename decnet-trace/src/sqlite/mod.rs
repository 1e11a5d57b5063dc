//! SQLite as a process maps it: where to watch its statements, and where it keeps what is read of them.
//!
//! Nothing is trusted that was not read from the library at hand: offsets come from the code of functions
//! that return the fields ([`code`]), or from a living database that confirms them ([`live`]).
//! docs/sqlite.md says which functions are watched, and why.

mod code;
mod library;
mod live;

pub use library::{Finder, Library, Mapped, mapped_pages};
pub use live::{Database, look};
