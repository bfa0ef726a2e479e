//! `ls`: one line for each instance of this host, the worst first.

use clap::{ArgMatches, Command};

use super::connection::{Connection, Failure};
use super::exit::codes;
use super::show::{self, Colour, Column};
use super::{arguments, find, status};
use crate::control::{ReloadState, Request, Snapshot, State, WorkerState};

const COLUMNS: [Column; 8] = [
    Column { head: ["NAME", "NAME"], width: 11, left: true },
    Column { head: ["READY", "READY"], width: 6, left: true },
    Column { head: ["CPU", "CPU"], width: 4, left: false },
    Column { head: ["MEMORY", "MEM"], width: 9, left: false },
    Column { head: ["QUEUE", "Q"], width: 5, left: false },
    Column { head: ["RESTARTS/1h", "RST/1h"], width: 11, left: false },
    Column { head: ["UP", "UP"], width: 5, left: false },
    Column { head: ["STATE", "STATE"], width: 16, left: true },
];

/// The instances that are named of those that are not shown.
const NAMED: usize = 12;

/// Where the further lines of a remark begin.
const INDENT: usize = 2;

/// Where the state is in a row.
const STATE: usize = 7;

pub(super) fn arguments(command: Command) -> Command {
    command.arg(arguments::json())
}

/// An instance, or why nothing is known of it.
struct Instance {
    name: String,
    known: Result<(Snapshot, String), Failure>,
}

impl Instance {
    fn code(&self) -> u8 {
        match &self.known {
            Ok((snapshot, _)) => status::code_of(snapshot),
            Err(failure) => failure.code,
        }
    }

    /// Whether it is one of another user.
    fn is_denied(&self) -> bool {
        self.known.as_ref().is_err_and(|failure| failure.is_denied)
    }
}

pub(super) fn run(matches: &ArgMatches) -> Result<u8, Failure> {
    let (mut running, failed) = find::all();
    // All of them work on their answers at the same time.
    let sent: Vec<Result<(), Failure>> = running.iter_mut().map(|of| of.send(Request::Status)).collect();
    let asked = running.into_iter().zip(sent).map(|(connection, sent)| answer(connection, sent));
    let unknown = failed.into_iter().map(|(name, failure)| Instance { name, known: Err(failure) });
    let (mut others, mut instances): (Vec<Instance>, Vec<Instance>) =
        asked.chain(unknown).partition(Instance::is_denied);
    if instances.is_empty() {
        return Err(match others.pop() {
            None => Failure::new(codes::NOT_RUNNING, "no master-process runs"),
            Some(Instance { known: Err(failure), .. }) if others.is_empty() => failure,
            Some(_one_of_several) => {
                let all = others.len() + 1;
                Failure::new(codes::UNKNOWN, format!("no permission for any of the {all} instances that run"))
            }
        });
    }
    instances.sort_by(|one, other| other.code().cmp(&one.code()).then_with(|| one.name.cmp(&other.name)));
    if matches.get_flag("json") {
        show::print(&json(instances.iter().chain(&others)));
    } else {
        show::print(&text(&instances));
        show::print(&remarks(&instances, &others, show::columns()));
    }
    Ok(instances.iter().map(Instance::code).max().unwrap_or(codes::OK))
}

/// What is to be done about instances that are not well, and what is not shown.
fn remarks(instances: &[Instance], others: &[Instance], width: Option<usize>) -> String {
    let mut text = String::new();
    for instance in instances {
        if let Err(failure) = &instance.known {
            let name = show::plain(&instance.name);
            text.push_str(&show::wrapped(&format!("{name}  {}", show::plain(&failure.why)), width, INDENT));
        }
    }
    let worst = instances.iter().filter(|instance| instance.code() != codes::OK);
    if let Some(Ok((snapshot, _))) = worst.map(|instance| &instance.known).find(|known| known.is_ok()) {
        let command = find::command_for("status", &snapshot.name, &snapshot.control);
        text.push_str(&show::wrapped(&format!("see: {command}"), width, INDENT));
    }
    if !others.is_empty() {
        let named: Vec<String> = others.iter().take(NAMED).map(|of| show::plain(&of.name)).collect();
        let more = others.len().saturating_sub(NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let line = format!("not shown, no permission: {}{more}", named.join(", "));
        text.push_str(&show::wrapped(&line, width, INDENT));
    }
    if text.is_empty() { text } else { format!("\n{text}") }
}

fn answer(mut connection: Connection, sent: Result<(), Failure>) -> Instance {
    let name = connection.name();
    let known = sent.and_then(|()| connection.answer()).and_then(|(reply, text)| match reply.status {
        Some(snapshot) => Ok((*snapshot, text)),
        None => Err(Failure::new(codes::UNKNOWN, "the answer has no status")),
    });
    Instance { name, known }
}

fn json<'a>(instances: impl Iterator<Item = &'a Instance>) -> String {
    let one = |instance: &Instance| match &instance.known {
        Ok((_, text)) => status::inner(text),
        Err(failure) => {
            let code = if failure.is_denied { "not_permitted" } else { "unknown" };
            let error = serde_json::json!({ "code": code, "message": failure.why });
            serde_json::json!({ "name": instance.name, "error": error }).to_string()
        }
    };
    let all: Vec<String> = instances.map(one).collect();
    format!("{{\"schema\":{},\"instances\":[{}]}}\n", crate::control::SCHEMA, all.join(","))
}

