//! `status`: one instance, a row for each worker, and what to do about those that have a problem.

use clap::{Arg, ArgAction, ArgMatches, Command};

use super::connection::{Connection, Failure};
use super::exit::codes;
use super::find;
use super::show::{self, Colour, Column};
use crate::control::{
    EndReason, FailedReload, LastEnd, Preload, Reload, ReloadState, Request, Snapshot, State, Worker,
    WorkerState,
};

/// How long a worker may start before that is a problem to be shown.
const LONG_START_SECONDS: f64 = 10.0;

/// Where the states are in a row.
pub(super) const STATE: usize = 3;

/// The columns of the workers.
pub(super) const COLUMNS: [Column; 11] = [
    Column { head: ["SLOT", "SLOT"], width: 4, left: false },
    Column { head: ["PID", "PID"], width: 6, left: false },
    Column { head: ["GEN", "GEN"], width: 4, left: false },
    Column { head: ["STATE", "STATE"], width: 10, left: true },
    Column { head: ["UP", "UP"], width: 3, left: false },
    Column { head: ["CPU", "CPU"], width: 5, left: false },
    Column { head: ["MEMORY", "MEM"], width: 8, left: false },
    Column { head: ["QUEUE", "Q"], width: 5, left: false },
    Column { head: ["DROPS", "DR"], width: 5, left: false },
    Column { head: ["RESTARTS", "RST"], width: 8, left: false },
    Column { head: ["LAST END", "LAST"], width: 12, left: true },
];

pub(super) fn arguments(command: Command) -> Command {
    let wide = Arg::new("wide").long("wide").action(ArgAction::SetTrue).help("Do not shorten anything");
    let fields = Arg::new("fields")
        .short('o')
        .value_name("FIELD,...")
        .value_delimiter(',')
        .action(ArgAction::Append)
        .help("Show these fields of each worker, named as in the JSON output");
    super::arguments::of_one(command).arg(wide).arg(fields)
}

pub(super) fn run(matches: &ArgMatches) -> Result<u8, Failure> {
    let mut connection = find::connect(matches)?;
    let (snapshot, text) = ask(&mut connection)?;
    let code = code_of(&snapshot);
    if matches.get_flag("json") {
        show::print(&format!("{}\n", inner(&text)));
        return Ok(code);
    }
    let width = show::columns().filter(|_| !matches.get_flag("wide"));
    match matches.get_many::<String>("fields") {
        Some(fields) => show::print(&chosen(&snapshot, &fields.map(String::as_str).collect::<Vec<_>>())?),
        None => show::print(&page(&snapshot, width, show::has_colour())),
    }
    Ok(code)
}

/// The state of the instance, and the line that it came in.
pub(super) fn ask(connection: &mut Connection) -> Result<(Snapshot, String), Failure> {
    let (reply, text) = connection.ask(Request::Status)?;
    let status = reply.status.ok_or_else(|| Failure::new(codes::UNKNOWN, "the answer has no status"))?;
    Ok((*status, text))
}

/// The exit code that a state is.
pub(super) fn code_of(snapshot: &Snapshot) -> u8 {
    match snapshot.state {
        State::Ready => codes::OK,
        State::Degraded | State::Stopping => codes::DEGRADED,
    }
}

/// The state itself, out of the line of the answer.
pub(super) fn inner(line: &str) -> String {
    let value: Option<serde_json::Value> = serde_json::from_str(line).ok();
    let first = |value: &serde_json::Value| {
        let object = value.as_object()?;
        object.iter().find(|(key, _)| *key != "schema").map(|(_, inner)| inner.to_string())
    };
    value.as_ref().and_then(first).unwrap_or_else(|| line.to_owned())
}

/// The whole page. `width`: `None` shortens nothing.
pub(super) fn page(snapshot: &Snapshot, width: Option<usize>, colours: bool) -> String {
    let mut text = head(snapshot, width, colours);
    let rows: Vec<Vec<String>> = snapshot.workers.iter().map(row).collect();
    let paint = |row: usize, column: usize, cell: &str| match snapshot.workers.get(row) {
        Some(worker) if column == STATE => Colour::of(worker.state).paint(cell, colours),
        Some(_) | None => cell.to_owned(),
    };
    text.push('\n');
    text.push_str(&show::table(&COLUMNS, &rows, width, paint));
    let problems: String = problems(snapshot).iter().map(|problem| problem.lines(width)).collect();
    if !problems.is_empty() {
        text.push('\n');
        text.push_str(&problems);
    }
    text
}

