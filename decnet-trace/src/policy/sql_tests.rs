//! What is left of statements, and that no literal is.

use proptest::prelude::*;

use super::*;

fn parts(sql: &str) -> (String, Option<&'static str>, Option<String>) {
    let Sanitised {
        text,
        operation,
        collection,
    } = sanitise(sql);
    (text.into(), operation, collection.map(Into::into))
}

fn check(sql: &str, text: &str, operation: &'static str, collection: Option<&str>) {
    let want = (
        text.to_owned(),
        Some(operation),
        collection.map(str::to_owned),
    );
    assert_eq!(parts(sql), want, "{sql}");
}

/// Strings, numbers, blobs and comments go, wherever they stand; names, parameters and signs stay.
#[test]
fn literals_become_marks() {
    check(
        "SELECT * FROM users WHERE name = 'O''Brien' AND id=42 -- not 'this'",
        "SELECT * FROM users WHERE name = ? AND id=?",
        "SELECT",
        Some("users"),
    );
    check(
        "select x'CAFE', 1.5e-3, 0xff, .5, -7, t1.c2 /* 'a' */ from t1",
        "select ?, ?, ?, ?, -?, t1.c2 from t1",
        "SELECT",
        Some("t1"),
    );
    check(
        "UPDATE t SET a=?1, b=:b, c=@c, d=$d, e=? WHERE f='x'",
        "UPDATE t SET a=?1, b=:b, c=@c, d=$d, e=? WHERE f=?",
        "UPDATE",
        Some("t"),
    );
    check(
        "DELETE\n\tFROM [my table]   WHERE `a b`='x;y'",
        "DELETE FROM [my table] WHERE `a b`=?",
        "DELETE",
        Some("my table"),
    );
}

/// Lists of values of any length are one.
#[test]
fn lists_are_folded() {
    check(
        "SELECT a FROM t WHERE b IN (1, 2, 3) AND c in ('x')",
        "SELECT a FROM t WHERE b IN (?) AND c in (?)",
        "SELECT",
        Some("t"),
    );
    check(
        "SELECT a FROM t WHERE b IN (?,?,?) AND c IN (SELECT d FROM u)",
        "SELECT a FROM t WHERE b IN (?) AND c IN (SELECT d FROM u)",
        "SELECT",
        Some("t"),
    );
    check(
        "INSERT INTO t(a,b) VALUES (1,'x'), (2,NULL), (-3,'z') ON CONFLICT DO NOTHING",
        "INSERT INTO t(a,b) VALUES (?,?), ... ON CONFLICT DO NOTHING",
        "INSERT",
        Some("t"),
    );
    check(
        "INSERT INTO t VALUES (now(), 5)",
        "INSERT INTO t VALUES (now(), ?)",
        "INSERT",
        Some("t"),
    );
}

/// Double quotes hold names where nothing else can stand, and are taken for strings elsewhere.
#[test]
fn double_quotes_are_doubted() {
    check(
        "SELECT \"user\".id AS \"user_id\", t.\"a\" FROM \"user\" WHERE name = \"alice\"",
        "SELECT \"user\".id AS \"user_id\", t.\"a\" FROM \"user\" WHERE name = ?",
        "SELECT",
        Some("user"),
    );
    check(
        "INSERT INTO \"t\" (\"a\", \"b\") VALUES (\"alice\", 1)",
        "INSERT INTO \"t\" (\"a\", \"b\") VALUES (?, ?)",
        "INSERT",
        Some("t"),
    );
    check(
        "SELECT 1 FROM t WHERE a IS NOT DISTINCT FROM \"alice\"",
        "SELECT ? FROM t WHERE a IS NOT DISTINCT FROM ?",
        "SELECT",
        Some("t"),
    );
}

/// A table is named where there is one.
#[test]
fn one_table_or_none() {
    for (sql, collection) in [
        ("SELECT * FROM a JOIN b ON a.x = b.x", None),
        ("SELECT * FROM a, b", None),
        ("SELECT * FROM a ORDER BY x, y", Some("a")),
        ("SELECT * FROM (SELECT * FROM a)", None),
        ("SELECT (SELECT 1 FROM b) FROM a", Some("a")),
        ("SELECT * FROM json_each(?)", None),
        ("SELECT * FROM a UNION SELECT * FROM b", None),
        ("WITH c AS (SELECT * FROM a) SELECT * FROM c", None),
        (
            "WITH c AS (SELECT 1) INSERT INTO t SELECT * FROM c",
            Some("t"),
        ),
        ("SELECT 1", None),
        ("REPLACE INTO main.t VALUES (1)", Some("main.t")),
        ("UPDATE OR IGNORE t SET a = 1", Some("t")),
        ("CREATE TEMP TABLE IF NOT EXISTS t (a)", Some("t")),
        ("DROP TABLE t", Some("t")),
        ("CREATE INDEX i ON t (a)", None),
        ("DELETE FROM 'secret'", None),
    ] {
        let found = sanitise(sql);
        assert_eq!(found.collection.as_deref(), collection, "{sql}");
        assert!(found.operation.is_some(), "{sql}");
    }
    assert_eq!(
        sanitise("WITH c AS (SELECT 1) UPDATE t SET a = 1").operation,
        Some("UPDATE")
    );
}

