//! Where a long run is, on one line of standard error; and whether it is to end.

use std::{
    io::{IsTerminal as _, Write as _, stderr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

/// A run under way.
#[derive(Debug)]
pub struct Progress {
    planned: Duration,
    done: Duration,
    start: Instant,
    stop: Arc<AtomicBool>,
    terminal: bool,
    said: Instant,
}

impl Progress {
    /// A run that takes about so long. Ctrl-C and SIGTERM end it at its next step.
    ///
    /// # Errors
    /// Signals cannot be watched.
    pub fn start(planned: Duration) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&stop))
                .context("cannot watch signals")?;
        }
        Ok(Self {
            planned,
            done: Duration::ZERO,
            start: Instant::now(),
            stop,
            terminal: stderr().is_terminal(),
            said: Instant::now(),
        })
    }

    /// Begins a step that takes about `cost`.
    ///
    /// # Errors
    /// The run is to end.
    pub fn step(&mut self, what: &str, cost: Duration) -> Result<()> {
        self.check()?;
        let left = left(self.planned, self.done, self.start.elapsed());
        let share = 100.0 * self.done.as_secs_f64() / self.planned.as_secs_f64().max(1.0);
        let line = format!("{:3.0} %, {} left: {what}", share.min(100.0), minutes(left));
        if self.terminal {
            let _ = write!(stderr(), "\r\x1b[K{line}");
            let _ = stderr().flush();
        } else if self.done.is_zero() || self.said.elapsed() > Duration::from_secs(15) {
            eprintln!("xtask: {line}");
            self.said = Instant::now();
        }
        self.done += cost;
        Ok(())
    }

    /// Lets time pass.
    ///
    /// # Errors
    /// The run is to end.
    pub fn sleep(&self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.check()?;
            thread::sleep(Duration::from_millis(50).min(end - Instant::now()));
        }
        Ok(())
    }

    /// Makes room on the terminal for other output.
    pub fn clear(&self) {
        if self.terminal {
            let _ = write!(stderr(), "\r\x1b[K");
        }
    }

    /// What becomes true when the run is to end.
    pub fn stop(&self) -> &Arc<AtomicBool> {
        &self.stop
    }

    /// Whether the run may go on.
    ///
    /// # Errors
    /// It may not.
    pub fn check(&self) -> Result<()> {
        if self.stop.load(Ordering::Relaxed) {
            self.clear();
            bail!("interrupted");
        }
        Ok(())
    }
}

/// What is left of a plan, by the pace so far; the plan's own once there is a pace to speak of.
fn left(planned: Duration, done: Duration, elapsed: Duration) -> Duration {
    let rest = planned.saturating_sub(done);
    if done < Duration::from_secs(10) {
        return rest;
    }
    rest.mul_f64((elapsed.as_secs_f64() / done.as_secs_f64()).clamp(0.2, 10.0))
}

/// A time for people.
pub fn minutes(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..=99 => format!("{seconds} s"),
        seconds => format!("{} min", seconds.div_ceil(60)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A run that goes half as fast as planned takes twice what is left of the plan.
    #[test]
    fn pace() {
        let seconds = Duration::from_secs;
        assert_eq!(left(seconds(100), seconds(0), seconds(5)), seconds(100));
        assert_eq!(left(seconds(100), seconds(40), seconds(80)), seconds(120));
        assert_eq!(left(seconds(100), seconds(140), seconds(80)), seconds(0));
        assert_eq!(minutes(seconds(99)), "99 s");
        assert_eq!(minutes(seconds(601)), "11 min");
    }
}
