//! Running other programs: quietly with a log, or for their output, with errors of one line.

use std::{
    fs::{self, File},
    path::Path,
    process::{Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

/// Says what is being done, on a line of its own on standard error.
pub fn say(what: impl AsRef<str>) {
    eprintln!("xtask: {}", what.as_ref());
}

/// Runs `command` to its end and returns its standard output.
///
/// # Errors
/// It cannot be started, or does not exit with 0; the last line it wrote to standard error says why.
pub fn output(command: &mut Command) -> Result<String> {
    let name = name(command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {name}"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{name}: {}", last_line(&stderr).unwrap_or("failed"));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs `command` to its end, or for at most `limit`, with all its output in the file `log`.
///
/// # Errors
/// It cannot be started, runs past `limit` (it is killed), or does not exit with 0; the last line
/// of its output says why.
pub fn logged(command: &mut Command, log: &Path, limit: Duration) -> Result<()> {
    let name = name(command);
    let file = File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(file.try_clone().context("cannot share the log")?)
        .stderr(file)
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if start.elapsed() > limit {
            // It may have ended by itself in between: then there is nothing to kill.
            let _ = child.kill();
            child.wait()?;
            bail!("{name}: no end after {} s", limit.as_secs());
        }
        thread::sleep(Duration::from_millis(20));
    };
    if !status.success() {
        let text = fs::read(log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        bail!(
            "{name}: {} (all it wrote: {})",
            error_line(&text).unwrap_or("failed"),
            log.display()
        );
    }
    Ok(())
}

/// Runs `command` with this process's own input and output.
///
/// # Errors
/// It cannot be started.
pub fn shown(command: &mut Command) -> Result<ExitStatus> {
    let name = name(command);
    command
        .status()
        .with_context(|| format!("cannot start {name}"))
}

/// The program's name and first argument, as a person would call what runs.
fn name(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let mut name = program.file_name().map_or_else(
        || program.to_string_lossy().into_owned(),
        |n| n.to_string_lossy().into_owned(),
    );
    if let Some(first) = command.get_args().next() {
        name.push(' ');
        name.push_str(&first.to_string_lossy());
    }
    name
}

/// The first line that reads like an error, else the last line with text; the head of it, for some
/// programs put a whole chain of causes on one line.
fn error_line(text: &str) -> Option<&str> {
    const MOST: usize = 160;
    let line = text
        .lines()
        .map(str::trim)
        .find(|line| {
            let line = line.to_ascii_lowercase();
            line.starts_with("error") || line.starts_with("e: ")
        })
        .or_else(|| last_line(text))?;
    Some(&line[..line.floor_char_boundary(MOST)])
}

fn last_line(text: &str) -> Option<&str> {
    text.lines().map(str::trim).rfind(|line| !line.is_empty())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    /// A program that fails is reported in one line, with its own reason and where the rest is.
    #[test]
    fn failure_in_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let mut sh = Command::new("sh");
        sh.args([
            "-c",
            "echo begin; echo 'error: no such crate' >&2; echo end; exit 3",
        ]);
        let error = logged(&mut sh, &log, Duration::from_secs(10)).unwrap_err();
        let error = format!("{error:#}");
        assert!(error.starts_with("sh -c: error: no such crate (all it wrote: "));
        assert_eq!(error.lines().count(), 1);
    }

    /// A line without end is cut, between characters.
    #[test]
    fn long_line_is_cut() {
        let line = error_line(&format!("x\nerror: {}", "ü".repeat(1000))).map(str::len);
        assert!(line.is_some_and(|length| (157..=160).contains(&length)));
    }

    /// A program that does not end is killed at its limit.
    #[test]
    fn limit_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let start = Instant::now();
        let error = logged(
            Command::new("sleep").arg("30"),
            &dir.path().join("log"),
            Duration::from_millis(100),
        )
        .unwrap_err();
        assert!(error.to_string().contains("no end after"));
        assert!(start.elapsed() < Duration::from_secs(10));
    }
}