/// The words for the state of the instance, and their colour.
pub(super) fn state_words(snapshot: &Snapshot) -> (String, Colour) {
    let (ready, wanted) = (snapshot.workers_ready, snapshot.slots_wanted);
    match snapshot.state {
        State::Ready => (format!("ready: {ready} of {wanted}"), Colour::Good),
        State::Degraded => (format!("degraded: {ready} of {wanted} ready"), Colour::Bad),
        State::Stopping => ("stopping".to_owned(), Colour::Passing),
    }
}

/// The lines above the table. `width`: `None` shortens nothing.
pub(super) fn head(snapshot: &Snapshot, width: Option<usize>, colours: bool) -> String {
    let columns = width.unwrap_or(show::WIDTH);
    let (word, colour) = state_words(snapshot);
    let name = show::plain(&snapshot.name);
    let up = show::long_span(snapshot.uptime_seconds);
    let right = format!("pid {}  up {up}  v{}", snapshot.pid, snapshot.version);
    let first = show::ends(&format!("{name}  {word}"), &right, columns);
    let first = first.replacen(&word, &colour.paint(&word, colours), 1);
    let command = show::plain(&snapshot.command.join(" "));
    let addresses = snapshot.addresses.join(", ");
    // Of a long command line, the beginning is enough. The addresses are what people look for.
    let room = columns.saturating_sub(addresses.chars().count() + 2).max(LEAST_COMMAND);
    let command = if width.is_some() { show::cut(&command, room) } else { command };
    let second = if addresses.is_empty() { command } else { format!("{command}  {addresses}") };
    let second = if width.is_some() { show::cut(&second, columns) } else { second };
    let reload = match (&snapshot.reload, snapshot.preload) {
        (Some(reload), None) => reload_words(reload, snapshot),
        (Some(reload), Some(preload)) if reload.number == preload.generation => {
            format!("reload {} {}: {}", reload.number, reload.state.words(), preload_words(preload))
        }
        (Some(_) | None, Some(preload)) => preload_words(preload),
        (None, None) => "no reload yet".to_owned(),
    };
    let paused = if snapshot.limits_paused { "limits paused    " } else { "" };
    let cpu = snapshot.cpu_cores.map_or("-".to_owned(), |cores| format!("{cores:.1}"));
    let memory = snapshot.memory_bytes.map_or("-".to_owned(), show::size_of);
    let right = format!("{paused}{}    cpu {cpu}    mem {memory}", snapshot.monitor);
    format!("{first}{second}\n{}", show::ends(&reload, &right, columns))
}

/// What is left of the command line where the addresses take more than their part of the line.
const LEAST_COMMAND: usize = 20;

fn preload_words(preload: Preload) -> String {
    match preload.pid {
        Some(pid) => format!("preload command {pid}"),
        None => "preload command waits".to_owned(),
    }
}

fn reload_words(reload: &Reload, snapshot: &Snapshot) -> String {
    let (number, state) = (reload.number, reload.state.words());
    let failing = snapshot.workers.iter().find(|worker| worker.failed_starts > 0).map(|worker| worker.slot);
    match (reload.state, failing) {
        (ReloadState::Running, Some(slot)) => format!("reload {number} running: slot {slot} fails"),
        (ReloadState::Running, None) => {
            format!("reload {number} running: {} of {} slots done", reload.slots_done, reload.slots_total)
        }
        (ReloadState::Complete | ReloadState::GivenUp | ReloadState::Stopping, _) => {
            format!("reload {number} {state}")
        }
    }
}

/// The cells of a worker's row.
pub(super) fn row(worker: &Worker) -> Vec<String> {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let number = |number: Option<u64>| or_dash(number.map(|number| number.to_string()));
    vec![
        worker.slot.to_string(),
        or_dash(worker.pid.map(|pid| pid.to_string())),
        worker.generation.to_string(),
        worker.state.word().to_owned(),
        or_dash(worker.uptime_seconds.map(show::span)),
        or_dash(worker.cpu_percent.map(|percent| format!("{percent:.0}%"))),
        or_dash(worker.memory_bytes.map(show::size_of)),
        number(worker.queue_length),
        number(worker.queue_drops_total),
        worker.restarts_total.unasked().to_string(),
        or_dash(worker.last_end.as_deref().map(last_end)),
    ]
}

