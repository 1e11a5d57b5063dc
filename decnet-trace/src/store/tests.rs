//! Whole stores: what goes in comes out, what is too old or too much goes, and what is broken is left.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{fs, path::Path, sync::Arc};

use proptest::prelude::*;
use rusqlite::Connection;
use serde_json::{Value as Json, json};
use smol_str::SmolStr;

use super::{
    reader::{Filter, Order, Reader},
    *,
};
use crate::{
    export::tests::resource,
    profile::fixture,
    span::{Attribute, Resource, Span, SpanKind, Status, Value},
};

const SECOND: u64 = 1_000_000_000;

/// When the tests take place, by the wall clock.
const EPOCH: u64 = 1_800_000_000 * SECOND;

fn now(seconds: u64) -> Now {
    Now {
        unix: EPOCH + seconds * SECOND,
        uptime: 1000 + seconds,
    }
}

fn config(folder: &Path) -> StoreConfig {
    StoreConfig {
        folder: folder.to_owned(),
        max_size: SIZE_MIN,
        ..StoreConfig::default()
    }
}

fn open(config: &StoreConfig, seconds: u64) -> Store {
    let opened = Store::open(config, &now(seconds)).unwrap();
    assert_eq!(opened.set_aside, None);
    opened.store
}

/// A request with a trace of its own, the `n`th, as the policy makes them.
fn request(n: u64, resource: &Arc<Resource>) -> Span {
    let text = |text: &'static str| Value::Str(text.into());
    Span {
        trace_id: u128::from(n + 1)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)
            .to_be_bytes(),
        span_id: (n + 1).to_be_bytes(),
        parent_id: [0; 8],
        parent_is_remote: false,
        trace_state: Box::default(),
        trace_flags: 0,
        name: "GET /items/{id}".into(),
        kind: SpanKind::Server,
        start: EPOCH + n * 1_000_000,
        end: EPOCH + n * 1_000_000 + 100_000 + n % 977,
        attributes: vec![
            ("http.request.method", text("GET")),
            ("url.scheme", text("http")),
            ("url.path", Value::Str(format!("/items/{n}").into())),
            ("http.route", text("/items/{id}")),
            ("http.response.status_code", Value::Int(200)),
            ("server.address", text("127.0.0.1")),
            ("client.address", text("127.0.0.1")),
            ("network.transport", text("tcp")),
            ("network.peer.address", text("127.0.0.1")),
            ("network.peer.port", Value::Int(40_000 + n as i64 % 64)),
            ("network.local.port", Value::Int(8000)),
            ("network.protocol.version", text("1.1")),
            ("user_agent.original", text("curl/8.5.0")),
            ("http.request.size", Value::Int(77)),
            ("http.response.size", Value::Int(180)),
            ("decnet.queue.duration", Value::Float(0.004)),
            ("decnet.end", text("length")),
            ("decnet.link", text("none")),
        ],
        status: Status::Unset,
        resource: Arc::clone(resource),
    }
}

fn everything(folder: &Path, filter: &Filter, order: Order) -> Vec<StoredSpan> {
    let reader = Reader::open(folder).unwrap();
    reader.requests(filter, order, 1_000_000).unwrap()
}

fn count(folder: &Path, table: &str) -> i64 {
    let connection = Connection::open(super::folder::database(folder)).unwrap();
    connection
        .query_row(&format!("SELECT count(*) FROM {table}"), [], |row| {
            row.get(0)
        })
        .unwrap()
}

/// The bytes that all of a store's files take.
fn size(folder: &Path) -> u64 {
    let files = fs::read_dir(folder).unwrap();
    files
        .map(|file| file.unwrap().metadata().unwrap().len())
        .sum()
}

