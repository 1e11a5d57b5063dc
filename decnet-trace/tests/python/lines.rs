//! Names, files and lines as read from outside, against what the code objects say of themselves.

use decnet_trace::python::PythonResolver;
use decnet_trace_common::event::PyFrame;

use super::interpreters;
use xtask::bed::interpreter;

/// The name, the file and the line of every instruction of thousands of code objects.
#[test]
fn every_instruction_has_its_line() {
    for interpreter in interpreter::all() {
        let mut running = interpreters::start(&interpreter, "lines.py", &[]);
        let mut told = Vec::new();
        loop {
            let code = running.json();
            if code.is_null() {
                break;
            }
            told.push(code);
        }
        let process = running.process();
        let minor = process.version.minor;
        let mut resolver = PythonResolver::new();
        resolver.add(&process);
        let (mut codes, mut instructions) = (0, 0);
        for code in &told {
            let number = |key: &str| code[key].as_u64().unwrap();
            let lines: Vec<(u64, u64)> = serde_json::from_value(code["lines"].clone()).unwrap();
            let frames: Vec<PyFrame> = lines
                .iter()
                .map(|(offset, _)| PyFrame {
                    code: number("address"),
                    instr: match minor {
                        ..=9 => *offset,
                        10 => offset / 2,
                        11.. => number("instructions") + offset,
                    },
                })
                .collect();
            let mut found = Vec::new();
            resolver.resolve_stack(running.pid(), &frames, &mut found);
            for ((offset, line), found) in lines.iter().zip(&found) {
                let found = found
                    .as_ref()
                    .unwrap_or_else(|| panic!("{}: nothing at {code}", running.name()));
                assert_eq!(
                    (&*found.name, &*found.file, u64::from(found.first_line)),
                    (
                        code["name"].as_str().unwrap(),
                        code["file"].as_str().unwrap(),
                        number("first")
                    ),
                    "{}",
                    running.name()
                );
                assert_eq!(
                    u64::from(found.line),
                    *line,
                    "{} at {offset}: {code}",
                    running.name()
                );
            }
            codes += 1;
            instructions += lines.len();
        }
        assert!(
            codes > 1500 && instructions > 50_000,
            "{}: {codes}, {instructions}",
            running.name()
        );
        assert_eq!(resolver.counts().failed, 0);
        eprintln!(
            "{}: {instructions} instructions of {codes} code objects",
            running.name()
        );
    }
}
