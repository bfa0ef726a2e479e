//! Which instance a command is for.

use std::path::PathBuf;

use clap::ArgMatches;

use super::connection::{Connection, Failure};
use super::exit::codes;
use super::show;
use crate::control::{directories, file_name, instances, is_name, name_of};

/// The value of a flag, or of its variable. An empty variable is unset.
fn value(matches: &ArgMatches, flag: &str, variable: &str) -> Option<String> {
    let given = matches.get_one::<String>(flag).cloned();
    given.or_else(|| std::env::var(variable).ok()).filter(|text| !text.is_empty())
}

/// A connection to the instance that the arguments name; without any, to the only one that runs.
pub(super) fn connect(matches: &ArgMatches) -> Result<Connection, Failure> {
    if let Some(path) = value(matches, "control", "MASTER_PROCESS_CONTROL") {
        return Connection::open(&PathBuf::from(path));
    }
    match value(matches, "name", "MASTER_PROCESS_NAME") {
        Some(name) if !is_name(&name) => Err(Failure::new(
            codes::USAGE,
            format!("invalid name {name:?}: expected the name of an instance"),
        )),
        Some(name) => named(&name),
        None => only(),
    }
}

/// The command line of a command for this instance. The name is part of it: more than one instance may run.
pub(super) fn command_for(words: &str, name: &str, control: &str) -> String {
    if is_name(name) {
        format!("master-process {words} --name {name}")
    } else {
        format!("master-process {words} --control {}", show::plain(control))
    }
}

fn known_directories() -> Vec<PathBuf> {
    directories(|name| std::env::var_os(name))
}

fn named(name: &str) -> Result<Connection, Failure> {
    let directories = known_directories();
    let expected = directories.iter().map(|directory| directory.join(file_name(name)));
    let elsewhere = instances(&directories).into_iter().filter(|path| name_of(path) == name);
    let mut worst = Failure::new(codes::NOT_RUNNING, format!("no master-process named {name} runs"));
    for path in expected.chain(elsewhere) {
        match Connection::open(&path) {
            Ok(connection) => return Ok(connection),
            Err(failure) if failure.code == codes::NOT_RUNNING => {}
            Err(failure) => worst = failure,
        }
    }
    Err(worst)
}

/// The instances that run, and why others did not answer. Leftovers of killed supervisors are neither.
pub(super) fn all() -> (Vec<Connection>, Vec<(String, Failure)>) {
    let (mut running, mut failed) = (Vec::new(), Vec::new());
    for path in instances(&known_directories()) {
        match Connection::open(&path) {
            Ok(connection) => running.push(connection),
            Err(failure) if failure.code == codes::NOT_RUNNING => {}
            Err(failure) => failed.push((name_of(&path), failure)),
        }
    }
    (running, failed)
}

fn only() -> Result<Connection, Failure> {
    let (mut running, failed) = all();
    match (running.len(), failed.into_iter().next()) {
        (0, None) => Err(Failure::new(codes::NOT_RUNNING, "no master-process runs")),
        (0, Some((_, failure))) => Err(failure),
        (1, _) => running.pop().ok_or_else(|| Failure::new(codes::NOT_RUNNING, "no master-process runs")),
        (_several, _) => {
            let names: Vec<String> = running.iter().map(Connection::name).collect();
            let why = format!("several run: {}; choose one with --name", names.join(", "));
            Err(Failure::new(codes::USAGE, why))
        }
    }
}
