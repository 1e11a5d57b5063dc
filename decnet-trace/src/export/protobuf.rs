//! Spans as OTLP's Protobuf: what `opentelemetry-proto`'s messages encode as, written from the spans
//! themselves, for making those messages costs several times as much as encoding them.
//!
//! Fields are numbered as in <https://github.com/open-telemetry/opentelemetry-proto>
//! (`opentelemetry/proto/{collector/trace,trace,common}/v1`); what has its default value is left out.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes};
use prost::{
    DecodeError, Message,
    encoding::{DecodeContext, WireType, encode_varint, encoded_len_varint, skip_field},
};
use smol_str::SmolStr;

use super::{
    convert::{self, SCHEMA_URL},
    queue::Batch,
};
use crate::span::{Attribute, Span, Value};

/// How many bytes a span takes, about.
const SPAN_BYTES: usize = 1024;

/// A message that is encoded already. Its clones share it.
#[derive(Clone, Debug)]
pub(super) struct Encoded(Bytes);

impl Message for Encoded {
    fn encode_raw(&self, out: &mut impl BufMut) {
        out.put_slice(&self.0);
    }

    fn encoded_len(&self) -> usize {
        self.0.len()
    }

    fn clear(&mut self) {
        self.0.clear();
    }

    /// It is written, and never read.
    fn merge_field(
        &mut self,
        field: u32,
        wire_type: WireType,
        from: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        skip_field(wire_type, field, from, context)
    }
}

/// One `ExportTraceServiceRequest` with all spans of the batches.
pub(super) fn request(batches: &[Arc<Batch>]) -> Encoded {
    let mut request = Vec::new();
    for group in convert::grouped(batches) {
        // ScopeSpans: scope = 1, spans = 2, schema_url = 3.
        let mut scope_spans = Vec::with_capacity(group.spans.len() * SPAN_BYTES);
        message(1, &convert::scope(), &mut scope_spans);
        for of in group.spans {
            let (len, attributes) = span_len(of);
            length_delimited(2, len, &mut scope_spans);
            span(of, attributes, &mut scope_spans);
        }
        text(3, SCHEMA_URL, &mut scope_spans);
        let resource = convert::resource(group.resource);
        // ResourceSpans: resource = 1, scope_spans = 2, schema_url = 3.
        let resource_len = resource.encoded_len();
        let len = length_delimited_len(resource_len)
            + length_delimited_len(scope_spans.len())
            + text_len(SCHEMA_URL);
        request.reserve(len + 16);
        // ExportTraceServiceRequest: resource_spans = 1.
        length_delimited(1, len, &mut request);
        message(1, &resource, &mut request);
        bytes(2, &scope_spans, &mut request);
        text(3, SCHEMA_URL, &mut request);
    }
    Encoded(request.into())
}

/// The length of a span, and of that what its attributes take.
fn span_len(span: &Span) -> (usize, usize) {
    let attributes: usize = span
        .attributes
        .iter()
        .map(|attribute| length_delimited_len(attribute_len(attribute)))
        .sum();
    let fixed64 = |value: u64| if value == 0 { 0 } else { 1 + 8 };
    // The flags are never 0, and their field's number takes two bytes.
    let len = 18
        + 10
        + text_len(&span.trace_state)
        + bytes_len(convert::parent(span))
        + text_len(&span.name)
        + 2
        + fixed64(span.start)
        + fixed64(span.end)
        + attributes
        + length_delimited_len(status_len(span))
        + 6;
    (len, attributes)
}

fn span(span: &Span, attributes: usize, out: &mut Vec<u8>) {
    out.reserve(attributes);
    bytes(1, &span.trace_id, out);
    bytes(2, &span.span_id, out);
    text(3, &span.trace_state, out);
    bytes(4, convert::parent(span), out);
    text(5, &span.name, out);
    int(6, convert::kind(span.kind), out);
    fixed64(7, span.start, out);
    fixed64(8, span.end, out);
    for attribute in &span.attributes {
        length_delimited(9, attribute_len(attribute), out);
        key_value(attribute, out);
    }
    let (status_message, code) = convert::status(&span.status);
    length_delimited(15, status_len(span), out);
    text(2, status_message, out);
    int(3, code, out);
    key(16, WireType::ThirtyTwoBit, out);
    out.put_u32_le(convert::flags(span));
}

