//! `decnet-trace requests`: what was stored of requests, and where their time went.

mod json;
mod tree;

use std::{
    io::{self, IsTerminal as _, Write as _},
    path::PathBuf,
    time::Duration,
};

use clap::{Args, Subcommand};
use globset::{GlobBuilder, GlobMatcher};

use self::tree::Look;
use super::ps::terminal_width;
use crate::{
    error::{Error, Exit, Result},
    store::{
        FOLDER, Kind, StoreError, StoredSpan,
        reader::{Filter, Order, Reader},
        trace::Trace,
    },
    telemetry::{clock, log},
};

/// How many requests are shown where no number is given.
const COUNT: usize = 10;

/// The most that can be asked for.
const COUNT_MAX: u64 = 1_000_000;

/// How wide lines are that go to no terminal.
const WIDTH: usize = 110;

/// How many traces with the same first digits are listed.
const ALIKE: usize = 4;

/// Show stored requests, each with the calls that it made and where its time went.
///
/// They are kept by `decnet-trace run`; it may be running or not. Without options, the last ten.
#[derive(Args, Debug)]
#[command(
    args_conflicts_with_subcommands = false,
    after_help = "Examples:\n  sudo decnet-trace requests --slowest 5 --since 10m\n  \
        sudo decnet-trace requests --errors --route '/items/*'\n  \
        sudo decnet-trace requests show 4f3a9c01\n  \
        sudo decnet-trace requests --last 1000 --json | jq '.duration'\n\n\
        Exit codes: 0 done, also where nothing matches, 1 the store cannot be read, 2 usage, 4 there is \
        no store, or no such trace."
)]
pub(super) struct RequestsArgs {
    #[command(subcommand)]
    verb: Option<Verb>,

    /// The requests that began last, the last of them at the end [default: 10].
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "10", conflicts_with = "slowest",
        value_parser = clap::value_parser!(u64).range(1..=COUNT_MAX))]
    last: Option<u64>,

    /// The slowest requests, the slowest at the top [default: 10].
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "10",
        value_parser = clap::value_parser!(u64).range(1..=COUNT_MAX))]
    slowest: Option<u64>,

    /// Only requests that failed.
    #[arg(long)]
    errors: bool,

    /// Only requests whose route matches: * is any text, ? any character.
    #[arg(long, value_name = "GLOB", value_parser = route)]
    route: Option<GlobMatcher>,

    /// Only requests of this service.
    #[arg(long, value_name = "NAME")]
    service: Option<String>,

    /// Only requests that began in this last time: 90s, 10m, 2h.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    since: Option<Duration>,

    /// Print JSON, a trace on each line.
    #[arg(long, global = true)]
    json: bool,

    /// Read the store in this folder.
    #[arg(long, value_name = "DIR", default_value = FOLDER, global = true)]
    store: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show one trace: all of its spans, and with --attributes all that they say.
    #[command(after_help = "Example: sudo decnet-trace requests show 4f3a9c01 --attributes")]
    Show {
        /// The trace's id, or its first digits.
        trace_id: String,

        /// Print every attribute of every span, too.
        #[arg(long, short)]
        attributes: bool,
    },
}

/// A route's pattern. Braces mean themselves: routes are full of them.
fn route(pattern: &str) -> Result<GlobMatcher, globset::Error> {
    let escaped: String = pattern
        .chars()
        .map(|c| match c {
            '{' => "[{]".to_owned(),
            '}' => "[}]".to_owned(),
            c => c.to_string(),
        })
        .collect();
    Ok(GlobBuilder::new(&escaped).build()?.compile_matcher())
}

pub(super) fn run(args: &RequestsArgs) -> Result<Exit> {
    let reader = Reader::open(&args.store).map_err(|error| cannot_read(args, &error))?;
    let (text, exit) = match &args.verb {
        None => list(args, &reader)?,
        Some(Verb::Show {
            trace_id,
            attributes,
        }) => show(args, &reader, trace_id, *attributes)?,
    };
    // Whoever pages through it must not keep the store's log from being cleared.
    drop(reader);
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|error| Error::failed(format_args!("cannot print requests: {error}")))?;
    Ok(exit)
}

