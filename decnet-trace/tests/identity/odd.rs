//! Shapes of traffic in which contexts and requests are easily mixed up, and what is told of calls over
//! unix sockets.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpStream},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use xtask::bed::{
    load::{Load, Request},
    process::{Folder, Process},
    service::{Http, Loop},
    venv::{Venv, WEB, default_python, python},
};

use super::{
    Agent, All, CLIENT, PATIENCE, Services, Verdicts, can_run, check, count,
    support::{Span, side_by_side},
    verdicts,
};

/// Ways of `callers.py` whose requests any client may send, and how many calls a request of each makes.
const WAYS: [(&str, usize); 4] = [("task_group", 2), ("eager", 1), ("big", 3), ("turns", 1)];

impl Services {
    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.callers.addr()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Clients that send three requests at once, and read the answers afterwards.
    fn pipelines(&self, rounds: usize) {
        thread::scope(|scope| {
            for round in 0..rounds {
                scope.spawn(move || {
                    let mut stream = self.connect();
                    let request = |n, rest: &str| {
                        format!("GET /await/p-{round}-{n} HTTP/1.1\r\nHost: a\r\n{rest}\r\n")
                    };
                    let all = [
                        request(1, ""),
                        request(2, ""),
                        request(3, "Connection: close\r\n"),
                    ];
                    stream.write_all(all.concat().as_bytes()).unwrap();
                    let mut answers = String::new();
                    stream.read_to_string(&mut answers).unwrap();
                    assert_eq!(answers.matches("HTTP/1.1 200").count(), 3, "{answers}");
                });
            }
        });
    }

    /// Clients that go away before they are answered, or, where they wait for some words of the response, in
    /// the middle of it.
    fn disconnects(&self, way: &str, rounds: usize, wait_for: Option<&str>) {
        thread::scope(|scope| {
            for round in 0..rounds {
                scope.spawn(move || {
                    let mut stream = self.connect();
                    let request = format!("GET /{way}/d-{round} HTTP/1.1\r\nHost: a\r\n\r\n");
                    stream.write_all(request.as_bytes()).unwrap();
                    let mut response = Vec::new();
                    while let Some(words) = wait_for
                        && !String::from_utf8_lossy(&response).contains(words)
                    {
                        let mut byte = [0];
                        stream.read_exact(&mut byte).unwrap();
                        response.push(byte[0]);
                    }
                    thread::sleep(Duration::from_millis(50));
                    stream.shutdown(Shutdown::Both).unwrap();
                });
            }
        });
    }

    /// WebSockets, each with some messages (RFC 6455) that make a call.
    fn sockets(&self, rounds: usize) {
        thread::scope(|scope| {
            for round in 0..rounds {
                scope.spawn(move || {
                    let mut stream = self.connect();
                    let request = format!(
                        "GET /socket/s-{round} HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\
                         Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
                    );
                    stream.write_all(request.as_bytes()).unwrap();
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        let mut byte = [0];
                        stream.read_exact(&mut byte).unwrap();
                        head.push(byte[0]);
                    }
                    for n in 0..3 {
                        // A text of one character, masked with zeros; it comes back.
                        stream
                            .write_all(&[0x81, 0x81, 0, 0, 0, 0, b'0' + n])
                            .unwrap();
                        let mut echo = [0; 3];
                        stream.read_exact(&mut echo).unwrap();
                        assert_eq!(echo, [0x81, 1, b'0' + n]);
                    }
                });
            }
        });
    }
}

/// Task groups, eager tasks, responses that the event loop finishes, a pool used in turn, ten thousand
/// tasks a request, pipelining, WebSockets, clients that go away, and requests that are cancelled then:
/// nothing is mixed up, and nothing is missing.
#[test]
fn odd_shapes() {
    if !can_run() {
        return;
    }
    let newer = python("3.12").or_else(|| python("3.13"));
    let venv = newer
        .map(|python| Venv::ensure(&python, WEB))
        .unwrap_or_else(|| Venv::ensure(&default_python()?, WEB))
        .unwrap();
    let cases = [(Loop::Uvloop, Http::Httptools), (Loop::Asyncio, Http::H11)];
    side_by_side(&cases, |&(event_loop, http)| {
        let services = Services::start(event_loop, http, Some(&venv), &[]);
        let agent = Agent::start(&["--pid", &services.callers.pid.to_string()]);
        services.warm_up(&agent, &[]);
        let mut stream = services.connect();
        stream
            .write_all(b"GET /drip/endless HTTP/1.1\r\nHost: a\r\n\r\n")
            .unwrap();
        stream.read_exact(&mut [0]).unwrap();
        let requests = (0..60)
            .flat_map(|round| {
                WAYS.iter()
                    .map(move |(way, _)| Request::get(format!("/{way}/{way}-{round}")))
            })
            .chain((0..4).map(|round| Request::get(format!("/many/many-{round}"))));
        Load::new(services.target(), requests)
            .connections(32)
            .run()
            .unwrap();
        services.pipelines(20);
        services.sockets(20);
        services.disconnects("slow", 40, None);
        services.disconnects("watched", 20, None);
        services.disconnects("cancelled", 20, Some("second"));
        // A response that goes on keeps no other's calls waiting.
        agent.wait_until("calls while a response goes on", || {
            let is_linked = |span: &&Span| span.kind == CLIENT && !span.parent.is_empty();
            agent.spans_so_far().iter().filter(is_linked).count() > 400
        });
        drop(stream);
        thread::sleep(Duration::from_millis(1_000));
        let seen = agent.stop();
        let all = verdicts(&seen);
        println!("{event_loop}, {http}: {all:#?}");
        let known = WAYS.map(|(way, calls)| (way, calls * 60)).into_iter();
        let known = known.chain([
            ("many", 4),
            ("drip", 1),
            ("await", 20 * 3 * 2),
            ("socket", 20 * 3),
            // Its response had begun when its client went away.
            ("cancelled", 20 * 2),
        ]);
        // No response tells whose these are.
        let unknown = [("slow", 40 * 2), ("watched", 20 * 2)];
        let expected: All = known
            .map(|(way, right)| (way, (right, 0, 0)))
            .chain(unknown.map(|(way, none)| (way, (0, none, 0))))
            .map(|(way, (right, none, wrong))| (way.to_owned(), Verdicts { right, none, wrong }))
            .collect();
        assert_eq!(all, expected, "{}", seen.output);
    });
}