const NAMES: [&str; 14] = [
    "http.request.method",
    "http.route",
    "url.template",
    "url.path",
    "url.full",
    "http.response.status_code",
    "error.type",
    "decnet.link",
    "network.peer.port",
    "decnet.queue.duration",
    "http.request.size",
    "db.query.text",
    "server.port",
    "decnet.something",
];

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        ".{0,12}".prop_map(|text| Value::Str(text.into())),
        any::<i64>().prop_map(Value::Int),
        any::<i32>().prop_map(|n| Value::Float(f64::from(n) / 8.0)),
        any::<bool>().prop_map(Value::Bool),
        prop::collection::vec("[a-z]{0,4}".prop_map(SmolStr::from), 0..3)
            .prop_map(|list| Value::StrList(list.into())),
    ]
}

fn any_span() -> impl Strategy<Value = Span> {
    let attributes = prop::collection::btree_map(0..NAMES.len(), value(), 0..NAMES.len());
    (
        any::<[u8; 16]>(),
        any::<[u8; 8]>(),
        prop::option::of(1..9_u8),
        any::<bool>(),
        "[ -~]{0,20}",
        (0..4_u64, 0..3_u64),
        attributes,
        prop::option::of("[a-z]{0,5}"),
        (0..3_u8, "[a-z=,]{0,6}"),
    )
        .prop_map(
            |(
                trace_id,
                span_id,
                parent,
                server,
                name,
                (start, took),
                attributes,
                error,
                (of, state),
            )| {
                let attributes: Vec<Attribute> = attributes
                    .into_iter()
                    .map(|(name, value)| (NAMES[name], value))
                    .collect();
                Span {
                    trace_id,
                    span_id,
                    parent_id: parent.map_or([0; 8], |parent| [parent; 8]),
                    parent_is_remote: parent.is_some_and(|parent| parent > 4),
                    trace_state: state.into(),
                    trace_flags: 0,
                    name: name.into(),
                    kind: if server {
                        SpanKind::Server
                    } else {
                        SpanKind::Client
                    },
                    start: EPOCH + start,
                    end: EPOCH + start + took,
                    attributes,
                    status: error.map_or(Status::Unset, |error| Status::Error(error.into())),
                    resource: resource(["a", "b", "c"][usize::from(of)]),
                }
            },
        )
}

