//! A worker that starts thousands of children which live for a moment: the loop goes on, and its sibling serves.

use std::time::{Duration, Instant};

use master_process_tests::script::started;
use master_process_tests::{address, load, process, scaled};
use rustix::process::Signal;

/// Slot 0 serves. Slot 1 has 5,000 children: every other one in a session of its own, whose parent ends at once, so that it is
/// handed to the supervisor.
const BOMB: &str = "
if INDEX == '0':
    made = bound(HOST, PORT); made.listen(64)
    say('ready', PID)
    serve(made)
for pair in range(2500):
    child = os.fork()
    if child == 0:
        os.setsid()
        if os.fork() == 0: time.sleep(0.02)
        os._exit(0)
    os.waitpid(child, 0)
say('bombed')
while True: signal.pause()";

/// How long a signal may wait for the loop, and a client for the sibling. On an idle machine it is some milliseconds.
const BOUND: Duration = Duration::from_secs(10);

/// The CPU time of the supervisor for all of them: about 1 s of a debug build.
const CPU: Duration = Duration::from_secs(15);

fn cpu_of(pid: i32) -> Duration {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let fields = text.rsplit(')').next().expect("one part at least").split_whitespace().skip(11).take(2);
    let ticks: u64 = fields.map(|field| field.parse::<u64>().expect("a number")).sum();
    Duration::from_millis(ticks * 10)
}

fn hold_nothing_up(source: &str) {
    let address = address::tcp();
    let options = ["-w", "2", "--ready", "none", "--monitor", source];
    let supervisor = started(&options, BOMB, address);
    supervisor.eventually("the sibling answers", || load::who(address).is_some());
    let told = || supervisor.logged(&["limits of all workers"]).len();
    let (mut longest_signal, mut longest_answer) = (Duration::ZERO, Duration::ZERO);
    let mut signals = 0;
    while !supervisor.output().contains(&"bombed".to_owned()) {
        let begun = Instant::now();
        supervisor.signal(Signal::USR2);
        signals += 1;
        supervisor.eventually("the loop reads the signal", || told() == signals);
        longest_signal = longest_signal.max(begun.elapsed());
        let begun = Instant::now();
        assert!(load::who(address).is_some());
        longest_answer = longest_answer.max(begun.elapsed());
        std::thread::sleep(Duration::from_millis(20));
    }
    let cpu = cpu_of(supervisor.pid());
    println!("{source}: {signals} signals, {longest_signal:?}; answers, {longest_answer:?}; {cpu:?} of CPU");
    assert!(longest_signal < scaled(BOUND), "the loop was held up for {longest_signal:?}");
    assert!(longest_answer < scaled(BOUND), "a client waited for {longest_answer:?}");
    assert!(cpu < scaled(CPU), "{cpu:?}");
    supervisor.eventually("only the workers are left", || {
        supervisor.survivors().len() == 2 && process::children(supervisor.pid()).len() == 2
    });
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn five_thousand_short_children_hold_the_loop_up_for_a_bounded_time() {
    hold_nothing_up("auto");
}

#[test]
fn five_thousand_short_children_hold_the_loop_up_for_a_bounded_time_where_procfs_measures() {
    hold_nothing_up("procfs");
}
