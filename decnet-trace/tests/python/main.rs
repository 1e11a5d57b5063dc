//! The reader of Python processes against living interpreters, whose own word is the truth.
//!
//! Every CPython at hand takes part: pyenv's, the system's, and those of the tree of Debian unstable
//! that `cargo xtask pylayout --debootstrap` makes. What is not at hand is named in a line that
//! begins with `SKIPPED: `.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod dump;
mod interpreters;
mod lines;
mod lives;
mod refused;
mod stacks;
mod tasks;
