//! Which processes' statements are watched, and what is learnt of their SQLites while they run.

use std::{path::PathBuf, sync::Arc};

use decnet_trace_common::{
    limits::SQLITES_MAX,
    sqlite::{STATE, SqliteLayout},
};
use rustc_hash::FxHashMap;
use tracing::{debug, info, warn};

use super::worker::Worker;
use crate::{
    bpf::{load::Bpf, probes::ProcessProbes},
    correlate::statements::Statements,
    error::Result,
    python::{BatchProbes, ProcessMemory},
    sqlite::{Library, Mapped, look},
};

/// How often a living database is looked at, before its library's file names are given up.
const LOOKS_MAX: u32 = 50;

/// The SQLites of traced processes.
#[derive(Default)]
pub(super) struct Sqlites {
    /// By the index that the kernel side knows them by.
    known: Vec<Known>,
    /// By process; a process may have several.
    watched: FxHashMap<u32, Vec<Watched>>,
    /// By process; it may have several modules that call SQLite.
    batches: FxHashMap<u32, Vec<Batches>>,
}

/// A module that calls SQLite in a process that is watched.
struct Batches {
    at: BatchProbes,
    /// Held for their drop.
    _many: ProcessProbes,
    singles: Option<ProcessProbes>,
}

/// A library.
struct Known {
    identity: (String, u64),
    library: Arc<Library>,
    layout: SqliteLayout,
    /// Where it sleeps: an offset in its file.
    sleep: Option<u64>,
    looks: u32,
}

/// A library in a process that is watched.
struct Watched {
    index: usize,
    path: PathBuf,
    bias: u64,
    /// Held for their drop.
    _probes: ProcessProbes,
    sleeps: Option<ProcessProbes>,
}

/// A database that was seen: in which library, in which process, and where.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sighting {
    pub(super) library: u16,
    pub(super) tgid: u32,
    pub(super) db: u64,
}

impl Sqlites {
    /// Watches a library in a process from now on.
    fn watch(&mut self, bpf: &mut Bpf, mapped: &Mapped) -> Result<bool> {
        let index = self.index(mapped);
        if index >= SQLITES_MAX as usize {
            return Ok(false);
        }
        let watched = self.watched.entry(mapped.pid).or_default();
        if watched.iter().any(|watched| watched.index == index) {
            return Ok(false);
        }
        let number = index as u32;
        bpf.set_sqlite(number, self.known[index].layout)?;
        let probes = bpf.watch_statements(mapped.pid, &mapped.path, &mapped.library, number)?;
        watched.push(Watched {
            index,
            path: mapped.path.clone(),
            bias: mapped.bias,
            _probes: probes,
            sleeps: None,
        });
        self.watch_sleeps(bpf);
        Ok(true)
    }

    /// A process has ended.
    pub(super) fn forget(&mut self, tgid: u32) {
        self.watched.remove(&tgid);
        self.batches.remove(&tgid);
    }

    /// The libraries of which a database should be looked at, as the bits of their indices.
    pub(super) fn wanted(&self) -> u64 {
        self.known
            .iter()
            .enumerate()
            .filter(|(_, known)| {
                known.layout.pc == 0 || known.layout.file == 0 && known.looks < LOOKS_MAX
            })
            .fold(0, |bits, (index, _)| bits | 1 << index)
    }

    /// Learns what it can of databases that were seen.
    pub(super) fn learn(
        &mut self,
        bpf: &mut Bpf,
        statements: &Statements,
        sightings: impl Iterator<Item = Sighting>,
    ) -> Result<()> {
        for sighting in sightings {
            let index = usize::from(sighting.library);
            let Some(known) = self.known.get_mut(index) else {
                continue;
            };
            let before = known.layout;
            if let Some(place) = statements.place(sighting.library) {
                let behind = STATE + 4 * (place as u16 + 1);
                known.layout.pc = known.layout.vars.saturating_add(behind);
            }
            let bias = self
                .watched
                .get(&sighting.tgid)
                .and_then(|all| all.iter().find(|watched| watched.index == index))
                .map(|watched| watched.bias);
            if let Some(bias) = bias
                && known.layout.file == 0
                && known.looks < LOOKS_MAX
            {
                known.looks += 1;
                known.look(sighting, bias);
            }
            if known.layout != before {
                bpf.set_sqlite(index as u32, known.layout)?;
                self.watch_sleeps(bpf);
            }
        }
        Ok(())
    }

