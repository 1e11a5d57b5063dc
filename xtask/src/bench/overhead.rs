//! What a service loses: windows with and without a tool alternate, and each with is compared with the
//! mean of the two without beside it, which takes out what drifts slowly.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::{
    Setup,
    agent::Tool,
    progress::Progress,
    report::{Report, number},
    services::{Pace, Scenario, Services, Window, of, py_spy, settled},
    stats::median,
    table::Table,
    variants::{Kind, VARIANTS, Variant},
};
use crate::bed::service::Service;

/// What starting and ending a tool takes, about.
const ATTACH: Duration = Duration::from_millis(1500);

/// How long the agent is at work under load before it is measured. The last that its CPU time shows of what it does
/// once comes some 2.3 s after it has attached.
const AGENT_SETTLES: Duration = Duration::from_millis(2500);

/// The share of what a service can do that the fixed rate is.
const FIXED_SHARE: f64 = 0.4;

/// The noise floor's name in ids: windows without against windows without.
const NOISE: &str = "noise";

impl Variant {
    /// What comes before its window, to let caches, connections and the tool settle. The agent goes on when its hooks
    /// are attached: it reads the interpreter and arms what the first requests show to be needed.
    fn warm_up(&self, setup: &Setup) -> Duration {
        let least = warm_up(setup.window);
        match self.kind {
            Kind::Agent(_) if !setup.quick => least.max(AGENT_SETTLES),
            _ => least,
        }
    }

    /// What a pair of windows takes, the tool's start and end among it.
    fn cost(&self, setup: &Setup) -> Duration {
        2 * setup.window + warm_up(setup.window) + self.warm_up(setup) + ATTACH
    }
}

/// What is compared on which route, and at which pace. What the agent is compared with is on two routes.
fn variants(scenario: &str, pace: Pace, quick: bool) -> Vec<Variant> {
    let names: &[&str] = match (scenario, pace) {
        ("sqlite", Pace::Saturated) => return VARIANTS.to_vec(),
        ("sqlite", Pace::Fixed(_)) if !quick => &["agent", "sampled", "otel"],
        ("calls", Pace::Saturated) if !quick => &[
            "agent",
            "sampled",
            "everything",
            "profiling-100",
            "py-spy",
            "otel",
            "memray",
            "pyinstrument",
        ],
        ("plain", Pace::Saturated) if !quick => &["agent", "sampled", "everything"],
        (_, Pace::Saturated) if !quick => &["agent", "everything"],
        _ => &["agent"],
    };
    names
        .iter()
        .filter_map(|name| Variant::named(name))
        .collect()
}

/// The paces of a route, the fixed rate yet to be found.
fn paces(scenario: &str, quick: bool) -> &'static [Pace] {
    match scenario {
        "sqlite" => &[Pace::Saturated, Pace::Fixed(0.0)],
        "plain" if !quick => &[Pace::Saturated, Pace::Fixed(0.0)],
        _ => &[Pace::Saturated],
    }
}

/// What comes before a window without a tool, on the same connections.
fn warm_up(window: Duration) -> Duration {
    (window / 6).max(Duration::from_millis(200))
}

/// The setup for a route, with windows of its length.
fn of_route(setup: &Setup, scenario: Scenario) -> Setup {
    Setup {
        window: setup.window * scenario.windows,
        ..setup.clone()
    }
}

/// How long it takes.
pub fn plan(setup: &Setup) -> Duration {
    let mut planned = Duration::ZERO;
    for scenario in &setup.scenarios {
        planned += Duration::from_secs(12);
        let setup = &of_route(setup, *scenario);
        for &pace in paces(scenario.name, setup.quick) {
            let variants = variants(scenario.name, pace, setup.quick);
            let round: Duration = variants.iter().map(|variant| variant.cost(setup)).sum();
            planned += round * u32::try_from(setup.pairs).unwrap_or(u32::MAX);
        }
    }
    planned
}

/// The services of one route: the plain one, and one for each tool that works inside of a process.
struct Fleet {
    plain: Service,
    inside: BTreeMap<&'static str, Service>,
}

impl Fleet {
    fn start(services: &Services, variants: &[Variant]) -> Result<Self> {
        let mut inside = BTreeMap::new();
        for variant in variants {
            if let Kind::Inside(tool) = variant.kind {
                let service = services
                    .service(Some(tool))
                    .with_context(|| format!("the service with {tool} does not start"))?;
                inside.insert(tool, service);
            }
        }
        Ok(Self {
            plain: services.service(None)?,
            inside,
        })
    }
}

