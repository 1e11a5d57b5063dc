//! The thread that samples the threads that are on no CPU, at the same rate as the kernel side samples
//! those that are: together, every thread at the rate.
//!
//! Such a thread cannot be sampled in the kernel, where it is not running. Its stack is read from outside,
//! and counts only if the kernel says that the thread has not run from before the reading until after:
//! then it is the stack of one moment. A thread that has not run since it was last read has the same stack
//! still, and is not read again.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};
use decnet_trace_common::{
    event::{ABI_VERSION, Header, Kind, PyFrame, Sample, sample_flags},
    thread::{ThreadStat, state},
};
use rustc_hash::FxHashMap;
use tracing::warn;

use super::{
    live::{Gap, Live},
    worker::monotonic,
};
use crate::{
    bpf::threads::{ThreadLister, Threads},
    error::{Error, Result},
    profile::aggregate::Waiting,
    python::PyProcess,
};

/// How many batches of records may wait for the pipeline, which takes them all every round.
const BATCHES_MAX: usize = 64;

/// How many changes of what is sampled may wait.
const COMMANDS_MAX: usize = 4096;

/// A batch is handed over after this long,
const BATCH_AFTER: Duration = Duration::from_millis(20);

/// or when it has so many bytes.
const BATCH_BYTES: usize = 256 * 1024;

/// How often a thread that ran while it was read is tried again.
const TRIES: u32 = 4;

/// The most ticks that one looks back at.
const TICKS_MAX: u32 = 100;

/// A change of what is sampled.
enum Command {
    Add(Box<PyProcess>),
    Remove(u32),
}

/// The pipeline's end of the thread. It ends when this is dropped.
pub(super) struct Wall {
    commands: Sender<Command>,
    batches: Receiver<Vec<u8>>,
    /// Batches that were emptied, for their room.
    spare: Sender<Vec<u8>>,
    lost: Arc<Lost>,
}

/// Samples that were not taken, by reason.
#[derive(Default)]
struct Lost {
    /// The thread ran whenever it was read.
    moved: AtomicU64,
    /// This thread had no CPU in time, or the pipeline did not keep up.
    late: AtomicU64,
}

impl Wall {
    /// Starts the thread, which samples nothing yet.
    pub(super) fn start(
        lister: ThreadLister,
        rate: u32,
        which: Waiting,
        live: Arc<Live>,
    ) -> Result<Self> {
        let (commands, inbox) = bounded(COMMANDS_MAX);
        let (out, batches) = bounded(BATCHES_MAX);
        let (spare, room) = bounded(BATCHES_MAX);
        let lost = Arc::new(Lost::default());
        let mut sampler = Sampler {
            lister,
            live,
            all: which == Waiting::All,
            period: Duration::from_secs(1) / rate.max(1),
            processes: Vec::new(),
            batch: Vec::new(),
            batch_begun: Instant::now(),
            out,
            room,
            lost: Arc::clone(&lost),
            listed: Vec::new(),
            bytes: Vec::new(),
            unread: Vec::new(),
            frames: Vec::new(),
        };
        thread::Builder::new()
            .name("wall".into())
            .spawn(move || sampler.work(&inbox))
            .map_err(|error| Error::failed(format!("cannot start a thread: {error}")))?;
        Ok(Self {
            commands,
            batches,
            spare,
            lost,
        })
    }

    /// Samples a process from now on; as it is now, where it was known before.
    pub(super) fn add(&self, process: &PyProcess) {
        // Where the thread has ended there is nothing to say it to.
        let _ = self.commands.send(Command::Add(Box::new(process.clone())));
    }

    /// Samples it no longer.
    pub(super) fn remove(&self, tgid: u32) {
        let _ = self.commands.send(Command::Remove(tgid));
    }

    /// Hands on the records that were made since the last call; how many.
    pub(super) fn hand_on(&self, mut each: impl FnMut(&[u8])) -> usize {
        let mut count = 0;
        for mut batch in self.batches.try_iter() {
            for record in records(&batch) {
                each(record);
                count += 1;
            }
            batch.clear();
            // Where there is room enough already, this one is given back to the system.
            let _ = self.spare.try_send(batch);
        }
        count
    }

    /// Samples that were lost, by reason.
    pub(super) fn counters(&self) -> [(&'static str, u64); 2] {
        [
            (
                "samples_lost_thread_ran_on",
                self.lost.moved.load(Ordering::Relaxed),
            ),
            (
                "samples_lost_too_late",
                self.lost.late.load(Ordering::Relaxed),
            ),
        ]
    }

    /// How many samples were lost.
    pub(super) fn lost(&self) -> u64 {
        self.counters().iter().map(|(_, lost)| lost).sum()
    }
}

/// The records of a batch; each says how long it is.
fn records(mut batch: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        const LEN: usize = std::mem::offset_of!(Header, len);
        let len = batch.get(LEN..)?.first_chunk::<2>()?;
        let (record, rest) =
            batch.split_at_checked(usize::from(u16::from_ne_bytes(*len)).max(1))?;
        batch = rest;
        Some(record)
    })
}

