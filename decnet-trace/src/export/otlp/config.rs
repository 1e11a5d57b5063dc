//! Where spans are sent, and how.

use std::{fmt, path::PathBuf, str::FromStr, time::Duration};

use super::state::Kind;
use crate::{
    error::{Error, Result},
    export::queue::Limits,
};

/// OTLP's transports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// OTLP/gRPC.
    #[default]
    Grpc,
    /// OTLP/HTTP with binary Protobuf.
    HttpProtobuf,
}

impl FromStr for Protocol {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "grpc" => Ok(Self::Grpc),
            "http/protobuf" => Ok(Self::HttpProtobuf),
            other => Err(Error::usage(format_args!(
                "OTLP protocol {other:?} is not spoken here; say \"grpc\" or \"http/protobuf\""
            ))),
        }
    }
}

/// Compression of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// None.
    #[default]
    None,
    /// gzip.
    Gzip,
}

impl FromStr for Compression {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "none" | "" => Ok(Self::None),
            "gzip" => Ok(Self::Gzip),
            other => Err(Error::usage(format_args!(
                "OTLP compression {other:?} is not known; say \"gzip\" or \"none\""
            ))),
        }
    }
}

/// Headers sent with each request. Their values are secrets more often than not: they are not shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Headers(pub Vec<(String, String)>);

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.0.iter().map(|(name, _)| name))
            .finish()
    }
}

impl FromStr for Headers {
    type Err = Error;

    /// Reads `name=value,name=value`, the values percent-encoded, as `OTEL_EXPORTER_OTLP_HEADERS` has
    /// it.
    fn from_str(text: &str) -> Result<Self> {
        let mut headers = Vec::new();
        for pair in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let bad = |why: &str| {
                let name = pair.split('=').next().unwrap_or_default();
                Error::usage(format_args!(
                    "OTLP header {name:?} {why}; write name=value,name=value with values percent-encoded"
                ))
            };
            let (name, value) = pair.split_once('=').ok_or_else(|| bad("has no value"))?;
            let name =
                http::HeaderName::try_from(name.trim()).map_err(|_| bad("is no header name"))?;
            let value = percent_decoded(value.trim()).ok_or_else(|| bad("is not UTF-8"))?;
            http::HeaderValue::try_from(&value)
                .map_err(|_| bad("has a value that no header can"))?;
            headers.push((name.as_str().to_owned(), value));
        }
        Ok(Self(headers))
    }
}

/// Whether a signal is wanted by OTLP, by the variable that lists its exporters.
fn wanted(name: &str, variable: &impl Fn(&str) -> Option<String>) -> Result<bool> {
    let text = variable(name).unwrap_or_default();
    let mut names = text
        .split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty());
    let known = names
        .clone()
        .find(|name| !matches!(*name, "otlp" | "none" | "console" | "prometheus"));
    match known {
        Some(other) => Err(Error::usage(format_args!(
            "{name} names {other:?}, which is no exporter; say \"otlp\" or \"none\""
        ))),
        None => Ok(text.trim().is_empty() || names.any(|name| name == "otlp")),
    }
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut out = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        let mut ahead = bytes.clone();
        let digits = ahead.next().zip(ahead.next());
        let hex = |b| char::from(b).to_digit(16);
        match (byte, digits.and_then(|(a, b)| hex(a).zip(hex(b)))) {
            (b'%', Some((high, low))) => {
                out.push((high << 4 | low) as u8);
                bytes = ahead;
            }
            _ => out.push(byte),
        }
    }
    String::from_utf8(out).ok()
}

/// Where spans, metrics or log records go that do not go where the rest does: of these, what says where
/// and how counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Instead {
    /// Spans.
    pub traces: Option<Box<OtlpConfig>>,
    /// Metrics.
    pub metrics: Option<Box<OtlpConfig>>,
    /// Log records.
    pub logs: Option<Box<OtlpConfig>>,
}

/// Where spans are sent, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtlpConfig {
    /// The endpoint's URL; without a scheme it is `http`; empty: nowhere. For [`Protocol::HttpProtobuf`] the base, to
    /// which `/v1/traces` is added, unless [`Self::endpoint_is_whole`].
    pub endpoint: String,
    /// Whether the endpoint is the very URL to post to, as that of one signal is
    /// (`OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`).
    pub endpoint_is_whole: bool,
    /// The transport.
    pub protocol: Protocol,
    /// Headers sent with each request.
    pub headers: Headers,
    /// The longest that one attempt takes.
    pub timeout: Duration,
    /// Compression of requests.
    pub compression: Compression,
    /// The certificates (PEM) that the server's is checked against, in place of the system's.
    pub certificate: Option<PathBuf>,
    /// The client's own certificate chain (PEM) and its key, for mutual TLS.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The bounds of the queue.
    pub limits: Limits,
    /// Whether spans are sent (`OTEL_TRACES_EXPORTER=none` for not).
    pub traces: bool,
    /// How often metrics are sent; `None` for never (`OTEL_METRIC_EXPORT_INTERVAL`,
    /// `OTEL_METRICS_EXPORTER=none`).
    pub metrics_every: Option<Duration>,
    /// Whether notable events are sent as log records (`OTEL_LOGS_EXPORTER=none` for not).
    pub logs: bool,
    /// What goes elsewhere.
    pub instead: Instead,
    /// How long a request is tried again before its spans are dropped.
    pub retry_for: Duration,
    /// The first wait before a request is tried again; doubled each time, up to [`Self::retry_max`].
    pub retry_first: Duration,
    /// The longest wait before a request is tried again, unless the server asks for more.
    pub retry_max: Duration,
}