/// `oom 2h ago`, `exit 1 2s`.
fn last_end(end: &LastEnd) -> String {
    let words = end.words();
    let Some(ago) = show::ago(&end.at).map(show::span) else { return words };
    let long = format!("{words} {ago} ago");
    if long.chars().count() <= 12 { long } else { format!("{words} {ago}") }
}

/// Something that needs a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    /// What it is about: `slot 2`.
    subject: String,
    /// What is wrong.
    what: String,
    /// What to do about it.
    action: String,
    /// The last lines that the program has written.
    output: Vec<String>,
}

impl Problem {
    /// The lines about it.
    pub(super) fn lines(&self, width: Option<usize>) -> String {
        let Problem { subject, what, action, output } = self;
        let indent = subject.chars().count() + 2;
        let words = if output.is_empty() { "" } else { "; its last words:" };
        let mut text = show::wrapped(&format!("{subject}  {what}{words}"), width, indent);
        let space = " ".repeat(indent);
        text.extend(
            output.iter().map(|line| show::wrapped(&format!("{space}{}", show::plain(line)), width, indent)),
        );
        text.push_str(&show::wrapped(&format!("{space}{action}"), width, indent));
        text
    }
}

/// Everything that needs a person, with what to do about it.
pub(super) fn problems(snapshot: &Snapshot) -> Vec<Problem> {
    let of_reload = snapshot.reload.as_ref().filter(|reload| reload.state == ReloadState::GivenUp);
    let failed = of_reload.and_then(|reload| Some(given_up(reload.number, reload.error.as_ref()?, snapshot)));
    failed.into_iter().chain(snapshot.workers.iter().filter_map(|worker| problem(worker, snapshot))).collect()
}

fn given_up(number: u32, error: &FailedReload, snapshot: &Snapshot) -> Problem {
    let FailedReload { slot, attempts, message, output, .. } = error;
    let message = show::plain(message);
    let (what, see) = match slot {
        Some(slot) => (format!("slot {slot} failed {attempts} times: {message}"), format!("why {slot}")),
        None => (message, "events".to_owned()),
    };
    Problem {
        subject: format!("reload {number}"),
        what: format!("given up: {what}"),
        action: format!("see: {}", next(snapshot, &see)),
        output: output.clone(),
    }
}

/// The command line of another command for this instance.
fn next(snapshot: &Snapshot, words: &str) -> String {
    find::command_for(words, &snapshot.name, &snapshot.control)
}

/// What is wrong with a worker, and what to do about it.
fn problem(worker: &Worker, snapshot: &Snapshot) -> Option<Problem> {
    let slot = worker.slot;
    let next = |word: &str| next(snapshot, &format!("{word} {slot}"));
    let since = || worker.state_seconds.map(|seconds| format!(" since {}", show::span(seconds)));
    let last = worker.last_end.as_ref();
    let ended = last.map(|end| format!("{}, ", ended(end))).unwrap_or_default();
    let (what, action) = match worker.state {
        WorkerState::Hung => {
            let address = worker.hung_address.as_deref().map(|at| format!(" on {at}")).unwrap_or_default();
            let what = format!("accepts nothing{address}{}", since().unwrap_or_default());
            (what, format!("replace it: {}", next("restart")))
        }
        WorkerState::OverLimit => {
            (format!("exceeds {}, and is being replaced", exceeded(worker)), format!("see: {}", next("why")))
        }
        WorkerState::Waiting => {
            let wait = worker
                .wait_seconds
                .map_or_else(|| "soon".to_owned(), |wait| format!("in {}", show::tenths(wait)));
            (format!("{ended}starts again {wait}"), format!("see: {}", next("why")))
        }
        WorkerState::Starting if worker.failed_starts > 0 => {
            let (failed, most) = (worker.failed_starts, snapshot.reload_attempts);
            (format!("{ended}attempt {} of {most}", failed + 1), format!("see: {}", next("why")))
        }
        WorkerState::Starting if worker.uptime_seconds.is_some_and(|up| up >= LONG_START_SECONDS) => {
            let up = show::span(worker.uptime_seconds.unwrap_or_default());
            let action =
                "see what the program and the supervisor have logged; when a worker is ready: --ready";
            (format!("not ready after {up}"), action.to_owned())
        }
        WorkerState::Ready | WorkerState::Serving if has_full_queue(worker, snapshot) => {
            let (length, limit) = (worker.queue_length.unwrap_or(0), worker.queue_limit.unwrap_or(0));
            let what = format!("its accept queue is full: {length} connections, with room for {limit}");
            let more = find::command_for(
                &format!("scale {}", snapshot.slots_wanted + 1),
                &snapshot.name,
                &snapshot.control,
            );
            (what, format!("raise the limit that the log names, or add a worker: {more}"))
        }
        WorkerState::Starting
        | WorkerState::Ready
        | WorkerState::Serving
        | WorkerState::Draining
        | WorkerState::Stopping => return None,
    };
    let tells = matches!(worker.state, WorkerState::Waiting | WorkerState::Starting);
    let output = last.filter(|_| tells).map(|end| end.output.clone()).unwrap_or_default();
    Some(Problem { subject: format!("slot {slot}"), what, action, output })
}