fn json(value: &Value) -> Json {
    match value {
        Value::Str(text) => json!(text),
        Value::Int(number) => json!(number),
        Value::Float(number) => json!(number),
        Value::Bool(yes) => json!(yes),
        Value::StrList(list) => json!(list),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever a span says, the store says the same, attribute for attribute.
    #[test]
    fn gives_back_what_it_was_given(spans in prop::collection::vec(any_span(), 1..20)) {
        let folder = tempfile::tempdir().unwrap();
        let mut store = open(&config(folder.path()), 0);
        store.write(&spans, None, &now(0)).unwrap();
        let reader = Reader::open(folder.path()).unwrap();
        for span in &spans {
            let stored = reader.trace(&span.trace_id).unwrap();
            let stored = stored.iter().find(|stored| stored.span_id == span.span_id).unwrap();
            let mut expected: serde_json::Map<String, Json> = span
                .attributes
                .iter()
                .map(|(name, value)| ((*name).to_owned(), json(value)))
                .collect();
            let error = match &span.status {
                Status::Unset => None,
                Status::Error(description) => {
                    if !description.is_empty() {
                        expected.insert("otel.status_description".into(), json!(description));
                    }
                    Some(expected.get("error.type").and_then(Json::as_str).unwrap_or("").to_owned())
                }
            };
            // Of an empty one it cannot be told whether it was there.
            if expected.get("error.type") == Some(&json!("")) && error.is_some() {
                expected.remove("error.type");
            }
            prop_assert_eq!(&stored.attributes, &expected);
            prop_assert_eq!(&stored.error, &error);
            prop_assert_eq!(stored.parent_id, (span.parent_id != [0; 8]).then_some(span.parent_id));
            prop_assert_eq!(stored.parent_is_remote, span.parent_is_remote);
            prop_assert_eq!(&*stored.name, &*span.name);
            prop_assert_eq!((stored.start, stored.end()), (span.start, span.end));
            prop_assert_eq!(&stored.service, &span.resource.service_name);
            prop_assert_eq!(stored.is_request, span.kind == SpanKind::Server);
            prop_assert_eq!(&*stored.trace_state, &*span.trace_state);
        }
    }

    /// Each question has the answer that looking at every span gives.
    #[test]
    fn answers_as_looking_at_all_does(
        spans in prop::collection::vec(
            (0..3_usize, 0..3_usize, 0..50_u64, 0..600_u64, any::<bool>(), any::<bool>(), prop_oneof![Just(0), 0..200_u64]),
            1..80,
        ),
        service in prop::option::of(0..3_usize),
        route in prop::option::of(0..4_usize),
        since in prop::option::of(0..700_u64),
        errors in any::<bool>(),
        most in 1..12_usize,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let mut store = open(&config(folder.path()), 0);
        let names = ["a", "b", "c"];
        let routes = ["/items/{id}", "/items", "/"];
        let resources = names.map(resource);
        let mut spans: Vec<(u64, Span)> = spans
            .into_iter()
            .enumerate()
            .map(|(n, (of, at, took, start, failed, served, late))| (late, Span {
                kind: if served { SpanKind::Server } else { SpanKind::Client },
                start: EPOCH + start * SECOND,
                // Durations differ, so that there is one order.
                end: EPOCH + start * SECOND + took * 1000 + n as u64,
                attributes: vec![("http.route", Value::Str(routes[at].into()))],
                status: if failed { Status::Error("".into()) } else { Status::Unset },
                ..request(n as u64, &resources[of])
            }))
            .collect();
        // Spans come when they end, or when they have their place in a trace.
        let comes = |(late, span): &(u64, Span)| span.end + late * SECOND;
        spans.sort_by_key(comes);
        for late in &spans {
            store.write([&late.1], None, &now((comes(late) - EPOCH) / SECOND)).unwrap();
        }
        let spans: Vec<Span> = spans.into_iter().map(|(_, span)| span).collect();
        let glob = |pattern: &str| globset::Glob::new(pattern).unwrap().compile_matcher();
        let patterns = ["/items*", "/items/[{]id[}]", "/", "*"];
        let filter = Filter {
            service: service.map(|of| names[of].to_owned()),
            route: route.map(|at| glob(patterns[at])),
            since: since.map_or(0, |since| EPOCH + since * SECOND),
            errors,
        };
        let mut expected: Vec<&Span> = spans
            .iter()
            .rev()
            .filter(|span| span.kind == SpanKind::Server)
            .filter(|span| filter.service.as_ref().is_none_or(|name| *name == span.resource.service_name))
            .filter(|span| filter.route.as_ref().is_none_or(|glob| match &span.attributes[0].1 {
                Value::Str(route) => glob.is_match(&**route),
                _ => false,
            }))
            .filter(|span| span.start >= filter.since)
            .filter(|span| !errors || span.status != Status::Unset)
            .collect();
        let reader = Reader::open(folder.path()).unwrap();
        let ids = |order| -> Vec<[u8; 8]> {
            let found = reader.requests(&filter, order, most).unwrap();
            found.iter().map(|span| span.span_id).collect()
        };
        // Of those that began at the same time, the one that came last.
        expected.sort_by_key(|span| std::cmp::Reverse(span.start));
        let first: Vec<_> = expected.iter().take(most).map(|span| span.span_id).collect();
        prop_assert_eq!(ids(Order::Last), first);
        expected.sort_by_key(|span| std::cmp::Reverse(span.end - span.start));
        let slowest: Vec<_> = expected.iter().take(most).map(|span| span.span_id).collect();
        prop_assert_eq!(ids(Order::Slowest), slowest);
    }
}

/// A trace is found by any first digits of its id that no other has, and the spans of one trace by it,
/// however many others came between them.
#[test]
fn finds_traces() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(
        &StoreConfig {
            max_size: 64 << 20,
            ..config(folder.path())
        },
        0,
    );
    let service = resource("shop");
    let spans: Vec<Span> = (0..20_000).map(|n| request(n, &service)).collect();
    let child = Span {
        trace_id: spans[3].trace_id,
        span_id: [0xcc; 8],
        parent_id: spans[3].span_id,
        kind: SpanKind::Client,
        ..request(30_000, &service)
    };
    store
        .write(spans.iter().chain([&child]), None, &now(0))
        .unwrap();
    let reader = Reader::open(folder.path()).unwrap();
    let found = reader.trace(&spans[3].trace_id).unwrap();
    assert_eq!(found.len(), 2);
    assert_eq!(reader.trace_around(&found[0]).unwrap(), found);
    let id = format!("{:032x}", u128::from_be_bytes(spans[3].trace_id));
    for digits in [8, 9, 13, 32] {
        let traces = reader.traces_with_prefix(&id[..digits], 2).unwrap();
        assert_eq!(traces, [spans[3].trace_id], "{digits}");
    }
    assert_eq!(reader.traces_with_prefix("", 5).unwrap().len(), 5);
    assert_eq!(
        reader
            .traces_with_prefix(&id[..1].to_uppercase(), 2)
            .unwrap()
            .len(),
        2
    );
    for wrong in ["xyz", "-1", &format!("{id}0"), "é"] {
        assert!(
            reader.traces_with_prefix(wrong, 2).unwrap().is_empty(),
            "{wrong}"
        );
    }
}

