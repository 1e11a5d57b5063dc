//! The queue in front of a sink: bounded in spans and in bytes. Who fills it never waits; when it is
//! full, the oldest spans go, and are counted.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use crate::{
    span::{Span, Value},
    telemetry::{Count, Counters},
};

/// The most spans that a batch holds; what the queue drops at once.
pub(super) const BATCH_MAX: usize = 256;

/// The bounds of a sink's queue and of what it takes out at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most spans that wait.
    pub spans: usize,
    /// The most bytes that the waiting spans take, roughly.
    pub bytes: usize,
    /// The most spans that are sent at once; a batch of [`BATCH_MAX`] more in the worst case.
    pub take_spans: usize,
    /// The most bytes that are sent at once, roughly; likewise.
    pub take_bytes: usize,
    /// The longest that a span waits for others to be sent with.
    pub delay: Duration,
}

impl Default for Limits {
    /// Bounds that hold several seconds of 1,000 requests a second, in 8 MiB; a request stays under
    /// the 4 MiB that gRPC servers take by default.
    fn default() -> Self {
        Self {
            spans: 16 * 1024,
            bytes: 8 << 20,
            take_spans: 1024,
            take_bytes: 1 << 20,
            delay: Duration::from_secs(1),
        }
    }
}

/// Spans that travel together, shared by all sinks.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) spans: Vec<Span>,
    bytes: usize,
}

impl Batch {
    pub(super) fn new(spans: Vec<Span>) -> Self {
        let bytes = spans.iter().map(size).sum();
        Self { spans, bytes }
    }
}

/// Roughly what a span takes: its texts, and what each attribute costs beside.
fn size(span: &Span) -> usize {
    let text = |value: &Value| match value {
        Value::Str(text) => text.len(),
        Value::StrList(list) => list.iter().map(|text| text.len() + 24).sum(),
        Value::Int(_) | Value::Float(_) | Value::Bool(_) => 0,
    };
    let attributes: usize = span
        .attributes
        .iter()
        .map(|(_, value)| size_of::<crate::span::Attribute>() + text(value))
        .sum();
    size_of::<Span>() + span.name.len() + span.trace_state.len() + attributes
}

/// How many spans some batches hold.
pub(super) fn spans_in(batches: &[Arc<Batch>]) -> u64 {
    batches.iter().map(|batch| batch.spans.len() as u64).sum()
}

/// The queue of one sink. Its consumer waits on a thread or in a runtime, whichever it has.
#[derive(Debug)]
pub(super) struct Queue {
    limits: Limits,
    state: Mutex<State>,
    condvar: Condvar,
    notify: Notify,
    counters: Arc<Counters>,
    full: Count,
}

#[derive(Debug, Default)]
struct State {
    batches: VecDeque<Arc<Batch>>,
    spans: usize,
    bytes: usize,
    /// When the oldest of the waiting spans is to be sent.
    due: Option<Instant>,
    /// Set once the agent stops: until when the sink may go on.
    deadline: Option<Instant>,
}

/// What a consumer has to do.
enum Next {
    Take(Vec<Arc<Batch>>),
    Wait(Option<Instant>),
}

impl Queue {
    /// An empty queue; what it drops is counted as `full`.
    pub(super) fn new(limits: Limits, counters: Arc<Counters>, full: Count) -> Self {
        Self {
            limits,
            state: Mutex::default(),
            condvar: Condvar::new(),
            notify: Notify::new(),
            counters,
            full,
        }
    }

    /// Puts a batch at the end; never waits for the consumer.
    pub(super) fn push(&self, batch: Arc<Batch>) {
        let mut dropped = 0;
        let wake = {
            let mut state = self.lock();
            let was_empty = state.batches.is_empty();
            let was_enough = self.is_enough(&state);
            state.spans += batch.spans.len();
            state.bytes += batch.bytes;
            state.batches.push_back(batch);
            while state.spans > self.limits.spans || state.bytes > self.limits.bytes {
                match state.pop() {
                    Some(oldest) => dropped += oldest.spans.len() as u64,
                    None => break,
                }
            }
            if was_empty {
                state.due = Some(Instant::now() + self.limits.delay);
            }
            was_empty || !was_enough && self.is_enough(&state)
        };
        if dropped > 0 {
            self.counters.add(self.full, dropped);
        }
        if wake {
            self.wake();
        }
    }

    /// Lets the consumer finish: what waits is due at once, and no later than `deadline`.
    pub(super) fn stop(&self, deadline: Instant) {
        self.lock().deadline = Some(deadline);
        self.wake();
    }

