//! `decnet-trace run`: traces until told to stop.

use std::{
    io::{IsTerminal as _, Write as _},
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Args;
use toml::Value;
use tracing::warn;

use super::{
    reload::Reloader,
    store::StoreArgs,
    wait::{Hangup, OnHangup, Stop},
};
use crate::{
    bpf::load::LoadOptions,
    config::{Flag, Loaded, Loader, Settings},
    correlate::identity::IDENTITIES_MAX,
    discover::Selector,
    error::{Error, Exit, Result},
    export::{ExportConfig, SummaryConfig},
    metrics::MetricsConfig,
    pipeline::{Config, Lineage, Outcome, Overlooked, Pipeline},
    profile::{
        self,
        formats::{self, Format},
        label::Style,
        output::Place,
    },
    sampling,
    telemetry::{events, log},
};

/// The most samples per second and CPU.
pub(super) const RATE_MAX: u32 = 999;

/// How often is looked whether the configuration is to be read again, or the work has failed.
const TICK: Duration = Duration::from_secs(1);

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

    /// Read the configuration from this file [default: /etc/decnet-trace/config.toml, if it is there].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Send spans to this OTLP endpoint [env: OTEL_EXPORTER_OTLP_ENDPOINT].
    #[arg(long, value_name = "URL", help_heading = "Output")]
    otlp_endpoint: Option<String>,

    /// Speak this protocol to it: grpc or http/protobuf [default: grpc].
    #[arg(long, value_name = "PROTOCOL", help_heading = "Output")]
    otlp_protocol: Option<String>,

    /// Send these headers to it: name=value,name=value.
    #[arg(long, value_name = "HEADERS", help_heading = "Output")]
    otlp_headers: Option<String>,

    /// Check its certificate against those in this file (PEM).
    #[arg(long, value_name = "FILE", help_heading = "Output")]
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

    #[command(flatten)]
    store: StoreArgs,

    /// Write a flamegraph to this file at the end.
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    profile_out: Option<PathBuf>,

    /// Print a table of routes and the slowest requests at the end [default: on a terminal].
    #[arg(long, help_heading = "Output")]
    summary: bool,

    /// CPU samples per second and CPU; 0 turns profiling off [default: 19].
    #[arg(long, value_name = "HZ", value_parser = clap::value_parser!(u32).range(0..=i64::from(RATE_MAX)))]
    rate: Option<u32>,

    /// Stop after so many seconds.
    #[arg(long, value_name = "SECS", value_parser = clap::value_parser!(u64).range(1..))]
    duration: Option<u64>,

    /// Say so in the log when the agent's own process uses more than so many per cent of one core in a minute;
    /// 0: never [default: 5].
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    cpu_budget: Option<f64>,

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

    /// Never read a thread's context at a socket: calls of asyncio stay without parents.
    #[arg(long, hide = true)]
    no_socket_contexts: bool,

    /// Never take a thread that waits for a request to serve that alone: calls of servers without asyncio
    /// stay without parents.
    #[arg(long, hide = true)]
    no_blocking_turns: bool,

    /// Remember at most so many contexts: tests see what is forgotten that way.
    #[arg(long, hide = true, value_name = "N", default_value_t = IDENTITIES_MAX)]
    identities_max: usize,
}

