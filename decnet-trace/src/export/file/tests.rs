//! The file sink on real files: ordinary ones, full ones, pipes.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::path::PathBuf;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;

use super::*;
use crate::export::tests::span;

struct Bench {
    reopener: Reopener,
    queue: Arc<Queue>,
    counters: Arc<Counters>,
    thread: JoinHandle<()>,
    pushed: u64,
}

impl Bench {
    fn start(path: &Path) -> Result<Self> {
        let counters = Arc::new(Counters::new());
        let limits = Limits {
            spans: 64,
            delay: Duration::from_millis(5),
            ..LIMITS
        };
        let queue = Arc::new(Queue::new(
            limits,
            Arc::clone(&counters),
            Count::FileQueueFull,
        ));
        let reopener = Reopener::default();
        let thread = start(
            path,
            Arc::clone(&queue),
            Arc::clone(&counters),
            reopener.clone(),
        )?;
        Ok(Self {
            reopener,
            queue,
            counters,
            thread,
            pushed: 0,
        })
    }

    fn push(&mut self, spans: u64) {
        let range = self.pushed..self.pushed + spans;
        self.queue
            .push(Arc::new(Batch::new(range.map(span).collect())));
        self.pushed += spans;
    }

    fn wait(&self, count: Count, value: u64) {
        let begin = Instant::now();
        while self.counters.get(count) < value {
            assert!(begin.elapsed() < Duration::from_secs(60), "{count:?}");
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Stops when all is written, and checks that every span was, or counted as lost.
    fn stop(self) -> Arc<Counters> {
        self.stop_within(Duration::from_secs(60))
    }

    /// The same, within this time.
    fn stop_within(self, time: Duration) -> Arc<Counters> {
        self.queue.stop(Instant::now() + time);
        self.thread.join().unwrap();
        let left = self.queue.drain();
        let sum: u64 = [Count::FileWritten, Count::FileQueueFull, Count::FileStopped]
            .iter()
            .map(|&count| self.counters.get(count))
            .sum();
        assert_eq!(sum + left, self.pushed);
        self.counters
    }
}

fn starts(text: &str) -> Vec<u64> {
    text.lines()
        .flat_map(|line| {
            let request: ExportTraceServiceRequest = serde_json::from_str(line).unwrap();
            let groups = request.resource_spans.into_iter();
            groups
                .flat_map(|group| group.scope_spans)
                .flat_map(|scope| scope.spans)
                .map(|span| span.start_time_unix_nano)
                .collect::<Vec<_>>()
        })
        .collect()
}

/// A line is one request of OTLP/JSON: ids are hex, 64-bit numbers are texts, kinds are numbers.
#[test]
fn writes_otlp_json() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("spans.jsonl");
    let mut bench = Bench::start(&path).unwrap();
    bench.push(1);
    bench.stop();
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.ends_with('\n'));
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let span = &json["resourceSpans"][0]["scopeSpans"][0]["spans"][0];
    assert_eq!(span["traceId"], "01010101010101010101010101010101");
    assert_eq!(span["spanId"], "0202020202020202");
    assert_eq!(span["parentSpanId"], "");
    assert_eq!(span["startTimeUnixNano"], "0");
    assert_eq!(span["kind"], 2);
    assert_eq!(
        span["attributes"][1],
        serde_json::json!({"key": "http.response.status_code", "value": {"intValue": "200"}})
    );
    assert_eq!(
        span["attributes"][2]["value"],
        serde_json::json!({"doubleValue": 0.25})
    );
    let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(&path).unwrap());
    assert_eq!(mode & 0o777, 0o600);
}

/// A file that is there is written on; a last line that was cut stays by itself.
#[test]
fn writes_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("spans.jsonl");
    for before in ["{}\n", "{\"cut"] {
        fs::write(&path, before).unwrap();
        let mut bench = Bench::start(&path).unwrap();
        bench.push(2);
        bench.stop();
        let text = fs::read_to_string(&path).unwrap();
        let (first, rest) = text.split_once('\n').unwrap();
        assert_eq!(first, before.trim_end());
        assert_eq!(starts(rest), [0, 1]);
    }
}

/// A path that cannot be opened fails at the start, in one line with the path in it.
#[test]
fn fails_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    for path in [dir.path().to_owned(), dir.path().join("no/such/dir")] {
        let error = Bench::start(&path).err().unwrap().to_string();
        assert!(error.contains(path.to_str().unwrap()), "{error}");
    }
}

