//! Every sampled stack is one that the program can have, as it says itself.

use std::collections::{HashMap, HashSet};

use super::support::{Running, alone, can_run, name, on_each, reported, said, total};

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
        let (stacks, report) = reported(&["-p", &pid, "-d", "2", "-r", "499"]);
        let mut seen = HashSet::new();
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
        assert_eq!(seen.len(), lines.len(), "{}: {report}", python.name());
        let outside = said(&report, "outside Python");
        assert!(outside <= 1 + total(&stacks) / 1000, "{report}");
    });
}
