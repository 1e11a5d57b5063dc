//! What each rung of identity costs a request: reading contexts, following their descent, their ends, and work
//! through queues; and the statements of SQLite. The time in the programs, and the price of their traps.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result};
use aya::sys::{Stats, enable_stats};

use super::{
    Setup,
    agent::Tool,
    kernel::{Runs, runs, since},
    progress::Progress,
    report::Report,
    services::{Pace, Scenario, Services, of, scenario, window},
    stats::median,
    table::Table,
    trap::{self, Prices},
};
use crate::bed::service::Service;

/// The routes on which the rungs differ.
const ROUTES: [&str; 4] = ["plain", "def", "sqlite", "calls"];

/// Stretches under statistics, for a spread.
const STRETCHES: usize = 3;

/// How long the agent may take until it follows all that it can.
const ARMING: Duration = Duration::from_secs(30);

/// How long a stretch of load is that arms it.
const WARM_UP: Duration = Duration::from_millis(300);

/// A group of programs.
struct Rung {
    name: &'static str,
    what: &'static str,
    /// What the names of its programs begin with, as the kernel cuts them.
    entries: &'static [&'static str],
    /// The same of those that stand at a function's return.
    returns: &'static [&'static str],
}

/// Those that are made of probes. The first rung is no probe: it makes the socket hooks dearer.
const RUNGS: [Rung; 4] = [
    Rung {
        name: "lineage",
        what: "2: descent of contexts",
        entries: &[],
        returns: &["py_context_copi"],
    },
    Rung {
        name: "ends",
        what: "3: ends of contexts",
        entries: &["py_context_ende"],
        returns: &[],
    },
    Rung {
        name: "queues",
        what: "4: work through queues",
        entries: &["py_queue_put"],
        returns: &["py_queue_taken"],
    },
    Rung {
        name: "statements",
        what: "statements of SQLite",
        entries: &["sqlite_"],
        returns: &["sqlite_failed", "sqlite_waited"],
    },
];

/// How long it takes.
pub fn plan(setup: &Setup) -> Duration {
    let routes = u32::try_from(routes(setup).len()).unwrap_or(1);
    let stretches = u32::try_from(2 * STRETCHES).unwrap_or(1);
    Duration::from_secs(20) + routes * stretches * setup.window
}

fn routes(setup: &Setup) -> Vec<Scenario> {
    setup
        .scenarios
        .iter()
        .filter(|scenario| ROUTES.contains(&scenario.name))
        .copied()
        .collect()
}

/// Programs per request in one stretch.
struct Stretch {
    programs: BTreeMap<String, Runs>,
    requests: f64,
}

impl Stretch {
    /// Hits and µs per request of the programs whose names begin so.
    fn of(&self, prefixes: &[&str], but: &[&str]) -> (f64, f64) {
        let begins = |name: &str, with: &[&str]| with.iter().any(|prefix| name.starts_with(prefix));
        let wanted = self
            .programs
            .iter()
            .filter(|(name, _)| begins(name, prefixes) && !begins(name, but));
        let (hits, nanos) = wanted.fold((0, 0), |(hits, nanos), (_, runs)| {
            (hits + runs.hits, nanos + runs.nanos)
        });
        #[expect(clippy::cast_precision_loss, reason = "below 2^52")]
        (
            hits as f64 / self.requests,
            nanos as f64 / 1e3 / self.requests,
        )
    }

    /// Hits of a rung per request, and its µs with the traps.
    fn rung(&self, rung: &Rung, entry: f64, both: f64) -> (f64, f64) {
        let (entries, in_entries) = self.of(rung.entries, rung.returns);
        let (returns, in_returns) = self.of(rung.returns, &[]);
        let traps = (entries * entry + returns * both) / 1e3;
        (entries + returns, in_entries + in_returns + traps)
    }
}

/// Measures all routes, and prints a table.
///
/// # Errors
/// Something does not start, requests fail, there are no statistics, or the run is interrupted.
pub fn run(
    setup: &Setup,
    services: &Services,
    progress: &mut Progress,
    report: &mut Report,
) -> Result<()> {
    progress.step("rungs: the price of a trap", Duration::from_secs(1))?;
    let prices = trap::prices(setup.pairs.max(2))?;
    let service = services.service(None)?;
    let routes = routes(setup);
    let mut without = Vec::new();
    let cost = setup.window * u32::try_from(STRETCHES).unwrap_or(1);
    let agent = start(setup, &service, &["--no-lineage"])?;
    for route in &routes {
        progress.step(&format!("rungs, {}: none", route.name), cost)?;
        without.push(measure(setup, *route, &service, &agent, progress)?);
    }
    agent.stop()?;
    let mut agent = start(setup, &service, &[])?;
    // A process that makes calls, and hands work to threads: from then on it is followed on every route.
    for (name, said) in [
        ("calls", "following the contexts"),
        ("sqlite", "through the queues"),
    ] {
        let load = |progress: &Progress| {
            window(
                scenario(name)?,
                of(&service),
                Pace::Saturated,
                WARM_UP,
                progress.stop(),
            )
        };
        load(progress)?;
        agent
            .says(said, ARMING)
            .with_context(|| format!("the agent is not {said}"))?;
        load(progress)?;
    }
    let mut table = Table::new(&["route", "rung", "hits per request", "µs per request"]);
    for (route, without) in routes.iter().zip(&without) {
        progress.step(&format!("rungs, {}: all", route.name), cost)?;
        let with = measure(setup, *route, &service, &agent, progress)?;
        tell(route.name, without, &with, &prices, report, &mut table);
    }
    agent.stop()?;
    progress.clear();
    report.section("rungs of identity", "", &table);
    Ok(())
}

