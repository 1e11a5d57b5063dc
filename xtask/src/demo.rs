//! `cargo xtask run --demo`: two sample services under load, and the agent beside them.

use std::{
    ffi::OsString,
    fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, ExitStatus},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    bed::{
        load::{Load, Request, Truth},
        service::{Http, Loop, Service},
        venv::Venv,
    },
    command::say,
    paths, run,
};

/// Requests a second on each service: a busy one, on a machine that is not saturated.
const RATE: f64 = 150.0;

/// Connections to each service.
const CONNECTIONS: usize = 16;

/// What starting and ending the agent may take beside its duration.
const GRACE: Duration = Duration::from_secs(60);

/// Sets up what is missing, builds both sides, and shows the agent at work for `duration`; `args`
/// go to the agent beside the demo's own. Ends early, and leaves nothing behind, on SIGINT and SIGTERM.
///
/// # Errors
/// Something cannot be had or built, a service does not start, or the agent fails.
pub fn run(duration: Duration, args: &[OsString]) -> Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop)).context("cannot watch signals")?;
    }
    let program = run::build()?;
    let venv = Venv::web()?;
    let folder = paths::workspace().join("target/demo");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let profile = folder.join("flamegraph.svg");
    let store = folder.join("store");

    let mut services = Vec::new();
    for (event_loop, http) in [(Loop::Uvloop, Http::Httptools), (Loop::Asyncio, Http::H11)] {
        give_way(&stop)?;
        let service = Service::builder()
            .venv(&venv)
            .event_loop(event_loop)
            .http(http)
            .env("OTEL_SERVICE_NAME", format!("{event_loop}-{http}"))
            .start()?;
        say(format!(
            "started uvicorn with {event_loop} and {http}: pid {}, http://{}",
            service.pid,
            service.addr()
        ));
        services.push(service);
    }
    say(format!(
        "sending {RATE} requests/s over {CONNECTIONS} connections to each"
    ));
    let loads: Vec<_> = services
        .iter()
        .map(|service| {
            // Its end is set by the flag; the limit is for the case that this process is killed.
            let load = Load::new(service.target.clone(), mix())
                .connections(CONNECTIONS)
                .rate(RATE)
                .duration(duration + 2 * GRACE)
                .stop_on(&stop);
            thread::spawn(move || load.run())
        })
        .collect();

    let mut command = run::as_root(program.clone())?;
    command.arg("run");
    for service in &services {
        command.arg("--pid").arg(service.pid.to_string());
    }
    command
        .args(["--duration", &duration.as_secs().to_string(), "--summary"])
        .arg("--profile-out")
        .arg(&profile)
        .arg("--store")
        .arg(&store)
        .args(args);
    let shown: Vec<_> = command
        .get_args()
        .map(|arg| arg.to_string_lossy())
        .collect();
    say(format!(
        "tracing for {} s: decnet-trace {}",
        duration.as_secs(),
        shown[usize::from(
            shown
                .first()
                .is_some_and(|arg| arg.ends_with("/decnet-trace"))
        )..]
            .join(" ")
    ));
    if rustix::process::geteuid().is_root() {
        // Then it gets signals from here alone, and each once. Sudo needs the terminal's group.
        command.process_group(0);
    }
    let mut agent = command.spawn().context("cannot start decnet-trace")?;
    let result = watch(&mut agent, duration + GRACE, &stop);

    let interrupted = stop.swap(true, Ordering::Relaxed);
    for (service, load) in services.iter().zip(loads) {
        match load.join() {
            Ok(truths) => say(account(service.pid, &truths?)),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
    drop(services);
    let status = result?;
    if interrupted {
        bail!("interrupted");
    }
    if !status.success() {
        bail!("decnet-trace ended with {status}");
    }
    if profile.exists() {
        say(format!("flamegraph: {}", profile.display()));
    }
    slowest(program, &store)
}

/// Shows the slowest requests of the store, with the calls that they made.
fn slowest(program: PathBuf, store: &Path) -> Result<()> {
    let mut command = run::as_root(program)?;
    command
        .args(["requests", "--slowest", "3", "--store"])
        .arg(store);
    say(format!(
        "the slowest: decnet-trace requests --slowest 3 --store {}",
        store.display()
    ));
    let status = command.status().context("cannot start decnet-trace")?;
    if !status.success() {
        bail!("decnet-trace requests ended with {status}");
    }
    Ok(())
}

/// Waits for the agent's end, and asks for it where this one is asked to end, or `limit` is over.
/// (An agent under sudo gets a terminal's Ctrl-C by itself, and no signal from here.)
fn watch(agent: &mut Child, limit: Duration, stop: &AtomicBool) -> Result<ExitStatus> {
    const STEP: Duration = Duration::from_millis(50);
    let mut left = limit;
    let mut told = false;
    loop {
        if let Some(status) = agent.try_wait().context("cannot wait for decnet-trace")? {
            return Ok(status);
        }
        if !told && (stop.load(Ordering::Relaxed) || left.is_zero()) {
            told = true;
            left = GRACE / 4;
            let _ = kill_process(Pid::from_child(agent), Signal::TERM);
        } else if told && left.is_zero() {
            let _ = agent.kill();
            let _ = agent.wait();
            bail!("decnet-trace did not end, and was killed");
        }
        thread::sleep(STEP);
        left = left.saturating_sub(STEP);
    }
}

fn give_way(stop: &AtomicBool) -> Result<()> {
    if stop.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    Ok(())
}

/// What the services are asked for: mostly short requests, some that wait, compute or fail.
fn mix() -> Vec<Request> {
    let mut requests = Vec::new();
    for n in 0..10 {
        requests.extend([
            Request::get("/"),
            Request::get(format!("/items/{n}")),
            Request::get(format!("/db?user={n}")),
            Request::get("/slow?ms=20"),
            Request::post("/echo", vec![b'x'; 2000]),
            Request::get("/sync"),
            Request::get("/cpu?ms=4"),
            Request::get("/stream/5/2000"),
            Request::get("/sized/20000"),
        ]);
        requests.push(match n {
            0 => Request::get("/error"),
            1 => Request::get("/missing"),
            _ => Request::get("/nocontent"),
        });
    }
    requests
}

/// What the load itself saw, to hold the agent's summary against.
fn account(pid: u32, truths: &[Truth]) -> String {
    let mut times: Vec<u64> = truths
        .iter()
        .filter(|truth| truth.complete)
        .map(|truth| truth.end - truth.start)
        .collect();
    times.sort_unstable();
    let quantile = |q: usize| {
        let at = (times.len() * q / 100).min(times.len().saturating_sub(1));
        Duration::from_nanos(times.get(at).copied().unwrap_or_default())
    };
    let failed = truths.iter().filter(|truth| truth.status >= 500).count();
    format!(
        "pid {pid}: the client sent {} requests, {failed} answered with 5xx, {} without an answer; \
         p50 {:.1?}, p99 {:.1?}",
        truths.len(),
        truths.len() - times.len(),
        quantile(50),
        quantile(99)
    )
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::ExitStatusExt as _, process::Command};

    use super::*;

    /// When the demo is told to end, the agent gets one SIGTERM and ends in its own way.
    #[test]
    fn agent_is_told_to_end() {
        let script = "trap 'exit 5' TERM; while :; do sleep 0.05; done";
        let mut agent = Command::new("sh")
            .args(["-c", script])
            .spawn()
            .expect("a shell");
        let stop = AtomicBool::new(false);
        let status = thread::scope(|scope| {
            scope.spawn(|| {
                // Time for the shell to set its trap.
                thread::sleep(Duration::from_millis(500));
                stop.store(true, Ordering::Relaxed);
            });
            watch(&mut agent, Duration::from_secs(60), &stop).expect("an end")
        });
        assert_eq!(status.code(), Some(5));
    }

    /// An agent that does not end by itself is asked to at its limit.
    #[test]
    fn limit_is_kept() {
        let mut agent = Command::new("sleep").arg("60").spawn().expect("sleep");
        let limit = Duration::from_millis(100);
        let status = watch(&mut agent, limit, &AtomicBool::new(false)).expect("an end");
        assert_eq!(status.signal(), Some(15));
    }

    /// The account's numbers are those of the truths.
    #[test]
    fn account_adds_up() {
        let truth = |ms: u64, status, complete| Truth {
            request: Arc::new(Request::get("/")),
            index: 0,
            local_port: 1,
            sequence: 0,
            status,
            request_bytes: 1,
            response_bytes: 1,
            response_body_bytes: 1,
            due: 5,
            start: 5,
            operations: 2,
            end: 5 + ms * 1_000_000,
            complete,
        };
        let mut truths: Vec<_> = (1..=100).map(|ms| truth(ms, 200, true)).collect();
        truths.push(truth(1, 500, true));
        truths.push(truth(30_000, 0, false));
        assert_eq!(
            account(7, &truths),
            "pid 7: the client sent 102 requests, 1 answered with 5xx, 1 without an answer; \
             p50 50.0ms, p99 99.0ms"
        );
        assert!(account(7, &[]).contains("sent 0 requests"));
    }
}