/// What is older than the bound goes, with all that only it referred to; what is younger stays.
#[test]
fn deletes_what_is_too_old() {
    let folder = tempfile::tempdir().unwrap();
    let config = StoreConfig {
        max_age: Duration::from_secs(3600),
        ..config(folder.path())
    };
    let mut store = open(&config, 0);
    let profile = fixture::busy();
    let old = resource("old");
    let spans: Vec<_> = (0..5000).map(|n| request(n, &old)).collect();
    store.write(&spans, Some(&profile), &now(0)).unwrap();
    let new = request(9999, &resource("new"));
    store.write([&new], None, &now(1800)).unwrap();
    assert!(count(folder.path(), "samples") > 0);
    for seconds in 3600..3680 {
        store.sweep(&now(seconds)).unwrap();
    }
    let left = everything(folder.path(), &Filter::default(), Order::Last);
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].service, "new");
    for (table, rows) in [
        ("minutes", 1),
        ("resources", 1),
        ("operations", 1),
        ("attribute_sets", 1),
        ("samples", 0),
        ("stacks", 0),
    ] {
        assert_eq!(count(folder.path(), table), rows, "{table}");
    }
    // An id is not given again when all are gone.
    let last = left[0].id;
    for seconds in 0..10 {
        store.sweep(&now(9000 + seconds)).unwrap();
    }
    assert_eq!(count(folder.path(), "spans"), 0);
    store.write([&new], None, &now(9100)).unwrap();
    let left = everything(folder.path(), &Filter::default(), Order::Last);
    assert!(left[0].id > last);
}

/// The wall clock may leap by years, back and forth: nothing goes for that, and the store goes on.
#[test]
fn survives_clock_jumps() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    let mut store = open(&config, 0);
    let service = resource("shop");
    let leaps: [i64; 5] = [0, 900_000_000, -1_700_000_000, 1, 300_000_000];
    for (n, leap) in leaps.into_iter().enumerate() {
        let seconds = 100 * n as u64;
        let at = Now {
            unix: (EPOCH / SECOND).saturating_add_signed(leap) * SECOND,
            ..now(seconds)
        };
        if n == 3 {
            drop(store);
            store = Store::open(&config, &at).unwrap().store;
        }
        store
            .write([&request(n as u64, &service)], None, &at)
            .unwrap();
        store.sweep(&at).unwrap();
    }
    let left = everything(folder.path(), &Filter::default(), Order::Last);
    let ids: Vec<_> = left.iter().map(|span| span.id).collect();
    assert_eq!(ids, [5, 4, 3, 2, 1]);
}

