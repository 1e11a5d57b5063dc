//! Metrics and logs, against a real gRPC server that takes all three signals on one connection.

use opentelemetry_proto::tonic::{
    collector::{
        logs::v1::{
            ExportLogsServiceRequest, ExportLogsServiceResponse,
            logs_service_server::{LogsService, LogsServiceServer},
        },
        metrics::v1::{
            ExportMetricsServiceRequest, ExportMetricsServiceResponse,
            metrics_service_server::{MetricsService, MetricsServiceServer},
        },
    },
    metrics::v1::{
        AggregationTemporality, Metric, metric::Data, number_data_point::Value as Number,
    },
};

use super::*;
use crate::{
    correlate::exchange::Exchange,
    export::Exporters,
    metrics::{Agent, MetricsConfig, SharedMetrics, agent},
    policy::{
        Policy, PolicyConfig,
        tests::{resource, served},
    },
};

/// Takes metrics and logs; the first so many requests for metrics are refused.
#[derive(Clone, Default)]
struct Taker {
    metrics: Arc<Mutex<Vec<ExportMetricsServiceRequest>>>,
    logs: Arc<Mutex<Vec<ExportLogsServiceRequest>>>,
    refuse: Arc<Mutex<VecDeque<Code>>>,
}

#[tonic::async_trait]
impl MetricsService for Taker {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        if let Some(code) = self.refuse.lock().unwrap().pop_front() {
            return Err(Status::new(code, "refused"));
        }
        self.metrics.lock().unwrap().push(request.into_inner());
        Ok(Response::new(Default::default()))
    }
}

#[tonic::async_trait]
impl LogsService for Taker {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        self.logs.lock().unwrap().push(request.into_inner());
        Ok(Response::new(Default::default()))
    }
}

impl Taker {
    fn serve(&self) -> SocketAddr {
        let (tell, told) = std::sync::mpsc::channel();
        let taker = self.clone();
        thread::spawn(move || {
            let runtime = runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
                tell.send(incoming.local_addr().unwrap()).unwrap();
                let server = Server::builder()
                    .add_service(TraceServiceServer::new(Script::default()))
                    .add_service(MetricsServiceServer::new(taker.clone()))
                    .add_service(LogsServiceServer::new(taker));
                server.serve_with_incoming(incoming).await.unwrap();
            });
        });
        told.recv().unwrap()
    }

    /// The points of a metric in each request that has it, by the service that they are of.
    fn of(&self, name: &str) -> Vec<(String, Metric)> {
        let requests = self.metrics.lock().unwrap();
        let mut all = Vec::new();
        for of_resource in requests.iter().flat_map(|r| &r.resource_metrics) {
            let resource = of_resource.resource.clone().unwrap();
            let service = resource.attributes.iter().find(|a| a.key == "service.name");
            let service = format!("{:?}", service.unwrap().value);
            for metric in of_resource.scope_metrics.iter().flat_map(|s| &s.metrics) {
                if metric.name == name {
                    all.push((service.clone(), metric.clone()));
                }
            }
        }
        all
    }
}

/// A process that served so many requests, of 0, 1, 2… ms.
pub(in crate::export) fn measured(requests: u64) -> SharedMetrics {
    let metrics = SharedMetrics::new(MetricsConfig::default(), 1_000);
    let mut policy = Policy::new(PolicyConfig::default(), Arc::default()).unwrap();
    let resource = resource();
    for n in 0..requests {
        let exchange = Exchange {
            end: 2_000 + n * 1_000_000,
            ..served()
        };
        let seen = policy.observe(&exchange, &resource);
        let span = Some(([7; 16], [8; 8]));
        metrics.lock().exchange(&resource, &seen, 2_000 + n, span);
    }
    metrics.lock().set_active([(7, "GET")].into_iter());
    metrics.lock().set_agent(Agent {
        resource: agent::resource(1_000),
        counters: vec![("events", 5), ("lost_ring_full", 3)],
        usage: None,
        bill: Default::default(),
        processes: 1,
        queues: vec![("otlp", 0)],
    });
    metrics
}

fn exporters(config: OtlpConfig, metrics: &SharedMetrics) -> (Exporters, Arc<Counters>) {
    let counters = Arc::new(Counters::new());
    let config = crate::export::ExportConfig {
        otlp: Some(config),
        metrics: Some(metrics.clone()),
        ..Default::default()
    };
    (
        Exporters::start(config, Arc::clone(&counters)).unwrap(),
        counters,
    )
}

