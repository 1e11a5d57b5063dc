//! Without being told, the agent finds the servers that there are and those that come.

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use xtask::bed::{
    process::{Folder, Process},
    service::Service,
    venv::Venv,
};

use crate::{
    PATIENCE, get,
    support::{self, Agent},
};

/// An application without dependencies, which can also run itself.
const APP: &str = r#"
import sys

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"here"})

if __name__ == "__main__":
    import uvicorn
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]))
"#;

/// A server of one's own, which only its port tells.
const OWN: &str = r#"
import socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    connection, _ = listener.accept()
    connection.recv(1000)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    connection.close()
"#;

/// What is a Python, and serves nothing: it asks.
const ASKS: &str = r#"
import http.client, sys, time
while True:
    try:
        connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
        connection.request("GET", "/asked")
        connection.getresponse().read()
        connection.close()
    except OSError:
        pass
    time.sleep(0.05)
"#;

/// A server, and a path that only it is asked for.
struct Server {
    name: &'static str,
    process: Process,
    addr: SocketAddr,
}

/// A port that is free now.
fn free() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

fn start(folder: &Path, name: &'static str, command: &[&str]) -> Server {
    let addr = free();
    let venv = Venv::web().unwrap();
    let mut words = command.iter().map(|word| {
        word.replace("PORT", &addr.port().to_string()).replace(
            "BIN",
            venv.program("").to_str().unwrap().trim_end_matches('/'),
        )
    });
    let mut command = Command::new(words.next().unwrap());
    command.args(words).current_dir(folder);
    let process = Process::start(&mut command, &folder.join(name)).unwrap();
    Server {
        name,
        process,
        addr,
    }
}

/// Waits until it listens, without asking it anything.
fn ready(server: &mut Server) {
    let deadline = Instant::now() + PATIENCE;
    // It listens where a connection is taken; nothing is sent on it.
    while TcpStream::connect(server.addr).is_err() {
        let ended = server.process.try_wait().unwrap();
        assert!(
            ended.is_none() && Instant::now() < deadline,
            "{}: {}",
            server.name,
            server.process.output().unwrap()
        );
        sleep(Duration::from_millis(5));
    }
}

/// All kinds of servers, started before the agent and after it; and a Python that is none.
#[test]
fn servers_are_found() {
    if !support::can_run() {
        return;
    }
    let folder = Folder::new().unwrap();
    fs::write(folder.path().join("parcels.py"), APP).unwrap();
    fs::write(folder.path().join("asks.py"), ASKS).unwrap();
    let kinds: [(&'static str, &[&str]); 6] = [
        ("uvicorn", &["BIN/uvicorn", "--port", "PORT", "parcels:app"]),
        (
            "module",
            &[
                "BIN/python",
                "-m",
                "uvicorn",
                "--port",
                "PORT",
                "parcels:app",
            ],
        ),
        ("run", &["BIN/python", "parcels.py", "PORT"]),
        (
            "gunicorn",
            &[
                "BIN/gunicorn",
                "-k",
                "uvicorn.workers.UvicornWorker",
                "-b",
                "127.0.0.1:PORT",
                "parcels:app",
            ],
        ),
        (
            "hypercorn",
            &["BIN/hypercorn", "-b", "127.0.0.1:PORT", "parcels:app"],
        ),
        (
            "namespaces",
            &[
                "unshare",
                "--pid",
                "--fork",
                "--mount-proc",
                "BIN/uvicorn",
                "--port",
                "PORT",
                "parcels:app",
            ],
        ),
    ];
    let all = |prefix: &str| -> Vec<(String, Server)> {
        let one = |(name, command): &(&'static str, &[&str])| {
            let path = format!("/{prefix}-{name}");
            (path, start(folder.path(), name, command))
        };
        kinds.iter().map(one).collect()
    };
    let mut before = all("before");
    before.iter_mut().for_each(|(_, server)| ready(server));
    let asked = before[0].1.addr.port().to_string();
    let asks = start(folder.path(), "asks", &["BIN/python", "asks.py", &asked]);
    let agent = Agent::start(&[]);
    let mut paths = Vec::new();
    for (path, server) in &before {
        assert_eq!(get(server.addr, path), 200);
        paths.push(path.clone());
    }
    let asking = u64::from(asks.process.pid());
    agent.wait_until("what is asked", || {
        let spans = agent.spans_so_far();
        spans.iter().any(|span| span.text("url.path") == "/asked")
    });
    drop((asks, before));
    // One after the other: the first request comes a second after it listens.
    for (name, command) in &kinds {
        let mut server = start(folder.path(), name, command);
        ready(&mut server);
        sleep(Duration::from_secs(1));
        let path = format!("/after-{name}");
        assert_eq!(get(server.addr, &path), 200);
        paths.push(path);
    }
    sleep(Duration::from_millis(300));
    let seen = agent.stop();
    for path in &paths {
        let count = seen
            .spans
            .iter()
            .filter(|span| span.text("url.path") == path);
        assert_eq!(count.count(), 1, "{path}\n{}", seen.output);
    }
    let mut spans = seen.spans.iter();
    let asked = spans.find(|span| span.text("url.path") == "/asked");
    assert!(asked.is_some(), "{}", seen.output);
    let of_asking = seen.spans.iter().filter(|span| span.pid == asking);
    assert_eq!(of_asking.count(), 0, "{}", seen.output);
}

/// A port named before anybody listens there.
#[test]
fn ports_are_waited_for() {
    if !support::can_run() {
        return;
    }
    let folder = Folder::new().unwrap();
    fs::write(folder.path().join("own.py"), OWN).unwrap();
    let mut decoy = Service::builder().start().unwrap();
    let addr = free();
    let agent = Agent::start(&["--port", &addr.port().to_string()]);
    let venv = Venv::web().unwrap();
    let mut command = Command::new(venv.program("python"));
    command
        .arg("own.py")
        .arg(addr.port().to_string())
        .current_dir(folder.path());
    let process = Process::start(&mut command, &folder.path().join("log")).unwrap();
    let mut server = Server {
        name: "port",
        process,
        addr,
    };
    ready(&mut server);
    sleep(Duration::from_secs(1));
    assert_eq!(get(addr, "/here"), 200);
    assert_eq!(get(decoy.addr(), "/"), 200);
    assert!(decoy.is_running().unwrap());
    sleep(Duration::from_millis(300));
    let seen = agent.stop();
    let paths: Vec<_> = seen
        .spans
        .iter()
        .map(|span| span.text("url.path"))
        .collect();
    assert_eq!(paths, ["/here"], "{}", seen.output);
}
