//! Prometheus's text format (<https://prometheus.io/docs/instrumenting/exposition_formats/>) and
//! OpenMetrics 1.0 (<https://prometheus.io/docs/specs/om/open_metrics_spec/>), named as OpenTelemetry
//! says (<https://opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics/>).

use std::fmt::{Display, Write as _};

use crate::{
    metrics::{
        Instrument, Metrics,
        agent::{AgentMetric, Shape},
        series::{Series, Value as SeriesValue},
    },
    span::{Resource, Value},
};

/// A text format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// Prometheus's own, version 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0, which has exemplars.
    OpenMetrics,
}

impl Format {
    /// The one that `Accept` asks for: OpenMetrics where it is named and not less wanted than plain text.
    pub(super) fn wanted(accept: &str) -> Self {
        let quality = |kind: &str| {
            let mut best: Option<f32> = None;
            for range in accept.split(',') {
                let mut parts = range.split(';').map(str::trim);
                if !parts
                    .next()
                    .is_some_and(|name| name.eq_ignore_ascii_case(kind))
                {
                    continue;
                }
                let q = parts.find_map(|part| part.strip_prefix("q="));
                let q = q.map_or(1.0, |q| q.parse().unwrap_or(0.0));
                best = Some(best.map_or(q, |best| best.max(q)));
            }
            best.unwrap_or(0.0)
        };
        let open = quality("application/openmetrics-text");
        match open > 0.0 && open >= quality("text/plain") {
            true => Self::OpenMetrics,
            false => Self::Prometheus,
        }
    }

    pub(super) const fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// All metrics.
pub(super) fn write(metrics: &Metrics, format: Format) -> String {
    let mut out = Text {
        out: String::with_capacity(16 * 1024),
        format,
    };
    let resources = metrics.processes().iter().map(|process| &process.resource);
    let agent = metrics.agent();
    let mut all: Vec<_> = resources
        .chain(agent.map(|agent| &agent.resource))
        .collect();
    // A process that learnt more of itself may be there twice.
    all.sort_by_key(|resource| (instance(resource), resource.tgid));
    all.dedup_by_key(|resource| (instance(resource), resource.tgid));
    out.target_info(&all);
    for instrument in Instrument::ALL {
        let families = metrics.processes().iter();
        let families = families.filter(|process| !process.family(instrument).is_empty());
        let mut families = families.peekable();
        if families.peek().is_none() {
            continue;
        }
        let name = format!("{}_seconds", instrument.name().replace('.', "_"));
        out.head(&name, "histogram", "seconds", instrument.description());
        for process in families {
            let labels = labels_of(&process.resource);
            for series in process.family(instrument).iter() {
                out.histogram(&name, &labels, series, instrument.bounds());
            }
        }
    }
    let active = metrics
        .processes()
        .iter()
        .filter(|p| !p.active().is_empty());
    let mut active = active.peekable();
    if active.peek().is_some() {
        let name = "http_server_active_requests";
        out.head(name, "gauge", "", "Number of active HTTP server requests.");
        for process in active {
            for (method, n) in process.active() {
                let mut labels = labels_of(&process.resource);
                label(&mut labels, "http.request.method", method);
                label(&mut labels, "url.scheme", "http");
                out.sample(name, &labels, n);
            }
        }
    }
    if let Some(agent) = agent {
        let labels = labels_of(&agent.resource);
        for metric in agent.metrics() {
            out.agent(&metric, &labels);
        }
    }
    if format == Format::OpenMetrics {
        out.out.push_str("# EOF\n");
    }
    out.out
}

struct Text {
    out: String,
    format: Format,
}

impl Text {
    fn head(&mut self, name: &str, kind: &str, unit: &str, help: &str) {
        let _ = writeln!(self.out, "# HELP {name} {help}");
        let _ = writeln!(self.out, "# TYPE {name} {kind}");
        if self.format == Format::OpenMetrics && !unit.is_empty() {
            let _ = writeln!(self.out, "# UNIT {name} {unit}");
        }
    }

    fn sample(&mut self, name: &str, labels: &str, value: impl Display) {
        let _ = writeln!(self.out, "{name}{{{labels}}} {value}");
    }

    /// What is known of each process; the other metrics name only the service and the instance.
    fn target_info(&mut self, resources: &[&std::sync::Arc<Resource>]) {
        let (family, kind) = match self.format {
            Format::OpenMetrics => ("target", "info"),
            Format::Prometheus => ("target_info", "gauge"),
        };
        self.head(family, kind, "", "Target metadata.");
        for resource in resources {
            let mut labels = labels_of(resource);
            for (name, value) in &resource.attributes {
                match value {
                    _ if matches!(&**name, "service.name" | "service.instance.id") => {}
                    Value::Str(text) => label(&mut labels, name, text),
                    Value::Int(n) => label(&mut labels, name, &n.to_string()),
                    Value::Bool(b) => label(&mut labels, name, &b.to_string()),
                    Value::Float(_) | Value::StrList(_) => {}
                }
            }
            self.sample("target_info", &labels, 1);
        }
    }

