//! Where log lines go: standard error, one line each.

use std::io::{self, IsTerminal};

use tracing_subscriber::{
    EnvFilter, Layer as _, filter::filter_fn, fmt, layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use super::events::{self, is_notable};

use crate::error::{Error, Result};

/// The environment variable that sets what is logged: `error`, `warn`, `info`, `debug`, `trace`, or
/// directives such as `decnet_trace::export=debug`.
pub const ENV: &str = "DECNET_TRACE_LOG";

/// What is logged where nothing else is said: the agent's own `info`, and the warnings of its
/// libraries.
const DEFAULT: &str = "warn,decnet_trace=info";

/// Sets logging up for the process: to standard error, in colour on a terminal only.
///
/// `filter` is what the command line asks for; [`ENV`] comes next, and then the default.
///
/// # Errors
///
/// When a filter does not parse, or logging was set up before.
pub fn init(filter: Option<&str>) -> Result<()> {
    let (source, text) = match (filter, std::env::var(ENV)) {
        (Some(filter), _) => ("the log filter", filter.to_owned()),
        (None, Ok(env)) if !env.is_empty() => (ENV, env),
        _ => ("the default", DEFAULT.to_owned()),
    };
    let filter = EnvFilter::builder().parse(&text).map_err(|error| {
        Error::usage(format_args!(
            "{source} says {text:?}, which is no log filter: {error}; try \"info\" or \"debug\""
        ))
    })?;
    let lines = fmt::layer()
        .compact()
        .with_writer(io::stderr)
        .with_ansi(colour(&io::stderr()))
        .with_filter(filter);
    tracing_subscriber::registry()
        .with(lines)
        .with(events::global().layer().with_filter(filter_fn(is_notable)))
        .try_init()
        .map_err(|error| Error::failed(format_args!("logging was set up before: {error}")))
}

/// Whether to write colour to this stream: a terminal, and nobody asked otherwise (<https://no-color.org>).
pub fn colour(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A filter that is none is a mistake of who wrote it, and the line says where and what.
    #[test]
    fn refuses_a_bad_filter() {
        let error = init(Some("decnet_trace=loud")).err();
        let error = error.map(|e| (e.exit(), e.to_string()));
        assert!(
            error.as_ref().is_some_and(|(exit, text)| {
                *exit == crate::error::Exit::Usage && text.contains("decnet_trace=loud")
            }),
            "{error:?}"
        );
    }

    /// A file is no terminal, so nothing in colour gets into it.
    #[test]
    fn no_colour_in_files() {
        assert!(std::fs::File::open("/dev/null").is_ok_and(|file| !colour(&file)));
    }
}
