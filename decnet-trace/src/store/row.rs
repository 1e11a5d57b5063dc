//! A span as a row, and back.
//!
//! What most spans have stands in columns. The other attributes are JSON: those that are the same for
//! many spans in a set that they share, and those that differ from one span to the next with the span.

use std::hash::{BuildHasher, Hash as _, Hasher as _};

use rusqlite::Row;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value as Json};

use crate::span::{Attribute, Span, SpanKind, Status, Value};

/// A text longer than this is not shared: it is likely to differ.
const SHARED_TEXT_MAX: usize = 512;

/// The description of a span's status, where it has one, among the attributes.
const STATUS_DESCRIPTION: &str = "otel.status_description";

/// What stands in columns of a span's row.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Columns<'a> {
    pub(super) method: Option<&'a str>,
    pub(super) route: Option<&'a str>,
    pub(super) status: Option<i64>,
    /// What failed; empty where only that it failed is known.
    pub(super) error: Option<&'a str>,
    pub(super) link: Option<&'a str>,
    pub(super) path: Option<&'a str>,
    pub(super) query: Option<&'a str>,
    pub(super) client_address: Option<&'a str>,
    pub(super) peer_address: Option<&'a str>,
    pub(super) peer_port: Option<i64>,
    pub(super) request_size: Option<i64>,
    pub(super) response_size: Option<i64>,
    pub(super) request_body_size: Option<i64>,
    pub(super) response_body_size: Option<i64>,
    /// Nanoseconds.
    pub(super) queue: Option<i64>,
}

/// A span, taken apart.
#[derive(Debug)]
pub(super) struct Parts<'a> {
    pub(super) columns: Columns<'a>,
    span: &'a Span,
    /// Which attributes are shared, and which the span's own, by their place.
    shared: u64,
    own: u64,
    has_description: bool,
}

/// The attribute that a route stands in.
const fn route_key(kind: SpanKind) -> &'static str {
    match kind {
        SpanKind::Server => "http.route",
        SpanKind::Client => "url.template",
    }
}

/// A kind as it is stored.
pub(super) const fn kind_name(kind: SpanKind) -> &'static str {
    match kind {
        SpanKind::Server => "server",
        SpanKind::Client => "client",
    }
}

/// How many attributes of a span can be told apart; there are fewer.
const PLACES: usize = u64::BITS as usize;

impl<'a> Parts<'a> {
    pub(super) fn of(span: &'a Span) -> Self {
        let mut columns = Columns::default();
        let (mut shared, mut own) = (0_u64, 0_u64);
        for (place, (name, value)) in span.attributes.iter().take(PLACES).enumerate() {
            if columns.take(span.kind, name, value) {
                continue;
            }
            match is_shared(name, value) {
                true => shared |= 1 << place,
                false => own |= 1 << place,
            }
        }
        let has_description = match &span.status {
            Status::Unset => {
                // An error's type without an error is an attribute like any other.
                if columns.error.take().is_some()
                    && let Some(place) = place_of(span, "error.type")
                {
                    own |= 1 << place;
                }
                false
            }
            Status::Error(description) => {
                columns.error = columns.error.or(Some(""));
                !description.is_empty()
            }
        };
        Self {
            columns,
            span,
            shared,
            own,
            has_description,
        }
    }

    /// A number that is the same for spans with the same shared attributes; `None` where there are
    /// none.
    pub(super) fn shared_key(&self, state: &impl BuildHasher) -> Option<u64> {
        if self.shared == 0 {
            return None;
        }
        let mut hasher = state.build_hasher();
        for (name, value) in self.attributes(self.shared) {
            name.hash(&mut hasher);
            match value {
                Value::Str(text) => text.hash(&mut hasher),
                Value::Int(number) => number.hash(&mut hasher),
                Value::Float(number) => number.to_bits().hash(&mut hasher),
                Value::Bool(yes) => yes.hash(&mut hasher),
                Value::StrList(list) => list.hash(&mut hasher),
            }
        }
        Some(hasher.finish())
    }

    /// Writes the shared attributes as a JSON object.
    pub(super) fn write_shared(&self, out: &mut Vec<u8>) {
        out.clear();
        write_object(self.attributes(self.shared), None, out);
    }

    /// Writes the span's own attributes as a JSON object, `with_shared` all of them; empty where there
    /// are none.
    pub(super) fn write_own(&self, with_shared: bool, out: &mut Vec<u8>) {
        out.clear();
        let places = if with_shared {
            self.own | self.shared
        } else {
            self.own
        };
        let description = match &self.span.status {
            Status::Error(description) if self.has_description => Some(&**description),
            _ => None,
        };
        if places != 0 || description.is_some() {
            write_object(self.attributes(places), description, out);
        }
    }

