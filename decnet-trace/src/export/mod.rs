//! The sinks of spans. Each has a queue and a thread of its own; none of them ever holds up who sends.
//!
//! * [`otlp`]: to a collector.
//! * [`file`]: to a file.
//! * [`prometheus`]: metrics, to whoever asks for them.
//! * [`store`]: to an SQLite file.
//! * [`summary`]: to a table at the end.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

mod convert;
pub mod file;
mod health;
mod histogram;
mod json;
pub mod otlp;
pub mod prometheus;
mod protobuf;
mod queue;
pub mod store;
pub mod summary;
mod table;

pub use otlp::OtlpConfig;
use otlp::Stop;
pub use prometheus::PrometheusConfig;
pub use queue::Limits;
use queue::{BATCH_MAX, Batch, Queue};
pub use store::Profiles;
pub use summary::{Summary, SummaryConfig};

use tokio::sync::watch;

use crate::{
    error::Result,
    metrics::SharedMetrics,
    span::Span,
    store::StoreConfig,
    telemetry::{Count, Counters, events::Events},
};

/// Which sinks there are.
#[derive(Clone, Debug, Default)]
pub struct ExportConfig {
    /// Where spans are sent.
    pub otlp: Option<OtlpConfig>,
    /// The file that spans are written to.
    pub spans_file: Option<PathBuf>,
    /// The store.
    pub store: Option<StoreConfig>,
    /// What is summed up.
    pub summary: Option<SummaryConfig>,
    /// The metrics that are sent along with spans.
    pub metrics: Option<SharedMetrics>,
    /// The notable events that are sent along with spans.
    pub events: Option<Arc<Events>>,
    /// Where metrics may be asked for.
    pub prometheus: Option<PrometheusConfig>,
}

/// The sinks at work.
#[derive(Debug)]
pub struct Exporters {
    sinks: Vec<Sink>,
    /// Tells whoever has no queue of spans until when they may go on.
    stop: watch::Sender<Option<Instant>>,
    stopped: Stop,
    listener: Option<JoinHandle<()>>,
    metrics: Option<SharedMetrics>,
    events: Option<Arc<Events>>,
    profiles: Option<Profiles>,
    summary: Option<Mutex<Summary>>,
    counters: Arc<Counters>,
    reopener: Reopener,
}

/// Lets the files of spans be opened anew, from any thread.
#[derive(Clone, Debug, Default)]
pub struct Reopener(Arc<AtomicBool>);

