//! What OTLP's messages say of spans: grouped by the process that they come from. [`super::json`] and
//! [`super::protobuf`] write them.

use std::{ptr, sync::Arc};

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, ArrayValue, InstrumentationScope, KeyValue, any_value},
    resource::v1::Resource as ProtoResource,
    trace::v1::{span::SpanKind as Kind, status::StatusCode},
};
use rustc_hash::FxHashMap;

use super::queue::Batch;
use crate::span::{Resource, Span, SpanKind, Status, Value};

/// The scope of all telemetry.
const SCOPE: &str = "decnet-trace";

/// The schema that the attributes follow.
pub(super) const SCHEMA_URL: &str = "https://opentelemetry.io/schemas/1.37.0";

/// Bits of a span's flags above those of W3C: whether the parent is remote is known; it is.
const FLAG_HAS_IS_REMOTE: u32 = 1 << 8;
const FLAG_IS_REMOTE: u32 = 1 << 9;

/// The spans of a process.
pub(super) struct Group<'a> {
    pub(super) resource: &'a Resource,
    pub(super) spans: Vec<&'a Span>,
}

/// All spans of the batches, each process's together, in the order in which processes come first.
pub(super) fn grouped(batches: &[Arc<Batch>]) -> Vec<Group<'_>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    let mut places: FxHashMap<*const Resource, usize> = FxHashMap::default();
    let mut last = (ptr::null(), 0);
    for span in batches.iter().flat_map(|batch| &batch.spans) {
        let resource = Arc::as_ptr(&span.resource);
        // Mostly there are many of one.
        if last.0 != resource {
            let place = *places.entry(resource).or_insert_with(|| {
                groups.push(Group {
                    resource: &span.resource,
                    spans: Vec::new(),
                });
                groups.len() - 1
            });
            last = (resource, place);
        }
        groups[last.1].spans.push(span);
    }
    groups
}

/// What a span's flags say: those of W3C, and where its parent is.
pub(super) fn flags(span: &Span) -> u32 {
    let remote = match span.parent_is_remote {
        true => FLAG_IS_REMOTE,
        false => 0,
    };
    u32::from(span.trace_flags) | FLAG_HAS_IS_REMOTE | remote
}

/// The number of a span's kind.
pub(super) const fn kind(kind: SpanKind) -> i32 {
    match kind {
        SpanKind::Server => Kind::Server as i32,
        SpanKind::Client => Kind::Client as i32,
    }
}

/// The parent's id; none for a root.
pub(super) fn parent(span: &Span) -> &[u8] {
    match &span.parent_id {
        [0, 0, 0, 0, 0, 0, 0, 0] => &[],
        id => id,
    }
}

/// A status's message and its code's number.
pub(super) fn status(status: &Status) -> (&str, i32) {
    match status {
        Status::Unset => ("", StatusCode::Unset as i32),
        Status::Error(message) => (message, StatusCode::Error as i32),
    }
}

/// What telemetry comes from.
pub(super) fn resource(resource: &Resource) -> ProtoResource {
    ProtoResource {
        attributes: resource
            .attributes
            .iter()
            .map(|(name, value)| attribute(name, value))
            .collect(),
        ..ProtoResource::default()
    }
}

/// The scope of all telemetry.
pub(super) fn scope() -> InstrumentationScope {
    InstrumentationScope {
        name: SCOPE.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    }
}