fn text(instances: &[Instance]) -> String {
    let rows: Vec<Vec<String>> = instances.iter().map(row).collect();
    let colours = show::has_colour();
    let paint = |row: usize, column: usize, cell: &str| match instances.get(row) {
        Some(instance) if column == STATE => {
            let colour = if instance.code() == codes::OK { Colour::Good } else { Colour::Bad };
            colour.paint(cell, colours)
        }
        Some(_) | None => cell.to_owned(),
    };
    show::table(&COLUMNS, &rows, show::columns(), paint)
}

fn row(instance: &Instance) -> Vec<String> {
    let dash = || "-".to_owned();
    let name = show::plain(&instance.name);
    let Ok((snapshot, _)) = &instance.known else {
        let (dashes, state) = (std::iter::repeat_n(dash(), COLUMNS.len() - 2), "no answer");
        return std::iter::once(name).chain(dashes).chain([state.to_owned()]).collect();
    };
    vec![
        name,
        format!("{}/{}", snapshot.workers_ready, snapshot.slots_wanted),
        snapshot.cpu_cores.map_or_else(dash, |cores| format!("{cores:.1}")),
        snapshot.memory_bytes.map_or_else(dash, show::size_of),
        snapshot.queue_length.map_or_else(dash, |length| length.to_string()),
        snapshot.restarts_last_hour.to_string(),
        show::span(snapshot.uptime_seconds),
        state(snapshot),
    ]
}

/// The worst that can be said of it in a few words.
fn state(snapshot: &Snapshot) -> String {
    if snapshot.state == State::Stopping {
        return "stopping".to_owned();
    }
    let in_state = |state| snapshot.workers.iter().find(|worker| worker.state == state);
    if let Some(worker) = in_state(WorkerState::Hung) {
        return format!("slot {} hung", worker.slot);
    }
    if let Some(worker) = in_state(WorkerState::Waiting) {
        let end = worker.last_end.as_ref().map(|end| end.words());
        return end.unwrap_or_else(|| format!("slot {} waiting", worker.slot));
    }
    match &snapshot.reload {
        Some(reload) if reload.state == ReloadState::Running => {
            format!("reload {}: {}/{}", reload.number, reload.slots_done, reload.slots_total)
        }
        Some(reload) if reload.state == ReloadState::GivenUp => format!("reload {} given up", reload.number),
        Some(_) | None if snapshot.state == State::Ready => "ready".to_owned(),
        Some(_) | None => "starting".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_the_worst() {
        let mut snapshot = status::tests::example();
        assert_eq!(state(&snapshot), "slot 2 hung");
        snapshot.workers.retain(|worker| worker.state != WorkerState::Hung);
        assert_eq!(state(&snapshot), "reload 13: 2/4");
        snapshot.reload = None;
        snapshot.state = State::Ready;
        let known = Ok((snapshot, String::new()));
        let failed = Err(Failure::new(codes::UNKNOWN, "no"));
        let instances = [
            Instance { name: "api".to_owned(), known },
            Instance { name: "worker-eu".to_owned(), known: failed },
        ];
        let expected = "\
NAME        READY   CPU    MEMORY QUEUE RESTARTS/1h    UP STATE
api         3/4     1.4   1.0 GiB   118           4    6d ready
worker-eu   -         -         -     -           -     - no answer
";
        let rows: Vec<Vec<String>> = instances.iter().map(row).collect();
        assert_eq!(show::table(&COLUMNS, &rows, Some(80), |_, _, cell| cell.to_owned()), expected);
    }

    #[test]
    fn what_to_do_follows() {
        let well = || {
            let snapshot = Snapshot { state: State::Ready, ..status::tests::example() };
            Instance { name: "api".to_owned(), known: Ok((snapshot, String::new())) }
        };
        let ill = || Instance {
            name: "worker-eu".to_owned(),
            known: Ok((
                Snapshot { name: "worker-eu".to_owned(), state: State::Degraded, ..status::tests::example() },
                String::new(),
            )),
        };
        let silent = || Instance {
            name: "billing".to_owned(),
            known: Err(Failure::new(codes::UNKNOWN, "billing does not answer")),
        };
        assert_eq!(remarks(&[well()], &[], Some(80)), "");
        let expected = "\nbilling  billing does not answer\nsee: master-process status --name worker-eu\n\
                        not shown, no permission: billing\n";
        assert_eq!(remarks(&[ill(), silent(), well()], &[silent()], Some(80)), expected);
    }
}
