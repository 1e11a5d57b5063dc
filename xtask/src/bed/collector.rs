//! A real OTLP collector: rotel, from PyPI. It takes OTLP over gRPC and HTTP, and writes every span
//! that it understood to its debug log, which is read back here.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{
    process::{Folder, Process},
    venv::{Venv, default_python, version},
};
use crate::{
    command::{output, say},
    debian,
};

/// How long it may take until it listens.
const START: Duration = Duration::from_secs(30);

/// Another program may take a port between the search for a free one and the start.
const ATTEMPTS: u32 = 3;

/// A running collector; it ends when this is dropped. See [`Process`] for the thread to keep it in.
#[derive(Debug)]
pub struct Collector {
    grpc: SocketAddr,
    http: SocketAddr,
    process: Process,
    // After the process: the folder goes when nothing writes there any more.
    _dir: Folder,
}

/// Attributes by name. A value is written with its type: `Str(GET)`, `Int(200)`, `Double(1.5)`,
/// `Bool(true)`, `Slice(Str(a), Str(b))`.
pub type Attributes = BTreeMap<String, String>;

/// A span as the collector understood it. Ids are lower-case hexadecimal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// The trace's id.
    pub trace_id: String,
    /// The span's own id.
    pub span_id: String,
    /// The parent's id; empty for a root.
    pub parent_id: String,
    /// The name.
    pub name: String,
    /// The kind, like `SPAN_KIND_SERVER`.
    pub kind: String,
    /// Start, in nanoseconds since the Unix epoch.
    pub start: u64,
    /// End, in nanoseconds since the Unix epoch.
    pub end: u64,
    /// The status, like `STATUS_CODE_UNSET`.
    pub status: String,
    /// The status's description.
    pub status_message: String,
    /// The span's attributes.
    pub attributes: Attributes,
    /// Its resource's attributes.
    pub resource: Arc<Attributes>,
    /// Its instrumentation scope: name and version.
    pub scope: String,
}

/// A point of a metric as the collector understood it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Point {
    /// The metric's name.
    pub metric: String,
    /// Its attributes.
    pub attributes: Attributes,
    /// Its resource's attributes.
    pub resource: Arc<Attributes>,
    /// How many values it is of, or the value itself.
    pub count: f64,
    /// Buckets of a histogram: above, up to, how many.
    pub buckets: Vec<(f64, f64, u64)>,
}

impl Collector {
    /// Installs rotel where the cache has none, and starts it on free ports.
    ///
    /// # Errors
    /// It cannot be installed, or does not start.
    pub fn start() -> Result<Self> {
        let mut attempt = 1;
        loop {
            match Self::start_at(free_port()?, free_port()?) {
                Err(_) if attempt < ATTEMPTS => attempt += 1,
                result => return result.context("the collector (rotel) does not start"),
            }
        }
    }

    /// The same, on these ports: where one listened that is gone.
    ///
    /// # Errors
    /// It cannot be installed, or does not start.
    pub fn start_at(grpc: SocketAddr, http: SocketAddr) -> Result<Self> {
        let python = default_python()?;
        let venv = Venv::ensure(&python, &["rotel"])?;
        let libraries = libpython(&python)?;
        let dir = Folder::new()?;
        let mut rotel = Command::new(venv.packages().join("rotel/rotel-agent"));
        rotel
            .arg("start")
            .args(["--otlp-grpc-endpoint", &grpc.to_string()])
            .args(["--otlp-http-endpoint", &http.to_string()])
            .args(["--exporter", "blackhole", "--log-format", "json"])
            .args(["--debug-log", "traces", "--debug-log", "metrics"])
            .args(["--debug-log", "logs"])
            .args(["--debug-log-verbosity", "detailed"])
            .env("LD_LIBRARY_PATH", libraries)
            .current_dir(dir.path());
        let mut process = Process::start(&mut rotel, &dir.path().join("log"))?;
        process.wait_for(START, |_| {
            (TcpStream::connect(grpc).is_ok() && TcpStream::connect(http).is_ok()).then_some(())
        })?;
        Ok(Self {
            grpc,
            http,
            process,
            _dir: dir,
        })
    }

