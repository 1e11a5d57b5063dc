//! Routes learned from what services declare: each span's is the one that the framework itself took.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[expect(dead_code, reason = "other tests need more of it")]
#[path = "../support/mod.rs"]
mod support;

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use support::{Agent, Seen};
use xtask::bed::{
    process::{Folder, Process},
    venv::{self, Venv},
};

/// How long a server may take until it listens.
const START: Duration = Duration::from_secs(60);

/// What the services need beside the bed's own packages.
const FRAMEWORKS: &[&str] = &["django==5.2.19", "flask==3.1.3"];

/// A server of one of the applications in `apps`.
struct Server {
    process: Process,
    address: SocketAddr,
    _folder: Folder,
}

fn frameworks() -> Option<Venv> {
    let python = venv::default_python().unwrap();
    let packages: Vec<_> = venv::WEB.iter().chain(FRAMEWORKS).copied().collect();
    match Venv::ensure(&python, &packages) {
        Ok(venv) => Some(venv),
        Err(error) => {
            println!("SKIPPED: no web frameworks to test with: {error:#}");
            None
        }
    }
}

fn apps(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/routes/apps")
        .join(name)
}

impl Server {
    /// Starts a program of the environment in an application's folder.
    fn start(venv: &Venv, app: &str, program: &str, args: &[&str]) -> Self {
        let folder = Folder::new().unwrap();
        let mut command = Command::new(venv.program(program));
        command
            .args(args)
            .current_dir(apps(app))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("PYTHONUNBUFFERED", "1")
            .env_remove("PYTHONPATH");
        let mut process = Process::start(&mut command, &folder.path().join("log")).unwrap();
        // `Uvicorn running on http://127.0.0.1:40001 (…`, `Listening at: http://127.0.0.1:40001 (…`
        let address = process
            .wait_for(START, |log| {
                let (_, behind) = log.split_once("http://")?;
                behind.split_once(' ')?.0.parse().ok()
            })
            .unwrap();
        Self {
            process,
            address,
            _folder: folder,
        }
    }

    /// Asks for something; the status, and the route that the framework says it took.
    fn ask(&self, method: &str, path: &str) -> (u16, Option<String>) {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(START)).unwrap();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nhost: test\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        let route = answer
            .lines()
            .take_while(|line| !line.is_empty())
            .find_map(|line| Some(line.split_once(": ")?).filter(|(name, _)| *name == "x-route"))
            .map(|(_, route)| route.trim().to_owned());
        (status, route)
    }
}

/// Routes that a framework has of its own, and says nothing of.
const OWN: &[&str] = &["GET /manual"];

/// Asks for all of these, and compares the spans' routes with the framework's own.
fn check(server: &Server, requests: &[(&str, &str)]) {
    let pid = server.process.pid().to_string();
    let agent = Agent::start(&["--pid", &pid]);
    let truth: Vec<_> = requests
        .iter()
        .map(|(method, path)| {
            let (status, route) = server.ask(method, path);
            assert!(status < 500, "{method} {path}: {status}");
            (format!("{method} {path}"), route)
        })
        .collect();
    std::thread::sleep(Duration::from_millis(200));
    let Seen { spans, output } = agent.stop();
    for (request, route) in truth {
        let span = spans
            .iter()
            .find(|span| {
                let asked = (span.text("http.request.method"), span.text("url.path"));
                request == format!("{} {}", asked.0, asked.1)
            })
            .unwrap_or_else(|| panic!("no span of {request}\n{output}"));
        match route {
            Some(route) => {
                assert_eq!(span.text("http.route"), route, "{request}\n{output}");
                assert_eq!(span.text("decnet.route.source"), "learned", "{request}");
            }
            None => {
                let source = span.text("decnet.route.source");
                assert!(
                    OWN.contains(&request.as_str()) || source != "learned",
                    "{request}"
                );
            }
        }
    }
}