    fn attributes(&self, places: u64) -> impl Iterator<Item = &'a Attribute> {
        let all = self.span.attributes.iter().take(PLACES).enumerate();
        all.filter(move |(place, _)| places & 1 << place != 0)
            .map(|(_, attribute)| attribute)
    }
}

fn place_of(span: &Span, name: &str) -> Option<usize> {
    let mut names = span.attributes.iter().take(PLACES);
    names.position(|(other, _)| *other == name)
}

impl<'a> Columns<'a> {
    /// Takes an attribute that has a column, if its value is of the column's type.
    fn take(&mut self, kind: SpanKind, name: &str, value: &'a Value) -> bool {
        let text = match name {
            "http.request.method" => &mut self.method,
            "error.type" => &mut self.error,
            "decnet.link" => &mut self.link,
            "url.path" => &mut self.path,
            "url.query" => &mut self.query,
            "client.address" => &mut self.client_address,
            "network.peer.address" => &mut self.peer_address,
            _ if name == route_key(kind) => &mut self.route,
            _ => return self.take_number(name, value),
        };
        match value {
            Value::Str(value) if text.is_none() => *text = Some(value),
            _ => return false,
        }
        true
    }

    fn take_number(&mut self, name: &str, value: &Value) -> bool {
        let number = match name {
            "http.response.status_code" => &mut self.status,
            "network.peer.port" => &mut self.peer_port,
            "http.request.size" => &mut self.request_size,
            "http.response.size" => &mut self.response_size,
            "http.request.body.size" => &mut self.request_body_size,
            "http.response.body.size" => &mut self.response_body_size,
            "decnet.queue.duration" => &mut self.queue,
            _ => return false,
        };
        let value = match value {
            Value::Int(value) if name != "decnet.queue.duration" => *value,
            Value::Float(seconds) if name == "decnet.queue.duration" => {
                let nanoseconds = (seconds * 1e9).round() as i64;
                if seconds_of(nanoseconds) != *seconds {
                    return false;
                }
                nanoseconds
            }
            _ => return false,
        };
        if number.is_some() {
            return false;
        }
        *number = Some(value);
        true
    }
}

fn seconds_of(nanoseconds: i64) -> f64 {
    nanoseconds as f64 / 1e9
}

/// Whether other spans are likely to have the same value.
fn is_shared(name: &str, value: &Value) -> bool {
    match value {
        Value::Float(_) => false,
        Value::Int(_) => matches!(name, "server.port" | "network.local.port"),
        Value::Bool(_) => true,
        Value::Str(text) => name != "url.full" && text.len() <= SHARED_TEXT_MAX,
        Value::StrList(list) => {
            list.iter().map(|text| text.len()).sum::<usize>() <= SHARED_TEXT_MAX
        }
    }
}

fn write_object<'a>(
    attributes: impl Iterator<Item = &'a Attribute>,
    description: Option<&str>,
    out: &mut Vec<u8>,
) {
    let attributes = attributes.map(|(name, value)| (*name, Shown(value)));
    let object = serde_json::Serializer::new(&mut *out).collect_map(Chained {
        attributes,
        description,
    });
    // Texts and numbers serialise, and a vector takes all bytes.
    debug_assert!(object.is_ok(), "{object:?}");
}

/// Attributes, and the status's description after them.
struct Chained<'a, I> {
    attributes: I,
    description: Option<&'a str>,
}

enum Entry<'a> {
    Value(Shown<'a>),
    Text(&'a str),
}

impl<'a, I: Iterator<Item = (&'static str, Shown<'a>)>> Iterator for Chained<'a, I> {
    type Item = (&'static str, Entry<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        if let Some((name, value)) = self.attributes.next() {
            return Some((name, Entry::Value(value)));
        }
        let text = self.description.take()?;
        Some((STATUS_DESCRIPTION, Entry::Text(text)))
    }
}

impl Serialize for Entry<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Value(value) => value.serialize(serializer),
            Self::Text(text) => serializer.serialize_str(text),
        }
    }
}

/// A value as JSON.
pub(super) struct Shown<'a>(pub(super) &'a Value);

impl Serialize for Shown<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Str(text) => serializer.serialize_str(text),
            Value::Int(number) => serializer.serialize_i64(*number),
            Value::Float(number) => serializer.serialize_f64(*number),
            Value::Bool(yes) => serializer.serialize_bool(*yes),
            Value::StrList(list) => serializer.collect_seq(list),
        }
    }
}

