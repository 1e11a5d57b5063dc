//! Spans to an OTLP endpoint, from a thread of its own.
//!
//! `opentelemetry-otlp`'s exporter sends the spans of one resource, drops the server's word on partial
//! success into a log of its own, and counts its retries against the timeout of one attempt. One agent
//! traces many processes, counts all that it loses, and has to outlast an endpoint's restart; so the
//! requests are built from `opentelemetry-proto`'s messages, and sent with its client.

use std::{
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use ::http::uri::Authority;
use tokio::runtime;

mod config;
mod grpc;
mod http;
mod logs;
mod metrics;
mod pem;
mod signal;
mod state;
mod stop;

pub use config::{Compression, Headers, Instead, OtlpConfig, Protocol};
pub(super) use stop::Stop;

use super::{
    protobuf,
    queue::{Queue, spans_in},
};
use crate::{
    error::{Error, Result},
    metrics::SharedMetrics,
    telemetry::{Count, Counters, clock, events::Events},
};
use signal::{Signal, Traces};
use state::{Kind, Shared};
use stop::Until;

/// The longest wait that a server's own wish is honoured for.
const ASKED_MAX: Duration = Duration::from_secs(120);

/// Why an attempt failed, and what to do.
#[derive(Debug)]
struct Failure {
    /// Whether to try again.
    retry: bool,
    /// How long the server asks to wait before.
    delay: Option<Duration>,
    /// Why.
    message: String,
}

/// What the sink's thread sends.
pub(super) struct Sources {
    /// The queue of spans.
    pub(super) queue: Arc<Queue>,
    /// The metrics, where there are any.
    pub(super) metrics: Option<SharedMetrics>,
    /// Notable events, where they are wanted.
    pub(super) events: Option<Arc<Events>>,
    /// Until when metrics and logs may go on, once the agent stops.
    pub(super) stop: Stop,
}

/// Starts the sink's thread. The configuration is checked here; that the endpoint answers is not, since
/// it may come up later.
pub(super) fn start(
    config: OtlpConfig,
    sources: Sources,
    counters: Arc<Counters>,
) -> Result<JoinHandle<()>> {
    let failed = |what: &str, error: std::io::Error| {
        Error::failed(format_args!(
            "cannot start the OTLP exporter's {what}: {error}"
        ))
    };
    let runtime = runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .max_blocking_threads(1)
        .thread_keep_alive(Duration::from_secs(1))
        .thread_name("otlp-dns")
        .build()
        .map_err(|error| failed("runtime", error))?;
    let Sources {
        queue,
        metrics,
        events,
        stop,
    } = sources;
    let started = clock::read(libc::CLOCK_REALTIME);
    let mut endpoints = Endpoints::default();
    let mut sender = |kind| -> Result<Option<Sender>> {
        let Some(of) = config.of(kind) else {
            return Ok(None);
        };
        let _inside = runtime.enter();
        let (transport, state) = endpoints.get(of)?;
        Ok(Some(Sender {
            kind,
            state,
            transport,
            config: of.clone(),
            counters: Arc::clone(&counters),
            rng: fastrand::Rng::new(),
            started,
        }))
    };
    let spans = sender(Kind::Spans)?.map(|sender| send_spans(sender, queue));
    let metrics = sender(Kind::Metrics)?
        .zip(metrics)
        .zip(config.metrics_every)
        .map(|((sender, metrics), every)| metrics::send(sender, metrics, every, stop.clone()));
    let logs = sender(Kind::Logs)?
        .zip(events)
        .map(|(sender, events)| logs::send(sender, events, stop));
    thread::Builder::new()
        .name("otlp".into())
        .spawn(move || {
            runtime.block_on(async {
                let spans = async {
                    if let Some(spans) = spans {
                        spans.await
                    }
                };
                let metrics = async {
                    if let Some(metrics) = metrics {
                        metrics.await
                    }
                };
                let logs = async {
                    if let Some(logs) = logs {
                        logs.await
                    }
                };
                tokio::join!(spans, metrics, logs)
            });
            // A name that is still being looked up holds nothing up.
            runtime.shutdown_background();
        })
        .map_err(|error| failed("thread", error))
}

#[derive(Clone)]
enum Transport {
    Grpc(Box<grpc::Grpc>),
    Http(Box<http::Http>),
}

/// The endpoints that things are sent to: what goes to the same one shares a connection, and what is
/// known of a host that fails.
#[derive(Default)]
struct Endpoints {
    known: Vec<(OtlpConfig, Transport)>,
    states: Vec<(Option<Authority>, Shared)>,
}

impl Endpoints {
    /// Must be called in a runtime.
    fn get(&mut self, of: &OtlpConfig) -> Result<(Transport, Shared)> {
        let host = of.uri()?.authority().cloned();
        let state = match self.states.iter().find(|(known, _)| *known == host) {
            Some((_, state)) => state.clone(),
            None => {
                let state = Shared::new(of.shown());
                self.states.push((host, state.clone()));
                state
            }
        };
        let known = self
            .known
            .iter()
            .find(|(known, _)| known.shares_connection(of));
        if let Some((_, transport)) = known {
            return Ok((transport.clone(), state));
        }
        let transport = match of.protocol {
            Protocol::Grpc => Transport::Grpc(Box::new(grpc::Grpc::new(of)?)),
            Protocol::HttpProtobuf => Transport::Http(Box::new(http::Http::new(of)?)),
        };
        self.known.push((of.clone(), transport.clone()));
        Ok((transport, state))
    }
}

/// What became of a request.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    /// It was accepted, but for so many items.
    Accepted { rejected: u64 },
    /// It was refused for good.
    Refused,
    /// It failed for too long.
    GaveUp,
    /// The agent stopped before.
    Stopped,
}

