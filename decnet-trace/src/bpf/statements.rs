//! Watches the statements of SQLite in single processes.

use std::path::Path;

use decnet_trace_common::sqlite::SqliteLayout;

use super::{
    load::{Bpf, refused},
    probes::ProcessProbes,
};
use crate::{error::Result, python::BatchProbes, sqlite::Library};

impl Bpf {
    /// Tells the kernel side where the SQLite that attachments name by this index keeps things.
    ///
    /// # Errors
    ///
    /// When the kernel refuses, or there are more libraries than fit.
    pub fn set_sqlite(&mut self, index: u32, layout: SqliteLayout) -> Result<()> {
        self.sqlites
            .set(index, layout, 0)
            .map_err(|error| refused("set an SQLite layout", &error))
    }

    /// Watches the statements of one process, in the library at `path` whose layout has this index.
    ///
    /// # Errors
    ///
    /// When the kernel refuses; the process may be gone.
    pub fn watch_statements(
        &mut self,
        pid: u32,
        path: &Path,
        library: &Library,
        index: u32,
    ) -> Result<ProcessProbes> {
        // What comes last in a statement's life first: one that is begun will be seen to end.
        let probes = [
            ("sqlite_finalized", library.finalized),
            ("sqlite_ended", library.ended),
            ("sqlite_failed", library.failed),
            ("sqlite_begun", library.begun),
        ];
        let prepared = library
            .prepared
            .iter()
            .map(|&place| ("sqlite_prepared", place));
        let wanted = probes.into_iter().chain(prepared);
        self.probe(pid, path, wanted, Some(u64::from(index)))
    }

    /// Watches one process's SQLite sleep, at this offset in the library.
    ///
    /// # Errors
    ///
    /// When the kernel refuses; the process may be gone.
    pub fn watch_sleeps(
        &mut self,
        pid: u32,
        path: &Path,
        sleep: u64,
        index: u32,
    ) -> Result<ProcessProbes> {
        let probes = [("sqlite_waited", sleep), ("sqlite_waiting", sleep)];
        self.probe(pid, path, probes, Some(u64::from(index)))
    }

    /// Watches calls of `executemany` in one process.
    ///
    /// # Errors
    ///
    /// When the kernel refuses; the process may be gone.
    pub fn watch_batches(&mut self, pid: u32, at: &BatchProbes) -> Result<ProcessProbes> {
        self.probe(
            pid,
            &at.file,
            at.many.map(|at| ("sqlite_many", at)),
            Some(0),
        )
    }

    /// Watches calls of `execute` in one process, to tell them from batches.
    ///
    /// # Errors
    ///
    /// When the kernel refuses; the process may be gone.
    pub fn watch_singles(&mut self, pid: u32, at: &BatchProbes) -> Result<ProcessProbes> {
        self.probe(pid, &at.file, at.one.map(|at| ("sqlite_one", at)), Some(0))
    }
}