fn cannot_read(args: &RequestsArgs, error: &StoreError) -> Error {
    let folder = args.store.display();
    match error.kind() {
        Kind::Missing => Error::no_target(format_args!(
            "there is no store in {folder}; `decnet-trace run` makes one, and --store names another \
             folder"
        )),
        Kind::Corrupt => Error::failed(format_args!(
            "the store in {folder} is broken: {error}; `decnet-trace run` moves it aside and begins a \
             new one"
        )),
        _ => Error::failed(format_args!("cannot read the store in {folder}: {error}")),
    }
}

fn look() -> Look {
    let out = io::stdout();
    let width = match out.is_terminal() {
        true => terminal_width(),
        false => WIDTH,
    };
    Look {
        width,
        colour: log::colour(&out),
    }
}

fn list(args: &RequestsArgs, reader: &Reader) -> Result<(String, Exit)> {
    let (order, count) = match (args.slowest, args.last) {
        (Some(count), _) => (Order::Slowest, count as usize),
        (None, last) => (Order::Last, last.map_or(COUNT, |last| last as usize)),
    };
    let since = args.since.map_or(0, |since| {
        clock::read(libc::CLOCK_REALTIME).saturating_sub(since.as_nanos() as u64)
    });
    let filter = Filter {
        service: args.service.clone(),
        route: args.route.clone(),
        since,
        errors: args.errors,
    };
    let traces =
        traces(reader, &filter, order, count).map_err(|error| cannot_read(args, &error))?;
    let mut text = String::new();
    if args.json {
        for trace in &traces {
            text += &json::line(trace);
        }
    } else if traces.is_empty() {
        eprintln!("no requests match");
    } else {
        text = tree::list(&traces, &look());
    }
    Ok((text, Exit::Done))
}

/// The traces of the requests that are asked for, each once, in the order in which they are shown.
fn traces(
    reader: &Reader,
    filter: &Filter,
    order: Order,
    count: usize,
) -> Result<Vec<Trace>, StoreError> {
    let mut asked = count;
    let mut found: Vec<StoredSpan>;
    // Several requests may belong to one trace.
    loop {
        found = reader.requests(filter, order, asked)?;
        let is_all = found.len() < asked;
        let mut seen = rustc_hash::FxHashSet::default();
        found.retain(|span| seen.insert(span.trace_id));
        if is_all || found.len() >= count || asked > COUNT_MAX as usize {
            break;
        }
        asked *= 2;
    }
    found.truncate(count);
    if order == Order::Last {
        found.reverse();
    }
    found
        .into_iter()
        .map(|span| reader.trace_around(&span).map(Trace::new))
        .collect()
}

fn show(
    args: &RequestsArgs,
    reader: &Reader,
    trace_id: &str,
    attributes: bool,
) -> Result<(String, Exit)> {
    let failed = |error: StoreError| cannot_read(args, &error);
    let alike = reader
        .traces_with_prefix(trace_id, ALIKE + 1)
        .map_err(failed)?;
    let id = match &alike[..] {
        [] => {
            return Err(Error::no_target(format_args!(
                "there is no trace {trace_id} in {}; `decnet-trace requests` shows the last ones",
                args.store.display()
            )));
        }
        [id] => id,
        several => {
            let ids: Vec<_> = several.iter().take(ALIKE).map(tree::hex).collect();
            return Err(Error::usage(format_args!(
                "several traces begin with {trace_id:?}: {}{}; give more digits",
                ids.join(", "),
                if several.len() > ALIKE { ", …" } else { "" }
            )));
        }
    };
    let trace = Trace::new(reader.trace(id).map_err(failed)?);
    let text = match (args.json, attributes) {
        (true, _) => json::line(&trace),
        (false, false) => tree::list(std::slice::from_ref(&trace), &look()),
        (false, true) => {
            let look = look();
            tree::list(std::slice::from_ref(&trace), &look) + &tree::attributes(&trace, &look)
        }
    };
    Ok((text, Exit::Done))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    /// In a route's pattern braces mean themselves, and a star crosses slashes.
    #[test]
    fn routes_match() {
        let matches = |pattern: &str, text: &str| route(pattern).unwrap().is_match(text);
        assert!(matches("/items/{id}", "/items/{id}"));
        assert!(!matches("/items/{id}", "/items/id"));
        assert!(matches("/items/*", "/items/{id}/parts"));
        assert!(matches("*", "/"));
        assert!(matches("/v?/a", "/v1/a"));
        assert!(!matches("/items", "/items/1"));
        assert!(route("/[a").is_err());
    }
}
