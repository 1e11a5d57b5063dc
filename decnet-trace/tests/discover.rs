//! Discovery of the real web servers, with all of their processes.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    collections::BTreeMap,
    path::Path,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use decnet_trace::discover::{Change, Discovery, Listen, Runtime, Selector, TracedProcess, Why};
use xtask::bed::{
    process::{Folder, Process},
    service::{Service, app},
    venv::Venv,
};

/// The traced processes among `group`, by pid.
fn scan(group: impl Fn(&TracedProcess) -> bool) -> BTreeMap<u32, Arc<TracedProcess>> {
    Discovery::new(Selector::default(), std::process::id())
        .scan_all()
        .into_iter()
        .filter_map(|change| match change {
            Change::Trace(traced) if group(&traced) => Some((traced.process.pid, traced)),
            _ => None,
        })
        .collect()
}

/// Of a uvicorn with workers, the supervisor and every worker are traced, and not the helpers beside
/// them; the workers, whose command lines say nothing, are called as the supervisor is.
#[test]
fn finds_uvicorn_and_its_workers() {
    let service = Service::builder().workers(2).start().unwrap();
    let address = Listen::Tcp(service.addr());
    let pid = service.pid;
    let traced = scan(|traced| traced.process.pid == pid || traced.process.ppid == pid);
    let mut expected = service.workers.clone();
    expected.push(pid);
    expected.sort_unstable();
    assert_eq!(traced.keys().copied().collect::<Vec<_>>(), expected);
    let supervisor = &traced[&pid];
    assert_eq!(supervisor.why, Why::Server("uvicorn"));
    // The application is `app:app`, so that its directory tells more.
    let directory = app().parent().unwrap().file_name().unwrap().to_owned();
    for one in traced.values() {
        assert_eq!(one.resource.service_name.as_str(), directory.as_os_str());
        assert!(one.process.listening.contains(&address), "{one:?}");
        assert!(matches!(one.process.runtime, Runtime::CPython { .. }));
    }
}

/// The environment that a uvicorn was started with names it; one worker serves itself.
#[test]
fn names_uvicorn_by_its_environment() {
    let service = Service::builder()
        .env("OTEL_SERVICE_NAME", "shop")
        .env("OTEL_RESOURCE_ATTRIBUTES", "service.name=no,team=a")
        .uds()
        .start()
        .unwrap();
    let traced = scan(|traced| traced.process.pid == service.pid);
    let one = &traced[&service.pid];
    assert_eq!(one.resource.service_name, "shop");
    let team = one
        .resource
        .attributes
        .iter()
        .find(|(key, _)| key == "team");
    assert!(team.is_some());
    assert!(matches!(one.process.listening[..], [Listen::Unix(_)]));
}

/// Of the servers with processes of their own, gunicorn's that forks and hypercorn's that spawns, all
/// that serve are found under one name.
#[test]
fn finds_other_servers() {
    let venv = Venv::web().unwrap();
    for (server, arguments) in [
        (
            "gunicorn",
            ["-w", "2", "-k", "uvicorn.workers.UvicornWorker"].as_slice(),
        ),
        ("hypercorn", &["-w", "2"]),
    ] {
        let dir = Folder::new().unwrap();
        std::fs::write(
            dir.path().join("parcels.py"),
            "async def app(scope, receive, send): pass\n",
        )
        .unwrap();
        let mut process = start(&venv, server, arguments, dir.path());
        let pid = process.pid();
        let mut traced = BTreeMap::new();
        let limit = Instant::now() + Duration::from_secs(60);
        // The master, and two workers.
        while traced.len() < 3 && Instant::now() < limit {
            assert!(
                process.try_wait().unwrap().is_none(),
                "{}",
                process.output().unwrap()
            );
            std::thread::sleep(Duration::from_millis(100));
            traced = scan(|traced| traced.process.pid == pid || traced.process.ppid == pid);
        }
        assert_eq!(traced.len(), 3, "{server}: {traced:?}");
        for one in traced.values() {
            assert_eq!(one.resource.service_name, "parcels", "{server}: {one:?}");
        }
        assert_eq!(traced[&pid].why, Why::Server(server));
    }
}

fn start(venv: &Venv, server: &'static str, arguments: &[&str], dir: &Path) -> Process {
    Process::start(
        Command::new(venv.program(server))
            .args(arguments)
            .args(["--bind", "127.0.0.1:0", "parcels:app"])
            .current_dir(dir)
            .env_remove("OTEL_SERVICE_NAME")
            .env_remove("OTEL_RESOURCE_ATTRIBUTES"),
        &dir.join("log"),
    )
    .unwrap()
}
