//! How fast the agent's user side is: records of a real run through each stage and sink, and how long
//! a request's span takes from the request's end to the file.

use std::{
    fs,
    io::{Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use serde_json::Value;

use super::{
    Setup,
    agent::Tool,
    progress::Progress,
    report::Report,
    services::{Pace, Scenario, Services, folder, of, scenario, window},
    stats::quantile,
    table::Table,
};
use crate::{
    bed::process::{Folder, Process},
    command::{output, say},
    run::cargo,
};

/// Requests a second while spans are timed.
const RATE: f64 = 300.0;

/// How long the agent's own records are taken: longer where requests take long.
fn recording(setup: &Setup, route: Scenario) -> Duration {
    let time = setup.window.min(Duration::from_secs(2));
    match route.name {
        "rows" => 6 * time,
        "calls" => 2 * time,
        _ => time,
    }
}

/// CPU time per sample.
fn sample(setup: &Setup) -> Duration {
    setup.window / 6
}

/// How many samples there are: CPU times of one program differ less than those of pairs do.
fn samples(setup: &Setup) -> usize {
    setup.pairs.clamp(2, 5)
}

/// What the replay of a route takes: a sample of each stage and sink takes twice its CPU time, about.
fn replaying(setup: &Setup) -> Duration {
    let samples = u32::try_from(samples(setup)).unwrap_or(u32::MAX);
    7 * samples * sample(setup) * 2
}

/// The routes whose records are replayed.
fn routes(setup: &Setup) -> Result<Vec<Scenario>> {
    let names: &[&str] = if setup.quick {
        &["plain"]
    } else {
        &["plain", "calls", "rows"]
    };
    names.iter().map(|name| scenario(name)).collect()
}

/// How long it takes.
pub fn plan(setup: &Setup) -> Duration {
    let routes = routes(setup).unwrap_or_default();
    let each =
        |route: &Scenario| recording(setup, *route) + Duration::from_secs(3) + replaying(setup);
    routes.iter().map(each).sum::<Duration>()
        + 3 * setup.window.max(Duration::from_secs(2))
        + Duration::from_secs(10)
}

/// What the replay says.
#[derive(Debug, Deserialize)]
struct Replay {
    events: usize,
    stages: Vec<Stage>,
    sinks: Vec<Sink>,
}

/// Up to and with this stage.
#[derive(Debug, Deserialize)]
struct Stage {
    name: String,
    nanos_per_event: Vec<f64>,
    allocations_per_event: Vec<f64>,
    spans_per_event: f64,
}

/// A sink alone.
#[derive(Debug, Deserialize)]
struct Sink {
    name: String,
    nanos_per_span: Vec<f64>,
    allocations_per_span: Vec<f64>,
}

/// Measures, and prints a table for each route.
///
/// # Errors
/// Something does not build or start, or the run is interrupted.
pub fn run(
    setup: &Setup,
    services: &Services,
    progress: &mut Progress,
    report: &mut Report,
) -> Result<()> {
    let program = build(&setup.profile)?;
    let service = services.service(None)?;
    for route in routes(setup)? {
        let what = format!("pipeline, {}", route.name);
        progress.step(&what, recording(setup, route) + Duration::from_secs(3))?;
        let trace = folder()?.join(format!("{}.records", route.name));
        record(setup, &program, route, &service, &trace, progress)?;
        progress.step(&what, replaying(setup))?;
        let each = sample(setup);
        let replay = replay(&program, &trace, samples(setup), each, &services.backend()?)?;
        progress.clear();
        table(route, &replay, report);
    }
    progress.step("pipeline: from event to export", 3 * setup.window)?;
    latency(setup, &service, progress, report)
}

/// Builds the replay, and says where it is.
fn build(profile: &str) -> Result<PathBuf> {
    say("building the replay of records");
    let mut build = cargo();
    build.args(["bench", "--bench", "pipeline", "--no-run"]);
    // As the agent beside it is built: what a package alone needs are other features of what it depends on, and most
    // of it would be built again. The tests build all of the workspace.
    if profile != "dev" {
        build.args(["--package", "decnet-trace"]);
    }
    build.args(["--profile", profile, "--quiet", "--message-format=json"]);
    output(&mut build)?
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["target"]["name"] == "pipeline")
        .find_map(|message| Some(PathBuf::from(message["executable"].as_str()?)))
        .context("cargo does not say where the replay is")
}

/// Takes the records of a route under load.
fn record(
    setup: &Setup,
    program: &Path,
    route: Scenario,
    service: &crate::bed::service::Service,
    trace: &Path,
    progress: &Progress,
) -> Result<()> {
    let time = recording(setup, route);
    let dir = Folder::new()?;
    let mut command = Command::new(program);
    command
        .args([
            "record",
            &service.pid.to_string(),
            &time.as_secs_f64().to_string(),
        ])
        .arg(trace);
    let mut recorder = Process::start(&mut command, &dir.path().join("log"))?;
    recorder
        .wait_for(Duration::from_secs(60), |log| {
            log.contains("recording").then_some(())
        })
        .context("records cannot be taken")?;
    window(route, of(service), Pace::Saturated, time, progress.stop())?;
    progress.check()?;
    let status = recorder.wait(time + Duration::from_secs(20))?;
    if !status.success() {
        bail!("records cannot be taken: {}", recorder.output()?.trim());
    }
    Ok(())
}

fn replay(
    program: &Path,
    trace: &Path,
    samples: usize,
    each: Duration,
    otlp: &str,
) -> Result<Replay> {
    let mut command = Command::new(program);
    command
        .arg("replay")
        .arg(trace)
        .args([
            &samples.to_string(),
            &each.as_millis().max(1).to_string(),
            otlp,
        ])
        .stdin(Stdio::null());
    let text = output(&mut command)?;
    serde_json::from_str(text.trim()).context("the replay does not say what it found")
}

/// Notes the figures, and shows them as a table.
fn table(route: Scenario, replay: &Replay, report: &mut Report) {
    let id = format!("pipeline/{}", route.name);
    let mut table = Table::new(&[
        "",
        "events/s per core",
        "ns per event",
        "allocations per event",
    ]);
    let mut spans = 0.0;
    let mut whole = Vec::new();
    let mut allocated = Vec::new();
    for stage in &replay.stages {
        let id = format!("{id}/to-{}", stage.name);
        let rates = stage
            .nanos_per_event
            .iter()
            .map(|nanos| 1e9 / nanos)
            .collect();
        table.row([
            match &*stage.name {
                "decode" => "decode".to_owned(),
                "correlate" => "decode, correlate".to_owned(),
                _ => "decode, correlate, policy".to_owned(),
            },
            report.note(format!("{id}/events_per_second"), "events/s", rates),
            report.note(
                format!("{id}/nanos"),
                "ns/event",
                stage.nanos_per_event.clone(),
            ),
            report.note(
                format!("{id}/allocations"),
                "per event",
                stage.allocations_per_event.clone(),
            ),
        ]);
        spans = stage.spans_per_event;
        whole.clone_from(&stage.nanos_per_event);
        allocated.clone_from(&stage.allocations_per_event);
    }
    for sink in &replay.sinks {
        let id = format!("{id}/to-{}", sink.name);
        let with = |all: &[f64], one: &[f64]| -> Vec<f64> {
            all.iter()
                .zip(one)
                .map(|(all, one)| all + one * spans)
                .collect()
        };
        let nanos = with(&whole, &sink.nanos_per_span);
        let rates = nanos.iter().map(|nanos| 1e9 / nanos).collect();
        table.row([
            format!("all of these, and the sink {}", sink.name),
            report.note(format!("{id}/events_per_second"), "events/s", rates),
            report.note(format!("{id}/nanos"), "ns/event", nanos),
            report.note(
                format!("{id}/allocations"),
                "per event",
                with(&allocated, &sink.allocations_per_span),
            ),
        ]);
        report.note(
            format!("{id}/nanos_per_span"),
            "ns/span",
            sink.nanos_per_span.clone(),
        );
    }
    let what = format!(
        "{} records of a saturated service, replayed; {spans:.3} spans per event; CPU time of all threads",
        replay.events
    );
    report.section(&format!("pipeline, {}", route.name), &what, &table);
}

/// How long the agent takes to attach, to its first span, and from a request's end to its span in the
/// file.
fn latency(
    setup: &Setup,
    service: &crate::bed::service::Service,
    progress: &Progress,
    report: &mut Report,
) -> Result<()> {
    let plain = scenario("plain")?;
    let (mut starts, mut firsts) = (Vec::new(), Vec::new());
    let (mut middles, mut slowest) = (Vec::new(), Vec::new());
    // Long enough for the first spans to come.
    let time = setup.window.max(Duration::from_secs(2));
    let rounds = 3;
    for _ in 0..rounds {
        let args = [
            "run",
            "--pid",
            &service.pid.to_string(),
            "--store",
            "off",
            "--spans-file",
            "{}/spans",
        ];
        let agent = Tool::agent(&setup.agent, &args.map(str::to_owned))?;
        let attached = Instant::now();
        let mut waits = Waits::default();
        let path = agent.folder().join("spans");
        let load = std::thread::scope(|scope| {
            let load = scope
                .spawn(|| window(plain, of(service), Pace::Fixed(RATE), time, progress.stop()));
            let mut tail = Tail::default();
            let mut first = None;
            // Those of the last requests come after it.
            let mut end = None;
            while end.is_none_or(|end: Instant| end.elapsed() < Duration::from_secs(2)) {
                std::thread::sleep(Duration::from_millis(2));
                let found = tail.read(&path, &mut waits);
                first = first.or_else(|| found.then(|| attached.elapsed()));
                end = end.or_else(|| load.is_finished().then(Instant::now));
            }
            firsts.extend(first.map(|first| first.as_secs_f64()));
            load.join()
        });
        match load {
            Ok(window) => window?,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        progress.check()?;
        starts.push(agent.start.as_secs_f64());
        agent.stop()?;
        if firsts.len() < starts.len() {
            bail!("no span came for {} s", time.as_secs());
        }
        for (quantiles, q) in [(&mut middles, 0.5), (&mut slowest, 0.99)] {
            quantiles.push(waits.quantile(q));
        }
    }
    let mut table = Table::new(&["", "", "unit"]);
    let mut line = |what: &str, id: &str, unit: &str, samples| {
        let shown = report.note(format!("pipeline/{id}"), unit, samples);
        table.row([what.to_owned(), shown, unit.to_owned()]);
    };
    line(
        "from its start to its hooks attached",
        "start/attached",
        "s",
        starts,
    );
    line(
        "from there to the first span in the file",
        "start/first_span",
        "s",
        firsts,
    );
    for (name, waits) in [("p50", middles), ("p99", slowest)] {
        line(
            &format!("from a request's end to its span in the file, {name}"),
            &format!("latency/{name}"),
            "ms",
            waits,
        );
    }
    progress.clear();
    report.section("pipeline: start, and from event to export", "", &table);
    Ok(())
}

/// Times from a request's end to its span, in ns.
#[derive(Debug, Default)]
struct Waits(Vec<u64>);

impl Waits {
    /// A quantile of them, in ms.
    fn quantile(&mut self, q: f64) -> f64 {
        self.0.sort_unstable();
        #[expect(clippy::cast_precision_loss, reason = "below 2^52")]
        quantile(&self.0, q).map_or(f64::NAN, |nanos| nanos as f64 / 1e6)
    }
}

/// Reads a file of OTLP/JSON lines as it grows.
#[derive(Debug, Default)]
struct Tail {
    at: u64,
    rest: Vec<u8>,
}

impl Tail {
    /// Takes the lines that are whole by now; whether there was a span in them.
    fn read(&mut self, path: &Path, waits: &mut Waits) -> bool {
        let Ok(mut file) = fs::File::open(path) else {
            return false;
        };
        let before = self.rest.len();
        if file.seek(SeekFrom::Start(self.at)).is_err() || file.read_to_end(&mut self.rest).is_err()
        {
            return false;
        }
        self.at += (self.rest.len() - before) as u64;
        let Some(end) = self.rest.iter().rposition(|&byte| byte == b'\n') else {
            return false;
        };
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let ends = ends(&self.rest[..end]);
        waits
            .0
            .extend(ends.iter().map(|end| now.saturating_sub(*end)));
        self.rest.drain(..=end);
        !ends.is_empty()
    }
}

/// The ends of all spans in lines of OTLP/JSON, in ns of Unix time.
fn ends(lines: &[u8]) -> Vec<u64> {
    let mut ends = Vec::new();
    for line in lines.split(|&byte| byte == b'\n') {
        let Ok(batch) = serde_json::from_slice::<Value>(line) else {
            continue;
        };
        let arrays =
            |value: &Value, name: &str| value[name].as_array().cloned().unwrap_or_default();
        for resource in arrays(&batch, "resourceSpans") {
            for scope in arrays(&resource, "scopeSpans") {
                for span in arrays(&scope, "spans") {
                    ends.extend(
                        span["endTimeUnixNano"]
                            .as_str()
                            .and_then(|end| end.parse::<u64>().ok()),
                    );
                }
            }
        }
    }
    ends
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    /// A file that grows in the middle of a line gives each span once, when its line is whole.
    #[test]
    fn growing_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("spans");
        let line = "{\"resourceSpans\":[{\"scopeSpans\":[{\"spans\":[{\"endTimeUnixNano\":\"5\"},\
                    {\"endTimeUnixNano\":\"7\"}]}]}]}\n";
        let (mut tail, mut waits) = (Tail::default(), Waits::default());
        assert!(!tail.read(&path, &mut waits));
        fs::write(&path, &line[..20]).unwrap();
        assert!(!tail.read(&path, &mut waits));
        fs::write(&path, format!("{line}{{")).unwrap();
        assert!(tail.read(&path, &mut waits));
        assert_eq!(waits.0.len(), 2);
        assert!(!tail.read(&path, &mut waits));
        fs::write(&path, format!("{line}{{}}\nnot JSON\n{line}")).unwrap();
        assert!(tail.read(&path, &mut waits));
        assert_eq!(waits.0.len(), 4);
    }
}
