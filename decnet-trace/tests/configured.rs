//! What a configuration makes of an agent at work: rules, routes, reloads; and that no secret leaves
//! it.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[expect(dead_code, reason = "other tests need more of it")]
mod support;

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use rustix::process::Signal;
use support::Agent;
use xtask::bed::{
    collector::{Collector, Point},
    process::Folder,
    service::Service,
};

/// How long something may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Sends a request, to the host `test` where its head names none.
fn ask(address: SocketAddr, head: &str, body: &str) -> String {
    let host = match head.contains("\r\nhost:") {
        true => "",
        false => "\r\nhost: test",
    };
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let length = body.len();
    // At once: a server that refuses a request by its first line closes before it gets a second piece.
    let request =
        format!("{head}{host}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    // A server that refuses a request closes with the rest of it unread, which resets the connection.
    let read = stream.read_to_end(&mut answer);
    let is_reset = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionReset;
    read.or_else(|error| if is_reset(&error) { Ok(0) } else { Err(error) })
        .unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn command(args: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_decnet-trace"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    child.wait_with_output().unwrap()
}

/// An application that answers every path, puts a secret into its answer's head, and writes others into
/// statements and into a request of its own.
const TALKATIVE: &str = r#"
import asyncio
import sqlite3

db = sqlite3.connect(":memory:", isolation_level=None)
db.execute("CREATE TABLE users (name TEXT, card TEXT)")


async def call(port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"GET /out/planted.mail%2540example.com?key=plantedoutquery HTTP/1.1\r\n"
        b"Host: pLaNt3dT0k3nQx7vB2mZ9sK4wR8yH1jF.example\r\n"
        b"Authorization: Bearer plantedbearer\r\n"
        b"User-Agent: app (4111 1111 1111 1111)\r\n"
        b"Connection: close\r\n\r\n"
    )
    await reader.read()
    writer.close()


async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    if scope["path"].startswith("/call/"):
        await call(int(scope["path"].rpartition("/")[2]))
    if scope["path"] == "/sql":
        db.execute("INSERT INTO users VALUES ('planted.mail@example.com', '4111111111111111')")
        db.execute("SELECT * FROM users -- plantedcomment\nWHERE name = 'plantedü' OR card = 4111")
        db.execute('SELECT * FROM users WHERE name = "plantedquotes"')
        db.execute("SELECT * FROM users WHERE name = ?", ("plantedparameter",))
        try:
            db.execute("SELECT nothere.column FROM users WHERE card = 'planted")
        except sqlite3.Error:
            pass
    headers = [(b"content-length", b"0"), (b"set-cookie", b"s=plantedsetcookie"),
               (b"location", b"http://u:planted@h/?k=plantedlocation")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
"#;

/// The files of a folder, put together.
fn contents(folder: &Path) -> String {
    let files = fs::read_dir(folder).unwrap();
    let bytes = files.flat_map(|file| fs::read(file.unwrap().path()).unwrap());
    String::from_utf8_lossy(&bytes.collect::<Vec<_>>()).into_owned()
}

/// Secrets in every place that a request can carry one reach no sink: not the file, not the collector
/// as spans, metrics or log records, not the store with its log, not Prometheus, not the table, not the log.
#[test]
fn planted_secrets() {
    if !support::can_run() {
        return;
    }
    let folder = Folder::new().unwrap();
    let config = folder.path().join("config.toml");
    fs::write(
        &config,
        "[routes]\nlearn = false\n\
         [redaction]\nclient_address = 'hashed'\nquery_allow = ['page']\n\
         request_headers = ['x-tenant', 'referer', 'x-forwarded-for']\nresponse_headers = ['location']\n\
         [[redaction.rules]]\npattern = 'patient-[a-z]+'\nreplacement = 'patient-X'\n",
    )
    .unwrap();
    let app = folder.path().join("app.py");
    fs::write(&app, TALKATIVE).unwrap();
    let store = folder.path().join("store");
    let listen = TcpListener::bind("127.0.0.1:0").unwrap();
    let prometheus = listen.local_addr().unwrap();
    drop(listen);
    let collector = Collector::start().unwrap();
    let service = Service::builder()
        .app(app)
        .arg("--ssl-keyfile-password")
        .arg("plantedcommandline")
        .start()
        .unwrap();
    let other = Service::builder().start().unwrap();
    let address = service.addr();
    let agent = Agent::start(&[
        "--pid",
        &service.pid.to_string(),
        "--config",
        config.to_str().unwrap(),
        "--otlp-endpoint",
        &collector.grpc_endpoint(),
        "--summary",
        "--store",
        store.to_str().unwrap(),
        "--metrics-listen",
        &prometheus.to_string(),
    ]);
    wait_until("SQLite is watched", || {
        agent.output().contains("watching SQLite")
    });
    let jwt = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJwbGFudGVkIn0.dozjgNryP4J3jVmNHl0w5N";
    let token = "pLaNt3dT0k3nQx7vB2mZ9sK4wR8yH1jF";
    let parent = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let heads = [
        "GET /?q=plantedquery&page=7 HTTP/1.1".to_owned(),
        "GET /x/planted.mail@example.com HTTP/1.1".to_owned(),
        "GET /x/planted.mail%40example.com/y HTTP/1.1".to_owned(),
        "GET /pay/4111111111111111 HTTP/1.1".to_owned(),
        "GET /pay/4111-1111-1111-1111 HTTP/1.1".to_owned(),
        format!("GET /t/{jwt} HTTP/1.1"),
        format!("GET /t/{token}?planted.mail@example.com HTTP/1.1"),
        "GET /patient-plantedname?x HTTP/1.1".to_owned(),
        "GET /cart;jsessionid=plantedmatrix HTTP/1.1".to_owned(),
        "GET http://planteduser:plantedpass@test/abs?k=plantedabs HTTP/1.1".to_owned(),
        format!("GET / HTTP/1.1\r\nauthorization: Bearer {token}"),
        "GET / HTTP/1.1\r\nauthorization: Basic cGxhbnRlZDpwbGFudGVk".to_owned(),
        "GET / HTTP/1.1\r\ncookie: session=plantedcookie".to_owned(),
        "GET / HTTP/1.1\r\nx-api-key: plantedapikey\r\nx-forwarded-for: 203.0.113.77".to_owned(),
        "GET / HTTP/1.1\r\nreferer: http://a/?t=plantedreferer".to_owned(),
        "GET / HTTP/1.1\r\nuser-agent: bot (planted.mail@example.com)".to_owned(),
        "POST /echo?page=8 HTTP/1.1".to_owned(),
        "GET /x/%70lanted%2Email%40example%2Ecom HTTP/1.1".to_owned(),
        "GET /x/planted%C3%BC%40ex%C3%A4mple.com/z HTTP/1.1".to_owned(),
        format!("GET /t/{} HTTP/1.1", jwt.replace('.', "%2E")),
        "GET /x/%34111%31111%31111%31111 HTTP/1.1".to_owned(),
        "GET /x?q=%C3%A9planted%F0%9F%98%80 HTTP/1.1".to_owned(),
        "GET /pay/7-4111111111111111 HTTP/1.1".to_owned(),
        "GET /pay/4111111111111111-2 HTTP/1.1".to_owned(),
        "GET /pay/4111_1111_1111_1111 HTTP/1.1".to_owned(),
        "GET /x/planted.mail%2540example.com HTTP/1.1".to_owned(),
        "GET /x?page=https://planteduser:plantedpass@h/ HTTP/1.1".to_owned(),
        "GET /go/https://planteduser@h/x HTTP/1.1".to_owned(),
        format!("GET / HTTP/1.1\r\nhost: {token}.example"),
        format!("{token} / HTTP/1.1"),
        format!("GET / HTTP/1.1\r\nuser-agent: app/1 {jwt} (4111 1111 1111 1111) key={token}"),
        format!(
            "GET / HTTP/1.1\r\nuser-agent: {} planted.mail@example.com",
            "x".repeat(240)
        ),
        format!("GET / HTTP/1.1\r\n{parent}\r\ntracestate: rojo=opaque7f3"),
        format!("GET / HTTP/1.1\r\n{parent}\r\ntracestate: planted.mail@example.com"),
        "GET / HTTP/1.1\r\nx-tenant: planted.mail@example.com, 4111111111111111".to_owned(),
        format!("GET / HTTP/1.1\r\nx-tenant: blue\r\nx-tenant: {token}"),
    ];
    for head in &heads {
        ask(address, head, "{\"password\": \"plantedbody\"}");
    }
    ask(address, "GET /sql HTTP/1.1", "");
    let call = format!("GET /call/{} HTTP/1.1", other.addr().port());
    ask(address, &call, "");
    // The last statement is none, and need not be seen; the call is a span of its own.
    let count = heads.len() + 1 + 4 + 2;
    collector.wait_for_spans(count, PATIENCE).unwrap();
    let scraped = ask(prometheus, "GET /metrics HTTP/1.1", "");
    assert!(
        scraped.contains("http_server_request_duration"),
        "{scraped}"
    );
    assert!(
        scraped.contains("http_client_request_duration"),
        "{scraped}"
    );
    assert!(
        scraped.contains("db_client_operation_duration"),
        "{scraped}"
    );
    let collected = format!("{:?}", collector.spans().unwrap());
    // A warning, so that there is one.
    fs::write(&config, "[routes]\npaterns = 1\n").unwrap();
    agent.signal(Signal::HUP);
    wait_until("the agent's events are collected", || {
        let records = collector.records().unwrap();
        records.iter().any(|text| text.contains("kept as it was"))
    });
    let spans = agent.path("spans.jsonl");
    wait_until("the spans stand in the file", || {
        support::spans_so_far(&spans).len() >= count
    });
    // The last of them has a header that stays.
    wait_until("the spans are stored", || contents(&store).contains("blue"));
    let stored = contents(&store);
    let written = fs::read_to_string(&spans).unwrap();
    let seen = agent.stop();
    let records = collector.records().unwrap();
    let points = collector.points().unwrap();
    let is_counted = |point: &Point| point.metric == "http.server.request.duration";
    assert!(points.iter().any(is_counted), "{points:?}");
    let sinks = [
        ("the file", written),
        ("the collector's spans", collected),
        ("the collector's metrics", format!("{points:?}")),
        ("the collector's log records", format!("{records:?}")),
        ("the store and its log", stored),
        ("the closed store", contents(&store)),
        ("Prometheus", scraped),
        ("the table and the log", seen.output.clone()),
    ];
    let planted = [
        "planted",
        "411111",
        "4111-1111",
        "4111_1111",
        "4111 1111",
        "= 4111",
        jwt,
        "eyJzdWIi",
        token,
        "cGxhbnRl",
        "203.0.113.77",
        "%70lanted",
        "%34111",
    ];
    for (sink, text) in &sinks {
        assert!(!text.is_empty(), "{sink} holds nothing");
        for secret in planted {
            let at = text.to_lowercase().find(&secret.to_lowercase());
            let around = at.map(|at| {
                &text[text.floor_char_boundary(at.saturating_sub(80))
                    ..text.floor_char_boundary(at + 80)]
            });
            assert!(at.is_none(), "{sink} holds {secret}: {around:?}");
        }
    }
    // What the caller calls its trace state goes on as that, and as nothing else.
    for (sink, text) in &sinks {
        let text = match *sink {
            "the file" => {
                assert!(text.contains(r#""traceState":"rojo=opaque7f3""#), "{text}");
                text.replace(r#""traceState":"rojo=opaque7f3""#, "")
            }
            "the collector's spans" | "the store and its log" | "the closed store" => continue,
            _ => text.clone(),
        };
        assert!(!text.contains("opaque7f3"), "{sink} holds a trace state");
    }
    assert!(seen.spans.len() >= count);
    let urls: Vec<_> = seen
        .spans
        .iter()
        .map(|span| span.text("url.full"))
        .collect();
    assert!(
        urls.contains(&"http://REDACTED.example/out/REDACTED?key=REDACTED"),
        "{urls:?}"
    );
    let is_served = |span: &&support::Span| span.kind == 2;
    for span in seen.spans.iter().filter(is_served) {
        let client = span.text("client.address");
        assert!(
            client.len() == 16 && client.bytes().all(|b| b.is_ascii_hexdigit()),
            "{client}"
        );
        assert_eq!(span.text("network.peer.address"), client);
    }
    let kept: Vec<_> = seen
        .spans
        .iter()
        .map(|span| span.text("url.query"))
        .collect();
    assert!(kept.contains(&"q=REDACTED&page=7"), "{kept:?}");
    let paths: Vec<_> = seen
        .spans
        .iter()
        .map(|span| span.text("url.path"))
        .collect();
    assert!(paths.contains(&"/patient-X"), "{paths:?}");
    let tenants: Vec<_> = seen
        .spans
        .iter()
        .map(|span| span.list("http.request.header.x-tenant"))
        .filter(|values| !values.is_empty())
        .collect();
    assert_eq!(tenants, [vec!["REDACTED"], vec!["blue", "REDACTED"]]);
}

/// SIGHUP: rules and routes change at once, a file that was moved away is opened anew, and a
/// configuration that is wrong changes nothing.
#[test]
fn reloads() {
    if !support::can_run() {
        return;
    }
    let folder = Folder::new().unwrap();
    let config = folder.path().join("config.toml");
    fs::write(
        &config,
        "[[routes.patterns]]\npaths = ['/items/{before}']\n",
    )
    .unwrap();
    let service = Service::builder().start().unwrap();
    let address = service.addr();
    let config_path = config.to_str().unwrap();
    let pid = service.pid.to_string();
    let agent = Agent::start(&["--pid", &pid, "--config", config_path]);
    let (file, moved) = (agent.path("spans.jsonl"), agent.path("moved.jsonl"));
    let request = |path: &str| {
        ask(address, &format!("GET {path} HTTP/1.1"), "");
    };
    let route = |file: &Path, path: &str| {
        let spans = support::spans_so_far(file);
        let span = spans.iter().find(|span| span.text("url.path") == path);
        span.map(|span| span.text("http.route").to_owned())
    };
    request("/items/1");
    wait_until("the first span", || route(&file, "/items/1").is_some());
    assert_eq!(route(&file, "/items/1").unwrap(), "/items/{before}");

    fs::rename(&file, &moved).unwrap();
    fs::write(
        &config,
        "[[routes.patterns]]\npaths = ['/items/{after}']\n[redaction]\nquery_allow = ['x']\n",
    )
    .unwrap();
    agent.signal(Signal::HUP);
    wait_until("the reload", || agent.output().contains("read again"));
    std::thread::sleep(Duration::from_millis(300));
    request("/items/2");
    wait_until("the second span", || route(&file, "/items/2").is_some());
    assert_eq!(route(&file, "/items/2").unwrap(), "/items/{after}");
    assert_eq!(route(&moved, "/items/2"), None);

    fs::write(&config, "[routes]\npaterns = 1\n").unwrap();
    agent.signal(Signal::HUP);
    wait_until("the refusal", || {
        agent.output().contains("kept as it was") && agent.output().contains(":2:1: unknown field")
    });
    request("/items/3");
    wait_until("the third span", || route(&file, "/items/3").is_some());
    assert_eq!(route(&file, "/items/3").unwrap(), "/items/{after}");
    agent.stop();
}

/// SIGHUP: targets, sampling and the rate of samples change at once; what only another start changes is
/// named in one line and stays; and a client's hash stays the same.
#[test]
fn reloads_targets_rates_and_sampling() {
    if !support::can_run() {
        return;
    }
    let folder = Folder::new().unwrap();
    let config = folder.path().join("config.toml");
    let services = [
        Service::builder().start().unwrap(),
        Service::builder().start().unwrap(),
    ];
    let [first, second] = services.each_ref().map(Service::addr);
    let write = |port: u16, rest: &str| {
        let text = format!(
            "[targets]\nports = [{port}]\n[redaction]\nclient_address = 'hashed'\n{rest}\n"
        );
        fs::write(&config, text).unwrap();
    };
    write(first.port(), "");
    let agent = Agent::start(&["--config", config.to_str().unwrap()]);
    let file = agent.path("spans.jsonl");
    // Links to perf events that are no probes.
    let clocks = || {
        let open = fs::read_dir(format!("/proc/{}/fdinfo", agent.pid())).unwrap();
        open.filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok())
            .filter(|about| about.contains("event_type:\tevent"))
            .count()
    };
    let mut reloads = 0;
    let mut reload = || {
        reloads += 1;
        agent.signal(Signal::HUP);
        wait_until("the reload", || {
            agent.output().matches("read again").count() == reloads
        });
    };
    let request = |address, path: &str| ask(address, &format!("GET {path} HTTP/1.1"), "");
    let client = |path: &str| {
        let spans = support::spans_so_far(&file);
        let span = spans.iter().find(|span| span.text("url.path") == path);
        span.map(|span| span.text("client.address").to_owned())
    };
    request(first, "/first");
    request(second, "/unasked");
    wait_until("the first span", || client("/first").is_some());
    let hash = client("/first").unwrap();
    let at_first = clocks();
    assert!(at_first > 0);

    write(
        second.port(),
        "[profile]\nrate = 0\n[otlp]\nendpoint = 'http://127.0.0.1:1'\n[store]\nmax_age = '2h'",
    );
    reload();
    wait_until("what cannot change", || {
        agent
            .output()
            .contains("only another start changes otlp.endpoint, store.max_age;")
    });
    wait_until("the other target", || {
        request(second, "/second");
        client("/second").is_some()
    });
    assert_eq!(client("/second").unwrap(), hash);
    wait_until("no more samples", || clocks() == 0);
    request(first, "/left");

    write(
        second.port(),
        "[profile]\nrate = 49\n[sampling]\nsampler = 'always_off'",
    );
    reload();
    wait_until("samples again", || clocks() == at_first);
    std::thread::sleep(Duration::from_millis(300));
    request(second, "/dropped");
    // What was asked before a reload is decided before it.
    std::thread::sleep(Duration::from_millis(1500));

    write(second.port(), "[sampling]\nsample = 1");
    reload();
    std::thread::sleep(Duration::from_millis(300));
    request(second, "/last");
    wait_until("the last span", || client("/last").is_some());
    assert_eq!(client("/last").unwrap(), hash);
    for path in ["/unasked", "/left", "/dropped"] {
        assert_eq!(client(path), None, "{path}");
    }
    let output = agent.stop().output;
    assert!(!output.contains("still sampling"), "{output}");
}

/// A configuration that is wrong ends the command with its line, column and exit code 2, before
/// anything is attached; `config check` says the same.
#[test]
fn refuses_what_is_wrong() {
    let folder = Folder::new().unwrap();
    let config = folder.path().join("config.toml");
    let path = config.to_str().unwrap();
    fs::write(
        &config,
        "[profile]\nrate = 19\n\n[otlp]\nprotocol = 'carrier pigeon'\n",
    )
    .unwrap();
    for args in [
        &["run", "--config", path][..],
        &["config", "check", "--config", path],
        &["config", "show", "--config", path],
        &["redact", "--config", path],
    ] {
        let output = command(args, "");
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {error}");
        assert!(
            error.contains(&format!("{path}:5:12: ")),
            "{args:?}: {error}"
        );
        assert!(!error.contains("attached"), "{error}");
    }
    fs::write(&config, "[otlp]\nendpoint = 'ftp://x'\n").unwrap();
    let output = command(&["config", "check", "--config", path], "");
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains(&format!("{path}:2:12: ")), "{error}");
}

/// `redact` shows what the rules make of a sample; `config show` what is in effect and why.
#[test]
fn shows_what_it_does() {
    let folder = Folder::new().unwrap();
    let config = folder.path().join("config.toml");
    let path = config.to_str().unwrap();
    fs::write(
        &config,
        "[redaction]\nquery_allow = ['page']\n[[redaction.rules]]\npattern = 'emp-\\d+'\nreplacement = 'emp-N'\n\
         [otlp]\nheaders = 'api-key=topsecret'\n",
    )
    .unwrap();
    let output = command(
        &["redact", "--config", path],
        "/a/emp-77?page=2&q=x\nhttps://u:p@h/alice@example.com\n",
    );
    let shown = String::from_utf8_lossy(&output.stdout);
    assert_eq!(
        shown,
        "/a/emp-N?page=2&q=REDACTED\nhttps://REDACTED:REDACTED@h/REDACTED\n"
    );
    fs::write(
        &config,
        "[[redaction.rules]]\npattern = 'tenant_\\w+'\nreplacement = 'tenant'\n",
    )
    .unwrap();
    let output = command(
        &["redact", "--sql", "--explain", "--config", path],
        "SELECT a FROM tenant_blue WHERE b = 'secret'\n",
    );
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "SELECT a FROM tenant WHERE b = ?\n  rule 1 (tenant_\\w+, statement) finds \"tenant_blue\"\n"
    );
    for (name, value, want) in [
        (
            "X-Note",
            "tenant_blue alice@example.com",
            "REDACTED\n  rule 1 (tenant_\\w+, header) finds \"tenant_blue\"\n",
        ),
        (
            "Referer",
            "https://u:p@h/?q=1",
            "https://REDACTED:REDACTED@h/?q=REDACTED\n",
        ),
    ] {
        let args = ["redact", "--header", name, "--explain", "--config", path];
        let output = command(&args, value);
        assert_eq!(String::from_utf8_lossy(&output.stdout), want);
    }
    let output = command(&["redact", "--header", "Cookie"], "");
    assert_eq!(output.status.code(), Some(2));
    fs::write(
        &config,
        "[redaction]\nquery_allow = ['page']\n[otlp]\nheaders = 'api-key=topsecret'\n\
         [otlp_logs]\nheaders = 'api-key=topsecret2'\n",
    )
    .unwrap();
    let output = command(&["config", "show", "--origin", "--config", path], "");
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(
        shown.contains(&format!("query_allow = [\"page\"]  # {path}")),
        "{shown}"
    );
    assert!(shown.contains("rate = 19  # default"), "{shown}");
    assert!(!shown.contains("topsecret"), "{shown}");
}
