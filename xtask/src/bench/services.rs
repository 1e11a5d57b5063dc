//! What is measured: the bench's service with its routes, and what stands behind it.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, atomic::AtomicBool},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use super::{
    machine::{Cpus, cpu_time},
    postgres::Postgres,
    stats::quantile,
};
use crate::{
    bed::{
        load::{Load, Request, Target, Truth, monotonic_ns},
        process::{Folder, Process},
        service::Service,
        venv::{Venv, default_python},
    },
    paths,
};

/// What the service and the tools beside it need; what the bed does not pin is pinned here.
const PACKAGES: &[&str] = &[
    "aiosqlite",
    "asyncpg",
    "fastapi",
    "httptools",
    "httpx",
    "memray==1.20.0",
    "opentelemetry-exporter-otlp-proto-http==1.45.2",
    "opentelemetry-instrumentation-dbapi==0.66b2",
    "opentelemetry-instrumentation-fastapi==0.66b2",
    "opentelemetry-instrumentation-httpx==0.66b2",
    "opentelemetry-sdk==1.45.2",
    "py-spy",
    "pyinstrument==5.1.3",
    "uvicorn",
    "uvloop",
];

/// Those whose versions a report names.
pub const NAMED: &[&str] = &[
    "aiosqlite",
    "asyncpg",
    "fastapi",
    "httptools",
    "httpx",
    "memray",
    "opentelemetry-instrumentation-fastapi",
    "opentelemetry-sdk",
    "py-spy",
    "pyinstrument",
    "uvicorn",
    "uvloop",
];

/// The environment of the bench.
///
/// # Errors
/// It cannot be made.
pub fn venv() -> Result<Venv> {
    Venv::ensure(&default_python()?, PACKAGES)
}

/// A route of the service, and the load that it gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scenario {
    /// Its name, in ids and on the command line.
    pub name: &'static str,
    /// What it is, for people.
    pub what: &'static str,
    path: &'static str,
    connections: usize,
    /// How much longer its windows are than those of others: where few requests are served, it takes longer to tell
    /// the slowest of them.
    pub windows: u32,
}

/// All routes that are measured.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "sqlite",
        what: "async route, one SQLite query by aiosqlite",
        path: "/sqlite",
        connections: 32,
        windows: 1,
    },
    Scenario {
        name: "plain",
        what: "async route that does nothing",
        path: "/plain",
        connections: 32,
        windows: 1,
    },
    Scenario {
        name: "def",
        what: "def route, in the thread pool",
        path: "/def",
        connections: 32,
        windows: 1,
    },
    Scenario {
        name: "calls",
        what: "async route, three outbound calls by httpx",
        path: "/calls",
        connections: 16,
        windows: 2,
    },
    Scenario {
        name: "postgres",
        what: "async route, one query by asyncpg",
        path: "/postgres",
        connections: 32,
        windows: 1,
    },
    Scenario {
        name: "rows",
        what: "async route, 100,000 rows from SQLite",
        path: "/rows",
        connections: 2,
        windows: 2,
    },
];

/// The scenario of that name.
///
/// # Errors
/// There is none.
pub fn scenario(name: &str) -> Result<Scenario> {
    let names = || {
        SCENARIOS
            .iter()
            .map(|s| s.name)
            .collect::<Vec<_>>()
            .join(", ")
    };
    SCENARIOS
        .iter()
        .find(|scenario| scenario.name == name)
        .copied()
        .with_context(|| format!("there is no scenario {name}: there are {}", names()))
}

/// How requests are sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// Each connection sends its next request when the one before is answered.
    Saturated,
    /// So many a second, whether those before are answered or not; what a request waits for its turn
    /// counts as its latency.
    Fixed(f64),
}

/// A quantile is told where so many requests were slower: 3 of 300 tell something of p99, the slowest of 30 does not.
const SLOWER_MIN: f64 = 3.0;

