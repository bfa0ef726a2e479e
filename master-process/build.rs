//! Links the binary statically, where the static C library is installed.
//!
//! A static binary has two advantages. First, no signal meets the kernel's default action: in a dynamic program the
//! loader runs for a millisecond before the program's first instruction can block signals. Second, a library that is
//! not loaded uses no memory.
//!
//! The usual way, `-C target-feature=+crt-static`, is not available to a package: a package cannot choose it, and it
//! breaks procedural macros unless the user names a target. This script instead writes linker scripts with the names of
//! the shared libraries that rustc passes to the linker. Each script names the static library. Some distributions
//! package the static libraries separately. Without them the binary is dynamic; only the first millisecond differs.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The libraries that rustc links a dynamic program of this target with.
const LIBRARIES: [&str; 7] = ["c", "m", "rt", "pthread", "dl", "util", "gcc_s"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let is = |name: &str, value: &str| std::env::var(name).is_ok_and(|found| found == value);
    let plain = !std::env::var("CARGO_CFG_TARGET_FEATURE").unwrap_or_default().contains("crt-static");
    let native = std::env::var("HOST") == std::env::var("TARGET");
    if is("CARGO_CFG_TARGET_ENV", "gnu") && is("CARGO_CFG_TARGET_OS", "linux") && plain && native {
        link_statically();
    }
    choose_object();
    // The program's entry blocks the signals before the C runtime starts; see `sys/signalfd.rs`.
    println!("cargo::rustc-link-arg-bin=master-process=-Wl,-e,master_process_entry");
}

/// Selects the object file of the eBPF programs: the prebuilt one in this directory, or the file that the environment
/// variable names, for development.
fn choose_object() {
    println!("cargo::rerun-if-env-changed={OBJECT}");
    let here =
        || PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default()).join("programs.bpf.o");
    let object = std::env::var_os(OBJECT).map_or_else(here, PathBuf::from);
    println!("cargo::rustc-env={OBJECT}={}", object.display());
}

const OBJECT: &str = "MASTER_PROCESS_BPF_OBJECT";

fn link_statically() {
    let needed = ["rcrt1.o", "libc.a", "libm.a", "libgcc_eh.a"];
    if needed.iter().any(|file| installed(file).is_none()) {
        println!("cargo::warning=no static C library: the binary is linked dynamically");
        return;
    }
    let scripts = PathBuf::from(std::env::var("OUT_DIR").unwrap_or_default()).join("static");
    if std::fs::create_dir_all(&scripts).is_err() || LIBRARIES.iter().any(|name| !write(&scripts, name)) {
        println!("cargo::warning=cannot write linker scripts: the binary is linked dynamically");
        return;
    }
    println!("cargo::rustc-link-arg-bin=master-process=-L{}", scripts.display());
    println!("cargo::rustc-link-arg-bin=master-process=-static-pie");
}

/// Writes a linker script that replaces the shared library with the static one.
fn write(folder: &Path, name: &str) -> bool {
    let script = match name {
        "gcc_s" => "INPUT(-l:libgcc_eh.a -l:libgcc.a)".to_owned(),
        "c" => "GROUP(-l:libc.a -l:libgcc_eh.a -l:libgcc.a)".to_owned(),
        other => format!("INPUT(-l:lib{other}.a)"),
    };
    std::fs::write(folder.join(format!("lib{name}.so")), script).is_ok()
}

/// The path at which the compiler driver, which rustc links with, finds a file.
fn installed(file: &str) -> Option<PathBuf> {
    let output = Command::new("cc").arg(format!("-print-file-name={file}")).output().ok()?;
    let path = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
    // For a file that it does not find, `cc` prints the name unchanged.
    (path.is_absolute() && path.exists()).then_some(path)
}
