//! Values that are checked as they are read, so that an error names their place.

use std::{fmt, net::SocketAddr, str::FromStr, time::Duration};

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

use crate::{
    export::otlp,
    policy::{self, rules, template::Template},
    sampling,
    store::{AGE_MIN, SIZE_MIN},
};

/// Declares a text that is checked.
macro_rules! checked {
    ($(#[doc = $doc:literal])+ $name:ident, $check:expr) => {
        $(#[doc = $doc])+
        #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                let check: fn(&str) -> Result<(), String> = $check;
                check(&text).map(|()| Self(text))
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.0
            }
        }
    };
}

checked! {
    /// A glob; empty: everything.
    Glob,
    |text| match globset::Glob::new(text) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("{}; write a glob, as \"shop*\"", error.kind())),
    }
}

checked! {
    /// A regular expression, as the crate `regex` understands them.
    Pattern,
    |text| rules::compile(text).map(drop)
}

checked! {
    /// A header that may be kept.
    Header,
    policy::check_header
}

checked! {
    /// A route: `/users/{id}`, `/files/{path:path}`.
    RouteText,
    |text| match (text.starts_with('/'), Template::new(text)) {
        (true, Some(_)) => Ok(()),
        (false, _) => Err("a route begins with /".to_owned()),
        (true, None) => Err("the route is too long".to_owned()),
    }
}

checked! {
    /// Headers: `name=value,name=value`.
    HeaderList,
    |text| text.parse::<otlp::Headers>().map(drop).map_err(|error| error.to_string())
}

checked! {
    /// The URL that telemetry is sent to; empty: none.
    Endpoint,
    |text| match text {
        "" => Ok(()),
        text => otlp::OtlpConfig::new(text).check().map_err(|error| error.to_string()),
    }
}

checked! {
    /// OTLP's protocol.
    Protocol,
    |text| text.parse::<otlp::Protocol>().map(drop).map_err(|error| error.to_string())
}

checked! {
    /// OTLP's protocol for one signal; empty: the same as for all.
    SignalProtocol,
    |text| match text {
        "" => Ok(()),
        text => text.parse::<otlp::Protocol>().map(drop).map_err(|error| error.to_string()),
    }
}

checked! {
    /// A compression.
    Compression,
    |text| text.parse::<otlp::Compression>().map(drop).map_err(|error| error.to_string())
}

checked! {
    /// A sampler of OpenTelemetry's.
    Sampler,
    |text| sampling::Sampler::parse(text, None).map(drop).map_err(|error| error.to_string())
}

checked! {
    /// The ratio of a sampler; empty: 1.
    SamplerArg,
    |text| match text {
        "" => Ok(()),
        text => sampling::ratio(text).map(drop).map_err(|error| error.to_string()),
    }
}

checked! {
    /// What counts as slow: milliseconds, or `p99`; empty: nothing.
    KeepSlow,
    |text| slow(text).map(drop)
}

checked! {
    /// An address and a port; empty: none.
    Address,
    |text| match text.is_empty() || text.parse::<SocketAddr>().is_ok() {
        true => Ok(()),
        false => Err(format!("{text:?} is no address with a port; write 127.0.0.1:9464")),
    }
}

checked! {
    /// How long the store keeps what it has.
    StoreAge,
    |text| age(text).map(drop)
}

checked! {
    /// How large the store's files may be.
    StoreSize,
    |text| size(text).map(drop)
}

impl StoreAge {
    /// The store's own default.
    pub(super) fn default_one() -> Self {
        Self("24h".to_owned())
    }
}

impl StoreSize {
    /// The store's own default.
    pub(super) fn default_one() -> Self {
        Self("512MiB".to_owned())
    }
}

/// An age, read.
pub(super) fn age(text: &str) -> Result<Duration, String> {
    let age = humantime::parse_duration(text)
        .map_err(|error| format!("{text:?} is no age: {error}; write 24h, or 7days"))?;
    match age < AGE_MIN {
        true => Err(format!(
            "{text:?} is too short an age; write {} or more",
            humantime::format_duration(AGE_MIN)
        )),
        false => Ok(age),
    }
}

/// A size in bytes, read.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let size: ByteSize = text
        .parse()
        .map_err(|error| format!("{text:?} is no size: {error}; write 512MiB, or 2GB"))?;
    match size.as_u64() < SIZE_MIN {
        true => Err(format!(
            "{text:?} is too small a size; write {} or more",
            ByteSize(SIZE_MIN)
        )),
        false => Ok(size.as_u64()),
    }
}

impl Sampler {
    /// OpenTelemetry's own default.
    pub(super) fn default_one() -> Self {
        Self("parentbased_always_on".to_owned())
    }
}

