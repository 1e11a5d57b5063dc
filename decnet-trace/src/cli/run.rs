//! `decnet-trace run`: traces until told to stop.

use std::{
    io::{IsTerminal as _, Write as _},
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Args;

use super::wait::Stop;
use crate::{
    bpf::load::LoadOptions,
    discover::Selector,
    error::{Error, Exit, Result},
    export::{
        ExportConfig, PrometheusConfig, SummaryConfig,
        otlp::{Headers, OtlpConfig, Protocol},
        prometheus::Token,
    },
    metrics::MetricsConfig,
    pipeline::{Config, Lineage, Outcome, Pipeline},
    policy::PolicyConfig,
    profile::{
        self,
        formats::{self, Format},
        label::Style,
        output::check_writable,
    },
    sampling::{self, Sampler, SamplingConfig, Slow},
    telemetry::{events, log},
};

/// The most samples per second and CPU.
pub(super) const RATE_MAX: u32 = 999;

/// How many routes the table shows.
const ROWS: usize = 40;

/// Trace services until Ctrl-C: requests become spans, CPU samples a flamegraph.
///
/// Without --pid, --name or --port, every Python web server is traced, those that start later too.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  sudo decnet-trace run --otlp-endpoint http://127.0.0.1:4317\n  \
        sudo decnet-trace run --name 'shop*' --duration 60 --profile-out flame.svg --summary\n\n\
        Ctrl-C or SIGTERM detaches, sends what is left, and ends with exit code 0."
)]
pub(super) struct RunArgs {
    #[command(flatten)]
    targets: TargetArgs,

    /// Send spans to this OTLP endpoint.
    #[arg(
        long,
        value_name = "URL",
        env = opentelemetry_otlp::OTEL_EXPORTER_OTLP_ENDPOINT,
        help_heading = "Output"
    )]
    otlp_endpoint: Option<String>,

    /// Speak this protocol to it: grpc or http/protobuf [default: grpc].
    #[arg(
        long,
        value_name = "PROTOCOL",
        env = opentelemetry_otlp::OTEL_EXPORTER_OTLP_PROTOCOL,
        help_heading = "Output"
    )]
    otlp_protocol: Option<Protocol>,

    /// Send these headers to it: name=value,name=value.
    #[arg(
        long,
        value_name = "HEADERS",
        env = opentelemetry_otlp::OTEL_EXPORTER_OTLP_HEADERS,
        hide_env_values = true,
        help_heading = "Output"
    )]
    otlp_headers: Option<Headers>,

    /// Check its certificate against those in this file (PEM).
    #[arg(
        long,
        value_name = "FILE",
        env = "OTEL_EXPORTER_OTLP_CERTIFICATE",
        help_heading = "Output"
    )]
    otlp_certificate: Option<PathBuf>,

    /// Append spans to this file: OTLP/JSON, a line per batch.
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    spans_file: Option<PathBuf>,

    /// Answer Prometheus at http://ADDR/metrics, such as 127.0.0.1:9464.
    #[arg(long, value_name = "ADDR", help_heading = "Output")]
    metrics_listen: Option<SocketAddr>,

    /// Answer only who shows the token in this file (Authorization: Bearer …).
    #[arg(
        long,
        value_name = "FILE",
        requires = "metrics_listen",
        help_heading = "Output"
    )]
    metrics_token_file: Option<PathBuf>,

    /// Write a flamegraph to this file at the end.
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    profile_out: Option<PathBuf>,

    /// Print a table of routes and the slowest requests at the end [default: on a terminal].
    #[arg(long, help_heading = "Output")]
    summary: bool,

    /// CPU samples per second and CPU; 0 turns profiling off.
    #[arg(long, value_name = "HZ", default_value_t = 19, value_parser = clap::value_parser!(u32).range(0..=i64::from(RATE_MAX)))]
    rate: u32,

    /// Stop after so many seconds.
    #[arg(long, value_name = "SECS", value_parser = clap::value_parser!(u64).range(1..))]
    duration: Option<u64>,

    #[command(flatten)]
    sampling: SamplingArgs,

    #[command(flatten)]
    kernel: KernelArgs,

    /// Never follow the descent of Python contexts: calls stay without parents.
    #[arg(long, hide = true)]
    no_lineage: bool,

    /// Overlook that contexts end: identities are wrong then, which tests must notice.
    #[arg(long, hide = true)]
    no_context_ends: bool,

    /// Never follow work through queues: calls of threads that take it there stay without parents.
    #[arg(long, hide = true)]
    no_queues: bool,
}

impl RunArgs {
    const fn lineage(&self) -> Lineage {
        match (self.no_lineage, self.no_context_ends) {
            (true, _) => Lineage::Off,
            (false, true) => Lineage::WithoutEnds,
            (false, false) => Lineage::On,
        }
    }
}

