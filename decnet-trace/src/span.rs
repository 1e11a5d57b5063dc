//! Spans as they leave the policy: everything to the right of here (sinks) knows these types alone.

use std::{borrow::Cow, sync::Arc};

use smol_str::SmolStr;

/// A span's kind, as in OpenTelemetry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanKind {
    /// The process answered a request.
    Server,
    /// The process made a request.
    Client,
}

/// An attribute's value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Text.
    Str(SmolStr),
    /// A whole number.
    Int(i64),
    /// A number.
    Float(f64),
    /// Yes or no.
    Bool(bool),
    /// A list of texts.
    StrList(Box<[SmolStr]>),
}

/// Spans are made of these by the million: what they take is what a span takes.
const _: () = assert!(size_of::<Attribute>() == 40);

/// An attribute: a name of OpenTelemetry's semantic conventions, or one beginning with `decnet.`.
pub type Attribute = (&'static str, Value);

/// A span's status, as in OpenTelemetry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// Nothing to say.
    Unset,
    /// It failed, with a description (empty where the attributes say it all).
    Error(SmolStr),
}

/// A traced process, as OpenTelemetry describes what telemetry comes from.
#[derive(Clone, Debug, PartialEq)]
pub struct Resource {
    /// The process (host pid).
    pub tgid: u32,
    /// `service.name`
    pub service_name: String,
    /// All attributes, `service.name` among them.
    pub attributes: Vec<(Cow<'static, str>, Value)>,
}

impl Resource {
    /// `service.instance.id`, where it has one.
    pub fn instance(&self) -> Option<&str> {
        self.attributes
            .iter()
            .find_map(|(name, value)| match value {
                Value::Str(text) if name == "service.instance.id" => Some(text.as_str()),
                _ => None,
            })
    }

    /// Whether it is the same process under the same name, whatever else is known of the two by now.
    pub fn is_same(&self, other: &Self) -> bool {
        self.tgid == other.tgid
            && self.service_name == other.service_name
            && self.instance() == other.instance()
    }
}

/// Bits of W3C Trace Context's `trace-flags`.
pub mod trace_flags {
    /// The trace is recorded (level 1).
    pub const SAMPLED: u8 = 1;
    /// The low 56 bits of the trace's id are random (level 2).
    pub const RANDOM: u8 = 2;
}

/// A span ready for the sinks: sampled, normalised, redacted.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// The trace's id.
    pub trace_id: [u8; 16],
    /// The span's own id.
    pub span_id: [u8; 8],
    /// The parent span's id; all zero for a root.
    pub parent_id: [u8; 8],
    /// Whether the parent is in another process.
    pub parent_is_remote: bool,
    /// The W3C trace state: as it came in, but for what sampling says there.
    pub trace_state: Box<str>,
    /// W3C trace flags, see [`trace_flags`].
    pub trace_flags: u8,
    /// The span's name, of low cardinality.
    pub name: SmolStr,
    /// The kind.
    pub kind: SpanKind,
    /// Start, in nanoseconds since the Unix epoch.
    pub start: u64,
    /// End, in nanoseconds since the Unix epoch.
    pub end: u64,
    /// The attributes.
    pub attributes: Vec<Attribute>,
    /// The status.
    pub status: Status,
    /// The process.
    pub resource: Arc<Resource>,
}

/// What is needed of a span to put others under it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpanRef {
    /// The trace's id.
    pub trace_id: [u8; 16],
    /// The span's own id.
    pub span_id: [u8; 8],
    /// The W3C trace state.
    pub trace_state: Box<str>,
    /// W3C trace flags.
    pub trace_flags: u8,
}

impl Span {
    /// What is needed to put others under it.
    pub fn reference(&self) -> SpanRef {
        SpanRef {
            trace_id: self.trace_id,
            span_id: self.span_id,
            trace_state: self.trace_state.clone(),
            trace_flags: self.trace_flags,
        }
    }
}
