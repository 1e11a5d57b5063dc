//! The configuration: one file, the environment and flags over it, one validated whole.
//!
//! * [`Settings`]: every key, its default and its documentation; the example file is made of it.
//! * [`Loader`]: where values come from, and which of them counts.
//! * [`apply`]: what the settings mean for the parts of the agent.

mod apply;
mod layers;
mod otlp;
mod section;
mod show;
pub mod value;

use std::collections::BTreeMap;

use section::{section, sections};
use serde::{Deserialize, Serialize};
use value::{
    Address, ClientAddress, Compression, Endpoint, Glob, Header, HeaderList, KeepSlow, Pattern,
    PerSecond, Percent, Place, Protocol, Ratio, RouteText, Sampler, SamplerArg, SignalProtocol,
    StoreAge, StoreSize, Time,
};

pub use self::{
    layers::{DEFAULT_PATH, Flag, Loaded, Loader, Origin},
    show::example,
};

sections! {
    /// Everything that can be configured.
    pub struct Settings {
        /// Which processes are traced.
        targets: Targets,
        /// What telemetry is said to come from.
        resource: Resource,
        /// Where spans are sent.
        otlp: Otlp,
        /// What is different for spans.
        otlp_traces: OtlpSignal,
        /// What is different for metrics.
        otlp_metrics: OtlpSignal,
        /// What is different for log records.
        otlp_logs: OtlpSignal,
        /// Which traces are kept.
        sampling: Sampling,
        /// Where metrics may be asked for.
        metrics: Metrics,
        /// Files that are written.
        files: Files,
        /// What is kept on this machine.
        store: Store,
        /// CPU samples.
        profile: Profile,
        /// What is masked.
        redaction: Redaction,
        /// How routes are named.
        routes: Routes,
        /// The agent itself.
        agent: Agent,
    }
}

section! {
    /// Which processes are traced. Without any of these, every Python web server is, those that start
    /// later too.
    pub struct Targets {
        /// Processes whose command, executable, script or application matches one of these globs.
        names: Vec<Glob> = Vec::new(),
        /// Processes that listen on one of these TCP ports.
        ports: Vec<u16> = Vec::new(),
        /// Processes that match one of these globs are left alone, whatever asks for them but --pid.
        exclude: Vec<Glob> = Vec::new(),
    }
}

section! {
    /// What telemetry is said to come from, where the traced process does not say so itself.
    pub struct Resource {
        /// The name of every service, in place of what its process says. Empty: each has its own.
        service_name: String = String::new(),
        /// Attributes of every process: { "deployment.environment.name" = "production" }. What the
        /// process says itself (OTEL_RESOURCE_ATTRIBUTES) comes first.
        attributes: BTreeMap<String, String> = BTreeMap::new(),
    }
}

section! {
    /// Where spans, metrics and log records are sent. OpenTelemetry's own variables
    /// (OTEL_EXPORTER_OTLP_ENDPOINT and so on) work as well.
    pub struct Otlp {
        /// The endpoint's URL, as "http://127.0.0.1:4317". Empty: nothing is sent, but for what has an
        /// endpoint of its own.
        endpoint: Endpoint = Endpoint::default(),
        /// "grpc" or "http/protobuf".
        protocol: Protocol = Protocol::grpc(),
        /// Headers sent with each request: "name=value,name=value", the values percent-encoded.
        headers: HeaderList = HeaderList::default(),
        /// A file that holds such headers, one on each line. It should be readable by root alone.
        headers_file: String = String::new(),
        /// The longest that one attempt takes.
        timeout: Time = Time::seconds(10),
        /// "none" or "gzip".
        compression: Compression = Compression::none(),
        /// How often metrics are sent. "0s": never.
        metrics_every: Time = Time::seconds(60),
        /// Send notable events as log records.
        logs: bool = true,
        /// Certificates (PEM) that the endpoint's is checked against, in place of the system's.
        certificate: String = String::new(),
        /// The agent's own certificate (PEM), for mutual TLS.
        client_certificate: String = String::new(),
        /// The key of that certificate (PEM).
        client_key: String = String::new(),
    }
}

section! {
    /// What is different for spans ([otlp_traces]), metrics ([otlp_metrics]) and log records ([otlp_logs]):
    /// each has these keys, and what is empty is as [otlp] says.
    pub struct OtlpSignal {
        /// The very URL that this is sent to: nothing is added to it.
        endpoint: Endpoint = Endpoint::default(),
        /// "grpc" or "http/protobuf".
        protocol: SignalProtocol = SignalProtocol::default(),
        /// Headers in place of those in [otlp], and of its headers_file.
        headers: HeaderList = HeaderList::default(),
        /// A file that holds such headers, one on each line. It should be readable by root alone.
        headers_file: String = String::new(),
        /// The longest that one attempt takes; "0s": as in [otlp].
        timeout: Time = Time::seconds(0),
        /// "none" or "gzip".
        compression: Compression = Compression::default(),
        /// Certificates (PEM) that the endpoint's is checked against.
        certificate: String = String::new(),
        /// The agent's own certificate (PEM), for mutual TLS.
        client_certificate: String = String::new(),
        /// The key of that certificate (PEM).
        client_key: String = String::new(),
    }
}

