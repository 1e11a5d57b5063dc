//! Every sampled stack is one that the program can have, as it says itself.

use std::{
    collections::{HashMap, HashSet},
    fs,
    process::Command,
};

use tempfile::TempDir;

use super::support::{
    AGENT, Running, alone, can_run, long, name, on_each, reported, said, system, total,
};

/// How often a program is recorded at most, for each of its stacks to be sampled.
const RECORDINGS: usize = 5;

/// The names of a stack, outermost first.
type Names = Vec<String>;

/// Recursion, generators, coroutines, asynchronous generators, callbacks from C, decorators, properties,
/// class bodies, executed text and names of every width: each sampled stack is one that the program has
/// learnt from its interpreter, or on the way there; and where it is one, the lines of all calls are the
/// interpreter's own.
#[test]
fn stacks_are_those_that_the_program_has() {
    if !can_run() {
        return;
    }
    let _alone = alone();
    on_each(|python| {
        let mut running = Running::start(python, "frames.py", &[]);
        let known: Vec<Vec<(String, u32)>> = serde_json::from_str(&running.line()).unwrap();
        assert!(known.len() >= 14, "{}", known.len());
        let mut lines: HashMap<Names, HashSet<Vec<u32>>> = HashMap::new();
        let mut possible: HashSet<Names> = HashSet::new();
        for stack in &known {
            let names: Names = stack.iter().map(|(name, _)| name.clone()).collect();
            possible.extend((1..names.len()).map(|depth| names[..depth].to_vec()));
            // Of the innermost function, any line may be running.
            let calls = stack[..stack.len() - 1].iter().map(|(_, line)| *line);
            lines.entry(names).or_default().insert(calls.collect());
        }
        let pid = running.pid();
        let duration = long(2).to_string();
        let mut seen = HashSet::new();
        let (mut samples, mut outside) = (0, 0);
        // Where other programs take the CPUs, the program has not come to all of it in two seconds.
        for _ in 0..RECORDINGS {
            let (stacks, report) = reported(&["-p", &pid, "-d", &duration, "-r", "499"]);
            samples += total(&stacks);
            outside += said(&report, "outside Python");
            for frames in stacks.keys() {
                let names: Names = frames.iter().map(|frame| name(frame).to_owned()).collect();
                let Some(lines) = lines.get(&names) else {
                    assert!(
                        possible.contains(&names),
                        "{}: impossible stack {frames:?}",
                        python.name()
                    );
                    continue;
                };
                let calls: Vec<u32> = frames[..frames.len() - 1]
                    .iter()
                    .map(|frame| {
                        let (_, line) = frame.trim_end_matches(')').rsplit_once(':').unwrap();
                        line.parse().unwrap()
                    })
                    .collect();
                assert!(
                    lines.contains(&calls),
                    "{}: {frames:?} is not of lines {lines:?}",
                    python.name()
                );
                seen.insert(names);
            }
            if seen.len() == lines.len() {
                break;
            }
        }
        let figures = format!(
            "{}: {samples} samples, {outside} outside Python",
            python.name()
        );
        println!("{figures}");
        let missing: Vec<_> = lines
            .keys()
            .filter(|names| !seen.contains(*names))
            .collect();
        assert!(missing.is_empty(), "{figures}, and none of {missing:?}");
        assert!(outside <= 1 + samples / 1000, "{figures}");
    });
}

/// The flamegraph that `run` writes has the program's functions, each of the kinds of calls that it makes, and no
/// other of its file.
#[test]
fn the_flamegraph_of_run_has_them() {
    if !can_run() {
        return;
    }
    let _alone = alone();
    let Some(python) = system() else {
        return;
    };
    let mut running = Running::start(&python, "frames.py", &[]);
    let known: Vec<Vec<(String, u32)>> = serde_json::from_str(&running.line()).unwrap();
    let own = known.iter().flatten();
    let known: HashSet<&str> = own.map(|(name, _)| name.as_str()).collect();
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("out.svg");
    let output = Command::new(AGENT)
        .args(["run", "--store", "off", "--rate", "499", "--duration", "4"])
        .args(["--pid", &running.pid(), "--profile-out"])
        .arg(&file)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let svg = fs::read_to_string(&file).unwrap();
    let titles = svg.split("<title>").skip(1);
    let titles = titles.filter_map(|rest| rest.split("</title>").next());
    let seen: HashSet<String> = titles
        .filter(|title| title.contains("frames.py:"))
        .map(|title| {
            let plain = title.replace("&lt;", "<").replace("&gt;", ">");
            name(&plain).to_owned()
        })
        .collect();
    let seen: HashSet<&str> = seen.iter().map(String::as_str).collect();
    let strange: Vec<_> = seen.difference(&known).collect();
    assert!(strange.is_empty(), "{strange:?}");
    // `f` is of executed text.
    let missing: Vec<_> = known
        .difference(&seen)
        .filter(|name| **name != "f")
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}
