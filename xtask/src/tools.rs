//! What a fresh Debian machine lacks, and its installation.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::run;

/// A thing that must be on the machine.
#[derive(Clone, Copy)]
pub(crate) struct Need {
    present: fn() -> bool,
    how: How,
}

#[derive(Clone, Copy)]
enum How {
    /// By these packages of Debian.
    Apt(&'static [&'static str]),
    /// By cargo, from source. What it is built with is a need of its own, before this one.
    BpfLinker,
}

/// The version that the eBPF program is built with: another one makes another object.
const BPF_LINKER: &str = "0.13.0";

/// Where Debian's LLVM lies that bpf-linker is built against. It must be able to read what the compiler of
/// [`DEBIAN_RUSTC`] writes.
const LLVM: &str = "/usr/lib/llvm-22";

/// The compiler of Debian's package `rustc-web`, which Debian keeps new for its web browsers.
pub(crate) const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// What the end-to-end tests run, and the compiler of the benchmark's worker.
pub(crate) fn for_tests() -> Vec<Need> {
    let apt = |present, packages| Need { present, how: How::Apt(packages) };
    vec![
        apt(|| run::find("cc").is_some(), &["gcc"]),
        apt(|| exists("/usr/include/stdio.h"), &["libc6-dev"]),
        apt(|| run::find("node").is_some(), &["nodejs"]),
        apt(|| run::find("python3").is_some(), &["python3"]),
        apt(|| run::find("go").is_some(), &["golang-go"]),
        apt(|| run::find("nginx").is_some(), &["nginx-light"]),
    ]
}

/// What the benchmark of reloads runs beside those.
pub(crate) fn for_reloads() -> Vec<Need> {
    let apt = |present, packages| Need { present, how: How::Apt(packages) };
    vec![
        apt(has_venv, &["python3-venv"]),
        apt(|| run::find("redis-server").is_some(), &["redis-server"]),
        apt(|| run::find("wrk").is_some(), &["wrk"]),
    ]
}

/// What the benchmark of measuring runs.
pub(crate) fn for_measuring() -> Vec<Need> {
    vec![Need { present: || run::find("perf").is_some(), how: How::Apt(&["linux-perf"]) }]
}

/// What building the eBPF program takes.
pub(crate) fn for_ebpf() -> Vec<Need> {
    let apt = |present, packages| Need { present, how: How::Apt(packages) };
    // The libraries are for building the linker and not for having it.
    vec![
        apt(|| debian_compiler() || nightly_compiler(), &["rustc-web", "rust-web-src"]),
        apt(|| linker() || run::find("c++").is_some(), &["g++"]),
        apt(|| linker() || exists("/usr/lib/llvm-22/bin/llvm-config"), &["llvm-22-dev"]),
        apt(|| linker() || exists("/usr/lib/llvm-22/lib/libPolly.a"), &["libpolly-22-dev"]),
        apt(|| linker() || exists("/usr/include/zlib.h"), &["zlib1g-dev"]),
        apt(|| linker() || exists("/usr/include/zstd.h"), &["libzstd-dev"]),
        Need { present: linker, how: How::BpfLinker },
    ]
}

/// Installs those that are missing, and touches nothing where none is.
pub(crate) fn install(needs: &[Need]) -> Result<()> {
    let missing: Vec<How> = needs.iter().filter(|need| !(need.present)()).map(|need| need.how).collect();
    let packages: Vec<&str> = missing
        .iter()
        .flat_map(|how| match how {
            How::Apt(packages) => *packages,
            How::BpfLinker => &[],
        })
        .copied()
        .collect();
    if !packages.is_empty() {
        install_packages(&packages)?;
    }
    if missing.iter().any(|how| matches!(how, How::BpfLinker)) {
        install_linker()?;
    }
    if missing.is_empty() {
        println!("nothing is missing");
    }
    Ok(())
}

fn install_packages(packages: &[&str]) -> Result<()> {
    let list = packages.join(" ");
    if run::find("apt-get").is_none() {
        bail!("missing, and not Debian's apt-get to install it with; in Debian's names: {list}");
    }
    if !rustix::process::geteuid().is_root() {
        bail!("missing, and only root can install it: apt-get install {list}");
    }
    println!("installing {list}");
    run::run(apt_get().arg("update"))?;
    run::run(apt_get().args(["install", "--yes", "--no-install-recommends"]).args(packages))?;
    for (package, service, pid_file) in SERVICES {
        if packages.contains(&package) {
            stop_service(service, pid_file)?;
        }
    }
    Ok(())
}

/// Packages that start a service when they are installed, its name and its pid file. What runs them here starts
/// its own; the package's would keep a port of this machine.
const SERVICES: [(&str, &str, &str); 2] = [
    ("nginx-light", "nginx", "/run/nginx.pid"),
    ("redis-server", "redis-server", "/run/redis/redis-server.pid"),
];

fn stop_service(name: &str, pid_file: &str) -> Result<()> {
    if exists("/run/systemd/system") {
        return run::run(Command::new("systemctl").args(["disable", "--now", name]));
    }
    if exists(pid_file) {
        return run::run(Command::new("service").args([name, "stop"]));
    }
    Ok(())
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

fn install_linker() -> Result<()> {
    println!("building bpf-linker {BPF_LINKER}; this takes minutes, once");
    let words =
        ["install", "bpf-linker", "--locked", "--no-default-features", "--features", "llvm-22", "--version"];
    run::run(run::cargo(words).arg(BPF_LINKER).env("LLVM_PREFIX", LLVM))
}

/// Debian's compiler with the sources of its library, new enough for this project.
pub(crate) fn debian_compiler() -> bool {
    // The package `rustc` puts its own, much older one in the same place.
    exists("/usr/lib/rustlib/src/rust/library/Cargo.toml")
        && run::output(DEBIAN_RUSTC, &["--version"]).is_some_and(|text| minor(&text) >= Some(90))
}

/// A nightly toolchain of rustup's with the sources of its library.
pub(crate) fn nightly_compiler() -> bool {
    run::output("rustup", &["run", "nightly", "rustc", "--print", "sysroot"]).is_some_and(|sysroot| {
        Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/Cargo.toml").exists()
    })
}

/// 96 of `rustc 1.96.0 (…)`.
fn minor(version: &str) -> Option<u32> {
    version.strip_prefix("rustc 1.")?.split('.').next()?.parse().ok()
}

/// Whether the python that the tests use can make a virtual environment with pip in it.
fn has_venv() -> bool {
    let python = master_process_tests::fixtures::python();
    run::output(python, &["-c", "import ensurepip, venv"]).is_some()
}

fn linker() -> bool {
    run::find("bpf-linker").is_some()
}

fn exists(path: &str) -> bool {
    Path::new(path).exists()
}

#[cfg(test)]
mod tests {
    use super::minor;

    #[test]
    fn the_minor_version_is_read_from_what_rustc_prints() {
        assert_eq!(minor("rustc 1.96.0 (ac68faa20 2026-05-25)\n"), Some(96));
        assert_eq!(minor("rustc 1.63.0\n"), Some(63));
        assert_eq!(minor("gcc 12"), None);
    }
}
