//! Spans to a file: OTLP/JSON, one request per line, as the collector's file exporter writes and its
//! file receiver reads.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{
    Reopener,
    health::Health,
    json,
    queue::{Batch, Limits, Queue, spans_in},
};
use crate::{
    error::{Error, Result},
    telemetry::{Count, Counters},
};

/// The bounds of the file's queue: some seconds of a machine's full speed, for disks that stall; lines stay short enough to be read by eye and by `jq`.
pub const LIMITS: Limits = Limits {
    spans: 32 * 1024,
    bytes: 24 << 20,
    take_spans: 256,
    take_bytes: 512 << 10,
    delay: Duration::from_millis(500),
};

/// How long to wait before a write that failed is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// How long to wait for the reader of a pipe that is full.
const PIPE: Duration = Duration::from_millis(20);

/// Opens the file and starts the sink's thread. A file that is there is written on, at its end; a new
/// one is its owner's alone, since it holds what requests were about.
pub(super) fn start(
    path: &Path,
    queue: Arc<Queue>,
    counters: Arc<Counters>,
    reopener: Reopener,
) -> Result<JoinHandle<()>> {
    let (file, is_regular, is_cut) = open(path).map_err(|error| {
        Error::usage(format_args!(
            "cannot write spans to {}: {error}; give --spans-file a path that can be written",
            path.display()
        ))
    })?;
    let mut writer = Writer {
        path: path.to_owned(),
        reopener,
        file,
        is_regular,
        queue,
        counters,
        line: Vec::new(),
        written: 0,
        health: Health::new(format!("writing spans to {}", path.display())),
    };
    if is_cut {
        // The end of a line that an agent before this one could not write out.
        writer.line.push(b'\n');
    }
    thread::Builder::new()
        .name("spans-file".into())
        .spawn(move || writer.run())
        .map_err(|error| {
            Error::failed(format_args!(
                "cannot start the file exporter's thread: {error}"
            ))
        })
}

/// Opens a file to write on: the file, whether it is a regular one, and whether its last line is cut.
fn open(path: &Path) -> io::Result<(File, bool, bool)> {
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        // A pipe that nobody reads fails here, and does not block for ever, nor does one that is full.
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    let metadata = file.metadata()?;
    let is_cut = metadata.is_file() && metadata.len() > 0 && {
        let mut last = [0];
        let mut reader = fs::File::open(path)?;
        reader.seek(SeekFrom::End(-1))?;
        reader.read_exact(&mut last)?;
        last != *b"\n"
    };
    Ok((file, metadata.is_file(), is_cut))
}

struct Writer {
    path: PathBuf,
    reopener: Reopener,
    file: File,
    is_regular: bool,
    queue: Arc<Queue>,
    counters: Arc<Counters>,
    /// The line that is being written, and how much of it stands in the file.
    line: Vec<u8>,
    written: usize,
    health: Health,
}

impl Writer {
    fn run(&mut self) {
        while let Some(batches) = self.queue.next_blocking() {
            self.deliver(&batches);
        }
    }

    /// Writes the batches as one line, however long it takes; the queue drops what does not fit in the
    /// meantime.
    fn deliver(&mut self, batches: &[Arc<Batch>]) {
        if self.reopener.was_asked() {
            self.reopen();
        }
        let spans = spans_in(batches);
        if let Err(error) = json::write(batches, &mut self.line) {
            // Nothing in a request can fail to serialise; if it does, it is this request that is lost.
            tracing::warn!("spans do not serialise: {error}");
            self.counters.add(Count::FileFailedWrites, 1);
            self.line.clear();
            return;
        }
        self.line.push(b'\n');
        loop {
            match self.write_rest() {
                Ok(()) => break,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.queue.deadline().is_some_and(|d| Instant::now() >= d) {
                        return self.stopped(spans);
                    }
                    thread::sleep(PIPE);
                }
                Err(error) => {
                    self.counters.add(Count::FileFailedWrites, 1);
                    let lost = self.counters.get(Count::FileQueueFull);
                    self.health.failed(&error.to_string(), lost);
                    if self.queue.deadline().is_some() {
                        return self.stopped(spans);
                    }
                    self.queue.sleep_blocking(Instant::now() + AGAIN);
                }
            }
        }
        self.health.worked(self.counters.get(Count::FileQueueFull));
        self.line.clear();
        self.written = 0;
        self.counters.add(Count::FileWritten, spans);
    }

    /// Opens the file anew: it may have been moved away. One that cannot be opened is written on as
    /// before.
    fn reopen(&mut self) {
        match open(&self.path) {
            Ok((file, is_regular, is_cut)) => {
                (self.file, self.is_regular) = (file, is_regular);
                if is_cut {
                    self.line.push(b'\n');
                }
            }
            Err(error) => tracing::warn!(
                "cannot open {} anew: {error}; spans go on to the file that was open",
                self.path.display()
            ),
        }
    }

    /// Goes on where the write before stopped, so that a disk that was full leaves no line broken.
    fn write_rest(&mut self) -> io::Result<()> {
        while self.written < self.line.len() {
            match self.file.write(&self.line[self.written..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => self.written += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Gives up a line for good, and takes back what stands of it in the file.
    fn stopped(&mut self, spans: u64) {
        self.counters.add(Count::FileStopped, spans);
        if self.is_regular
            && self.written > 0
            && let Ok(metadata) = self.file.metadata()
        {
            let _ = self
                .file
                .set_len(metadata.len().saturating_sub(self.written as u64));
        }
        self.line.clear();
        self.written = 0;
    }
}

#[cfg(test)]
mod tests;
