//! How fast the agent's user side is: records of a real run, replayed through decode, correlate, policy
//! and each sink. `cargo xtask bench pipeline` runs it; see docs/overhead.md.
//!
//! `pipeline record PID SECONDS FILE` takes the records, as root; `pipeline replay FILE SAMPLES MILLIS
//! OTLP-URL` replays them so often, each time for so long, and prints JSON. Times are CPU time: of the
//! thread, and for sinks, which have threads of their own, of the process.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    env,
    fs::{self, File},
    hint::black_box,
    io::{BufWriter, Write as _},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use decnet_trace::{
    bpf::load::{Bpf, LoadOptions},
    correlate::{Correlator, Limits, identity::Identities},
    decode::{decode, timestamp},
    export::{
        ExportConfig, Exporters, SummaryConfig,
        otlp::{OtlpConfig, Protocol},
    },
    ingest::Ingest,
    pipeline::records::Decoder,
    policy::{Policy, PolicyConfig},
    python::{Inspection, Inspector},
    span::{Resource, Span, Value},
    store::StoreConfig,
    telemetry::{
        Counters,
        clock::{read, unix_offset},
    },
};
use decnet_trace_common::{
    event::Header,
    python::ABSENT,
    target::{Target, flags},
};
use serde_json::json;

/// How often the correlator is told the time, as the pipeline does, in nanoseconds.
const ROUND: u64 = 25_000_000;

/// The pause between a trace's last record and its first one when it is played again.
const PAUSE: u64 = 1_000_000;

/// Spans that are handed to a sink at once.
const BATCH: usize = 512;

/// How many spans may wait in front of a sink: more than any takes at once, and less than any queue holds.
const WAITING: usize = 4096;

/// How often it is asked how many wait: each time costs the process some microseconds.
const ASK_EVERY: Duration = Duration::from_millis(20);

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call is passed on to the system's allocator as it is; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn main() -> Result<()> {
    let args: Vec<String> = env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["record", pid, seconds, file] => record(
            pid.parse()?,
            Duration::from_secs_f64(seconds.parse()?),
            Path::new(file),
        ),
        ["replay", file, samples, millis, otlp] => replay(
            Path::new(file),
            samples.parse()?,
            Duration::from_millis(millis.parse()?),
            otlp,
        ),
        [] => {
            println!("run it by `cargo xtask bench pipeline`");
            Ok(())
        }
        _ => bail!("pipeline record PID SECONDS FILE | replay FILE SAMPLES MILLIS OTLP-URL"),
    }
}

/// Takes the records of a process, as the agent gets them, into a file: each with its length before it.
fn record(pid: u32, time: Duration, path: &Path) -> Result<()> {
    let mut bpf = Bpf::load(&LoadOptions {
        ring_bytes: 8 << 20,
        sockets: true,
        force_fallback: false,
        log: false,
        rate: 0,
        unwind_memory: 0,
    })?;
    let mut target = Target {
        flags: flags::SOCKETS,
        ..Target::default()
    };
    let python = match Inspector::new().inspect(pid) {
        Inspection::Python(python) => python,
        _ => bail!("process {pid} runs no CPython that is supported"),
    };
    target.python = bpf.add_layout(&python.kernel)? + 1;
    target.thread_state = python.thread_state;
    target.context = u32::from(python.kernel.context);
    target.thread_block = match python.kernel.thread_block {
        ABSENT => 0,
        offset => u32::from(offset),
    };
    target.gil_holder = python.gil_holder;
    let mut ingest = Ingest::new(bpf.take_rings())?;
    bpf.targets.insert(pid, target, 0)?;
    bpf.attach()?;
    let mut file = BufWriter::new(
        File::create(path).with_context(|| format!("cannot create {}", path.display()))?,
    );
    println!("recording");
    let end = Instant::now() + time;
    let mut failed = None;
    let mut lost = 0;
    loop {
        let over = Instant::now() >= end;
        if over {
            bpf.detach();
        }
        let horizon = if over {
            u64::MAX
        } else {
            read(libc::CLOCK_MONOTONIC)
        };
        ingest.take();
        ingest.hand_on(horizon, |bytes| {
            let length = u32::try_from(bytes.len()).unwrap_or(0).to_le_bytes();
            if let Err(error) = file.write_all(&length).and_then(|()| file.write_all(bytes)) {
                failed = Some(error);
            }
        });
        if over {
            break;
        }
        ingest.wait(Duration::from_millis(10));
        lost = bpf.count(decnet_trace_common::counter::Counter::RingFull)?;
    }
    if let Some(error) = failed {
        bail!("cannot write {}: {error}", path.display());
    }
    file.flush()?;
    if lost > 0 {
        bail!("{lost} records were lost: record less");
    }
    Ok(())
}