/// Every task is begun at once, in the middle of what its parent does (`asyncio.eager_task_factory`, which
/// CPython 3.12 and uvloop cannot have together): calls are known all the same.
#[test]
fn eager_tasks_everywhere() {
    if !can_run() {
        return;
    }
    let Some(newer) = python("3.13").or_else(|| python("3.12")) else {
        println!("SKIPPED: a task factory that is eager takes CPython 3.12");
        return;
    };
    let venv = Venv::ensure(&newer, WEB).unwrap();
    let env = [("EAGER", "1")];
    let services = Services::start_with(Loop::Asyncio, Http::Httptools, Some(&venv), &[], &env);
    let (all, seen) = services.judge(40, &[]);
    check(&all, 40, true, &seen);
}

/// An agent that starts in the middle of traffic may know little at first, and nothing wrong; and all as
/// soon as it says that it follows.
#[test]
fn started_in_the_middle() {
    if !can_run() {
        return;
    }
    let services = Services::start(Loop::Uvloop, Http::Httptools, None, &[]);
    let stop = Arc::new(AtomicBool::new(false));
    let (seen, followed) = thread::scope(|scope| {
        let load = scope.spawn(|| {
            let requests = (0..100_000).flat_map(|round| {
                ["await", "gather", "stream", "executor", "sync", "detached"]
                    .map(|way| Request::get(format!("/{way}/{way}-{round}")))
            });
            Load::new(services.target(), requests)
                .connections(32)
                .rate(150.0)
                .stop_on(&stop)
                .run()
                .unwrap();
        });
        thread::sleep(Duration::from_millis(500));
        let agent = Agent::start(&["--pid", &services.callers.pid.to_string()]);
        agent.wait_for("work off a queue", || {});
        let followed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        thread::sleep(Duration::from_secs(3));
        stop.store(true, Ordering::Relaxed);
        load.join().unwrap();
        thread::sleep(Duration::from_millis(700));
        (agent.stop(), u64::try_from(followed.as_nanos()).unwrap())
    });
    let all = verdicts(&seen);
    println!("{all:#?}");
    let (right, _, wrong) = count(&all, |_| true);
    assert_eq!(wrong, 0, "{all:#?}");
    // From there on no call is without a parent, but for what a thread of the executor had waited for.
    let unknown: Vec<_> = seen
        .spans
        .iter()
        .filter(|span| span.kind == CLIENT && span.start > followed && span.parent.is_empty())
        .map(|span| span.text("url.full"))
        .collect();
    let (waited, other): (Vec<&str>, Vec<&str>) = unknown
        .iter()
        .copied()
        .partition(|url| url.contains("/executor/"));
    println!("unknown afterwards: {unknown:?}");
    // As many threads as asyncio's executor has.
    let threads = 32.min(thread::available_parallelism().unwrap().get() + 4);
    assert!(
        right > 500 && other.is_empty() && waited.len() <= threads,
        "{unknown:?} {all:#?}\n{}",
        seen.output
    );
}

/// What is asked of Docker over its unix socket is told by the socket's path, and by a route without ids
/// and names; and stands under its request.
#[test]
fn docker_over_its_socket() {
    if !can_run() {
        return;
    }
    let folder = Folder::new().unwrap();
    let path = folder.path().join("docker.sock");
    let path = path.to_str().unwrap();
    let venv = Venv::web().unwrap();
    let mut command = Command::new(venv.program("python"));
    command
        .arg(xtask::paths::workspace().join("xtask/assets/docker.py"))
        .arg(path);
    let mut docker = Process::start(&mut command, &folder.path().join("log")).unwrap();
    docker
        .wait_for(PATIENCE, |log| log.contains("listening").then_some(()))
        .unwrap();
    let env = [("DOCKER", path)];
    let services = Services::start_with(Loop::Uvloop, Http::Httptools, None, &[], &env);
    let agent = Agent::start(&["--pid", &services.callers.pid.to_string()]);
    services.warm_up(&agent, &[]);
    let requests = (0..20).map(|n| Request::get(format!("/docker/4f66ad9a0b2e{n:052}")));
    Load::new(services.target(), requests)
        .connections(4)
        .run()
        .unwrap();
    thread::sleep(Duration::from_millis(500));
    let seen = agent.stop();
    let mut told = 0;
    for span in &seen.spans {
        if span.kind != CLIENT || span.text("network.transport") != "unix" {
            continue;
        }
        told += 1;
        assert_eq!(span.text("server.address"), path);
        assert_eq!(span.int("server.port"), None);
        let template = span.text("url.template");
        assert!(
            [
                "/v1.43/containers/{id}/json",
                "/v1.43/images/{name}/history"
            ]
            .contains(&template),
            "{template}"
        );
        assert_eq!(span.name, format!("GET {template}"));
        let parent = seen.spans.iter().find(|parent| parent.id == span.parent);
        assert!(parent.unwrap().text("url.path").starts_with("/docker/"));
        assert_eq!(span.text("decnet.link"), "exact");
    }
    assert_eq!(told, 40);
}
