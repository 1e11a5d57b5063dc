//! `decnet-trace record` on living programs, whose work is known.
//!
//! Needs root and an eBPF object; what is not at hand is named in a line that begins with SKIPPED.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod changes;
mod cpu;
mod files;
mod frames;
mod interpreters;
mod native;
mod refused;
mod support;
mod top;
mod wall;