/// Sends the requests of one signal, one after the other.
struct Sender {
    kind: Kind,
    config: OtlpConfig,
    counters: Arc<Counters>,
    transport: Transport,
    state: Shared,
    rng: fastrand::Rng,
    /// When the agent began, in nanoseconds since the Unix epoch.
    started: u64,
}

/// Sends spans until the queue ends.
async fn send_spans(mut sender: Sender, queue: Arc<Queue>) {
    while let Some(batches) = queue.next().await {
        let spans = spans_in(&batches);
        // Built for each attempt: the spans themselves are what is kept.
        let request = || protobuf::request(&batches);
        let retry_for = sender.config.retry_for;
        let fate = sender
            .deliver::<Traces>(request, spans, retry_for, &*queue)
            .await;
        let counters = &sender.counters;
        match fate {
            Fate::Accepted { rejected } => {
                counters.add(Count::OtlpRejected, rejected);
                counters.add(Count::OtlpSent, spans - rejected);
            }
            Fate::Refused => counters.add(Count::OtlpRefused, spans),
            Fate::GaveUp => counters.add(Count::OtlpGaveUp, spans),
            Fate::Stopped => counters.add(Count::OtlpStopped, spans),
        }
    }
}

impl Sender {
    /// Sends a request of so many items until it is accepted, refused, given up, or the agent's time is
    /// up.
    async fn deliver<S: Signal>(
        &mut self,
        request: impl Fn() -> S::Request,
        items: u64,
        retry_for: Duration,
        until: &impl Until,
    ) -> Fate {
        let begin = Instant::now();
        let mut wait = self.config.retry_first;
        loop {
            let failure = match self.attempt::<S>(&request, until).await {
                Some(Ok(response)) => return self.accepted::<S>(items, response),
                Some(Err(failure)) => failure,
                None => return Fate::Stopped,
            };
            self.counters.add(Count::OtlpFailedAttempts, 1);
            let lost = self.lost();
            if !failure.retry {
                self.state.refused(self.kind, &failure.message, lost);
                return Fate::Refused;
            }
            self.state.failed(self.kind, &failure.message, lost);
            // Who stops does not wait for an endpoint that fails.
            if until.deadline().is_some() {
                return Fate::Stopped;
            }
            let pause = match failure.delay {
                Some(asked) => asked.min(ASKED_MAX).max(wait),
                None => wait,
            };
            let next = Instant::now() + jittered(pause, &mut self.rng);
            if next > begin + retry_for {
                return Fate::GaveUp;
            }
            wait = (wait * 2).min(self.config.retry_max);
            until.sleep(next).await;
        }
    }

    /// One attempt, no longer than its timeout; `None` when the agent's time is up before it ends.
    async fn attempt<S: Signal>(
        &mut self,
        request: impl Fn() -> S::Request,
        until: &impl Until,
    ) -> Option<Result<S::Response, Failure>> {
        let timeout = self.config.timeout;
        let transport = &mut self.transport;
        let send = async {
            let request = request();
            match transport {
                Transport::Grpc(grpc) => grpc.send::<S>(request).await,
                Transport::Http(http) => http.send::<S>(&request).await,
            }
        };
        tokio::select! {
            biased;
            sent = tokio::time::timeout(timeout, send) => Some(sent.unwrap_or_else(|_| {
                Err(Failure {
                    retry: true,
                    delay: None,
                    message: format!("no answer in {timeout:?}"),
                })
            })),
            () = until.expired() => None,
        }
    }

    fn accepted<S: Signal>(&mut self, items: u64, response: S::Response) -> Fate {
        let lost = self.lost();
        self.state.worked(self.kind, lost);
        let rejected = match S::partial(response) {
            Some((rejected, remark)) => {
                let rejected = u64::try_from(rejected).unwrap_or(0).min(items);
                if rejected > 0 || !remark.is_empty() {
                    self.state.partial(self.kind, rejected, &remark);
                }
                rejected
            }
            None => 0,
        };
        Fate::Accepted { rejected }
    }

    /// The spans lost so far to the endpoint's failures.
    fn lost(&self) -> u64 {
        [Count::OtlpQueueFull, Count::OtlpRefused, Count::OtlpGaveUp]
            .iter()
            .map(|&count| self.counters.get(count))
            .sum()
    }
}

/// Up to a quarter more or less, so that agents that lost an endpoint together do not come back
/// together.
fn jittered(pause: Duration, rng: &mut fastrand::Rng) -> Duration {
    pause.mul_f64(0.75 + 0.5 * rng.f64())
}

#[cfg(test)]
pub(super) mod tests;
