//! The profiles that are written, opened by the programs that people open them with.
//!
//! These come from PyPI, npm and the system, and are fetched into the cache once; a test whose reader
//! cannot be had says SKIPPED, and why.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use decnet_trace::profile::{
    Frame, FrameKind, Meta, Process, Profile, Sample, Thread,
    formats::{self, Format},
    label::Style,
    output::Place,
};
use serde_json::Value;
use xtask::{
    bed::venv::{Venv, default_python},
    paths,
};

fn frame(kind: FrameKind, name: &str, file: &str, line: u32, first_line: u32) -> Arc<Frame> {
    Arc::new(Frame {
        kind,
        name: name.into(),
        file: file.into(),
        line,
        first_line,
    })
}

/// 1,000 samples at 100 Hz of two threads: a handler that compresses (600 natively, 100 in the
/// kernel, 50 itself), and a function that calls itself (250), whose name is not ASCII.
fn profile() -> Profile {
    use FrameKind::{Kernel, Native, Python};
    let main = || frame(Python, "<module>", "/srv/app/main.py", 40, 1);
    let handler = |line| frame(Python, "handler", "/srv/app/main.py", line, 10);
    let deflate = || frame(Native, "deflate", "/usr/lib/libz.so.1", 0, 0);
    let fib = |line| frame(Python, "größte_fib", "/srv/app/fib.py", line, 3);
    let write = || frame(Kernel, "vfs_write", "", 0, 0);
    let stacks: [(u32, Vec<Arc<Frame>>, u64); 5] = [
        (1, vec![main(), handler(12)], 50),
        (1, vec![main(), handler(13), deflate()], 600),
        (1, vec![main(), handler(13), deflate(), write()], 100),
        (2, vec![main(), fib(4), fib(5), fib(5)], 200),
        (2, vec![main(), fib(4)], 50),
    ];
    let process = Arc::new(Process {
        tgid: 77,
        command: "python -m app <main> & \"more\"".into(),
    });
    Profile {
        meta: Meta {
            rate: 100,
            start: 1_700_000_000_000_000_000,
            duration: Duration::from_secs(10),
            command: "python -m app <main> & \"more\"".into(),
            lost: 3,
            wall: false,
        },
        samples: stacks
            .into_iter()
            .zip(1..)
            .map(|((tid, stack, count), at)| Sample {
                process: process.clone(),
                thread: Some(Thread {
                    tid,
                    name: format!("worker-{tid}").into(),
                }),
                stack: stack.into(),
                count,
                first: at * 1_000_000,
                last: at * 2_000_000,
            })
            .collect(),
    }
}

/// Writes the profile for one test.
fn written(test: &str, format: Format) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(test);
    fs::create_dir_all(&folder).unwrap();
    let path = folder.join(format!("profile.{}", format.extension()));
    let place = Place::check(&path).unwrap();
    place
        .write(|out| formats::write(&profile(), format, &Style::default(), out))
        .unwrap();
    path
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

fn in_path(names: &[&str]) -> Option<PathBuf> {
    let folders: Vec<_> = env::split_paths(&env::var_os("PATH")?).collect();
    names
        .iter()
        .flat_map(|name| folders.iter().map(move |folder| folder.join(name)))
        .find(|path| path.exists())
}

/// A Python with the readers that PyPI has.
fn python(test: &str) -> Option<Venv> {
    let packages = [
        "gprof2dot==2025.4.14",
        "jsonschema==4.23.0",
        "snakeviz==2.2.2",
    ];
    match default_python().and_then(|python| Venv::ensure(&python, &packages)) {
        Ok(venv) => Some(venv),
        Err(error) => {
            eprintln!("SKIPPED: {test}: no Python environment: {error:#}");
            None
        }
    }
}

/// A folder with the readers that npm has, and node.
fn node(test: &str) -> Option<(PathBuf, PathBuf)> {
    let skip = |why: String| {
        eprintln!("SKIPPED: {test}: {why}");
        None
    };
    let (Some(node), Some(npm)) = (in_path(&["node", "nodejs"]), in_path(&["npm"])) else {
        return skip("there is no node with npm".to_owned());
    };
    let packages = [
        "pprof-format@2.3.2",
        "puppeteer-core@25.16.0",
        "speedscope@1.25.0",
    ];
    let name = "npm-profile-readers-1";
    let Ok((cache, _lock)) = paths::cache().and_then(|cache| Ok((cache, paths::lock(name)?)))
    else {
        return skip("there is no cache folder".to_owned());
    };
    let folder = cache.join(name);
    let modules = folder.join("node_modules");
    if !folder.join("complete").exists() {
        fs::create_dir_all(&folder).unwrap();
        let installed = Command::new(npm)
            .args([
                "install",
                "--no-audit",
                "--no-fund",
                "--ignore-scripts",
                "--prefix",
            ])
            .arg(&folder)
            .args(packages)
            .output();
        match installed {
            Ok(output) if output.status.success() => {
                fs::write(folder.join("complete"), "").unwrap();
            }
            Ok(output) => return skip(String::from_utf8_lossy(&output.stderr).replace('\n', " ")),
            Err(error) => return skip(error.to_string()),
        }
    }
    Some((node, modules))
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/readers")
        .join(name)
}

