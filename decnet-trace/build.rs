//! Embeds the eBPF object that `cargo xtask build-ebpf` made, if it did: the user side builds and its
//! rootless tests pass without it.

use std::{env, path::PathBuf};

fn main() {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets this"));
    let objects = manifest.join("../target/objects");
    println!("cargo::rustc-check-cfg=cfg(bpf_object, bpf_log_object)");
    // The folder, not the files: one that is not there would have Cargo run this, and build all of the crate, each time.
    println!("cargo::rerun-if-changed={}", objects.display());
    for (file, cfg, variable) in [
        (
            "decnet-trace.bpf.o",
            "bpf_object",
            "DECNET_TRACE_BPF_OBJECT",
        ),
        (
            "decnet-trace-log.bpf.o",
            "bpf_log_object",
            "DECNET_TRACE_BPF_LOG_OBJECT",
        ),
    ] {
        if let Ok(object) = objects.join(file).canonicalize() {
            println!("cargo::rustc-cfg={cfg}");
            println!("cargo::rustc-env={variable}={}", object.display());
        }
    }
}
