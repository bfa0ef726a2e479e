//! What CI and contributors run: `cargo xtask ci | ebpf | bench | conformance | docs | packaging | vm`.

mod ci;
mod conformance;
mod docs;
mod ebpf;
mod packaging;
mod vm;

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Arg, ArgAction, Command, value_parser};
use xtask::{run, tools};

fn main() -> ExitCode {
    let result = match cli().get_matches().subcommand() {
        Some(("ci", _)) => ci::run(),
        Some(("ebpf", matches)) => {
            let build = if matches.get_flag("check") { ebpf::check } else { ebpf::update };
            tools::install(&tools::for_ebpf()).and_then(|()| build())
        }
        Some(("bench", matches)) => {
            let words = matches.get_many::<OsString>("words").into_iter().flatten();
            let cargo = ["run", "--quiet", "--package", "master-process-bench", "--"];
            // In the caller's directory, with the caller's standard output: its tables are Markdown.
            Err(run::cargo(cargo).args(words).current_dir(".").exec()).context("starting cargo")
        }
        Some(("docs", matches)) => docs::run(matches.get_flag("check")),
        Some(("packaging", _)) => packaging::check(),
        Some(("vm", matches)) => {
            let kernels: Vec<String> = matches.get_many("kernel").into_iter().flatten().cloned().collect();
            vm::run(&kernels, matches.get_flag("all"), matches.get_flag("systemd"))
        }
        Some(("conformance", matches)) => {
            let suites: Vec<String> = matches.get_many("suite").into_iter().flatten().cloned().collect();
            conformance::run(&suites, None)
        }
        // clap has refused everything else.
        _ => Ok(()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn cli() -> Command {
    let check = |help: &'static str| Arg::new("check").long("check").action(ArgAction::SetTrue).help(help);
    Command::new("cargo xtask")
        .about("What CI and contributors run")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(Command::new("ci").about("Everything that CI checks; installs what the machine lacks"))
        .subcommand(
            Command::new("ebpf")
                .about("Builds the eBPF programs from source, into the repository; installs their tools")
                .arg(check("Fail when those in the repository were not made from this source")),
        )
        .subcommand(
            Command::new("docs")
                .about("Writes the tables of the documentation from the code")
                .arg(check("Writes nothing, and fails when a table is not up to date")),
        )
        .subcommand(Command::new("packaging").about("Checks the files for Kubernetes and Nomad"))
        .subcommand(
            Command::new("vm")
                .about("The end-to-end tests on other kernels, in virtual machines, and on a real systemd")
                .arg(
                    Arg::new("all")
                        .long("all")
                        .action(ArgAction::SetTrue)
                        .help("All tests, which takes hours, in the place of the main ones"),
                )
                .arg(
                    Arg::new("systemd")
                        .long("systemd")
                        .action(ArgAction::SetTrue)
                        .help("The tests of the units in a systemd that is pid 1: on this kernel, and those of limits in a machine"),
                )
                .arg(
                    Arg::new("kernel")
                        .num_args(0..)
                        .help(format!("Kernels [default: {}]", vm::KERNELS.join(" "))),
                ),
        )
        .subcommand(
            Command::new("conformance")
                .about("Other projects' test suites as the only worker, against the same suites alone")
                .arg(
                    Arg::new("suite")
                        .num_args(0..)
                        .value_parser(conformance::names())
                        .help("Suites that are run [default: all]"),
                ),
        )
        .subcommand(
            Command::new("bench")
                .about("The benchmarks: `cargo run --package master-process-bench -- …`")
                .disable_help_flag(true)
                .arg(
                    Arg::new("words")
                        .num_args(0..)
                        .allow_hyphen_values(true)
                        .trailing_var_arg(true)
                        .value_parser(value_parser!(OsString)),
                ),
        )
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_consistent() {
        super::cli().debug_assert();
    }
}
