//! Prometheus's text format (<https://prometheus.io/docs/instrumenting/exposition_formats/>) and
//! OpenMetrics 1.0 (<https://prometheus.io/docs/specs/om/open_metrics_spec/>), named as OpenTelemetry
//! says (<https://opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics/>).

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    fmt::{Display, Write as _},
    sync::Arc,
};

use crate::{
    metrics::{
        Instrument, Snapshot,
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
pub(super) fn write(metrics: &Snapshot, format: Format) -> String {
    let mut out = Text {
        out: String::with_capacity(16 * 1024),
        format,
    };
    let agent = metrics.agent.as_ref();
    let resources = metrics.processes.iter().map(|process| &process.resource);
    let all: Vec<_> = resources
        .chain(agent.map(|agent| &agent.resource))
        .collect();
    let names = Names::of(&all);
    out.target_info(&all, &names);
    for instrument in Instrument::ALL {
        let families = metrics.processes.iter();
        let families = families.filter(|process| !process.family(instrument).is_empty());
        let mut families = families.peekable();
        if families.peek().is_none() {
            continue;
        }
        let name = format!("{}_seconds", instrument.name().replace('.', "_"));
        out.head(&name, "histogram", "seconds", instrument.description());
        for process in families {
            let labels = names.labels_of(&process.resource);
            for series in process.family(instrument).iter() {
                out.histogram(&name, &labels, series, instrument.bounds());
            }
        }
    }
    let active = metrics.processes.iter().filter(|p| !p.active().is_empty());
    let mut active = active.peekable();
    if active.peek().is_some() {
        let name = "http_server_active_requests";
        out.head(name, "gauge", "", "Number of active HTTP server requests.");
        for process in active {
            for (method, n) in process.active() {
                let mut labels = names.labels_of(&process.resource);
                label(&mut labels, "http.request.method", method);
                label(&mut labels, "url.scheme", "http");
                out.sample(name, &labels, n);
            }
        }
    }
    if let Some(agent) = agent {
        let labels = names.labels_of(&agent.resource);
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
    fn target_info(&mut self, resources: &[&Arc<Resource>], names: &Names<'_>) {
        let (family, kind) = match self.format {
            Format::OpenMetrics => ("target", "info"),
            Format::Prometheus => ("target_info", "gauge"),
        };
        self.head(family, kind, "", "Target metadata.");
        for resource in resources {
            let mut labels = names.labels_of(resource);
            for (name, value) in described(resource) {
                label(&mut labels, &name, &value);
            }
            self.sample("target_info", &labels, 1);
        }
    }

    fn histogram(&mut self, name: &str, process: &str, series: &Series, bounds: &[f64]) {
        let mut labels = process.to_owned();
        for (name, kept) in &*series.attributes {
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

/// The names that Prometheus tells processes by. No two may have the same: their samples would be
/// duplicates.
struct Names<'a> {
    /// The process of each service's instance; none where several say that they are the same.
    pids: HashMap<(&'a str, Cow<'a, str>), Option<u32>>,
}

impl<'a> Names<'a> {
    fn of(resources: &[&'a Arc<Resource>]) -> Self {
        let mut pids = HashMap::new();
        for resource in resources {
            let key = (&*resource.service_name, instance(resource));
            pids.entry(key)
                .and_modify(|pid| {
                    if *pid != Some(resource.tgid) {
                        *pid = None;
                    }
                })
                .or_insert(Some(resource.tgid));
        }
        Self { pids }
    }

    fn labels_of(&self, resource: &Resource) -> String {
        let mut labels = String::new();
        let (service, mut instance) = (&*resource.service_name, instance(resource));
        label(&mut labels, "service.name", service);
        if self.pids.get(&(service, instance.clone())) == Some(&None) {
            instance = format!("{instance}:{}", resource.tgid).into();
        }
        label(&mut labels, "service.instance.id", &instance);
        labels
    }
}

/// What tells a process from others: `service.instance.id`, or its pid where it has none.
fn instance(resource: &Resource) -> Cow<'_, str> {
    match resource.instance() {
        Some(instance) => instance.into(),
        None => resource.tgid.to_string().into(),
    }
}

/// The labels that describe a process. A label that stands twice would make the whole answer unreadable:
/// the values of names that become the same are put together, in the order of those names, as OpenTelemetry
/// says. Names that are taken are exported, as Prometheus calls it.
fn described(resource: &Resource) -> BTreeMap<String, String> {
    let mut attributes: Vec<_> = resource.attributes.iter().collect();
    attributes.sort_by_key(|(name, _)| name);
    let mut labels = BTreeMap::<String, String>::new();
    for (name, value) in attributes {
        let value = match value {
            _ if matches!(&**name, "service.name" | "service.instance.id") => continue,
            Value::Str(text) => text.to_string(),
            Value::Int(n) => n.to_string(),
            Value::Bool(b) => b.to_string(),
            Value::Float(_) | Value::StrList(_) => continue,
        };
        let mut label = String::new();
        push_name(&mut label, name);
        if matches!(&*label, "service_name" | "service_instance_id") {
            label.insert_str(0, "exported_");
        }
        match labels.get_mut(&label) {
            Some(values) => {
                values.push(';');
                values.push_str(&value);
            }
            None => {
                labels.insert(label, value);
            }
        }
    }
    labels
}

/// Adds a label. It must not be there yet.
pub(super) fn label(labels: &mut String, name: &str, value: &str) {
    if !labels.is_empty() {
        labels.push(',');
    }
    push_name(labels, name);
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

/// Adds a label's name: what does not fit there becomes an underscore, and several of them become one. (Names
/// that begin with two are Prometheus's own.)
fn push_name(out: &mut String, name: &str) {
    let begin = out.len();
    for (at, c) in name.chars().enumerate() {
        match c.is_ascii_alphabetic() || at > 0 && c.is_ascii_digit() {
            true => out.push(c),
            false if out[begin..].ends_with('_') => {}
            false => out.push('_'),
        }
    }
    if out.len() == begin {
        out.push('_');
    }
}
