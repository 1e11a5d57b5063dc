#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod framing;
mod hidden;
mod limits;
mod lives;
mod pipelines;
mod random;
mod strangers;
mod wire;
