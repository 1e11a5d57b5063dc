//! Requests that are out of sight or never answered, from which others descend or which descend from others: what
//! they call is nobody's, and never another's.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    process::Command,
    thread,
    time::Duration,
};

use xtask::bed::{
    load::{Load, Request, Target},
    process::{Folder, Process},
    service::{Http, Loop, Service},
    tree,
    venv::Venv,
};

use super::{
    Agent, All, IN_TREE, PATIENCE, Services, Verdicts, can_run, count, support::side_by_side,
    verdicts,
};

/// Without the middleware, which starts a task for each request.
const BARE: [(&str, &str); 1] = [("MIDDLEWARE", "")];

/// More than is seen of one operation.
const PIPELINED: usize = 100;

fn connect(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// A client sends a hundred requests at once, of which but the first forty can be seen. Each is started from the
/// context of the one before it; the calls of those out of sight are not the last visible one's.
#[test]
fn pipelined_out_of_sight() {
    if !can_run() {
        return;
    }
    let cases = [
        (Loop::Uvloop, Http::Httptools),
        (Loop::Asyncio, Http::H11),
        (Loop::Asyncio, Http::Httptools),
    ];
    side_by_side(&cases, |&(event_loop, http)| {
        let services = Services::start_with(event_loop, http, None, &[], &BARE);
        let agent = Agent::start(&["--pid", &services.callers.pid.to_string()]);
        services.warm_up(&agent, &[]);
        let rounds = 4;
        for round in 0..rounds {
            let mut stream = connect(services.callers.addr());
            let request = |n: usize| {
                let rest = match n + 1 == PIPELINED {
                    true => "Connection: close\r\n",
                    false => "X-Padding: 0123456789012345678901234567890123456789\r\n",
                };
                format!("GET /await/h-{round}-{n} HTTP/1.1\r\nHost: a\r\n{rest}\r\n")
            };
            let all: String = (0..PIPELINED).map(request).collect();
            stream.write_all(all.as_bytes()).unwrap();
            let mut answers = String::new();
            stream.read_to_string(&mut answers).unwrap();
            assert_eq!(answers.matches("HTTP/1.1 200").count(), PIPELINED);
        }
        thread::sleep(Duration::from_millis(700));
        let seen = agent.stop();
        let all = verdicts(&seen);
        println!("{event_loop}, {http}: {all:#?}");
        let Verdicts { right, none, wrong } = all["await"];
        assert_eq!(wrong, 0, "{all:#?}");
        assert_eq!(right + none, rounds * PIPELINED * 2, "{all:#?}");
        assert!(
            right >= rounds * 30 * 2 && none >= rounds * 50 * 2,
            "{all:#?}"
        );
    });
}

/// What is read on a connection after a large body descends, on asyncio, from the request that had it. The next
/// request is never answered: its calls are not that one's.
#[test]
fn unanswered_behind_a_large_body() {
    if !can_run() {
        return;
    }
    let backend = Service::builder().start().unwrap();
    let cases = [Http::Httptools, Http::H11];
    side_by_side(&cases, |&http| {
        let callers = Service::builder()
            .app(xtask::paths::workspace().join("xtask/assets/hidden.py"))
            .event_loop(Loop::Asyncio)
            .http(http)
            .env("BACKEND", format!("http://{}/callees", backend.addr()))
            .start()
            .unwrap();
        let agent = Agent::start(&["--pid", &callers.pid.to_string()]);
        agent.wait_for("following the contexts", || {
            let warm_up = Request::get("/await/warm");
            Load::new(callers.target.clone(), [warm_up]).run().unwrap();
        });
        let rounds = 20;
        thread::scope(|scope| {
            for round in 0..rounds {
                let addr = callers.addr();
                scope.spawn(move || {
                    let mut stream = connect(addr);
                    let length = 200_000;
                    let head = format!(
                        "POST /upload/u-{round} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n"
                    );
                    let body = "b".repeat(length);
                    stream.write_all((head + &body).as_bytes()).unwrap();
                    let mut answer = Vec::new();
                    while !answer.ends_with(b"null") {
                        let mut byte = [0];
                        stream.read_exact(&mut byte).unwrap();
                        answer.push(byte[0]);
                    }
                    let request = format!("GET /slow/s-{round} HTTP/1.1\r\nHost: a\r\n\r\n");
                    stream.write_all(request.as_bytes()).unwrap();
                    thread::sleep(Duration::from_millis(80));
                    stream.shutdown(Shutdown::Both).unwrap();
                });
            }
        });
        thread::sleep(Duration::from_millis(1_000));
        let seen = agent.stop();
        let all = verdicts(&seen);
        println!("{http}: {all:#?}");
        let (_, _, wrong) = count(&all, |_| true);
        assert_eq!(wrong, 0, "{all:#?}");
        assert_eq!(all["upload"].right, rounds, "{all:#?}");
        assert!(all["slow"].none >= rounds, "{all:#?}");
    });
}

/// The server of `streams.py`.
fn streams(venv: &Venv, backend: &Service) -> (Process, Folder, SocketAddr) {
    let folder = Folder::new().unwrap();
    let mut command = Command::new(venv.program("python"));
    command
        .arg(xtask::paths::workspace().join("xtask/assets/streams.py"))
        .env("BACKEND", format!("http://{}/callees", backend.addr()));
    let mut process = Process::start(&mut command, &folder.path().join("log")).unwrap();
    let addr = process
        .wait_for(PATIENCE, |log| {
            log.split_once("listening on ")?
                .1
                .lines()
                .next()?
                .parse()
                .ok()
        })
        .unwrap();
    (process, folder, addr)
}

/// Where one task serves a connection's requests in turn, what it leaves behind is that one's for which it did
/// so, not that of the one which it serves when the call is made.
#[test]
fn left_behind_by_a_task_per_connection() {
    if !can_run() {
        return;
    }
    let venv = Venv::web().unwrap();
    let backend = Service::builder().start().unwrap();
    let (process, _folder, addr) = streams(&venv, &backend);
    let agent = Agent::start(&["--pid", &process.pid().to_string()]);
    let load = |requests: Vec<String>, connections| {
        Load::new(Target::Tcp(addr), requests.into_iter().map(Request::get))
            .connections(connections)
            .run()
            .unwrap();
    };
    agent.wait_for("following the contexts", || {
        load(vec!["/pause/warm".to_owned()], 1);
    });
    let rounds = 30;
    thread::scope(|scope| {
        for connection in 0..8 {
            scope.spawn(move || {
                let requests = (0..rounds).flat_map(|round| {
                    ["left", "pause"].map(|way| format!("/{way}/{way}-{connection}-{round}"))
                });
                load(requests.collect(), 1);
            });
        }
    });
    thread::sleep(Duration::from_millis(700));
    let seen = agent.stop();
    let all: All = verdicts(&seen);
    println!("{all:#?}");
    let (right, none, wrong) = count(&all, |_| true);
    assert_eq!(wrong, 0, "{all:#?}");
    assert!(right == 8 * rounds * 3 && none == 0, "{all:#?}");
}

/// Where threads run in a copy of the context of whoever started them (CPython 3.14 and later, if they are told
/// to), a pool's thread is in that of one request for good: nothing is said of calls.
#[test]
fn threads_that_inherit_contexts() {
    if !can_run() {
        return;
    }
    let venv = match tree::ensure("3.14", &IN_TREE) {
        Ok(venv) => venv,
        Err(error) => {
            println!("SKIPPED: threads that inherit contexts: {error:#}");
            return;
        }
    };
    let env = [("PYTHON_THREAD_INHERIT_CONTEXT", "1")];
    let services = Services::start_with(Loop::Asyncio, Http::Httptools, Some(&venv), &[], &env);
    let agent = Agent::start(&["--pid", &services.callers.pid.to_string()]);
    let load = || {
        let requests = (0..20).flat_map(|round| {
            ["executor", "await"].map(|way| Request::get(format!("/{way}/{way}-{round}")))
        });
        Load::new(services.target(), requests)
            .connections(8)
            .run()
            .unwrap();
    };
    agent.wait_for("hand their contexts on to threads", load);
    load();
    thread::sleep(Duration::from_millis(700));
    let seen = agent.stop();
    let all = verdicts(&seen);
    println!("{all:#?}");
    let (right, none, wrong) = count(&all, |_| true);
    assert!((right, wrong) == (0, 0) && none >= 120, "{all:#?}");
}