/// Metrics are sent at their interval and once more at the end: a resource for the process and one for
/// the agent, cumulative, with exemplars that are not told twice.
#[test]
fn sends_metrics() {
    let taker = Taker::default();
    let metrics = measured(100);
    let every = Some(Duration::from_millis(100));
    let (exporters, counters) = exporters(
        OtlpConfig {
            metrics_every: every,
            ..config(taker.serve())
        },
        &metrics,
    );
    while counters.get(Count::OtlpPointsSent) == 0 {
        thread::sleep(Duration::from_millis(5));
    }
    exporters.shutdown(SOON);
    let durations = taker.of("http.server.request.duration");
    assert!(
        durations.len() >= 2,
        "once at the interval, once at the end"
    );
    let mut exemplars = 0;
    for (service, metric) in &durations {
        assert!(service.contains("shop"), "{service}");
        assert_eq!(metric.unit, "s");
        let Some(Data::ExponentialHistogram(histogram)) = &metric.data else {
            panic!("{metric:?}");
        };
        assert_eq!(
            histogram.aggregation_temporality,
            AggregationTemporality::Cumulative as i32
        );
        let point = &histogram.data_points[0];
        assert_eq!(point.count, 100);
        let buckets: u64 = point.positive.as_ref().unwrap().bucket_counts.iter().sum();
        assert_eq!(buckets + point.zero_count, 100);
        assert!(
            point.start_time_unix_nano > 0 && point.start_time_unix_nano < point.time_unix_nano
        );
        exemplars += point.exemplars.len();
        assert!(point.exemplars.iter().all(|e| e.trace_id == [7; 16]));
    }
    assert_eq!(exemplars, 4);
    let (service, active) = &taker.of("http.server.active_requests")[0];
    assert!(service.contains("shop"), "{service}");
    assert!(
        matches!(&active.data, Some(Data::Sum(sum)) if !sum.is_monotonic
        && sum.data_points[0].value == Some(Number::AsInt(1)))
    );
    let (service, drops) = &taker.of("decnet.agent.drops")[0];
    assert!(service.contains("decnet-trace"), "{service}");
    assert!(
        matches!(&drops.data, Some(Data::Sum(sum)) if sum.is_monotonic
        && sum.data_points[0].value == Some(Number::AsInt(3)))
    );
}

/// An endpoint that refuses metrics, or has no such service, costs nothing but these; what comes next
/// tells it all.
#[test]
fn outlasts_refused_metrics() {
    let taker = Taker::default();
    taker
        .refuse
        .lock()
        .unwrap()
        .extend([Code::Unavailable, Code::Unimplemented]);
    let metrics = measured(10);
    let every = Some(Duration::from_millis(50));
    let (exporters, counters) = exporters(
        OtlpConfig {
            metrics_every: every,
            ..config(taker.serve())
        },
        &metrics,
    );
    exporters.send((0..5).map(span).collect());
    while counters.get(Count::OtlpPointsSent) == 0 {
        thread::sleep(Duration::from_millis(5));
    }
    exporters.shutdown(SOON);
    assert_eq!(counters.get(Count::OtlpSent), 5);
    assert_eq!(counters.get(Count::OtlpFailedAttempts), 2);
    assert!(counters.get(Count::OtlpPointsFailed) > 0);
}

/// As many series as there may be go in requests that a server takes, and none is left out.
#[test]
fn splits_large_exports() {
    let taker = Taker::default();
    let metrics = SharedMetrics::new(MetricsConfig::default(), 1_000);
    let mut policy = Policy::new(PolicyConfig::default(), Arc::default()).unwrap();
    let first = resource();
    for tgid in 0..6 {
        let resource = Arc::new(crate::span::Resource {
            tgid,
            ..(*first).clone()
        });
        for n in 0..1000u16 {
            let exchange = Exchange {
                target: format!("/{}/{}", "a".repeat(180), char::from(b'a' + (n % 26) as u8))
                    .into(),
                status: Some(n),
                ..served()
            };
            for spread in 0..40 {
                let exchange = Exchange {
                    end: 2_000 + spread * spread * 1_000_000,
                    ..exchange.clone()
                };
                let seen = policy.observe(&exchange, &resource);
                metrics.lock().exchange(&resource, &seen, 2_000, None);
            }
        }
    }
    let (exporters, counters) = exporters(config(taker.serve()), &metrics);
    exporters.shutdown(SOON);
    assert_eq!(counters.get(Count::OtlpFailedAttempts), 0);
    let points: usize = taker
        .of("http.server.request.duration")
        .iter()
        .map(|(_, metric)| match &metric.data {
            Some(Data::ExponentialHistogram(h)) => h.data_points.len(),
            _ => 0,
        })
        .sum();
    assert_eq!(points, 6000);
    assert!(taker.metrics.lock().unwrap().len() >= 3);
}

/// Notable events arrive as log records of the agent, those of just before the end too.
#[test]
fn sends_logs() {
    use tracing_subscriber::layer::SubscriberExt as _;
    let events = Arc::<crate::telemetry::events::Events>::default();
    let taker = Taker::default();
    let counters = Arc::new(Counters::new());
    let config = crate::export::ExportConfig {
        otlp: Some(OtlpConfig {
            logs: true,
            ..config(taker.serve())
        }),
        events: Some(Arc::clone(&events)),
        ..Default::default()
    };
    let exporters = Exporters::start(config, Arc::clone(&counters)).unwrap();
    let subscriber = tracing_subscriber::registry().with(events.layer());
    tracing::subscriber::with_default(subscriber, || {
        tracing::warn!(target: "decnet_trace::signals", "the budget was hit");
    });
    exporters.shutdown(SOON);
    assert_eq!(counters.get(Count::OtlpLogsLost), 0);
    let requests = taker.logs.lock().unwrap();
    let all = format!("{requests:?}");
    assert!(all.contains("the budget was hit"), "{all}");
    let records = requests.iter().flat_map(|r| &r.resource_logs);
    let records = records
        .flat_map(|r| &r.scope_logs)
        .flat_map(|s| &s.log_records);
    let warning = records
        .clone()
        .find(|r| format!("{:?}", r.body).contains("the budget"));
    assert_eq!(warning.unwrap().severity_number, 13);
    assert!(all.contains("decnet-trace"));
}
