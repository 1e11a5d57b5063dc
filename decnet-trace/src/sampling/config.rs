//! What is sampled, and how.

use std::time::Duration;

use crate::error::{Error, Result};

/// Which traces are kept. Without a change everything is, but for traces that their caller did not
/// sample.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingConfig {
    /// The first decision, by OpenTelemetry's own samplers. What it drops is gone.
    pub sampler: Sampler,
    /// The share of the traces that pass the sampler which is kept, of those that the rules below say
    /// nothing about.
    pub ratio: f64,
    /// The number of traces per second that is kept of them, spread over routes.
    pub traces_per_second: Option<f64>,
    /// Keep traces with an error in them, whatever the two above say.
    pub keep_errors: bool,
    /// Keep slow requests likewise.
    pub keep_slow: Option<Slow>,
    /// How long a trace that would be dropped is kept back, in case an error shows up in it.
    pub hold: Duration,
    /// The most spans that are kept back.
    pub held_max: usize,
}

impl Default for SamplingConfig {
    fn default() -> Self {
        Self {
            sampler: Sampler::default(),
            ratio: 1.0,
            traces_per_second: None,
            keep_errors: true,
            keep_slow: None,
            hold: Duration::from_secs(2),
            held_max: 8192,
        }
    }
}

impl SamplingConfig {
    /// Whether a trace is ever dropped after the sampler's decision.
    pub(super) fn has_tail(&self) -> bool {
        self.ratio < 1.0 || self.traces_per_second.is_some()
    }
}

/// A sampler of OpenTelemetry's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampler {
    /// A caller's decision is followed.
    pub parent_based: bool,
    /// What is decided without one.
    pub root: Root,
}

/// What is decided where nobody has decided before.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Root {
    /// Everything is kept.
    AlwaysOn,
    /// Nothing is.
    AlwaysOff,
    /// This share is, told by the trace's id.
    Ratio(f64),
}

impl Default for Sampler {
    fn default() -> Self {
        Self {
            parent_based: true,
            root: Root::AlwaysOn,
        }
    }
}

impl Sampler {
    /// The sampler that `OTEL_TRACES_SAMPLER` and `OTEL_TRACES_SAMPLER_ARG` name.
    ///
    /// # Errors
    ///
    /// When there is none of that name, or its argument is no ratio.
    pub fn parse(name: &str, argument: Option<&str>) -> Result<Self> {
        let root = name.strip_prefix("parentbased_").unwrap_or(name);
        let root = match root {
            "always_on" => Root::AlwaysOn,
            "always_off" => Root::AlwaysOff,
            "traceidratio" => Root::Ratio(match argument.filter(|text| !text.is_empty()) {
                Some(text) => ratio(text)?,
                None => 1.0,
            }),
            _ => {
                return Err(Error::usage(format_args!(
                    "the sampler {name:?} is not known; say \"always_on\", \"always_off\" or \"traceidratio\", with \"parentbased_\" in front to follow the caller's decision"
                )));
            }
        };
        Ok(Self {
            parent_based: name.starts_with("parentbased_"),
            root,
        })
    }
}

/// A ratio from 0 to 1.
///
/// # Errors
///
/// When it is none.
pub fn ratio(text: &str) -> Result<f64> {
    let ratio = text.trim().parse().ok();
    ratio
        .filter(|ratio| (0.0..=1.0).contains(ratio))
        .ok_or_else(|| {
            Error::usage(format_args!(
                "{text:?} is no share of traces; give a number from 0 to 1, such as 0.1"
            ))
        })
}

/// What counts as slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slow {
    /// Longer than this.
    Over(Duration),
    /// Longer than 99 of 100 requests of the same route in the last minutes.
    RouteP99,
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    /// The names of the specification are read, and others refused with the names that are.
    #[test]
    fn reads_samplers() {
        for (name, argument, parent_based, root) in [
            ("always_on", None, false, Root::AlwaysOn),
            ("always_off", Some("0.5"), false, Root::AlwaysOff),
            ("traceidratio", Some("0.25"), false, Root::Ratio(0.25)),
            ("traceidratio", None, false, Root::Ratio(1.0)),
            ("parentbased_always_on", None, true, Root::AlwaysOn),
            ("parentbased_always_off", None, true, Root::AlwaysOff),
            (
                "parentbased_traceidratio",
                Some(" 1 "),
                true,
                Root::Ratio(1.0),
            ),
        ] {
            let want = Sampler { parent_based, root };
            assert_eq!(Sampler::parse(name, argument).unwrap(), want, "{name}");
        }
        for (name, argument) in [
            ("jaeger_remote", None),
            ("", None),
            ("traceidratio", Some("2")),
            ("traceidratio", Some("NaN")),
            ("parentbased_traceidratio", Some("ten")),
        ] {
            let error = Sampler::parse(name, argument).unwrap_err();
            assert_eq!(error.exit(), crate::error::Exit::Usage, "{name}");
        }
    }
}
