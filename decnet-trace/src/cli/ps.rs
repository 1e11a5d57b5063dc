//! `decnet-trace ps`: which processes a run would trace, and why, or why not.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal, Write},
};

use clap::Args;
use serde::Serialize;

use super::run::TargetArgs;
use crate::{
    discover::{Judged, Listen, Runtime, WhyNot, survey},
    error::{Error, Exit, Result},
    python::{Inspection, Inspector},
};

/// How wide lines are that go to no terminal: as long as they are.
const UNBOUNDED: usize = usize::MAX;
/// The least that is shown of a command, however narrow the terminal.
const COMMAND_MIN: usize = 24;

/// Shows the processes that `run` would trace, and why, or why not.
#[derive(Args, Debug)]
#[command(after_help = "Example: sudo decnet-trace ps --port 8000\n\n\
    Exit codes: 0 done, 1 failed at work, 2 usage, 4 --pid, --name and --port match nothing.")]
pub(super) struct PsArgs {
    #[command(flatten)]
    targets: TargetArgs,

    /// Show every process [default: Python processes, and those to be traced]
    #[arg(long, short)]
    all: bool,
    /// Print JSON, one list of objects.
    #[arg(long)]
    json: bool,
}

/// Does it.
///
/// # Errors
///
/// When a glob is none, or nothing matches what was asked for.
pub(super) fn run(args: &PsArgs) -> Result<Exit> {
    let mut out = io::stdout().lock();
    let terminal = out.is_terminal();
    let width = if terminal {
        terminal_width()
    } else {
        UNBOUNDED
    };
    let coloured = terminal && std::env::var_os("NO_COLOR").is_none();
    list(args, &mut out, width, coloured)
}

fn list(args: &PsArgs, out: &mut impl Write, width: usize, coloured: bool) -> Result<Exit> {
    let selector = args.targets.selector()?;
    let judged = survey(&selector, std::process::id());
    let mut inspector = Inspector::new();
    let rows: Vec<Row<'_>> = judged
        .iter()
        .filter(|one| args.all || one.is_python || one.verdict.is_ok())
        .map(|one| Row {
            python: one
                .is_python
                .then(|| objection(&mut inspector, one.pid))
                .flatten(),
            ..Row::new(one)
        })
        .collect();
    let written = if args.json {
        serde_json::to_writer_pretty(&mut *out, &rows)
            .map_err(io::Error::from)
            .and_then(|()| writeln!(out))
    } else {
        out.write_all(table(&rows, width, coloured).as_bytes())
    };
    written.map_err(|error| Error::failed(format!("cannot write the list: {error}")))?;

    let unreadable = |one: &&Judged| one.verdict == Err(WhyNot::Unreadable);
    let unreadable = judged.iter().filter(unreadable).count();
    // SAFETY: geteuid takes nothing and cannot fail.
    if unreadable > 0 && unsafe { libc::geteuid() } != 0 {
        eprintln!(
            "decnet-trace: processes of other users not looked at: {unreadable}; run it as root"
        );
    }
    if !selector.is_default() && judged.iter().all(|one| one.verdict.is_err()) {
        return Err(Error::no_target(
            "no process matches --pid, --name or --port; `decnet-trace ps --all` shows what there is",
        ));
    }
    Ok(Exit::Done)
}

/// What stands against looking into a process's interpreter, if anything does.
fn objection(inspector: &mut Inspector, pid: u32) -> Option<String> {
    match inspector.inspect(pid) {
        Inspection::Unsupported(why) => Some(format!("unsupported: {why}")),
        Inspection::Starting(why) => Some(format!("not ready: {why}")),
        Inspection::Python(_) | Inspection::NotPython | Inspection::Unreadable(_) => None,
    }
}

/// A process as it is shown.
#[derive(Debug, Serialize)]
struct Row<'a> {
    pid: u32,
    traced: bool,
    /// Why it is traced, or why not.
    why: String,
    service: Option<&'a str>,
    runtime: Option<RuntimeRow>,
    /// What stands against looking into the interpreter, where it was tried.
    python: Option<String>,
    listening: &'a [Listen],
    container: Option<&'a str>,
    comm: &'a str,
    command: &'a [String],
}