impl OtlpConfig {
    /// The defaults for an endpoint: gRPC, 10 s for an attempt, and 5 min of attempts.
    pub fn new(endpoint: impl Into<String>) -> Self {
        Self {
            endpoint: endpoint.into(),
            endpoint_is_whole: false,
            protocol: Protocol::default(),
            headers: Headers::default(),
            timeout: opentelemetry_otlp::OTEL_EXPORTER_OTLP_TIMEOUT_DEFAULT,
            compression: Compression::default(),
            certificate: None,
            identity: None,
            limits: Limits::default(),
            traces: true,
            metrics_every: Some(Duration::from_secs(60)),
            logs: true,
            instead: Instead::default(),
            retry_for: Duration::from_secs(300),
            retry_first: Duration::from_secs(1),
            retry_max: Duration::from_secs(30),
        }
    }

    /// Takes what OpenTelemetry's lists of exporters say: `none` turns spans, metrics or log records off.
    /// `variable` looks one up.
    ///
    /// # Errors
    ///
    /// When one of them names an exporter that there is not.
    pub fn apply_lists(&mut self, variable: impl Fn(&str) -> Option<String>) -> Result<()> {
        self.traces &= wanted("OTEL_TRACES_EXPORTER", &variable)?;
        if !wanted("OTEL_METRICS_EXPORTER", &variable)? {
            self.metrics_every = None;
        }
        self.logs &= wanted("OTEL_LOGS_EXPORTER", &variable)?;
        Ok(())
    }

    /// Where spans, metrics or log records go, if anywhere.
    pub(super) fn of(&self, kind: Kind) -> Option<&Self> {
        let (is_wanted, instead) = match kind {
            Kind::Spans => (self.traces, &self.instead.traces),
            Kind::Metrics => (self.metrics_every.is_some(), &self.instead.metrics),
            Kind::Logs => (self.logs, &self.instead.logs),
        };
        let of = instead.as_deref().unwrap_or(self);
        (is_wanted && !of.endpoint.is_empty()).then_some(of)
    }

    /// Whether spans are sent.
    pub fn sends_spans(&self) -> bool {
        self.of(Kind::Spans).is_some()
    }

    /// Whether metrics are sent.
    pub fn sends_metrics(&self) -> bool {
        self.of(Kind::Metrics).is_some()
    }

    /// Whether notable events are sent.
    pub fn sends_logs(&self) -> bool {
        self.of(Kind::Logs).is_some()
    }

    /// Whether anything is sent.
    pub fn sends_anything(&self) -> bool {
        Kind::ALL.iter().any(|kind| self.of(*kind).is_some())
    }

    /// Whether one connection does for both.
    pub(super) fn shares_connection(&self, other: &Self) -> bool {
        let destination = |config: &Self| {
            (
                config.endpoint.clone(),
                config.endpoint_is_whole,
                config.protocol,
                config.headers.clone(),
                (config.timeout, config.compression),
                config.certificate.clone(),
                config.identity.clone(),
            )
        };
        destination(self) == destination(other)
    }

    /// Checks what can be checked without a look at the network or a file.
    ///
    /// # Errors
    ///
    /// When an endpoint is no URL.
    pub fn check(&self) -> Result<()> {
        Kind::ALL
            .iter()
            .filter_map(|kind| self.of(*kind))
            .try_for_each(|of| of.uri().map(drop))
    }

    /// The URL to connect to, checked.
    pub(super) fn uri(&self) -> Result<http::Uri> {
        self.uri_of("/v1/traces")
    }

    /// The same for the signal with this path.
    pub(super) fn uri_of(&self, path: &str) -> Result<http::Uri> {
        let endpoint = self.endpoint.trim();
        let text = match endpoint.contains("://") {
            true => endpoint.to_owned(),
            false => format!("http://{endpoint}"),
        };
        let text = match self.protocol {
            Protocol::HttpProtobuf if !self.endpoint_is_whole => {
                format!("{}{path}", text.trim_end_matches('/'))
            }
            Protocol::HttpProtobuf | Protocol::Grpc => text,
        };
        let bad = |why: &dyn fmt::Display| {
            Error::usage(format_args!(
                "OTLP endpoint {:?} {why}; give a URL such as http://localhost:4317",
                self.shown()
            ))
        };
        let uri: http::Uri = text
            .parse()
            .map_err(|error| bad(&format_args!("is no URL: {error}")))?;
        // A word alone is a mistake sooner than the name of a host.
        if !endpoint.contains("://") && uri.port_u16().is_none() {
            return Err(bad(&"has neither a scheme nor a port"));
        }
        match uri.scheme_str() {
            Some("http" | "https") if uri.host().is_some_and(|host| !host.is_empty()) => Ok(uri),
            _ => Err(bad(&"is no URL of http or https")),
        }
    }

