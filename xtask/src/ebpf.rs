//! Building the eBPF program.
//!
//! It is no member of the workspace: its target needs a compiler that may use unstable features, the sources of the
//! core library and a linker of its own, none of which somebody who only builds the supervisor has.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::{run, tools};

const TARGET: &str = "bpfel-unknown-none";

/// What must be in the object for a loader to make sense of it: the program's section, the maps, their types.
const SECTIONS: [&str; 2] = ["tp_btf/sched_switch", "maps"];

/// Builds the object with the tools that the machine has, and looks whether it is whole.
pub(crate) fn build() -> Result<()> {
    let linker = run::find("bpf-linker").context("bpf-linker is missing")?;
    let dir = run::root().join("master-process-ebpf");
    let target = dir.join("target");

    let mut cargo = if tools::debian_compiler() {
        let mut cargo = run::cargo(["build"]);
        cargo.env("RUSTC", tools::DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
        cargo
    } else if tools::nightly_compiler() {
        let mut cargo = std::process::Command::new("rustup");
        // Set by the cargo that runs this program, for its own toolchain.
        cargo.args(["run", "nightly", "cargo", "build"]).env_remove("RUSTC").env_remove("CARGO");
        cargo
    } else {
        bail!(
            "no compiler: neither Debian's rustc-web with rust-web-src nor a nightly toolchain with rust-src"
        );
    };
    // Flags meant for the workspace would reach the kernel's machine as well; these replace them.
    let flags = format!("-Clinker={}", linker.display());
    cargo
        .args(["-Zbuild-std=core", "--release", "--locked", "--target", TARGET, "--target-dir"])
        .arg(&target)
        .env("CARGO_ENCODED_RUSTFLAGS", flags)
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .current_dir(&dir);
    run::run(&mut cargo)?;
    inspect(&target.join(TARGET).join("release/master-process"))
}

fn inspect(object: &Path) -> Result<()> {
    let bytes = std::fs::read(object).with_context(|| format!("reading {}", object.display()))?;
    for section in SECTIONS {
        // Section names stand in the string table, each with its NUL; no need to parse the rest of the file for that.
        let name = [section.as_bytes(), b"\0"].concat();
        if !bytes.windows(name.len()).any(|window| window == name) {
            bail!("{} has no section {section}", object.display());
        }
    }
    println!("{}: {} bytes, with {}", object.display(), bytes.len(), SECTIONS.join(", "));
    Ok(())
}