/// gprof2dot draws the pstats file with the shares that the samples say.
#[test]
fn gprof2dot_draws_pstats() {
    let Some(venv) = python("gprof2dot_draws_pstats") else {
        return;
    };
    let file = written("gprof2dot_draws_pstats", Format::Pstats);
    let dot = run(Command::new(venv.program("gprof2dot"))
        .args(["-f", "pstats", "-n0", "-e0"])
        .arg(file));
    for share in [
        "handler\\n75.00%\\n(5.00%)",
        "deflate>\\n70.00%\\n(60.00%)",
        "größte_fib\\n25.00%\\n(25.00%)",
        "vfs_write_[k]>\\n10.00%\\n(10.00%)",
    ] {
        assert!(dot.contains(share), "no {share} in {dot}");
    }
}

/// snakeviz reads the pstats file, and the graph that it draws from the root has the times of the
/// samples.
#[test]
fn snakeviz_draws_pstats() {
    let Some(venv) = python("snakeviz_draws_pstats") else {
        return;
    };
    let file = written("snakeviz_draws_pstats", Format::Pstats);
    let text = run(Command::new(venv.program("python"))
        .args([
            "-c",
            "import json, pstats, sys; from snakeviz.stats import table_rows, json_stats
stats = pstats.Stats(sys.argv[1]); assert len(table_rows(stats)) == 5; print(json.dumps(json_stats(stats)))",
        ])
        .arg(file));
    let stats: Value = serde_json::from_str(&text).unwrap();
    let find = |name: &str| {
        let stats = stats.as_object().unwrap();
        let (key, value) = stats.iter().find(|(key, _)| key.contains(name)).unwrap();
        (key.clone(), value.clone())
    };
    let (main, main_value) = find("<module>");
    assert_eq!(main_value["callers"].as_object().unwrap().len(), 0);
    assert_eq!(main_value["stats"][3], 10.0);
    // A child's share of its parent is what snakeviz draws: the cumulative time of the edge.
    for (name, seconds) in [("handler", 7.5), ("größte_fib", 2.5)] {
        let (_, value) = find(name);
        assert_eq!(value["callers"][&main][3], seconds, "{name}: {value}");
    }
}

/// Datadog's decoder of `profile.proto` finds the stacks, values and labels; and so does Go's pprof,
/// where there is a Go.
#[test]
fn other_pprofs_read_pprof() {
    let test = "other_pprofs_read_pprof";
    let file = written(test, Format::Pprof);
    if let Some((node, modules)) = node(test) {
        let text = run(Command::new(node)
            .arg(script("pprof.cjs"))
            .arg(&file)
            .env("NODE_PATH", modules));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "samples/count cpu/nanoseconds period 10000000 default cpu",
                "50 500000000 pid=77 process=python -m app <main> & \"more\" tid=1 thread=worker-1: handler /srv/app/main.py:10:12 [python], <module> /srv/app/main.py:1:40 [python]",
                "600 6000000000 pid=77 process=python -m app <main> & \"more\" tid=1 thread=worker-1: deflate :0:0 /usr/lib/libz.so.1, handler /srv/app/main.py:10:13 [python], <module> /srv/app/main.py:1:40 [python]",
                "100 1000000000 pid=77 process=python -m app <main> & \"more\" tid=1 thread=worker-1: vfs_write_[k] :0:0 [kernel], deflate :0:0 /usr/lib/libz.so.1, handler /srv/app/main.py:10:13 [python], <module> /srv/app/main.py:1:40 [python]",
                "200 2000000000 pid=77 process=python -m app <main> & \"more\" tid=2 thread=worker-2: größte_fib /srv/app/fib.py:3:5 [python], größte_fib /srv/app/fib.py:3:5 [python], größte_fib /srv/app/fib.py:3:4 [python], <module> /srv/app/main.py:1:40 [python]",
                "50 500000000 pid=77 process=python -m app <main> & \"more\" tid=2 thread=worker-2: größte_fib /srv/app/fib.py:3:4 [python], <module> /srv/app/main.py:1:40 [python]",
            ]
        );
    }
    let Some(go) = in_path(&["go"]) else {
        eprintln!("SKIPPED: the Go half of {test}: there is no go");
        return;
    };
    let pprof = |arguments: &[&str]| {
        run(Command::new(&go)
            .args(["tool", "pprof"])
            .args(arguments)
            .arg(&file)
            .env("HOME", env!("CARGO_TARGET_TMPDIR")))
    };
    let top = pprof(&["-top", "-unit=ms"]);
    assert!(top.contains("Type: cpu"), "{top}");
    assert!(top.contains("<module>"), "{top}");
    assert!(
        top.contains("Duration: 10s, Total samples = 10000ms"),
        "{top}"
    );
    let row = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.ends_with(name)).unwrap();
        line.split_ascii_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        row(&top, " deflate")[..5],
        ["6000ms", "60.00%", "60.00%", "7000ms", "70.00%"]
    );
    assert_eq!(row(&top, " größte_fib")[3..5], ["2500ms", "25.00%"]);
    let counts = pprof(&["-top", "-sample_index=samples", "-tagfocus=worker-2"]);
    assert_eq!(row(&counts, " größte_fib")[0], "250");
    assert!(!counts.contains("deflate"));
}