/// What a stretch of load has shown.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Window {
    /// Answered requests.
    pub requests: usize,
    /// Requests a second.
    pub throughput: f64,
    /// Latencies in ms; no number where fewer than [`SLOWER_MIN`] requests were slower.
    pub p50: f64,
    /// As above.
    pub p99: f64,
    /// As above.
    pub p999: f64,
    /// The service's CPU time per request, in µs.
    pub cpu: f64,
    /// The load's own socket operations per request.
    pub operations: f64,
}

/// A backend on uvloop that answers whatever it is asked.
#[derive(Debug)]
pub struct Bare {
    process: Process,
    /// Where it listens, a port for each host.
    pub addrs: Vec<SocketAddr>,
    /// Its processes, one for each host.
    pub pids: Vec<u32>,
    _folder: Folder,
}

impl Bare {
    /// Starts one that listens on these hosts.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start(venv: &Venv, hosts: &[String]) -> Result<Self> {
        let folder = Folder::new()?;
        let mut command = Command::new(venv.program("python"));
        command.arg(asset("bare.py")).args(hosts);
        let mut process = Process::start(&mut command, &folder.path().join("log"))?;
        let listening = |line: &str| -> Option<(SocketAddr, u32)> {
            let (addr, pid) = line.strip_prefix("listening ")?.split_once(' ')?;
            Some((addr.parse().ok()?, pid.parse().ok()?))
        };
        let (addrs, pids) = process
            .wait_for(Duration::from_secs(30), |log| {
                let found: (Vec<_>, Vec<_>) = log.lines().filter_map(listening).unzip();
                (found.0.len() == hosts.len()).then_some(found)
            })
            .context("the backend does not come up")?;
        Ok(Self {
            process,
            addrs,
            pids,
            _folder: folder,
        })
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }
}

/// The services, and what stands behind them.
#[derive(Debug)]
pub struct Services {
    /// The bench's environment.
    pub venv: Venv,
    /// Who runs where.
    pub cpus: Cpus,
    // In the order in which they end.
    backend: Bare,
    postgres: Option<Postgres>,
    /// Why there is no Postgres.
    pub no_postgres: Option<String>,
}

impl Services {
    /// Starts what stands behind the services.
    ///
    /// # Errors
    /// The backend does not come up. That there is no Postgres is no error.
    pub fn start(venv: Venv, with_postgres: bool) -> Result<Self> {
        let cpus = Cpus::choose()?;
        cpus.keep_off()?;
        let backend = Bare::start(&venv, &["127.0.0.1".to_owned()])?;
        let (postgres, no_postgres) = match with_postgres.then(Postgres::start) {
            Some(Ok(postgres)) => (Some(postgres), None),
            Some(Err(why)) => (None, Some(format!("{why:#}"))),
            None => (None, None),
        };
        Ok(Self {
            venv,
            cpus,
            backend,
            postgres,
            no_postgres,
        })
    }

    /// Whether a scenario can be run.
    pub fn can(&self, scenario: Scenario) -> bool {
        scenario.name != "postgres" || self.postgres.is_some()
    }

    /// Where calls and exports go.
    ///
    /// # Errors
    /// It listens nowhere.
    pub fn backend(&self) -> Result<String> {
        let addr = self.backend.addrs.first().context("no backend")?;
        Ok(format!("http://{addr}"))
    }

    /// Starts a service, with a tool in its process where one is named.
    ///
    /// # Errors
    /// It does not come up.
    pub fn service(&self, with: Option<&str>) -> Result<Service> {
        let mut builder = Service::builder()
            .venv(&self.venv)
            .app(asset("service.py"))
            .env("BENCH_BACKEND", self.backend()?);
        if let Some(postgres) = &self.postgres {
            builder = builder.env("BENCH_POSTGRES", postgres.dsn());
        }
        if let Some(tool) = with {
            builder = builder.env("BENCH_WITH", tool);
        }
        self.cpus.on_service(|| builder.start())?
    }
}

/// A file of the bench.
pub fn asset(name: &str) -> PathBuf {
    paths::workspace().join("xtask/assets/bench").join(name)
}

