//! Exchanges as they are, and the spans that they should make.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::HashSet;

use proptest::prelude::*;

use super::*;
use crate::{
    correlate::exchange::{End, Ends},
    span::{Status, Value},
};

/// A served `GET /`, answered with 200.
pub(crate) fn served() -> Exchange {
    Exchange {
        tgid: 7,
        tid: 7,
        sock: 1,
        number: 1,
        fd: 9,
        role: Role::Server,
        ends: Ends::Ip {
            local: "127.0.0.1:8000".parse().unwrap(),
            remote: "192.0.2.4:51000".parse().unwrap(),
        },
        request_context: 0,
        response_context: 0,
        response_tid: 0,
        unix_path: None,
        unix_peer: 0,
        before: 0,
        connect: None,
        pipelined: false,
        unseen: Default::default(),
        start: 1_000,
        response_start: Some(1_800),
        end: 2_000,
        queued: None,
        method: "GET".into(),
        target: "/".into(),
        minor_version: 1,
        host: Some("api.example:8080".into()),
        user_agent: None,
        traceparent: None,
        tracestate: None,
        headers: Vec::new(),
        status: Some(200),
        request_bytes: 80,
        request_body: 0,
        response_bytes: 140,
        response_body: 12,
        ended_by: End::Length,
    }
}

/// The process that served it.
pub(crate) fn resource() -> Arc<Resource> {
    Arc::new(Resource {
        tgid: 7,
        service_name: "shop".into(),
        attributes: vec![("service.name".into(), Value::Str("shop".into()))],
    })
}

fn policy() -> Policy {
    Policy::new(PolicyConfig::default(), Arc::new(Counters::new())).unwrap()
}

fn span_of(exchange: &Exchange) -> Span {
    let clock = ClockOffset::from_readings(0, 1_000_000);
    policy().span(exchange, &resource(), clock, None)
}

fn get<'a>(span: &'a Span, name: &str) -> Option<&'a Value> {
    let found = span.attributes.iter().find(|(n, _)| *n == name);
    found.map(|(_, value)| value)
}

fn text<'a>(span: &'a Span, name: &str) -> Option<&'a str> {
    match get(span, name) {
        Some(Value::Str(text)) => Some(text),
        _ => None,
    }
}

fn int(span: &Span, name: &str) -> Option<i64> {
    match get(span, name) {
        Some(Value::Int(n)) => Some(*n),
        _ => None,
    }
}

/// All that the conventions want of a server's span is there, and nothing else.
#[test]
fn a_served_request() {
    let span = span_of(&Exchange {
        target: "/items/42?q=secret&page=2".into(),
        method: "POST".into(),
        user_agent: Some("curl/8.5.0".into()),
        queued: Some(1_500_000),
        request_body: 5,
        ..served()
    });
    assert_eq!(span.name, "POST /items/{id}");
    assert_eq!(span.kind, SpanKind::Server);
    assert_eq!(span.status, Status::Unset);
    assert_eq!((span.start, span.end), (1_001_000, 1_002_000));
    let str = |text: &str| Value::Str(text.into());
    let mut want = vec![
        ("http.request.method", str("POST")),
        ("url.scheme", str("http")),
        ("url.path", str("/items/42")),
        ("url.query", str("q=REDACTED&page=REDACTED")),
        ("http.route", str("/items/{id}")),
        ("server.address", str("api.example")),
        ("server.port", Value::Int(8080)),
        ("client.address", str("192.0.2.4")),
        ("decnet.route.source", str("folded")),
        ("http.response.status_code", Value::Int(200)),
        ("network.protocol.name", str("http")),
        ("network.protocol.version", str("1.1")),
        ("network.transport", str("tcp")),
        ("network.type", str("ipv4")),
        ("network.peer.address", str("192.0.2.4")),
        ("network.peer.port", Value::Int(51000)),
        ("network.local.address", str("127.0.0.1")),
        ("network.local.port", Value::Int(8000)),
        ("user_agent.original", str("curl/8.5.0")),
        ("http.request.size", Value::Int(80)),
        ("http.request.body.size", Value::Int(5)),
        ("http.response.size", Value::Int(140)),
        ("http.response.body.size", Value::Int(12)),
        ("decnet.queue.duration", Value::Float(0.0015)),
        ("decnet.end", str("length")),
        ("decnet.link", str("none")),
    ];
    let mut have = span.attributes;
    want.sort_by_key(|(name, _)| *name);
    have.sort_by_key(|(name, _)| *name);
    assert_eq!(have, want);
}

