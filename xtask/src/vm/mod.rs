//! `cargo xtask vm`: the agent on other kernels, in virtual machines that live for one test.
//!
//! Each boots a distribution's own kernel, unchanged, in QEMU, with a file system in memory that holds the
//! agent, a CPython and a service. What runs in it is `xtask/assets/vm/init.py`.

mod kernels;
mod root;

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde::Deserialize;

use crate::{
    bed::{process::Process, venv::Venv},
    bench::table::{Style, Table},
    command::say,
    debian, paths, run,
};

/// How long a machine may live; without KVM, everything in it takes ten times as long.
const LIFE: Duration = Duration::from_secs(15 * 60);

/// The oldest kernel that the agent works on.
const FLOOR: (u32, u32) = (5, 15);

/// The arguments of the verb.
#[derive(Args, Clone, Debug)]
pub struct VmArgs {
    /// Kernels by their versions [default: 5.10 5.15 6.1 6.12 7]
    #[arg(value_name = "KERNEL")]
    pub kernels: Vec<String>,
    /// The agent to try, instead of one built from this tree
    #[arg(long, value_name = "FILE", hide = true)]
    pub agent: Option<PathBuf>,
}

/// What a machine said of the agent.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
struct Outcome {
    /// The kernel's release.
    kernel: String,
    /// `doctor`'s exit code.
    #[serde(default)]
    doctor: Option<i32>,
    /// `run`'s.
    #[serde(default)]
    exit: Option<i32>,
    /// What a refusal said.
    #[serde(default)]
    said: Vec<String>,
    #[serde(default)]
    hooks: Option<String>,
    /// How long the agent took to attach.
    #[serde(default)]
    attached_s: Option<f64>,
    /// Requests sent, their spans, and requests with exactly one, right span.
    #[serde(default)]
    sent: u32,
    #[serde(default)]
    spans: u32,
    #[serde(default)]
    right: u32,
    /// What went wrong.
    #[serde(default)]
    why: Option<String>,
}

impl Outcome {
    /// Whether it is as it should be: refused in one line below the floor, and else all spans right.
    fn is_right(&self) -> bool {
        if self.why.is_some() {
            return false;
        }
        if version(&self.kernel).is_some_and(|version| version < FLOOR) {
            return self.doctor == Some(3) && self.exit == Some(3) && self.said.len() == 1;
        }
        self.exit == Some(0) && self.sent > 0 && self.right == self.sent && self.spans == self.sent
    }

    /// What was seen, in words.
    fn seen(&self) -> String {
        match (&self.why, self.said.last(), self.sent) {
            (Some(why), ..) => why.clone(),
            (None, Some(said), _) => format!("exit {}: {said}", self.exit.unwrap_or(-1)),
            (None, None, sent) => format!(
                "{} of {sent} requests right, {} spans, exit {}",
                self.right,
                self.spans,
                self.exit.unwrap_or(-1)
            ),
        }
    }
}