/// Which processes.
#[derive(Args, Debug)]
pub(super) struct TargetArgs {
    /// Trace this process and its children (may be given again).
    #[arg(long, short, value_name = "PID", help_heading = "Targets")]
    pid: Vec<u32>,

    /// Trace processes whose command, executable, script or application matches (may be given again).
    #[arg(long, value_name = "GLOB", help_heading = "Targets")]
    name: Vec<String>,

    /// Trace processes that listen on this TCP port (may be given again).
    #[arg(long, value_name = "PORT", help_heading = "Targets")]
    port: Vec<u16>,
}

impl TargetArgs {
    pub(super) fn selector(&self) -> Result<Selector> {
        if self.pid.contains(&std::process::id()) {
            return Err(Error::usage(
                "--pid names decnet-trace itself, which is never traced; name another process",
            ));
        }
        Selector::new(&self.pid, &self.name, &self.port).map_err(Error::usage)
    }
}

/// Which traces are kept.
#[derive(Args, Debug)]
pub(super) struct SamplingArgs {
    /// Keep traces as this sampler of OpenTelemetry's says: always_on, always_off or traceidratio, with
    /// parentbased_ in front to follow the caller's decision [default: parentbased_always_on].
    #[arg(
        long,
        value_name = "NAME",
        env = "OTEL_TRACES_SAMPLER",
        help_heading = "Sampling"
    )]
    sampler: Option<String>,

    /// The sampler's ratio, from 0 to 1.
    #[arg(
        long,
        value_name = "RATIO",
        env = "OTEL_TRACES_SAMPLER_ARG",
        help_heading = "Sampling"
    )]
    sampler_arg: Option<String>,

    /// Of traces without an error, keep this share, from 0 to 1.
    #[arg(long, value_name = "RATIO", help_heading = "Sampling", value_parser = sampling::ratio)]
    sample: Option<f64>,

    /// Of traces without an error, keep about so many a second, spread evenly over routes.
    #[arg(long, value_name = "N", help_heading = "Sampling", value_parser = positive)]
    traces_per_second: Option<f64>,

    /// Whatever the two above say, keep requests that take longer than so many milliseconds; p99: longer
    /// than 99 of 100 of the same route.
    #[arg(long, value_name = "MS|p99", help_heading = "Sampling", value_parser = slow)]
    keep_slow: Option<Slow>,
}

impl SamplingArgs {
    fn config(&self) -> Result<SamplingConfig> {
        let mut config = SamplingConfig::default();
        if let Some(name) = self.sampler.as_deref().filter(|name| !name.is_empty()) {
            config.sampler = Sampler::parse(name, self.sampler_arg.as_deref())?;
        }
        config.ratio = self.sample.unwrap_or(config.ratio);
        config.traces_per_second = self.traces_per_second;
        config.keep_slow = self.keep_slow;
        Ok(config)
    }
}

fn positive(text: &str) -> Result<f64, String> {
    let n = text
        .parse()
        .ok()
        .filter(|n: &f64| n.is_finite() && *n > 0.0);
    n.ok_or_else(|| "give a number above 0".to_owned())
}

fn slow(text: &str) -> Result<Slow, String> {
    match text {
        "p99" => Ok(Slow::RouteP99),
        text => positive(text)
            .map(|ms| Slow::Over(Duration::from_secs_f64(ms.min(1e12) / 1e3)))
            .map_err(|_| "give milliseconds, such as 500, or p99".to_owned()),
    }
}

/// How the kernel side is loaded.
#[derive(Args, Debug)]
pub(super) struct KernelArgs {
    /// Log what the eBPF programs say of themselves (they need a build of their own).
    #[arg(long)]
    bpf_log: bool,

    /// Use the fallback hooks though the kernel has the better ones.
    #[arg(long, hide = true)]
    force_fallback: bool,

    /// The size of each CPU's ring, in KiB: a power of two.
    #[arg(long, hide = true, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(4..=262_144))]
    ring_kib: u32,
}

impl KernelArgs {
    pub(super) fn options(&self, rate: u32) -> Result<LoadOptions> {
        if !self.ring_kib.is_power_of_two() {
            return Err(Error::usage(format!(
                "--ring-kib {} is no power of two; say 1024",
                self.ring_kib
            )));
        }
        Ok(LoadOptions {
            ring_bytes: self.ring_kib * 1024,
            force_fallback: self.force_fallback,
            log: self.bpf_log,
            rate,
        })
    }
}

