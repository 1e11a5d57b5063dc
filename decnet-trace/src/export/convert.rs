//! Spans as OTLP has them: grouped by the process that they come from.

use std::{collections::hash_map::Entry, sync::Arc};

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, ArrayValue, InstrumentationScope, KeyValue, any_value},
    resource::v1::Resource as ProtoResource,
    trace::v1::{
        ResourceSpans, ScopeSpans, Span as ProtoSpan, Status as ProtoStatus,
        span::SpanKind as Kind, status::StatusCode,
    },
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

/// One request with all spans of the batches.
pub(super) fn request(batches: &[Arc<Batch>]) -> ExportTraceServiceRequest {
    let mut resource_spans: Vec<ResourceSpans> = Vec::new();
    let mut places: FxHashMap<*const Resource, usize> = FxHashMap::default();
    for span in batches.iter().flat_map(|batch| &batch.spans) {
        let place = match places.entry(Arc::as_ptr(&span.resource)) {
            Entry::Occupied(place) => *place.get(),
            Entry::Vacant(vacant) => {
                resource_spans.push(of_resource(&span.resource));
                *vacant.insert(resource_spans.len() - 1)
            }
        };
        resource_spans[place].scope_spans[0]
            .spans
            .push(of_span(span));
    }
    ExportTraceServiceRequest { resource_spans }
}

fn of_resource(resource: &Resource) -> ResourceSpans {
    ResourceSpans {
        resource: Some(self::resource(resource)),
        scope_spans: vec![ScopeSpans {
            scope: Some(scope()),
            spans: Vec::new(),
            schema_url: SCHEMA_URL.to_owned(),
        }],
        schema_url: SCHEMA_URL.to_owned(),
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

fn of_span(span: &Span) -> ProtoSpan {
    let remote = if span.parent_is_remote {
        FLAG_IS_REMOTE
    } else {
        0
    };
    ProtoSpan {
        trace_id: span.trace_id.to_vec(),
        span_id: span.span_id.to_vec(),
        trace_state: span.trace_state.to_string(),
        parent_span_id: match span.parent_id {
            [0, 0, 0, 0, 0, 0, 0, 0] => Vec::new(),
            id => id.to_vec(),
        },
        flags: u32::from(span.trace_flags) | FLAG_HAS_IS_REMOTE | remote,
        name: span.name.to_string(),
        kind: match span.kind {
            SpanKind::Server => Kind::Server,
            SpanKind::Client => Kind::Client,
        } as i32,
        start_time_unix_nano: span.start,
        end_time_unix_nano: span.end,
        attributes: span
            .attributes
            .iter()
            .map(|(name, value)| attribute(name, value))
            .collect(),
        status: Some(match &span.status {
            Status::Unset => ProtoStatus::default(),
            Status::Error(message) => ProtoStatus {
                message: message.to_string(),
                code: StatusCode::Error as i32,
            },
        }),
        ..ProtoSpan::default()
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

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;
    use crate::export::tests::{resource, span};

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
        let name = |name: &str| {
            let name = Value::Str(Cow::Owned(name.to_owned()));
            attribute("service.name", &name)
        };
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