    /// The endpoint for OTLP over gRPC, as `OTEL_EXPORTER_OTLP_ENDPOINT` has it.
    pub fn grpc_endpoint(&self) -> String {
        format!("http://{}", self.grpc)
    }

    /// The endpoint for OTLP over HTTP; the signals' paths (`/v1/traces`) go after it.
    pub fn http_endpoint(&self) -> String {
        format!("http://{}", self.http)
    }

    /// The addresses for gRPC and HTTP.
    pub fn addresses(&self) -> (SocketAddr, SocketAddr) {
        (self.grpc, self.http)
    }

    /// Tells it to stop, and returns all spans and points that it received.
    ///
    /// # Errors
    /// It does not stop, or its log cannot be read.
    pub fn stop(mut self) -> Result<(Vec<Collected>, Vec<Point>)> {
        self.process.signal(rustix::process::Signal::TERM);
        self.process.wait(START)?;
        Ok((self.spans()?, self.points()?))
    }

    /// Kills it, and returns all spans that it had written down.
    ///
    /// # Errors
    /// It does not end, or its log cannot be read.
    pub fn kill(mut self) -> Result<Vec<Collected>> {
        self.process.signal(rustix::process::Signal::KILL);
        self.process.wait(START)?;
        self.spans()
    }

    /// All points of metrics that it received so far, in their order.
    ///
    /// # Errors
    /// Its log cannot be read.
    pub fn points(&self) -> Result<Vec<Point>> {
        Ok(parse_points(&self.process.output()?))
    }

    /// The texts of all log records that it received so far, in their order.
    ///
    /// # Errors
    /// Its log cannot be read.
    pub fn records(&self) -> Result<Vec<String>> {
        Ok(parse_records(&self.process.output()?))
    }

    /// All spans that it received so far, in their order.
    ///
    /// # Errors
    /// Its log cannot be read.
    pub fn spans(&self) -> Result<Vec<Collected>> {
        Ok(parse(&self.process.output()?))
    }

    /// Waits until it has received at least `count` spans, and returns all.
    ///
    /// # Errors
    /// They have not come after `limit`.
    pub fn wait_for_spans(&self, count: usize, limit: Duration) -> Result<Vec<Collected>> {
        let deadline = Instant::now() + limit;
        loop {
            let spans = self.spans()?;
            if spans.len() >= count {
                return Ok(spans);
            }
            if Instant::now() > deadline {
                bail!(
                    "the collector has {} of {count} spans after {} s",
                    spans.len(),
                    limit.as_secs()
                );
            }
            thread::sleep(Duration::from_millis(50));
        }
    }
}

fn free_port() -> Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .context("no free port")
}

/// The folder with the interpreter's shared library, which rotel is linked against.
fn libpython(python: &Path) -> Result<PathBuf> {
    let find = || -> Result<Option<PathBuf>> {
        let script = "import sysconfig as s; print(s.get_config_var('LIBDIR'))";
        let dir = PathBuf::from(output(Command::new(python).args(["-I", "-c", script]))?.trim());
        let (major, minor, _) = version(python)?;
        let library = format!("libpython{major}.{minor}.so.1.0");
        // Debian's says /usr/lib, and puts it into the folder of the architecture.
        Ok([
            dir.clone(),
            dir.join(format!("{}-linux-gnu", std::env::consts::ARCH)),
        ]
        .into_iter()
        .find(|dir| dir.join(&library).exists()))
    };
    if let Some(dir) = find()? {
        return Ok(dir);
    }
    let (major, minor, _) = version(python)?;
    if !python.starts_with("/usr/bin") {
        bail!("{} has no shared library", python.display());
    }
    let package = format!("libpython{major}.{minor}");
    say(format!("installing Debian's {package} with apt-get"));
    debian::install(&[&package])?;
    find()?.with_context(|| format!("{package} has no libpython{major}.{minor}.so.1.0"))
}