fn has_full_queue(worker: &Worker, snapshot: &Snapshot) -> bool {
    let is_full = worker.queue_length.zip(worker.queue_limit).is_some_and(|(length, limit)| length >= limit);
    snapshot.queue_full && is_full
}

/// The limits that the last sample of a worker exceeds. Without any, what it uses: the default of `--max-cpu` is not a
/// number that can be compared.
fn exceeded(worker: &Worker) -> String {
    let (cpu, memory) = (worker.cpu_percent, worker.memory_bytes);
    let over_cpu = cpu.zip(worker.cpu_limit_percent).filter(|(used, most)| used > most);
    let over_memory = memory.zip(worker.memory_limit_bytes).filter(|(used, most)| used > most);
    let size = show::size_of;
    let words = [
        over_cpu.map(|(used, most)| format!("its CPU limit ({used:.0}% of {most:.0}%)")),
        over_memory.map(|(used, most)| format!("its memory limit ({} of {})", size(used), size(most))),
    ];
    let words: Vec<String> = words.into_iter().flatten().collect();
    if !words.is_empty() {
        return words.join(" and ");
    }
    let used =
        [cpu.map(|used| format!("cpu {used:.0}%")), memory.map(|used| format!("memory {}", size(used)))];
    let used: Vec<String> = used.into_iter().flatten().collect();
    if used.is_empty() { "a limit".to_owned() } else { format!("a limit ({})", used.join(", ")) }
}

/// `exit 1 after 0.4s`.
pub(super) fn ended(end: &LastEnd) -> String {
    let after = show::tenths(end.uptime_seconds);
    match end.reason {
        EndReason::NeverReady => format!("not ready after {after}"),
        EndReason::Exit
        | EndReason::Signal
        | EndReason::Oom
        | EndReason::Cpu
        | EndReason::Memory
        | EndReason::Hung
        | EndReason::Reload
        | EndReason::Upgrade
        | EndReason::Request
        | EndReason::Stop => format!("{} after {after}", end.words()),
    }
}

/// The chosen fields of each worker.
fn chosen(snapshot: &Snapshot, fields: &[&str]) -> Result<String, Failure> {
    let value = serde_json::to_value(&snapshot.workers).unwrap_or_default();
    let workers = value.as_array().map(Vec::as_slice).unwrap_or_default();
    if let Some(unknown) = fields.iter().find(|field| !FIELDS.contains(field)) {
        let why = format!("unknown field {unknown:?}: expected some of {}", FIELDS.join(","));
        return Err(Failure::new(codes::USAGE, why));
    }
    let cell = |worker: &serde_json::Value, field: &str| match worker.get(field) {
        None | Some(serde_json::Value::Null) => "-".to_owned(),
        Some(serde_json::Value::String(text)) => show::plain(text),
        Some(other) => other.to_string(),
    };
    let mut lines = vec![fields.iter().map(|field| (*field).to_owned()).collect::<Vec<_>>()];
    lines.extend(workers.iter().map(|worker| fields.iter().map(|field| cell(worker, field)).collect()));
    let widths: Vec<usize> = (0..fields.len())
        .map(|at| lines.iter().map(|line| line[at].chars().count()).max().unwrap_or(0))
        .collect();
    let line = |cells: &Vec<String>| {
        let padded: Vec<String> =
            cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("{}\n", padded.join(" ").trim_end())
    };
    Ok(lines.iter().map(line).collect())
}

