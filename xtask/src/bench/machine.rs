//! The machine: what it is, which CPUs do what, and what a process took of it.

use std::{collections::BTreeMap, fmt, fs, process::Command, thread, time::Duration};

use anyhow::{Context as _, Result, bail};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::{Deserialize, Serialize};

use crate::{bed::venv::Venv, command::output};

/// What a run was made on.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Machine {
    /// The CPU's model.
    pub cpu: String,
    /// CPUs that this program may use.
    pub cpus: usize,
    /// Whether a hypervisor runs it.
    pub virtual_machine: bool,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// The kernel's release.
    pub kernel: String,
    /// The versions of Python and of the packages that take part.
    pub versions: BTreeMap<String, String>,
}

impl Machine {
    /// This one, with what a virtual environment holds of `packages`.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn read(cpus: &Cpus, venv: &Venv, packages: &[&str]) -> Result<Self> {
        let info = fs::read_to_string("/proc/cpuinfo").context("cannot read /proc/cpuinfo")?;
        let of = |name: &str| {
            info.lines()
                .find_map(|line| line.strip_prefix(name)?.split_once(':'))
                .map(|(_, value)| value.trim().to_owned())
        };
        Ok(Self {
            cpu: of("model name").unwrap_or_else(|| "unknown".to_owned()),
            cpus: cpus.all(),
            virtual_machine: of("flags").is_some_and(|flags| flags.contains("hypervisor")),
            memory_mib: kib_in("/proc/meminfo", "MemTotal:")? / 1024,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
                .context("cannot read the kernel's release")?
                .trim()
                .to_owned(),
            versions: versions(venv, packages)?,
        })
    }

    /// One that is nowhere.
    #[cfg(test)]
    pub(super) fn for_tests() -> Self {
        Self {
            cpu: "a CPU".to_owned(),
            cpus: 2,
            virtual_machine: true,
            memory_mib: 1024,
            kernel: "6.18".to_owned(),
            versions: BTreeMap::new(),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} × {}{}, {} MiB, Linux {}",
            self.cpus,
            self.cpu,
            if self.virtual_machine {
                " (virtual)"
            } else {
                ""
            },
            self.memory_mib,
            self.kernel
        )?;
        for (name, version) in &self.versions {
            write!(f, ", {name} {version}")?;
        }
        Ok(())
    }
}

fn versions(venv: &Venv, packages: &[&str]) -> Result<BTreeMap<String, String>> {
    const SCRIPT: &str = "import sys, importlib.metadata as m\n\
        for name in sys.argv[1:]: print(name, m.version(name))";
    let listed = output(
        Command::new(venv.program("python"))
            .args(["-c", SCRIPT])
            .args(packages),
    )?;
    let (major, minor, micro) = venv.version();
    let mut versions: BTreeMap<_, _> = listed
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(name, version)| (name.to_owned(), version.to_owned()))
        .collect();
    versions.insert("CPython".to_owned(), format!("{major}.{minor}.{micro}"));
    Ok(versions)
}

/// Which CPU the service has to itself, and which are left to the load, the backends and the agent.
#[derive(Clone, Debug)]
pub struct Cpus {
    service: Option<usize>,
    rest: Vec<usize>,
}

impl Cpus {
    /// The last of those that this thread may use for the service, where there is more than one.
    ///
    /// # Errors
    /// The kernel does not say which there are.
    pub fn choose() -> Result<Self> {
        let set = sched_getaffinity(None).context("cannot read the CPUs of this thread")?;
        let mut rest: Vec<_> = (0..CpuSet::MAX_CPU)
            .filter(|&cpu| set.is_set(cpu))
            .collect();
        let service = (rest.len() > 1).then(|| rest.pop()).flatten();
        Ok(Self { service, rest })
    }

    /// How many there are.
    pub fn all(&self) -> usize {
        self.rest.len() + usize::from(self.service.is_some())
    }

    /// Keeps this thread, and the processes that it starts, from the service's CPU.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn keep_off(&self) -> Result<()> {
        pin(&self.rest)
    }

    /// Does something, on the service's CPU: processes started meanwhile stay there.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn on_service<T>(&self, work: impl FnOnce() -> T) -> Result<T> {
        let Some(cpu) = self.service else {
            return Ok(work());
        };
        pin(&[cpu])?;
        let result = work();
        self.keep_off()?;
        Ok(result)
    }
}

/// Who runs where, for people.
impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.service {
            Some(cpu) => write!(
                f,
                "the service on CPU {cpu}; the load, backends and tools that work from outside on CPU {:?}",
                self.rest
            ),
            None => write!(
                f,
                "one CPU for all: the load's and the agent's time is the service's too"
            ),
        }
    }
}

fn pin(cpus: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    for &cpu in cpus {
        set.set(cpu);
    }
    sched_setaffinity(None, &set).with_context(|| format!("cannot use CPUs {cpus:?}"))
}

/// The CPU time that a process took until now, of all its threads, also of those that ended.
///
/// # Errors
/// The process is gone.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let mut clock = 0;
    // SAFETY: the pointer is to a variable that outlives the call.
    let errno = unsafe { libc::clock_getcpuclockid(pid.cast_signed(), &raw mut clock) };
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: as above.
    if errno != 0 || unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        bail!("process {pid} ended");
    }
    Ok(Duration::new(
        time.tv_sec.unsigned_abs(),
        u32::try_from(time.tv_nsec).unwrap_or_default(),
    ))
}