impl RunArgs {
    /// The flags that stand for keys of the configuration.
    fn flags(&self) -> Vec<Flag> {
        let text = |text: &String| Value::String(text.clone());
        let path = |path: &PathBuf| Value::String(path.to_string_lossy().into_owned());
        let some = |values: Vec<Value>| (!values.is_empty()).then_some(Value::Array(values));
        let ports = self
            .targets
            .port
            .iter()
            .map(|port| Value::Integer((*port).into()));
        [
            (
                "targets.names",
                "--name",
                some(self.targets.name.iter().map(text).collect()),
            ),
            ("targets.ports", "--port", some(ports.collect())),
            (
                "targets.exclude",
                "--exclude",
                some(self.targets.exclude.iter().map(text).collect()),
            ),
            (
                "otlp.endpoint",
                "--otlp-endpoint",
                self.otlp_endpoint.as_ref().map(text),
            ),
            (
                "otlp.protocol",
                "--otlp-protocol",
                self.otlp_protocol.as_ref().map(text),
            ),
            (
                "otlp.headers",
                "--otlp-headers",
                self.otlp_headers.as_ref().map(text),
            ),
            (
                "otlp.certificate",
                "--otlp-certificate",
                self.otlp_certificate.as_ref().map(path),
            ),
            (
                "files.spans",
                "--spans-file",
                self.spans_file.as_ref().map(path),
            ),
            (
                "profile.out",
                "--profile-out",
                self.profile_out.as_ref().map(path),
            ),
            (
                "metrics.listen",
                "--metrics-listen",
                self.metrics_listen.map(|at| Value::String(at.to_string())),
            ),
            (
                "metrics.token_file",
                "--metrics-token-file",
                self.metrics_token_file.as_ref().map(path),
            ),
            (
                "sampling.sampler",
                "--sampler",
                self.sampling.sampler.as_ref().map(text),
            ),
            (
                "sampling.sampler_arg",
                "--sampler-arg",
                self.sampling.sampler_arg.as_ref().map(text),
            ),
            (
                "sampling.sample",
                "--sample",
                self.sampling.sample.map(Value::Float),
            ),
            (
                "sampling.traces_per_second",
                "--traces-per-second",
                self.sampling.traces_per_second.map(Value::Float),
            ),
            (
                "sampling.keep_slow",
                "--keep-slow",
                self.sampling.keep_slow.as_ref().map(text),
            ),
            (
                "profile.rate",
                "--rate",
                self.rate.map(|rate| Value::Integer(rate.into())),
            ),
            (
                "agent.cpu_budget",
                "--cpu-budget",
                self.cpu_budget.map(Value::Float),
            ),
        ]
        .into_iter()
        .filter_map(|(key, flag, value)| {
            Some(Flag {
                key,
                flag,
                value: value?,
            })
        })
        .chain(self.store.flags())
        .collect()
    }

    /// The processes that are named by their pids; they have no key in the configuration, and where
    /// they are given, its targets do not count.
    fn selector(&self, settings: &Settings) -> Result<Selector> {
        match self.targets.pid.is_empty() {
            true => settings.selector(&[]),
            false => self.targets.selector(),
        }
    }

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

    /// Leave processes alone that match, whatever else asks for them but --pid (may be given again).
    #[arg(long, value_name = "GLOB", help_heading = "Targets")]
    exclude: Vec<String>,
}

impl TargetArgs {
    pub(super) fn selector(&self) -> Result<Selector> {
        if self.pid.contains(&std::process::id()) {
            return Err(Error::usage(
                "--pid names decnet-trace itself, which is never traced; name another process",
            ));
        }
        Selector::new(&self.pid, &self.name, &self.port)
            .and_then(|selector| selector.without(&self.exclude))
            .map_err(Error::usage)
    }
}

/// Which traces are kept.
#[derive(Args, Debug)]
pub(super) struct SamplingArgs {
    /// Keep traces as this sampler of OpenTelemetry's says: always_on, always_off or traceidratio, with
    /// parentbased_ in front to follow the caller's decision [default: parentbased_always_on] [env:
    /// OTEL_TRACES_SAMPLER].
    #[arg(long, value_name = "NAME", help_heading = "Sampling")]
    sampler: Option<String>,

    /// The sampler's ratio, from 0 to 1 [env: OTEL_TRACES_SAMPLER_ARG].
    #[arg(long, value_name = "RATIO", help_heading = "Sampling")]
    sampler_arg: Option<String>,

    /// Of traces without an error, keep this share, from 0 to 1.
    #[arg(long, value_name = "RATIO", help_heading = "Sampling", value_parser = sampling::ratio)]
    sample: Option<f64>,

    /// Of traces without an error, keep about so many a second, spread evenly over routes.
    #[arg(long, value_name = "N", help_heading = "Sampling", value_parser = positive)]
    traces_per_second: Option<f64>,

    /// Whatever the two above say, keep requests that take longer than so many milliseconds; p99: longer
    /// than 99 of 100 of the same route.
    #[arg(long, value_name = "MS|p99", help_heading = "Sampling")]
    keep_slow: Option<String>,
}

fn positive(text: &str) -> Result<f64, String> {
    let n = text
        .parse()
        .ok()
        .filter(|n: &f64| n.is_finite() && *n > 0.0);
    n.ok_or_else(|| "give a number above 0".to_owned())
}

