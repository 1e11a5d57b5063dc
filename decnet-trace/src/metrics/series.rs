//! The series of one instrument of one process: found without an allocation, bounded in number.

use std::{
    hash::{Hash, Hasher},
    sync::Arc,
};

use hashbrown::{HashTable, hash_table::Entry};
use rustc_hash::FxHasher;

use super::exponential::ExponentialHistogram;

/// How many exemplars a series keeps.
pub const EXEMPLARS: usize = 4;

/// The attribute of the series that all share for which there was no room.
pub const OVERFLOW: &str = "otel.metric.overflow";

/// The most bounds of explicit buckets.
const BOUNDS_MAX: usize = 14;

/// An attribute's value, of low cardinality.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Value<'a> {
    /// Text.
    Text(&'a str),
    /// A whole number.
    Int(i64),
    /// Yes or no.
    Bool(bool),
}

/// An attribute of a series.
pub type Attribute<'a> = (&'static str, Value<'a>);

/// An attribute's value, kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// Text.
    Text(Box<str>),
    /// A whole number.
    Int(i64),
    /// Yes or no.
    Bool(bool),
}

impl Kept {
    /// The value.
    pub fn value(&self) -> Value<'_> {
        match self {
            Self::Text(text) => Value::Text(text),
            Self::Int(n) => Value::Int(*n),
            Self::Bool(b) => Value::Bool(*b),
        }
    }
}

/// A span that stands for the values of a series.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Exemplar {
    /// Its value.
    pub value: f64,
    /// When it ended, in nanoseconds since the Unix epoch.
    pub time: u64,
    /// Its trace.
    pub trace_id: [u8; 16],
    /// The span.
    pub span_id: [u8; 8],
}

/// A histogram and the attributes that it is of.
#[derive(Clone, Debug)]
pub struct Series {
    /// The attributes; shared with copies of it.
    pub attributes: Arc<[(&'static str, Kept)]>,
    /// Its values.
    pub histogram: ExponentialHistogram,
    /// Its values again, in the buckets that the conventions advise; the last is for those above all.
    pub explicit: [u64; BOUNDS_MAX + 1],
    exemplars: [Option<Exemplar>; EXEMPLARS],
    /// How many were offered since the last reading.
    offered: u64,
}

impl Series {
    fn new(attributes: &[Attribute<'_>]) -> Self {
        Self {
            attributes: attributes
                .iter()
                .map(|&(name, value)| {
                    let kept = match value {
                        Value::Text(text) => Kept::Text(text.into()),
                        Value::Int(n) => Kept::Int(n),
                        Value::Bool(b) => Kept::Bool(b),
                    };
                    (name, kept)
                })
                .collect(),
            histogram: ExponentialHistogram::default(),
            explicit: [0; BOUNDS_MAX + 1],
            exemplars: [None; EXEMPLARS],
            offered: 0,
        }
    }

    fn is(&self, attributes: &[Attribute<'_>]) -> bool {
        self.attributes.len() == attributes.len()
            && self
                .attributes
                .iter()
                .zip(attributes)
                .all(|((name, kept), wanted)| (*name, kept.value()) == *wanted)
    }

    /// Counts a value; `bounds` are those of the explicit buckets.
    pub(super) fn record(&mut self, value: f64, bounds: &[f64]) {
        self.histogram.record(value);
        let at = bounds.partition_point(|bound| value > *bound);
        self.explicit[at.min(BOUNDS_MAX)] += 1;
    }

    /// Offers an exemplar: all that were offered since the last reading are equally likely to stay.
    pub(super) fn offer(&mut self, exemplar: Exemplar, rng: &mut fastrand::Rng) {
        self.offered += 1;
        let at = match self.offered {
            n if n <= EXEMPLARS as u64 => n - 1,
            n => rng.u64(..n),
        };
        if let Some(slot) = self.exemplars.get_mut(at as usize) {
            *slot = Some(exemplar);
        }
    }

    /// The exemplars of after `since`, in nanoseconds since the Unix epoch.
    pub fn exemplars(&self, since: u64) -> impl Iterator<Item = &Exemplar> {
        self.exemplars
            .iter()
            .flatten()
            .filter(move |exemplar| exemplar.time > since)
    }

    /// They have been read: new ones may take their places.
    pub(super) fn read(&mut self) {
        self.offered = 0;
    }
}

/// All series of one instrument of one process.
#[derive(Clone, Debug, Default)]
pub struct Family {
    table: HashTable<Series>,
    overflow: Option<Box<Series>>,
}

impl Family {
    /// The series with these attributes; the one for all others where there is no room for it any more.
    pub(super) fn find(&mut self, attributes: &[Attribute<'_>], room: bool) -> &mut Series {
        let is_it = |series: &Series| series.is(attributes);
        match self.table.entry(hash_of(attributes), is_it, rehash) {
            Entry::Occupied(series) => series.into_mut(),
            Entry::Vacant(place) if room => place.insert(Series::new(attributes)).into_mut(),
            Entry::Vacant(_) => self.overflow.get_or_insert_with(|| {
                let mark = [(OVERFLOW, Value::Bool(true))];
                Box::new(Series::new(&mark))
            }),
        }
    }

    /// All series, the one for all others too.
    pub fn iter(&self) -> impl Iterator<Item = &Series> {
        self.table.iter().chain(self.overflow.as_deref())
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Series> {
        self.table.iter_mut().chain(self.overflow.as_deref_mut())
    }

    /// How many series have attributes of their own.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether nothing was recorded.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty() && self.overflow.is_none()
    }
}

/// The names need not be hashed: those of one instrument hardly differ.
fn hash_of(attributes: &[Attribute<'_>]) -> u64 {
    let mut hasher = FxHasher::default();
    for (_, value) in attributes {
        value.hash(&mut hasher);
    }
    hasher.finish()
}

fn rehash(series: &Series) -> u64 {
    let mut hasher = FxHasher::default();
    for (_, kept) in &*series.attributes {
        kept.value().hash(&mut hasher);
    }
    hasher.finish()
}
