//! What the end-to-end tests share: an agent at work, and the spans that it wrote.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    sync::{
        LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use xtask::bed::process::{Folder, Process};

/// How long an agent may take to attach, or to end, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Whether the end-to-end tests can run here: as root, with an eBPF object. Says why not.
pub(crate) fn can_run() -> bool {
    static OBSTACLE: LazyLock<Option<String>> = LazyLock::new(obstacle);
    if let Some(why) = &*OBSTACLE {
        println!("SKIPPED: {why}");
    }
    OBSTACLE.is_none()
}

/// Why the end-to-end tests cannot run here.
fn obstacle() -> Option<String> {
    // SAFETY: the call takes nothing and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        return Some("end-to-end tests need root".to_owned());
    }
    let doctor = Command::new(env!("CARGO_BIN_EXE_decnet-trace"))
        .arg("doctor")
        .output()
        .unwrap();
    if doctor.status.success() {
        return None;
    }
    let why = String::from_utf8_lossy(&doctor.stderr);
    let last = why.lines().last();
    Some(
        last.unwrap_or("this machine cannot run the agent")
            .to_owned(),
    )
}

/// Does something with each of these, two at a time: they wait more than they work.
pub(crate) fn side_by_side<T: Sync>(all: &[T], work: impl Fn(&T) + Sync) {
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(one) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
                    work(one);
                }
            });
        }
    });
}

/// An agent at work.
pub(crate) struct Agent {
    process: Process,
    folder: Folder,
}

impl Agent {
    /// Starts `decnet-trace run ARGS` with a spans file, and waits until it has attached.
    pub(crate) fn start(args: &[&str]) -> Self {
        let folder = Folder::new().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_decnet-trace"));
        command
            .arg("run")
            .arg("--spans-file")
            .arg(folder.path().join("spans.jsonl"))
            .args(args)
            .env_remove("OTEL_EXPORTER_OTLP_ENDPOINT")
            .env_remove("DECNET_OTEL_ENDPOINT");
        // Nothing of a test goes to the machine's own store.
        if !args.contains(&"--store") {
            command.args(["--store", "off"]);
        }
        let mut process = Process::start(&mut command, &folder.path().join("log")).unwrap();
        process
            .wait_for(PATIENCE, |log| log.contains("attached:").then_some(()))
            .unwrap();
        Self { process, folder }
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// A path in its folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What it has logged and printed.
    pub(crate) fn output(&self) -> String {
        self.process.output().unwrap()
    }

    /// Waits until something is so; its log tells where that does not come.
    pub(crate) fn wait_until(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let begin = Instant::now();
        while !is_so() {
            assert!(begin.elapsed() < PATIENCE, "{what}?\n{}", self.output());
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// The spans that it has written so far. It may be in the middle of a line.
    pub(crate) fn spans_so_far(&self) -> Vec<Span> {
        spans_so_far(&self.path("spans.jsonl"))
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        self.process.signal(signal);
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.process.wait(PATIENCE).unwrap()
    }

    /// Tells it to stop, checks that it ends well, and reads what it wrote.
    pub(crate) fn stop(mut self) -> Seen {
        self.process.signal(rustix::process::Signal::TERM);
        let status = self.wait();
        let output = self.output();
        assert!(status.success(), "the agent ended with {status}:\n{output}");
        Seen {
            spans: spans(&self.path("spans.jsonl")),
            output,
        }
    }
}

/// What an agent saw.
pub(crate) struct Seen {
    /// The spans.
    pub(crate) spans: Vec<Span>,
    /// Its log, with the counters at the end.
    pub(crate) output: String,
}

impl Seen {
    /// A counter's total at the end.
    pub(crate) fn counter(&self, name: &str) -> u64 {
        // The last line that names it has its total: ` name=+2 (7)`.
        let mark = format!(" {name}=+");
        let total = self.output.lines().rev().find_map(|line| {
            let (_, rest) = line.split_once(&mark)?;
            rest.split_once('(')?.1.split_once(')')?.0.parse().ok()
        });
        total.unwrap_or(0)
    }
}

/// A span of the file.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    /// Its place in the file: a connection's requests stand there in their order, though times that
    /// are the same may differ by some nanoseconds, as the wall clock drifts.
    pub(crate) place: usize,
    pub(crate) id: String,
    pub(crate) trace: String,
    pub(crate) trace_state: String,
    pub(crate) parent: String,
    pub(crate) name: String,
    pub(crate) kind: u64,
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) pid: u64,
    attributes: HashMap<String, Value>,
}

impl Span {
    /// A text attribute; empty where it is missing.
    pub(crate) fn text(&self, name: &str) -> &str {
        self.attributes
            .get(name)
            .and_then(|value| value["stringValue"].as_str())
            .unwrap_or_default()
    }

    /// An attribute that is a list of texts; empty where it is missing.
    pub(crate) fn list(&self, name: &str) -> Vec<&str> {
        let values = self.attributes.get(name);
        values
            .and_then(|value| value["arrayValue"]["values"].as_array())
            .into_iter()
            .flatten()
            .filter_map(|value| value["stringValue"].as_str())
            .collect()
    }

    /// A number attribute.
    pub(crate) fn int(&self, name: &str) -> Option<u64> {
        self.attributes
            .get(name)
            .and_then(|value| value["intValue"].as_str())
            .map(|text| text.parse().unwrap())
    }

    /// A fractional attribute.
    pub(crate) fn float(&self, name: &str) -> Option<f64> {
        self.attributes.get(name)?["doubleValue"].as_f64()
    }
}

/// The spans of a file of OTLP/JSON lines.
pub(crate) fn spans(path: &Path) -> Vec<Span> {
    parse(&fs::read_to_string(path).unwrap_or_default())
}

/// The same while they are written: the last line may not be whole.
pub(crate) fn spans_so_far(path: &Path) -> Vec<Span> {
    let text = fs::read_to_string(path).unwrap_or_default();
    parse(text.rsplit_once('\n').map_or("", |(whole, _)| whole))
}

fn parse(text: &str) -> Vec<Span> {
    let attributes = |value: &Value| -> HashMap<String, Value> {
        value
            .as_array()
            .unwrap()
            .iter()
            .map(|pair| {
                (
                    pair["key"].as_str().unwrap().to_owned(),
                    pair["value"].clone(),
                )
            })
            .collect()
    };
    let mut all = Vec::new();
    for line in text.lines() {
        let export: Value = serde_json::from_str(line).unwrap();
        for of_resource in export["resourceSpans"].as_array().unwrap() {
            let resource = attributes(&of_resource["resource"]["attributes"]);
            let pid = resource
                .get("process.pid")
                .map_or(0, |pid| pid["intValue"].as_str().unwrap().parse().unwrap());
            for of_scope in of_resource["scopeSpans"].as_array().unwrap() {
                for span in of_scope["spans"].as_array().unwrap() {
                    let time = |name: &str| span[name].as_str().unwrap().parse().unwrap();
                    let id = |name: &str| span[name].as_str().unwrap_or_default().to_owned();
                    all.push(Span {
                        place: all.len(),
                        id: id("spanId"),
                        trace: id("traceId"),
                        trace_state: id("traceState"),
                        parent: id("parentSpanId"),
                        name: span["name"].as_str().unwrap().to_owned(),
                        kind: span["kind"].as_u64().unwrap(),
                        start: time("startTimeUnixNano"),
                        end: time("endTimeUnixNano"),
                        pid,
                        attributes: attributes(&span["attributes"]),
                    });
                }
            }
        }
    }
    all.sort_by_key(|span| span.start);
    all
}
