//! The files that a recording ends in.

use std::{fs, io::Read as _, process::Command, thread};

use tempfile::TempDir;

use super::support::{Running, alone, can_run, record, system};

/// Every format is chosen by the file's name, written, and opens; with the names in it.
#[test]
fn every_format_opens() {
    if !can_run() {
        return;
    }
    let _alone = alone();
    // The last is the system's.
    let Some(python) = system() else {
        return;
    };
    let running = Running::start(&python, "mix.py", &["60"]);
    let folder = TempDir::new().unwrap();
    let names = [
        "a.svg",
        "a.folded",
        "a.pb.gz",
        "a.speedscope.json",
        "a.pstats",
    ];
    let paths = names.map(|name| folder.path().join(name));
    // All of them at once.
    thread::scope(|scope| {
        for path in &paths {
            scope.spawn(|| {
                let path = path.to_str().unwrap();
                let output = record(&["-p", &running.pid(), "-d", "1", "-o", path]);
                let report = String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success(), "{report}");
                assert!(report.starts_with(path), "{report}");
            });
        }
    });
    for (name, path) in names.iter().zip(&paths) {
        let bytes = fs::read(path).unwrap();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let shown = match *name {
            "a.pb.gz" => {
                let mut inner = Vec::new();
                flate2::read::GzDecoder::new(&bytes[..])
                    .read_to_end(&mut inner)
                    .unwrap();
                String::from_utf8_lossy(&inner).into_owned()
            }
            "a.speedscope.json" => {
                let value: serde_json::Value = serde_json::from_str(&text).unwrap();
                value["shared"]["frames"].to_string()
            }
            "a.pstats" => {
                let script = "import pstats, sys; pstats.Stats(sys.argv[1]).print_stats()";
                let output = Command::new(&python.program)
                    .args(["-c", script])
                    .arg(path)
                    .output()
                    .unwrap();
                String::from_utf8(output.stdout).unwrap()
            }
            _ => text,
        };
        assert!(
            shown.contains("heavy") && shown.contains("mix.py"),
            "{name}: {shown}"
        );
    }
}