/// All that the conventions want of a client's span is there, with credentials masked.
#[test]
fn a_request_made() {
    let made = |target: &str, host: &str| {
        span_of(&Exchange {
            role: Role::Client,
            target: target.into(),
            host: Some(host.into()),
            ..served()
        })
    };
    let span = made("/v1/pay?key=k", "pay.example");
    assert_eq!(span.kind, SpanKind::Client);
    assert_eq!(span.name, "GET /v1/pay");
    assert_eq!(
        text(&span, "url.full"),
        Some("http://pay.example/v1/pay?key=REDACTED")
    );
    assert_eq!(text(&span, "url.template"), Some("/v1/pay"));
    assert_eq!(text(&span, "server.address"), Some("pay.example"));
    assert_eq!(int(&span, "server.port"), Some(80));
    assert_eq!(text(&span, "network.peer.address"), Some("192.0.2.4"));
    for absent in ["url.path", "url.query", "http.route", "client.address"] {
        assert_eq!(get(&span, absent), None, "{absent}");
    }
    let span = made("http://u:p@h.example:81/a", "proxy:3128");
    assert_eq!(
        text(&span, "url.full"),
        Some("http://REDACTED:REDACTED@h.example:81/a")
    );
    assert_eq!(int(&span, "server.port"), Some(81));
}

/// Errors are what the conventions call errors, and differ with the side.
#[test]
fn errors() {
    let of = |role, status, ended_by| {
        let span = span_of(&Exchange {
            role,
            status,
            ended_by,
            ..served()
        });
        let error = text(&span, "error.type").map(str::to_owned);
        assert_eq!(error.is_some(), span.status != Status::Unset);
        error
    };
    let error = |text: &str| Some(text.to_owned());
    for (role, status, end, want) in [
        (Role::Server, Some(200), End::Length, None),
        (Role::Server, Some(404), End::Length, None),
        (Role::Server, Some(500), End::Length, error("500")),
        (Role::Server, Some(503), End::PeerGone, error("503")),
        (Role::Server, Some(200), End::PeerGone, error("peer_gone")),
        (Role::Server, Some(200), End::Aborted, error("aborted")),
        (Role::Server, None, End::ProcessExit, error("process_exit")),
        (Role::Server, Some(200), End::Idle, None),
        (Role::Server, None, End::AgentStop, None),
        (Role::Client, Some(302), End::Close, None),
        (Role::Client, Some(404), End::Length, error("404")),
        (Role::Client, Some(500), End::Length, error("500")),
        (Role::Client, None, End::PeerGone, error("peer_gone")),
    ] {
        assert_eq!(of(role, status, end), want, "{role:?} {status:?} {end:?}");
    }
}

/// A method that nobody knows is `_OTHER`, and does not get into the name.
#[test]
fn unknown_methods() {
    let span = span_of(&Exchange {
        method: "get".into(),
        ..served()
    });
    assert_eq!(text(&span, "http.request.method"), Some("_OTHER"));
    assert_eq!(text(&span, "http.request.method_original"), Some("get"));
    assert_eq!(span.name, "HTTP /");
}

/// A path that the service does not have gives its name to nothing.
#[test]
fn a_missing_path_is_no_route() {
    let span = span_of(&Exchange {
        target: "/wp-login.php".into(),
        status: Some(404),
        ..served()
    });
    assert_eq!(span.name, "GET");
    assert_eq!(get(&span, "http.route"), None);
    assert_eq!(text(&span, "url.path"), Some("/wp-login.php"));
}

