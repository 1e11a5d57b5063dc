//! What builds, runs and tests decnet-trace: the verbs of `cargo xtask`, and the test bed.

mod apt;
pub mod bed;
pub mod bench;
pub mod build_ebpf;
pub mod command;
pub mod compiler;
pub mod debian;
pub mod demo;
pub mod linker;
pub mod paths;
pub mod pylayout;
pub mod run;
pub mod setup;
pub mod test;
pub mod vm;
