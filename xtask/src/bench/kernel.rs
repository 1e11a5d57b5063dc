//! Where the time goes in the kernel: each program's time per hit and hits per request, by the kernel's
//! own run-time statistics; the traps of uprobes; and beside them what the service was seen to lose.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};
use aya::{
    programs::loaded_programs,
    sys::{Stats, enable_stats},
};
use aya_obj::{ProgramSection, generated::bpf_prog_type};

use super::{
    Setup,
    agent::Tool,
    machine::BpfUse,
    overhead::cpu_more,
    progress::Progress,
    report::{Report, number},
    services::{Pace, Scenario, Services, asset, of, window},
    stats::median,
    table::Table,
    trap::{self, Prices},
    variants::Variant,
};
use crate::{
    bed::process::{Folder, Process},
    build_ebpf::Flavour,
};

/// Stretches under statistics, for a spread.
const STRETCHES: usize = 3;

/// What is looked at on each route.
const LOOKED_AT: [&str; 2] = ["agent", "everything"];

/// How long a stretch under statistics is.
fn stretch(setup: &Setup) -> Duration {
    setup.window
}

/// How long it takes.
pub fn plan(setup: &Setup) -> Duration {
    let pair = 3 * setup.window + Duration::from_secs(2);
    let pairs = match setup.all {
        true => 0,
        false => u32::try_from(setup.pairs).unwrap_or(u32::MAX),
    };
    let accounts = u32::try_from(setup.scenarios.len() * LOOKED_AT.len()).unwrap_or(1);
    accounts * (pairs * pair + 4 * stretch(setup) + Duration::from_secs(4))
        + Duration::from_secs(10)
}

/// What a program did until now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Runs {
    pub(super) hits: u64,
    pub(super) nanos: u64,
    pub(super) is_uprobe: bool,
}

/// The programs of a process, by name; programs of the same name are one.
pub(super) fn runs(pid: u32) -> Result<BTreeMap<String, Runs>> {
    let own = BpfUse::of(pid)?.programs;
    let mut runs: BTreeMap<String, Runs> = BTreeMap::new();
    for info in loaded_programs() {
        // One may be unloaded meanwhile.
        let Ok(info) = info else { continue };
        if own.binary_search(&info.id()).is_ok() {
            let name = info.name_as_str().unwrap_or("?").to_owned();
            let entry = runs.entry(name).or_default();
            entry.hits += info.run_count();
            entry.nanos += u64::try_from(info.run_time().as_nanos()).unwrap_or(u64::MAX);
            entry.is_uprobe |= info.program_type() == bpf_prog_type::BPF_PROG_TYPE_KPROBE;
        }
    }
    Ok(runs)
}

/// What each program did between two looks.
pub(super) fn since(
    before: &BTreeMap<String, Runs>,
    after: BTreeMap<String, Runs>,
) -> BTreeMap<String, Runs> {
    after
        .into_iter()
        .map(|(name, now)| {
            let was = before.get(&name).cloned().unwrap_or_default();
            let runs = Runs {
                hits: now.hits.saturating_sub(was.hits),
                nanos: now.nanos.saturating_sub(was.nanos),
                is_uprobe: now.is_uprobe,
            };
            (name, runs)
        })
        .filter(|(_, runs)| runs.hits > 0)
        .collect()
}

/// What the kernel's names of programs stand for: it cuts them to 15 characters.
#[derive(Debug, Default)]
struct Names {
    whole: BTreeMap<String, Vec<String>>,
    /// Those that stand at a function's return.
    at_return: BTreeSet<String>,
}

impl Names {
    fn of(object: &[u8]) -> Result<Self> {
        let object = aya_obj::Object::parse(object).context("cannot parse the eBPF object")?;
        let mut names = Self::default();
        for (name, program) in &object.programs {
            let at_return = matches!(program.section, ProgramSection::URetProbe { .. });
            names.add(name, at_return);
        }
        Ok(names)
    }

    fn add(&mut self, name: &str, at_return: bool) {
        let short: String = name.chars().take(15).collect();
        if at_return {
            self.at_return.insert(short.clone());
        }
        let whole = self.whole.entry(short).or_default();
        whole.push(name.to_owned());
        whole.sort_unstable();
    }