/// Reads the bodies of log records out of the debug log.
fn parse_records(log: &str) -> Vec<String> {
    let mut is_record = false;
    let mut out = Vec::new();
    for line in log.lines() {
        if line.starts_with("LogRecord #") {
            is_record = true;
        } else if is_record && let Some(body) = line.strip_prefix("Body: ") {
            out.push(body.to_owned());
            is_record = false;
        }
    }
    out
}

/// What the next attribute belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Resource,
    Scope,
    Span,
    /// An event or a link of a span: not read.
    Other,
}

/// Reads the debug log. A text over several lines is put together again, as long as none of them
/// looks like a line of the log's own.
fn parse(log: &str) -> Vec<Collected> {
    let mut spans: Vec<Collected> = Vec::new();
    let mut resource = Arc::new(Attributes::new());
    let mut scope = String::new();
    let mut part = Part::Other;
    // The attribute or status message whose text may go on in the next line.
    let mut open: Option<String> = None;
    for line in log.lines() {
        if line.starts_with("ResourceSpans #") {
            resource = Arc::new(Attributes::new());
            part = Part::Resource;
        } else if line.starts_with("ScopeSpans #") {
            scope.clear();
            part = Part::Scope;
        } else if let Some(text) = line.strip_prefix("InstrumentationScope ") {
            text.clone_into(&mut scope);
        } else if line.starts_with("Span #") {
            spans.push(Collected {
                resource: Arc::clone(&resource),
                scope: scope.clone(),
                ..Collected::default()
            });
            part = Part::Span;
        } else if ["SpanEvent #", "SpanLink #", "ResourceMetrics #"]
            .iter()
            .any(|other| line.starts_with(other))
        {
            part = Part::Other;
        } else if let Some((name, value)) = attribute(line) {
            match (part, spans.last_mut()) {
                (Part::Resource, _) => {
                    Arc::make_mut(&mut resource).insert(name.to_owned(), value.to_owned());
                }
                (Part::Span, Some(span)) => {
                    span.attributes.insert(name.to_owned(), value.to_owned());
                }
                _ => {}
            }
            open = Some(name.to_owned());
            continue;
        } else if let (Part::Span, Some(span)) = (part, spans.last_mut())
            && let Some((name, value)) = line.split_once(':')
            && let Some(field) = span.field(name.trim())
        {
            value.strip_prefix(' ').unwrap_or(value).clone_into(field);
            if name.trim() == "Status message" {
                open = Some(String::new());
                continue;
            }
        } else if let (Part::Span, Some(span)) = (part, spans.last_mut())
            && let Some((name, value)) = line.split_once(": ")
            && let Some(time) = span.time(name)
        {
            *time = value.trim().parse().unwrap_or_default();
        } else if let Some(name) = &open {
            let text = match (part, spans.last_mut()) {
                (Part::Resource, _) => Arc::make_mut(&mut resource).get_mut(name),
                (Part::Span, Some(span)) if name.is_empty() && line != "Attributes:" => {
                    Some(&mut span.status_message)
                }
                (Part::Span, Some(span)) => span.attributes.get_mut(name),
                _ => None,
            };
            if let Some(text) = text {
                text.push('\n');
                text.push_str(line);
            }
            continue;
        }
        open = None;
    }
    spans
}

