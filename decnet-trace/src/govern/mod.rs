//! What the agent costs the machine, measured and kept low while it runs.

pub mod budget;
pub mod cost;
pub mod memory;