    /// The name, or the names, that the kernel shows as `short`.
    fn whole(&self, short: &str) -> String {
        match self.whole.get(short) {
            Some(names) => names.join(", "),
            None => short.to_owned(),
        }
    }
}

/// A stretch of load under statistics, per request.
struct Stretch {
    programs: BTreeMap<String, Runs>,
    requests: f64,
    /// Socket operations of the load itself, per request.
    operations: f64,
}

/// Puts load on the service with the agent at work, and looks at the agent's programs.
fn measure(
    setup: &Setup,
    scenario: Scenario,
    service: &crate::bed::service::Service,
    agent: &Tool,
    progress: &Progress,
) -> Result<Stretch> {
    let _stats = enable_stats(Stats::RunTime)
        .context("the kernel keeps no run-time statistics (Linux 5.8 does, for root)")?;
    let before = runs(agent.pid())?;
    let seen = window(
        scenario,
        of(service),
        Pace::Saturated,
        stretch(setup),
        progress.stop(),
    )?;
    let programs = since(&before, runs(agent.pid())?);
    #[expect(clippy::cast_precision_loss, reason = "below 2^52")]
    Ok(Stretch {
        programs,
        requests: seen.requests as f64,
        operations: seen.operations,
    })
}

/// Socket operations of what stands behind a route, per request: a read and a write for each question.
fn behind(scenario: Scenario) -> f64 {
    match scenario.name {
        "calls" => 6.0,
        "postgres" => 2.0,
        _ => 0.0,
    }
}

/// Measures all routes, and prints a table for each.
///
/// # Errors
/// Something does not start, requests fail, there are no statistics, or the run is interrupted.
pub fn run(
    setup: &Setup,
    services: &Services,
    progress: &mut Progress,
    report: &mut Report,
) -> Result<()> {
    progress.step("kernel: the price of a trap", Duration::from_secs(1))?;
    let prices = trap::prices(setup.pairs.max(2))?;
    let entry = report.note("kernel/trap/entry", "ns", prices.entry.clone());
    let both = report.note("kernel/trap/return", "ns", prices.entry_and_return.clone());
    progress.step("kernel: operations of others", stretch(setup))?;
    let refused = refused(setup, services, progress)?;
    let shown = report.note("kernel/refused", "ns", refused.clone());
    progress.clear();
    let mut table = Table::new(&["kernel: prices", "ns"]);
    for (what, price) in [
        ("a trap at a function's entry", entry),
        ("with one at its return", both),
        ("a socket operation of a process that is not traced", shown),
    ] {
        table.row([what.to_owned(), price]);
    }
    report.section("kernel: prices", "", &table);
    let refused = median(&refused).unwrap_or_default();
    let object = Flavour::Plain.object();
    let object = fs::read(&object).with_context(|| format!("cannot read {}", object.display()))?;
    let names = Names::of(&object)?;
    for &scenario in &setup.scenarios {
        for name in LOOKED_AT {
            let variant = Variant::named(name).context("no such variant")?;
            let account = Account {
                setup,
                services,
                scenario,
                variant,
                refused,
                names: &names,
                prices: &prices,
            };
            account.take(progress, report)?;
        }
    }
    Ok(())
}

/// What a socket operation costs that is none of a traced process: the agent looks at one that idles.
fn refused(setup: &Setup, services: &Services, progress: &Progress) -> Result<Vec<f64>> {
    let folder = Folder::new()?;
    let mut idle = Command::new(services.venv.program("python"));
    idle.arg(asset("idle.py")).arg("1");
    let mut idle = Process::start(&mut idle, &folder.path().join("log"))?;
    idle.wait_for(Duration::from_secs(20), |log| {
        log.contains("ready").then_some(())
    })?;
    let service = services.service(None)?;
    let plain = super::services::scenario("plain")?;
    let args = ["run", "--store", "off", "--pid", &idle.pid().to_string()].map(str::to_owned);
    let agent = Tool::agent(&setup.agent, &args)?;
    let mut prices = Vec::new();
    for _ in 0..STRETCHES {
        let seen = measure(setup, plain, &service, &agent, progress)?;
        let (mut hits, mut nanos) = (0, 0);
        for runs in seen.programs.values() {
            hits += runs.hits;
            nanos += runs.nanos;
        }
        #[expect(clippy::cast_precision_loss, reason = "below 2^52")]
        prices.push(nanos as f64 / hits.max(1) as f64);
        progress.check()?;
    }
    agent.stop()?;
    Ok(prices)
}

