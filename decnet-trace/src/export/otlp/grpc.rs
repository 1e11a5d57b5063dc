//! OTLP/gRPC.

use std::{error::Error as _, time::Duration};

use http::uri::PathAndQuery;
use tonic::{
    Code, Request, Status,
    client::Grpc as GrpcClient,
    codec::CompressionEncoding,
    metadata::{
        AsciiMetadataKey, AsciiMetadataValue, BinaryMetadataKey, BinaryMetadataValue, MetadataMap,
    },
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};
use tonic_prost::ProstCodec;
use tonic_types::StatusExt as _;

use super::{
    Failure,
    config::{Compression, OtlpConfig},
    pem,
    signal::Signal,
};
use crate::error::{Error, Result};

/// The longest that a connection takes to be made.
const CONNECT: Duration = Duration::from_secs(5);

/// A connection without a sign of life for half of an attempt is asked for one, and given up if there
/// is none in the other half; but no later than this. Otherwise each attempt would go to the same dead
/// connection.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// A client of one endpoint. The connection is made when it is first used, and again when it broke.
/// Its clones share it.
#[derive(Clone)]
pub(super) struct Grpc {
    client: GrpcClient<Channel>,
    metadata: MetadataMap,
}

impl Grpc {
    /// Must be called in a runtime.
    pub(super) fn new(config: &OtlpConfig) -> Result<Self> {
        let uri = config.uri()?;
        let is_tls = uri.scheme_str() == Some("https");
        let bad = |error: tonic::transport::Error| {
            Error::usage(format_args!(
                "OTLP endpoint {} cannot be used: {}",
                config.shown(),
                chain(&error)
            ))
        };
        let keep_alive = KEEP_ALIVE.min(config.timeout / 2);
        let mut endpoint = Endpoint::from(uri)
            .connect_timeout(CONNECT.min(config.timeout))
            .http2_keep_alive_interval(keep_alive)
            .keep_alive_timeout(keep_alive)
            .user_agent(concat!("decnet-trace/", env!("CARGO_PKG_VERSION")))
            .map_err(bad)?;
        if is_tls {
            let mut tls = match &config.certificate {
                // Checked here, since a file without a certificate in it is taken for an empty list.
                Some(path) => ClientTlsConfig::new()
                    .ca_certificate(Certificate::from_pem(pem::certificates(path)?.0)),
                None => ClientTlsConfig::new().with_native_roots(),
            };
            if let Some((chain, key)) = &config.identity {
                let (chain, key) = (pem::certificates(chain)?.0, pem::key(key)?.0);
                tls = tls.identity(Identity::from_pem(chain, key));
            }
            endpoint = endpoint.tls_config(tls).map_err(bad)?;
        }
        let mut client = GrpcClient::new(endpoint.connect_lazy());
        if config.compression == Compression::Gzip {
            client = client
                .send_compressed(CompressionEncoding::Gzip)
                .accept_compressed(CompressionEncoding::Gzip);
        }
        Ok(Self {
            client,
            metadata: metadata(config)?,
        })
    }

    pub(super) async fn send<S: Signal>(
        &mut self,
        message: S::Request,
    ) -> Result<S::Response, Failure> {
        let mut request = Request::new(message);
        *request.metadata_mut() = self.metadata.clone();
        let unready = |error: tonic::transport::Error| Failure {
            retry: true,
            delay: None,
            message: chain(&error),
        };
        self.client.ready().await.map_err(unready)?;
        let path = PathAndQuery::from_static(S::GRPC_PATH);
        let codec = ProstCodec::<S::Request, S::Response>::default();
        match self.client.unary(request, path, codec).await {
            Ok(response) => Ok(response.into_inner()),
            Err(status) => Err(failure(&status)),
        }
    }
}

fn metadata(config: &OtlpConfig) -> Result<MetadataMap> {
    let mut map = MetadataMap::new();
    for (name, value) in &config.headers.0 {
        let bad = || {
            Error::usage(format_args!(
                "OTLP header {name:?} cannot be sent with gRPC; use a lower-case name and a printable value"
            ))
        };
        if name.ends_with("-bin") {
            let key: BinaryMetadataKey = name.parse().map_err(|_| bad())?;
            map.append_bin(key, BinaryMetadataValue::from_bytes(value.as_bytes()));
        } else {
            let key: AsciiMetadataKey = name.parse().map_err(|_| bad())?;
            let value: AsciiMetadataValue = value.parse().map_err(|_| bad())?;
            map.append(key, value);
        }
    }
    Ok(map)
}

/// What a status means for the request
/// (<https://opentelemetry.io/docs/specs/otlp/#otlpgrpc-response>).
fn failure(status: &Status) -> Failure {
    let delay = status
        .get_details_retry_info()
        .and_then(|info| info.retry_delay);
    // The transport's own failures come as codes that a server's refusal comes with, too; they alone
    // have a source.
    let is_transport = status.source().is_some();
    let retry = match status.code() {
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss => true,
        Code::ResourceExhausted => delay.is_some(),
        _ => is_transport,
    };
    let mut message = format!("{:?}", status.code());
    if !status.message().is_empty() {
        message = format!("{message}: {}", status.message());
    }
    if let Some(source) = status.source() {
        let more = chain(source);
        if !message.ends_with(&more) {
            message = format!("{message}: {more}");
        }
    }
    Failure {
        retry,
        delay,
        message,
    }
}

/// An error and what caused it, in one line; what each repeats of the one before is left out.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = error.source();
    }
    text
}