    /// The index of a library; [`SQLITES_MAX`] or more where there are too many.
    fn index(&mut self, mapped: &Mapped) -> usize {
        if let Some(index) = self
            .known
            .iter()
            .position(|known| known.identity == mapped.identity)
        {
            return index;
        }
        if self.known.len() >= SQLITES_MAX as usize {
            return usize::MAX;
        }
        self.known.push(Known {
            identity: mapped.identity.clone(),
            library: Arc::clone(&mapped.library),
            layout: mapped.library.layout,
            sleep: None,
            looks: 0,
        });
        self.known.len() - 1
    }

    /// Watches how libraries sleep, where that is known by now.
    fn watch_sleeps(&mut self, bpf: &mut Bpf) {
        for (&tgid, all) in &mut self.watched {
            for watched in all.iter_mut().filter(|watched| watched.sleeps.is_none()) {
                let Some(sleep) = self.known[watched.index].sleep else {
                    continue;
                };
                match bpf.watch_sleeps(tgid, &watched.path, sleep, watched.index as u32) {
                    Ok(probes) => watched.sleeps = Some(probes),
                    Err(error) => debug!("waits for locks of pid {tgid} are not seen: {error}"),
                }
            }
        }
    }
}

impl Known {
    /// Looks at a living database, which may be gone by now.
    fn look(&mut self, sighting: Sighting, bias: u64) {
        let memory = ProcessMemory::new(sighting.tgid);
        if let Ok(Some(database)) = look(&memory, sighting.db) {
            self.layout.file = database.file;
            // The function of a VFS of the program's own lies elsewhere.
            self.sleep = self.library.file_offset(database.sleep, bias);
        }
    }
}

impl Worker {
    /// A process maps SQLite: its statements are watched from now on.
    pub(super) fn watch_statements(&mut self, mapped: &Mapped) {
        let pid = mapped.pid;
        // It may have ended.
        if self.bpf.targets.get(&pid, 0).is_err() {
            return;
        }
        match self.sqlites.watch(&mut self.bpf, mapped) {
            Ok(true) => {
                info!("watching SQLite in {} (pid {pid})", mapped.path.display());
                self.decoder.wanted = self.sqlites.wanted();
            }
            Ok(false) => {}
            Err(error) => warn!("no statements of pid {pid}: {error}"),
        }
    }

    /// A process's calls of `executemany` are watched from now on.
    pub(super) fn watch_batches(&mut self, pid: u32, probe: &BatchProbes) {
        // Its end was told before.
        if !self.sqlites.watched.contains_key(&pid) {
            return;
        }
        match self.bpf.watch_batches(pid, probe) {
            Ok(many) => self.sqlites.batches.entry(pid).or_default().push(Batches {
                at: probe.clone(),
                _many: many,
                singles: None,
            }),
            Err(error) => warn!("batches of pid {pid} are not told: {error}"),
        }
    }

    /// Processes called `executemany` in this round: what they execute by `execute` is told from it from now on.
    pub(super) fn watch_singles(&mut self) {
        for pid in self.decoder.batching.drain() {
            let all = self.sqlites.batches.get_mut(&pid).into_iter().flatten();
            for batches in all.filter(|batches| batches.singles.is_none()) {
                match self.bpf.watch_singles(pid, &batches.at) {
                    Ok(probes) => batches.singles = Some(probes),
                    Err(error) => debug!("single executions of pid {pid} are not told: {error}"),
                }
            }
        }
    }

    /// Learns of databases that were seen in this round.
    pub(super) fn learn_databases(&mut self) {
        if self.decoder.sightings.is_empty() {
            return;
        }
        let Self {
            sqlites,
            bpf,
            decoder,
            ..
        } = self;
        let learnt = sqlites.learn(bpf, &decoder.statements, decoder.sightings.drain(..));
        if let Err(error) = learnt {
            warn!("{error}");
        }
        decoder.wanted = sqlites.wanted();
    }
}