/// The records of a trace, in the order of their times.
struct Trace {
    bytes: Vec<u8>,
    /// Where each begins and ends.
    places: Vec<(usize, usize)>,
    /// From one playing to the next.
    period: u64,
}

impl Trace {
    fn load(path: &Path) -> Result<Self> {
        let mut rest: &[u8] =
            &fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let (mut bytes, mut places) = (Vec::new(), Vec::new());
        while let Some((length, more)) = rest.split_first_chunk::<4>() {
            let length = u32::from_le_bytes(*length) as usize;
            let record = more.get(..length).context("the trace is cut short")?;
            if decode(record).is_err() {
                bail!("the trace was recorded by another version");
            }
            places.push((bytes.len(), bytes.len() + length));
            bytes.extend_from_slice(record);
            rest = &more[length..];
        }
        let time = |place: Option<&(usize, usize)>| {
            place.and_then(|&(begin, end)| timestamp(&bytes[begin..end]))
        };
        let (Some(first), Some(last)) = (time(places.first()), time(places.last())) else {
            bail!("the trace is empty: was there load on the process?");
        };
        let period = last - first + PAUSE;
        Ok(Self {
            bytes,
            places,
            period,
        })
    }

    fn len(&self) -> usize {
        self.places.len()
    }

    /// Plays it once.
    fn play(&self, mut each: impl FnMut(&[u8])) {
        for &(begin, end) in &self.places {
            each(&self.bytes[begin..end]);
        }
    }

    /// Moves it on to its next playing.
    fn shift(&mut self) {
        for &(begin, _) in &self.places {
            let at = begin + std::mem::offset_of!(Header, ts);
            let word = &mut self.bytes[at..at + 8];
            let mut ts = [0; 8];
            ts.copy_from_slice(word);
            let later = u64::from_ne_bytes(ts) + self.period;
            word.copy_from_slice(&later.to_ne_bytes());
        }
    }
}

/// The user side up to its spans.
struct Line {
    decoder: Decoder,
    policy: Policy,
    resource: Arc<Resource>,
    due: u64,
}

/// How far a record goes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Decode,
    Correlate,
    Span,
}

impl Line {
    fn new(counters: &Arc<Counters>) -> Result<Self> {
        Ok(Self {
            decoder: Decoder::new(
                Identities::default(),
                Correlator::new(Limits::default()),
                None,
                Arc::default(),
            ),
            policy: Policy::new(PolicyConfig::default(), Arc::clone(counters))
                .map_err(|error| anyhow::anyhow!("no random bytes: {error}"))?,
            resource: Arc::new(Resource {
                tgid: 1,
                service_name: "bench".into(),
                attributes: vec![("service.name".into(), Value::Str("bench".into()))],
            }),
            due: 0,
        })
    }

    /// What the pipeline does with a record, as far as that stage.
    fn record(&mut self, bytes: &[u8], stage: Stage, mut each: impl FnMut(Span)) {
        if stage < Stage::Correlate {
            let _ = black_box(decode(bytes));
            return;
        }
        self.decoder.replay(bytes);
        let now = timestamp(bytes).unwrap_or(0);
        if now >= self.due {
            self.due = now + ROUND;
            self.decoder.tick(now);
        }
        let exchanges = self.decoder.finished();
        if stage == Stage::Span {
            let clock = unix_offset_once();
            for exchange in exchanges {
                each(self.policy.span(&exchange, &self.resource, clock, None));
            }
        }
    }
}

/// The clocks' offset, read once: the pipeline reads it every second.
fn unix_offset_once() -> decnet_trace::policy::ClockOffset {
    use std::sync::OnceLock;
    static OFFSET: OnceLock<decnet_trace::policy::ClockOffset> = OnceLock::new();
    *OFFSET.get_or_init(unix_offset)
}

