//! What the log says about an endpoint: spans, metrics and log records go there together, so it fails
//! once for all of them.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::export::health::{is_due, one_line};

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Spans,
    Metrics,
    Logs,
}

impl Kind {
    pub(super) const ALL: [Self; 3] = [Self::Spans, Self::Metrics, Self::Logs];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Spans => "spans",
            Self::Metrics => "metrics",
            Self::Logs => "log records",
        }
    }
}

/// The state of an endpoint, as its senders share it.
#[derive(Clone, Debug)]
pub(super) struct Shared(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// The endpoint, as log lines show it.
    endpoint: String,
    /// Since when it has failed whoever asked, and whether that was said.
    down: Option<Down>,
    last_down: Option<Instant>,
    /// Whether it refuses what it is sent, by kind, and when that was last said.
    refused: [bool; 3],
    last_refused: [Option<Instant>; 3],
    last_partial: [Option<Instant>; 3],
}

#[derive(Clone, Copy, Debug)]
struct Down {
    since: Instant,
    lost_before: u64,
    was_said: bool,
}

impl Shared {
    pub(super) fn new(endpoint: String) -> Self {
        Self(Arc::new(Mutex::new(State {
            endpoint,
            down: None,
            last_down: None,
            refused: [false; 3],
            last_refused: [None; 3],
            last_partial: [None; 3],
        })))
    }

    /// An attempt failed, and may work another time; `lost` is the number of spans lost until now.
    pub(super) fn failed(&self, kind: Kind, why: &str, lost: u64) {
        let mut state = self.lock();
        let now = Instant::now();
        let why = one_line(why);
        if state.down.is_some() {
            let endpoint = &state.endpoint;
            tracing::debug!("sending {} to {endpoint} fails: {why}", kind.as_str());
            return;
        }
        let was_said = is_due(&mut state.last_down, now);
        if was_said {
            tracing::warn!(
                "sending to {} fails: {why}; trying again, and dropping the oldest when too many wait",
                state.endpoint
            );
        }
        state.down = Some(Down {
            since: now,
            lost_before: lost,
            was_said,
        });
    }

    /// What was sent is refused for good; the endpoint is there.
    pub(super) fn refused(&self, kind: Kind, why: &str, lost: u64) {
        let mut state = self.lock();
        state.answered(lost);
        let at = kind as usize;
        if state.refused[at] {
            return;
        }
        state.refused[at] = true;
        if is_due(&mut state.last_refused[at], Instant::now()) {
            tracing::warn!(
                "{} does not take {}: {}; they are dropped",
                state.endpoint,
                kind.as_str(),
                one_line(why)
            );
        }
    }

    /// An attempt worked.
    pub(super) fn worked(&self, kind: Kind, lost: u64) {
        let mut state = self.lock();
        state.answered(lost);
        state.refused[kind as usize] = false;
    }

    /// A request was accepted in part, or with a remark.
    pub(super) fn partial(&self, kind: Kind, rejected: u64, message: &str) {
        let mut state = self.lock();
        if is_due(&mut state.last_partial[kind as usize], Instant::now()) {
            tracing::warn!(
                "sending {} to {}: a request was accepted but for {rejected} items: {}",
                kind.as_str(),
                state.endpoint,
                one_line(message)
            );
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The endpoint is there.
    fn answered(&mut self, lost: u64) {
        if let Some(down) = self.down.take().filter(|down| down.was_said) {
            let lasted: Duration = down.since.elapsed();
            tracing::warn!(
                "sending to {} works again after {:.1} s; {} spans were lost",
                self.endpoint,
                lasted.as_secs_f64(),
                lost.saturating_sub(down.lost_before)
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::health::tests::lines;

    /// An endpoint that fails spans, metrics and logs has one line, and one when it is back for the first
    /// of them, with what was lost in between; one that flaps is left alone for a while.
    #[test]
    fn says_it_once_for_all() {
        let kinds = [Kind::Spans, Kind::Metrics, Kind::Logs];
        let lines = lines(|| {
            let state = Shared::new("http://x".into());
            for lost in 5..50 {
                for kind in kinds {
                    state.failed(kind, "refused\nby \x1b[31mthem", lost);
                }
            }
            for _ in 0..5 {
                state.worked(Kind::Spans, 60);
                state.worked(Kind::Logs, 60);
            }
            for _ in 0..10 {
                state.failed(Kind::Metrics, "refused", 60);
                state.worked(Kind::Spans, 60);
            }
        });
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(
            lines[0]
                .starts_with("WARN sending to http://x fails: refused by  [31mthem; trying again"),
            "{lines:?}"
        );
        assert!(
            lines[1].starts_with("WARN sending to http://x works again")
                && lines[1].ends_with("; 55 spans were lost"),
            "{lines:?}"
        );
    }

    /// What it refuses is named by its kind, once, also while the rest works; a remark has one line, too.
    #[test]
    fn says_what_is_refused() {
        let lines = lines(|| {
            let state = Shared::new("http://x".into());
            for _ in 0..10 {
                state.worked(Kind::Spans, 0);
                state.refused(Kind::Metrics, "HTTP status 404", 0);
                state.partial(Kind::Spans, 3, "too old");
            }
        });
        assert_eq!(
            lines,
            [
                "WARN http://x does not take metrics: HTTP status 404; they are dropped",
                "WARN sending spans to http://x: a request was accepted but for 3 items: too old"
            ]
        );
    }
}
