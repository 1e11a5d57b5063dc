//! Nothing stays in the kernel when the agent ends, however it ends.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use aya::{
    maps::loaded_maps,
    programs::{loaded_links, loaded_programs},
};
use rustix::process::Signal;
use xtask::bed::process::Folder;

use crate::support::{self, Agent};

/// What a process holds of eBPF: its kind (`prog`, `map`, `link`) and its number in the kernel.
pub(crate) fn held(pid: u32) -> BTreeSet<(&'static str, u32)> {
    let mut all = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap() {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap_or_default();
        for line in text.lines() {
            for (name, kind) in [
                ("link_id:", "link"),
                ("prog_id:", "prog"),
                ("map_id:", "map"),
            ] {
                if let Some(id) = line.strip_prefix(name) {
                    all.insert((kind, id.trim().parse().unwrap()));
                }
            }
        }
    }
    all
}

/// What is in the kernel.
fn loaded() -> BTreeSet<(&'static str, u32)> {
    let programs = loaded_programs()
        .flatten()
        .map(|program| ("prog", program.id()));
    let maps = loaded_maps().flatten().map(|map| ("map", map.id()));
    let links = loaded_links().flatten().map(|link| ("link", link.id()));
    programs.chain(maps).chain(links).collect()
}

/// What is pinned, and what is mounted.
fn traces() -> (usize, String) {
    let pinned = fs::read_dir(Path::new("/sys/fs/bpf")).map_or(0, Iterator::count);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let tracefs = mounts.lines().filter(|line| line.contains(" - tracefs "));
    (pinned, tracefs.collect())
}

/// After SIGTERM and SIGINT at once, after kill -9 when the kernel has cleaned up; with both kinds of
/// hooks, and with CPU samples.
#[test]
fn nothing_stays() {
    if !support::can_run() {
        return;
    }
    let before = traces();
    for (signal, more) in [
        (Signal::TERM, ""),
        (Signal::INT, "--force-fallback"),
        (Signal::KILL, "--rate=99"),
    ] {
        let folder = Folder::new().unwrap();
        let target = crate::idle(&folder);
        let pid = target.pid().to_string();
        let flame = folder.path().join("flame.svg");
        let mut args = vec!["--pid", &pid, "--profile-out", flame.to_str().unwrap()];
        args.extend(Some(more).filter(|more| !more.is_empty()));
        let mut agent = Agent::start(&args);
        let ours = held(agent.pid());
        let count = |kind| ours.iter().filter(|(other, _)| *other == kind).count();
        assert!(count("prog") >= 6 && count("map") >= 5, "{ours:?}");
        let there = loaded();
        assert!(ours.iter().all(|one| there.contains(one)), "{ours:?}");

        agent.signal(signal);
        let status = agent.wait();
        assert_eq!(
            status.success(),
            signal != Signal::KILL,
            "{}",
            agent.output()
        );
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let stays: Vec<_> = loaded().intersection(&ours).copied().collect();
            if stays.is_empty() {
                break;
            }
            assert!(Instant::now() < deadline, "{signal:?}: {stays:?} stays");
            sleep(Duration::from_millis(50));
        }
        assert_eq!(traces(), before, "{signal:?}");
    }
}
