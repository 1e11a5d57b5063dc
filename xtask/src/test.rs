//! `cargo xtask test`: every check, and one line with the sum of the tests at the end.

use std::{
    fmt,
    fs::{self, File},
    io::{Read as _, Write as _},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{
    bed::process::{Folder, Process},
    build_ebpf::{self, Flavour},
    command::{output, say, shown},
    paths::workspace,
    run::{cargo, has_sudo},
    setup,
};

/// The longest that one run of `cargo test` may take, the build included: a test that hangs must
/// not take the others' results with it.
const LIMIT: Duration = Duration::from_secs(25 * 60);

/// What builds all that is tested.
const BUILD: [&str; 3] = ["test", "--no-run", "--all-targets"];

/// Tests by how they ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Passed, and skipped nothing.
    pub passed: u64,
    /// Failed; a check that fails, and a test program that does not report, count too.
    pub failed: u64,
    /// Said that they skipped something, or are marked as ignored.
    pub skipped: u64,
}

impl Counts {
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            passed,
            failed,
            skipped,
        } = self;
        write!(f, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}

/// The verb: formatting, lints, the eBPF object, the tests that need no root, and, unless
/// `rootless`, those that do. All of them run, whatever fails before.
///
/// # Errors
/// Something failed; the line says what.
pub fn run(rootless: bool) -> Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop)).context("cannot watch signals")?;
    }
    let mut counts = Counts::default();
    let mut failures = Vec::new();
    let mut check = |what: &'static str, result: Result<()>| {
        if let Err(why) = result {
            say(format!("{what}: {why:#}"));
            failures.push(what);
        }
    };

    check(
        "formatting",
        step("cargo fmt", cargo().args(["fmt", "--all", "--check"])),
    );
    check("eBPF", ebpf());
    check(
        "lints",
        step(
            "cargo clippy",
            cargo().args(["clippy", "--all-targets", "--", "-D", "warnings"]),
        ),
    );
    if !rootless {
        // All in one build, which keeps more than one processor busy; below nothing is left to build.
        let built = step("cargo test --no-run", cargo().args(BUILD));
        check("build", built.and_then(|()| nothing_left()));
    }
    // The integration tests of decnet-trace are the end-to-end tests; all others need no root.
    check(
        "tests",
        tests(&["--lib", "--bins"], false, &[], &stop, &mut counts),
    );
    check("tests", tests(&["--doc"], false, &[], &stop, &mut counts));
    let beds =
        integration_tests("xtask").and_then(|args| tests(&args, false, &[], &stop, &mut counts));
    check("tests", beds);
    if !rootless {
        check("end-to-end tests", end_to_end(&stop, &mut counts));
    }

    failures.dedup();
    if counts.failed == 0 {
        // No test failed, and yet not all is well: the last line must not look as if.
        counts.failed = failures.len() as u64;
    }
    println!("{counts}");
    if !failures.is_empty() {
        bail!("failed: {}", failures.join(", "));
    }
    Ok(())
}

fn step(what: &str, command: &mut Command) -> Result<()> {
    say(what);
    if !shown(command)?.success() {
        bail!("see above");
    }
    Ok(())
}

/// What has just been built must not be built again, or each step here and each build of a user takes a minute more: a
/// build script that watches a file that is not there is enough for that.
fn nothing_left() -> Result<()> {
    let again = output(
        cargo()
            .args(BUILD)
            .args(["--quiet", "--message-format=json"]),
    )?;
    let stale = built_again(&again);
    if !stale.is_empty() {
        bail!("built again, and nothing had changed: {}", stale.join(", "));
    }
    Ok(())
}

/// The targets that Cargo did not find fresh, by its JSON (The Cargo Book, "External Tools", artifact messages).
fn built_again(messages: &str) -> Vec<String> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["reason"] == "compiler-artifact" && message["fresh"] == false)
        .filter_map(|message| Some(message["target"]["name"].as_str()?.to_owned()))
        .collect()
}