fn start(setup: &Setup, service: &Service, more: &[&str]) -> Result<Tool> {
    let pid = service.pid.to_string();
    let args = ["run", "--store", "off", "--rate", "0", "--pid", &pid];
    let args: Vec<String> = args.iter().chain(more).map(|&arg| arg.to_owned()).collect();
    Tool::agent(&setup.agent, &args)
}

/// Stretches of load on a route, with the agent's programs under statistics.
fn measure(
    setup: &Setup,
    route: Scenario,
    service: &Service,
    agent: &Tool,
    progress: &Progress,
) -> Result<Vec<Stretch>> {
    let load = |time| window(route, of(service), Pace::Saturated, time, progress.stop());
    load(WARM_UP)?;
    let mut stretches = Vec::new();
    for _ in 0..STRETCHES {
        let _stats = enable_stats(Stats::RunTime)
            .context("the kernel keeps no run-time statistics (Linux 5.8 does, for root)")?;
        let before = runs(agent.pid())?;
        let seen = load(setup.window)?;
        let programs = since(&before, runs(agent.pid())?);
        #[expect(clippy::cast_precision_loss, reason = "below 2^52")]
        stretches.push(Stretch {
            programs,
            requests: seen.requests as f64,
        });
        progress.check()?;
    }
    Ok(stretches)
}

/// Notes the rungs of a route.
fn tell(
    route: &str,
    without: &[Stretch],
    with: &[Stretch],
    prices: &Prices,
    report: &mut Report,
    table: &mut Table,
) {
    let entry = median(&prices.entry).unwrap_or_default();
    let both = median(&prices.entry_and_return).unwrap_or_default();
    let sockets = |stretches: &[Stretch]| -> Vec<f64> {
        stretches.iter().map(|s| s.of(&["sock_"], &[]).1).collect()
    };
    let bare = median(&sockets(without)).unwrap_or_default();
    let mut all: Vec<f64> = sockets(with).iter().map(|more| more - bare).collect();
    let mut row = |id: &str, what: &str, hits: Vec<f64>, micros: Vec<f64>| {
        let id = format!("rungs/{route}/{id}");
        let hits = match hits.is_empty() {
            true => String::new(),
            false => report.note(format!("{id}/hits"), "per request", hits),
        };
        let micros = report.note(format!("{id}/micros"), "us per request", micros);
        table.row([route.to_owned(), what.to_owned(), hits, micros]);
    };
    row(
        "contexts",
        "1: contexts read at sockets",
        Vec::new(),
        all.clone(),
    );
    for rung in &RUNGS {
        let (hits, micros): (Vec<f64>, Vec<f64>) =
            with.iter().map(|s| s.rung(rung, entry, both)).unzip();
        for (all, one) in all.iter_mut().zip(&micros) {
            *all += one;
        }
        if hits.iter().any(|hits| *hits > 0.0) {
            row(rung.name, rung.what, hits, micros);
        }
    }
    row("all", "all of them", Vec::new(), all);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Per request, 2 hits of 300 ns at entries and 1 of 500 at a return, with traps of 1,000 and 2,000 ns, are
    /// 5.1 µs; programs of others are none of it.
    #[test]
    fn a_rung_with_its_traps() {
        let programs = [
            ("py_queue_put", 20, 6_000),
            ("py_queue_taken", 10, 5_000),
            ("sock_send_lengt", 30, 9_000),
        ];
        let stretch = Stretch {
            programs: programs
                .into_iter()
                .map(|(name, hits, nanos)| {
                    let runs = Runs {
                        hits,
                        nanos,
                        is_uprobe: true,
                    };
                    (name.to_owned(), runs)
                })
                .collect(),
            requests: 10.0,
        };
        let (hits, micros) = stretch.rung(&RUNGS[2], 1_000.0, 2_000.0);
        assert!((hits - 3.0).abs() < 1e-9 && (micros - 5.1).abs() < 1e-9);
        assert!(stretch.rung(&RUNGS[1], 1_000.0, 2_000.0).1.abs() < 1e-9);
    }

    /// A program at a return is not counted among entries whose names begin alike.
    #[test]
    fn entries_and_returns() {
        let runs = |hits| Runs {
            hits,
            nanos: 0,
            is_uprobe: true,
        };
        let programs = [("sqlite_begun", runs(4)), ("sqlite_failed", runs(1))];
        let stretch = Stretch {
            programs: programs.map(|(name, runs)| (name.to_owned(), runs)).into(),
            requests: 1.0,
        };
        let (hits, micros) = stretch.rung(&RUNGS[3], 1_000.0, 2_000.0);
        assert!((hits - 5.0).abs() < 1e-9 && (micros - 6.0).abs() < 1e-9);
    }
}
