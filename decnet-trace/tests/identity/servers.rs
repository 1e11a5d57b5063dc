//! Servers without asyncio: a thread that reads and answers one request after the other owns it; one that
//! runs several at a time owns none.

use std::{net::SocketAddr, process::Command, thread, time::Duration};

use xtask::bed::{
    load::{Load, Request, Target},
    process::{Folder, Process},
    service::Service,
    venv::{Venv, WEB, default_python},
};

use super::{Agent, All, Seen, can_run, check_complete, count, support::side_by_side, verdicts};

/// The ways in which `sync_callers.py` makes calls, and how many a request of each makes.
const WAYS: [(&str, usize); 6] = [
    ("plain", 2),
    ("variable", 2),
    ("copied", 1),
    ("pooled", 3),
    ("later", 1),
    ("in_a_loop", 2),
];

/// Requests of each way.
const ROUNDS: usize = 50;

/// How long a server may take to come up.
const START: Duration = Duration::from_secs(60);

/// A server of `sync_callers.py`.
struct Server {
    pid: u32,
    addr: SocketAddr,
    _process: Process,
    _folder: Folder,
}

impl Server {
    fn start(venv: &Venv, backend: &Service, program: &str, args: &[&str]) -> Self {
        let folder = Folder::new().unwrap();
        let assets = xtask::paths::workspace().join("xtask/assets");
        let mut command = Command::new(venv.program(program));
        command
            .args(args)
            .current_dir(assets)
            .env("BACKEND", format!("http://{}/callees", backend.addr()))
            .env("PYTHONDONTWRITEBYTECODE", "1");
        let mut process = Process::start(&mut command, &folder.path().join("log")).unwrap();
        let (addr, pid) = process
            .wait_for(START, |log| {
                let (_, rest) = log.split_once("Listening at: http://")?;
                let addr = rest.split_whitespace().next()?.parse().ok()?;
                let (_, rest) = log.split_once("Booting worker with pid: ")?;
                let pid = rest.lines().next()?.trim().parse().ok()?;
                Some((addr, pid))
            })
            .unwrap();
        Self {
            pid,
            addr,
            _process: process,
            _folder: folder,
        }
    }

    fn request(&self, requests: impl IntoIterator<Item = String>, connections: usize) {
        let requests = requests.into_iter().map(Request::get);
        Load::new(Target::Tcp(self.addr), requests)
            .connections(connections)
            .run()
            .unwrap();
    }

    /// Traces it under load, and judges every call.
    fn judge(&self, connections: usize, follows_queues: bool, args: &[&str]) -> (All, Seen) {
        let agent = Agent::start(&[&["--pid", &self.pid.to_string()], args].concat());
        // A call that came before its interpreter was read does not tell.
        agent.wait_for("following the contexts", || {
            self.request(["/plain/warm".to_owned()], 1);
        });
        if follows_queues {
            agent.wait_for("work off a queue", || {
                self.request(["/pooled/warm".to_owned()], 1);
            });
        }
        self.request(["/nobody/nobody".to_owned()], 1);
        let requests = (0..ROUNDS).flat_map(|round| {
            WAYS.iter()
                .map(move |(way, _)| format!("/{way}/{way}-{round}"))
        });
        self.request(requests, connections);
        thread::sleep(Duration::from_millis(500));
        let seen = agent.stop();
        let all = verdicts(&seen);
        println!("{all:#?}");
        (all, seen)
    }
}

/// The threads of the application's pool.
const POOL: usize = 8;

/// No call is missing, no link wrong, and all calls of requests known but for one in a thousand, and for one
/// of each of the pool's threads: what a thread took that had waited for it before its queue was followed.
fn check(all: &All, seen: &Seen) {
    check_complete(all, &WAYS, ROUNDS, &seen.output);
    let (right, none, wrong) = count(all, |way| way != "nobody");
    assert_eq!(
        wrong + all["nobody"].right + all["nobody"].wrong,
        0,
        "{all:#?}"
    );
    let (_, none_of_pool, _) = count(all, |way| way == "pooled" || way == "later");
    let none = none - none_of_pool.min(POOL);
    assert!(right > 0 && none * 1_000 <= right, "{all:#?}");
    assert!(all["nobody"].none > 0);
}

const GUNICORN: [&str; 4] = [
    "sync_callers:app",
    "--bind",
    "127.0.0.1:0",
    "--worker-class",
];

/// gunicorn's workers, one thread and several, and the standard library's server, one thread and one
/// for each connection.
#[test]
fn blocking_servers() {
    if !can_run() {
        return;
    }
    let venv = Venv::web().unwrap();
    let backend = Service::builder().start().unwrap();
    let gthread = [&GUNICORN[..], &["gthread", "--threads", "8"]].concat();
    let sync = [&GUNICORN[..], &["sync"]].concat();
    let cases = [
        ("gunicorn", &sync[..], 8),
        ("gunicorn", &gthread[..], 32),
        ("python", &["sync_callers.py", "single"][..], 1),
        ("python", &["sync_callers.py", "threaded"][..], 32),
    ];
    side_by_side(&cases, |&(program, args, connections)| {
        println!("{program} {}", args.join(" "));
        let server = Server::start(&venv, &backend, program, args);
        let (all, seen) = server.judge(connections, true, &[]);
        check(&all, &seen);
    });
}

/// The gate notices when it is overlooked that a thread waits for its requests: nothing is known of what the
/// threads of such a server do.
#[test]
fn missing_turns_show() {
    if !can_run() {
        return;
    }
    let venv = Venv::web().unwrap();
    let backend = Service::builder().start().unwrap();
    let args = [&GUNICORN[..], &["gthread", "--threads", "8"]].concat();
    let server = Server::start(&venv, &backend, "gunicorn", &args);
    let (all, seen) = server.judge(32, false, &["--no-blocking-turns"]);
    check_complete(&all, &WAYS, ROUNDS, &seen.output);
    let (right, _, wrong) = count(&all, |_| true);
    assert_eq!((right, wrong), (0, 0), "{all:#?}");
}

/// gevent runs many requests on one thread, each in a greenlet: nothing tells whose turn it is.
#[test]
fn gevent_is_not_guessed() {
    if !can_run() {
        return;
    }
    let packages = [WEB, &["gevent==25.9.1", "packaging==25.0"]].concat();
    let venv = match default_python().and_then(|python| Venv::ensure(&python, &packages)) {
        Ok(venv) => venv,
        Err(error) => {
            println!("SKIPPED: gevent cannot be installed: {error:#}");
            return;
        }
    };
    let backend = Service::builder().start().unwrap();
    let args = [&GUNICORN[..], &["gevent"]].concat();
    let server = Server::start(&venv, &backend, "gunicorn", &args);
    let (all, seen) = server.judge(32, false, &[]);
    let (_, _, wrong) = count(&all, |_| true);
    assert_eq!(wrong, 0, "{all:#?}");
    // A thread cannot run an event loop for several greenlets at a time: some of those requests fail.
    let plain = WAYS.map(|way| way).into_iter();
    let plain: Vec<_> = plain.filter(|(way, _)| *way != "in_a_loop").collect();
    check_complete(&all, &plain, ROUNDS, &seen.output);
    let (right, _, _) = count(&all, |way| way != "in_a_loop");
    assert_eq!(right, 0, "{all:#?}");
}
