//! The benchmarks: what the supervisor costs beside a baseline, and what clients see of its reloads.

mod control;
mod dense;
mod measure;
mod memory;
mod overhead;
mod reload;
mod running;
mod stats;
mod subject;
mod timing;
mod upgrade;

use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

fn main() -> ExitCode {
    let matches = cli().get_matches();
    let result = match matches.subcommand() {
        Some(("reload", matches)) => reload::run(&reload_options(matches)),
        Some(("dense", matches)) => run_dense(matches),
        Some(("control", matches)) => run_control(matches),
        Some(("upgrade", matches)) => run_upgrade(matches),
        _ => overhead::run(&overhead_options(&matches)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
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
        .about("What clients see of reloads and deaths, with real programs; prints the tables of docs/benchmarks.md")
        .arg(number("requests", "50000", "Requests of each row, at least"))
        .arg(
            Arg::new("part")
                .long("part")
                .action(ArgAction::Append)
                .value_parser(reload::Part::parser())
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
    let dense = Command::new("dense")
        .about("Hundreds of supervisors on this machine: what each weighs, and what all cost the rest of it")
        .arg(number("supervisors", "500", "Supervisors"))
        .arg(number("workers", "4", "Workers of each"))
        .arg(number("pairs", "5", "Times that the machine is measured with and without them, in turns"));
    let control = Command::new("control")
        .about("What it costs to look at a supervisor, and what clients that flood it cost its workers")
        .arg(
            Arg::new("part")
                .long("part")
                .action(ArgAction::Append)
                .value_parser(control::Part::ALL.map(|(name, _)| name))
                .help("What is measured; may be repeated [default: all]"),
        )
        .arg(number("workers", "1000", "Workers that are looked at"))
        .arg(number("instances", "100", "Supervisors that are listed"))
        .arg(number("rounds", "15", "Times that each is measured"))
        .arg(flag("check", "Fail when a promise is broken"));
    let upgrade = Command::new("upgrade")
        .about("Upgrades in place: requests that fail meanwhile, the pause, and what many of them leave")
        .arg(number("requests", "50000", "Requests during the upgrades under load, at least"))
        .arg(number("upgrades", "20", "Upgrades under load"))
        .arg(number("workers", "1000", "Idle workers whose supervisor is upgraded"))
        .arg(number("rounds", "15", "Times that it is"))
        .arg(number(
            "repeats",
            "1000",
            "Upgrades one after the other, with descriptors and memory before and after",
        ))
        .arg(flag("check", "Fail when a promise is broken"));
    Command::new("cargo xtask bench")
        .about("The supervisor beside the baseline, in one run")
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
        .arg(flag("noise", "The baseline beside itself: how much of a ratio is noise"))
        .args_conflicts_with_subcommands(true)
        .subcommand(reload)
        .subcommand(dense)
        .subcommand(control)
        .subcommand(upgrade)
}

fn overhead_options(matches: &ArgMatches) -> overhead::Options {
    let number = |name| matches.get_one::<u32>(name).copied().unwrap_or(1);
    let named: Vec<&str> =
        matches.get_many::<String>("what").into_iter().flatten().map(String::as_str).collect();
    let wanted = |name| named.is_empty() || named.contains(&name);
    overhead::Options {
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

fn run_dense(matches: &ArgMatches) -> anyhow::Result<()> {
    let number = |name| matches.get_one::<u32>(name).copied().unwrap_or(1);
    let [program, worker, host] = overhead::prepare_dense()?;
    dense::run(&dense::Options {
        program,
        worker,
        host,
        supervisors: number("supervisors"),
        workers: number("workers"),
        pairs: number("pairs"),
    })
}

fn run_control(matches: &ArgMatches) -> anyhow::Result<()> {
    let number = |name| matches.get_one::<u32>(name).copied().unwrap_or(1);
    let named: Vec<&str> =
        matches.get_many::<String>("part").into_iter().flatten().map(String::as_str).collect();
    let is_wanted = |name: &str| named.is_empty() || named.contains(&name);
    let parts = control::Part::ALL.into_iter().filter(|(name, _)| is_wanted(name)).map(|(_, part)| part);
    let [program, worker, listener] = overhead::prepare_control()?;
    control::run(&control::Options {
        parts: parts.collect(),
        program,
        worker,
        listener,
        workers: number("workers"),
        instances: number("instances"),
        rounds: number("rounds"),
        check: matches.get_flag("check"),
    })
}

fn run_upgrade(matches: &ArgMatches) -> anyhow::Result<()> {
    let number = |name| matches.get_one::<u32>(name).copied().unwrap_or(1);
    // The harness of the tests runs this one.
    let program = reload::settle_binary(&xtask::run::target_dir()?)?;
    let [_program, _worker, listener] = overhead::prepare_control()?;
    upgrade::run(&upgrade::Options {
        program,
        listener,
        requests: number("requests").into(),
        upgrades: number("upgrades").into(),
        workers: number("workers"),
        rounds: number("rounds"),
        repeats: number("repeats"),
        check: matches.get_flag("check"),
    })
}

fn reload_options(matches: &ArgMatches) -> reload::Options {
    let parts: Vec<_> = matches.get_many("part").into_iter().flatten().copied().collect();
    reload::Options {
        requests: matches.get_one::<u32>("requests").copied().unwrap_or(1).into(),
        parts: if parts.is_empty() { reload::Part::ALL.to_vec() } else { parts },
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
