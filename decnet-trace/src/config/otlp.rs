//! What the settings mean for OTLP: what is said of all signals, and what of each.

use std::path::PathBuf;

use super::{Otlp, OtlpSignal, Settings, apply::secret};
use crate::{
    error::{Error, Result},
    export::otlp::{Headers, Instead, OtlpConfig},
};

/// Where spans, metrics and log records are sent, if anywhere.
pub(super) fn config(
    settings: &Settings,
    variable: &dyn Fn(&str) -> Option<String>,
    warnings: &mut Vec<String>,
) -> Result<Option<OtlpConfig>> {
    let otlp = &settings.otlp;
    let mut config = general(otlp, warnings)?;
    let mut instead = |section: &str, signal: &OtlpSignal| -> Result<_> {
        if *signal == OtlpSignal::default() {
            return Ok(None);
        }
        let of_signal = signal_alone(section, signal, &config, warnings)?;
        Ok(Some(Box::new(of_signal)))
    };
    config.instead = Instead {
        traces: instead("otlp_traces", &settings.otlp_traces)?,
        metrics: instead("otlp_metrics", &settings.otlp_metrics)?,
        logs: instead("otlp_logs", &settings.otlp_logs)?,
    };
    let every = otlp.metrics_every.0;
    config.metrics_every = (!every.is_zero()).then_some(every);
    config.logs = otlp.logs;
    config.apply_lists(variable)?;
    config.check()?;
    Ok(config.sends_anything().then_some(config))
}

/// What is said of all signals.
fn general(otlp: &Otlp, warnings: &mut Vec<String>) -> Result<OtlpConfig> {
    Ok(OtlpConfig {
        protocol: otlp.protocol.as_str().parse()?,
        headers: headers("otlp", otlp.headers.as_str(), &otlp.headers_file, warnings)?,
        timeout: otlp.timeout.0,
        compression: otlp.compression.as_str().parse()?,
        certificate: path(&otlp.certificate),
        identity: identity("otlp", &otlp.client_certificate, &otlp.client_key)?,
        ..OtlpConfig::new(otlp.endpoint.as_str())
    })
}

/// What is said of one signal, over what is said of all.
fn signal_alone(
    section: &str,
    signal: &OtlpSignal,
    general: &OtlpConfig,
    warnings: &mut Vec<String>,
) -> Result<OtlpConfig> {
    let mut config = general.clone();
    if !signal.endpoint.as_str().is_empty() {
        config.endpoint = signal.endpoint.as_str().to_owned();
        config.endpoint_is_whole = true;
    }
    if !signal.protocol.as_str().is_empty() {
        config.protocol = signal.protocol.as_str().parse()?;
    }
    let own = headers(
        section,
        signal.headers.as_str(),
        &signal.headers_file,
        warnings,
    )?;
    if own != Headers::default() {
        config.headers = own;
    }
    if !signal.timeout.0.is_zero() {
        config.timeout = signal.timeout.0;
    }
    if !signal.compression.as_str().is_empty() {
        config.compression = signal.compression.as_str().parse()?;
    }
    if let Some(certificate) = path(&signal.certificate) {
        config.certificate = Some(certificate);
    }
    let identity = identity(section, &signal.client_certificate, &signal.client_key)?;
    if identity.is_some() {
        config.identity = identity;
    }
    Ok(config)
}

fn path(text: &str) -> Option<PathBuf> {
    (!text.is_empty()).then(|| PathBuf::from(text))
}

fn headers(section: &str, text: &str, file: &str, warnings: &mut Vec<String>) -> Result<Headers> {
    let mut headers: Headers = text.parse()?;
    if !file.is_empty() {
        let text = secret(&format!("{section}.headers_file"), file, warnings)?;
        let lines: Vec<_> = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .collect();
        let more: Headers = lines
            .join(",")
            .parse()
            .map_err(|error| Error::usage(format_args!("{file}: {error}")))?;
        headers.0.extend(more.0);
    }
    Ok(headers)
}

