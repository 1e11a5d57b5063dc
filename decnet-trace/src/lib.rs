//! decnet-trace: turns running Python services into spans and flamegraphs, from outside.
//!
//! The modules in the order of the data; see docs/architecture.md.

pub mod cli;
pub mod config;
pub mod pipeline;

pub mod bpf;
pub mod ingest;
pub mod decode;
pub mod text;
pub mod protocol;
pub mod correlate;
pub mod policy;
pub mod span;
pub mod sampling;
pub mod metrics;
pub mod export;
pub mod store;

pub mod discover;
pub mod python;
pub mod sqlite;
pub mod symbolize;
pub mod unwind;
pub mod profile;
pub mod govern;
pub mod telemetry;
pub mod error;
