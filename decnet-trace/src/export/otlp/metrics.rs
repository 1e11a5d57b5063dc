//! Metrics as OTLP has them, sent at an interval: one resource for each process and one for the agent,
//! cumulative.

use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::{
    collector::metrics::v1::ExportMetricsServiceRequest,
    metrics::v1::{
        AggregationTemporality, Exemplar as ProtoExemplar, ExponentialHistogram,
        ExponentialHistogramDataPoint, Gauge, Metric, NumberDataPoint, ResourceMetrics,
        ScopeMetrics, Sum, exemplar, exponential_histogram_data_point::Buckets, metric::Data,
        number_data_point::Value as Number,
    },
};

use super::{
    Fate, Sender, signal,
    stop::{Stop, Until as _},
};
use crate::{
    export::convert::{SCHEMA_URL, attribute, resource, scope},
    metrics::{
        Instrument, SharedMetrics, Snapshot,
        agent::{AgentMetric, Shape},
        series::{Series, Value as SeriesValue},
    },
    span::Value,
    telemetry::{Count, clock},
};

/// The most points in a request: with 160 buckets and long attributes each, they stay under the 4 MiB
/// that gRPC servers take by default.
const POINTS_MAX: usize = 2000;

/// Sends metrics until the agent stops, and once more then.
pub(super) async fn send(mut sender: Sender, metrics: SharedMetrics, every: Duration, stop: Stop) {
    let mut next = Instant::now() + every;
    metrics.lock().expect_exports(every);
    loop {
        stop.sleep(next).await;
        let last = stop.deadline().is_some();
        let (requests, number) = {
            let now = clock::read(libc::CLOCK_REALTIME);
            let snapshot = metrics.lock().export(now);
            (requests(&snapshot, now), snapshot.number)
        };
        let mut is_told = true;
        for (request, points) in requests {
            // What comes next makes this one worthless.
            let retry_for = every.min(sender.config.retry_for);
            let fate = sender
                .deliver::<signal::Metrics>(|| request.clone(), points, retry_for, &stop)
                .await;
            match fate {
                Fate::Accepted { rejected } => {
                    sender
                        .counters
                        .add(Count::OtlpPointsSent, points - rejected);
                    sender.counters.add(Count::OtlpPointsFailed, rejected);
                }
                // Whoever refuses it for good will not take it another time.
                Fate::Refused => sender.counters.add(Count::OtlpPointsFailed, points),
                Fate::GaveUp | Fate::Stopped => {
                    is_told = false;
                    sender.counters.add(Count::OtlpPointsFailed, points);
                }
            }
        }
        if is_told {
            metrics.lock().delivered(number);
        }
        if last {
            return;
        }
        next = (next + every).max(Instant::now());
    }
}

/// All metrics in as many requests as it takes, with the number of points of each.
fn requests(metrics: &Snapshot, now: u64) -> Vec<(ExportMetricsServiceRequest, u64)> {
    let mut all = Requests::default();
    for process in &metrics.processes {
        let proto = || ResourceMetrics {
            resource: Some(resource(&process.resource)),
            ..empty()
        };
        for instrument in Instrument::ALL {
            let series: Vec<_> = process.family(instrument).iter().collect();
            for chunk in series.chunks(POINTS_MAX) {
                let points = chunk
                    .iter()
                    .map(|series| point(series, process.start, now, metrics.last_export));
                let histogram = ExponentialHistogram {
                    data_points: points.collect(),
                    aggregation_temporality: AggregationTemporality::Cumulative as i32,
                };
                let metric = Metric {
                    name: instrument.name().to_owned(),
                    description: instrument.description().to_owned(),
                    unit: "s".to_owned(),
                    data: Some(Data::ExponentialHistogram(histogram)),
                    ..Metric::default()
                };
                all.push(&process.resource, proto, metric, chunk.len());
            }
        }
        if !process.active().is_empty() {
            let points = process.active().iter().map(|&(method, n)| NumberDataPoint {
                attributes: vec![
                    attribute("http.request.method", &Value::Str(method.into())),
                    attribute("url.scheme", &Value::Str("http".into())),
                ],
                start_time_unix_nano: process.start,
                time_unix_nano: now,
                value: Some(Number::AsInt(n)),
                ..NumberDataPoint::default()
            });
            let metric = Metric {
                name: "http.server.active_requests".to_owned(),
                description: "Number of active HTTP server requests.".to_owned(),
                unit: "{request}".to_owned(),
                data: Some(Data::Sum(Sum {
                    data_points: points.collect(),
                    aggregation_temporality: AggregationTemporality::Cumulative as i32,
                    is_monotonic: false,
                })),
                ..Metric::default()
            };
            all.push(&process.resource, proto, metric, process.active().len());
        }
    }
    if let Some(agent) = &metrics.agent {
        let proto = || ResourceMetrics {
            resource: Some(resource(&agent.resource)),
            ..empty()
        };
        for metric in agent.metrics() {
            let points = metric.points.len();
            let metric = of_agent(metric, metrics.start, now);
            all.push(&agent.resource, proto, metric, points);
        }
    }
    all.done
}