/// The files never take more than their bound, together, whatever comes; the newest rows are there, and
/// the file is full of them.
#[test]
fn stays_within_its_size() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    let mut store = open(&config, 0);
    let service = resource("shop");
    let profile = fixture::busy();
    const BATCH: u64 = 1000;
    let mut peak = 0;
    for batch in 0..90 {
        let spans: Vec<_> = (batch * BATCH..(batch + 1) * BATCH)
            .map(|n| request(n, &service))
            .collect();
        let profile = (batch % 10 == 0).then_some(&profile);
        store.write(&spans, profile, &now(batch * 7)).unwrap();
        peak = peak.max(size(folder.path()));
    }
    assert!(peak <= config.max_size, "{peak}");
    assert!(peak > config.max_size * 8 / 10, "{peak}");
    drop(store);
    let left = everything(folder.path(), &Filter::default(), Order::Last);
    assert!(left.len() > 20_000, "{}", left.len());
    assert_eq!(left[0].span_id, (90 * BATCH).to_be_bytes());
    let ids: Vec<_> = left.iter().rev().map(|span| span.id).collect();
    assert!(ids.is_sorted_by(|a, b| a + 1 == *b), "a gap");
    // A lower bound is kept to after a while.
    let full = size(folder.path());
    let lower = StoreConfig {
        max_size: full / 2,
        ..config
    };
    let mut store = open(&lower, 700);
    for second in 0..60 {
        store.sweep(&now(700 + second)).unwrap();
    }
    let smaller = size(folder.path());
    assert!(smaller <= lower.max_size, "{smaller} of {full}");
    assert!(count(folder.path(), "spans") > 8000);
}

/// A reader that never ends cannot make the log grow: the store refuses until it has ended, and then
/// goes on.
#[test]
fn a_reader_cannot_make_it_grow() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    let mut store = open(&config, 0);
    let service = resource("shop");
    let batch = |n: u64| -> Vec<_> {
        (n * 500..n * 500 + 500)
            .map(|n| request(n, &service))
            .collect()
    };
    store.write(&batch(0), None, &now(0)).unwrap();
    let reader = Reader::open(folder.path()).unwrap();
    let before = reader
        .requests(&Filter::default(), Order::Last, 9999)
        .unwrap()
        .len();
    let mut stored = 1;
    let error = loop {
        match store.write(&batch(stored), None, &now(stored)) {
            Ok(()) => stored += 1,
            Err(error) => break error,
        }
        assert!(size(folder.path()) <= config.max_size);
        assert!(stored < 200, "it never refused");
    };
    assert!(error.to_string().contains("transaction"), "{error}");
    // The reader sees what there was when it began.
    let after = reader
        .requests(&Filter::default(), Order::Last, 9999)
        .unwrap()
        .len();
    assert_eq!(after, before);
    drop(reader);
    store.write(&batch(stored), None, &now(stored)).unwrap();
    assert_eq!(count(folder.path(), "spans"), 500 * (stored as i64 + 1));
}

/// A file that is no store is moved aside and a new one begun; what it was is still there.
#[test]
fn moves_a_broken_file_aside() {
    let garbage: Vec<u8> = (0..100_000_u32)
        .map(|n| (n.wrapping_mul(n) >> 3) as u8)
        .collect();
    for broken in [
        &garbage[..],
        b"not a database, but text that is long enough to be read as one.....",
    ] {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path());
        fs::write(super::folder::database(folder.path()), broken).unwrap();
        let error = Reader::open(folder.path()).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt);
        let opened = Store::open(&config, &now(0)).unwrap();
        assert_eq!(fs::read(opened.set_aside.unwrap()).unwrap(), broken);
        let mut store = opened.store;
        store
            .write([&request(1, &resource("s"))], None, &now(0))
            .unwrap();
        assert_eq!(
            everything(folder.path(), &Filter::default(), Order::Last).len(),
            1
        );
    }
}