#[derive(Debug, Serialize)]
struct RuntimeRow {
    name: &'static str,
    version: Option<String>,
    /// As the table shows it.
    #[serde(skip)]
    shown: String,
}

impl<'a> Row<'a> {
    fn new(judged: &'a Judged) -> Self {
        let runtime = judged.runtime.as_ref().map(|runtime| RuntimeRow {
            name: runtime.name(),
            version: match runtime {
                Runtime::CPython { version, .. } => Some(version.to_string()),
                Runtime::Other(_) => None,
            },
            shown: runtime.to_string(),
        });
        Self {
            pid: judged.pid,
            traced: judged.verdict.is_ok(),
            why: match judged.verdict {
                Ok(why) => why.to_string(),
                Err(why_not) => why_not.to_string(),
            },
            service: judged.service.as_deref(),
            runtime,
            python: None,
            listening: &judged.listening,
            container: judged.container.as_deref(),
            comm: &judged.comm,
            command: &judged.arguments,
        }
    }

    fn cells(&self) -> [String; 6] {
        let dash = || "-".to_owned();
        let listening: Vec<String> = self.listening.iter().map(Listen::to_string).collect();
        let command = if self.command.is_empty() {
            format!("[{}]", self.comm)
        } else {
            self.command.join(" ")
        };
        let answer = if self.traced { "yes" } else { "no" };
        let mut traced = format!("{answer}: {}", self.why);
        if let Some(python) = &self.python {
            let _ = write!(traced, "; {python}");
        }
        [
            self.pid.to_string(),
            traced,
            self.service.map_or_else(dash, str::to_owned),
            self.runtime
                .as_ref()
                .map_or_else(dash, |runtime| runtime.shown.clone()),
            if listening.is_empty() {
                dash()
            } else {
                listening.join(",")
            },
            command,
        ]
        .map(|cell| printable(&cell))
    }
}

/// The rows under a heading, in columns, no line longer than `width` unless the command would be
/// invisible then.
fn table(rows: &[Row<'_>], width: usize, coloured: bool) -> String {
    const HEADING: [&str; 6] = [
        "PID",
        "TRACED",
        "SERVICE",
        "RUNTIME",
        "LISTENS ON",
        "COMMAND",
    ];
    let cells: Vec<[String; 6]> = rows.iter().map(Row::cells).collect();
    let widths: [usize; 6] = std::array::from_fn(|column| {
        let longest = cells.iter().map(|row| row[column].chars().count()).max();
        longest.unwrap_or(0).max(HEADING[column].len())
    });
    let before_command: usize = widths[..5].iter().map(|width| width + 2).sum();
    let command_width = width.saturating_sub(before_command).max(COMMAND_MIN);
    let mut text = String::new();
    let heading = HEADING.map(str::to_owned);
    let lines = std::iter::once((&heading, None)).chain(
        cells
            .iter()
            .zip(rows)
            .map(|(cells, row)| (cells, Some(row.traced))),
    );
    for (cells, traced) in lines {
        let mut line = format!("{:>width$}", cells[0], width = widths[0]);
        for column in 1..5 {
            let _ = write!(line, "  {:width$}", cells[column], width = widths[column]);
        }
        let _ = write!(line, "  {}", cut(&cells[5], command_width));
        let line = line.trim_end();
        // SGR 1 is bold, 32 green, 2 faint.
        let style = match traced {
            None => "1",
            Some(true) => "32",
            Some(false) => "2",
        };
        if coloured {
            let _ = writeln!(text, "\x1b[{style}m{line}\x1b[0m");
        } else {
            let _ = writeln!(text, "{line}");
        }
    }
    text
}

/// The text without what a terminal would obey: a process may call itself anything.
pub(super) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

pub(super) fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut cut: String = text.chars().take(width.saturating_sub(1)).collect();
    cut.push('…');
    cut
}