fn percent(text: &str) -> Result<f64, String> {
    let n = text
        .parse()
        .ok()
        .filter(|n: &f64| n.is_finite() && *n >= 0.0);
    n.ok_or_else(|| "give per cent of one core, such as 5".to_owned())
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
    /// How to load the programs, with those for sockets or without; `unwind_memory` in bytes.
    pub(super) fn options(
        &self,
        sockets: bool,
        rate: u32,
        unwind_memory: u64,
    ) -> Result<LoadOptions> {
        if !self.ring_kib.is_power_of_two() {
            return Err(Error::usage(format!(
                "--ring-kib {} is no power of two; say 1024",
                self.ring_kib
            )));
        }
        Ok(LoadOptions {
            ring_bytes: self.ring_kib * 1024,
            sockets,
            force_fallback: self.force_fallback,
            log: self.bpf_log,
            rate,
            unwind_memory,
        })
    }
}

pub(super) fn run(args: &RunArgs) -> Result<Exit> {
    log::init(None).map_err(Error::failed)?;
    let loader = Loader {
        file: args.config.clone(),
        flags: args.flags(),
    };
    let variable = |name: &str| std::env::var(name).ok();
    let Loaded {
        settings,
        mut warnings,
        ..
    } = loader.load(variable)?;
    let path = |text: &String| (!text.is_empty()).then(|| PathBuf::from(text));
    let profile_out = path(&settings.profile.out);
    let rate = settings.profile.rate;
    if profile_out.is_some() && rate == 0 {
        return Err(Error::usage(
            "--profile-out needs samples, and --rate 0 takes none; leave one of them out",
        ));
    }
    let profile_out = profile_out.as_deref().map(Place::check);
    let profile_out = profile_out.transpose().map_err(Error::usage)?;
    let summary = args.summary || std::io::stdout().is_terminal();
    let otlp = settings.otlp(&variable, &mut warnings)?;
    let metrics = otlp.as_ref().is_some_and(|otlp| otlp.sends_metrics());
    let prometheus = settings.prometheus(&mut warnings)?;
    let metrics = metrics || prometheus.is_some();
    let config = Config {
        selector: args.selector(&settings)?,
        overrides: settings.overrides(),
        load: args.kernel.options(true, rate, 0)?,
        learn_routes: settings.routes.learn,
        lineage: args.lineage(),
        queues: !args.no_queues,
        overlooked: Overlooked {
            contexts: args.no_socket_contexts,
            blocking: args.no_blocking_turns,
        },
        identities_max: args.identities_max,
        cpu_budget: Some(settings.agent.cpu_budget.0).filter(|percent| *percent > 0.0),
        policy: settings.policy(&mut warnings)?,
        export: ExportConfig {
            otlp,
            spans_file: path(&settings.files.spans),
            store: settings.store()?,
            summary: summary.then(SummaryConfig::default),
            metrics: None,
            events: Some(Arc::clone(events::global())),
            prometheus,
        },
        sampling: settings.sampling()?,
        metrics: metrics.then(MetricsConfig::default),
        profile: profile_out.is_some().then(|| profile::aggregate::Options {
            native: true,
            kernel: true,
            ..Default::default()
        }),
        interval: None,
    };
    for warning in &warnings {
        warn!("{warning}");
    }
    let stop = Stop::watch(OnHangup::Other)?;
    let hangup = Hangup::watch()?;
    let pipeline = Pipeline::start(config)?;
    let deadline = args
        .duration
        .map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let mut reloader = Reloader {
        loader,
        settings,
        has_pids: !args.targets.pid.is_empty(),
        rate_is_live: rate > 0 && profile_out.is_none(),
    };
    stop.until(deadline, TICK, || {
        if hangup.came() {
            reloader.reload(&pipeline);
        }
        pipeline.is_finished()
    });
    let outcome = pipeline.finish()?;
    let written = profile_out
        .as_ref()
        .zip(outcome.profile.as_ref())
        .map(|(place, profile)| {
            let style = Style::default();
            place
                .write(|out| formats::write(profile, Format::Flamegraph, &style, out))
                .map(|()| place.path())
                .map_err(Error::failed)
        });
    let written = written.transpose()?;
    if summary {
        print(&outcome, written)?;
    }
    Ok(Exit::Done)
}

/// Prints what a person wants to see at the end.
fn print(outcome: &Outcome, flamegraph: Option<&Path>) -> Result<()> {
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
    if outcome.requests.statements > 0 {
        line("statements", outcome.requests.statements.to_string());
    }
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
