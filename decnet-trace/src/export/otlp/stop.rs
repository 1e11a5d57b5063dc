//! Until when a sender may go on.

use std::time::Instant;

use tokio::sync::watch;

use crate::export::queue::Queue;

/// Tells a sender that the agent stops.
pub(super) trait Until {
    /// Until when it may go on, once the agent stops.
    fn deadline(&self) -> Option<Instant>;

    /// Sleeps until then, or until the agent stops.
    async fn sleep(&self, until: Instant);

    /// Returns at the deadline, once the agent stops; never before.
    async fn expired(&self);
}

impl Until for Queue {
    fn deadline(&self) -> Option<Instant> {
        Self::deadline(self)
    }

    async fn sleep(&self, until: Instant) {
        Self::sleep(self, until).await;
    }

    async fn expired(&self) {
        Self::expired(self).await;
    }
}

/// The deadline of senders that have no queue of spans.
#[derive(Clone, Debug)]
pub(in crate::export) struct Stop(watch::Receiver<Option<Instant>>);

impl Stop {
    /// One that is told through the other end.
    pub(in crate::export) fn new() -> (watch::Sender<Option<Instant>>, Self) {
        let (sender, receiver) = watch::channel(None);
        (sender, Self(receiver))
    }

    /// Returns when the agent stops.
    pub(in crate::export) async fn stopped(&self) {
        let _ = self.0.clone().wait_for(Option::is_some).await;
    }
}

impl Until for Stop {
    fn deadline(&self) -> Option<Instant> {
        *self.0.borrow()
    }

    async fn sleep(&self, until: Instant) {
        let mut told = self.0.clone();
        let _ = tokio::time::timeout_at(until.into(), told.wait_for(Option::is_some)).await;
    }

    async fn expired(&self) {
        let mut told = self.0.clone();
        let deadline = match told.wait_for(Option::is_some).await {
            Ok(deadline) => deadline.unwrap_or_else(Instant::now),
            // Whoever would tell is gone.
            Err(_) => Instant::now(),
        };
        tokio::time::sleep_until(deadline.into()).await;
    }
}
