//! Unwind tables for the kernel side: how it gets from a native function to its caller in code that keeps no
//! frame pointers.
//!
//! A thread of its own reads the files that recorded processes map, and follows what they map meanwhile.

mod lack;
mod pages;
pub mod rows;
mod tables;

use std::{
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
pub use lack::Lack;
use rustc_hash::FxHashMap;
pub use tables::Held;
use tables::{Maps, Tables};

use crate::{
    bpf::unwind::UnwindMaps,
    symbolize::{Backing, Mapping, mappings},
};

/// How many requests may wait.
const REQUESTS_MAX: usize = 4096;

/// How often a process's mappings are read again, asked or not: something may have been unloaded.
const STALE: Duration = Duration::from_secs(10);

/// How soon they are read again for an address that was in none of them.
const AGAIN: Duration = Duration::from_millis(200);

/// How much longer each time that this found nothing new, at most so often doubled: code that is followed by
/// frame pointers leads to such addresses again and again.
const DOUBLINGS: u32 = 5;

/// The pipeline's end of the thread. It ends with the last of these.
#[derive(Clone, Debug)]
pub struct Client {
    requests: Sender<Request>,
    shared: Arc<Shared>,
}

#[derive(Clone, Debug)]
enum Request {
    Add(u32),
    Remove(u32),
    Look(u32),
    Flush(Sender<()>),
}

#[derive(Debug, Default)]
struct Shared {
    told: Mutex<Told>,
    lost: AtomicU64,
}

/// What the thread tells.
#[derive(Debug, Default)]
struct Told {
    held: Held,
    lacks: Vec<(u32, Lack)>,
}

impl Client {
    /// Loads the tables of a process's code, soon.
    pub fn add(&self, tgid: u32) {
        self.send(Request::Add(tgid));
    }

    /// Lets go of a process.
    pub fn remove(&self, tgid: u32) {
        self.send(Request::Remove(tgid));
    }

    /// A stack of this process led to an address that is in none of the code that is known of it.
    pub fn look(&self, tgid: u32) {
        self.send(Request::Look(tgid));
    }

    /// Waits until all processes that were added have been looked at; not longer than this.
    pub fn wait(&self, timeout: Duration) {
        let (done, waits) = bounded(1);
        if self.requests.try_send(Request::Flush(done)).is_ok() {
            // Those that take longer are followed by frame pointers until then.
            let _ = waits.recv_timeout(timeout);
        }
    }

    /// What is held.
    pub fn held(&self) -> Held {
        self.shared.lock().held
    }

    /// Which processes lack tables, in part or wholly, and why: the first 64 of them, each with its first reason.
    pub fn lacks(&self) -> Vec<(u32, Lack)> {
        self.shared.lock().lacks.clone()
    }

    /// What is held and was not, by name.
    pub fn counters(&self) -> [(&'static str, u64); 9] {
        let held = self.held();
        [
            ("unwind_processes", held.processes),
            ("unwind_files", held.files),
            ("unwind_rows", held.rows),
            ("unwind_bytes", held.bytes),
            ("unwind_files_without", held.without),
            ("unwind_files_refused", held.refused),
            ("unwind_rows_unsupported", held.unsupported),
            ("unwind_left_out", held.left_out),
            (
                "unwind_requests_dropped",
                self.shared.lost.load(Ordering::Relaxed),
            ),
        ]
    }

    fn send(&self, request: Request) {
        if self.requests.try_send(request).is_err() {
            self.shared.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Shared {
    /// A panic while it was locked cannot have left it half-changed: each change is one call.
    fn lock(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts the thread, which may use so many bytes of the kernel's memory.
///
/// # Errors
///
/// When the system has no thread to give.
pub fn spawn(maps: UnwindMaps, memory: u64) -> io::Result<Client> {
    let (requests, queue) = bounded(REQUESTS_MAX);
    let shared = Arc::new(Shared::default());
    let client = Client {
        requests,
        shared: Arc::clone(&shared),
    };
    thread::Builder::new()
        .name("unwind".to_owned())
        .spawn(move || {
            let own = mappings(std::process::id()).unwrap_or_default();
            let vdso = own.into_iter().find(|at| at.backing == Backing::Vdso);
            let worker = Worker {
                tables: Tables::new(maps, memory, vdso),
                processes: FxHashMap::default(),
                shared,
            };
            worker.run(&queue);
        })?;
    Ok(client)
}

struct Worker<M> {
    tables: Tables<M>,
    processes: FxHashMap<u32, Known>,
    shared: Arc<Shared>,
}

/// What is known of a process.
#[derive(Debug)]
struct Known {
    mappings: Vec<Mapping>,
    /// When its mappings were read.
    read: Instant,
    /// An address was in none of them.
    wanted: bool,
    /// How often reading them for that found nothing new, since it did.
    in_vain: u32,
}

impl Known {
    /// When they are to be read again.
    fn due(&self) -> Instant {
        let wait = match self.wanted {
            true => AGAIN * (1 << self.in_vain.min(DOUBLINGS)),
            false => STALE,
        };
        self.read + wait.min(STALE)
    }
}

impl<M: Maps> Worker<M> {
    fn run(mut self, queue: &Receiver<Request>) {
        loop {
            let due = self.processes.values().map(Known::due).min();
            let nap = due.map_or(STALE, |due| due.saturating_duration_since(Instant::now()));
            match queue.recv_timeout(nap) {
                Ok(Request::Add(tgid)) => self.read(tgid),
                Ok(Request::Remove(tgid)) => {
                    self.processes.remove(&tgid);
                    self.tables.remove(tgid);
                }
                Ok(Request::Look(tgid)) => {
                    if let Some(known) = self.processes.get_mut(&tgid) {
                        known.wanted = true;
                    }
                }
                Ok(Request::Flush(done)) => {
                    // Whoever asked may have stopped waiting.
                    let _ = done.send(());
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let now = Instant::now();
            let is_due = |(&tgid, known): (&u32, &Known)| (known.due() <= now).then_some(tgid);
            // One at a time: requests come first.
            if let Some(tgid) = self.processes.iter().find_map(is_due) {
                self.read(tgid);
            }
            let held = self.tables.held();
            let lacks = self.tables.lacks();
            let mut told = self.shared.lock();
            told.held = held;
            if told.lacks.len() != lacks.len() {
                told.lacks = lacks.to_vec();
            }
        }
    }

    /// Reads what a process has mapped, and hands on what is new.
    fn read(&mut self, tgid: u32) {
        // An ended process has no mappings; its end will be told.
        let mappings = mappings(tgid).unwrap_or_default();
        let known = self.processes.entry(tgid).or_insert_with(|| Known {
            mappings: Vec::new(),
            read: Instant::now(),
            wanted: false,
            in_vain: 0,
        });
        known.read = Instant::now();
        let wanted = std::mem::take(&mut known.wanted);
        if mappings.is_empty() || mappings == known.mappings {
            known.in_vain += u32::from(wanted);
        } else {
            known.in_vain = 0;
            self.tables.set(tgid, &mappings);
            known.mappings = mappings;
        }
    }
}
