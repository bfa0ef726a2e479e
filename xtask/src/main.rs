//! What CI and contributors run: `cargo xtask ci | ebpf | bench | conformance | docs`.

mod bench;
mod ci;
mod conformance;
mod docs;
mod ebpf;
mod run;
mod tools;

use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

fn main() -> ExitCode {
    let result = match cli().get_matches().subcommand() {
        Some(("ci", _)) => ci::run(),
        Some(("ebpf", matches)) => {
            let build = if matches.get_flag("check") { ebpf::check } else { ebpf::update };
            tools::install(&tools::for_ebpf()).and_then(|()| build())
        }
        Some(("bench", matches)) => match matches.subcommand() {
            Some(("reload", matches)) => bench::reload::run(&reload_options(matches)),
            _ => bench::run(&bench_options(matches)),
        },
        Some(("docs", matches)) => docs::run(matches.get_flag("check")),
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
    let number = |name: &'static str, default: &'static str, help: &'static str| {
        Arg::new(name)
            .long(name)
            .value_name("N")
            .default_value(default)
            .value_parser(value_parser!(u32).range(1..))
            .help(help)
    };
    let flag = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
    };
    let reload = Command::new("reload")
        .about("What clients see of reloads and deaths, with real programs; prints the README's tables")
        .arg(number("requests", "50000", "Requests of each row, at least"))
        .arg(
            Arg::new("part")
                .long("part")
                .action(ArgAction::Append)
                .value_parser(bench::reload::Part::parser())
                .help("What is measured; may be repeated [default: all]"),
        )
        .arg(
            Arg::new("program")
                .long("program")
                .value_name("WORD")
                .action(ArgAction::Append)
                .help("Only programs whose name contains the word; may be repeated [default: all]"),
        )
        .arg(flag("check", "Fail when a promise is broken"));
    Command::new("cargo xtask")
        .about("What CI and contributors run")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(Command::new("ci").about("Everything that CI checks; installs what the machine lacks"))
        .subcommand(
            Command::new("ebpf")
                .about("Builds the eBPF programs from source, into the repository; installs their tools")
                .arg(flag("check", "Fail when those in the repository were not made from this source")),
        )
        .subcommand(
            Command::new("docs")
                .about("Writes the tables of the documentation from the code")
                .arg(flag("check", "Writes nothing, and fails when a table is not up to date")),
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
                .about("The supervisor beside the bare floor, in one run")
                .arg(
                    Arg::new("what")
                        .num_args(0..)
                        .value_parser(["start", "respawn", "memory", "measure"])
                        .help("What is measured [default: all]"),
                )
                .arg(number("workers", "100", "Workers that each subject runs"))
                .arg(number("rounds", "15", "Rounds; every subject is started once in each"))
                .arg(number("kills", "20", "Single kills in each round"))
                .arg(number("bursts", "3", "Times that all workers are killed at once in each round"))
                .arg(flag("check", "Fail when a promise is broken"))
                .arg(flag("noise", "The floor beside itself: how much of a ratio is noise"))
                .args_conflicts_with_subcommands(true)
                .subcommand(reload),
        )
}

fn bench_options(matches: &ArgMatches) -> bench::Options {
    let number = |name| matches.get_one::<u32>(name).copied().unwrap_or(1);
    let named: Vec<&str> =
        matches.get_many::<String>("what").into_iter().flatten().map(String::as_str).collect();
    let wanted = |name| named.is_empty() || named.contains(&name);
    bench::Options {
        start: wanted("start"),
        respawn: wanted("respawn"),
        memory: wanted("memory"),
        measure: wanted("measure"),
        workers: number("workers"),
        rounds: number("rounds"),
        kills: number("kills"),
        bursts: number("bursts"),
        check: matches.get_flag("check"),
        noise: matches.get_flag("noise"),
    }
}

fn reload_options(matches: &ArgMatches) -> bench::reload::Options {
    let parts: Vec<_> = matches.get_many("part").into_iter().flatten().copied().collect();
    bench::reload::Options {
        requests: matches.get_one::<u32>("requests").copied().unwrap_or(1).into(),
        parts: if parts.is_empty() { bench::reload::Part::ALL.to_vec() } else { parts },
        programs: matches.get_many("program").into_iter().flatten().cloned().collect(),
        check: matches.get_flag("check"),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_consistent() {
        super::cli().debug_assert();
    }
}
