//! What the agent says of itself, as metrics.

use std::{fs, sync::Arc};

use crate::{
    govern::cost::Bill,
    pipeline::is_loss,
    span::{Resource, Value},
    telemetry::usage::Usage,
};

/// The agent's own numbers, as they are now.
#[derive(Clone, Debug)]
pub struct Agent {
    /// The agent as a source of telemetry.
    pub resource: Arc<Resource>,
    /// Everything that is counted, by name.
    pub counters: Vec<(&'static str, u64)>,
    /// CPU time and memory.
    pub usage: Option<Usage>,
    /// What the hooks cost.
    pub bill: Bill,
    /// How many processes are traced.
    pub processes: usize,
    /// Spans that wait in front of each sink.
    pub queues: Vec<(&'static str, usize)>,
}

/// How a metric of the agent adds up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// It only grows.
    Counter,
    /// It grows and shrinks, and may be added up.
    UpDown,
    /// It stands for itself.
    Gauge,
}

/// A metric of the agent.
#[derive(Clone, Debug, PartialEq)]
pub struct AgentMetric {
    /// The name.
    pub name: &'static str,
    /// The unit, as in UCUM.
    pub unit: &'static str,
    /// The description.
    pub description: &'static str,
    /// How it adds up.
    pub shape: Shape,
    /// The name of the attribute that tells the points apart, and the points.
    pub points: Vec<(Option<(&'static str, &'static str)>, f64)>,
}

impl Agent {
    /// All metrics.
    pub fn metrics(&self) -> Vec<AgentMetric> {
        let metric = |name, unit, description, shape, points| AgentMetric {
            name,
            unit,
            description,
            shape,
            points,
        };
        let counted = |loss: bool, attribute: &'static str| -> Vec<_> {
            let of_kind = self
                .counters
                .iter()
                .filter(|(name, _)| is_loss(name) == loss);
            of_kind
                .map(|&(name, value)| (Some((attribute, name)), value as f64))
                .collect()
        };
        let mut all = vec![
            metric(
                "decnet.agent.events",
                "{event}",
                "What the agent counted, by event.",
                Shape::Counter,
                counted(false, "decnet.event"),
            ),
            metric(
                "decnet.agent.drops",
                "{item}",
                "What the agent lost, by reason.",
                Shape::Counter,
                counted(true, "decnet.reason"),
            ),
            metric(
                "decnet.agent.processes",
                "{process}",
                "Processes that are traced.",
                Shape::UpDown,
                vec![(None, self.processes as f64)],
            ),
            metric(
                "decnet.agent.queue.spans",
                "{span}",
                "Spans that wait in front of a sink.",
                Shape::UpDown,
                self.queues
                    .iter()
                    .map(|&(sink, n)| (Some(("decnet.sink", sink)), n as f64))
                    .collect(),
            ),
        ];
        if let Some(usage) = &self.usage {
            all.push(metric(
                "decnet.agent.cpu.time",
                "s",
                "CPU time of the agent's process.",
                Shape::Counter,
                vec![(None, usage.cpu.as_secs_f64())],
            ));
            all.push(metric(
                "decnet.agent.memory.usage",
                "By",
                "Resident memory of the agent's process.",
                Shape::UpDown,
                vec![(None, usage.rss as f64)],
            ));
        }
        if let Some(share) = self.bill.cpu_share() {
            all.push(metric(
                "decnet.agent.kernel.utilization",
                "1",
                "Time in the kernel's hooks, as a share of one CPU, over all windows measured.",
                Shape::Gauge,
                vec![(None, share)],
            ));
        }
        if let Some(micros) = self.bill.micros_per_request() {
            all.push(metric(
                "decnet.agent.kernel.request.duration",
                "s",
                "Time in the kernel's hooks per served request, over all windows measured.",
                Shape::Gauge,
                vec![(None, micros / 1e6)],
            ));
        }
        all.retain(|metric| !metric.points.is_empty());
        all
    }
}

/// The agent as OpenTelemetry describes what telemetry comes from; `start` tells it from another
/// process that had the same pid.
pub fn resource(start: u64) -> Arc<Resource> {
    let pid = std::process::id();
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = match host.trim() {
        "" => "localhost",
        host => host,
    };
    let text = |text: String| Value::Str(text.into());
    let name = env!("CARGO_PKG_NAME");
    Arc::new(Resource {
        tgid: pid,
        service_name: name.to_owned(),
        attributes: vec![
            ("service.name".into(), Value::Str(name.into())),
            (
                "service.version".into(),
                Value::Str(env!("CARGO_PKG_VERSION").into()),
            ),
            (
                "service.instance.id".into(),
                text(format!("{host}:{pid}:{start}")),
            ),
            ("process.pid".into(), Value::Int(pid.into())),
            ("host.name".into(), text(host.to_owned())),
            ("os.type".into(), Value::Str("linux".into())),
        ],
    })
}
