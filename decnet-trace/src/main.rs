//! The `decnet-trace` command.

fn main() {}
