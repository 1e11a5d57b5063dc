//! Notable events as OTLP's log records.

use std::{sync::Arc, time::Duration};

use opentelemetry_proto::tonic::{
    collector::logs::v1::ExportLogsServiceRequest,
    common::v1::{AnyValue, any_value},
    logs::v1::{LogRecord, ResourceLogs, ScopeLogs},
};
use tracing::Level;

use super::{
    Fate, Sender, signal,
    stop::{Stop, Until as _},
};
use crate::{
    export::convert::{SCHEMA_URL, resource, scope},
    metrics::agent,
    span::Resource,
    telemetry::{
        Count,
        events::{Events, Notable},
    },
};

/// How long an event waits for others to be sent with.
const DELAY: Duration = Duration::from_secs(1);

/// Sends events until the agent stops.
pub(super) async fn send(mut sender: Sender, events: Arc<Events>, stop: Stop) {
    let of = agent::resource(sender.started);
    while !(stop.deadline().is_some() && events.is_empty()) {
        stop.sleep(std::time::Instant::now() + DELAY).await;
        let taken = events.take();
        if taken.is_empty() {
            continue;
        }
        let items = taken.len() as u64;
        let request = request(&of, &taken);
        let retry_for = sender.config.retry_for;
        let fate = sender
            .deliver::<signal::Logs>(|| request.clone(), items, retry_for, &stop)
            .await;
        match fate {
            Fate::Accepted { rejected } => {
                sender.counters.add(Count::OtlpLogsSent, items - rejected);
                sender.counters.add(Count::OtlpLogsLost, rejected);
            }
            Fate::Refused | Fate::GaveUp | Fate::Stopped => {
                sender.counters.add(Count::OtlpLogsLost, items);
            }
        }
    }
    events.close();
}

fn request(of: &Resource, events: &[Notable]) -> ExportLogsServiceRequest {
    let text = |text: &str| {
        Some(AnyValue {
            value: Some(any_value::Value::StringValue(text.to_owned())),
        })
    };
    let log_records = events.iter().map(|event| {
        // <https://opentelemetry.io/docs/specs/otel/logs/data-model/#field-severitynumber>
        let (severity_number, severity_text) = match event.level {
            Level::ERROR => (17, "ERROR"),
            Level::WARN => (13, "WARN"),
            Level::INFO => (9, "INFO"),
            Level::DEBUG => (5, "DEBUG"),
            Level::TRACE => (1, "TRACE"),
        };
        LogRecord {
            time_unix_nano: event.time,
            observed_time_unix_nano: event.time,
            severity_number,
            severity_text: severity_text.to_owned(),
            body: text(&event.text),
            ..LogRecord::default()
        }
    });
    ExportLogsServiceRequest {
        resource_logs: vec![ResourceLogs {
            resource: Some(resource(of)),
            scope_logs: vec![ScopeLogs {
                scope: Some(scope()),
                log_records: log_records.collect(),
                schema_url: SCHEMA_URL.to_owned(),
            }],
            schema_url: SCHEMA_URL.to_owned(),
        }],
    }
}