/// The speedscope file is valid by speedscope's own schema.
#[test]
fn speedscope_is_valid_by_its_schema() {
    let test = "speedscope_is_valid_by_its_schema";
    let (Some(venv), Some((_, modules))) = (python(test), node(test)) else {
        return;
    };
    let file = written(test, Format::Speedscope);
    run(Command::new(venv.program("python"))
        .args([
            "-c",
            "import json, sys, jsonschema
profile, schema = (json.load(open(path, encoding='utf-8')) for path in sys.argv[1:])
jsonschema.validate(profile, schema)",
        ])
        .arg(file)
        .arg(modules.join("speedscope/dist/release/file-format-schema.json")));
}

/// Python's XML parser takes the flamegraph, and finds each frame with its share.
#[test]
fn the_flamegraph_is_xml() {
    let test = "the_flamegraph_is_xml";
    let Ok(python) = default_python() else {
        eprintln!("SKIPPED: {test}: there is no Python");
        return;
    };
    let text = run(Command::new(python)
        .args([
            "-X",
            "utf8",
            "-c",
            "import sys, xml.etree.ElementTree as tree
svg = '{http://www.w3.org/2000/svg}'
root = tree.parse(sys.argv[1]).getroot()
assert root.tag == svg + 'svg'
for title in root.iter(svg + 'title'): print(title.text)
print(*[text.text for text in root.iter(svg + 'text')][:2])",
        ])
        .arg(written(test, Format::Flamegraph)));
    let mut lines: Vec<&str> = text.lines().collect();
    let heading = lines.pop().unwrap();
    assert_eq!(
        heading,
        "CPU profile python -m app <main> & \"more\" · 10.0 s · 1000 samples at 100 Hz · 3 lost"
    );
    for title in [
        "all (1,000 samples, 100%)",
        "<module> (/srv/app/main.py:40) (1,000 samples, 100.00%)",
        "handler (/srv/app/main.py:13) (700 samples, 70.00%)",
        "deflate (700 samples, 70.00%)",
        "vfs_write (100 samples, 10.00%)",
        "größte_fib (/srv/app/fib.py:4) (250 samples, 25.00%)",
    ] {
        assert!(lines.contains(&title), "no {title} in {lines:#?}");
    }
}

/// In a browser, the flamegraph's search finds and marks frames and its zoom narrows to one; and
/// speedscope's application imports its file and shows its threads and functions.
#[test]
fn a_browser_opens_flamegraph_and_speedscope() {
    let test = "a_browser_opens_flamegraph_and_speedscope";
    let Some(browser) = in_path(&["chromium", "chromium-browser", "google-chrome"]) else {
        eprintln!("SKIPPED: {test}: there is no chromium");
        return;
    };
    let Some((node, modules)) = node(test) else {
        return;
    };
    let pictures = Path::new(env!("CARGO_TARGET_TMPDIR")).join(test);
    let text = run(Command::new(node)
        .arg(script("browser.cjs"))
        .arg(browser)
        .arg(written(test, Format::Flamegraph))
        .arg(written(test, Format::Speedscope))
        .arg(modules.join("speedscope/dist/release"))
        .arg(&pictures)
        .env("NODE_PATH", &modules));
    let seen: Value = serde_json::from_str(&text).unwrap();
    let flamegraph = &seen["flamegraph"];
    assert_eq!(
        flamegraph["errors"].as_array().unwrap().len(),
        0,
        "{flamegraph:#}"
    );
    assert_eq!(
        flamegraph["titles"].as_array().unwrap().len(),
        9,
        "{flamegraph:#}"
    );
    assert_eq!(flamegraph["matched"], "Matched: 25.0%");
    let highlighted = flamegraph["highlighted"].as_array().unwrap();
    assert_eq!(highlighted.len(), 3, "{flamegraph:#}");
    assert_eq!(
        highlighted[0],
        "größte_fib (/srv/app/fib.py:4) (250 samples, 25.00%)"
    );
    assert_eq!(flamegraph["reset"], "Reset Zoom");
    let zoomed = flamegraph["zoomed"].to_string();
    assert!(
        zoomed.contains("deflate") && !zoomed.contains("fib"),
        "{zoomed}"
    );
    assert_eq!(flamegraph["unzoomed"], 9);

    let speedscope = &seen["speedscope"];
    assert_eq!(
        speedscope["errors"].as_array().unwrap().len(),
        0,
        "{speedscope:#}"
    );
    for (view, text) in [
        ("first", "thread 1 worker-1 of process 77"),
        ("first", "(1/2)"),
        ("second", "thread 2 worker-2 of process 77"),
        ("table", "größte_fib"),
        ("table", "2.50s (100%)"),
    ] {
        let shown = speedscope[view].as_str().unwrap();
        assert!(shown.contains(text), "no {text} in {view}: {shown}");
    }
}
