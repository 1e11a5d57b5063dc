//! The programs load on other kernels than this one: they stay far from what a verifier looks at.

use std::fs;

use xtask::bed::process::Folder;

use crate::support::{self, Agent};

/// What a verifier gives up at is 1,000,000 instructions; older ones need more for the same program.
const MOST: u64 = 500_000;

/// No program of `run` takes this kernel's verifier more than half of the instructions that it allows.
#[test]
fn programs_are_far_from_its_limit() {
    if !support::can_run() {
        return;
    }
    let folder = Folder::new().unwrap();
    let target = crate::idle(&folder);
    let agent = Agent::start(&["--pid", &target.pid().to_string(), "--rate=19"]);
    let verified: Vec<u64> = fs::read_dir(format!("/proc/{}/fdinfo", agent.pid()))
        .unwrap()
        .filter_map(|entry| fs::read_to_string(entry.unwrap().path()).ok())
        .filter_map(|text| {
            text.lines()
                .find_map(|line| line.strip_prefix("verified_insns:"))
                .map(|count| count.trim().parse().unwrap())
        })
        .collect();
    assert!(verified.len() >= 6, "{verified:?}");
    assert!(verified.iter().all(|count| *count <= MOST), "{verified:?}");
}
