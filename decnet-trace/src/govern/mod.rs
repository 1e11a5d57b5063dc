//! What the agent costs the machine, measured while it runs.

pub mod budget;
pub mod cost;
