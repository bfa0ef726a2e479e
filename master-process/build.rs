//! Selects the object file of the eBPF programs that the binary contains.

use std::path::PathBuf;

/// Names another object file, for development; the programs of this directory are the default.
const OBJECT: &str = "MASTER_PROCESS_BPF_OBJECT";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed={OBJECT}");
    let prebuilt =
        || PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default()).join("programs.bpf.o");
    let object = std::env::var_os(OBJECT).map_or_else(prebuilt, PathBuf::from);
    println!("cargo::rustc-env={OBJECT}={}", object.display());
}
