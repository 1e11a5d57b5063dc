//! What the hooks say of themselves, in a build of its own (feature `log`, `run --bpf-log`). Other builds
//! say nothing and pay nothing.

/// Logs a line from a hook: `say!(ctx, "format", args…)`, as aya-log takes them.
macro_rules! say {
    ($ctx:expr, $($arg:tt)+) => {
        #[cfg(feature = "log")]
        aya_log_ebpf::info!($ctx, $($arg)+);
    };
}