    /// Until when the consumer may go on, once the agent stops.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.lock().deadline
    }

    /// How many spans wait.
    pub(super) fn len(&self) -> usize {
        self.lock().spans
    }

    /// Takes out what is left, and says how many spans that were.
    pub(super) fn drain(&self) -> u64 {
        let mut state = self.lock();
        let left = state.spans as u64;
        *state = State {
            deadline: state.deadline,
            ..State::default()
        };
        left
    }

    /// The next batches, once there are enough or the oldest is due; `None` when the agent stops and
    /// nothing is left. Blocks the thread.
    pub(super) fn next_blocking(&self) -> Option<Vec<Arc<Batch>>> {
        loop {
            let mut state = self.lock();
            match self.next_of(&mut state) {
                Next::Take(batches) => return (!batches.is_empty()).then_some(batches),
                Next::Wait(None) => drop(self.condvar.wait(state)),
                Next::Wait(Some(until)) => {
                    let left = until.saturating_duration_since(Instant::now());
                    drop(self.condvar.wait_timeout(state, left));
                }
            }
        }
    }

    /// Like [`Self::next_blocking`], but gives back nothing once that time is over.
    pub(super) fn next_within(&self, time: Duration) -> Option<Vec<Arc<Batch>>> {
        let until = Instant::now() + time;
        loop {
            let mut state = self.lock();
            let due = match self.next_of(&mut state) {
                Next::Take(batches) => return (!batches.is_empty()).then_some(batches),
                Next::Wait(due) => due.map_or(until, |due| due.min(until)),
            };
            let now = Instant::now();
            if now >= until {
                return Some(Vec::new());
            }
            drop(
                self.condvar
                    .wait_timeout(state, due.saturating_duration_since(now)),
            );
        }
    }

    /// Like [`Self::next_blocking`], for one consumer in a runtime.
    pub(super) async fn next(&self) -> Option<Vec<Arc<Batch>>> {
        loop {
            let next = self.next_of(&mut self.lock());
            match next {
                Next::Take(batches) => return (!batches.is_empty()).then_some(batches),
                Next::Wait(None) => self.notify.notified().await,
                Next::Wait(Some(until)) => {
                    let _ = tokio::time::timeout_at(until.into(), self.notify.notified()).await;
                }
            }
        }
    }

    /// Sleeps until then, or until the agent stops. Blocks the thread.
    pub(super) fn sleep_blocking(&self, until: Instant) {
        let mut state = self.lock();
        while state.deadline.is_none() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = match self.condvar.wait_timeout(state, left) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    /// Sleeps until then, or until the agent stops.
    pub(super) async fn sleep(&self, until: Instant) {
        while self.deadline().is_none() && Instant::now() < until {
            let _ = tokio::time::timeout_at(until.into(), self.notify.notified()).await;
        }
    }

    /// Returns at the deadline, once the agent stops; never before.
    pub(super) async fn expired(&self) {
        loop {
            match self.deadline() {
                Some(deadline) => return tokio::time::sleep_until(deadline.into()).await,
                None => self.notify.notified().await,
            }
        }
    }

    fn next_of(&self, state: &mut State) -> Next {
        let now = Instant::now();
        if let Some(deadline) = state.deadline {
            // Nothing is taken past the deadline: who drains counts what is left.
            return Next::Take(match now < deadline {
                true => self.take(state),
                false => Vec::new(),
            });
        }
        match state.due {
            None => Next::Wait(None),
            Some(due) if now < due && !self.is_enough(state) => Next::Wait(Some(due)),
            Some(_) => Next::Take(self.take(state)),
        }
    }

    fn take(&self, state: &mut State) -> Vec<Arc<Batch>> {
        let (mut spans, mut bytes) = (0, 0);
        let mut batches = Vec::new();
        while spans < self.limits.take_spans
            && bytes < self.limits.take_bytes
            && let Some(batch) = state.pop()
        {
            spans += batch.spans.len();
            bytes += batch.bytes;
            batches.push(batch);
        }
        // What stays behind has waited already.
        state.due = (!state.batches.is_empty()).then(Instant::now);
        batches
    }

    fn is_enough(&self, state: &State) -> bool {
        state.spans >= self.limits.take_spans || state.bytes >= self.limits.take_bytes
    }

    fn wake(&self) {
        self.condvar.notify_all();
        self.notify.notify_one();
    }

    /// A thread that panicked left numbers behind, and they are whole at every step.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn pop(&mut self) -> Option<Arc<Batch>> {
        let batch = self.batches.pop_front()?;
        self.spans -= batch.spans.len();
        self.bytes -= batch.bytes;
        if self.batches.is_empty() {
            self.due = None;
        }
        Some(batch)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;
    use crate::export::tests::span;

    /// Longer than any test takes.
    const PATIENT: Duration = Duration::from_secs(3600);

    fn queue(spans: usize, bytes: usize) -> (Queue, Arc<Counters>) {
        waiting(Duration::from_millis(20), spans, bytes)
    }

    fn waiting(delay: Duration, spans: usize, bytes: usize) -> (Queue, Arc<Counters>) {
        let counters = Arc::new(Counters::new());
        let limits = Limits {
            spans,
            bytes,
            take_spans: 4,
            take_bytes: usize::MAX,
            delay,
        };
        let queue = Queue::new(limits, Arc::clone(&counters), Count::OtlpQueueFull);
        (queue, counters)
    }

    fn batch(starts: &[u64]) -> Arc<Batch> {
        Arc::new(Batch::new(starts.iter().map(|&n| span(n)).collect()))
    }

    fn starts(batches: &[Arc<Batch>]) -> Vec<u64> {
        let spans = batches.iter().flat_map(|batch| &batch.spans);
        spans.map(|span| span.start).collect()
    }

    /// When the queue is full the oldest go, are counted, and the newest are kept in their order.
    #[test]
    fn drops_the_oldest() {
        let (queue, counters) = queue(4, usize::MAX);
        for n in 0..5 {
            queue.push(batch(&[2 * n, 2 * n + 1]));
        }
        assert_eq!(counters.get(Count::OtlpQueueFull), 6);
        assert_eq!(starts(&queue.next_blocking().unwrap()), [6, 7, 8, 9]);
        assert_eq!(queue.len(), 0);
    }

    /// Bytes are a bound too, and a batch that alone is too large does not stay.
    #[test]
    fn is_bounded_in_bytes() {
        let one = batch(&[1]).bytes;
        let (queue, counters) = queue(100, 3 * one);
        queue.push(batch(&[1, 2]));
        queue.push(batch(&[3, 4]));
        assert_eq!(counters.get(Count::OtlpQueueFull), 2);
        assert_eq!(queue.len(), 2);
        queue.push(batch(&[5, 6, 7, 8]));
        assert_eq!(counters.get(Count::OtlpQueueFull), 8);
        assert_eq!(queue.len(), 0);
    }

    /// A few spans wait for more, but no longer than the delay; enough of them do not wait.
    #[test]
    fn waits_for_enough_or_for_the_delay() {
        let (patient, _) = waiting(PATIENT, 100, usize::MAX);
        let begin = Instant::now();
        patient.push(batch(&[1, 2, 3, 4, 5]));
        assert_eq!(patient.next_blocking().unwrap().len(), 1);
        assert!(begin.elapsed() < PATIENT);
        let (queue, _) = queue(100, usize::MAX);
        let begin = Instant::now();
        queue.push(batch(&[6]));
        assert_eq!(starts(&queue.next_blocking().unwrap()), [6]);
        assert!(begin.elapsed() >= Duration::from_millis(20));
    }

    /// A consumer that has other things to do gets nothing after its time, and what is due before.
    #[test]
    fn waits_no_longer_than_asked() {
        let (patient, _) = waiting(PATIENT, 100, usize::MAX);
        let begin = Instant::now();
        for time in [Duration::from_millis(5), Duration::ZERO] {
            assert!(patient.next_within(time).unwrap().is_empty());
            patient.push(batch(&[1]));
        }
        assert!(begin.elapsed() < PATIENT);
        let (queue, _) = queue(100, usize::MAX);
        queue.push(batch(&[1]));
        assert_eq!(starts(&queue.next_within(PATIENT).unwrap()), [1]);
        assert!(begin.elapsed() < PATIENT);
        queue.stop(Instant::now() + Duration::from_secs(1));
        assert!(queue.next_within(Duration::from_secs(60)).is_none());
    }

    /// A consumer that waits is woken by the first span, and by the stop; then it gets what is left.
    #[test]
    fn wakes_its_consumer() {
        let (queue, _) = queue(100, usize::MAX);
        std::thread::scope(|scope| {
            let consumer = scope.spawn(|| {
                let mut all = Vec::new();
                while let Some(batches) = queue.next_blocking() {
                    all.extend(starts(&batches));
                }
                all
            });
            queue.push(batch(&[1]));
            std::thread::sleep(Duration::from_millis(40));
            queue.push(batch(&[2, 3]));
            queue.stop(Instant::now() + Duration::from_secs(5));
            assert_eq!(consumer.join().unwrap(), [1, 2, 3]);
        });
    }

    /// The same in a runtime.
    #[test]
    fn wakes_its_consumer_in_a_runtime() {
        let (queue, _) = queue(100, usize::MAX);
        let queue = Arc::new(queue);
        let producer = {
            let queue = Arc::clone(&queue);
            std::thread::spawn(move || {
                for n in 0..10 {
                    queue.push(batch(&[n]));
                    std::thread::sleep(Duration::from_millis(5));
                }
                queue.stop(Instant::now() + Duration::from_secs(5));
            })
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        let mut all = Vec::new();
        runtime.block_on(async {
            while let Some(batches) = queue.next().await {
                all.extend(starts(&batches));
            }
        });
        producer.join().unwrap();
        assert_eq!(all, (0..10).collect::<Vec<_>>());
    }
}
