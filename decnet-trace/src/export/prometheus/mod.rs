//! Metrics to whoever asks for them over HTTP, as Prometheus does: `GET /metrics`.

use std::{
    convert::Infallible,
    fmt, fs,
    net::{SocketAddr, TcpListener},
    path::Path,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net, runtime, sync::Semaphore};

use super::otlp::Stop;
use crate::{
    error::{Error, Result},
    metrics::SharedMetrics,
};

mod text;

use text::Format;

/// The most connections at once; more wait to be accepted.
const CONNECTIONS_MAX: usize = 16;

/// The longest that a connection lasts.
const LIFE_MAX: Duration = Duration::from_secs(60);

/// The longest that a request's head takes.
const HEAD_MAX: Duration = Duration::from_secs(5);

/// Where metrics are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrometheusConfig {
    /// The address to listen on.
    pub listen: SocketAddr,
    /// What who asks has to show, as a bearer token.
    pub token: Option<Token>,
}

/// A secret; it is not shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(Box<[u8]>);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

impl Token {
    /// The token in a file: its first line.
    ///
    /// # Errors
    ///
    /// When it cannot be read, or is empty.
    pub fn read(path: &Path) -> Result<Self> {
        let bad = |why: &dyn fmt::Display| {
            Error::usage(format_args!(
                "the token in {} cannot be used: {why}; write it there as one line",
                path.display()
            ))
        };
        let text = fs::read_to_string(path).map_err(|error| bad(&error))?;
        let line = text.lines().next().unwrap_or_default().trim();
        match line.is_empty() {
            true => Err(bad(&"there is none")),
            false => Ok(Self(line.as_bytes().into())),
        }
    }

    /// Whether a request shows it. How long this takes tells nothing of the token but its length.
    fn is_shown(&self, request: &Request<Incoming>) -> bool {
        let shown = request.headers().get(header::AUTHORIZATION);
        let shown = shown.and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
        shown.is_some_and(|shown| {
            let differing = shown
                .iter()
                .zip(&self.0)
                .fold(0, |all, (a, b)| all | (a ^ b));
            shown.len() == self.0.len() && std::hint::black_box(differing) == 0
        })
    }
}

/// Listens. It ends when it is told to stop.
///
/// # Errors
///
/// When the address cannot be listened on.
pub(super) fn start(
    config: PrometheusConfig,
    metrics: SharedMetrics,
    stop: Stop,
) -> Result<(SocketAddr, JoinHandle<()>)> {
    let failed = |error: std::io::Error| {
        Error::failed(format_args!(
            "cannot listen for metrics on {}: {error}; choose another address with --metrics-listen",
            config.listen
        ))
    };
    let listener = TcpListener::bind(config.listen).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    if !address.ip().is_loopback() {
        tracing::warn!(
            "metrics can be read from other machines at {address}{}",
            match config.token {
                Some(_) => "",
                None => ", by anybody; ask for a token with --metrics-token-file",
            }
        );
    }
    let runtime = runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(failed)?;
    let thread = thread::Builder::new()
        .name("metrics".into())
        .spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = serve(listener, config.token, metrics) => {}
                    // Nobody waits for who reads metrics.
                    () = stop.stopped() => {}
                }
            });
        })
        .map_err(failed)?;
    Ok((address, thread))
}

async fn serve(listener: TcpListener, token: Option<Token>, metrics: SharedMetrics) {
    let listener = match net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::warn!("metrics cannot be read: {error}"),
    };
    let token = Arc::new(token);
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            // No file descriptor is left, as a rule.
            Err(_) => {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (token, metrics) = (Arc::clone(&token), metrics.clone());
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let response = answer(&request, token.as_ref().as_ref(), &metrics);
                async { Ok::<_, Infallible>(response) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_MAX)
                .max_buf_size(16 * 1024)
                .serve_connection(TokioIo::new(stream), service);
            let _ = tokio::time::timeout(LIFE_MAX, connection).await;
            drop(place);
        });
    }
}

fn answer(
    request: &Request<Incoming>,
    token: Option<&Token>,
    metrics: &SharedMetrics,
) -> Response<Full<Bytes>> {
    let plain = |status, text: &'static str| {
        let mut response = Response::new(Full::from(text));
        *response.status_mut() = status;
        response
    };
    if token.is_some_and(|token| !token.is_shown(request)) {
        let mut response = plain(StatusCode::UNAUTHORIZED, "show the token\n");
        let challenge = header::HeaderValue::from_static("Bearer");
        response
            .headers_mut()
            .insert(header::WWW_AUTHENTICATE, challenge);
        return response;
    }
    if request.uri().path() != "/metrics" {
        return plain(StatusCode::NOT_FOUND, "metrics are at /metrics\n");
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "metrics can only be read\n");
    }
    let accept = request.headers().get(header::ACCEPT);
    let format = Format::wanted(
        accept
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default(),
    );
    let body = text::write(&metrics.snapshot(), format);
    let mut response = Response::new(Full::from(body));
    let kind = header::HeaderValue::from_static(format.content_type());
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests;
