//! Notable events: what the log says of the agent's work that whoever watches many agents wants to
//! know. They are kept, bounded, until a sink takes them.

use std::{
    collections::VecDeque,
    fmt::{self, Write as _},
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
};

use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{Layer, layer::Context};

use super::clock;

/// The most events that wait.
const WAITING_MAX: usize = 512;

/// The longest text of an event, in bytes.
const TEXT_MAX: usize = 1024;

/// Something notable happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notable {
    /// When, in nanoseconds since the Unix epoch.
    pub time: u64,
    /// How serious it is.
    pub level: Level,
    /// What the log says.
    pub text: String,
}

/// Events that wait for a sink. Those of before it has started wait for it.
#[derive(Debug, Default)]
pub struct Events {
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    /// Nobody will take them.
    closed: bool,
    events: VecDeque<Notable>,
    dropped: u64,
}

/// The events of this process's log.
pub fn global() -> &'static Arc<Events> {
    static EVENTS: LazyLock<Arc<Events>> = LazyLock::new(Arc::default);
    &EVENTS
}

impl Events {
    /// The part of the log that takes them down: the agent's own warnings, and what it says of what it
    /// traces.
    pub fn layer(self: &Arc<Self>) -> NotableLayer {
        NotableLayer(Arc::clone(self))
    }

    /// Nobody takes events: none are kept from now on.
    pub fn close(&self) {
        let mut waiting = self.lock();
        waiting.closed = true;
        waiting.events = VecDeque::new();
    }

    /// Takes all that wait.
    pub fn take(&self) -> Vec<Notable> {
        self.lock().events.drain(..).collect()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.lock().events.is_empty()
    }

    /// Events for which there was no room.
    pub fn dropped(&self) -> u64 {
        self.lock().dropped
    }

    fn push(&self, notable: Notable) {
        let mut waiting = self.lock();
        if waiting.closed {
            return;
        }
        if waiting.events.len() >= WAITING_MAX {
            // The first ones tell more than the last of a flood.
            waiting.dropped += 1;
        } else {
            waiting.events.push_back(notable);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See [`Events::layer`].
#[derive(Debug)]
pub struct NotableLayer(Arc<Events>);

/// Whether an event is one to take down.
pub fn is_notable(metadata: &Metadata<'_>) -> bool {
    let target = metadata.target();
    match *metadata.level() {
        Level::ERROR | Level::WARN => target.starts_with("decnet_trace"),
        Level::INFO => ["decnet_trace::pipeline", "decnet_trace::govern"]
            .iter()
            .any(|own| target.starts_with(own)),
        _ => false,
    }
}

impl<S: Subscriber> Layer<S> for NotableLayer {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if !is_notable(event.metadata()) {
            return;
        }
        let mut text = Text(String::new());
        event.record(&mut text);
        self.0.push(Notable {
            time: clock::read(libc::CLOCK_REALTIME),
            level: *event.metadata().level(),
            text: text.0,
        });
    }
}

/// The message, and fields after it.
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let before = self.0.len();
        let _ = match field.name() {
            "message" => write!(self.0, "{value:?}"),
            name => write!(
                self.0,
                "{}{name}={value:?}",
                if before > 0 { " " } else { "" }
            ),
        };
        if self.0.len() > TEXT_MAX {
            let cut = self.0.floor_char_boundary(TEXT_MAX);
            self.0.truncate(cut);
        }
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    /// Warnings of the agent are taken down with their texts, its chatter and its libraries' warnings
    /// are not; a flood is cut off, and counted.
    #[test]
    fn takes_down_what_is_notable() {
        let events = Arc::<Events>::default();
        let subscriber = tracing_subscriber::registry().with(events.layer());
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(target: "decnet_trace::test", "lost {}", 7);
            tracing::info!(target: "decnet_trace::test", "chatter");
            tracing::info!(target: "decnet_trace::pipeline::x", "tracing shop");
            tracing::warn!(target: "h2", "of a library");
            let texts: Vec<_> = events
                .take()
                .into_iter()
                .map(|event| (event.level, event.text))
                .collect();
            assert_eq!(
                texts,
                [
                    (Level::WARN, "lost 7".to_owned()),
                    (Level::INFO, "tracing shop".to_owned())
                ]
            );
            for _ in 0..WAITING_MAX + 3 {
                tracing::warn!(target: "decnet_trace::test", "{}", "é".repeat(TEXT_MAX));
            }
            assert_eq!(events.dropped(), 3);
            let kept = events.take();
            assert_eq!(kept.len(), WAITING_MAX);
            assert!(kept.iter().all(|event| event.text.len() <= TEXT_MAX));
            events.close();
            tracing::warn!(target: "decnet_trace::test", "to nobody");
            assert!(events.is_empty());
        });
    }
}