fn replay(path: &Path, samples: usize, time: Duration, otlp: &str) -> Result<()> {
    let mut trace = Trace::load(path)?;
    let counters = Arc::new(Counters::new());
    let mut stages = Vec::new();
    for (name, stage) in [
        ("decode", Stage::Decode),
        ("correlate", Stage::Correlate),
        ("span", Stage::Span),
    ] {
        let (mut nanos, mut allocations, mut spans) = (Vec::new(), Vec::new(), 0_u64);
        let mut played = 0_u64;
        for _ in 0..samples {
            let (mut used, mut allocated, mut events) = (0, 0, 0);
            while used < time.as_nanos() as u64 {
                // A trace begins and ends in the middle of requests: one that goes on where it ended pairs
                // what does not belong together, and gives up connections for it.
                let mut line = Line::new(&counters)?;
                let before = (read(libc::CLOCK_THREAD_CPUTIME_ID), allocations_now());
                trace.play(|bytes| {
                    line.record(bytes, stage, |span| {
                        spans += 1;
                        drop(black_box(span));
                    });
                });
                used += read(libc::CLOCK_THREAD_CPUTIME_ID) - before.0;
                allocated += allocations_now() - before.1;
                events += trace.len() as u64;
                trace.shift();
            }
            played += events;
            nanos.push(used as f64 / events as f64);
            allocations.push(allocated as f64 / events as f64);
        }
        stages.push(json!({
            "name": name,
            "nanos_per_event": nanos,
            "allocations_per_event": allocations,
            "spans_per_event": spans as f64 / played as f64,
        }));
    }
    let spans = spans(&mut trace, &counters)?;
    // A short trace again and again: what a sink is handed at once is to outweigh the wait for its end.
    let enough = spans.len().max(WAITING);
    let spans: Vec<Span> = spans.iter().cycle().take(enough).cloned().collect();
    let mut sinks = Vec::new();
    for name in ["summary", "store", "file", "otlp"] {
        let (mut nanos, mut allocations) = (Vec::new(), Vec::new());
        for _ in 0..samples {
            let (used, allocated) = sink(name, &spans, time, otlp)
                .with_context(|| format!("the sink {name} failed"))?;
            nanos.push(used);
            allocations.push(allocated);
        }
        sinks.push(json!({
            "name": name,
            "nanos_per_span": nanos,
            "allocations_per_span": allocations,
        }));
    }
    println!(
        "{}",
        json!({ "events": trace.len(), "stages": stages, "sinks": sinks })
    );
    Ok(())
}

/// The spans of a trace.
fn spans(trace: &mut Trace, counters: &Arc<Counters>) -> Result<Vec<Span>> {
    let mut line = Line::new(counters)?;
    let mut spans = Vec::new();
    trace.play(|bytes| line.record(bytes, Stage::Span, |span| spans.push(span)));
    trace.shift();
    if spans.is_empty() {
        bail!("the trace holds no whole request");
    }
    Ok(spans)
}

/// What a sink takes per span, its thread's time included: nanoseconds, and allocations.
fn sink(name: &str, spans: &[Span], time: Duration, otlp: &str) -> Result<(f64, f64)> {
    let dir = env::temp_dir().join(format!("decnet-bench-{}", std::process::id()));
    let mut config = ExportConfig::default();
    match name {
        "summary" => config.summary = Some(SummaryConfig::default()),
        "file" => config.spans_file = Some(dir.clone()),
        "store" => {
            config.store = Some(StoreConfig {
                folder: dir.clone(),
                is_required: true,
                ..StoreConfig::default()
            });
        }
        _ => {
            let mut endpoint = OtlpConfig::new(otlp);
            endpoint.protocol = Protocol::HttpProtobuf;
            config.otlp = Some(endpoint);
        }
    }
    let counters = Arc::new(Counters::new());
    let exporters = Exporters::start(config, Arc::clone(&counters))?;
    let (mut used, mut allocated, mut sent) = (0, 0, 0_u64);
    while used < time.as_nanos() as u64 {
        // The copies are not the sink's.
        let batches: Vec<Vec<Span>> = spans.chunks(BATCH).map(<[Span]>::to_vec).collect();
        let before = (read(libc::CLOCK_PROCESS_CPUTIME_ID), allocations_now());
        for batch in batches {
            sent += batch.len() as u64;
            exporters.send(batch);
            // No faster than it takes them: nothing is to be dropped.
            while exporters.stats().any(|sink| sink.queued > WAITING) {
                thread::sleep(ASK_EVERY);
            }
        }
        while exporters.stats().any(|sink| sink.queued > 0) {
            thread::sleep(ASK_EVERY);
        }
        used += read(libc::CLOCK_PROCESS_CPUTIME_ID) - before.0;
        allocated += allocations_now() - before.1;
    }
    exporters.shutdown(Duration::from_secs(10));
    let _ = match dir.is_dir() {
        true => fs::remove_dir_all(&dir),
        false => fs::remove_file(&dir),
    };
    let lost: Vec<_> = counters
        .iter()
        .filter(|(name, value)| name.contains("lost") && *value > 0)
        .collect();
    if !lost.is_empty() {
        bail!("spans were lost: {lost:?}");
    }
    Ok((used as f64 / sent as f64, allocated as f64 / sent as f64))
}

fn allocations_now() -> u64 {
    ALLOCATIONS.load(Ordering::Relaxed)
}