/// The object that ships, and the lints of the crate that it is built from.
fn ebpf() -> Result<()> {
    let toolchain = setup::ensure()?;
    build_ebpf::build_with(&toolchain, Flavour::Plain)?;
    build_ebpf::check(&toolchain)
}

/// The integration tests of decnet-trace, one at a time, as root.
fn end_to_end(stop: &AtomicBool, counts: &mut Counts) -> Result<()> {
    let args = integration_tests("decnet-trace")?;
    if rustix::process::geteuid().is_root() {
        return tests(&args, true, &[], stop, counts);
    }
    if !has_sudo() {
        bail!("they need root: run this as root, install sudo, or leave them out with --rootless");
    }
    // The password is asked for here, where there is a terminal.
    if !shown(Command::new("sudo").arg("-v"))?.success() {
        bail!("they need root, and sudo refuses");
    }
    // Cargo builds as this user, and has its test programs run by sudo.
    let arch = std::env::consts::ARCH.to_uppercase();
    let runner = format!("CARGO_TARGET_{arch}_UNKNOWN_LINUX_GNU_RUNNER");
    tests(&args, true, &[(&runner, "sudo -n -E")], stop, counts)
}

/// Names a package's integration tests to Cargo. By their names and not by their package: that would
/// select other features of what they depend on, and so build most of it again.
fn integration_tests(package: &str) -> Result<Vec<String>> {
    let folder = workspace().join(package).join("tests");
    let entries = fs::read_dir(&folder)
        .with_context(|| format!("cannot read {}", folder.display()))?
        .collect::<Result<Vec<_>, _>>()?;
    let mut names: Vec<_> = entries
        .iter()
        .map(fs::DirEntry::path)
        .filter(|path| path.is_file() || path.join("main.rs").exists())
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .collect();
    names.sort_unstable();
    Ok(names
        .into_iter()
        .flat_map(|name| ["--test".to_owned(), name])
        .collect())
}

/// Runs `cargo test` with its output shown, and adds up what it reports.
///
/// `alone`: tests on one machine's kernel and CPUs, which would disturb each other.
fn tests(
    args: &[impl AsRef<str>],
    alone: bool,
    env: &[(&str, &str)],
    stop: &AtomicBool,
    counts: &mut Counts,
) -> Result<()> {
    if stop.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    let args: Vec<_> = args.iter().map(AsRef::as_ref).collect();
    say(format!("cargo test {}", args.join(" ")));
    let folder = Folder::new()?;
    let mut test = cargo();
    test.args(["test", "--no-fail-fast"])
        .args(args)
        // The output of a test that passes has the reason why it skipped.
        .args(["--", "--show-output"])
        .envs(env.iter().copied());
    if alone {
        test.arg("--test-threads=1");
    }
    let mut process = Process::start(&mut test, &folder.path().join("log"))?;
    let ended = follow(&mut process, stop);
    let report = Report::read(&process.output()?);
    counts.add(report.counts);
    for (test, why) in &report.skips {
        say(format!("skipped {test}: {why}"));
    }
    ended?;
    if report.counts.failed > 0 {
        bail!("{} failed", report.counts.failed);
    }
    Ok(())
}