/// Requests under way.
#[derive(Default)]
struct Requests {
    done: Vec<(ExportMetricsServiceRequest, u64)>,
    /// Whose resource the last one is.
    of: Option<*const crate::span::Resource>,
}

impl Requests {
    fn push(
        &mut self,
        resource: &std::sync::Arc<crate::span::Resource>,
        proto: impl Fn() -> ResourceMetrics,
        metric: Metric,
        points: usize,
    ) {
        let points = points as u64;
        let is_full = |(_, n): &(_, u64)| n + points > POINTS_MAX as u64;
        if self.done.last().is_none_or(is_full) {
            self.done.push(Default::default());
            self.of = None;
        }
        let Some((request, n)) = self.done.last_mut() else {
            return;
        };
        let of = std::sync::Arc::as_ptr(resource);
        if self.of != Some(of) {
            request.resource_metrics.push(proto());
            self.of = Some(of);
        }
        if let Some(last) = request.resource_metrics.last_mut() {
            last.scope_metrics[0].metrics.push(metric);
            *n += points;
        }
    }
}

fn empty() -> ResourceMetrics {
    ResourceMetrics {
        resource: None,
        scope_metrics: vec![ScopeMetrics {
            scope: Some(scope()),
            metrics: Vec::new(),
            schema_url: SCHEMA_URL.to_owned(),
        }],
        schema_url: SCHEMA_URL.to_owned(),
    }
}

fn point(series: &Series, start: u64, now: u64, read: u64) -> ExponentialHistogramDataPoint {
    let histogram = &series.histogram;
    let (min, max) = histogram.range().unzip();
    ExponentialHistogramDataPoint {
        attributes: series
            .attributes
            .iter()
            .map(|(name, kept)| {
                let value = match kept.value() {
                    SeriesValue::Text(text) => Value::Str(text.into()),
                    SeriesValue::Int(n) => Value::Int(n),
                    SeriesValue::Bool(b) => Value::Bool(b),
                };
                attribute(name, &value)
            })
            .collect(),
        start_time_unix_nano: start,
        time_unix_nano: now,
        count: histogram.count(),
        sum: Some(histogram.sum()),
        scale: histogram.scale().into(),
        zero_count: histogram.zeros(),
        positive: Some(Buckets {
            offset: histogram.offset(),
            bucket_counts: histogram.buckets().to_vec(),
        }),
        exemplars: series
            .exemplars(read)
            .map(|exemplar| ProtoExemplar {
                time_unix_nano: exemplar.time,
                span_id: exemplar.span_id.to_vec(),
                trace_id: exemplar.trace_id.to_vec(),
                value: Some(exemplar::Value::AsDouble(exemplar.value)),
                ..ProtoExemplar::default()
            })
            .collect(),
        min,
        max,
        ..ExponentialHistogramDataPoint::default()
    }
}

fn of_agent(metric: AgentMetric, start: u64, now: u64) -> Metric {
    let is_gauge = metric.shape == Shape::Gauge;
    let data_points = metric
        .points
        .iter()
        .map(|&(told_by, value)| NumberDataPoint {
            attributes: told_by
                .map(|(name, text)| attribute(name, &Value::Str(text.into())))
                .into_iter()
                .collect(),
            start_time_unix_nano: if is_gauge { 0 } else { start },
            time_unix_nano: now,
            // Seconds and shares are fractions; what is counted, or of so many bytes, is whole.
            value: Some(match metric.unit {
                "s" | "1" => Number::AsDouble(value),
                _ => Number::AsInt(value as i64),
            }),
            ..NumberDataPoint::default()
        })
        .collect();
    Metric {
        name: metric.name.to_owned(),
        description: metric.description.to_owned(),
        unit: metric.unit.to_owned(),
        data: Some(match metric.shape {
            Shape::Gauge => Data::Gauge(Gauge { data_points }),
            shape => Data::Sum(Sum {
                data_points,
                aggregation_temporality: AggregationTemporality::Cumulative as i32,
                is_monotonic: shape == Shape::Counter,
            }),
        }),
        ..Metric::default()
    }
}