/// Reads the points of metrics in the debug log.
fn parse_points(log: &str) -> Vec<Point> {
    let mut points: Vec<Point> = Vec::new();
    let mut resource = Arc::new(Attributes::new());
    let mut metric = String::new();
    let mut part = Part::Other;
    for line in log.lines() {
        if line.starts_with("ResourceMetrics #") {
            resource = Arc::new(Attributes::new());
            part = Part::Resource;
        } else if line.starts_with("ResourceSpans #") || line.starts_with("ScopeMetrics #") {
            part = Part::Other;
        } else if line == "Descriptor:" {
            part = Part::Scope;
        } else if line.contains("DataPoints #") && !line.starts_with('{') {
            points.push(Point {
                metric: metric.clone(),
                resource: Arc::clone(&resource),
                ..Point::default()
            });
            part = Part::Span;
        } else if let Some((name, value)) = attribute(line) {
            match (part, points.last_mut()) {
                (Part::Resource, _) => {
                    Arc::make_mut(&mut resource).insert(name.to_owned(), value.to_owned());
                }
                (Part::Scope, _) if name == "Name" => value.clone_into(&mut metric),
                (Part::Span, Some(point)) => {
                    point.attributes.insert(name.to_owned(), value.to_owned());
                }
                _ => {}
            }
        } else if let (Part::Span, Some(point)) = (part, points.last_mut()) {
            if let Some(bucket) = bucket(line) {
                point.buckets.push(bucket);
            } else if let Some((name, value)) = line.split_once(": ")
                && matches!(name, "Count" | "Value")
            {
                point.count = value.parse().unwrap_or_default();
            }
        }
    }
    points
}

/// `Bucket (0.1, 0.2], Count: 3`
fn bucket(line: &str) -> Option<(f64, f64, u64)> {
    let (above, rest) = line.strip_prefix("Bucket (")?.split_once(", ")?;
    let (up_to, count) = rest.split_once("], Count: ")?;
    Some((
        above.parse().ok()?,
        up_to.parse().ok()?,
        count.parse().ok()?,
    ))
}

/// `     -> name: Type(value)`
fn attribute(line: &str) -> Option<(&str, &str)> {
    line.trim_start().strip_prefix("-> ")?.split_once(": ")
}

impl Collected {
    fn field(&mut self, name: &str) -> Option<&mut String> {
        Some(match name {
            "Trace ID" => &mut self.trace_id,
            "Parent ID" => &mut self.parent_id,
            "ID" => &mut self.span_id,
            "Name" => &mut self.name,
            "Kind" => &mut self.kind,
            "Status code" => &mut self.status,
            "Status message" => &mut self.status_message,
            _ => return None,
        })
    }

