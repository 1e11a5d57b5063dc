//! OTLP over TLS: the server's certificate is checked, and the client's is shown.

use std::{fs, path::PathBuf};

use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use tonic::transport::{Certificate, Identity, ServerTlsConfig};

use super::{
    http::{OK, Server as HttpServer, http},
    *,
};

/// A certificate that stands for itself, and its key, in files.
struct Pair {
    dir: tempfile::TempDir,
    certificate: String,
    key: String,
}

impl Pair {
    fn new() -> Self {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (certificate, key) = (cert.pem(), signing_key.serialize_pem());
        fs::write(dir.path().join("cert.pem"), &certificate).unwrap();
        fs::write(dir.path().join("key.pem"), &key).unwrap();
        Self {
            dir,
            certificate,
            key,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// A gRPC server with this certificate, which asks its clients for one of theirs where told so.
fn grpc_server(own: &Pair, clients: Option<&Pair>) -> Collector {
    let mut tls = ServerTlsConfig::new().identity(Identity::from_pem(&own.certificate, &own.key));
    if let Some(clients) = clients {
        tls = tls.client_ca_root(Certificate::from_pem(&clients.certificate));
    }
    Collector::start_with("127.0.0.1:0".parse().unwrap(), &[], Some(tls))
}

/// A server whose certificate is trusted gets the spans; one that the system does not know does not.
#[test]
fn checks_the_server() {
    let pair = Pair::new();
    let collector = grpc_server(&pair, None);
    let config = config(format_args!("https://{}", collector.address));
    let mut bench = Bench::start(OtlpConfig {
        certificate: Some(pair.path("cert.pem")),
        ..config.clone()
    });
    bench.push(5);
    bench.wait(Count::OtlpSent, 5);
    bench.stop(SOON);

    for certificate in [None, Some(Pair::new())] {
        let path = certificate.as_ref().map(|pair| pair.path("cert.pem"));
        let mut bench = Bench::start(OtlpConfig {
            certificate: path,
            ..config.clone()
        });
        bench.push(5);
        bench.wait(Count::OtlpFailedAttempts, 1);
        let counters = bench.stop(SOON);
        assert_eq!(counters.get(Count::OtlpSent), 0);
    }
    assert_eq!(collector.calls(), 1);
}

/// A server that asks for the client's certificate is shown it.
#[test]
fn shows_its_own() {
    let (server, client) = (Pair::new(), Pair::new());
    let collector = grpc_server(&server, Some(&client));
    let config = OtlpConfig {
        certificate: Some(server.path("cert.pem")),
        ..config(format_args!("https://{}", collector.address))
    };
    let mut bench = Bench::start(config.clone());
    bench.push(5);
    bench.wait(Count::OtlpFailedAttempts, 1);
    bench.stop(SOON);
    let mut bench = Bench::start(OtlpConfig {
        identity: Some((client.path("cert.pem"), client.path("key.pem"))),
        ..config
    });
    bench.push(5);
    bench.wait(Count::OtlpSent, 5);
    bench.stop(SOON);
}

/// The same holds for HTTP.
#[test]
fn checks_the_server_of_http() {
    let pair = Pair::new();
    let certificate = CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
    let tls = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let tls = Arc::new(tls);
    let server = HttpServer::start_with(&[OK], move |stream| {
        StreamOwned::new(ServerConnection::new(Arc::clone(&tls)).unwrap(), stream)
    });
    let config = http(format_args!("https://{}", server.address));
    for certificate in [None, Some(Pair::new())] {
        let mut bench = Bench::start(OtlpConfig {
            certificate: certificate.as_ref().map(|pair| pair.path("cert.pem")),
            ..config.clone()
        });
        bench.push(5);
        bench.wait(Count::OtlpFailedAttempts, 1);
        bench.stop(SOON);
        assert_eq!(server.received().len(), 0);
    }
    let mut bench = Bench::start(OtlpConfig {
        certificate: Some(pair.path("cert.pem")),
        ..config
    });
    bench.push(5);
    bench.wait(Count::OtlpSent, 5);
    bench.stop(SOON);
}

/// Files that are missing, or hold no certificate, fail at the start with their path in the line.
#[test]
fn refuses_bad_files() {
    let dir = tempfile::tempdir().unwrap();
    let garbage = dir.path().join("garbage.pem");
    fs::write(&garbage, "no certificate").unwrap();
    for protocol in [Protocol::Grpc, Protocol::HttpProtobuf] {
        for path in [&garbage, &dir.path().join("missing.pem")] {
            let config = OtlpConfig {
                protocol,
                certificate: Some(path.clone()),
                ..config("https://127.0.0.1:1")
            };
            let counters = Arc::new(Counters::new());
            let queue = Queue::new(config.limits, Arc::clone(&counters), Count::OtlpQueueFull);
            let sources = Sources {
                queue: Arc::new(queue),
                metrics: None,
                events: None,
                stop: Stop::new().1,
            };
            let error = start(config, sources, counters).err();
            let error = error.map(|error| error.to_string()).unwrap_or_default();
            assert!(
                error.contains(path.to_str().unwrap()),
                "{protocol:?} {error:?}"
            );
        }
    }
}