/// Without `Host`, with garbage in it, on a unix socket, and from IPv4 through IPv6, addresses are
/// what is known and nothing else.
#[test]
fn addresses() {
    let span = span_of(&Exchange {
        host: Some("<bad host>".into()),
        ends: Ends::Ip {
            local: "[::ffff:10.0.0.1]:8000".parse().unwrap(),
            remote: "[::ffff:10.0.0.2]:9".parse().unwrap(),
        },
        ..served()
    });
    assert_eq!(text(&span, "server.address"), Some("10.0.0.1"));
    assert_eq!(int(&span, "server.port"), Some(8000));
    assert_eq!(text(&span, "client.address"), Some("10.0.0.2"));
    assert_eq!(text(&span, "network.type"), Some("ipv4"));
    let span = span_of(&Exchange {
        host: None,
        ends: Ends::Unix,
        ..served()
    });
    assert_eq!(text(&span, "network.transport"), Some("unix"));
    assert_eq!(get(&span, "server.address"), None);
    assert_eq!(get(&span, "client.address"), None);
}

/// A `traceparent` makes the span part of the caller's trace; a broken one does not.
#[test]
fn joins_the_callers_trace() {
    let counters = Arc::new(Counters::new());
    let mut policy = Policy::new(PolicyConfig::default(), Arc::clone(&counters)).unwrap();
    let clock = ClockOffset::from_readings(0, 0);
    let with = |parent: &str, state: &str| Exchange {
        traceparent: Some(parent.into()),
        tracestate: Some(state.into()),
        ..served()
    };
    let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let span = policy.span(&with(good, "rojo=1"), &resource(), clock, None);
    assert_eq!(span.trace_id[..2], [0x4b, 0xf9]);
    assert_eq!(span.parent_id, 0x00f0_67aa_0ba9_02b7_u64.to_be_bytes());
    assert!(span.parent_is_remote);
    assert_eq!(&*span.trace_state, "rojo=1");
    assert_eq!(text(&span, "decnet.link"), Some("exact"));
    assert_eq!(counters.get(Count::TraceparentInvalid), 0);

    let span = policy.span(&with("00-0-0-00", "rojo=1"), &resource(), clock, None);
    assert_eq!(span.parent_id, [0; 8]);
    assert_eq!(&*span.trace_state, "");
    assert_ne!(span.trace_id, [0; 16]);
    assert_eq!(text(&span, "decnet.link"), Some("none"));
    assert_eq!(counters.get(Count::TraceparentInvalid), 1);
}

/// A call made under a request is its child, in its trace, and says how surely.
#[test]
fn a_call_under_its_request() {
    let mut policy = policy();
    let clock = ClockOffset::from_readings(0, 0);
    let request = policy.span(&served(), &resource(), clock, None);
    let call = Exchange {
        role: Role::Client,
        ..served()
    };
    let parent = Parent {
        span: &request.reference(),
        link: Link::Inferred,
    };
    let call = policy.span(&call, &resource(), clock, Some(parent));
    assert_eq!(call.trace_id, request.trace_id);
    assert_eq!(call.parent_id, request.span_id);
    assert_ne!(call.span_id, request.span_id);
    assert!(!call.parent_is_remote);
    assert_eq!(text(&call, "decnet.link"), Some("inferred"));
}

/// A call tells how long connecting took, if it did, and the first byte, if it came.
#[test]
fn times_of_a_call() {
    let call = |connect, response_start| {
        let span = span_of(&Exchange {
            role: Role::Client,
            connect,
            response_start,
            ..served()
        });
        ["decnet.connect.duration", "decnet.ttfb.duration"].map(|name| get(&span, name).cloned())
    };
    let seconds = |nanoseconds: f64| Some(Value::Float(nanoseconds / 1e9));
    assert_eq!(
        call(Some(700), Some(1_800)),
        [seconds(700.0), seconds(800.0)]
    );
    assert_eq!(call(None, None), [None, None]);
    assert_eq!(get(&span_of(&served()), "decnet.ttfb.duration"), None);
}

