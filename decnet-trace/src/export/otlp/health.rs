//! What the log says about an endpoint: one line when it begins to fail, one when it works again.

use std::time::{Duration, Instant};

/// An endpoint that comes and goes is not worth more than a line in this time.
const QUIET: Duration = Duration::from_secs(60);

/// The state of an endpoint.
#[derive(Debug)]
pub(super) struct Health {
    endpoint: String,
    failing: Option<Failing>,
    last_failure: Option<Instant>,
    last_partial: Option<Instant>,
}

#[derive(Debug)]
struct Failing {
    since: Instant,
    lost_before: u64,
    was_said: bool,
}

impl Health {
    pub(super) fn new(endpoint: String) -> Self {
        Self {
            endpoint,
            failing: None,
            last_failure: None,
            last_partial: None,
        }
    }

    /// An attempt failed; `lost` is the number of spans lost until now.
    pub(super) fn failed(&mut self, why: &str, lost: u64) {
        let now = Instant::now();
        if self.failing.is_some() {
            tracing::debug!(
                "sending spans to {} fails: {}",
                self.endpoint,
                one_line(why)
            );
            return;
        }
        let was_said = is_due(&mut self.last_failure, now);
        if was_said {
            tracing::warn!(
                "sending spans to {} fails: {}; trying again, and dropping the oldest when too many wait",
                self.endpoint,
                one_line(why)
            );
        }
        self.failing = Some(Failing {
            since: now,
            lost_before: lost,
            was_said,
        });
    }

    /// An attempt worked.
    pub(super) fn worked(&mut self, lost: u64) {
        if let Some(failing) = self.failing.take()
            && failing.was_said
        {
            tracing::warn!(
                "sending spans to {} works again after {:.1} s; {} spans were lost",
                self.endpoint,
                failing.since.elapsed().as_secs_f64(),
                lost.saturating_sub(failing.lost_before)
            );
        }
    }

    /// A request was accepted in part, or with a remark.
    pub(super) fn partial(&mut self, rejected: u64, message: &str) {
        if is_due(&mut self.last_partial, Instant::now()) {
            tracing::warn!(
                "{} accepted a request but for {rejected} spans: {}",
                self.endpoint,
                one_line(message)
            );
        }
    }
}

fn is_due(last: &mut Option<Instant>, now: Instant) -> bool {
    let due = last.is_none_or(|last| now.duration_since(last) >= QUIET);
    if due {
        *last = Some(now);
    }
    due
}

/// What a server says may be long, and hold anything.
fn one_line(text: &str) -> String {
    let text: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(300)
        .collect();
    text.trim().to_owned()
}