pub(super) fn run(args: &RunArgs) -> Result<Exit> {
    log::init(None).map_err(Error::failed)?;
    if let Some(path) = &args.profile_out {
        check_writable(path).map_err(Error::usage)?;
        if args.rate == 0 {
            return Err(Error::usage(
                "--profile-out needs samples, and --rate 0 takes none; leave one of them out",
            ));
        }
    }
    let summary = args.summary || std::io::stdout().is_terminal();
    let otlp = otlp(args)?;
    let metrics = otlp
        .as_ref()
        .is_some_and(|otlp| otlp.metrics_every.is_some());
    let prometheus = prometheus(args)?;
    let metrics = metrics || prometheus.is_some();
    let config = Config {
        selector: args.targets.selector()?,
        overrides: Default::default(),
        load: args.kernel.options(args.rate)?,
        requests: true,
        lineage: args.lineage(),
        queues: !args.no_queues,
        policy: PolicyConfig::default(),
        export: ExportConfig {
            otlp,
            spans_file: args.spans_file.clone(),
            summary: summary.then(SummaryConfig::default),
            metrics: None,
            events: Some(Arc::clone(events::global())),
            prometheus,
        },
        sampling: args.sampling.config()?,
        metrics: metrics.then(MetricsConfig::default),
        profile: args
            .profile_out
            .is_some()
            .then(|| profile::aggregate::Options {
                native: true,
                kernel: true,
                ..Default::default()
            }),
        interval: None,
    };
    let stop = Stop::watch()?;
    let pipeline = Pipeline::start(config)?;
    let deadline = args
        .duration
        .map(|seconds| Instant::now() + Duration::from_secs(seconds));
    stop.until(deadline, || pipeline.is_finished());
    let outcome = pipeline.finish()?;
    let written = args
        .profile_out
        .as_ref()
        .zip(outcome.profile.as_ref())
        .map(|(path, profile)| {
            formats::save(profile, Format::Flamegraph, &Style::default(), path)
                .map(|()| path)
                .map_err(Error::failed)
        });
    let written = written.transpose()?;
    if summary {
        print(&outcome, written)?;
    }
    Ok(Exit::Done)
}

fn prometheus(args: &RunArgs) -> Result<Option<PrometheusConfig>> {
    let token = args.metrics_token_file.as_deref().map(Token::read);
    let token = token.transpose()?;
    Ok(args
        .metrics_listen
        .map(|listen| PrometheusConfig { listen, token }))
}

fn otlp(args: &RunArgs) -> Result<Option<OtlpConfig>> {
    let endpoint = args
        .otlp_endpoint
        .clone()
        .or_else(|| std::env::var("DECNET_OTEL_ENDPOINT").ok())
        .filter(|endpoint| !endpoint.is_empty());
    let Some(endpoint) = endpoint else {
        return Ok(None);
    };
    let mut config = OtlpConfig::new(endpoint);
    config.apply_env(|name| std::env::var(name).ok())?;
    config.protocol = args.otlp_protocol.unwrap_or_default();
    // Flags come before the environment; clap has read the variable that each stands for.
    if let Some(headers) = &args.otlp_headers {
        config.headers = headers.clone();
    }
    if let Some(certificate) = &args.otlp_certificate {
        config.certificate = Some(certificate.clone());
    }
    config.check()?;
    Ok(Some(config))
}

/// Prints what a person wants to see at the end.
fn print(outcome: &Outcome, flamegraph: Option<&PathBuf>) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let colour = log::colour(&out);
    let mut text = String::new();
    if let Some(summary) = outcome
        .summary
        .as_ref()
        .filter(|summary| !summary.is_empty())
    {
        text += &summary.table(ROWS, colour);
    } else {
        text += "no requests were seen\n";
    }
    text.push('\n');
    let mut line = |name: &str, value: String| text += &format!("{name:<14}{value}\n");
    if let Some(path) = flamegraph {
        let samples = outcome.profile.as_ref().map_or(0, profile::Profile::total);
        line(
            "flamegraph",
            format!("{} ({samples} samples)", path.display()),
        );
    }
    let lost: Vec<_> = outcome
        .lost()
        .map(|(name, value)| format!("{name} {value}"))
        .collect();
    let total: u64 = outcome.lost().map(|(_, value)| value).sum();
    line(
        "lost",
        if lost.is_empty() {
            "0 events".into()
        } else {
            format!("{total} ({})", lost.join(", "))
        },
    );
    let seconds = outcome.duration.as_secs_f64();
    line(
        "requests",
        format!(
            "{} in {seconds:.1} s ({:.0}/s)",
            outcome.requests.served,
            outcome.requests.served as f64 / seconds
        ),
    );
    if let Some(usage) = &outcome.usage {
        line(
            "agent",
            format!(
                "{:.2} % of a core, {:.1} MiB resident",
                usage.cpu_percent,
                usage.rss as f64 / f64::from(1 << 20)
            ),
        );
    }
    line(
        "in the kernel",
        match (outcome.bill.micros_per_request(), outcome.bill.cpu_share()) {
            (Some(micros), Some(share)) => format!(
                "{micros:.2} µs per request, {:.3} % of a core (measured over {:.0} s)",
                share * 100.0,
                outcome.bill.measured.as_secs_f64()
            ),
            (None, Some(share)) => format!("{:.3} % of a core", share * 100.0),
            _ => "not measured: this kernel keeps no run-time statistics".into(),
        },
    );
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|error| Error::failed(format!("cannot print the summary: {error}")))
}