/// One window with, between two without.
#[derive(Clone, Copy, Debug)]
struct Pair {
    before: Window,
    with: Window,
    after: Window,
    /// The CPU time of a tool that works from outside, in µs per request of the service.
    outside: Option<f64>,
}

/// What was measured on one route at one pace.
#[derive(Debug, Default)]
struct Pairs {
    with: BTreeMap<&'static str, Vec<Pair>>,
    /// All windows without, in their order.
    without: Vec<Window>,
}

impl Pairs {
    /// Nothing against nothing: every other window without, against the mean of the two without beside it.
    fn noise(&self) -> Vec<Pair> {
        self.without
            .windows(3)
            .step_by(2)
            .map(|three| Pair {
                before: three[0],
                with: three[1],
                after: three[2],
                outside: None,
            })
            .collect()
    }
}

/// A reading of a window.
type Metric = fn(&Window) -> f64;

/// What is read off a window.
const METRICS: &[(&str, Metric)] = &[
    ("throughput", |window| window.throughput),
    ("p50", |window| window.p50),
    ("p99", |window| window.p99),
    ("p99.9", |window| window.p999),
    ("cpu", |window| window.cpu),
];

impl Pair {
    /// With to without.
    fn ratio(&self, of: Metric) -> f64 {
        of(&self.with) / self.without(of)
    }

    /// How many µs of CPU more a request takes.
    fn cpu_more(&self) -> f64 {
        self.with.cpu - self.without(|window| window.cpu)
    }

    fn without(&self, of: Metric) -> f64 {
        f64::midpoint(of(&self.before), of(&self.after))
    }
}

/// What the agent adds to a service's CPU time per request, in µs: a figure for each pair of windows.
///
/// # Errors
/// The agent does not start, requests fail, or the run is interrupted.
pub fn cpu_more(
    setup: &Setup,
    services: &Services,
    service: &Service,
    scenario: Scenario,
    variant: Variant,
    progress: &mut Progress,
) -> Result<Vec<f64>> {
    let run = Run {
        setup,
        services,
        plain: service,
        inside: &BTreeMap::new(),
        scenario,
        pace: Pace::Saturated,
    };
    let pairs = run.pairs("kernel", &[variant], progress)?;
    Ok(pairs.with.values().flatten().map(Pair::cpu_more).collect())
}

/// Measures all routes, and prints a table for each.
///
/// # Errors
/// A service or a tool does not start, requests fail, or the run is interrupted.
pub fn run(
    setup: &Setup,
    services: &Services,
    progress: &mut Progress,
    report: &mut Report,
) -> Result<()> {
    for &scenario in &setup.scenarios {
        // What others show is kept.
        if let Err(why) = route(scenario, setup, services, progress, report) {
            progress.check()?;
            report.failed(format!("overhead, {}: {why:#}", scenario.name));
        }
    }
    Ok(())
}

/// Measures one route, at all its paces.
fn route(
    scenario: Scenario,
    setup: &Setup,
    services: &Services,
    progress: &mut Progress,
    report: &mut Report,
) -> Result<()> {
    let setup = &of_route(setup, scenario);
    let mut saturated = None;
    let all = variants(scenario.name, Pace::Saturated, setup.quick);
    let fleet = Fleet::start(services, &all)?;
    for &pace in paces(scenario.name, setup.quick) {
        let pace = match (pace, saturated) {
            (Pace::Fixed(_), Some(throughput)) => Pace::Fixed(round(FIXED_SHARE * throughput)),
            (pace, _) => pace,
        };
        let run = Run {
            setup,
            services,
            plain: &fleet.plain,
            inside: &fleet.inside,
            scenario,
            pace,
        };
        let variants = variants(scenario.name, pace, setup.quick);
        let pairs = run.pairs("overhead", &variants, progress)?;
        let untraced: Vec<_> = pairs.without.iter().map(|w| w.throughput).collect();
        saturated = saturated.or_else(|| median(&untraced));
        progress.clear();
        run.table(&pairs, report);
    }
    Ok(())
}

/// Those that are numbers: all, or none where a window has too few requests for a quantile.
fn told(samples: impl Iterator<Item = f64>) -> Vec<f64> {
    let all: Vec<_> = samples.collect();
    if all.iter().all(|value| value.is_finite()) {
        all
    } else {
        Vec::new()
    }
}