/// The fields of a worker in JSON.
const FIELDS: [&str; 21] = [
    "slot",
    "pid",
    "generation",
    "state",
    "state_seconds",
    "started_at",
    "uptime_seconds",
    "cpu_seconds_total",
    "cpu_percent",
    "cpu_limit_percent",
    "memory_bytes",
    "memory_peak_bytes",
    "memory_limit_bytes",
    "queue_length",
    "queue_limit",
    "queue_drops_total",
    "hung_address",
    "wait_seconds",
    "failed_starts",
    "restarts_total",
    "last_end",
];

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The instance of the design's example.
    pub(crate) fn example() -> Snapshot {
        let text = include_str!("example.json");
        serde_json::from_str(text).expect("it is a snapshot")
    }

    /// The same without what depends on the time of the test.
    fn timeless() -> Snapshot {
        let mut snapshot = example();
        let times = [7260, 2];
        let ends = snapshot.workers.iter_mut().filter_map(|worker| worker.last_end.as_mut());
        for (end, ago) in ends.zip(times) {
            let at = std::time::SystemTime::now() - std::time::Duration::from_secs(ago);
            end.at = humantime::format_rfc3339_millis(at).to_string();
        }
        snapshot
    }

    #[test]
    fn a_page_has_80_columns() {
        let page = page(&timeless(), Some(80), false);
        let expected = "\
api  degraded: 3 of 4 ready                        pid 27667  up 6d 4h  v0.4.0
node server.js  [::]:3000, unix:/run/api.sock
reload 13 running: slot 3 fails                ebpf    cpu 1.4    mem 1.0 GiB

SLOT    PID  GEN STATE       UP   CPU   MEMORY QUEUE DROPS RESTARTS LAST END
   0  27671   13 ready       3m   42%  212 MiB     0     0        1 oom 2h ago
   1  27672   13 ready       3m   39%  208 MiB     1     0        0 -
   2  27690   13 hung       41s    0%  203 MiB   117    12        0 -
   3  27695   13 starting    2s     -        -     -     -        4 exit 1 2s
   3  27402   12 serving     6d    3%  390 MiB     0     0        0 -

slot 2  accepts nothing on [::]:3000 since 41s
        replace it: master-process restart 2 --name api
slot 3  exit 1 after 0.4s, attempt 2 of 3; its last words:
        Error: Cannot find module './routes'
        see: master-process why 3 --name api
";
        let squeezed = |text: &str| {
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>()
        };
        assert_eq!(squeezed(&page), squeezed(expected), "{page}");
        let table: Vec<&str> = page.lines().skip(4).take(6).collect();
        assert_eq!(table, expected.lines().skip(4).take(6).collect::<Vec<_>>(), "{page}");
        assert!(page.lines().all(|line| line.chars().count() <= 80), "{page}");
    }

    #[test]
    fn no_line_is_wider_than_the_terminal_and_without_one_nothing_is_shortened() {
        let mut snapshot = timeless();
        snapshot.command.extend((0..9).map(|number| format!("--option-{number}=value")));
        snapshot.limits_paused = true;
        let error = FailedReload {
            code: "exited".to_owned(),
            slot: Some(3),
            attempts: 3,
            message: "not ready in time: it does not listen on [::]:3000 and unix:/run/api.sock".to_owned(),
            output: Vec::new(),
        };
        if let Some(reload) = &mut snapshot.reload {
            (reload.state, reload.error) = (ReloadState::GivenUp, Some(error));
        }
        for width in [60, 70, 80] {
            let page = page(&snapshot, Some(width), false);
            assert!(page.lines().all(|line| line.chars().count() <= width), "{width}: {page}");
            let words = page.split_whitespace().collect::<Vec<_>>().join(" ");
            for text in [
                "[::]:3000, unix:/run/api.sock",
                "limits paused",
                "reload 13 given up: slot 3 failed 3 times: not ready in time: it does not listen on [::]:3000 and \
                 unix:/run/api.sock see: master-process why 3 --name api",
                "replace it: master-process restart 2 --name api",
            ] {
                assert!(words.contains(text), "{text}: {page}");
            }
        }
        let whole = page(&snapshot, None, false);
        assert!(whole.contains("--option-8=value  [::]:3000") && !whole.contains('…'), "{whole}");
    }

    #[test]
    fn each_problem_says_what_to_do() {
        let mut snapshot = example();
        snapshot.reload = None;
        let text = |snapshot: &Snapshot| -> Vec<String> {
            problems(snapshot).iter().map(|problem| problem.lines(None)).collect()
        };
        let ready = snapshot.workers[0].clone();
        let with = |worker: Worker| Snapshot { queue_full: true, workers: vec![worker], ..snapshot.clone() };
        assert_eq!(text(&with(ready.clone())), [""; 0]);
        let full = Worker { queue_length: Some(512), queue_limit: Some(511), ..ready.clone() };
        assert_eq!(
            text(&with(full)),
            [
                "slot 0  its accept queue is full: 512 connections, with room for 511\n        raise the limit that the \
              log names, or add a worker: master-process scale 5 --name api\n"
            ]
        );
        let over = Worker { state: WorkerState::OverLimit, ..ready.clone() };
        assert!(
            text(&with(over.clone()))[0].contains("exceeds a limit (cpu 42%, memory 212 MiB), and is being")
        );
        let limits = Worker { cpu_limit_percent: Some(40.0), memory_limit_bytes: Some(200 << 20), ..over };
        let both = "exceeds its CPU limit (42% of 40%) and its memory limit (212 MiB of 200 MiB), and is being replaced";
        assert!(text(&with(limits))[0].contains(both));
        let starting =
            |up| Worker { state: WorkerState::Starting, uptime_seconds: Some(up), ..ready.clone() };
        assert!(text(&with(starting(2.0))).is_empty());
        assert!(text(&with(starting(41.0)))[0].starts_with("slot 0  not ready after 41s\n        see what"));
        snapshot.name = "with space".to_owned();
        assert!(text(&snapshot)[0].contains(&format!("restart 2 --control {}", snapshot.control)));
    }

    #[test]
    fn sixty_columns_show_every_column() {
        let page = page(&timeless(), Some(60), false);
        let table: Vec<&str> = page.lines().skip_while(|line| !line.starts_with("SLOT")).take(6).collect();
        assert!(table.iter().all(|line| line.chars().count() <= 60), "{page}");
        for head in ["PID", "GEN", "STATE", "UP", "CPU", "MEM", "Q", "DR", "RST", "LAST"] {
            assert!(table[0].contains(head), "{head}: {page}");
        }
    }

    #[test]
    fn colour_is_on_the_states_alone() {
        let painted = page(&timeless(), Some(80), true);
        assert!(painted.contains("\x1b[31mhung\x1b[0m") && painted.contains("\x1b[32mready\x1b[0m"));
        let plain = painted
            .replace("\x1b[31m", "")
            .replace("\x1b[32m", "")
            .replace("\x1b[33m", "")
            .replace("\x1b[0m", "");
        assert_eq!(plain, page(&timeless(), Some(80), false));
    }

    #[test]
    fn chosen_fields_are_those_of_the_json() {
        let text = chosen(&example(), &["slot", "pid", "state", "queue_length"]).expect("known");
        assert_eq!(text.lines().next(), Some("slot pid   state    queue_length"));
        assert_eq!(text.lines().nth(4), Some("3    27695 starting -"));
        let error = chosen(&example(), &["slot", "colour"]).expect_err("unknown");
        assert_eq!(error.code, codes::USAGE);
        let all = serde_json::to_value(&example().workers[0]).expect("a value");
        let fields: Vec<&String> = all.as_object().expect("an object").keys().collect();
        assert!(fields.iter().all(|field| FIELDS.contains(&field.as_str())), "{fields:?}");
    }
}