/// A file that loses its end is noticed when it is next opened or written to, and the store begins anew.
#[test]
fn begins_anew_when_the_file_breaks() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    let mut store = open(&config, 0);
    let service = resource("shop");
    let spans: Vec<_> = (0..5000).map(|n| request(n, &service)).collect();
    store.write(&spans, None, &now(0)).unwrap();
    drop(store);
    let path = super::folder::database(folder.path());
    let full = fs::metadata(&path).unwrap().len();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(full / 2).unwrap();
    let opened = Store::open(&config, &now(1)).unwrap();
    let mut store = match opened.set_aside {
        Some(_) => opened.store,
        None => {
            let mut store = opened.store;
            let error = store.write(&spans, None, &now(1)).unwrap_err();
            assert_eq!(error.kind(), Kind::Corrupt, "{error}");
            let opened = store.begin_anew(&config, &now(1)).unwrap();
            assert_eq!(
                fs::metadata(opened.set_aside.unwrap()).unwrap().len(),
                full / 2
            );
            opened.store
        }
    };
    store.write(&spans[..7], None, &now(2)).unwrap();
    assert_eq!(
        everything(folder.path(), &Filter::default(), Order::Last).len(),
        7
    );
}

/// A store of a newer version is left as it is, for writing and for reading.
#[test]
fn leaves_a_newer_store_alone() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    drop(open(&config, 0));
    let path = super::folder::database(folder.path());
    let connection = Connection::open(&path).unwrap();
    connection
        .pragma_update(None, "user_version", VERSION + 1)
        .unwrap();
    drop(connection);
    let before = fs::read(&path).unwrap();
    assert_eq!(
        Store::open(&config, &now(0)).unwrap_err().kind(),
        Kind::Newer
    );
    let error = Reader::open(folder.path()).unwrap_err();
    assert_eq!(error.kind(), Kind::Newer);
    assert!(error.to_string().contains(&format!("{VERSION}")), "{error}");
    assert_eq!(fs::read(&path).unwrap(), before);
}

/// A profile's samples are counted by process, minute and stack; those of one minute add up.
#[test]
fn stores_profiles() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(&config(folder.path()), 0);
    let profile = fixture::busy();
    for seconds in [0, 30, 90] {
        store.write([], Some(&profile), &now(seconds)).unwrap();
    }
    assert_eq!(count(folder.path(), "minutes"), 2);
    let connection = Connection::open(super::folder::database(folder.path())).unwrap();
    let (samples, seconds): (i64, f64) = connection
        .query_row(
            "SELECT sum(count), sum(cpu_seconds) FROM profile",
            [],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .unwrap();
    assert_eq!(samples, 3 * profile.total() as i64);
    let expected = (3 * profile.total() * profile.meta.period()) as f64 / 1e9;
    assert!((seconds - expected).abs() < 1e-6, "{seconds} {expected}");
    let mut frames = connection.prepare("SELECT frames FROM stacks").unwrap();
    let frames: Vec<String> = frames
        .query_map([], |row| row.get(0))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert!(frames.iter().any(|stack| stack.contains(';')));
}

/// The views show what the tables hold, with names and times that can be read.
#[test]
fn views_are_readable() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(&config(folder.path()), 0);
    let span = request(7, &resource("shop"));
    store.write([&span], None, &now(0)).unwrap();
    let connection = Connection::open(super::folder::database(folder.path())).unwrap();
    let row: (String, String, String, f64, String) = connection
        .query_row(
            "SELECT time, service, route, milliseconds, attributes ->> 'user_agent.original' FROM requests",
            [],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?)),
        )
        .unwrap();
    assert_eq!(row.0, "2027-01-15T08:00:00.007Z");
    assert_eq!(
        (&*row.1, &*row.2, &*row.4),
        ("shop", "/items/{id}", "curl/8.5.0")
    );
    assert!((row.3 - 0.100_007).abs() < 1e-9);
}