/// The folder of the bench's results and recordings.
///
/// # Errors
/// It cannot be made.
pub fn folder() -> Result<PathBuf> {
    let folder = paths::target().join("bench");
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot create {}", folder.display()))?;
    Ok(folder)
}

/// Puts a scenario's load on a process that listens at `target`, and measures.
///
/// # Errors
/// Requests fail, or the process is gone.
pub fn window(
    scenario: Scenario,
    service: (u32, &Target),
    pace: Pace,
    time: Duration,
    stop: &Arc<AtomicBool>,
) -> Result<Window> {
    settled(scenario, service, None, pace, [Duration::ZERO, time], stop).map(|(window, _)| window)
}

/// The same, after the load has run for a while on the same connections; also the CPU time of another process
/// meanwhile, where one is named.
///
/// # Errors
/// As above.
pub fn settled(
    scenario: Scenario,
    (pid, target): (u32, &Target),
    beside: Option<u32>,
    pace: Pace,
    [before, time]: [Duration; 2],
    stop: &Arc<AtomicBool>,
) -> Result<(Window, Option<Duration>)> {
    let mut load = Load::new(target.clone(), [Request::get(scenario.path)])
        .connections(scenario.connections)
        .duration(before + time)
        .stop_on(stop);
    if let Pace::Fixed(rate) = pace {
        load = load.rate(rate);
    }
    let times = || anyhow::Ok((cpu_time(pid)?, beside.map(cpu_time).transpose()?));
    let (truths, mark, begun) = thread::scope(|scope| {
        let marked = scope.spawn(|| {
            thread::sleep(before);
            anyhow::Ok((monotonic_ns(), times()?))
        });
        let truths = load.run();
        let (mark, begun) = match marked.join() {
            Ok(marked) => marked?,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        anyhow::Ok((truths?, mark, begun))
    })?;
    let ended = times()?;
    // What came before is judged as well: a request that fails is told.
    let from = if before.is_zero() { 0 } else { mark };
    let seen = Window::of(&truths, from, ended.0.saturating_sub(begun.0))
        .with_context(|| format!("the load on {} failed", scenario.path))?;
    let outside = ended
        .1
        .zip(begun.1)
        .map(|(end, begin)| end.saturating_sub(begin));
    Ok((seen, outside))
}

impl Window {
    /// What a load says of the requests that were due at or after that time of `CLOCK_MONOTONIC`, and the service's CPU
    /// time since then.
    ///
    /// # Errors
    /// A request failed.
    pub fn of(truths: &[Truth], from: u64, cpu: Duration) -> Result<Self> {
        let failed = truths
            .iter()
            .filter(|truth| !truth.complete || truth.status != 200)
            .count();
        if failed > 0 {
            bail!("{failed} of {} requests failed", truths.len());
        }
        let truths: Vec<_> = truths.iter().filter(|truth| truth.due >= from).collect();
        let begin = truths.iter().map(|truth| truth.due).min();
        let end = truths.iter().map(|truth| truth.end).max();
        let (Some(begin), Some(end)) = (begin, end) else {
            bail!("no request was sent");
        };
        let mut latencies: Vec<u64> = truths.iter().map(|truth| truth.end - truth.due).collect();
        latencies.sort_unstable();
        #[expect(clippy::cast_precision_loss, reason = "below 2^52")]
        let (count, elapsed, millis) = (
            truths.len() as f64,
            (end - begin).max(1) as f64 / 1e9,
            |q: f64| {
                let slower = (latencies.len() as f64 * (1.0 - q)).round();
                let told = quantile(&latencies, q).filter(|_| slower >= SLOWER_MIN);
                told.map_or(f64::NAN, |nanos| nanos as f64 / 1e6)
            },
        );
        let operations: u32 = truths.iter().map(|truth| truth.operations).sum();
        Ok(Self {
            requests: truths.len(),
            throughput: count / elapsed,
            p50: millis(0.5),
            p99: millis(0.99),
            p999: millis(0.999),
            cpu: cpu.as_secs_f64() * 1e6 / count,
            operations: f64::from(operations) / count,
        })
    }
}

/// A process of a service, for [`window`].
pub fn of(service: &Service) -> (u32, &Target) {
    (service.pid, &service.target)
}

/// The path of the py-spy in an environment.
pub fn py_spy(venv: &Venv) -> PathBuf {
    venv.program("py-spy")
}

/// A file's length, in bytes; none where there is no file.
pub fn length(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |meta| meta.len())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use proptest::prelude::*;

    use super::*;

    fn truth(due: u64, start: u64, end: u64) -> Truth {
        Truth {
            request: Arc::new(Request::get("/")),
            index: 0,
            local_port: 1,
            sequence: 0,
            status: 200,
            request_bytes: 1,
            response_bytes: 1,
            response_body_bytes: 1,
            due,
            start,
            end,
            operations: 3,
            complete: true,
        }
    }

    /// A service that stands still for two seconds at 100 requests/s, on one connection: who counts from
    /// the sending sees one slow request of 300, whoever counts from when it was due sees that more than half of
    /// all were slow.
    #[test]
    fn coordinated_omission() {
        const MS: u64 = 1_000_000;
        let mut free = 0;
        let truths: Vec<_> = (0..300)
            .map(|n| {
                let due = n * 10 * MS;
                let start = due.max(free);
                // The one that is due after half a second is held up.
                free = start + if n == 50 { 2000 * MS } else { MS };
                truth(due, start, free)
            })
            .collect();
        let slow = truths.iter().filter(|t| t.end - t.start > 2 * MS).count();
        assert_eq!(slow, 1);
        let window = Window::of(&truths, 0, Duration::from_millis(300)).unwrap();
        assert!(window.p50 > 1.0, "{window:?}");
        assert!(window.p99 > 1900.0, "{window:?}");
        assert!(window.p999.is_nan(), "none of 300 was slower: {window:?}");
        assert!((window.cpu - 1000.0).abs() < 1e-6);
        assert!((window.operations - 3.0).abs() < 1e-9);
    }

    /// Requests that were due before the window count for nothing but their failures.
    #[test]
    fn before() {
        let truths: Vec<_> = (0..10).map(|n| truth(n, n, n + 1)).collect();
        let window = Window::of(&truths, 4, Duration::from_micros(12)).unwrap();
        assert_eq!(window.requests, 6);
        assert!((window.cpu - 2.0).abs() < 1e-9);
        let mut failed = truths;
        failed[0].complete = false;
        assert!(Window::of(&failed, 4, Duration::ZERO).is_err());
    }

    /// A window with failures, or without requests, gives no figures.
    #[test]
    fn failures() {
        let mut bad = truth(0, 0, 1);
        bad.status = 500;
        let error = Window::of(&[truth(0, 0, 1), bad], 0, Duration::ZERO).unwrap_err();
        assert_eq!(error.to_string(), "1 of 2 requests failed");
        assert!(Window::of(&[], 0, Duration::ZERO).is_err());
    }

    /// Every scenario is found by its name, and names are unique.
    #[test]
    fn names() {
        for one in SCENARIOS {
            assert_eq!(scenario(one.name).unwrap(), *one);
        }
        assert!(
            scenario("nothing")
                .unwrap_err()
                .to_string()
                .contains("sqlite, plain")
        );
    }

    proptest! {
        /// A latency counted from when the request was due is never below that from its sending.
        #[test]
        fn corrected_is_more(times in prop::collection::vec((0..1000_u64, 0..1000_u64, 1..1000_u64), 250..300)) {
            let truths: Vec<_> = times
                .iter()
                .map(|&(due, wait, work)| truth(due, due + wait, due + wait + work))
                .collect();
            let corrected = Window::of(&truths, 0, Duration::ZERO).unwrap();
            let sent: Vec<_> = truths.iter().map(|t| Truth { due: t.start, ..t.clone() }).collect();
            let naive = Window::of(&sent, 0, Duration::ZERO).unwrap();
            prop_assert!(corrected.p50 >= naive.p50 && corrected.p99 >= naive.p99);
        }
    }
}