/// While a pipe's reader does not read, only the newest are kept; when it does, whole lines arrive.
#[test]
fn a_pipe_that_nobody_reads_holds_nothing_up() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&path).status();
    assert!(made.unwrap().success());
    assert!(Bench::start(&path).is_err(), "no reader yet");

    let reader = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(&path)
        .unwrap();
    let mut bench = Bench::start(&path).unwrap();
    let begin = Instant::now();
    // More than a pipe holds.
    for _ in 0..100 {
        bench.push(16);
        thread::sleep(Duration::from_millis(2));
    }
    assert!(begin.elapsed() < Duration::from_secs(30));
    bench.wait(Count::FileQueueFull, 1);

    let text = thread::spawn(move || {
        let mut text = Vec::new();
        let mut room = vec![0; 1 << 16];
        let mut reader = reader;
        let begin = Instant::now();
        loop {
            match reader.read(&mut room) {
                Ok(0) => return String::from_utf8(text).unwrap(),
                Ok(n) => text.extend_from_slice(&room[..n]),
                Err(_) => thread::sleep(Duration::from_millis(1)),
            }
            assert!(begin.elapsed() < Duration::from_secs(60));
        }
    });
    let pushed = bench.pushed;
    let counters = bench.stop();
    let starts = starts(&text.join().unwrap());
    assert_eq!(starts.len() as u64, counters.get(Count::FileWritten));
    assert_eq!(starts.last(), Some(&(pushed - 1)), "the newest are kept");
    assert!(starts.is_sorted());
}

/// A small disk of its own, gone when dropped.
struct Disk(tempfile::TempDir);

impl Disk {
    /// `None` where none can be mounted.
    fn new(size: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "none"])
            .arg(dir.path())
            .status();
        if mounted.is_ok_and(|status| status.success()) {
            return Some(Self(dir));
        }
        println!("SKIPPED: no disk can be mounted; that takes root");
        None
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount")
            .arg("--lazy")
            .arg(self.0.path())
            .status();
    }
}

/// On a disk that is full the sink counts, and holds nothing up; when there is room again it goes on
/// with whole lines.
#[test]
fn a_full_disk_is_waited_for() {
    let Some(disk) = Disk::new("64k") else {
        return;
    };
    let (filler, path) = (disk.path("filler"), disk.path("spans.jsonl"));
    fs::write(&filler, vec![0; 40 << 10]).unwrap();
    let mut bench = Bench::start(&path).unwrap();
    for _ in 0..40 {
        bench.push(16);
        thread::sleep(Duration::from_millis(2));
    }
    bench.wait(Count::FileFailedWrites, 1);
    bench.wait(Count::FileQueueFull, 1);
    let written = bench.counters.get(Count::FileWritten);
    fs::remove_file(&filler).unwrap();
    bench.wait(Count::FileWritten, written + 16);
    let counters = bench.stop();
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(starts(&text).len() as u64, counters.get(Count::FileWritten));
}

/// A disk that stays full is left with whole lines when the agent stops.
#[test]
fn a_disk_that_stays_full_holds_no_cut_line() {
    let Some(disk) = Disk::new("16k") else {
        return;
    };
    let path = disk.path("spans.jsonl");
    let mut bench = Bench::start(&path).unwrap();
    for _ in 0..40 {
        bench.push(16);
        thread::sleep(Duration::from_millis(2));
    }
    bench.wait(Count::FileFailedWrites, 1);
    let counters = bench.stop_within(Duration::from_secs(2));
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(starts(&text).len() as u64, counters.get(Count::FileWritten));
    assert!(text.is_empty() || text.ends_with('\n'));
}

/// A file that was moved away is opened anew where that is asked for: nothing is lost, and what comes
/// after stands in the new one.
#[test]
fn opens_the_file_anew() {
    let folder = tempfile::tempdir().unwrap();
    let (path, moved) = (folder.path().join("spans"), folder.path().join("spans.1"));
    let mut bench = Bench::start(&path).unwrap();
    bench.push(3);
    bench.wait(Count::FileWritten, 3);
    fs::rename(&path, &moved).unwrap();
    bench.push(2);
    bench.wait(Count::FileWritten, 5);
    assert!(!path.exists());
    bench.reopener.reopen();
    bench.push(4);
    bench.wait(Count::FileWritten, 9);
    bench.stop();
    let spans = |path: &Path| -> usize {
        let text = fs::read_to_string(path).unwrap();
        text.lines()
            .map(|line| serde_json::from_str::<ExportTraceServiceRequest>(line).unwrap())
            .flat_map(|request| request.resource_spans)
            .flat_map(|of| of.scope_spans)
            .map(|of| of.spans.len())
            .sum()
    };
    assert_eq!((spans(&moved), spans(&path)), (5, 4));
}
