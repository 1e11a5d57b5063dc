//! Events of sockets and processes become exchanges: requests paired with their responses, in order,
//! across connections, threads and rings. No I/O and no clock: time is what the events say.

pub mod exchange;