fn status_len(span: &Span) -> usize {
    let (message, code) = convert::status(&span.status);
    text_len(message) + if code == 0 { 0 } else { 2 }
}

/// KeyValue: key = 1, value = 2.
fn attribute_len((name, value): &Attribute) -> usize {
    text_len(name) + length_delimited_len(value_len(value))
}

fn key_value((name, value): &Attribute, out: &mut Vec<u8>) {
    text(1, name, out);
    length_delimited(2, value_len(value), out);
    any_value(value, out);
}

/// AnyValue: one of string = 1, bool = 2, int = 3, double = 4, array = 5, which is there though it have its
/// default value.
fn value_len(value: &Value) -> usize {
    match value {
        Value::Str(text) => length_delimited_len(text.len()),
        Value::Bool(_) => 2,
        Value::Int(number) => 1 + encoded_len_varint(*number as u64),
        Value::Float(_) => 9,
        Value::StrList(list) => length_delimited_len(list_len(list)),
    }
}

fn any_value(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Str(text) => string_value(text, out),
        Value::Bool(yes) => {
            key(2, WireType::Varint, out);
            out.push(u8::from(*yes));
        }
        Value::Int(number) => {
            key(3, WireType::Varint, out);
            encode_varint(*number as u64, out);
        }
        Value::Float(number) => {
            key(4, WireType::SixtyFourBit, out);
            out.put_f64_le(*number);
        }
        Value::StrList(list) => {
            length_delimited(5, list_len(list), out);
            // ArrayValue: values = 1.
            for text in list {
                length_delimited(1, length_delimited_len(text.len()), out);
                string_value(text, out);
            }
        }
    }
}

fn list_len(list: &[SmolStr]) -> usize {
    list.iter()
        .map(|text| length_delimited_len(length_delimited_len(text.len())))
        .sum()
}

fn string_value(text: &str, out: &mut Vec<u8>) {
    length_delimited(1, text.len(), out);
    out.extend_from_slice(text.as_bytes());
}

/// What stands in front of a field.
fn key(field: u8, wire_type: WireType, out: &mut Vec<u8>) {
    encode_varint(u64::from(field) << 3 | wire_type as u64, out);
}

/// The same, of a field of so many bytes, and their number.
fn length_delimited(field: u8, len: usize, out: &mut Vec<u8>) {
    key(field, WireType::LengthDelimited, out);
    encode_varint(len as u64, out);
}

/// What a field of so many bytes takes with what stands in front of it, of a number below 16.
fn length_delimited_len(len: usize) -> usize {
    1 + encoded_len_varint(len as u64) + len
}

fn message(field: u8, message: &impl Message, out: &mut Vec<u8>) {
    length_delimited(field, message.encoded_len(), out);
    message.encode_raw(out);
}

fn bytes(field: u8, bytes: &[u8], out: &mut Vec<u8>) {
    if !bytes.is_empty() {
        length_delimited(field, bytes.len(), out);
        out.extend_from_slice(bytes);
    }
}

fn bytes_len(bytes: &[u8]) -> usize {
    match bytes {
        [] => 0,
        bytes => length_delimited_len(bytes.len()),
    }
}

fn text(field: u8, text: &str, out: &mut Vec<u8>) {
    bytes(field, text.as_bytes(), out);
}

fn text_len(text: &str) -> usize {
    bytes_len(text.as_bytes())
}

/// A small number.
fn int(field: u8, number: i32, out: &mut Vec<u8>) {
    if number != 0 {
        key(field, WireType::Varint, out);
        encode_varint(number as u64, out);
    }
}

fn fixed64(field: u8, number: u64, out: &mut Vec<u8>) {
    if number != 0 {
        key(field, WireType::SixtyFourBit, out);
        out.put_u64_le(number);
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use proptest::prelude::*;

    use super::*;
    use crate::export::convert::tests;

    proptest! {
        /// What is written is to the byte what the messages encode as.
        #[test]
        fn agrees_with_the_messages(batches in tests::batches()) {
            let written = request(&batches).encode_to_vec();
            let wanted = tests::request(&batches);
            // NaN is not equal to itself.
            let shown = format!("{wanted:?}");
            let understood = ExportTraceServiceRequest::decode(&*written).unwrap();
            prop_assert_eq!(format!("{understood:?}"), shown);
            prop_assert_eq!(written, wanted.encode_to_vec());
        }
    }
}