    fn histogram(&mut self, name: &str, process: &str, series: &Series, bounds: &[f64]) {
        let mut labels = process.to_owned();
        for (name, kept) in &series.attributes {
            match kept.value() {
                SeriesValue::Text(text) => label(&mut labels, name, text),
                SeriesValue::Int(n) => label(&mut labels, name, &n.to_string()),
                SeriesValue::Bool(b) => label(&mut labels, name, &b.to_string()),
            }
        }
        let mut total = 0;
        let mut below = f64::NEG_INFINITY;
        for (at, count) in series.explicit[..=bounds.len()].iter().enumerate() {
            total += count;
            let bound = bounds.get(at).copied().unwrap_or(f64::INFINITY);
            let _ = match bounds.get(at) {
                Some(bound) => write!(
                    self.out,
                    "{name}_bucket{{{labels},le=\"{bound:?}\"}} {total}"
                ),
                None => write!(self.out, "{name}_bucket{{{labels},le=\"+Inf\"}} {total}"),
            };
            if self.format == Format::OpenMetrics {
                self.exemplar(series, below, bound);
            }
            self.out.push('\n');
            below = bound;
        }
        self.sample(&format!("{name}_sum"), &labels, series.histogram.sum());
        self.sample(&format!("{name}_count"), &labels, series.histogram.count());
    }

    /// The newest exemplar of a bucket.
    fn exemplar(&mut self, series: &Series, below: f64, bound: f64) {
        let of_bucket = series
            .exemplars(0)
            .filter(|exemplar| exemplar.value > below && exemplar.value <= bound);
        if let Some(exemplar) = of_bucket.max_by_key(|exemplar| exemplar.time) {
            let _ = write!(
                self.out,
                " # {{trace_id=\"{:032x}\",span_id=\"{:016x}\"}} {} {:.3}",
                u128::from_be_bytes(exemplar.trace_id),
                u64::from_be_bytes(exemplar.span_id),
                exemplar.value,
                exemplar.time as f64 / 1e9
            );
        }
    }

    fn agent(&mut self, metric: &AgentMetric, process: &str) {
        let unit = match metric.unit {
            "s" => "seconds",
            "By" => "bytes",
            "1" => "ratio",
            _ => "",
        };
        let mut family = metric.name.replace('.', "_");
        if !unit.is_empty() {
            let _ = write!(family, "_{unit}");
        }
        let is_counter = metric.shape == Shape::Counter;
        let sample = if is_counter {
            format!("{family}_total")
        } else {
            family.clone()
        };
        let (head, kind) = match (is_counter, self.format) {
            (true, Format::OpenMetrics) => (&family, "counter"),
            (true, Format::Prometheus) => (&sample, "counter"),
            (false, _) => (&family, "gauge"),
        };
        self.head(head, kind, unit, metric.description);
        for (told_by, value) in &metric.points {
            let mut labels = process.to_owned();
            if let Some((name, text)) = told_by {
                label(&mut labels, name, text);
            }
            self.sample(&sample, &labels, value);
        }
    }
}

/// What tells a process from others: `service.instance.id`, or its pid where it has none.
fn instance(resource: &Resource) -> String {
    let id = resource.attributes.iter();
    let mut id = id.filter_map(|(name, value)| match value {
        Value::Str(text) if name == "service.instance.id" => Some(text.to_string()),
        _ => None,
    });
    id.next().unwrap_or_else(|| resource.tgid.to_string())
}

fn labels_of(resource: &Resource) -> String {
    let mut labels = String::new();
    label(&mut labels, "service.name", &resource.service_name);
    label(&mut labels, "service.instance.id", &instance(resource));
    labels
}

/// Adds a label: the name's dots become underscores, and the value is escaped.
pub(super) fn label(labels: &mut String, name: &str, value: &str) {
    if !labels.is_empty() {
        labels.push(',');
    }
    for (at, c) in name.chars().enumerate() {
        let fits = c.is_ascii_alphabetic() || c == '_' || at > 0 && c.is_ascii_digit();
        labels.push(if fits { c } else { '_' });
    }
    labels.push_str("=\"");
    for c in value.chars() {
        match c {
            '\\' => labels.push_str("\\\\"),
            '"' => labels.push_str("\\\""),
            '\n' => labels.push_str("\\n"),
            c => labels.push(c),
        }
    }
    labels.push('"');
}