/// What counts as slow, read.
pub(super) fn slow(text: &str) -> Result<Option<sampling::Slow>, String> {
    match text {
        "" => Ok(None),
        "p99" => Ok(Some(sampling::Slow::RouteP99)),
        text => text
            .parse()
            .ok()
            .filter(|n: &f64| n.is_finite() && *n > 0.0)
            .map(|ms| {
                let seconds = ms.min(1e12) / 1e3;
                Some(sampling::Slow::Over(Duration::from_secs_f64(seconds)))
            })
            .ok_or_else(|| format!("{text:?} is not slow; give milliseconds, such as 500, or p99")),
    }
}

/// A share, from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Ratio(pub f64);

impl Ratio {
    /// All.
    pub const ONE: Self = Self(1.0);
}

impl TryFrom<f64> for Ratio {
    type Error = String;

    fn try_from(ratio: f64) -> Result<Self, String> {
        match (0.0..=1.0).contains(&ratio) {
            true => Ok(Self(ratio)),
            false => Err(format!("{ratio} is no share; give a number from 0 to 1")),
        }
    }
}

impl From<Ratio> for f64 {
    fn from(ratio: Ratio) -> Self {
        ratio.0
    }
}

/// So many a second; 0: all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct PerSecond(pub f64);

impl TryFrom<f64> for PerSecond {
    type Error = String;

    fn try_from(rate: f64) -> Result<Self, String> {
        match rate.is_finite() && rate >= 0.0 {
            true => Ok(Self(rate)),
            false => Err(format!(
                "{rate} is no rate; give a number above 0, or 0 for all"
            )),
        }
    }
}

impl From<PerSecond> for f64 {
    fn from(rate: PerSecond) -> Self {
        rate.0
    }
}

/// So many per cent.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Percent(pub f64);

impl TryFrom<f64> for Percent {
    type Error = String;

    fn try_from(percent: f64) -> Result<Self, String> {
        match percent.is_finite() && percent >= 0.0 {
            true => Ok(Self(percent)),
            false => Err(format!("{percent} is no share; give per cent, such as 5")),
        }
    }
}

impl From<Percent> for f64 {
    fn from(percent: Percent) -> Self {
        percent.0
    }
}

impl Protocol {
    /// gRPC.
    pub(super) fn grpc() -> Self {
        Self("grpc".to_owned())
    }
}

impl Compression {
    /// No compression.
    pub(super) fn none() -> Self {
        Self("none".to_owned())
    }
}

/// A length of time: `500ms`, `10s`, `5m`, `24h`, `7d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Time(pub Duration);

impl Time {
    /// So many seconds.
    pub const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }
}

/// From a number and its unit.
const UNITS: &[(&str, u64)] = &[
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1000),
    ("ms", 1),
];

impl FromStr for Time {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let at = text
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len());
        let (number, unit) = text.split_at(at);
        let unit = UNITS.iter().find(|(name, _)| *name == unit.trim());
        unit.zip(number.parse::<u64>().ok())
            .and_then(|((_, unit), number)| number.checked_mul(*unit))
            .map(|milliseconds| Self(Duration::from_millis(milliseconds)))
            .ok_or_else(|| {
                format!("{text:?} is no length of time; write 500ms, 10s, 5m, 24h or 7d")
            })
    }
}

impl TryFrom<String> for Time {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Time> for String {
    fn from(value: Time) -> Self {
        value.to_string()
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        let unit = UNITS
            .iter()
            .find(|(_, unit)| milliseconds >= *unit && milliseconds.is_multiple_of(*unit));
        match unit {
            Some((name, unit)) => write!(f, "{}{name}", milliseconds / unit),
            None => f.write_str("0s"),
        }
    }
}

/// How much of a client's address is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientAddress {
    /// All of it.
    #[default]
    Whole,
    /// The network.
    Cut,
    /// A keyed hash.
    Hashed,
}

/// A place that a rule of redaction is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// The path of a URL.
    Path,
    /// The query of a URL.
    Query,
    /// `User-Agent`
    UserAgent,
    /// The text of a database statement.
    Statement,
    /// The value of a header.
    Header,
}

impl From<Place> for rules::Place {
    fn from(place: Place) -> Self {
        match place {
            Place::Path => Self::Path,
            Place::Query => Self::Query,
            Place::UserAgent => Self::UserAgent,
            Place::Statement => Self::Statement,
            Place::Header => Self::Header,
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    /// Lengths of time are read and written in the largest unit that fits.
    #[test]
    fn reads_times() {
        for (text, milliseconds, shown) in [
            ("500ms", 500, "500ms"),
            ("1500ms", 1500, "1500ms"),
            ("60s", 60_000, "1m"),
            ("24h", 86_400_000, "1d"),
            ("0s", 0, "0s"),
        ] {
            let time: Time = text.parse().unwrap();
            assert_eq!(
                (time.0.as_millis(), time.to_string().as_str()),
                (milliseconds, shown)
            );
        }
        for bad in ["", "10", "s", "-1s", "1w", "99999999999999999999d"] {
            assert!(bad.parse::<Time>().is_err(), "{bad}");
        }
    }
}
