//! Watches the statements of SQLite in single processes.

use std::{num::NonZeroU32, path::Path};

use aya::programs::{
    UProbe,
    uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeScope},
};
use decnet_trace_common::sqlite::SqliteLayout;

use super::{
    load::{Bpf, Link, program, refused},
    probes::ProcessProbes,
};
use crate::{
    error::{Error, Result},
    sqlite::Library,
};

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
            ("sqlite_single", library.single),
            ("sqlite_begun", library.begun),
        ];
        let prepared = library
            .prepared
            .iter()
            .map(|&place| ("sqlite_prepared", place));
        self.watch_library(pid, path, probes.into_iter().chain(prepared), index)
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
        self.watch_library(pid, path, probes.into_iter(), index)
    }

    fn watch_library<'a>(
        &mut self,
        pid: u32,
        path: &Path,
        probes: impl Iterator<Item = (&'a str, u64)>,
        index: u32,
    ) -> Result<ProcessProbes> {
        let scope = NonZeroU32::new(pid)
            .map(UProbeScope::OneProcess)
            .ok_or_else(|| Error::failed("process 0 has no SQLite"))?;
        let mut links = Vec::new();
        for (name, place) in probes {
            let program = program::<UProbe>(&mut self.ebpf, name)?;
            if program.fd().is_err() {
                program
                    .load()
                    .map_err(|error| refused(&format!("load the probe {name}"), &error))?;
            }
            let point = UProbeAttachPoint {
                location: UProbeAttachLocation::AbsoluteOffset(place),
                cookie: Some(u64::from(index)),
            };
            let link = program
                .attach(point, path, scope)
                .and_then(|id| program.take_link(id))
                .map_err(|error| refused(&format!("attach {name} to process {pid}"), &error))?;
            links.push(Link::Probe(link));
        }
        Ok(self.undo.of(links))
    }
}