    /// The endpoint as log lines show it: without credentials.
    pub(super) fn shown(&self) -> String {
        let (scheme, rest) = match self.endpoint.split_once("://") {
            Some((scheme, rest)) => (Some(scheme), rest),
            None => (None, self.endpoint.as_str()),
        };
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let host = authority.rsplit('@').next().unwrap_or_default();
        let path = path.split('?').next().unwrap_or_default();
        match scheme {
            Some(scheme) => format!("{scheme}://{host}{path}"),
            None => format!("{host}{path}"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    /// Headers are read as the specification writes them, and refused where they are none.
    #[test]
    fn reads_headers() {
        let headers: Headers = "api-key=s3cr3t, X-Tenant = a%20b%2Cc,,a==b"
            .parse()
            .unwrap();
        let want = [("api-key", "s3cr3t"), ("x-tenant", "a b,c"), ("a", "=b")];
        let want = want.map(|(n, v)| (n.to_owned(), v.to_owned()));
        assert_eq!(headers.0, want);
        for bad in ["novalue", "a b=c", "a=%0a", "a=%ff"] {
            let error = bad.parse::<Headers>().unwrap_err().to_string();
            assert!(error.starts_with("OTLP header"), "{error}");
        }
    }

    /// The values of headers do not get into a log by way of `{:?}`, nor by an error.
    #[test]
    fn hides_secrets() {
        let mut config = OtlpConfig::new("http://user:hidden@host:4317/p?key=hidden");
        config.headers = "api-key=hidden".parse().unwrap();
        assert!(!format!("{:?}", config.headers).contains("hidden"));
        assert_eq!(config.shown(), "http://host:4317/p");
        let error = "api-key=hidden%0a".parse::<Headers>().unwrap_err();
        assert!(!error.to_string().contains("hidden"), "{error}");
    }

    /// Endpoints get the scheme and the path that their protocol asks for.
    #[test]
    fn completes_endpoints() {
        let uri = |endpoint: &str, protocol, endpoint_is_whole| {
            let config = OtlpConfig {
                protocol,
                endpoint_is_whole,
                ..OtlpConfig::new(endpoint)
            };
            config.uri().map(|uri| uri.to_string())
        };
        let (grpc, http) = (Protocol::Grpc, Protocol::HttpProtobuf);
        for (endpoint, protocol, whole, want) in [
            ("localhost:4317", grpc, false, "http://localhost:4317/"),
            ("https://h", grpc, false, "https://h/"),
            ("http://h:4318", http, false, "http://h:4318/v1/traces"),
            ("http://h:4318/a/", http, false, "http://h:4318/a/v1/traces"),
            ("http://h/x", http, true, "http://h/x"),
        ] {
            assert_eq!(uri(endpoint, protocol, whole).unwrap(), want);
        }
        for bad in [
            "",
            "nonsense",
            "ftp://h",
            "http://",
            "http://a b",
            "unix:///x",
        ] {
            let error = uri(bad, grpc, false).unwrap_err();
            assert_eq!(error.exit(), crate::error::Exit::Usage, "{bad}");
        }
    }

    /// A list of exporters turns off what it does not name `otlp` in, and one that is not known is refused;
    /// what goes elsewhere goes there alone.
    #[test]
    fn chooses_by_kind() {
        let list = |name: &'static str, value: &'static str| {
            move |asked: &str| (asked == name).then(|| value.to_owned())
        };
        for (name, kind) in [
            ("OTEL_TRACES_EXPORTER", Kind::Spans),
            ("OTEL_METRICS_EXPORTER", Kind::Metrics),
            ("OTEL_LOGS_EXPORTER", Kind::Logs),
        ] {
            for (value, is_sent) in [
                ("none", false),
                ("console", false),
                ("otlp", true),
                ("console,otlp", true),
            ] {
                let mut config = OtlpConfig::new("h:1");
                config.apply_lists(list(name, value)).unwrap();
                for other in Kind::ALL {
                    let want = other != kind || is_sent;
                    assert_eq!(config.of(other).is_some(), want, "{name}={value} {other:?}");
                }
            }
            let error = OtlpConfig::new("h:1")
                .apply_lists(list(name, "zipkin"))
                .unwrap_err();
            assert!(error.to_string().starts_with(name), "{error}");
        }
        let config = OtlpConfig {
            instead: Instead {
                logs: Some(Box::new(OtlpConfig::new("elsewhere:1"))),
                ..Instead::default()
            },
            ..OtlpConfig::new("")
        };
        assert!(!config.sends_spans() && !config.sends_metrics());
        assert_eq!(config.of(Kind::Logs).unwrap().endpoint, "elsewhere:1");
    }
}
