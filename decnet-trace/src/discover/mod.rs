//! Which processes to trace, and what they are.
//!
//! [`Discovery`] is told what happens to processes, by the hooks and by its own looks at /proc, and
//! says which ones to trace and which no longer. It never blocks for long, but reads files, so it
//! has a thread of its own. See docs/targets.md for what users are told.

mod command;
mod container;
mod engine;
mod judge;
mod listen;
mod name;
mod process;
mod procfs;
mod redact;
mod resource;
mod routes;
mod runtime;
mod select;
mod survey;

pub use self::{
    engine::{Change, Counts, Discovery, TracedProcess, UntraceReason},
    judge::{Why, WhyNot},
    listen::Listen,
    process::Process,
    resource::Overrides,
    routes::RouteReader,
    runtime::{PyVersion, Runtime},
    select::{Children, Selector, SelectorError},
    survey::{Judged, survey},
};
