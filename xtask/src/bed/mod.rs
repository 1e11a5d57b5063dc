//! The test bed: real services, a real load with the truth about it, and a real collector. The demo
//! and the end-to-end tests of decnet-trace stand on it.

pub mod collector;
pub mod embedded;
pub mod http;
pub mod interpreter;
pub mod load;
pub mod process;
pub mod service;
pub mod tree;
pub mod venv;
