//! `decnet-trace redact`: what a set of rules makes of a sample.

use std::{
    io::{self, BufRead as _, Write as _},
    path::PathBuf,
};

use clap::{Args, ValueEnum};

use crate::{
    config::Loader,
    error::{Error, Exit, Result},
    policy::{Redactor, check_header, rules::Place},
};

/// The longest line that is read, in bytes.
const LINE_MAX: u64 = 1 << 20;

/// Show what redaction leaves of a sample: a line in, a line out.
///
/// Reads lines from the standard input, and prints them as they would leave the agent: URLs and paths,
/// what --as says, or values of the header that --header names.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
        awk '{print $7}' access.log | decnet-trace redact --config new.toml\n  \
        decnet-trace redact --as sql --explain < statements.sql\n  \
        echo 'https://u:p@h/?q=1' | decnet-trace redact --header Referer")]
pub(super) struct RedactArgs {
    /// The file with the rules [default: /etc/decnet-trace/config.toml, if it is there].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// What the lines are.
    #[arg(long = "as", value_name = "KIND", value_enum, default_value_t = Kind::Url)]
    kind: Kind,

    /// The same as --as sql.
    #[arg(long, conflicts_with = "kind")]
    sql: bool,

    /// The lines are values of this header: of Referer and its like URLs, of X-Forwarded-For and its like
    /// addresses, of others any text.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["kind", "sql"], value_parser = header)]
    header: Option<String>,

    /// Say below each line which of the configuration's rules found what in it.
    #[arg(long)]
    explain: bool,
}

/// What a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// A URL, or a path with or without a query.
    Url,
    /// A statement of a database.
    Sql,
    /// The User-Agent of a request.
    UserAgent,
}

/// A header that may be kept.
fn header(name: &str) -> std::result::Result<String, String> {
    check_header(name).map(|()| name.to_ascii_lowercase())
}

impl Kind {
    const fn places(self) -> &'static [Place] {
        match self {
            Self::Url => &[Place::Path, Place::Query],
            Self::Sql => &[Place::Statement],
            Self::UserAgent => &[Place::UserAgent],
        }
    }
}

pub(super) fn run(args: &RedactArgs) -> Result<Exit> {
    let loader = Loader {
        file: args.config.clone(),
        flags: Vec::new(),
    };
    let mut loaded = loader.load(|name| std::env::var(name).ok())?;
    let policy = loaded.settings.policy(&mut loaded.warnings)?;
    let redactor = Redactor::new(policy);
    let kind = if args.sql { Kind::Sql } else { args.kind };
    let failed = |error: io::Error| Error::failed(format!("cannot read or write: {error}"));
    let mut input = io::stdin().lock();
    let mut out = io::stdout().lock();
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = io::Read::take(&mut input, LINE_MAX)
            .read_until(b'\n', &mut line)
            .map_err(failed)?;
        if read == 0 {
            return out.flush().map(|()| Exit::Done).map_err(failed);
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end_matches(['\n', '\r']);
        let shown = match (&args.header, kind) {
            (Some(name), _) => redactor.header(name, text),
            (None, Kind::Url) => redactor.url(text),
            (None, Kind::Sql) => redactor.sql(text),
            (None, Kind::UserAgent) => redactor.user_agent(text),
        };
        let places = match args.header {
            Some(_) => [Place::Header].as_slice(),
            None => kind.places(),
        };
        writeln!(out, "{shown}").map_err(failed)?;
        for place in places.iter().filter(|_| args.explain) {
            for (number, found) in redactor.found(*place, text) {
                let rule = &loaded.settings.redaction.rules[number - 1];
                writeln!(
                    out,
                    "  rule {number} ({}, {}) finds {found:?}",
                    rule.pattern.as_str(),
                    place.name()
                )
                .map_err(failed)?;
            }
        }
    }
}