/// One route with the agent in one configuration.
struct Account<'a> {
    setup: &'a Setup,
    services: &'a Services,
    scenario: Scenario,
    variant: Variant,
    refused: f64,
    names: &'a Names,
    prices: &'a Prices,
}

impl Account<'_> {
    fn take(&self, progress: &mut Progress, report: &mut Report) -> Result<()> {
        let Self {
            setup,
            services,
            scenario,
            variant,
            ..
        } = self;
        let what = format!("kernel, {}: {}", scenario.name, variant.name);
        progress.step(&what, 4 * stretch(setup) + Duration::from_secs(4))?;
        let service = services.service(None)?;
        let args = variant
            .args(service.pid, &services.backend()?)
            .context("not the agent")?;
        let agent = Tool::agent(&setup.agent, &args)?;
        // The first requests arm what the others need.
        window(
            *scenario,
            of(&service),
            Pace::Saturated,
            stretch(setup),
            progress.stop(),
        )?;
        let mut stretches = Vec::new();
        for _ in 0..STRETCHES {
            stretches.push(measure(setup, *scenario, &service, &agent, progress)?);
            progress.check()?;
        }
        agent.stop()?;
        let id = format!(
            "overhead/{}/saturated/{}/cpu_more",
            scenario.name, variant.name
        );
        let paired = match report.get(&id) {
            Some(measured) => measured.samples.clone(),
            None => cpu_more(setup, services, &service, *scenario, *variant, progress)?,
        };
        progress.clear();
        self.table(&stretches, paired, report);
        Ok(())
    }

    fn table(&self, stretches: &[Stretch], paired: Vec<f64>, report: &mut Report) {
        let id = format!("kernel/{}/{}", self.scenario.name, self.variant.name);
        let mut table = Table::new(&[
            "program",
            "hits per request",
            "ns per hit",
            "µs per request",
        ]);
        let names: Vec<&String> = {
            let mut names: Vec<_> = stretches.iter().flat_map(|s| s.programs.keys()).collect();
            names.sort_unstable();
            names.dedup();
            names
        };
        for name in names {
            let of = |figure: fn(&Runs, f64) -> f64| -> Vec<f64> {
                stretches
                    .iter()
                    .filter_map(|s| Some(figure(s.programs.get(name)?, s.requests)))
                    .collect()
            };
            let hits = report.note(format!("{id}/{name}/hits"), "per request", of(hits));
            let nanos = report.note(format!("{id}/{name}/nanos"), "ns per hit", of(nanos));
            let micros = report.note(format!("{id}/{name}/micros"), "us per request", of(micros));
            table.row([self.names.whole(name), hits, nanos, micros]);
        }
        let per_stretch =
            |of: &dyn Fn(&Stretch) -> f64| -> Vec<f64> { stretches.iter().map(of).collect() };
        let all = per_stretch(&|s| {
            s.programs
                .values()
                .map(|runs| micros(runs, s.requests))
                .sum()
        });
        let others = per_stretch(&|s| (s.operations + behind(self.scenario)) * self.refused / 1e3);
        let service: Vec<_> = all
            .iter()
            .zip(&others)
            .map(|(all, others)| all - others)
            .collect();
        let traps = per_stretch(&|s| self.traps(s).0);
        let trapped = per_stretch(&|s| self.traps(s).1);
        let accounted: Vec<_> = service.iter().zip(&trapped).map(|(a, b)| a + b).collect();
        let account = median(&accounted).unwrap_or_default();
        let rest = paired.iter().map(|seen| seen - account).collect();
        let others = median(&others).map_or_else(String::new, number);
        let mut row = |name: String, id_of: &str, hits: String, samples| {
            let shown = report.note(format!("{id}/{id_of}"), "us per request", samples);
            table.row([name, hits, String::new(), shown]);
        };
        row(
            "all programs, on all CPUs".into(),
            "all",
            String::new(),
            all,
        );
        row(
            format!("of these in the service (less {others} µs of the load and backends)"),
            "service",
            String::new(),
            service,
        );
        let count = median(&traps).map_or_else(String::new, number);
        row("traps of uprobes".into(), "traps", count, trapped);
        row(
            "accounted for".into(),
            "accounted",
            String::new(),
            accounted,
        );
        row(
            "seen: CPU per request, paired windows".into(),
            "paired",
            String::new(),
            paired,
        );
        row("not accounted for".into(), "rest", String::new(), rest);
        let title = format!("kernel, {}: {}", self.scenario.name, self.variant.what);
        report.section(&title, "", &table);
    }

    /// Uprobes hit per request, and their traps' price in µs.
    fn traps(&self, stretch: &Stretch) -> (f64, f64) {
        let entry = median(&self.prices.entry).unwrap_or_default();
        let both = median(&self.prices.entry_and_return).unwrap_or_default();
        let (mut count, mut price) = (0.0, 0.0);
        for (name, runs) in stretch.programs.iter().filter(|(_, runs)| runs.is_uprobe) {
            let hits = hits(runs, stretch.requests);
            let each = if self.names.at_return.contains(name) {
                both
            } else {
                entry
            };
            count += hits;
            price += hits * each / 1e3;
        }
        (count, price)
    }
}