/// A rate that is easy to read.
fn round(rate: f64) -> f64 {
    let step = match rate {
        r if r >= 1000.0 => 100.0,
        r if r >= 100.0 => 10.0,
        _ => 1.0,
    };
    ((rate / step).round() * step).max(1.0)
}

/// One route at one pace.
struct Run<'a> {
    setup: &'a Setup,
    services: &'a Services,
    plain: &'a Service,
    inside: &'a BTreeMap<&'static str, Service>,
    scenario: Scenario,
    pace: Pace,
}

impl Run<'_> {
    fn pairs(&self, kind: &str, variants: &[Variant], progress: &mut Progress) -> Result<Pairs> {
        let mut pairs = Pairs::default();
        let stop = Arc::clone(progress.stop());
        let rounds = self.setup.pairs;
        let mut before = self.without(&stop)?;
        pairs.without.push(before);
        for round in 0..rounds {
            for n in 0..variants.len() {
                // Each round begins with another one: none always follows the same.
                let variant = variants[(n + round) % variants.len()];
                progress.step(
                    &format!(
                        "{kind}, {}, {}: {}, {} of {rounds}",
                        self.scenario.name,
                        self.pace_name(),
                        variant.name,
                        round + 1,
                    ),
                    variant.cost(self.setup),
                )?;
                let (with, outside) = self.with(variant, &stop)?;
                let after = self.without(&stop)?;
                progress.check()?;
                let pair = Pair {
                    before,
                    with,
                    after,
                    outside,
                };
                pairs.with.entry(variant.name).or_default().push(pair);
                pairs.without.push(after);
                before = after;
            }
        }
        // As many as it takes to know the noise as well as what is compared with it.
        while pairs.noise().len() < rounds {
            pairs.without.push(self.without(&stop)?);
            progress.check()?;
        }
        Ok(pairs)
    }

    fn without(&self, stop: &Arc<AtomicBool>) -> Result<Window> {
        self.measured(self.plain, None, warm_up(self.setup.window), stop)
            .map(|(window, _)| window)
    }

    fn with(&self, variant: Variant, stop: &Arc<AtomicBool>) -> Result<(Window, Option<f64>)> {
        let pid = self.plain.pid;
        let warm_up = variant.warm_up(self.setup);
        let tool = match variant.kind {
            Kind::Inside(tool) => {
                let service = self.inside.get(tool).context("no such service")?;
                return self.measured(service, None, warm_up, stop);
            }
            Kind::PySpy(rate) => Tool::py_spy(&py_spy(&self.services.venv), pid, rate)?,
            Kind::Agent(_) => self.agent(&self.setup.agent, variant, pid)?,
        };
        let measured = self.measured(self.plain, Some(&tool), warm_up, stop)?;
        tool.stop()?;
        Ok(measured)
    }

    fn agent(&self, program: &Path, variant: Variant, pid: u32) -> Result<Tool> {
        let backend = self.services.backend()?;
        let args = variant.args(pid, &backend).context("not the agent")?;
        Tool::agent(program, &args)
    }

    /// A window, and what the tool beside it took of the CPUs meanwhile, in µs per request.
    fn measured(
        &self,
        service: &Service,
        tool: Option<&Tool>,
        warm_up: Duration,
        stop: &Arc<AtomicBool>,
    ) -> Result<(Window, Option<f64>)> {
        let (seen, outside) = settled(
            self.scenario,
            of(service),
            tool.map(Tool::pid),
            self.pace,
            [warm_up, self.setup.window],
            stop,
        )?;
        #[expect(clippy::cast_precision_loss, reason = "below 2^52")]
        let outside = outside.map(|burnt| burnt.as_secs_f64() * 1e6 / seen.requests as f64);
        Ok((seen, outside))
    }

    fn pace_name(&self) -> &'static str {
        match self.pace {
            Pace::Saturated => "saturated",
            Pace::Fixed(_) => "fixed",
        }
    }

    /// Notes the figures, and shows them as a table.
    fn table(&self, pairs: &Pairs, report: &mut Report) {
        let id = format!("overhead/{}/{}", self.scenario.name, self.pace_name());
        let mut absolute = Vec::new();
        for (name, metric) in METRICS {
            let (unit, label) = match *name {
                "throughput" => ("requests/s", "requests/s"),
                "cpu" => ("us/request", "µs of CPU per request"),
                _ => ("ms", "ms"),
            };
            let samples = told(pairs.without.iter().map(*metric));
            let value = median(&samples).map_or_else(|| "-".to_owned(), number);
            report.note(format!("{id}/untraced/{name}"), unit, samples);
            absolute.push(match *name {
                "throughput" | "cpu" => format!("{value} {label}"),
                _ => format!("{name} {value} {label}"),
            });
        }
        let mut head = vec!["with / without"];
        head.extend(METRICS.iter().map(|(name, _)| match *name {
            "cpu" => "CPU per request",
            name => name,
        }));
        head.push("CPU per request, µs more");
        head.push("the tool's own CPU per request, µs");
        let mut table = Table::new(&head);
        let noise = pairs.noise();
        let noise = (NOISE, "noise floor: nothing against nothing", &noise);
        let tools = VARIANTS.iter().filter_map(|variant| {
            let pairs = pairs.with.get(variant.name)?;
            Some((variant.name, variant.what, pairs))
        });
        for (name, what, pairs) in std::iter::once(noise).chain(tools) {
            let id = format!("{id}/{name}");
            let mut row = vec![what.to_owned()];
            for (name, metric) in METRICS {
                let ratios = told(pairs.iter().map(|pair| pair.ratio(*metric)));
                row.push(report.note(format!("{id}/{name}"), "ratio", ratios));
            }
            let more = pairs.iter().map(Pair::cpu_more).collect();
            row.push(report.note(format!("{id}/cpu_more"), "us/request", more));
            let outside = pairs.iter().filter_map(|pair| pair.outside).collect();
            row.push(report.note(format!("{id}/outside"), "us/request", outside));
            table.row(row);
        }
        let pace = match self.pace {
            Pace::Saturated => "saturated".to_owned(),
            Pace::Fixed(rate) => format!(
                "at {} requests/s, latency from when a request was due",
                number(rate)
            ),
        };
        report.section(
            &format!("{}: {}, {pace}", self.scenario.name, self.scenario.what),
            &format!(
                "{} pairs of windows of {} s; untraced: {}",
                self.setup.pairs,
                self.setup.window.as_secs_f64(),
                absolute.join(", ")
            ),
            &table,
        );
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    fn flat(throughput: f64) -> Window {
        Window {
            requests: 1,
            throughput,
            p50: 1.0,
            p99: 1.0,
            p999: 1.0,
            cpu: 1.0,
            operations: 2.0,
        }
    }

    /// A machine that slows down steadily does not make a tool look slow.
    #[test]
    fn drift() {
        let pair = Pair {
            before: flat(100.0),
            with: flat(90.0),
            after: flat(80.0),
            outside: None,
        };
        assert!((pair.ratio(|window| window.throughput) - 1.0).abs() < 1e-9);
    }

    /// Noise is of windows that nothing else was measured by, and as many as there are.
    #[test]
    fn noise() {
        let pairs = Pairs {
            without: [100.0, 90.0, 80.0, 60.0, 40.0, 1.0].map(flat).to_vec(),
            ..Pairs::default()
        };
        let noise: Vec<_> = pairs
            .noise()
            .iter()
            .map(|pair| pair.ratio(|window| window.throughput))
            .collect();
        assert_eq!(noise, [1.0, 1.0]);
    }

    /// The agent's defaults are measured on all routes.
    #[test]
    fn always_there() {
        for scenario in super::super::services::SCENARIOS {
            for quick in [false, true] {
                for &pace in paces(scenario.name, quick) {
                    let first = variants(scenario.name, pace, quick)[0];
                    assert_eq!(first.name, "agent", "{}", scenario.name);
                }
            }
        }
    }

    /// A quantile that one window cannot tell is told of none.
    #[test]
    fn untold() {
        assert_eq!(told([1.0, 2.0].into_iter()), [1.0, 2.0]);
        assert!(told([1.0, f64::NAN].into_iter()).is_empty());
    }

    /// The agent's arguments name the service and the backend.
    #[test]
    fn arguments() {
        let args = Variant::named("everything")
            .unwrap()
            .args(42, "http://b")
            .unwrap();
        assert_eq!(args[..3], ["run", "--pid", "42"]);
        assert!(
            args.windows(2)
                .any(|two| two == ["--otlp-endpoint", "http://b"]),
            "{args:?}"
        );
        assert!(Variant::named("memray").unwrap().args(1, "").is_none());
    }

    /// Rates are round.
    #[test]
    fn rates() {
        assert_eq!(
            [1234.0, 567.8, 12.3, 0.2].map(round),
            [1200.0, 570.0, 12.0, 1.0]
        );
    }
}