/// Major and minor of a release like `6.12.107+deb13-cloud-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// The verb: tries the agent on each kernel, and prints a table.
///
/// # Errors
/// Something cannot be had or built, or a kernel did not see what it should.
pub fn run(args: &VmArgs) -> Result<()> {
    let wanted: Vec<String> = match args.kernels.as_slice() {
        [] => kernels::DEFAULT
            .iter()
            .map(|&name| name.to_owned())
            .collect(),
        some => some.to_vec(),
    };
    if cfg!(not(target_arch = "x86_64")) {
        bail!("the machines are x86-64, and so must this one be");
    }
    ensure_tools()?;
    let agent = match &args.agent {
        Some(agent) => agent.clone(),
        None => run::build()?,
    };
    let venv = Venv::web()?;
    let folder = paths::target().join("vm");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let root = folder.join("root.cpio");
    root::make(&agent, &venv, &root)?;
    let mut table = Table::new(&["kernel", "hooks", "attached after", "seen", ""]);
    let mut wrong = 0;
    let mut kvm = Path::new("/dev/kvm").exists();
    let style = Style::of_stdout();
    for name in &wanted {
        let outcome = kernels::fetch(name).and_then(|kernel| {
            say(format!("booting {name}: {}", kernel.display()));
            boot(
                &kernel,
                &root,
                &folder.join(format!("{name}.log")),
                &mut kvm,
            )
        });
        let (cells, right) = match outcome {
            Ok(outcome) => {
                let right = outcome.is_right();
                let after = outcome
                    .attached_s
                    .map_or_else(String::new, |seconds| format!("{seconds} s"));
                let hooks = outcome.hooks.clone().unwrap_or_else(|| "none".to_owned());
                (
                    [outcome.kernel.clone(), hooks, after, outcome.seen()],
                    right,
                )
            }
            Err(why) => (
                [
                    name.clone(),
                    String::new(),
                    String::new(),
                    format!("{why:#}"),
                ],
                false,
            ),
        };
        wrong += u32::from(!right);
        let verdict = if right {
            style.good("right")
        } else {
            style.bad("wrong")
        };
        say(format!("{name}: {}", cells[3]));
        table.row(cells.into_iter().chain([verdict]));
    }
    print!("{table}");
    if wrong > 0 {
        bail!(
            "{wrong} of {} kernels did not show what they should",
            wanted.len()
        );
    }
    Ok(())
}

fn ensure_tools() -> Result<()> {
    let missing: Vec<_> = [
        ("/usr/bin/qemu-system-x86_64", "qemu-system-x86"),
        ("/usr/bin/cpio", "cpio"),
    ]
    .into_iter()
    .filter(|(program, _)| !Path::new(program).exists())
    .map(|(_, package)| package)
    .collect();
    if missing.is_empty() {
        return Ok(());
    }
    say(format!("installing {} with apt-get", missing.join(", ")));
    debian::install(&missing)
}

/// Who executes a machine's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Accelerator {
    /// The CPU itself.
    Kvm,
    /// QEMU, one by one.
    Tcg,
}

/// How long a machine may take until its first program starts, where KVM works.
const KVM_START: Duration = Duration::from_secs(45);

/// What KVM is seen to be where a `/dev/kvm` is there but does not work, as in some virtual machines.
#[derive(Debug)]
struct KvmBroken;

impl fmt::Display for KvmBroken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KVM does not work here")
    }
}

impl std::error::Error for KvmBroken {}

/// Boots a machine, and waits for what it says. `kvm` is whether to try KVM, and false afterwards where it
/// was seen not to work.
fn boot(kernel: &Path, root: &Path, log: &Path, kvm: &mut bool) -> Result<Outcome> {
    if *kvm {
        match Machine::start(Accelerator::Kvm, kernel, root, log)?.result() {
            Err(why) if why.is::<KvmBroken>() => {
                say(format!(
                    "{why}: emulating instead, which takes some minutes"
                ));
                *kvm = false;
            }
            result => return result,
        }
    }
    Machine::start(Accelerator::Tcg, kernel, root, log)?.result()
}

/// A machine at work; it ends when this is dropped.
struct Machine {
    accelerator: Accelerator,
    process: Process,
    begun: Instant,
}

impl Machine {
    fn start(accelerator: Accelerator, kernel: &Path, root: &Path, log: &Path) -> Result<Self> {
        let mut qemu = Command::new("/usr/bin/qemu-system-x86_64");
        match accelerator {
            Accelerator::Kvm => qemu.args(["-accel", "kvm", "-cpu", "host"]),
            // Without cx16, which emulation under two CPUs takes too long for.
            Accelerator::Tcg => qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max,-cx16"]),
        };
        qemu.args(["-machine", "q35", "-smp", "2", "-m", "2048"])
            .arg("-kernel")
            .arg(kernel)
            .arg("-initrd")
            .arg(root)
            .args(["-append", "console=ttyS0 panic=-1 quiet loglevel=4"])
            .args([
                "-nographic",
                "-no-reboot",
                "-nic",
                "none",
                "-monitor",
                "none",
            ]);
        Ok(Self {
            accelerator,
            process: Process::start(&mut qemu, log)?,
            begun: Instant::now(),
        })
    }

