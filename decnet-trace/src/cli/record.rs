//! `decnet-trace record`: samples processes for a while, and writes a profile.

use std::{
    ffi::OsStr,
    io::{self, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use clap::{Args, ValueEnum, builder::PossibleValue};

use super::{
    report::{Progress, report},
    sampling::SamplingArgs,
    wait::{OnHangup, Stop},
};
use crate::{
    error::{Error, Exit, Result},
    profile::{
        aggregate::Waiting,
        formats::{self, Format},
        label::Style,
        output::{OutputError, Place, rescue},
    },
};

/// How often is looked whether the work has ended, and its progress shown.
const TICK: Duration = Duration::from_millis(100);

/// Sample what processes do on the CPU (or by time, with --wall), and write a profile.
///
/// Ends after --duration, with the processes, by Ctrl-C, or with the terminal, and writes what was recorded by then. The
/// processes are not stopped meanwhile.
#[derive(Args, Debug)]
#[command(
    override_usage = "decnet-trace record [OPTIONS] <--pid <PID>|-- <COMMAND>...>",
    after_help = "Examples:\n  sudo decnet-trace record --pid 1234 --duration 30 -o flame.svg\n  \
        sudo decnet-trace record -f speedscope --native -- python app.py\n\n\
        A command that was started ends with the recording. Exit codes: 0 done, 1 failed at work, 2 usage, \
        3 this kernel or these privileges can't, 4 no such process, or none that can be profiled."
)]
pub(super) struct RecordArgs {
    #[command(flatten)]
    sampling: SamplingArgs,

    /// Stop after so many seconds.
    #[arg(long, short, value_name = "SECS", value_parser = clap::value_parser!(u64).range(1..=86_400 * 365))]
    duration: Option<u64>,

    /// Sample by time instead of CPU time: every thread that runs, could run, or waits for a disk.
    #[arg(long, short, conflicts_with_all = ["native", "kernel"])]
    wall: bool,

    /// Sample threads that are idle too: that wait for the network, a lock, a timer (implies --wall).
    #[arg(long, short, conflicts_with_all = ["native", "kernel"])]
    idle: bool,

    /// Write to this file; - is standard output [default: profile.EXT]
    #[arg(long, short, value_name = "FILE", help_heading = "Output")]
    output: Option<PathBuf>,

    /// Write in this format [default: what the file's name says, else flamegraph]
    #[arg(long, short, value_enum, help_heading = "Output")]
    format: Option<Format>,

    /// Show each thread apart.
    #[arg(long, short, help_heading = "Output")]
    threads: bool,

    /// Let the lines of a function fall together: show the line on which it begins.
    #[arg(long, short = 'F', help_heading = "Output")]
    function: bool,

    /// Show no lines.
    #[arg(long, help_heading = "Output")]
    nolineno: bool,

    /// Show the whole paths of files.
    #[arg(long, help_heading = "Output")]
    full_filenames: bool,
}

impl ValueEnum for Format {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let value = PossibleValue::new(self.name());
        Some(match self {
            // What py-spy calls it.
            Self::Folded => value.alias("raw"),
            _ => value,
        })
    }
}

/// Where a profile goes.
#[derive(Debug, PartialEq, Eq)]
enum Output {
    Stdout,
    File(PathBuf),
}

pub(super) fn run(args: RecordArgs) -> Result<Exit> {
    let (output, format) = place(args.output.as_deref(), args.format);
    let file = match &output {
        Output::File(path) => Some(Place::check(path).map_err(Error::usage)?),
        Output::Stdout if args.sampling.has_command() => {
            return Err(Error::usage(
                "the command writes to standard output too; name a file with --output",
            ));
        }
        Output::Stdout if !is_text(format) && io::stdout().is_terminal() => {
            return Err(Error::usage(format!(
                "{} is no text for a terminal; name a file with --output",
                format.name()
            )));
        }
        Output::Stdout => None,
    };
    let style = Style {
        lines: !args.nolineno,
        by_function: args.function,
        full_paths: args.full_filenames,
        processes: false,
        threads: args.threads,
    };
    let stop = Stop::watch(OnHangup::End)?;
    let mut sampling = args.sampling.start(args.threads, args.waiting())?;
    let started = Instant::now();
    let deadline = args
        .duration
        .map(|seconds| started + Duration::from_secs(seconds));
    let mut progress = Progress::new(started);
    let ended = stop.until(deadline, TICK, || {
        progress.tick(sampling.pipeline.live());
        sampling.has_ended()
    });
    progress.clear();
    let live = sampling.pipeline.live();
    let (tally, gaps) = (live.tally(), live.gaps());
    let (outcome, note) = sampling.finish(ended)?;
    let profile = outcome
        .profile
        .as_ref()
        .ok_or_else(|| Error::failed("nothing was recorded; this is a bug"))?;
    // A reader that has gone away must not end this with a profile in hand.
    // SAFETY: no handler is installed, and no other thread minds.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    let write = |out: &mut dyn io::Write| formats::write(profile, format, &style, out);
    let saved = match &file {
        Some(file) => save(file, write),
        None => print(format, write),
    };
    let note = note.as_deref();
    match saved {
        Ok(place) => {
            report(&place, &outcome, profile, tally, &gaps, note);
            Ok(Exit::Done)
        }
        Err((place, error)) => {
            report(&place, &outcome, profile, tally, &gaps, note);
            Err(Error::failed(error))
        }
    }
}

impl RecordArgs {
    const fn waiting(&self) -> Waiting {
        match (self.wall, self.idle) {
            (_, true) => Waiting::All,
            (true, false) => Waiting::Active,
            (false, false) => Waiting::No,
        }
    }
}