    fn time(&mut self, name: &str) -> Option<&mut u64> {
        match name {
            "Start time" => Some(&mut self.start),
            "End time" => Some(&mut self.end),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A log of rotel 0.0.1a15: two resources, texts over several lines, all types of values.
    #[test]
    fn log_is_read() {
        let log = "{\"timestamp\":\"2026-11-22T09:37:46Z\",\"level\":\"INFO\"}\n\
            ResourceSpans #0\n\
            Resource SchemaURL: \n\
            Resource attributes:\n\
            \x20    -> telemetry.sdk.language: Str(python)\n\
            \x20    -> service.name: Str(bed: \"quoted\"\nline)\n\
            ScopeSpans #0\n\
            ScopeSpans SchemaURL: \n\
            InstrumentationScope bed 1.0\n\
            Span #0\n\
            \x20   Trace ID       : 733f488478d4f4ffcc8f307393beb63a\n\
            \x20   Parent ID      : 7ecf9630e6c8bd75\n\
            \x20   ID             : d1c96ed4fdbdf881\n\
            \x20   Name           : SELECT\n\
            \x20   Kind           : SPAN_KIND_CLIENT\n\
            Start time: 1795340267423220329\n\
            End time: 1795340267423241832\n\
            \x20   Status code    : STATUS_CODE_ERROR\n\
            \x20   Status message : it\nbroke\n\
            Span #1\n\
            \x20   Trace ID       : 733f488478d4f4ffcc8f307393beb63a\n\
            \x20   Parent ID      : \n\
            \x20   ID             : 7ecf9630e6c8bd75\n\
            \x20   Name           : GET /items/{id}\n\
            \x20   Kind           : SPAN_KIND_SERVER\n\
            Start time: 1795340267423175194\n\
            End time: 1795340267423261475\n\
            \x20   Status code    : STATUS_CODE_UNSET\n\
            \x20   Status message : \n\
            Attributes:\n\
            \x20    -> http.route: Str(/items/{id})\n\
            \x20    -> n: Int(0)\n\
            \x20    -> l: Slice(Str(a), Str(b))\n\
            ResourceSpans #1\n\
            Resource attributes:\n\
            \x20    -> service.name: Str(other)\n\
            ScopeSpans #0\n\
            InstrumentationScope x\n\
            Span #0\n\
            \x20   Name           : GET\n";
        let spans = parse(log);
        assert_eq!(spans.len(), 3);
        assert_eq!(spans[0].parent_id, spans[1].span_id);
        assert_eq!(spans[0].trace_id, "733f488478d4f4ffcc8f307393beb63a");
        assert_eq!(spans[0].status_message, "it\nbroke");
        assert_eq!(
            spans[0].resource["service.name"],
            "Str(bed: \"quoted\"\nline)"
        );
        assert_eq!(spans[0].scope, "bed 1.0");
        assert_eq!(
            (spans[0].start, spans[0].end),
            (1_795_340_267_423_220_329, 1_795_340_267_423_241_832)
        );
        assert_eq!(spans[1].parent_id, "");
        assert_eq!(spans[1].name, "GET /items/{id}");
        assert_eq!(spans[1].status_message, "");
        assert_eq!(spans[1].attributes["l"], "Slice(Str(a), Str(b))");
        assert_eq!(spans[1].attributes.len(), 3);
        assert_eq!(spans[2].resource["service.name"], "Str(other)");
    }

    /// Log records are read by their texts.
    #[test]
    fn records_are_read() {
        let log = "ResourceLog #0\nScopeLogs #0\nLogRecord #0\nTimestamp: 1\nSeverityText: WARN\n\
            Body: Str(a #1: b)\n    Trace ID       : \nFlags: 0\nBody: no\nLogRecord #1\nBody: Str(c)\n";
        assert_eq!(parse_records(log), ["Str(a #1: b)", "Str(c)"]);
    }

    /// Points of metrics stand between spans, and neither takes the other's attributes.
    #[test]
    fn points_are_read() {
        let log = "ResourceSpans #0\nSpan #0\n    Name           : GET\n\
            ResourceMetrics #0\nResource attributes:\n     -> service.name: Str(shop)\n\
            ScopeMetrics #0\nMetric #0\nDescriptor:\n     -> Name: a.duration\n     -> Unit: s\n\
            ExponentialHistogramDataPoints #0\nData point attributes:\n     -> k: Str(v)\n\
            Count: 3\nSum: 0.5\nBucket (0.1, 0.2], Count: 3\n\
            Metric #1\nDescriptor:\n     -> Name: b\nNumberDataPoints #0\nValue: 0.25\n";
        let points = parse_points(log);
        assert_eq!(points.len(), 2);
        assert_eq!(points[0].metric, "a.duration");
        assert_eq!(points[0].attributes["k"], "Str(v)");
        assert_eq!(points[0].resource["service.name"], "Str(shop)");
        assert_eq!(
            (points[0].count, &*points[0].buckets),
            (3.0, &[(0.1, 0.2, 3)][..])
        );
        assert_eq!((&*points[1].metric, points[1].count), ("b", 0.25));
        assert_eq!(points[1].attributes, Attributes::new());
        let spans = parse(log);
        assert_eq!(spans.len(), 1);
        assert_eq!(spans[0].attributes, Attributes::new());
    }

    /// A log that is cut off, or no log at all, is read as far as it goes.
    #[test]
    fn garbage_is_survived() {
        assert_eq!(parse(""), []);
        assert_eq!(
            parse("-> a: b\nEnd time: x\nResourceSpans #\n -> \n").len(),
            0
        );
        assert_eq!(parse("Span #0\n    Name           : G").len(), 1);
    }
}
