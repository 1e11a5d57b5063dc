//! Why a process's native frames are followed by frame pointers though tables were asked for.

use std::{error::Error, fmt};

use decnet_trace_common::unwind::{SEGMENTS_MAX, UNWOUND_MAX};

/// The most processes of which this is told; of further ones, the counters alone know.
const LACKS_MAX: usize = 64;

/// Why a process lacks a table, or all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lack {
    /// The memory that tables may take, in bytes, is used up.
    Memory(u64),
    /// As many processes have tables as can.
    Processes,
    /// As many files have tables as can.
    Files(usize),
    /// The process's code lies in more pieces than its list holds.
    Segments,
    /// The kernel refused; why.
    Kernel(String),
}

impl Lack {
    /// What the kernel refused, with the whole chain of reasons.
    pub(super) fn refused(error: &dyn Error) -> Self {
        let mut why = error.to_string();
        let mut source = error.source();
        while let Some(error) = source {
            let reason = error.to_string();
            if !why.contains(&reason) {
                why = format!("{why}: {reason}");
            }
            source = error.source();
        }
        Self::Kernel(why)
    }
}

impl fmt::Display for Lack {
    /// Why, and what to do.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory(bytes) => write!(
                f,
                "the {:.1} MiB for unwind tables are used up; allow more with --unwind-memory",
                *bytes as f64 / f64::from(1 << 20)
            ),
            Self::Processes => write!(
                f,
                "{UNWOUND_MAX} processes have unwind tables, and more cannot; sample fewer at once"
            ),
            Self::Files(most) => write!(
                f,
                "{most} files have unwind tables, and more cannot; sample fewer processes at once"
            ),
            Self::Segments => write!(
                f,
                "its code lies in more than {SEGMENTS_MAX} pieces; those at the highest addresses have no unwind tables"
            ),
            Self::Kernel(why) => write!(
                f,
                "the kernel refused unwind tables ({why}); ask for less with --unwind-memory, or none with 0"
            ),
        }
    }
}

/// Who lacks what: each process with the first reason there was.
#[derive(Debug, Default)]
pub(super) struct Lacks(Vec<(u32, Lack)>);

impl Lacks {
    pub(super) fn add(&mut self, tgid: u32, lack: Lack) {
        let is_known = self.0.iter().any(|(known, _)| *known == tgid);
        if !is_known && self.0.len() < LACKS_MAX {
            self.0.push((tgid, lack));
        }
    }

    pub(super) fn all(&self) -> &[(u32, Lack)] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A process is told once, with what it lacked first, and the list has an end.
    #[test]
    fn told_once_and_bounded() {
        let mut lacks = Lacks::default();
        for tgid in 1..1000 {
            lacks.add(tgid, Lack::Segments);
            lacks.add(tgid, Lack::Processes);
        }
        assert_eq!(lacks.all().len(), LACKS_MAX);
        assert!(lacks.all().iter().all(|(_, lack)| *lack == Lack::Segments));
        assert_eq!(lacks.all()[1].0, 2);
    }

    /// What the kernel refused is told down to the error that it gave.
    #[test]
    fn refusals_have_their_reasons() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot make a map")]
        struct Outer(#[source] std::io::Error);

        let error = std::io::Error::other(Outer(std::io::Error::from_raw_os_error(libc::ENOMEM)));
        let told = Lack::refused(&error).to_string();
        assert!(
            told.contains("cannot make a map: Cannot allocate memory"),
            "{told}"
        );
        assert!(told.contains("--unwind-memory"), "{told}");
    }
}