/// An attribute.
pub(super) fn attribute(name: &str, value: &Value) -> KeyValue {
    let value = match value {
        Value::Str(text) => any_value::Value::StringValue(text.to_string()),
        Value::Int(n) => any_value::Value::IntValue(*n),
        Value::Float(n) => any_value::Value::DoubleValue(*n),
        Value::Bool(b) => any_value::Value::BoolValue(*b),
        Value::StrList(list) => any_value::Value::ArrayValue(ArrayValue {
            values: list
                .iter()
                .map(|text| AnyValue {
                    value: Some(any_value::Value::StringValue(text.to_string())),
                })
                .collect(),
        }),
    };
    KeyValue {
        key: name.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}

/// The messages themselves, to hold against what is written without them.
#[cfg(test)]
pub(super) mod tests {
    use opentelemetry_proto::tonic::{
        collector::trace::v1::ExportTraceServiceRequest,
        trace::v1::{ResourceSpans, ScopeSpans, Span as ProtoSpan, Status as ProtoStatus},
    };
    use proptest::prelude::*;
    use smol_str::SmolStr;

    use super::*;
    use crate::export::tests::{resource, span};

    /// One request with all spans of the batches.
    pub(in crate::export) fn request(batches: &[Arc<Batch>]) -> ExportTraceServiceRequest {
        let resource_spans = grouped(batches).into_iter().map(|group| ResourceSpans {
            resource: Some(super::resource(group.resource)),
            scope_spans: vec![ScopeSpans {
                scope: Some(scope()),
                spans: group.spans.into_iter().map(of_span).collect(),
                schema_url: SCHEMA_URL.to_owned(),
            }],
            schema_url: SCHEMA_URL.to_owned(),
        });
        ExportTraceServiceRequest {
            resource_spans: resource_spans.collect(),
        }
    }

    fn of_span(span: &Span) -> ProtoSpan {
        let (message, code) = status(&span.status);
        ProtoSpan {
            trace_id: span.trace_id.to_vec(),
            span_id: span.span_id.to_vec(),
            trace_state: span.trace_state.to_string(),
            parent_span_id: parent(span).to_vec(),
            flags: flags(span),
            name: span.name.to_string(),
            kind: kind(span.kind),
            start_time_unix_nano: span.start,
            end_time_unix_nano: span.end,
            attributes: span
                .attributes
                .iter()
                .map(|(name, value)| attribute(name, value))
                .collect(),
            status: Some(ProtoStatus {
                message: message.to_owned(),
                code,
            }),
            ..ProtoSpan::default()
        }
    }

    /// Batches of any spans, of up to three processes.
    pub(in crate::export) fn batches() -> impl Strategy<Value = Vec<Arc<Batch>>> {
        let value = prop_oneof![
            ".{0,30}".prop_map(|text| Value::Str(text.into())),
            any::<i64>().prop_map(Value::Int),
            any::<f64>().prop_map(Value::Float),
            any::<bool>().prop_map(Value::Bool),
            prop::collection::vec(".{0,5}".prop_map(SmolStr::from), 0..3)
                .prop_map(|list| Value::StrList(list.into())),
        ];
        let names = prop::sample::select(vec!["url.path", "decnet.x", "", "q\"\u{e9}"]);
        let span = (
            any::<([u8; 16], [u8; 8], bool, bool, u8)>(),
            any::<(u64, u64)>(),
            prop_oneof![Just([0; 8]), any::<[u8; 8]>()],
            (".{0,30}", ".{0,200}"),
            prop::collection::vec((names, value), 0..12),
            prop_oneof![Just(None), ".{0,9}".prop_map(Some)],
            0..3_usize,
        );
        let spans = prop::collection::vec(span, 1..20).prop_map(|spans| {
            let resources = ["a", "b", ""].map(resource);
            let spans = spans.into_iter().map(
                |(ids, (start, end), parent_id, (state, name), attributes, error, of)| Span {
                    trace_id: ids.0,
                    span_id: ids.1,
                    parent_id,
                    parent_is_remote: ids.2,
                    trace_state: state.into(),
                    trace_flags: ids.4,
                    name: name.into(),
                    kind: match ids.3 {
                        true => SpanKind::Server,
                        false => SpanKind::Client,
                    },
                    start,
                    end,
                    attributes,
                    status: error.map_or(Status::Unset, |error| Status::Error(error.into())),
                    resource: Arc::clone(&resources[of]),
                },
            );
            Arc::new(Batch::new(spans.collect()))
        });
        prop::collection::vec(spans, 1..3)
    }

    /// Each process's spans stand under its own resource, once, however they are mixed.
    #[test]
    fn groups_by_process() {
        let (a, b) = (resource("a"), resource("b"));
        let of = |n, resource: &Arc<Resource>| Span {
            resource: Arc::clone(resource),
            ..span(n)
        };
        let batches = [
            Arc::new(Batch::new(vec![of(1, &a), of(2, &b)])),
            Arc::new(Batch::new(vec![of(3, &a)])),
        ];
        let request = request(&batches);
        let found: Vec<_> = request
            .resource_spans
            .iter()
            .map(|group| {
                let resource = group.resource.clone().unwrap_or_default();
                let starts: Vec<_> = group.scope_spans[0]
                    .spans
                    .iter()
                    .map(|span| span.start_time_unix_nano)
                    .collect();
                (resource.attributes[0].clone(), starts)
            })
            .collect();
        let name = |name: &str| attribute("service.name", &Value::Str(name.into()));
        assert_eq!(found, [(name("a"), vec![1, 3]), (name("b"), vec![2])]);
    }

    /// A root has no parent id at all, and a span under a caller says that the caller is elsewhere.
    #[test]
    fn says_where_the_parent_is() {
        let root = of_span(&span(1));
        assert_eq!(root.parent_span_id, Vec::<u8>::new());
        assert_eq!(root.flags, 0x101);
        let child = of_span(&Span {
            parent_id: [7; 8],
            parent_is_remote: true,
            ..span(1)
        });
        assert_eq!(child.parent_span_id, vec![7; 8]);
        assert_eq!(child.flags, 0x301);
    }
}
