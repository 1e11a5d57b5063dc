//! The files that people already open, each written from a [`Profile`] alone.

use std::io::{self, Write};

use super::{Profile, label::Style};

pub mod flamegraph;
pub mod folded;
mod marshal;
pub mod pprof;
pub mod pstats;
pub mod speedscope;

/// A file format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// An SVG that a browser opens; search and zoom work in it.
    Flamegraph,
    /// Folded stacks: a line for each stack, with its count.
    Folded,
    /// `profile.proto`, compressed with gzip.
    Pprof,
    /// <https://www.speedscope.app>
    Speedscope,
    /// What Python's `pstats` loads.
    Pstats,
}

impl Format {
    /// All formats.
    pub const ALL: [Self; 5] = [
        Self::Flamegraph,
        Self::Folded,
        Self::Pprof,
        Self::Speedscope,
        Self::Pstats,
    ];

    /// The name by which the command line knows it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Flamegraph => "flamegraph",
            Self::Folded => "folded",
            Self::Pprof => "pprof",
            Self::Speedscope => "speedscope",
            Self::Pstats => "pstats",
        }
    }

    /// How names of such files end, as a rule.
    pub const fn extension(self) -> &'static str {
        match self {
            Self::Flamegraph => "svg",
            Self::Folded => "folded",
            Self::Pprof => "pb.gz",
            Self::Speedscope => "speedscope.json",
            Self::Pstats => "pstats",
        }
    }
}

/// Writes a profile in a format. `style` says how frames read in the flamegraph and in folded stacks, and
/// which lines and paths speedscope shows; pprof and pstats keep all apart by themselves.
///
/// # Errors
///
/// When the writer fails.
pub fn write(
    profile: &Profile,
    format: Format,
    style: &Style,
    out: &mut dyn Write,
) -> io::Result<()> {
    match format {
        Format::Flamegraph => flamegraph::write(profile, style, out),
        Format::Folded => folded::write(profile, style, out),
        Format::Pprof => pprof::write(profile, out),
        Format::Speedscope => speedscope::write(profile, style, out),
        Format::Pstats => pstats::write(profile, out),
    }
}
