//! What the log says about a sink: one line when it begins to fail, one when it works again.

use std::time::{Duration, Instant};

/// A sink that comes and goes is not worth more than a line in this time.
const QUIET: Duration = Duration::from_secs(60);

/// The state of a sink.
#[derive(Debug)]
pub(super) struct Health {
    /// What it does, and where: "sending spans to …".
    work: String,
    failing: Option<Failing>,
    last_failure: Option<Instant>,
}

#[derive(Debug)]
struct Failing {
    since: Instant,
    lost_before: u64,
    was_said: bool,
}

impl Health {
    pub(super) fn new(work: String) -> Self {
        Self {
            work,
            failing: None,
            last_failure: None,
        }
    }

    /// An attempt failed; `lost` is the number of spans lost until now.
    pub(super) fn failed(&mut self, why: &str, lost: u64) {
        let now = Instant::now();
        if self.failing.is_some() {
            tracing::debug!("{} fails: {}", self.work, one_line(why));
            return;
        }
        let was_said = is_due(&mut self.last_failure, now);
        if was_said {
            tracing::warn!(
                "{} fails: {}; trying again, and dropping the oldest when too many wait",
                self.work,
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
                "{} works again after {:.1} s; {} spans were lost",
                self.work,
                failing.since.elapsed().as_secs_f64(),
                lost.saturating_sub(failing.lost_before)
            );
        }
    }
}

/// Whether something may be said again that was last said then; if so, it is now.
pub(super) fn is_due(last: &mut Option<Instant>, now: Instant) -> bool {
    let due = last.is_none_or(|last| now.duration_since(last) >= QUIET);
    if due {
        *last = Some(now);
    }
    due
}

/// What a server says may be long, and hold anything.
pub(super) fn one_line(text: &str) -> String {
    let text: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(300)
        .collect();
    text.trim().to_owned()
}

#[cfg(test)]
pub(super) mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use super::*;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The lines that something logs, warnings and above.
    pub(in crate::export) fn lines(work: impl FnOnce()) -> Vec<String> {
        let log = Log::default();
        let into = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || into.clone())
            .with_max_level(tracing::Level::WARN)
            .without_time()
            .with_target(false)
            .with_ansi(false)
            .finish();
        tracing::subscriber::with_default(subscriber, work);
        let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        text.lines().map(|line| line.trim().to_owned()).collect()
    }

    /// However often it fails, there is one line, and one when it works again, with what was lost in
    /// between; a sink that flaps is left alone for a while.
    #[test]
    fn says_it_once() {
        let lines = lines(|| {
            let mut health = Health::new("sending spans to x".into());
            health.worked(0);
            for lost in 5..50 {
                health.failed("refused\nby \x1b[31mthem", lost);
            }
            health.worked(60);
            health.worked(60);
            for _ in 0..10 {
                health.failed("refused", 60);
                health.worked(60);
            }
        });
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(
            lines[0]
                .starts_with("WARN sending spans to x fails: refused by  [31mthem; trying again"),
            "{lines:?}"
        );
        assert!(lines[1].ends_with("; 55 spans were lost"), "{lines:?}");
    }
}