/// FastAPI and Starlette, under uvicorn.
#[test]
fn fastapi() {
    if !support::can_run() {
        return;
    }
    let Some(venv) = frameworks() else { return };
    let server = Server::start(
        &venv,
        "fastapi",
        "uvicorn",
        &["shop.main:app", "--port", "0"],
    );
    check(
        &server,
        &[
            ("GET", "/"),
            ("GET", "/manual"),
            ("GET", "/api/v2/users/me"),
            ("GET", "/api/v2/users/alice"),
            ("DELETE", "/api/v2/users/42"),
            ("GET", "/api/v2/orders"),
            ("GET", "/api/v2/orders/7f/lines/3"),
            ("GET", "/api/v2/orders/by-code/x%20y"),
            ("GET", "/items/special"),
            ("POST", "/items/special"),
            ("PUT", "/any/a/b/c"),
            ("GET", "/admin/stats/20240229"),
            ("GET", "/plain/hello/you"),
            ("GET", "/nowhere"),
        ],
    );
}

/// The same by several workers, each of which is a process that says nothing of what it serves.
#[test]
fn fastapi_workers() {
    if !support::can_run() {
        return;
    }
    let Some(venv) = frameworks() else { return };
    let args = ["shop.main:app", "--port", "0", "--workers", "2"];
    let mut server = Server::start(&venv, "fastapi", "uvicorn", &args);
    server
        .process
        .wait_for(START, |log| {
            (log.matches("Application startup complete").count() == 2).then_some(())
        })
        .unwrap();
    check(
        &server,
        &[("GET", "/api/v2/users/bob"), ("GET", "/items/x")],
    );
}

/// A factory, in a directory that is not the working one.
#[test]
fn fastapi_factory() {
    if !support::can_run() {
        return;
    }
    let Some(venv) = frameworks() else { return };
    let directory = apps("fastapi");
    let server = Server::start(
        &venv,
        "flask",
        "uvicorn",
        &[
            "--factory",
            "shop.factory:create_app",
            "--app-dir",
            directory.to_str().unwrap(),
            "--port",
            "0",
        ],
    );
    check(
        &server,
        &[
            ("GET", "/api/v2/orders/7f/lines/3"),
            ("GET", "/items/x"),
            ("GET", "/plain/hello/you"),
        ],
    );
}

/// FastAPI under gunicorn with uvicorn's workers, in a directory that it changes into.
#[test]
fn fastapi_under_gunicorn() {
    if !support::can_run() {
        return;
    }
    let Some(venv) = frameworks() else { return };
    let directory = apps("fastapi");
    let args = [
        "-k",
        "uvicorn.workers.UvicornWorker",
        "--chdir",
        directory.to_str().unwrap(),
        "--bind",
        "127.0.0.1:0",
        "shop.main:app",
    ];
    let mut server = Server::start(&venv, "flask", "gunicorn", &args);
    server
        .process
        .wait_for(START, |log| {
            log.contains("Application startup complete").then_some(())
        })
        .unwrap();
    check(
        &server,
        &[("GET", "/api/v2/users/bob"), ("GET", "/items/x")],
    );
}

/// Flask, under gunicorn.
#[test]
fn flask() {
    if !support::can_run() {
        return;
    }
    let Some(venv) = frameworks() else { return };
    let args = ["blog:create_app()", "--bind", "127.0.0.1:0"];
    let server = Server::start(&venv, "flask", "gunicorn", &args);
    check(
        &server,
        &[
            ("GET", "/hello/world"),
            ("GET", "/sum/1/2"),
            ("GET", "/sum/1/x"),
            ("GET", "/posts/"),
            ("GET", "/posts/2024/a/b.html"),
            (
                "GET",
                "/posts/7/comments/6f1c9e0a-3f6b-4f0e-9a3e-0c3a3f2b1d4e",
            ),
            ("GET", "/syndicated/de/feed"),
        ],
    );
}

/// Django, under gunicorn.
#[test]
fn django() {
    if !support::can_run() {
        return;
    }
    let Some(venv) = frameworks() else { return };
    let args = ["site1.wsgi", "--bind", "127.0.0.1:0"];
    let server = Server::start(&venv, "django", "gunicorn", &args);
    check(
        &server,
        &[
            ("GET", "/"),
            ("GET", "/polls/42/"),
            ("GET", "/polls/best-of/results/"),
            ("GET", "/more/deep/word"),
            ("GET", "/archive/2024/"),
            ("GET", "/archive/24/"),
        ],
    );
}
