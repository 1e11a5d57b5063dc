//! Embeds the eBPF object that `cargo xtask build-ebpf` made, if it did: the user side builds and its
//! rootless tests pass without it.

use std::{env, path::PathBuf};

fn main() {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets this"));
    let target = manifest.join("../target");
    println!("cargo::rustc-check-cfg=cfg(bpf_object, bpf_log_object)");
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
        let object = target.join(file);
        println!("cargo::rerun-if-changed={}", object.display());
        if let Ok(object) = object.canonicalize() {
            println!("cargo::rustc-cfg={cfg}");
            println!("cargo::rustc-env={variable}={}", object.display());
        }
    }
}
