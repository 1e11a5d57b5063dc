//! The kernel: what it can do, how its structs are laid out, and the programs loaded into it.

pub mod btf;
pub mod features;
pub mod load;
pub mod object;
pub mod offsets;
pub mod probes;
mod sampling;
pub mod site;
mod statements;
pub mod threads;
pub mod tracefs;
pub mod unwind;