impl Reopener {
    /// Opens them anew before the next line is written: they may have been moved away.
    pub fn reopen(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether that was asked for since the last call.
    fn was_asked(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

#[derive(Debug)]
struct Sink {
    name: &'static str,
    queue: Arc<Queue>,
    /// Whether spans are for it.
    takes_spans: bool,
    thread: JoinHandle<()>,
    /// What counts as lost when the thread does not finish in time.
    stopped: Count,
}

/// How much waits in front of a sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SinkStats {
    /// The sink's name.
    pub name: &'static str,
    /// The spans that wait.
    pub queued: usize,
}

impl Exporters {
    /// Starts the sinks. What can be told wrong at the start is: a URL that is none, a certificate or a
    /// file that cannot be opened.
    ///
    /// # Errors
    ///
    /// When one of them cannot be started; then none is left running.
    pub fn start(config: ExportConfig, counters: Arc<Counters>) -> Result<Self> {
        let (stop, stopped) = Stop::new();
        if let Some(events) = &config.events
            && !config.otlp.as_ref().is_some_and(OtlpConfig::sends_logs)
        {
            // Nobody takes them.
            events.close();
        }
        let mut exporters = Self {
            sinks: Vec::new(),
            stop,
            stopped,
            listener: None,
            metrics: config.metrics,
            events: config.events,
            profiles: None,
            summary: config
                .summary
                .map(|config| Mutex::new(Summary::new(config))),
            counters: Arc::clone(&counters),
            reopener: Reopener::default(),
        };
        let started = exporters
            .start_sinks(config.otlp, config.spans_file, config.store)
            .and_then(|()| exporters.listen(config.prometheus));
        match started {
            Ok(()) => Ok(exporters),
            Err(error) => {
                exporters.shutdown(Duration::from_secs(1));
                Err(error)
            }
        }
    }

    fn start_sinks(
        &mut self,
        otlp: Option<OtlpConfig>,
        file: Option<PathBuf>,
        store: Option<StoreConfig>,
    ) -> Result<()> {
        let counters = &self.counters;
        let queue_of = |limits, full| Arc::new(Queue::new(limits, Arc::clone(counters), full));
        if let Some(path) = file {
            let queue = queue_of(file::LIMITS, Count::FileQueueFull);
            let thread = file::start(
                &path,
                Arc::clone(&queue),
                Arc::clone(counters),
                self.reopener.clone(),
            )?;
            self.sinks.push(Sink {
                name: "file",
                queue,
                takes_spans: true,
                thread,
                stopped: Count::FileStopped,
            });
        }
        if let Some(config) = otlp {
            let queue = queue_of(config.limits, Count::OtlpQueueFull);
            let takes_spans = config.sends_spans();
            let sources = otlp::Sources {
                queue: Arc::clone(&queue),
                metrics: self.metrics.clone(),
                events: self.events.clone(),
                stop: self.stopped.clone(),
            };
            let thread = otlp::start(config, sources, Arc::clone(counters))?;
            self.sinks.push(Sink {
                name: "otlp",
                queue,
                takes_spans,
                thread,
                stopped: Count::OtlpStopped,
            });
        }
        if let Some(config) = store {
            let queue = queue_of(store::LIMITS, Count::StoreQueueFull);
            if let Some((thread, profiles)) =
                store::start(config, Arc::clone(&queue), Arc::clone(counters))?
            {
                self.profiles = Some(profiles);
                self.sinks.push(Sink {
                    name: "store",
                    queue,
                    takes_spans: true,
                    thread,
                    stopped: Count::StoreStopped,
                });
            }
        }
        Ok(())
    }

    fn listen(&mut self, config: Option<PrometheusConfig>) -> Result<()> {
        if let Some((config, metrics)) = config.zip(self.metrics.clone()) {
            let (address, thread) = prometheus::start(config, metrics, self.stopped.clone())?;
            tracing::info!("metrics are at http://{address}/metrics");
            self.listener = Some(thread);
        }
        Ok(())
    }

    /// Hands spans to all sinks. Never waits: a sink that does not keep up loses its oldest.
    pub fn send(&self, mut spans: Vec<Span>) {
        if let Some(mut summary) = self.summary() {
            for span in &spans {
                summary.add(span);
            }
        }
        if self.sinks.is_empty() {
            return;
        }
        while !spans.is_empty() {
            let rest = spans.split_off(spans.len().min(BATCH_MAX));
            let batch = Arc::new(Batch::new(spans));
            for sink in self.sinks.iter().filter(|sink| sink.takes_spans) {
                sink.queue.push(Arc::clone(&batch));
            }
            spans = rest;
        }
    }

    /// The summary until now, where one was asked for.
    pub fn summary(&self) -> Option<MutexGuard<'_, Summary>> {
        let summary = self.summary.as_ref()?;
        Some(summary.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What lets the files of spans be opened anew.
    pub fn reopener(&self) -> Reopener {
        self.reopener.clone()
    }

    /// Where profiles for the store go in, where there is one.
    pub fn profiles(&self) -> Option<&Profiles> {
        self.profiles.as_ref()
    }

    /// Notable events for which there was no room.
    pub fn events_dropped(&self) -> u64 {
        self.events.as_ref().map_or(0, |events| events.dropped())
    }

    /// How much waits in front of each sink. What was sent and lost stands in [`Counters`].
    pub fn stats(&self) -> impl Iterator<Item = SinkStats> {
        self.sinks.iter().map(|sink| SinkStats {
            name: sink.name,
            queued: sink.queue.len(),
        })
    }

    /// Lets all sinks finish, for no longer than `time`; what is left then is counted as lost. Gives
    /// back the summary.
    pub fn shutdown(self, time: Duration) -> Option<Summary> {
        let deadline = Instant::now() + time;
        self.stop.send_replace(Some(deadline));
        for sink in &self.sinks {
            sink.queue.stop(deadline);
        }
        for sink in self.sinks {
            // A write that hangs in the kernel cannot be called off: its thread is left behind.
            while !sink.thread.is_finished() && Instant::now() < deadline + GRACE {
                std::thread::sleep(Duration::from_millis(2));
            }
            if sink.thread.is_finished() {
                let _ = sink.thread.join();
            } else {
                tracing::warn!("the {} exporter hangs; leaving it behind", sink.name);
            }
            let left = sink.queue.drain();
            if left > 0 {
                self.counters.add(sink.stopped, left);
            }
        }
        if let Some(listener) = self.listener {
            // It ends as soon as it is told.
            let _ = listener.join();
        }
        let summary = self.summary?;
        Some(summary.into_inner().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What a sink has to see that its time is up.
const GRACE: Duration = Duration::from_millis(100);

#[cfg(test)]
pub(crate) mod tests;