/// A span as it was stored.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredSpan {
    /// Its number in the store: spans are numbered as they arrive.
    pub id: i64,
    /// The trace's id.
    pub trace_id: [u8; 16],
    /// The span's own id.
    pub span_id: [u8; 8],
    /// The parent's id.
    pub parent_id: Option<[u8; 8]>,
    /// Whether the parent is in another process.
    pub parent_is_remote: bool,
    /// Whether it is a request that the process served; else a call that it made.
    pub is_request: bool,
    /// The service.
    pub service: String,
    /// The process.
    pub pid: u32,
    /// The span's name.
    pub name: String,
    /// `server` or `client`.
    pub kind: String,
    /// Start, in nanoseconds since the Unix epoch.
    pub start: u64,
    /// Nanoseconds.
    pub duration: u64,
    /// The status of the response.
    pub status: Option<i64>,
    /// What failed, if it did; empty where only that is known.
    pub error: Option<String>,
    /// All attributes.
    pub attributes: Map<String, Json>,
    /// The W3C trace state.
    pub trace_state: String,
}

/// What [`StoredSpan::from_row`] reads, in its order.
pub(super) const SELECT: &str = "
    SELECT s.id, s.trace_id, s.span_id, s.parent_id, s.parent_is_remote, s.is_request, o.service, r.pid,
        o.name, o.kind, s.start, s.duration, s.status, s.error, s.trace_state, o.method, o.route, s.link,
        s.path, s.query, s.client_address, s.peer_address, s.peer_port, s.request_size, s.response_size,
        s.request_body_size, s.response_body_size, s.queue, s.attributes, a.attributes
    FROM spans s
        JOIN operations o ON o.id = s.operation
        JOIN resources r ON r.id = s.resource
        LEFT JOIN attribute_sets a ON a.id = s.attribute_set";

impl StoredSpan {
    pub(super) fn from_row(row: &Row<'_>) -> rusqlite::Result<Self> {
        let mut attributes = Map::new();
        for column in [29, 28] {
            if let Some(text) = row.get_ref(column)?.as_str_or_null()?
                && let Ok(some) = serde_json::from_str::<Map<String, Json>>(text)
            {
                attributes.extend(some);
            }
        }
        let kind: String = row.get(9)?;
        let route = match kind.as_str() {
            "server" => route_key(SpanKind::Server),
            _ => route_key(SpanKind::Client),
        };
        let texts = [
            (15, "http.request.method"),
            (16, route),
            (13, "error.type"),
            (17, "decnet.link"),
            (18, "url.path"),
            (19, "url.query"),
            (20, "client.address"),
            (21, "network.peer.address"),
        ];
        for (column, name) in texts {
            match row.get_ref(column)?.as_str_or_null()? {
                // Of a failure of which nothing is known there is no type.
                Some("") if name == "error.type" => {}
                Some(text) => {
                    attributes.insert(name.to_owned(), text.into());
                }
                None => {}
            }
        }
        let numbers = [
            (12, "http.response.status_code"),
            (22, "network.peer.port"),
            (23, "http.request.size"),
            (24, "http.response.size"),
            (25, "http.request.body.size"),
            (26, "http.response.body.size"),
        ];
        for (column, name) in numbers {
            if let Some(number) = row.get::<_, Option<i64>>(column)? {
                attributes.insert(name.to_owned(), number.into());
            }
        }
        if let Some(queue) = row.get::<_, Option<i64>>(27)? {
            attributes.insert("decnet.queue.duration".to_owned(), seconds_of(queue).into());
        }
        let unsigned = |column| {
            row.get::<_, i64>(column)
                .map(|n| u64::try_from(n).unwrap_or(0))
        };
        Ok(Self {
            id: row.get(0)?,
            trace_id: row.get(1)?,
            span_id: row.get(2)?,
            parent_id: row.get(3)?,
            parent_is_remote: row.get(4)?,
            is_request: row.get(5)?,
            service: row.get(6)?,
            pid: row.get(7)?,
            name: row.get(8)?,
            kind,
            start: unsigned(10)?,
            duration: unsigned(11)?,
            status: row.get(12)?,
            error: row.get(13)?,
            trace_state: row.get::<_, Option<String>>(14)?.unwrap_or_default(),
            attributes,
        })
    }

    /// When it ended, in nanoseconds since the Unix epoch.
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.duration)
    }

    /// A text attribute.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.attributes.get(name)?.as_str()
    }

    /// How long it waited before it was read, in nanoseconds, where that is known.
    pub fn queue(&self) -> Option<u64> {
        let seconds = self.attributes.get("decnet.queue.duration")?.as_f64()?;
        Some((seconds * 1e9) as u64)
    }
}