/// Where the profile is, in a word or two; or where it is instead, if anywhere, and what is wrong.
type Saved = Result<String, (String, String)>;

/// Writes the profile to its place. What that does not take is not lost.
fn save(file: &Place, write: impl Fn(&mut dyn io::Write) -> io::Result<()>) -> Saved {
    let place = file.path();
    let name = place.file_name().map(OsStr::to_string_lossy);
    match file.write(&write) {
        Ok(()) => Ok(place.display().to_string()),
        Err(OutputError { path, source }) => {
            let error = format!("cannot write {}: {source}", path.display());
            Err(save_elsewhere(
                error,
                name.as_deref().unwrap_or("profile"),
                &write,
            ))
        }
    }
}

/// Writes it to standard output, likewise.
fn print(format: Format, write: impl Fn(&mut dyn io::Write) -> io::Result<()>) -> Saved {
    let mut out = io::BufWriter::new(io::stdout().lock());
    match write(&mut out).and_then(|()| out.flush()) {
        Ok(()) => Ok("standard output".into()),
        Err(error) => {
            let error = format!("cannot write to standard output: {error}");
            let name = format!("profile.{}", format.extension());
            Err(save_elsewhere(error, &name, &write))
        }
    }
}

/// Saves what its place did not take: an hour may have gone into it.
fn save_elsewhere(
    error: String,
    name: &str,
    write: impl Fn(&mut dyn io::Write) -> io::Result<()>,
) -> (String, String) {
    match rescue(name, write) {
        Ok(path) => {
            let path = path.display().to_string();
            let error = format!("{error}; the profile is in {path} instead");
            (path, error)
        }
        Err(OutputError { path, source }) => {
            let error = format!(
                "{error}, nor into {}: {source}; the profile is lost",
                path.display()
            );
            ("not written".into(), error)
        }
    }
}

/// Where the profile goes, and in which format.
fn place(output: Option<&Path>, format: Option<Format>) -> (Output, Format) {
    let format = format
        .or_else(|| by_name(output?.file_name()?))
        .unwrap_or(Format::Flamegraph);
    let output = match output {
        Some(path) if path.as_os_str() == "-" => Output::Stdout,
        Some(path) => Output::File(path.to_owned()),
        None => Output::File(format!("profile.{}", format.extension()).into()),
    };
    (output, format)
}

/// The format that a file's name says.
fn by_name(name: &OsStr) -> Option<Format> {
    let name = name.to_string_lossy().to_ascii_lowercase();
    let endings: [(Format, &[&str]); 5] = [
        (Format::Flamegraph, &[".svg"]),
        (Format::Folded, &[".folded", ".collapsed", ".raw", ".txt"]),
        (Format::Pprof, &[".pb.gz", ".pb", ".pprof"]),
        (Format::Speedscope, &[".json"]),
        (Format::Pstats, &[".pstats", ".prof"]),
    ];
    let found = endings
        .into_iter()
        .find(|(_, endings)| endings.iter().any(|ending| name.ends_with(ending)));
    found.map(|(format, _)| format)
}

const fn is_text(format: Format) -> bool {
    match format {
        Format::Flamegraph | Format::Folded | Format::Speedscope => true,
        Format::Pprof | Format::Pstats => false,
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: RecordArgs,
    }

    fn parse(line: &str) -> Result<RecordArgs, clap::Error> {
        Line::try_parse_from(line.split(' ')).map(|line| line.args)
    }

    /// The format is the one asked for, else the one that the file's name says, else a flamegraph; a file
    /// without a name is called by its format.
    #[test]
    fn chooses_format_and_file() {
        let file = |name: &str| Output::File(name.into());
        for (output, format, expected) in [
            (None, None, (file("profile.svg"), Format::Flamegraph)),
            (
                None,
                Some(Format::Pprof),
                (file("profile.pb.gz"), Format::Pprof),
            ),
            (Some("x.PB.gz"), None, (file("x.PB.gz"), Format::Pprof)),
            (
                Some("d/x.speedscope.json"),
                None,
                (file("d/x.speedscope.json"), Format::Speedscope),
            ),
            (Some("x.prof"), None, (file("x.prof"), Format::Pstats)),
            (
                Some("x.svg"),
                Some(Format::Folded),
                (file("x.svg"), Format::Folded),
            ),
            (Some("x"), None, (file("x"), Format::Flamegraph)),
            (
                Some("-"),
                Some(Format::Folded),
                (Output::Stdout, Format::Folded),
            ),
        ] {
            assert_eq!(place(output.map(Path::new), format), expected, "{output:?}");
        }
        for format in Format::ALL {
            let name = format!("profile.{}", format.extension());
            assert_eq!(by_name(OsStr::new(&name)), Some(format));
        }
    }

    /// Processes or a command are asked for, not both and not neither; rates are bounded; py-spy's name of
    /// folded stacks works.
    #[test]
    fn parses_the_command_line() {
        let args = parse("record -p 3,4 -p 5 -d 2 -f raw -n -t -g -s -F").unwrap();
        assert_eq!(args.format, Some(Format::Folded));
        assert!(!args.sampling.has_command() && args.threads && args.function);
        assert_eq!(args.sampling.rate, 97);
        let args = parse("record -r 997 -- python -c -d").unwrap();
        assert!(args.sampling.has_command());
        for wrong in [
            "record",
            "record -p 1 -- true",
            "record -p 0",
            "record -p 1 -r 0",
            "record -p 1 -r 1000",
            "record -p 1 -d 0",
            "record -p 1 -f xml",
        ] {
            assert_eq!(parse(wrong).unwrap_err().exit_code(), 2, "{wrong}");
        }
    }
}
