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

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use tokio::runtime;

mod config;
mod grpc;
mod http;
mod pem;

pub use config::{Compression, Headers, OtlpConfig, Protocol};

use super::{
    convert,
    health::Health,
    queue::{Batch, Queue, spans_in},
};
use crate::{
    error::{Error, Result},
    telemetry::{Count, Counters},
};

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

/// Starts the sink's thread. The configuration is checked here; that the endpoint answers is not, since
/// it may come up later.
pub(super) fn start(
    config: OtlpConfig,
    queue: Arc<Queue>,
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
    let transport = {
        let _inside = runtime.enter();
        match config.protocol {
            Protocol::Grpc => Transport::Grpc(Box::new(grpc::Grpc::new(&config)?)),
            Protocol::HttpProtobuf => Transport::Http(Box::new(http::Http::new(&config)?)),
        }
    };
    let mut sender = Sender {
        health: Health::new(format!("sending spans to {}", config.shown())),
        config,
        queue,
        counters,
        transport,
        rng: fastrand::Rng::new(),
    };
    thread::Builder::new()
        .name("otlp".into())
        .spawn(move || {
            runtime.block_on(sender.run());
            // A name that is still being looked up holds nothing up.
            runtime.shutdown_background();
        })
        .map_err(|error| failed("thread", error))
}

enum Transport {
    Grpc(Box<grpc::Grpc>),
    Http(Box<http::Http>),
}

struct Sender {
    config: OtlpConfig,
    queue: Arc<Queue>,
    counters: Arc<Counters>,
    transport: Transport,
    health: Health,
    rng: fastrand::Rng,
}

impl Sender {
    async fn run(&mut self) {
        while let Some(batches) = self.queue.next().await {
            self.deliver(&batches).await;
        }
    }

    /// Sends batches until they are accepted, refused, given up, or the agent's time is up.
    async fn deliver(&mut self, batches: &[Arc<Batch>]) {
        let spans = spans_in(batches);
        let begin = Instant::now();
        let mut wait = self.config.retry_first;
        loop {
            let failure = match self.attempt(batches).await {
                Some(Ok(response)) => return self.accepted(spans, response),
                Some(Err(failure)) => failure,
                None => return self.counters.add(Count::OtlpStopped, spans),
            };
            self.counters.add(Count::OtlpFailedAttempts, 1);
            let lost = self.lost();
            self.health.failed(&failure.message, lost);
            if !failure.retry {
                return self.counters.add(Count::OtlpRefused, spans);
            }
            // Who stops does not wait for an endpoint that fails.
            if self.queue.deadline().is_some() {
                return self.counters.add(Count::OtlpStopped, spans);
            }
            let pause = match failure.delay {
                Some(asked) => asked.min(ASKED_MAX).max(wait),
                None => wait,
            };
            let until = Instant::now() + jittered(pause, &mut self.rng);
            if until > begin + self.config.retry_for {
                return self.counters.add(Count::OtlpGaveUp, spans);
            }
            wait = (wait * 2).min(self.config.retry_max);
            self.queue.sleep(until).await;
        }
    }

    /// One attempt, no longer than its timeout; `None` when the agent's time is up before it ends.
    async fn attempt(
        &mut self,
        batches: &[Arc<Batch>],
    ) -> Option<Result<ExportTraceServiceResponse, Failure>> {
        let timeout = self.config.timeout;
        let transport = &mut self.transport;
        let send = async {
            // Built for each attempt: the spans themselves are what is kept.
            let request = convert::request(batches);
            match transport {
                Transport::Grpc(grpc) => grpc.send(request).await,
                Transport::Http(http) => http.send(&request).await,
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
            () = self.queue.expired() => None,
        }
    }

    fn accepted(&mut self, spans: u64, response: ExportTraceServiceResponse) {
        let lost = self.lost();
        self.health.worked(lost);
        let rejected = match response.partial_success {
            Some(partial) => {
                let rejected = u64::try_from(partial.rejected_spans)
                    .unwrap_or(0)
                    .min(spans);
                if rejected > 0 || !partial.error_message.is_empty() {
                    self.health.partial(rejected, &partial.error_message);
                }
                rejected
            }
            None => 0,
        };
        self.counters.add(Count::OtlpRejected, rejected);
        self.counters.add(Count::OtlpSent, spans - rejected);
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
mod tests;
