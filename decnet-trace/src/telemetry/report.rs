//! The summary line: what was counted and what the agent cost, each minute and at the end.

use std::{
    fmt::Write as _,
    io,
    time::{Duration, Instant},
};

use rustc_hash::FxHashMap;

use super::usage::{SelfUsage, Usage};

/// How often the line is written while the agent runs.
pub const EVERY: Duration = Duration::from_secs(60);

/// Writes the summary line.
#[derive(Debug)]
pub struct Report {
    usage: SelfUsage,
    next: Instant,
    last: FxHashMap<&'static str, u64>,
}

impl Report {
    /// Begins now; the first line is due in [`EVERY`].
    ///
    /// # Errors
    ///
    /// When `/proc/self` cannot be read.
    pub fn start() -> io::Result<Self> {
        Ok(Self {
            usage: SelfUsage::start()?,
            next: Instant::now() + EVERY,
            last: FxHashMap::default(),
        })
    }

    /// Whether a line is due.
    pub fn is_due(&self) -> bool {
        Instant::now() >= self.next
    }

    /// Logs one line: the counters that changed since the last one, by how much, and the agent's own
    /// use. Counters are the user side's and the kernel side's, chained; their names are unique.
    pub fn log(&mut self, counters: impl Iterator<Item = (&'static str, u64)>) {
        self.next = Instant::now() + EVERY;
        let usage = self.usage.read().ok();
        tracing::info!("{}", line(&mut self.last, counters, usage));
    }
}

fn line(
    last: &mut FxHashMap<&'static str, u64>,
    counters: impl Iterator<Item = (&'static str, u64)>,
    usage: Option<Usage>,
) -> String {
    let mut line = String::from("counted");
    let mut any = false;
    for (name, value) in counters {
        let before = last.insert(name, value).unwrap_or(0);
        if value > before {
            any = true;
            let _ = write!(line, " {name}=+{} ({value})", value - before);
        }
    }
    if !any {
        line.push_str(" nothing new");
    }
    if let Some(usage) = usage {
        let _ = write!(
            line,
            "; agent cpu={:.2}% of a core, rss={:.1} MiB",
            usage.cpu_percent,
            usage.rss as f64 / f64::from(1 << 20),
        );
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The line names what changed since the line before, with the total, and leaves out the rest.
    #[test]
    fn says_what_changed() {
        let mut last = FxHashMap::default();
        let first = line(&mut last, [("a", 2), ("b", 0)].into_iter(), None);
        assert_eq!(first, "counted a=+2 (2)");
        let usage = Usage {
            cpu_percent: 0.5,
            cpu: Duration::ZERO,
            rss: 3 << 20,
            rss_peak: 3 << 20,
        };
        let second = line(&mut last, [("a", 5), ("b", 1)].into_iter(), Some(usage));
        assert_eq!(
            second,
            "counted a=+3 (5) b=+1 (1); agent cpu=0.50% of a core, rss=3.0 MiB"
        );
        let third = line(&mut last, [("a", 5), ("b", 1)].into_iter(), None);
        assert_eq!(third, "counted nothing new");
    }
}
