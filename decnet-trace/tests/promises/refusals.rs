//! What cannot work is refused in one line, with the exit code that says why, before anything is
//! attached.

use std::{fs, net::TcpListener, os::unix::fs::PermissionsExt as _, process::Command};

use xtask::bed::process::Folder;

use crate::{agent, run_to_end, support};

/// Runs the command, and expects its exit code and one line with these words.
fn refused(command: &mut Command, code: i32, words: &str) {
    let ended = run_to_end(command);
    let output = &ended.output;
    assert_eq!(ended.status.code(), Some(code), "{command:?}: {output}");
    assert_eq!(output.lines().count(), 1, "{command:?}: {output}");
    assert!(
        output.starts_with("decnet-trace: "),
        "{command:?}: {output}"
    );
    assert!(output.contains(words), "{command:?}: {output}");
}

/// Targets that cannot be.
#[test]
fn targets() {
    if !support::can_run() {
        return;
    }
    // The shell's pid becomes the agent's.
    let mut itself = Command::new("sh");
    itself
        .args(["-c", "exec \"$0\" run --pid $$"])
        .arg(env!("CARGO_BIN_EXE_decnet-trace"));
    refused(&mut itself, 2, "itself");
    // Above the highest pid that a kernel gives.
    refused(&mut agent(&["--pid", "4194305"]), 4, "4194305");
    let mut gone = Command::new("true").spawn().unwrap();
    gone.wait().unwrap();
    let gone = gone.id().to_string();
    refused(&mut agent(&["--pid", &gone]), 4, &gone);
    refused(&mut agent(&["--name", "["]), 2, "--name");
}

/// Files that cannot be written.
#[test]
fn outputs() {
    if !support::can_run() {
        return;
    }
    let folder = Folder::new().unwrap();
    let missing = folder.path().join("missing/file");
    for path in [missing.as_path(), folder.path()] {
        let path = path.to_str().unwrap();
        refused(&mut agent(&["--spans-file", path]), 2, path);
        refused(&mut agent(&["--profile-out", path]), 2, path);
    }
    refused(
        &mut agent(&["--profile-out", "/dev/null", "--rate", "0"]),
        2,
        "--rate 0",
    );
    let certificate = [
        "--otlp-endpoint",
        "https://127.0.0.1:1",
        "--otlp-certificate",
    ];
    let missing = missing.to_str().unwrap();
    refused(
        &mut agent(&[&certificate[..], &[missing]].concat()),
        2,
        missing,
    );
}

/// Privileges and kernels that do not suffice.
#[test]
fn machines() {
    if !support::can_run() {
        return;
    }
    // Where anybody can execute it.
    let folder = Folder::new().unwrap();
    let binary = folder.path().join("decnet-trace");
    fs::copy(env!("CARGO_BIN_EXE_decnet-trace"), &binary).unwrap();
    for path in [folder.path(), &binary] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut nobody = Command::new("setpriv");
    nobody.args([
        "--reuid",
        "65534",
        "--regid",
        "65534",
        "--clear-groups",
        "--",
    ]);
    refused(nobody.arg(&binary).arg("run"), 3, "CAP_BPF");
    let mut namespace = Command::new("unshare");
    refused(namespace.arg("-Ur").arg(&binary).arg("run"), 3, "eBPF");
    let mut hidden = Command::new("unshare");
    hidden.args(["-m", "sh", "-c"]);
    hidden.arg("mount -t tmpfs none /sys/kernel/btf && exec \"$0\" run");
    refused(hidden.arg(&binary), 3, "CONFIG_DEBUG_INFO_BTF");
}

/// The time given is the time taken, and its end is a good one; a port that nobody listens on yet is no
/// mistake.
#[test]
fn duration() {
    if !support::can_run() {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    drop(listener);
    let began = std::time::Instant::now();
    let ended = run_to_end(&mut agent(&["--port", &port, "--duration", "1"]));
    assert!(ended.status.success(), "{}", ended.output);
    assert!(ended.output.contains("attached"), "{}", ended.output);
    assert!(began.elapsed().as_secs_f64() >= 1.0);
}