/// Ids do not repeat, within one policy or across two.
#[test]
fn ids_are_unique() {
    let mut seen = HashSet::new();
    for _ in 0..2 {
        let mut policy = policy();
        for _ in 0..5_000 {
            assert!(seen.insert(policy.ids.trace_id().to_vec()));
            assert!(seen.insert(policy.ids.span_id().to_vec()));
        }
    }
}

/// Secrets in a host's name, in a method that nobody knows and in a `User-Agent` are masked, in spans and in
/// what metrics go by; each stays whole where masking is off.
#[test]
fn masks_hosts_methods_and_agents() {
    const TOKEN: &str = "pLaNt3dT0k3nQx7vB2mZ9sK4wR8yH1jF";
    let exchange = |role| Exchange {
        role,
        method: "4111111111111111".into(),
        target: "/a".into(),
        host: Some(format!("{TOKEN}.example:81").into()),
        user_agent: Some(format!("app/1 ({TOKEN}) {}", "x".repeat(300)).into()),
        ..served()
    };
    let clock = ClockOffset::from_readings(0, 0);
    for redact in [true, false] {
        let config = PolicyConfig {
            redact,
            ..PolicyConfig::default()
        };
        let mut policy = Policy::new(config, Arc::new(Counters::new())).unwrap();
        for role in [Role::Server, Role::Client] {
            let shown = |masked: &str, whole: &str| match redact {
                true => masked.to_owned(),
                false => whole.to_owned(),
            };
            let host = shown("REDACTED.example", &format!("{TOKEN}.example"));
            let seen = exchange(role);
            let seen = policy.observe(&seen, &resource());
            assert_eq!(seen.server, http::Server::Named(&host, Some(81)));
            // The second time out of what is kept.
            for _ in 0..2 {
                let span = policy.span(&exchange(role), &resource(), clock, None);
                assert_eq!(text(&span, "server.address"), Some(&*host));
                let method = shown("REDACTED", "4111111111111111");
                assert_eq!(text(&span, "http.request.method_original"), Some(&*method));
                let agent = text(&span, "user_agent.original").unwrap();
                let front = shown("app/1 (REDACTED)", &format!("app/1 ({TOKEN}) x"));
                assert!(agent.starts_with(&front), "{agent}");
                if role == Role::Client {
                    let url = format!("http://{host}:81/a");
                    assert_eq!(text(&span, "url.full"), Some(&*url));
                }
            }
        }
    }
}

/// A `tracestate` goes where the specification wants it, and nowhere else; one that breaks its grammar
/// goes nowhere.
#[test]
fn trace_states_are_no_attributes() {
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    for (state, want) in [
        ("rojo=opaque7f3", "rojo=opaque7f3"),
        ("alice@example.com", ""),
        ("opaque7f3", ""),
    ] {
        let span = span_of(&Exchange {
            traceparent: Some(parent.into()),
            tracestate: Some(state.into()),
            ..served()
        });
        assert_eq!(&*span.trace_state, want);
        let rest = format!("{:?} {:?} {:?}", span.name, span.attributes, span.status);
        assert!(
            !rest.contains("opaque7f3") && !rest.contains("alice"),
            "{rest}"
        );
    }
}

/// A route that is folded from a path with a URL in it holds none of that URL's credentials.
#[test]
fn routes_hold_no_credentials() {
    for (target, want) in [
        ("/go/https://alice@h/x", "GET /go/https://{email}/x"),
        ("/go/https%3A%2F%2Falice%40h/x", "GET /go/REDACTED/x"),
    ] {
        let span = span_of(&Exchange {
            target: target.into(),
            ..served()
        });
        assert_eq!(span.name, want);
    }
}

