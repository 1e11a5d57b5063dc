//! Sizes that both sides of the ring must agree on.

/// The most payload bytes that one socket operation carries. A request or response head longer than
/// this in a single operation arrives cut off.
pub const PAYLOAD_MAX: usize = 4096;

/// The most bytes of a unix socket's address (`sockaddr_un.sun_path`).
pub const UNIX_PATH_MAX: usize = 108;

/// How many bytes of payload are captured after a head that did not end in its first operation,
/// in bytes, before the kernel side gives the message up.
pub const HEAD_BUDGET: u32 = 64 * 1024;

/// The most iovecs of one operation that are read for payload.
pub const IOVEC_MAX: usize = 16;

/// The most kernel frames in a sample.
pub const KERNEL_FRAMES_MAX: usize = 127;

/// The most native user frames in a sample.
pub const USER_FRAMES_MAX: usize = 127;

/// The most Python frames in a sample, with those of the interpreter's own: from CPython 3.12 on there is one
/// wherever C calls into Python, so that of calls that all go through C half as many are seen.
pub const PYTHON_FRAMES_MAX: usize = 256;

/// The most rings, and so the most CPUs that are read from.
pub const RINGS_MAX: u32 = 1024;

/// The most bytes of a statement's text that are captured.
pub const STATEMENT_MAX: usize = 4095;

/// The most bytes of a database's file name that are captured.
pub const FILE_NAME_MAX: usize = 255;

/// The most SQLite libraries, different files, that the kernel side knows at once.
pub const SQLITES_MAX: u32 = 64;

/// The most processes that are traced at once.
pub const TARGETS_MAX: u32 = 8192;
