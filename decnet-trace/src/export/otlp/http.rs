//! OTLP/HTTP with binary Protobuf.

use std::{
    io::Write as _,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use flate2::{Compression as Level, write::GzEncoder};
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{ConfigBuilderExt as _, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use prost::Message as _;
use rustls::{ClientConfig, RootCertStore, crypto::ring};

use super::{
    Failure,
    config::{Compression, OtlpConfig},
    grpc::chain,
    pem,
    signal::{Logs, Metrics, Signal, Traces},
};
use crate::error::{Error, Result};

/// The longest answer that is read, in bytes.
const ANSWER_MAX: usize = 64 * 1024;

/// The longest that a connection takes to be made.
const CONNECT: Duration = Duration::from_secs(5);

/// A client of one endpoint. The connection is made when it is first used, kept, and made again when
/// it broke. Its clones share it.
#[derive(Clone)]
pub(super) struct Http {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    /// Of traces, metrics and logs.
    uris: [Uri; 3],
    headers: HeaderMap,
    compression: Compression,
    /// For one attempt.
    timeout: Duration,
}

impl Http {
    pub(super) fn new(config: &OtlpConfig) -> Result<Self> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT.min(config.timeout)));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls(config)?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        Ok(Self {
            client: Client::builder(TokioExecutor::new()).build(connector),
            uris: [
                config.uri_of(Traces::HTTP_PATH)?,
                config.uri_of(Metrics::HTTP_PATH)?,
                config.uri_of(Logs::HTTP_PATH)?,
            ],
            headers: headers(config)?,
            compression: config.compression,
            timeout: config.timeout,
        })
    }

    pub(super) async fn send<S: Signal>(
        &self,
        message: &S::Request,
    ) -> Result<S::Response, Failure> {
        let uri = match S::HTTP_PATH {
            Metrics::HTTP_PATH => &self.uris[1],
            Logs::HTTP_PATH => &self.uris[2],
            _ => &self.uris[0],
        };
        let body = self.body(message).map_err(|error| Failure {
            retry: false,
            delay: None,
            message: format!("the request cannot be compressed: {error}"),
        })?;
        let mut request = Request::post(uri.clone())
            .body(Full::new(body))
            .map_err(|error| Failure {
                retry: false,
                delay: None,
                message: error.to_string(),
            })?;
        *request.headers_mut() = self.headers.clone();
        let broken = |error: &dyn std::error::Error| Failure {
            retry: true,
            delay: None,
            message: chain(error),
        };
        let begin = Instant::now();
        let response = self
            .client
            .request(request)
            .await
            .map_err(|error| broken(&error))?;
        let status = response.status();
        let delay = retry_after(response.headers(), SystemTime::now());
        // The status alone decides. A body that is too long, breaks off or never ends says nothing, and does
        // not make what was sent less accepted, or less refused; were it waited for until the attempt's own
        // time is up, that would count as a failure.
        let rest = self.timeout.saturating_sub(begin.elapsed());
        let body = Limited::new(response.into_body(), ANSWER_MAX).collect();
        let body = match tokio::time::timeout(rest / 2, body).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(_)) | Err(_) => Bytes::new(),
        };
        match status {
            StatusCode::OK => Ok(S::Response::decode(body).unwrap_or_default()),
            status => Err(Failure {
                // <https://opentelemetry.io/docs/specs/otlp/#failures-1>
                retry: matches!(status.as_u16(), 429 | 502 | 503 | 504),
                delay,
                message: format!("HTTP status {status}"),
            }),
        }
    }

    fn body(&self, message: &impl prost::Message) -> std::io::Result<Bytes> {
        let plain = message.encode_to_vec();
        Ok(match self.compression {
            Compression::None => plain.into(),
            Compression::Gzip => {
                let mut encoder = GzEncoder::new(Vec::new(), Level::fast());
                encoder.write_all(&plain)?;
                encoder.finish()?.into()
            }
        })
    }
}

fn headers(config: &OtlpConfig) -> Result<HeaderMap> {
    let mut map = HeaderMap::new();
    for (name, value) in &config.headers.0 {
        let bad = || Error::usage(format_args!("OTLP header {name:?} cannot be sent"));
        let name = HeaderName::try_from(name).map_err(|_| bad())?;
        let mut value = HeaderValue::try_from(value).map_err(|_| bad())?;
        value.set_sensitive(true);
        map.append(name, value);
    }
    let agent = concat!("decnet-trace/", env!("CARGO_PKG_VERSION"));
    map.insert(header::USER_AGENT, HeaderValue::from_static(agent));
    let protobuf = HeaderValue::from_static("application/x-protobuf");
    map.insert(header::CONTENT_TYPE, protobuf);
    if config.compression == Compression::Gzip {
        map.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    Ok(map)
}

/// How long the server asks to wait: seconds, or until a date (RFC 9110, section 10.2.3). A date that has
/// passed asks for nothing.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let seconds = value.parse().ok().map(Duration::from_secs);
    seconds.or_else(|| {
        let date = httpdate::parse_http_date(value).ok()?;
        date.duration_since(now).ok()
    })
}

fn tls(config: &OtlpConfig) -> Result<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::failed(format_args!("TLS cannot be used: {error}")))?;
    let is_tls = config.uri()?.scheme_str() == Some("https");
    let builder = match &config.certificate {
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in pem::certificates(path)?.1 {
                roots
                    .add(certificate)
                    .map_err(|error| pem::bad(path, &error))?;
            }
            builder.with_root_certificates(roots)
        }
        // The system's are not read for nothing.
        None if !is_tls => builder.with_root_certificates(RootCertStore::empty()),
        None => builder.with_native_roots().map_err(|error| {
            Error::failed(format_args!(
                "the system's certificates cannot be read: {error}; name some with OTEL_EXPORTER_OTLP_CERTIFICATE"
            ))
        })?,
    };
    match &config.identity {
        None => Ok(builder.with_no_client_auth()),
        Some((chain, key)) => builder
            .with_client_auth_cert(pem::certificates(chain)?.1, pem::key(key)?.1)
            .map_err(|error| pem::bad(chain, &error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server's wish is read as seconds and as any date that HTTP allows; what is neither, or has passed, is
    /// none.
    #[test]
    fn reads_retry_after() {
        // One minute before the date that RFC 9110, section 5.6.7, writes in its three formats.
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777 - 60);
        let asked = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static(value));
            retry_after(&headers, now)
        };
        let minute = Some(Duration::from_secs(60));
        assert_eq!(asked("60"), minute);
        assert_eq!(asked("Sun, 06 Nov 1994 08:49:37 GMT"), minute);
        assert_eq!(asked("Sunday, 06-Nov-94 08:49:37 GMT"), minute);
        assert_eq!(asked("Sun Nov  6 08:49:37 1994"), minute);
        assert_eq!(asked("Sun, 06 Nov 1994 08:00:00 GMT"), None);
        for neither in ["", "-1", "soon", "Sun, 99 Nov 1994 08:49:37 GMT"] {
            assert_eq!(asked(neither), None, "{neither}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }
}
