//! decnet-trace: turns running Python services into spans, flamegraphs and metrics, from outside.
//!
//! The modules in the order of the data; see docs/architecture.md.

pub mod bpf;
pub mod correlate;
pub mod decode;
pub mod discover;
pub mod error;
pub mod export;
pub mod ingest;
pub mod policy;
pub mod profile;
pub mod protocol;
pub mod span;
pub mod symbolize;
pub mod telemetry;