section! {
    /// Which traces are kept. Metrics count every request, kept or not.
    pub struct Sampling {
        /// OpenTelemetry's sampler: "always_on", "always_off" or "traceidratio", with "parentbased_" in
        /// front to follow the caller's decision. What it drops is gone.
        sampler: Sampler = Sampler::default_one(),
        /// The sampler's ratio, from 0 to 1. Empty: 1.
        sampler_arg: SamplerArg = SamplerArg::default(),
        /// Of traces without an error, keep this share, from 0 to 1.
        sample: Ratio = Ratio::ONE,
        /// Of traces without an error, keep about so many a second, spread evenly over routes. 0: all.
        traces_per_second: PerSecond = PerSecond::default(),
        /// Whatever the two above say, keep requests that take longer than so many milliseconds: "500";
        /// "p99": longer than 99 of 100 of the same route. Empty: no such rule.
        keep_slow: KeepSlow = KeepSlow::default(),
    }
}

section! {
    /// Where metrics may be asked for.
    pub struct Metrics {
        /// Answer Prometheus at http://ADDRESS/metrics, as "127.0.0.1:9464". Empty: no port is opened.
        listen: Address = Address::default(),
        /// Answer only who shows the token in this file (Authorization: Bearer …). It should be
        /// readable by root alone.
        token_file: String = String::new(),
    }
}

section! {
    /// Files that are written.
    pub struct Files {
        /// Spans are appended to this file: OTLP/JSON, a line per batch. SIGHUP opens it anew. Empty:
        /// none.
        spans: String = String::new(),
    }
}

section! {
    /// Requests and samples that are kept on this machine, for `decnet-trace requests`.
    pub struct Store {
        /// The folder that they are kept in, made where it is missing; "off": nothing is kept. Empty:
        /// /var/lib/decnet-trace, and nothing where that cannot be used.
        dir: String = String::new(),
        /// Delete what is older; "1m" at least.
        max_age: StoreAge = StoreAge::default_one(),
        /// Let all files together grow to this size; the oldest is deleted then. "8MiB" at least.
        max_size: StoreSize = StoreSize::default_one(),
    }
}

section! {
    /// CPU samples.
    pub struct Profile {
        /// Samples per second and CPU, up to 999; 0 turns profiling off.
        rate: u32 = 19,
        /// A flamegraph is written to this file at the end. Empty: none.
        out: String = String::new(),
    }
}

section! {
    /// What is masked before anything leaves the agent. Credentials in URLs and literals in SQL are masked
    /// always; bodies are never kept, and of headers Host, User-Agent, traceparent and tracestate alone,
    /// and those named here.
    pub struct Redaction {
        /// Mask what looks like a secret: values of queries; e-mail addresses, card numbers, tokens and
        /// keys in paths, names of hosts, User-Agent, unknown methods and headers.
        enabled: bool = true,
        /// Names of query parameters whose values are kept all the same: ["page", "sort"].
        query_allow: Vec<String> = Vec::new(),
        /// Headers of requests that are kept as http.request.header.NAME: ["x-tenant", "accept"].
        /// Those that carry credentials (Authorization, Cookie, X-Api-Key…) cannot be.
        request_headers: Vec<Header> = Vec::new(),
        /// Headers of responses, likewise.
        response_headers: Vec<Header> = Vec::new(),
        /// A client's address: "whole", "cut" (to 24 bits of IPv4, 48 of IPv6) or "hashed" (a keyed
        /// hash, the same for the same address).
        client_address: ClientAddress = ClientAddress::Whole,
        /// A file that holds the key for "hashed", at least 16 bytes. Without one, a key is made at each
        /// start. It should be readable by root alone.
        hash_key_file: String = String::new(),
        /// What is masked beside that, in this order. Each rule is a table under
        /// [[redaction.rules]]:
        ///   pattern = "customer-[a-z]+"      a regular expression of the Rust crate "regex"
        ///   replacement = "customer-*"       $1 and ${name} stand for groups; "REDACTED" without it
        ///   places = ["path", "query"]       of "path", "query", "user-agent", "statement",
        ///                                    "header"; all without it
        rules: Vec<Rule> = Vec::new(),
    }
}

section! {
    /// How routes are named.
    pub struct Routes {
        /// Read the routes that services declare from the source files that they have loaded.
        learn: bool = true,
        /// The most routes that a service has whose names are made of paths; later ones share one.
        max: usize = 500,
        /// Routes that win over learned ones, in this order. Each entry is a table under
        /// [[routes.patterns]]:
        ///   service = "shop*"                a glob; all services without it
        ///   paths = ["/users/{id}", "/files/{path:path}"]
        patterns: Vec<RoutePatterns> = Vec::new(),
    }
}

section! {
    /// The agent itself.
    pub struct Agent {
        /// Say so in the log when its own process uses more than so many per cent of one core in a minute.
        /// 0: never.
        cpu_budget: Percent = Percent(5.0),
    }
}

/// A rule of redaction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// What is looked for.
    pub pattern: Pattern,
    /// What stands in its place.
    #[serde(default = "redacted")]
    pub replacement: String,
    /// Where; everywhere without any.
    #[serde(default)]
    pub places: Vec<Place>,
}

fn redacted() -> String {
    "REDACTED".to_owned()
}

/// Routes of some services.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoutePatterns {
    /// The services; all without one.
    #[serde(default)]
    pub service: Glob,
    /// Their routes.
    pub paths: Vec<RouteText>,
}

#[cfg(test)]
mod tests;