/// A process's resident memory, in KiB.
///
/// # Errors
/// The process is gone.
pub fn rss_kib(pid: u32) -> Result<u64> {
    kib_in(&format!("/proc/{pid}/status"), "VmRSS:")
}

fn kib_in(path: &str, name: &str) -> Result<u64> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    text.lines()
        .find_map(|line| {
            line.strip_prefix(name)?
                .split_whitespace()
                .next()?
                .parse()
                .ok()
        })
        .with_context(|| format!("{path} has no {name}"))
}

/// What a process holds of the kernel's eBPF.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BpfUse {
    /// The ids of its programs.
    pub programs: Vec<u32>,
    /// The memory of its maps, in bytes.
    pub map_bytes: u64,
}

impl BpfUse {
    /// What the descriptors of a process say.
    ///
    /// # Errors
    /// The process is gone, or this is not root.
    pub fn of(pid: u32) -> Result<Self> {
        let dir = format!("/proc/{pid}/fdinfo");
        let mut texts = Vec::new();
        for entry in fs::read_dir(&dir).with_context(|| format!("cannot read {dir}"))? {
            // A descriptor may be closed meanwhile.
            texts.extend(fs::read_to_string(entry?.path()));
        }
        Ok(Self::parse(texts.iter().map(String::as_str)))
    }

    fn parse<'a>(descriptors: impl Iterator<Item = &'a str>) -> Self {
        let (mut programs, mut maps) = (Vec::new(), BTreeMap::new());
        for text in descriptors {
            let of = |name: &str| -> Option<u64> {
                text.lines()
                    .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
            };
            if let Some(id) = of("map_id:") {
                maps.insert(id, of("memlock:").unwrap_or_default());
            } else if let Some(id) = of("prog_id:").filter(|_| of("link_id:").is_none()) {
                programs.extend(u32::try_from(id));
            }
        }
        programs.sort_unstable();
        programs.dedup();
        Self {
            programs,
            map_bytes: maps.values().sum(),
        }
    }
}

/// The share of all CPUs' time that others take at the moment, looked at for a second.
///
/// # Errors
/// `/proc/stat` cannot be read.
pub fn busy() -> Result<f64> {
    let before = cpu_ticks()?;
    thread::sleep(Duration::from_secs(1));
    let after = cpu_ticks()?;
    let (all, idle) = (after.0 - before.0, after.1 - before.1);
    #[expect(clippy::cast_precision_loss, reason = "ticks of a second")]
    Ok(1.0 - idle as f64 / all.max(1) as f64)
}

/// All ticks, and those of idleness (proc_stat(5): user nice system idle iowait ...).
fn cpu_ticks() -> Result<(u64, u64)> {
    let stat = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
    let first = stat.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = first
        .split_whitespace()
        .skip(1)
        .filter_map(|field| field.parse().ok())
        .collect();
    let idle = ticks.iter().skip(3).take(2).sum();
    Ok((ticks.iter().take(8).sum(), idle))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use std::time::Instant;

    use super::*;

    /// Programs and maps are counted once, whoever else refers to them.
    #[test]
    fn descriptors() {
        let found = BpfUse::parse(
            [
                "pos:\t0\nflags:\t02\nmap_type:\t27\nmemlock:\t1052672\nmap_id:\t5\n",
                "map_type:\t27\nmemlock:\t1052672\nmap_id:\t5\n",
                "map_type:\t2\nmemlock:\t4096\nmap_id:\t6\n",
                "prog_type:\t26\nprog_jited:\t1\nmemlock:\t8192\nprog_id:\t40\nrun_cnt:\t1\n",
                "link_type:\ttracing\nlink_id:\t3\nprog_tag:\t00\nprog_id:\t41\n",
                "eventfd-count:\t0\n",
                "",
            ]
            .into_iter(),
        );
        let expected = BpfUse {
            programs: vec![40],
            map_bytes: 1_056_768,
        };
        assert_eq!(found, expected);
    }

    /// A process's CPU time grows by what it burns, and a process that is gone has none.
    #[test]
    fn time() {
        let own = std::process::id();
        let before = cpu_time(own).unwrap();
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(30) {}
        let burnt = cpu_time(own).unwrap() - before;
        assert!(burnt > Duration::from_millis(3), "{burnt:?}");
        // One more than a pid can be (PID_MAX_LIMIT).
        assert!(cpu_time((1 << 22) + 1).is_err());
    }

    /// Work for the service runs on its CPU, and this thread stays off it afterwards.
    #[test]
    fn places() {
        let cpus = Cpus::choose().unwrap();
        let before = sched_getaffinity(None).unwrap();
        let Some(service) = cpus.service else { return };
        let there = cpus
            .on_service(|| sched_getaffinity(None).unwrap())
            .unwrap();
        assert!(there.is_set(service) && there.count() == 1);
        assert!(!sched_getaffinity(None).unwrap().is_set(service));
        sched_setaffinity(None, &before).unwrap();
    }
}
