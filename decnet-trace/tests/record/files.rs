//! The files that a recording ends in.

use std::{
    fs,
    io::Read as _,
    path::Path,
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::support::{AGENT, Running, alone, can_run, folded, record, system, with};

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

/// Records for a second into a file, with another folder for temporary files, and does something meanwhile.
fn record_into(pid: &str, file: &Path, temporary: &Path, meanwhile: impl FnOnce()) -> Output {
    let recorder = Command::new(AGENT)
        .args(["record", "-p", pid, "-d", "1", "-f", "folded", "-o"])
        .arg(file)
        .env("TMPDIR", temporary)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Where the profile is to go is looked at before any program is loaded.
    let has_programs = || {
        let open = fs::read_dir(format!("/proc/{}/fdinfo", recorder.id())).unwrap();
        open.flatten()
            .filter_map(|file| fs::read_to_string(file.path()).ok())
            .any(|about| about.contains("prog_id:"))
    };
    let begin = Instant::now();
    while !has_programs() {
        assert!(begin.elapsed() < Duration::from_secs(60), "it records");
        thread::sleep(Duration::from_millis(5));
    }
    meanwhile();
    recorder.wait_with_output().unwrap()
}

/// A profile that its place does not take in the end (the folder is gone, the disk is full) is written to the
/// folder for temporary files, and the report is there; where nothing takes it, the report still is. Each
/// time the exit code is 1, and the last line says what became of it.
#[test]
fn a_profile_outlives_its_place() {
    if !can_run() {
        return;
    }
    let _alone = alone();
    let Some(python) = system() else {
        return;
    };
    let running = Running::start(&python, "mix.py", &["60"]);
    let pid = running.pid();
    let temporary = TempDir::new().unwrap();
    let gone = TempDir::new().unwrap().keep().join("x.folded");
    let remove = || fs::remove_dir_all(gone.parent().unwrap()).unwrap();
    let removed = record_into(&pid, &gone, temporary.path(), remove);
    let full = record_into(&pid, Path::new("/dev/full"), temporary.path(), || ());
    for (output, what) in [
        (removed, "x.folded: No such file"),
        (full, "/dev/full: No space left"),
    ] {
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("heavy ("), "{said}");
        let last = said.lines().last().unwrap();
        assert!(last.contains(what), "{said}");
        let (_, place) = last.split_once("the profile is in ").unwrap();
        let place = place.strip_suffix(" instead").unwrap();
        assert!(Path::new(place).starts_with(temporary.path()), "{said}");
        assert!(said.starts_with(&format!("{place}: ")), "{said}");
        let stacks = folded(&fs::read_to_string(place).unwrap());
        assert!(with(&stacks, "heavy") > 10, "{stacks:?}");
    }
    let nowhere = Path::new("/nowhere");
    let lost = record_into(&pid, Path::new("/dev/full"), nowhere, || ());
    let said = String::from_utf8_lossy(&lost.stderr);
    assert_eq!(lost.status.code(), Some(1), "{said}");
    assert!(said.contains("heavy ("), "{said}");
    assert!(said.ends_with("the profile is lost\n"), "{said}");
}

/// A named pipe gets the whole profile, and whoever reads it sees its end.
#[test]
fn a_pipe_is_written_through() {
    if !can_run() {
        return;
    }
    let _alone = alone();
    let Some(python) = system() else {
        return;
    };
    let running = Running::start(&python, "mix.py", &["60"]);
    let folder = TempDir::new().unwrap();
    let pipe = folder.path().join("pipe");
    let made = Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    let reader = thread::spawn({
        let pipe = pipe.clone();
        move || fs::read_to_string(pipe).unwrap()
    });
    let mut recorder = Command::new(AGENT)
        .args([
            "record",
            "-p",
            &running.pid(),
            "-d",
            "1",
            "-f",
            "folded",
            "-o",
        ])
        .arg(&pipe)
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    let status = loop {
        if let Some(status) = recorder.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            recorder.kill().unwrap();
        }
        thread::sleep(Duration::from_millis(20));
    };
    assert!(status.success(), "{status}");
    let stacks = folded(&reader.join().unwrap());
    assert!(with(&stacks, "heavy") > 10, "{stacks:?}");
}
