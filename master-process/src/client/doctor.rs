//! `doctor`: the command line, and the report on standard output.

use std::ffi::OsString;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use super::connection::Failure;
use super::exit::{codes, usage};
use super::{Topic, show};
use crate::cli;
use crate::doctor::{self, WIDTH};
use crate::driver::trial;

pub(super) const TOPIC: Topic = Topic {
    word: "doctor",
    form: "[OPTIONS] [-- COMMAND [ARG]...]",
    about: "Show what this host gives, what will be used, why not, and what changes it",
    arguments,
    run,
};

/// The flag that makes the process the worker of a trial.
const TRY_WORKER: &str = "try-worker";

const AFTER_HELP: &str = "\
It takes the options of the supervisor as well, for example the whole command
line of a service: master-process doctor -w 64 --user deploy -- ./app. Without
--workers the limits are compared with as many workers as there are CPUs.

Exit code: 0 if everything that will be used is in its best form, else 150.";

fn arguments(command: Command) -> Command {
    let json = Arg::new("json").long("json").action(ArgAction::SetTrue).help("Print one JSON object");
    let worker = Arg::new(TRY_WORKER).long(TRY_WORKER).value_parser(value_parser!(u16)).hide(true);
    cli::add_options(command).arg(json).arg(worker).after_help(AFTER_HELP)
}

fn run(matches: &ArgMatches) -> Result<u8, Failure> {
    if let Some(port) = matches.get_one::<u16>(TRY_WORKER) {
        return Ok(trial::worker(*port));
    }
    let config = match cli::config_of(matches) {
        Ok(config) => config,
        Err(error) => return Ok(usage(&error)),
    };
    // The link names this program also where the worker's user cannot reach its path.
    let flag = format!("--{TRY_WORKER}");
    let worker = ["/proc/self/exe", TOPIC.word, &flag].map(OsString::from).to_vec();
    let report = doctor::examine(&config, worker);
    let text = if matches.get_flag("json") {
        format!("{}\n", report.json())
    } else {
        let width = if show::is_terminal() { show::size().0.min(WIDTH) } else { WIDTH };
        report.text(width, show::has_colour())
    };
    show::print(&text);
    Ok(if report.is_degraded() { codes::DEGRADED } else { codes::OK })
}
