//! What the hooks cost in the kernel: the kernel's own run-time statistics, switched on for a window now
//! and then, because they cost something themselves (two clock readings per hit).

use std::{
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use aya::sys::{Stats, enable_stats};

use crate::{
    bpf::load::{Bpf, ProgramCost},
    error::Result,
};

/// How long statistics are on.
const WINDOW: Duration = Duration::from_secs(1);

/// How long from one window's begin to the next one's.
const EVERY: Duration = Duration::from_secs(5);

/// Measures the hooks' cost in windows.
#[derive(Debug)]
pub struct CostMeter {
    window: Option<Window>,
    next: Instant,
    bill: Bill,
}

#[derive(Debug)]
struct Window {
    /// Statistics are on while this is open.
    _stats: OwnedFd,
    until: Instant,
    began: Instant,
    requests: u64,
    nanos: u64,
}

/// What the windows so far have shown.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Bill {
    /// For how long was measured.
    pub measured: Duration,
    /// Requests that ended meanwhile.
    pub requests: u64,
    /// Time that the hooks took meanwhile, on all CPUs, in nanoseconds.
    pub nanos: u64,
}

impl Bill {
    /// Microseconds in the kernel per request, if there were requests to divide by.
    pub fn micros_per_request(&self) -> Option<f64> {
        (self.requests > 0).then(|| self.nanos as f64 / 1e3 / self.requests as f64)
    }

    /// The share of one CPU that the hooks took.
    pub fn cpu_share(&self) -> Option<f64> {
        let measured = self.measured.as_nanos();
        (measured > 0).then(|| self.nanos as f64 / measured as f64)
    }
}

impl CostMeter {
    /// The first window begins at the first tick.
    pub fn new(now: Instant) -> Self {
        Self {
            window: None,
            next: now,
            bill: Bill::default(),
        }
    }

    /// What the windows so far have shown.
    pub const fn bill(&self) -> Bill {
        self.bill
    }

    /// Opens or closes a window when it is due; `requests` is the number of requests that have ended
    /// since the agent began.
    ///
    /// # Errors
    ///
    /// When the kernel won't tell what the programs cost.
    pub fn tick(&mut self, now: Instant, bpf: &Bpf, requests: u64) -> Result<()> {
        match &self.window {
            Some(window) if now >= window.until => self.close(now, bpf, requests),
            None if now >= self.next => {
                self.next = now + EVERY;
                // Without the privilege, or on a kernel before 5.8, there is no bill.
                if let Ok(stats) = enable_stats(Stats::RunTime) {
                    self.window = Some(Window {
                        _stats: stats,
                        until: now + WINDOW,
                        began: now,
                        requests,
                        nanos: total(&bpf.costs()?),
                    });
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Closes the window that is open, if one is, and hands over the bill.
    ///
    /// # Errors
    ///
    /// When the kernel won't tell what the programs cost.
    pub fn finish(mut self, now: Instant, bpf: &Bpf, requests: u64) -> Result<Bill> {
        if self.window.is_some() {
            self.close(now, bpf, requests)?;
        }
        Ok(self.bill)
    }

    fn close(&mut self, now: Instant, bpf: &Bpf, requests: u64) -> Result<()> {
        if let Some(window) = self.window.take() {
            self.bill.measured += now - window.began;
            self.bill.requests += requests.saturating_sub(window.requests);
            self.bill.nanos += total(&bpf.costs()?).saturating_sub(window.nanos);
        }
        Ok(())
    }
}

fn total(costs: &[ProgramCost]) -> u64 {
    costs.iter().map(|cost| cost.nanos).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without a request there is no cost per request to speak of, rather than an infinite one.
    #[test]
    fn no_requests_no_ratio() {
        let mut bill = Bill {
            measured: Duration::from_secs(1),
            requests: 0,
            nanos: 5_000,
        };
        assert_eq!(bill.micros_per_request(), None);
        bill.requests = 2;
        assert_eq!(bill.micros_per_request(), Some(2.5));
        assert_eq!(bill.cpu_share(), Some(0.000_005));
    }
}
