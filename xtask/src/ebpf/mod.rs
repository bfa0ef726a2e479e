//! Building the eBPF programs, and seeing that the object in the repository is what its source says.
//!
//! They are no member of the workspace: their target needs a compiler that may use unstable features, the sources of the
//! core library and a linker of its own, none of which a build of the supervisor needs. So the object is in
//! the repository, in the package that carries it, with a note of what it was made from and with.

mod provenance;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{run, tools};
use provenance::Provenance;

const TARGET: &str = "bpfel-unknown-none";

/// What must be in the object for a loader to make sense of it: programs and maps.
const SECTIONS: [&str; 3] = ["raw_tp/run", "raw_tp/signal_generate", "maps"];

/// Names the object that `master-process/build.rs` takes instead of the one in the repository.
pub(crate) const VARIABLE: &str = "MASTER_PROCESS_BPF_OBJECT";

/// Builds the object with the tools that the machine has, and puts it into the repository.
pub(crate) fn update() -> Result<()> {
    let provenance = build()?;
    std::fs::copy(built(), committed()).context("copying the object")?;
    std::fs::write(note(), provenance.to_string()).context("writing where it comes from")?;
    println!("{} is made from this source", committed().display());
    Ok(())
}

/// Builds the object, and fails where the one in the repository was not made from this source. The same tools must make
/// the same bytes; with other tools that cannot be checked.
pub(crate) fn check() -> Result<()> {
    let fresh = build()?;
    let text = std::fs::read_to_string(note()).with_context(|| format!("reading {}", note().display()))?;
    let recorded = Provenance::parse(&text).with_context(|| format!("{} is broken", note().display()))?;
    if recorded.source != fresh.source {
        bail!("{} was made from other source: run `cargo xtask ebpf`", committed().display());
    }
    if recorded.tools != fresh.tools {
        println!("made by {} there and by {} here: only the source is compared", recorded.tools, fresh.tools);
        return Ok(());
    }
    if !is_fresh()? {
        bail!(
            "{} is not what this source makes with these tools: run `cargo xtask ebpf`",
            committed().display()
        );
    }
    println!("{} is what this source makes", committed().display());
    Ok(())
}

/// Has a build take the object that was just built, where that is another than the one in the repository.
pub(crate) fn with_fresh_object(command: &mut Command) -> Result<&mut Command> {
    if built().exists() && !is_fresh()? {
        command.env(VARIABLE, built());
    }
    Ok(command)
}

fn build() -> Result<Provenance> {
    let linker = run::find("bpf-linker").context("bpf-linker is missing")?;
    let (mut cargo, compiler) = tools::cargo_with_library()?;
    // Flags meant for the workspace would reach the kernel's machine as well; this replaces them.
    let flags = format!("-Clinker={}", linker.display());
    cargo
        .args(["build", "-Zbuild-std=core", "--release", "--locked", "--target", TARGET, "--target-dir"])
        .arg(target())
        .env("CARGO_ENCODED_RUSTFLAGS", flags)
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .current_dir(run::root().join("master-process-ebpf"));
    run::run(&mut cargo)?;
    inspect(&built())?;
    Provenance::of_source(run::root(), &[compiler, run::output(&linker, &["--version"])])
}

fn target() -> PathBuf {
    run::root().join("master-process-ebpf/target")
}

fn built() -> PathBuf {
    target().join(TARGET).join("release/master-process")
}

fn committed() -> PathBuf {
    run::root().join("master-process/programs.bpf.o")
}

fn note() -> PathBuf {
    run::root().join("master-process/programs.bpf.txt")
}

fn is_fresh() -> Result<bool> {
    let read = |path: PathBuf| std::fs::read(&path).with_context(|| format!("reading {}", path.display()));
    Ok(read(built())? == read(committed())?)
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
    // The paths of the building machine would make it another object on another machine.
    let root = run::root().as_os_str().as_encoded_bytes();
    if bytes.windows(root.len()).any(|window| window == root) {
        bail!("{} contains a path of this machine", object.display());
    }
    println!("{}: {} bytes, with {}", object.display(), bytes.len(), SECTIONS.join(", "));
    Ok(())
}