/// The state of the thread.
struct Sampler {
    lister: ThreadLister,
    live: Arc<Live>,
    /// Also those that wait for something to happen.
    all: bool,
    period: Duration,
    processes: Vec<Sampled>,
    batch: Vec<u8>,
    batch_begun: Instant,
    out: Sender<Vec<u8>>,
    room: Receiver<Vec<u8>>,
    lost: Arc<Lost>,
    // Room that is used again and again.
    listed: Vec<ThreadStat>,
    bytes: Vec<u8>,
    unread: Vec<ThreadStat>,
    frames: Vec<PyFrame>,
}

/// A process that is sampled.
struct Sampled {
    process: PyProcess,
    threads: Threads,
    /// What its threads run, by their ids.
    known: FxHashMap<u32, Known>,
    round: u64,
}

/// What a thread runs as long as it does not run.
#[derive(Default)]
struct Known {
    switches: u64,
    /// The record; empty where the thread runs no Python.
    record: Vec<u8>,
    /// The round in which the thread was last listed.
    round: u64,
}

impl Sampler {
    fn work(&mut self, inbox: &Receiver<Command>) {
        let mut due = Instant::now() + self.period;
        loop {
            if self.processes.is_empty() {
                match inbox.recv() {
                    Ok(command) => self.follow(command),
                    Err(_) => return,
                }
                due = Instant::now() + self.period;
            }
            loop {
                match inbox.try_recv() {
                    Ok(command) => self.follow(command),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            thread::sleep(due.saturating_duration_since(Instant::now()));
            // This one, and those before it that there was no CPU for.
            let behind = Instant::now().saturating_duration_since(due).as_nanos();
            let ticks = 1 + u32::try_from(behind / self.period.as_nanos().max(1)).unwrap_or(0);
            due += self.period * ticks;
            self.tick(ticks);
            self.hand_over();
        }
    }

    fn follow(&mut self, command: Command) {
        let (tgid, added) = match command {
            Command::Add(process) => (process.pid, Some(process)),
            Command::Remove(tgid) => (tgid, None),
        };
        self.processes.retain(|sampled| sampled.process.pid != tgid);
        let Some(process) = added else { return };
        match self.lister.of(tgid) {
            Ok(threads) => self.processes.push(Sampled {
                process: *process,
                threads,
                known: FxHashMap::default(),
                round: 0,
            }),
            Err(error) => {
                warn!("the waiting threads of pid {tgid} are not sampled: {error}");
                self.live.add_gap(tgid, Gap::Waiting(error.to_string()));
            }
        }
    }

    /// Takes the samples of as many ticks.
    fn tick(&mut self, ticks: u32) {
        let mut processes = std::mem::take(&mut self.processes);
        processes.retain_mut(|sampled| match self.sample(sampled, ticks) {
            Ok(()) => true,
            Err(error) => {
                let tgid = sampled.process.pid;
                warn!("the waiting threads of pid {tgid} are not sampled any more: {error}");
                self.live.add_gap(tgid, Gap::Waiting(error.to_string()));
                false
            }
        });
        self.processes = processes;
    }

    /// Samples one process's threads. One that has not run since the tick before was in the same place at
    /// all of these; what another did at the earlier ones, nobody knows.
    fn sample(&mut self, sampled: &mut Sampled, ticks: u32) -> io::Result<()> {
        sampled.threads.read(&mut self.bytes, &mut self.listed)?;
        sampled.round += 1;
        let now = monotonic();
        let again = ticks.min(TICKS_MAX);
        let (mut late, mut unmoved) = (0, 0);
        self.unread.clear();
        for thread in &self.listed {
            let mut known = sampled.known.get_mut(&thread.tid);
            if let Some(known) = &mut known {
                // Also of one that is left out: as long as it does not run, it stays right.
                known.round = sampled.round;
            }
            if !self.is_wanted(thread) {
                continue;
            }
            match known {
                Some(known) if known.switches == thread.switches => {
                    for _ in 0..again {
                        emit(&mut self.batch, &known.record, now);
                    }
                    unmoved += 1;
                }
                _ => self.unread.push(*thread),
            }
        }
        late += u64::from(ticks - again) * unmoved;
        late += u64::from(ticks - 1) * self.unread.len() as u64;
        self.lost.late.fetch_add(late, Ordering::Relaxed);
        for _ in 0..TRIES {
            if self.unread.is_empty() {
                break;
            }
            self.read_all(sampled, now)?;
        }
        self.lost
            .moved
            .fetch_add(self.unread.len() as u64, Ordering::Relaxed);
        // Threads that have ended.
        let round = sampled.round;
        sampled.known.retain(|_, known| known.round == round);
        Ok(())
    }

    /// Reads the threads that are not known; those that ran meanwhile are left.
    fn read_all(&mut self, sampled: &mut Sampled, now: u64) -> io::Result<()> {
        for thread in &self.unread {
            let known = sampled.known.entry(thread.tid).or_default();
            known.round = sampled.round;
            known.switches = thread.switches;
            read(
                &sampled.process,
                thread,
                &mut self.frames,
                &mut known.record,
            );
        }
        sampled.threads.read(&mut self.bytes, &mut self.listed)?;
        self.unread.retain_mut(|thread| {
            let found = self.listed.iter().find(|listed| listed.tid == thread.tid);
            match found {
                Some(after) if after.on_cpu == 0 && after.switches == thread.switches => {
                    if let Some(known) = sampled.known.get(&thread.tid) {
                        emit(&mut self.batch, &known.record, now);
                    }
                    false
                }
                Some(after) => {
                    // What was read may be of two moments.
                    sampled.known.remove(&thread.tid);
                    *thread = *after;
                    true
                }
                // It has ended.
                None => {
                    sampled.known.remove(&thread.tid);
                    false
                }
            }
        });
        Ok(())
    }

    /// Whether a thread is one of those that are sampled here.
    fn is_wanted(&self, thread: &ThreadStat) -> bool {
        let is_idle = thread.state != 0 && thread.state & state::UNINTERRUPTIBLE == 0;
        thread.on_cpu == 0 && (self.all || !is_idle)
    }

    /// Hands the batch over, when it is time.
    fn hand_over(&mut self) {
        if self.batch.is_empty() {
            self.batch_begun = Instant::now();
            return;
        }
        if self.batch_begun.elapsed() < BATCH_AFTER && self.batch.len() < BATCH_BYTES {
            return;
        }
        let next = self.room.try_recv().unwrap_or_default();
        let batch = std::mem::replace(&mut self.batch, next);
        self.batch_begun = Instant::now();
        if let Err(refused) = self.out.try_send(batch) {
            let mut batch = refused.into_inner();
            let count = records(&batch).count() as u64;
            self.lost.late.fetch_add(count, Ordering::Relaxed);
            batch.clear();
            self.batch = batch;
        }
    }
}

/// Appends a thread's record as of now.
fn emit(batch: &mut Vec<u8>, record: &[u8], now: u64) {
    const TS: usize = std::mem::offset_of!(Header, ts);
    if record.is_empty() {
        return;
    }
    let start = batch.len() + TS;
    batch.extend_from_slice(record);
    batch[start..start + 8].copy_from_slice(&now.to_ne_bytes());
}

/// Reads a thread's stack into a record like the kernel side's; an empty one where it runs no Python.
fn read(process: &PyProcess, thread: &ThreadStat, frames: &mut Vec<PyFrame>, record: &mut Vec<u8>) {
    record.clear();
    frames.clear();
    let mut sample = Sample {
        header: Header {
            ts: 0,
            tgid: thread.tgid,
            tid: thread.tid,
            cpu: 0,
            len: 0,
            kind: Kind::Sample as u8,
            version: ABI_VERSION,
        },
        flags: sample_flags::WALL,
        ..Sample::default()
    };
    if !process.read_waiting(thread.thread_pointer, &mut sample, frames) {
        return;
    }
    // A sample of the most frames has some 4,200 bytes.
    sample.header.len = (size_of::<Sample>() + size_of_val(frames.as_slice())) as u16;
    // SAFETY: a `Sample` is made of integers without padding (its size is asserted beside it), so all of
    // its bytes are initialised; they are read while `sample` is borrowed.
    let bytes = unsafe {
        std::slice::from_raw_parts((&raw const sample).cast::<u8>(), size_of::<Sample>())
    };
    record.extend_from_slice(bytes);
    for frame in frames {
        record.extend_from_slice(&frame.code.to_ne_bytes());
        record.extend_from_slice(&frame.instr.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A batch falls into the records that it is made of, and one that is cut short ends it.
    #[test]
    fn batches_fall_into_records() {
        let record = |len: u16| {
            let mut record = vec![0; usize::from(len)];
            let at = std::mem::offset_of!(Header, len);
            record[at..at + 2].copy_from_slice(&len.to_ne_bytes());
            record
        };
        let mut batch = Vec::new();
        for len in [48, 64, 0, 96] {
            emit(&mut batch, &record(len.max(24))[..usize::from(len)], 7);
        }
        let lens: Vec<_> = records(&batch).map(<[u8]>::len).collect();
        assert_eq!(lens, [48, 64, 96]);
        assert!(records(&batch).all(|record| record[..8] == 7u64.to_ne_bytes()));
        assert_eq!(records(&batch[..100]).count(), 1);
        // A length of nothing does not hold it up: there is an end to it.
        assert!(records(&[0; 64]).count() <= 64);
    }
}