fn identity(section: &str, certificate: &str, key: &str) -> Result<Option<(PathBuf, PathBuf)>> {
    match (path(certificate), path(key)) {
        (Some(chain), Some(key)) => Ok(Some((chain, key))),
        (None, None) => Ok(None),
        _ => Err(Error::usage(format_args!(
            "a client's certificate needs its key: set both {section}.client_certificate and {section}.client_key"
        ))),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use std::time::Duration;

    use super::*;
    use crate::{
        config::Loader,
        export::otlp::{Compression, Protocol},
    };

    fn read(variables: &[(&str, &str)]) -> Result<Option<OtlpConfig>> {
        let loader = Loader {
            file: Some("/dev/null".into()),
            flags: Vec::new(),
        };
        let variable = |name: &str| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let settings = loader.load(variable)?.settings;
        settings.otlp(&variable, &mut Vec::new())
    }

    /// Each signal's own variables come before the general ones, and its endpoint is used as it is; what
    /// it says nothing about is as for all.
    #[test]
    fn signals_have_variables_of_their_own() {
        for (name, signal) in [("TRACES", 0), ("METRICS", 1), ("LOGS", 2)] {
            let own = |key: &str| format!("OTEL_EXPORTER_OTLP_{name}_{key}");
            let (endpoint, protocol, headers) = (own("ENDPOINT"), own("PROTOCOL"), own("HEADERS"));
            let (timeout, compression) = (own("TIMEOUT"), own("COMPRESSION"));
            let config = read(&[
                ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://all:4317"),
                ("OTEL_EXPORTER_OTLP_HEADERS", "a=1"),
                ("OTEL_EXPORTER_OTLP_TIMEOUT", "2500"),
                ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
                ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca"),
                (&endpoint, "http://own:4318/in"),
                (&protocol, "http/protobuf"),
                (&headers, "b=2"),
                (&timeout, "700"),
                (&compression, "none"),
            ])
            .unwrap()
            .unwrap();
            let instead = [
                &config.instead.traces,
                &config.instead.metrics,
                &config.instead.logs,
            ];
            for (at, of) in instead.into_iter().enumerate() {
                assert_eq!(of.is_some(), at == signal, "{name}");
            }
            let of = instead[signal].as_deref().unwrap();
            assert_eq!(of.endpoint, "http://own:4318/in");
            assert!(of.endpoint_is_whole);
            assert_eq!(of.protocol, Protocol::HttpProtobuf);
            assert_eq!(of.headers.0, [("b".to_owned(), "2".to_owned())]);
            assert_eq!(of.timeout, Duration::from_millis(700));
            assert_eq!(of.compression, Compression::None);
            assert_eq!(of.certificate, Some("/ca".into()));
            assert_eq!(config.endpoint, "http://all:4317");
            assert_eq!(config.compression, Compression::Gzip);
            assert_eq!(config.timeout, Duration::from_millis(2500));
        }
    }

    /// An endpoint for one signal alone sends that one alone; without any there is nothing, and `none`
    /// for all signals is nothing as well.
    #[test]
    fn sends_what_has_an_endpoint() {
        let alone = read(&[("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://m")]);
        let alone = alone.unwrap().unwrap();
        assert!(alone.sends_metrics() && !alone.sends_spans());
        assert_eq!(read(&[]).unwrap(), None);
        assert_eq!(
            read(&[
                ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://all"),
                ("OTEL_TRACES_EXPORTER", "none"),
                ("OTEL_METRICS_EXPORTER", "none"),
                ("OTEL_LOGS_EXPORTER", "none"),
            ])
            .unwrap(),
            None
        );
    }

    /// A signal's key without a certificate, and a URL that is none, are refused by their names.
    #[test]
    fn refuses_what_makes_no_sense() {
        for (name, value, hint) in [
            (
                "OTEL_EXPORTER_OTLP_LOGS_CLIENT_KEY",
                "/k",
                "otlp_logs.client_certificate",
            ),
            ("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "nonsense", "nonsense"),
            (
                "OTEL_EXPORTER_OTLP_LOGS_TIMEOUT",
                "10s",
                "OTEL_EXPORTER_OTLP_LOGS_TIMEOUT",
            ),
            (
                "OTEL_EXPORTER_OTLP_LOGS_PROTOCOL",
                "http/json",
                "OTEL_EXPORTER_OTLP_LOGS_PROTOCOL",
            ),
        ] {
            let error = read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://all"), (name, value)]);
            let error = error.unwrap_err();
            assert!(error.to_string().contains(hint), "{error}");
            assert_eq!(error.exit(), crate::error::Exit::Usage);
        }
    }
}