#[expect(clippy::cast_precision_loss, reason = "below 2^52")]
fn hits(runs: &Runs, requests: f64) -> f64 {
    runs.hits as f64 / requests
}

#[expect(clippy::cast_precision_loss, reason = "below 2^52")]
fn nanos(runs: &Runs, _: f64) -> f64 {
    runs.nanos as f64 / runs.hits.max(1) as f64
}

#[expect(clippy::cast_precision_loss, reason = "below 2^52")]
fn micros(runs: &Runs, requests: f64) -> f64 {
    runs.nanos as f64 / 1e3 / requests
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(hits: u64, nanos: u64, is_uprobe: bool) -> Runs {
        Runs {
            hits,
            nanos,
            is_uprobe,
        }
    }

    /// Only what was done in between counts, and a program that was loaded meanwhile counts whole.
    #[test]
    fn differences() {
        let map = |entries: &[(&str, Runs)]| -> BTreeMap<String, Runs> {
            entries
                .iter()
                .map(|(name, runs)| ((*name).to_owned(), runs.clone()))
                .collect()
        };
        let before = map(&[("a", runs(10, 1000, false)), ("b", runs(5, 50, false))]);
        let after = map(&[
            ("a", runs(30, 5000, false)),
            ("b", runs(5, 50, false)),
            ("c", runs(1, 2, true)),
        ]);
        let expected = map(&[("a", runs(20, 4000, false)), ("c", runs(1, 2, true))]);
        assert_eq!(since(&before, after), expected);
    }

    /// Names that the kernel cuts are told in full, as far as they can be told apart.
    #[test]
    fn cut_names() {
        let mut names = Names::default();
        names.add("sock_send_length", false);
        names.add("sched_process_exit", false);
        names.add("sched_process_exec", false);
        names.add("py_context_copied", true);
        assert_eq!(names.whole("sock_send_lengt"), "sock_send_length");
        assert_eq!(
            names.whole("sched_process_e"),
            "sched_process_exec, sched_process_exit"
        );
        assert_eq!(names.whole("other"), "other");
        assert!(names.at_return.contains("py_context_copi"));
    }

    /// Per request: 20 hits of 200 ns each in 10 requests are 0.4 µs.
    #[test]
    fn per_request() {
        let seen = runs(20, 4000, false);
        assert!((hits(&seen, 10.0) - 2.0).abs() < 1e-9);
        assert!((nanos(&seen, 10.0) - 200.0).abs() < 1e-9);
        assert!((micros(&seen, 10.0) - 0.4).abs() < 1e-9);
    }
}
