//! What the calls cost that the supervisor answers or may answer: in a worker, and in the same program alone.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use master_process_tests::{Supervisor, fixtures};

use super::{Section, caught, left_out, row, table};

/// Runs of the program, each alone and as a worker, in turns.
const ROUNDS: usize = 5;

/// Prints the median of each call in nanoseconds, then waits to be stopped.
const PROGRAM: &str = "
import os, socket, statistics, sys, tempfile, time
folder = tempfile.mkdtemp()
path = os.path.join(folder, 'file')
serving = socket.socket(); serving.bind(('127.0.0.1', 0)); serving.listen(16)
def median(count, prepare, call, after=lambda made: None):
    spans = []
    for _ in range(count):
        made = prepare()
        begun = time.perf_counter_ns()
        made = call(made)
        spans.append(time.perf_counter_ns() - begun)
        after(made)
    return int(statistics.median(spans))
def fresh():
    made = socket.socket(); made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return made
def listen(made):
    made.bind(('127.0.0.1', int(sys.argv[1]))); made.listen(16)
    return made
def close(made):
    for one in made: one.close()
def pair():
    client = socket.create_connection(serving.getsockname())
    return serving.accept()[0], client
def shut(made):
    made[0].shutdown(socket.SHUT_RDWR)
    return made
def option(made):
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made
print('cost',
    median(200, fresh, listen, lambda made: made.close()),
    median(2000, pair, shut, close),
    median(2000, fresh, option, lambda made: made.close()),
    median(2000, lambda: open(path, 'w').close(), lambda _: os.unlink(path)), flush=True)
os.rmdir(folder)
time.sleep(1000)
";

const CALLS: [&str; 4] =
    ["`bind` and `listen` on TCP", "`shutdown` of a connection", "`setsockopt`", "`unlink`"];

type Costs = [u64; CALLS.len()];

/// Measures every call.
pub(super) fn measure() -> Section {
    let mut section = Section::default();
    let mut rows = vec![["call", "in a worker", "alone"].map(str::to_owned).to_vec()];
    match caught(compared) {
        Ok((worker, alone)) => {
            let micros = |nanos: u64| format!("{}.{} µs", nanos / 1000, nanos % 1000 / 100);
            for (at, call) in CALLS.iter().enumerate() {
                rows.push(row([call, &micros(worker[at]), &micros(alone[at])]));
            }
        }
        Err(error) => {
            section.broken.push(format!("calls: not measured, {error:#}"));
            rows.push(left_out("calls", 3, &format!("{error:#}")));
        }
    }
    section.text = format!(
        "Calls of a python program as the only worker, and alone, in turns; medians of {ROUNDS} runs.\n\n{}",
        table(&rows)
    );
    section
}

/// As a worker, and alone.
fn compared() -> Result<(Costs, Costs)> {
    let (mut worker, mut alone) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        worker.push(as_worker()?);
        alone.push(by_itself()?);
    }
    Ok((medians(&worker), medians(&alone)))
}

fn medians(runs: &[Costs]) -> Costs {
    std::array::from_fn(|at| {
        let mut values: Vec<u64> = runs.iter().map(|run| run[at]).collect();
        values.sort_unstable();
        values[values.len() / 2]
    })
}

fn command() -> Vec<String> {
    let port = master_process_tests::address::tcp().port().to_string();
    vec![fixtures::python(), "-c".into(), PROGRAM.into(), port]
}

fn as_worker() -> Result<Costs> {
    let supervisor = Supervisor::start(&["--workers", "1"], command());
    let line = supervisor.until("the calls are measured", || supervisor.output().first().cloned());
    let costs = parse(&line)?;
    ensure!(supervisor.stop() == 0, "the supervisor did not stop in order");
    Ok(costs)
}

fn by_itself() -> Result<Costs> {
    let command = command();
    let mut child = Command::new(&command[0])
        .args(&command[1..])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .context("starting python")?;
    let mut line = String::new();
    let output = child.stdout.take().context("it has an output")?;
    let read = std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line);
    child.kill().and_then(|()| child.wait()).context("ending python")?;
    read.context("reading what python says")?;
    parse(&line)
}

fn parse(line: &str) -> Result<Costs> {
    let mut words =
        line.strip_prefix("cost ").with_context(|| format!("it said {line:?}"))?.split_whitespace();
    let mut costs = [0; CALLS.len()];
    for cost in &mut costs {
        *cost = words.next().context("a number is missing")?.parse().context("not a number")?;
    }
    Ok(costs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_program_prints_is_read() {
        assert_eq!(
            parse("cost 214000 1900 300 19000\n").expect("four numbers"),
            [214_000, 1900, 300, 19_000]
        );
        assert!(parse("cost 1 2 3").is_err());
        assert!(parse("Traceback").is_err());
    }

    #[test]
    fn of_each_call_the_median_counts() {
        assert_eq!(medians(&[[1, 9, 5, 0], [3, 7, 5, 0], [2, 8, 6, 1]]), [2, 8, 5, 0]);
    }
}
