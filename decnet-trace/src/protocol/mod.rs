//! Protocols: bytes in, facts out. No I/O, no clock, and no state beyond one message.

pub mod http1;
pub mod visible;
