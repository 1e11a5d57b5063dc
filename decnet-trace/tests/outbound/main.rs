//! Calls that leave a process: what is told of them, and how they are joined with the requests that they
//! are in another traced process.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod clients;
mod joined;
mod networks;
#[expect(dead_code, reason = "other tests need more of it")]
#[path = "../support/mod.rs"]
mod support;
mod unsampled;
