//! The programs load on other kernels than this one: they stay far from what a verifier looks at.

use std::{collections::BTreeMap, process::Command};

use aya::programs::loaded_programs;
use xtask::bed::{
    process::{Folder, Process},
    venv::Venv,
};

use crate::{PATIENCE, detached::held, support};

/// What a verifier gives up at is 1,000,000 instructions; older ones need more for the same program.
const MOST: u32 = 500_000;

/// How many characters of a program's name the kernel keeps.
const NAME: usize = 15;

/// How many instructions the verifier looked at, for each program that a process holds; the most, where the kernel
/// calls several alike.
fn verified(pid: u32) -> BTreeMap<String, u32> {
    let held = held(pid);
    let mut verified: BTreeMap<String, u32> = BTreeMap::new();
    for program in loaded_programs().flatten() {
        if held.contains(&("prog", program.id())) {
            let name = program.name_as_str().unwrap().to_owned();
            let count = program.verified_instruction_count().unwrap();
            let most = verified.entry(name).or_default();
            *most = count.max(*most);
        }
    }
    verified
}

/// No program, of any verb and with any option that changes what is loaded, takes this kernel's verifier more than
/// half of the instructions that it allows.
#[test]
fn programs_are_far_from_its_limit() {
    if !support::can_run() {
        return;
    }
    let folder = Folder::new().unwrap();
    let mut python = Command::new(Venv::web().unwrap().program("python"));
    python.args(["-c", "import time; time.sleep(600)"]);
    let python = Process::start(&mut python, &folder.path().join("python")).unwrap();
    let cases: [(&[&str], &[&str]); 5] = [
        (
            &["run", "--store", "off", "--rate", "19"],
            &["sock_send_length", "sock_recv_length", "cpu_sample"],
        ),
        (
            &["run", "--store", "off", "--force-fallback"],
            &["sys_exit_io"],
        ),
        (
            &["record", "-o", "/dev/null", "--native", "--kernel"],
            &["cpu_sample_unwind"],
        ),
        (
            &["record", "-o", "/dev/null", "-nk", "--unwind-memory", "0"],
            &["cpu_sample"],
        ),
        (
            &["record", "-o", "/dev/null", "--idle"],
            &["cpu_sample", "list_threads"],
        ),
    ];
    for (arguments, wanted) in cases {
        let mut command = Command::new(env!("CARGO_BIN_EXE_decnet-trace"));
        command
            .args(arguments)
            .args(["--pid", &python.pid().to_string()])
            .env("DECNET_TRACE_LOG", "info");
        let mut agent = Process::start(&mut command, &folder.path().join("agent")).unwrap();
        agent
            .wait_for(PATIENCE, |log| log.contains("attached:").then_some(()))
            .unwrap();
        let verified = verified(agent.pid());
        println!("{arguments:?}: {verified:?}");
        for name in wanted {
            let short = &name[..name.len().min(NAME)];
            assert!(verified.contains_key(short), "{name}: {verified:?}");
        }
        assert!(
            verified.values().all(|count| *count <= MOST),
            "{verified:?}"
        );
    }
}