/// Copies a process's output to this one's until it ends.
fn follow(process: &mut Process, stop: &AtomicBool) -> Result<()> {
    let start = Instant::now();
    let mut log = File::open(process.log()).context("cannot read a log")?;
    let mut bytes = Vec::new();
    loop {
        // Before the rest is read: then it is the rest.
        let ended = process.try_wait()?;
        bytes.clear();
        log.read_to_end(&mut bytes).context("cannot read a log")?;
        let mut out = std::io::stdout().lock();
        out.write_all(&bytes)
            .and_then(|()| out.flush())
            .context("cannot write")?;
        drop(out);
        match ended {
            Some(status) if status.success() => return Ok(()),
            Some(_) => bail!("see above"),
            None if stop.load(Ordering::Relaxed) => bail!("interrupted"),
            None if start.elapsed() > LIMIT => bail!("no end after {} s", LIMIT.as_secs()),
            None => thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// What the test programs of one `cargo test` reported.
#[derive(Debug, Default, PartialEq, Eq)]
struct Report {
    counts: Counts,
    /// Tests that passed but skipped something, with the first reason they gave.
    skips: Vec<(String, String)>,
}

impl Report {
    /// Reads libtest's output: the sections with the tests' own output, and the lines with results.
    fn read(output: &str) -> Self {
        let mut report = Self::default();
        // Of the test program at hand: whether its result is still to come, and the tests that passed
        // but skipped something.
        let mut running = false;
        let mut skips: Vec<(String, String)> = Vec::new();
        let mut test = None;
        let mut among_failures = false;
        for line in output.lines() {
            if let Some(name) = line
                .strip_prefix("---- ")
                .and_then(|rest| rest.strip_suffix(" stdout ----"))
            {
                test = Some(name);
            } else if let Some(why) = line.strip_prefix("SKIPPED: ")
                && !among_failures
            {
                let name = test.unwrap_or("a test");
                if !skips.iter().any(|(known, _)| known == name) {
                    skips.push((name.to_owned(), why.to_owned()));
                }
            } else if is_start(line) {
                // The one before never came to its result.
                report.counts.failed += u64::from(running);
                running = true;
                test = None;
                among_failures = false;
                skips.clear();
            } else if line == "successes:" || line == "failures:" {
                among_failures = line == "failures:";
            } else if let Some(result) = line.strip_prefix("test result: ") {
                running = false;
                let count = |what: &str| -> u64 {
                    result
                        .split([';', '.'])
                        .find_map(|part| part.trim().strip_suffix(what)?.trim().parse().ok())
                        .unwrap_or(0)
                };
                report.counts.add(Counts {
                    passed: count("passed").saturating_sub(skips.len() as u64),
                    failed: count("failed"),
                    skipped: skips.len() as u64 + count("ignored"),
                });
                report.skips.append(&mut skips);
            }
        }
        report.counts.failed += u64::from(running);
        report
    }
}

/// `running 3 tests`
fn is_start(line: &str) -> bool {
    line.strip_prefix("running ")
        .and_then(|rest| rest.strip_suffix(" tests").or(rest.strip_suffix(" test")))
        .is_some_and(|count| count.parse::<u64>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "   Compiling x v0.1.0
     Running unittests src/lib.rs (target/debug/deps/x-1)

running 4 tests
test a ... ok
test b ... ok
test c ... ignored, needs a disk
test d ... ok

successes:

---- b stdout ----
SKIPPED: no Python 3.14
SKIPPED: no Python 3.15

---- d stdout ----
said something

successes:
    a
    b
    d

test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.00s

     Running tests/e2e.rs (target/debug/deps/e2e-1)

running 2 tests
test e ... ok
test f ... FAILED

successes:

successes:
    e

failures:

---- f stdout ----
SKIPPED: this too
thread 'f' panicked


failures:
    f

test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s
";

    /// Passed, failed and skipped tests are told apart over several programs; a test that skips in
    /// two places is one test, and one that fails is not skipped.
    #[test]
    fn report_is_read() {
        let report = Report::read(OUTPUT);
        assert_eq!(report.counts.to_string(), "3 passed, 1 failed, 2 skipped");
        let skip = ("b".to_owned(), "no Python 3.14".to_owned());
        assert_eq!(report.skips, [skip]);
    }

    /// What was compiled is told from what was fresh, and from what is no artifact.
    #[test]
    fn stale_targets() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"old"},"fresh":true}
{"reason":"compiler-artifact","target":{"name":"new"},"fresh":false}
{"reason":"build-script-executed","fresh":false}
no JSON"#;
        assert_eq!(built_again(messages), ["new"]);
    }

    /// A test program that dies before its result counts as failed, the last one as well.
    #[test]
    fn death_is_a_failure() {
        let died = "running 2 tests\ntest a ... ok\nerror: test failed, signal: 11\n";
        let report = Report::read(&format!("{died}{OUTPUT}{died}"));
        assert_eq!(report.counts.to_string(), "3 passed, 3 failed, 2 skipped");
        assert_eq!(
            Report::read("error: could not compile `x`\n"),
            Report::default()
        );
    }
}