/// Transactions have names of their own, nonsense has none, and nothing is nothing.
#[test]
fn other_statements() {
    check("BEGIN ", "BEGIN", "BEGIN", None);
    check("COMMIT", "COMMIT", "COMMIT", None);
    check(
        "PRAGMA journal_mode=wal",
        "PRAGMA journal_mode=wal",
        "PRAGMA",
        None,
    );
    check("PRAGMA key = hunter2", "PRAGMA key = ?", "PRAGMA", None);
    check("ATTACH 'a.db' AS b", "ATTACH ? AS b", "ATTACH", None);
    assert_eq!(parts("selec 1"), ("selec ?".into(), None, None));
    assert_eq!(parts(""), Default::default());
    assert_eq!(parts("/* only"), Default::default());
}

/// A text cut off in the middle of a literal ends in a mark.
#[test]
fn what_is_cut_is_masked() {
    for sql in [
        "SELECT 'secr",
        "SELECT \"secr",
        "SELECT `secr",
        "SELECT [secr",
        "SELECT 12",
    ] {
        assert_eq!(sanitise(sql).text, "SELECT ?", "{sql}");
    }
    assert_eq!(sanitise("SELECT $tag$secret").text, "SELECT ?");
    assert_eq!(sanitise("SELECT $$it's$$, $1").text, "SELECT ?, $1");
}

/// A text that was seen before is not taken apart again.
#[test]
fn known_texts_are_kept() {
    let mut cache = Cache::default();
    let sql: Arc<str> = "SELECT 1".into();
    let first = cache.get(&sql);
    assert!(Arc::ptr_eq(&first, &cache.get(&Arc::from("SELECT 1"))));
}

/// A literal in any of the forms that SQLite has, holding `secret`, and quotes of all kinds.
fn literal() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z\"`\\[\\]()/*;? -]{0,5}".prop_map(|around| format!("'{around}secret{around}'")),
        "[a-z ]{0,5}".prop_map(|around| format!("'{around}''secret''{around}'")),
        Just("x'5ec4e7'".replace("5ec4e7", "secret")),
        Just("= \"secret\"".to_owned()),
        (7_771_000_u64..7_772_000).prop_map(|number| number.to_string()),
        (7_771_000_u64..7_772_000).prop_map(|number| format!("{number}.5e+7771")),
        Just("/* secret ' */".to_owned()),
        Just("-- secret '\n".to_owned()),
    ]
}

/// What stands between literals.
fn between() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(" ".to_owned()),
        Just(", ".to_owned()),
        Just(" AND a = ".to_owned()),
        Just(" IN (".to_owned()),
        Just(") VALUES (".to_owned()),
        Just(" || ".to_owned()),
        "[a-z]{1,4} ?[=<>(),.+*/-] ?".prop_filter("no comment, no number", |text| {
            !text.contains("--") && !text.contains("/*") && !text.contains('.')
        }),
    ]
}

proptest! {
    /// Whatever stands between literals, none of them is left.
    #[test]
    fn no_literal_is_left(parts in proptest::collection::vec((between(), literal()), 1..12)) {
        let mut sql = "SELECT ".to_owned();
        for (between, literal) in &parts {
            sql.push_str(between);
            // A comment could begin where two signs meet.
            sql.push(' ');
            sql.push_str(literal);
            sql.push(' ');
        }
        let text = sanitise(&sql).text;
        prop_assert!(!text.contains("secret"), "{sql} -> {text}");
        prop_assert!(!text.contains("7771"), "{sql} -> {text}");
        prop_assert!(text.starts_with("SELECT"));
    }

    /// Cutting a statement anywhere leaves no part of a literal.
    #[test]
    fn no_cut_uncovers(at in 0_usize..60) {
        let sql = "INSERT INTO t VALUES ('secret', 7771, x'secret', \"secret\")  ";
        let text = sanitise(&sql[..at]).text;
        prop_assert!(!text.contains("sec"), "{text}");
        prop_assert!(!text.contains('7'), "{text}");
    }

    /// No text makes it panic, and what comes out has no string.
    #[test]
    fn survives_anything(sql in "\\PC{0,80}") {
        let once = sanitise(&sql).text;
        prop_assert!(!once.contains('\''), "{sql} -> {once}");
    }

    /// The same for a soup of what SQL is made of.
    #[test]
    fn survives_soup(sql in "[-/*'\"`$x?:@#()\\[\\].,;0-9a-eSELECT\n ]{0,120}") {
        let once = sanitise(&sql).text;
        prop_assert!(!once.contains('\''), "{sql} -> {once}");
    }
}