/// With masking off, the path and query are shown; credentials in a URL never are.
#[test]
fn masking_can_be_turned_off() {
    let config = PolicyConfig {
        redact: false,
        ..PolicyConfig::default()
    };
    let mut policy = Policy::new(config, Arc::new(Counters::new())).unwrap();
    let exchange = Exchange {
        role: Role::Client,
        target: "http://u:p@h/alice@example.com?q=1".into(),
        ..served()
    };
    let span = policy.span(
        &exchange,
        &resource(),
        ClockOffset::from_readings(0, 0),
        None,
    );
    assert_eq!(
        text(&span, "url.full"),
        Some("http://REDACTED:REDACTED@h/alice@example.com?q=1")
    );
    let exchange = Exchange {
        target: "/go/https://u:p@h/x?next=https%3A%2F%2Fu%3Ap%40h&q=1".into(),
        user_agent: Some("bot (+https://u:p@h) alice@example.com".into()),
        ..served()
    };
    let span = policy.span(
        &exchange,
        &resource(),
        ClockOffset::from_readings(0, 0),
        None,
    );
    for (name, want) in [
        ("url.path", "/go/https://REDACTED:REDACTED@h/x"),
        ("url.query", "next=REDACTED&q=1"),
        (
            "user_agent.original",
            "bot (+https://REDACTED:REDACTED@h) alice@example.com",
        ),
    ] {
        assert_eq!(text(&span, name), Some(want));
    }
}

proptest! {
    /// What was told before changes nothing: each of many requests has the span that it would have alone, and a call's
    /// URL is put together of what stands in it.
    #[test]
    fn no_span_depends_on_those_before(
        requests in proptest::collection::vec(
            (any::<bool>(), "(/[a-c]{1,2}|/[0-9]{1,14}|/[a-z.@%;=-]{0,15}){1,3}", "[a-b]{1,12}", any::<u16>()),
            1..40,
        ),
    ) {
        let mut policy = policy();
        for (client, target, host, port) in requests {
            let exchange = Exchange {
                role: if client { Role::Client } else { Role::Server },
                target: target.as_str().into(),
                host: Some(format!("{host}:{port}").into()),
                ..served()
            };
            let clock = ClockOffset::from_readings(0, 1_000_000);
            let span = policy.span(&exchange, &resource(), clock, None);
            let alone = span_of(&exchange);
            prop_assert_eq!(&span.name, &alone.name);
            prop_assert_eq!(&span.attributes, &alone.attributes);
            if client {
                let path = redact::path(&target);
                let url = format!("http://{host}:{port}{path}");
                prop_assert_eq!(text(&span, "url.full"), Some(url.as_str()));
            }
        }
    }

    /// Whatever bytes a request is made of, there is a span; its attributes have names of their own,
    /// its size is bounded, and its times are in order.
    #[test]
    fn makes_a_span_of_anything(
        method in "\\PC{0,40}",
        target in "\\PC{0,3000}",
        host in proptest::option::of("\\PC*"),
        agent in proptest::option::of("\\PC{0,600}"),
        traceparent in proptest::option::of("\\PC*"),
        status in proptest::option::of(any::<u16>()),
        client in any::<bool>(),
        times in any::<(u64, u64)>(),
        offset in any::<(u64, u64)>(),
    ) {
        let exchange = Exchange {
            role: if client { Role::Client } else { Role::Server },
            method: method.into(),
            target: target.into(),
            host: host.map(Into::into),
            user_agent: agent.map(Into::into),
            traceparent: traceparent.map(Into::into),
            status,
            start: times.0,
            end: times.1,
            ..served()
        };
        let clock = ClockOffset::from_readings(offset.0, offset.1);
        let span = policy().span(&exchange, &resource(), clock, None);
        prop_assert!(span.end >= span.start);
        prop_assert!(span.name.len() < 400);
        let mut names = HashSet::new();
        let mut size = 0;
        for (name, value) in &span.attributes {
            prop_assert!(names.insert(*name), "{} twice", name);
            if let Value::Str(text) = value {
                size += text.len();
            }
        }
        prop_assert!(size < 16 * 1024, "{}", size);
        prop_assert!(span.attributes.len() <= 32);
    }
}
