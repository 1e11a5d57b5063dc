//! Spans as OTLP/JSON (<https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding>): what
//! `opentelemetry-proto`'s messages serialise as, written from the spans themselves, for making those messages
//! costs several times as much as writing them.

use std::sync::Arc;

use opentelemetry_proto::tonic::{
    common::v1::InstrumentationScope, resource::v1::Resource as ProtoResource,
};
use serde::{Serialize, Serializer, ser::SerializeStruct as _};

use super::{
    convert::{self, SCHEMA_URL},
    queue::Batch,
};
use crate::span::{Attribute, Span, Value};

/// Writes one request with all spans of the batches.
pub(super) fn write(batches: &[Arc<Batch>], out: &mut Vec<u8>) -> serde_json::Result<()> {
    let groups = convert::grouped(batches).into_iter();
    let resource_spans = groups
        .map(|group| ResourceSpans {
            resource: convert::resource(group.resource),
            scope_spans: [ScopeSpans {
                scope: convert::scope(),
                spans: group.spans.into_iter().map(SpanJson).collect(),
                schema_url: SCHEMA_URL,
            }],
            schema_url: SCHEMA_URL,
        })
        .collect();
    serde_json::to_writer(out, &Request { resource_spans })
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    resource_spans: Vec<ResourceSpans<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ResourceSpans<'a> {
    resource: ProtoResource,
    scope_spans: [ScopeSpans<'a>; 1],
    schema_url: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ScopeSpans<'a> {
    scope: InstrumentationScope,
    spans: Vec<SpanJson<'a>>,
    schema_url: &'static str,
}

struct SpanJson<'a>(&'a Span);

impl Serialize for SpanJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(span) = self;
        let none: [(); 0] = [];
        let (message, code) = convert::status(&span.status);
        let mut out = serializer.serialize_struct("Span", 16)?;
        out.serialize_field("traceId", &Hex(&span.trace_id))?;
        out.serialize_field("spanId", &Hex(&span.span_id))?;
        out.serialize_field("traceState", &span.trace_state)?;
        out.serialize_field("parentSpanId", &Hex(convert::parent(span)))?;
        out.serialize_field("flags", &convert::flags(span))?;
        out.serialize_field("name", &span.name)?;
        out.serialize_field("kind", &convert::kind(span.kind))?;
        out.serialize_field("startTimeUnixNano", &Text(span.start))?;
        out.serialize_field("endTimeUnixNano", &Text(span.end))?;
        out.serialize_field("attributes", &Attributes(&span.attributes))?;
        out.serialize_field("droppedAttributesCount", &0)?;
        out.serialize_field("events", &none)?;
        out.serialize_field("droppedEventsCount", &0)?;
        out.serialize_field("links", &none)?;
        out.serialize_field("droppedLinksCount", &0)?;
        out.serialize_field("status", &StatusJson { message, code })?;
        out.end()
    }
}

#[derive(Serialize)]
struct StatusJson<'a> {
    message: &'a str,
    code: i32,
}

struct Attributes<'a>(&'a [Attribute]);

impl Serialize for Attributes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(|(key, value)| AttributeJson {
            key,
            value: ValueJson(value),
        }))
    }
}

#[derive(Serialize)]
struct AttributeJson<'a> {
    key: &'static str,
    value: ValueJson<'a>,
}

struct ValueJson<'a>(&'a Value);

impl Serialize for ValueJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut out = serializer.serialize_struct("AnyValue", 1)?;
        match self.0 {
            Value::Str(text) => out.serialize_field("stringValue", text),
            Value::Int(number) => out.serialize_field("intValue", &Text(number)),
            Value::Float(number) => out.serialize_field("doubleValue", number),
            Value::Bool(yes) => out.serialize_field("boolValue", yes),
            Value::StrList(values) => out.serialize_field("arrayValue", &ArrayJson { values }),
        }?;
        out.end()
    }
}

#[derive(Serialize)]
struct ArrayJson<'a> {
    #[serde(serialize_with = "texts")]
    values: &'a [smol_str::SmolStr],
}

fn texts<S: Serializer>(texts: &[smol_str::SmolStr], serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct One<'a> {
        string_value: &'a str,
    }
    serializer.collect_seq(texts.iter().map(|string_value| One { string_value }))
}

/// A number of 64 bits, which JSON has as a text.
struct Text<T>(T);

impl<T: std::fmt::Display> Serialize for Text<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// An id of up to 16 bytes.
struct Hex<'a>(&'a [u8]);

impl Serialize for Hex<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0; 32];
        let pairs = text.chunks_exact_mut(2);
        for (byte, pair) in self.0.iter().zip(pairs) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 0xf)];
        }
        let text = text.get(..2 * self.0.len()).unwrap_or(&text);
        // Of digits alone.
        serializer.serialize_str(std::str::from_utf8(text).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use proptest::prelude::*;

    use super::*;
    use crate::export::convert::tests::{batches, request};

    proptest! {
        /// What is written is to the letter what the messages serialise as.
        #[test]
        fn agrees_with_the_messages(batches in batches()) {
            let mut written = Vec::new();
            write(&batches, &mut written).unwrap();
            let wanted = serde_json::to_string(&request(&batches)).unwrap();
            prop_assert_eq!(String::from_utf8(written).unwrap(), wanted);
        }
    }
}
