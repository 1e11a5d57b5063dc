//! Spans and profiles to the store: SQLite, on a thread of its own.

use std::{
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::{
    health::Health,
    queue::{Batch, Limits, Queue, spans_in},
};
use crate::{
    error::{Error, Result},
    profile::Profile,
    store::{Kind, Now, Store, StoreConfig},
    telemetry::{Count, Counters},
};

/// The bounds of the store's queue: some seconds of a machine's full speed, for disks that stall. A
/// batch is a second's, so that indexes change once for many spans.
pub(super) const LIMITS: Limits = Limits {
    spans: 32 * 1024,
    bytes: 24 << 20,
    take_spans: 4096,
    take_bytes: 4 << 20,
    delay: Duration::from_secs(1),
};

/// How long to wait before a write that failed is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// How often the thread looks for profiles, and for what is too old, when no spans come.
const TICK: Duration = Duration::from_secs(1);

/// How many profiles may wait.
const PROFILES_MAX: usize = 4;

/// Where profiles for the store go in.
#[derive(Clone, Debug)]
pub struct Profiles {
    sender: Sender<Profile>,
    counters: Arc<Counters>,
}

impl Profiles {
    /// Hands a profile over. Never waits: one that there is no room for is dropped, and counted.
    pub fn send(&self, profile: Profile) {
        if let Err(error) = self.sender.try_send(profile) {
            let lost = error.into_inner().total();
            self.counters.add(Count::StoreSamplesLost, lost);
        }
    }
}

/// Opens the store and starts the sink's thread; `None` where it goes on without, and has said why.
///
/// # Errors
///
/// When the folder that the user named cannot be used. (That another agent has it is no error.)
pub(super) fn start(
    config: StoreConfig,
    queue: Arc<Queue>,
    counters: Arc<Counters>,
) -> Result<Option<(JoinHandle<()>, Profiles)>> {
    let folder = config.folder.display().to_string();
    let opened = match Store::open(&config, &Now::read()) {
        Ok(opened) => opened,
        Err(error) if config.is_required && error.kind() != Kind::Locked => {
            return Err(Error::usage(format_args!(
                "cannot store in {folder}: {error}; name another folder with --store, or off"
            )));
        }
        Err(error) => {
            tracing::warn!("storing nothing: cannot use {folder}: {error}");
            return Ok(None);
        }
    };
    if let Some(aside) = &opened.set_aside {
        tracing::warn!(
            "the store in {folder} was broken: moved to {}, and begun anew",
            aside.display()
        );
    }
    let (sender, profiles) = bounded(PROFILES_MAX);
    let mut writer = Writer {
        store: Some(opened.store),
        health: Health::new(format!("storing in {folder}")),
        config,
        queue,
        profiles,
        counters: Arc::clone(&counters),
    };
    let thread = thread::Builder::new()
        .name("store".into())
        .spawn(move || writer.run())
        .map_err(|error| Error::failed(format_args!("cannot start the store's thread: {error}")))?;
    Ok(Some((thread, Profiles { sender, counters })))
}

struct Writer {
    /// `None` after a file that broke could not be replaced.
    store: Option<Store>,
    config: StoreConfig,
    queue: Arc<Queue>,
    profiles: Receiver<Profile>,
    counters: Arc<Counters>,
    health: Health,
}

impl Writer {
    fn run(&mut self) {
        while let Some(batches) = self.queue.next_within(TICK) {
            let profile = self.profiles.try_recv().ok();
            if batches.is_empty() && profile.is_none() {
                self.sweep();
            } else {
                self.deliver(&batches, profile);
            }
        }
        // What was handed over last.
        while let Ok(profile) = self.profiles.try_recv() {
            self.deliver(&[], Some(profile));
        }
    }

    /// Writes spans and a profile, however long it takes; the queue drops what does not fit in the
    /// meantime.
    fn deliver(&mut self, batches: &[Arc<Batch>], profile: Option<Profile>) {
        let spans = spans_in(batches);
        let samples = profile.as_ref().map_or(0, Profile::total);
        loop {
            let Some(store) = &mut self.store else {
                return self.lost(Count::StoreBroken, spans, samples);
            };
            let all = batches.iter().flat_map(|batch| &batch.spans);
            match store.write(all, profile.as_ref(), &Now::read()) {
                Ok(()) => break,
                Err(error) if error.kind() == Kind::Corrupt => {
                    self.counters.add(Count::StoreFailedWrites, 1);
                    self.begin_anew(&error.to_string());
                }
                Err(error) => {
                    self.counters.add(Count::StoreFailedWrites, 1);
                    let lost = self.counters.get(Count::StoreQueueFull);
                    self.health.failed(&error.to_string(), lost);
                    if self.queue.deadline().is_some() {
                        return self.lost(Count::StoreStopped, spans, samples);
                    }
                    self.queue.sleep_blocking(Instant::now() + AGAIN);
                }
            }
        }
        self.health.worked(self.counters.get(Count::StoreQueueFull));
        self.counters.add(Count::StoreWritten, spans);
        self.counters.add(Count::StoreSamplesWritten, samples);
    }

    fn sweep(&mut self) {
        let Some(store) = &mut self.store else {
            return;
        };
        match store.sweep(&Now::read()) {
            Ok(()) => {}
            Err(error) if error.kind() == Kind::Corrupt => self.begin_anew(&error.to_string()),
            // What cannot be deleted now is deleted later; that nothing can be stored is said when
            // something is to be.
            Err(error) => tracing::debug!("deleting from the store fails: {error}"),
        }
    }

    /// Puts another file in the place of one that broke.
    fn begin_anew(&mut self, why: &str) {
        let Some(store) = self.store.take() else {
            return;
        };
        let folder = self.config.folder.display();
        match store.begin_anew(&self.config, &Now::read()) {
            Ok(opened) => {
                let aside = opened.set_aside.unwrap_or_default();
                tracing::warn!(
                    "the store in {folder} is broken ({why}): moved to {}, and begun anew",
                    aside.display()
                );
                self.store = Some(opened.store);
            }
            Err(error) => tracing::warn!(
                "the store in {folder} is broken ({why}) and cannot be begun anew: {error}; storing \
                 nothing from now on"
            ),
        }
    }

    fn lost(&self, reason: Count, spans: u64, samples: u64) {
        self.counters.add(reason, spans);
        self.counters.add(Count::StoreSamplesLost, samples);
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use std::{fs, path::Path};

    use super::*;
    use crate::{
        export::{ExportConfig, Exporters, tests::span},
        profile::fixture,
        store::reader::{Filter, Order, Reader},
    };

    fn config(folder: &Path) -> ExportConfig {
        ExportConfig {
            store: Some(StoreConfig {
                folder: folder.to_owned(),
                is_required: true,
                ..StoreConfig::default()
            }),
            ..ExportConfig::default()
        }
    }

    /// Every span and sample that is sent is stored by the end, and counted.
    #[test]
    fn stores_what_is_sent() {
        let folder = tempfile::tempdir().unwrap();
        let counters = Arc::new(Counters::new());
        let exporters = Exporters::start(config(folder.path()), Arc::clone(&counters)).unwrap();
        exporters.send((0..1000).map(span).collect());
        let profile = fixture::busy();
        exporters.profiles().unwrap().send(profile.clone());
        exporters.shutdown(Duration::from_secs(30));
        assert_eq!(counters.get(Count::StoreWritten), 1000);
        assert_eq!(counters.get(Count::StoreSamplesWritten), profile.total());
        let reader = Reader::open(folder.path()).unwrap();
        let all = reader
            .requests(&Filter::default(), Order::Last, 2000)
            .unwrap();
        assert_eq!(all.len(), 1000);
    }

    /// A folder that another agent has is no reason to end; one that cannot be used is, if the user named
    /// it, and says what to do.
    #[test]
    fn goes_on_without() {
        let folder = tempfile::tempdir().unwrap();
        let first = Exporters::start(config(folder.path()), Arc::default()).unwrap();
        let second = Exporters::start(config(folder.path()), Arc::default()).unwrap();
        assert!(second.profiles().is_none());
        second.send(vec![span(1)]);
        second.shutdown(Duration::from_secs(5));
        first.shutdown(Duration::from_secs(5));
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let error = Exporters::start(config(&file), Arc::default()).unwrap_err();
        assert!(error.to_string().contains("--store"), "{error}");
        assert_eq!(error.exit(), crate::error::Exit::Usage);
        let mut config = config(&file);
        if let Some(store) = &mut config.store {
            store.is_required = false;
        }
        Exporters::start(config, Arc::default())
            .unwrap()
            .shutdown(Duration::from_secs(5));
    }

    /// A file that turns out to be broken when it is written to is replaced, and what came then is in
    /// the new one.
    #[test]
    fn replaces_a_file_that_is_broken() {
        let folder = tempfile::tempdir().unwrap();
        let exporters = Exporters::start(config(folder.path()), Arc::default()).unwrap();
        exporters.send((0..5000).map(span).collect());
        exporters.shutdown(Duration::from_secs(30));
        // The tables' descriptions stand at the file's begin, their rows further on.
        let path = folder.path().join("traces.db");
        let mut bytes = fs::read(&path).unwrap();
        let rows = 30 * 4096;
        assert!(bytes.len() > 2 * rows);
        bytes[rows..].fill(0x5a);
        fs::write(&path, bytes).unwrap();

        let counters = Arc::new(Counters::new());
        let exporters = Exporters::start(config(folder.path()), Arc::clone(&counters)).unwrap();
        exporters.send((0..700).map(span).collect());
        exporters.shutdown(Duration::from_secs(30));
        assert_eq!(counters.get(Count::StoreWritten), 700);
        assert_eq!(counters.get(Count::StoreFailedWrites), 1);
        let names = fs::read_dir(folder.path()).unwrap();
        let aside = names.filter(|entry| {
            let name = entry.as_ref().unwrap().file_name();
            name.to_string_lossy().starts_with("traces.db.corrupt-")
        });
        assert!(aside.count() > 0);
        let reader = Reader::open(folder.path()).unwrap();
        let all = reader
            .requests(&Filter::default(), Order::Last, 9000)
            .unwrap();
        assert_eq!(all.len(), 700);
    }
}