/// The columns of the terminal that standard output is.
pub(super) fn terminal_width() -> usize {
    // SAFETY: all-zero bytes are a valid winsize.
    let mut size: libc::winsize = unsafe { std::mem::zeroed() };
    // SAFETY: TIOCGWINSZ writes a winsize to the address given, which is one.
    let result = unsafe { libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &raw mut size) };
    match (result, size.ws_col) {
        (0, columns) if columns > 0 => usize::from(columns),
        _ => UNBOUNDED,
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use clap::Parser;

    use super::*;
    use crate::discover::Why;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: PsArgs,
    }

    fn judged() -> [Judged; 2] {
        let judged = Judged {
            pid: 812,
            comm: "uvicorn".into(),
            arguments: ["python", "-m", "uvicorn", "shop:app"]
                .map(str::to_owned)
                .into(),
            listening: vec![
                Listen::Tcp("127.0.0.1:8000".parse().unwrap()),
                Listen::Unix("/run/shop.sock".into()),
            ],
            runtime: Some(Runtime::Other("PyPy")),
            container: None,
            service: Some("shop".into()),
            verdict: Ok(Why::Server("uvicorn")),
            is_python: true,
        };
        let other = Judged {
            pid: 7,
            comm: "evil".into(),
            arguments: vec!["\x1b[2Jevil\n".into()],
            listening: Vec::new(),
            runtime: None,
            service: None,
            verdict: Err(WhyNot::NotListening),
            ..judged.clone()
        };
        [judged, other]
    }

    /// The table's columns stand under each other, and nothing of a process reaches the terminal raw.
    #[test]
    fn prints_a_table() {
        let judged = judged();
        let rows: Vec<Row<'_>> = judged.iter().map(Row::new).collect();
        assert_eq!(
            table(&rows, UNBOUNDED, false),
            "\
PID  TRACED               SERVICE  RUNTIME  LISTENS ON                          COMMAND
812  yes: runs uvicorn    shop     PyPy     127.0.0.1:8000,unix:/run/shop.sock  python -m uvicorn shop:app
  7  no: does not listen  -        -        -                                   ?[2Jevil?
"
        );
        let coloured = table(&rows, 60, true);
        assert!(coloured.lines().all(|line| line.ends_with("\x1b[0m")));
        assert!(coloured.contains("python -m uvicorn shop:…"), "{coloured}");
    }

    /// JSON says the same in machine's words.
    #[test]
    fn prints_json() {
        let judged = judged();
        let row = serde_json::to_value(Row::new(&judged[0])).unwrap();
        assert_eq!(row["traced"], true);
        assert_eq!(row["why"], "runs uvicorn");
        assert_eq!(row["listening"][1], "unix:/run/shop.sock");
        assert_eq!(row["runtime"]["name"], "PyPy");
        assert_eq!(row["python"], serde_json::Value::Null);
        let row = serde_json::to_value(Row::new(&judged[1])).unwrap();
        assert_eq!(row["traced"], false);
        assert_eq!(row["runtime"], serde_json::Value::Null);
    }

    /// A pid that no process has is no target; a broken glob is a wrong command line.
    #[test]
    fn exits_by_what_it_found() {
        let list = |line: &str| {
            let args = Line::try_parse_from(line.split(' ')).unwrap().args;
            let mut out = Vec::new();
            let result = list(&args, &mut out, UNBOUNDED, false);
            (
                result.map_err(|error| error.exit()),
                String::from_utf8(out).unwrap(),
            )
        };
        assert_eq!(list("ps --pid 4194305").0, Err(Exit::NoTarget));
        assert_eq!(list("ps --name [").0, Err(Exit::Usage));
        let (result, shown) = list("ps --all");
        assert_eq!(result, Ok(Exit::Done));
        assert!(shown.contains("no: decnet-trace itself"), "{shown}");
    }
}