    /// Waits for what is said in it of the agent, until it ends, or for [`LIFE`].
    fn result(mut self) -> Result<Outcome> {
        loop {
            // Before the output is read: what it wrote before it ended is then seen.
            let ended = self.process.try_wait()?.is_some();
            let console = self.process.output()?;
            if let Some(outcome) = result(&console)? {
                return Ok(outcome);
            }
            if self.accelerator == Accelerator::Kvm
                && !console.contains("STARTED ")
                && (console.contains("KVM internal error")
                    || ended
                    || self.begun.elapsed() > KVM_START)
            {
                return Err(KvmBroken.into());
            }
            let seconds = self.begun.elapsed().as_secs();
            let log = self.process.log().display();
            if ended {
                bail!("the machine ended after {seconds} s without a result; see {log}");
            }
            if self.begun.elapsed() > LIFE {
                bail!("no result after {seconds} s; see {log}");
            }
            thread::sleep(Duration::from_millis(200));
        }
    }
}

/// The result in what a machine wrote to its console.
fn result(console: &str) -> Result<Option<Outcome>> {
    // Only a whole line: the rest may be on its way.
    let found = console.split_inclusive('\n').find_map(|line| {
        let (_, json) = line.strip_suffix('\n')?.split_once("RESULT ")?;
        Some(json.trim())
    });
    let Some(json) = found else {
        return Ok(None);
    };
    serde_json::from_str(json)
        .map(Some)
        .with_context(|| format!("the machine's result is none: {json}"))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    /// A kernel's result is judged by what it should be there: spans, or a refusal of one line.
    #[test]
    fn judged() {
        let of = |json: &str| {
            result(&format!("noise\r\n\u{1b}cRESULT {json}\r\nmore"))
                .unwrap()
                .unwrap()
        };
        let good = "\"exit\":0,\"hooks\":\"x\",\"sent\":100,\"spans\":100,\"right\":100";
        assert!(
            of(&format!(
                "{{\"kernel\":\"6.1.0-50-cloud-amd64\",\"doctor\":0,{good}}}"
            ))
            .is_right()
        );
        // A kernel that should have been refused.
        assert!(!of(&format!("{{\"kernel\":\"5.10.0\",\"doctor\":0,{good}}}")).is_right());
        let refusal = "\"doctor\":3,\"exit\":3,\"said\":[\"too old\"]";
        assert!(of(&format!("{{\"kernel\":\"5.10.0\",{refusal}}}")).is_right());
        assert!(!of(&format!("{{\"kernel\":\"5.15.0\",{refusal}}}")).is_right());
        let lost = "\"exit\":0,\"sent\":100,\"spans\":99,\"right\":99";
        assert!(!of(&format!("{{\"kernel\":\"6.12.1\",{lost}}}")).is_right());
        assert!(!of("{\"kernel\":\"6.12.1\",\"why\":\"it broke\"}").is_right());
        assert_eq!(result("nothing").unwrap(), None);
        assert_eq!(result("RESULT {").unwrap(), None);
        assert!(result("RESULT {\n").is_err());
    }

    /// Releases of all distributions give their versions.
    #[test]
    fn versions() {
        assert_eq!(version("5.15.0-204-generic"), Some((5, 15)));
        assert_eq!(version("6.12.107+deb13-cloud-amd64"), Some((6, 12)));
        assert_eq!(version("7.2"), Some((7, 2)));
        assert_eq!(version("linux"), None);
    }
}
