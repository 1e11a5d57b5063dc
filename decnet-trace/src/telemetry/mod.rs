//! The agent's own telemetry: what it counts, what it costs, and what it says about itself.
//!
//! * [`counter`]: everything that the user side counts; every drop names its reason.
//! * [`usage`]: the agent's own CPU time and memory.
//! * [`report`]: the summary line, each minute and at the end.
//! * [`clock`]: the offset between the kernel's clock and the wall clock.
//! * [`log`]: where log lines go.
//! * [`events`]: those of them that are sent as well.

pub mod clock;
pub mod counter;
pub mod events;
pub mod log;
pub mod report;
pub mod usage;

pub use counter::{Count, Counters};
