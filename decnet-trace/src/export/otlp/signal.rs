//! What OTLP carries: each signal has a request, a response and a place of its own, and they share a
//! connection.

use opentelemetry_proto::tonic::collector::{
    logs::v1::{ExportLogsServiceRequest, ExportLogsServiceResponse},
    metrics::v1::{ExportMetricsServiceRequest, ExportMetricsServiceResponse},
    trace::v1::ExportTraceServiceResponse,
};

use crate::export::protobuf::Encoded;

/// A signal of OTLP.
pub(super) trait Signal {
    /// The request.
    type Request: prost::Message + Clone + 'static;
    /// The response.
    type Response: prost::Message + Default + 'static;
    /// What is behind the endpoint for OTLP/HTTP.
    const HTTP_PATH: &'static str;
    /// The method of OTLP/gRPC.
    const GRPC_PATH: &'static str;

    /// How many items the server rejected of a request that it accepted, and its remark.
    fn partial(response: Self::Response) -> Option<(i64, String)>;
}

/// Spans.
pub(super) struct Traces;

/// Metrics.
pub(super) struct Metrics;

/// Log records.
pub(super) struct Logs;

impl Signal for Traces {
    type Request = Encoded;
    type Response = ExportTraceServiceResponse;
    const HTTP_PATH: &'static str = "/v1/traces";
    const GRPC_PATH: &'static str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

    fn partial(response: Self::Response) -> Option<(i64, String)> {
        let partial = response.partial_success?;
        Some((partial.rejected_spans, partial.error_message))
    }
}

impl Signal for Metrics {
    type Request = ExportMetricsServiceRequest;
    type Response = ExportMetricsServiceResponse;
    const HTTP_PATH: &'static str = "/v1/metrics";
    const GRPC_PATH: &'static str =
        "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export";

    fn partial(response: Self::Response) -> Option<(i64, String)> {
        let partial = response.partial_success?;
        Some((partial.rejected_data_points, partial.error_message))
    }
}

impl Signal for Logs {
    type Request = ExportLogsServiceRequest;
    type Response = ExportLogsServiceResponse;
    const HTTP_PATH: &'static str = "/v1/logs";
    const GRPC_PATH: &'static str = "/opentelemetry.proto.collector.logs.v1.LogsService/Export";

    fn partial(response: Self::Response) -> Option<(i64, String)> {
        let partial = response.partial_success?;
        Some((partial.rejected_log_records, partial.error_message))
    }
}
