//! `why`: the last ends of a slot, each with everything that is known of it.

use clap::{ArgMatches, Command};

use super::connection::Failure;
use super::exit::codes;
use super::{arguments, find, show, status};
use crate::control::{LastEnd, Request, Restarts, Why};

pub(super) fn arguments(command: Command) -> Command {
    arguments::of_one(command).arg(arguments::slot())
}

pub(super) fn run(matches: &ArgMatches) -> Result<u8, Failure> {
    let slot = matches.get_one::<u32>("SLOT").copied().unwrap_or_default();
    let (reply, text) = find::connect(matches)?.ask(Request::Why { slot })?;
    let why = reply.why.ok_or_else(|| Failure::new(codes::UNKNOWN, "the answer is not one to why"))?;
    show::print(&if matches.get_flag("json") { format!("{}\n", status::inner(&text)) } else { page(&why) });
    Ok(codes::OK)
}

fn page(why: &Why) -> String {
    let name = show::plain(&why.name);
    let restarts = counts(&why.restarts_total);
    let mut text = format!("slot {} of {name}: {restarts}\n", why.slot);
    if why.ends.is_empty() {
        text.push_str("no worker of it has ended without being asked to\n");
    }
    for end in &why.ends {
        text.push('\n');
        text.push_str(&entry(end));
    }
    text
}

/// `5 replacements: 3 exit, 2 reload`.
fn counts(restarts: &Restarts) -> String {
    let all = [
        (restarts.exit, "exit"),
        (restarts.signal, "signal"),
        (restarts.oom, "oom"),
        (restarts.cpu, "cpu"),
        (restarts.memory, "memory"),
        (restarts.hung, "hung"),
        (restarts.never_ready, "never ready"),
        (restarts.reload, "reload"),
        (restarts.upgrade, "upgrade"),
        (restarts.request, "request"),
    ];
    let total: u64 = all.iter().map(|(count, _)| count).sum();
    let parts: Vec<String> = all
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, reason)| format!("{count} {reason}"))
        .collect();
    match total {
        0 => "no worker was replaced".to_owned(),
        1 => format!("1 replacement: {}", parts.join(", ")),
        total => format!("{total} replacements: {}", parts.join(", ")),
    }
}

fn entry(end: &LastEnd) -> String {
    let at = end.at.get(..19).unwrap_or(&end.at).replace('T', " ");
    let ago = show::ago(&end.at).map(|ago| format!(" ({} ago)", show::span(ago))).unwrap_or_default();
    let mut text = format!("{at}{ago}  {}\n", status::ended(end));
    let cpu = end.cpu_seconds.map(|cpu| format!("  cpu {}", show::tenths(cpu))).unwrap_or_default();
    let peak = end
        .memory_peak_bytes
        .map(|peak| format!("  peak memory {}", show::size_of(peak)))
        .unwrap_or_default();
    text.push_str(&format!("    pid {}{cpu}{peak}\n", end.pid));
    if let Some(signal) = &end.signal_name {
        let sender = end.sender.as_ref().map(|sender| {
            let pid = sender.pid.map_or("outside this PID namespace".to_owned(), |pid| format!("pid {pid}"));
            format!(" from {} ({pid}, uid {})", show::plain(&sender.comm), sender.uid)
        });
        let dumped = if end.core_dumped { "; core dumped" } else { "" };
        text.push_str(&format!("    {signal}{}{dumped}\n", sender.unwrap_or_default()));
    }
    text.extend(at_limits(end).iter().map(|line| format!("    {line}\n")));
    text.extend(end.output.iter().map(|line| format!("    {}\n", show::plain(line))));
    text
}

/// What the worker has met at the limits of its cgroup.
fn at_limits(end: &LastEnd) -> Vec<String> {
    let oom = end
        .oom_limit_bytes
        .map(|most| format!("out of memory at --worker-memory-max ({})", show::size_of(most)));
    let forks = end.forks_refused.map(|count| format!("{count} forks refused by a limit of processes"));
    let cpu = end
        .cpu_throttled_seconds
        .map(|waited| format!("waited for CPU time at --worker-cpu-max for {}", show::tenths(waited)));
    [oom, forks, cpu].into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{EndReason, Sender};

    #[test]
    fn everything_that_is_known_of_an_end_is_said() {
        let end = LastEnd {
            at: "2001-02-03T04:05:06.789Z".to_owned(),
            pid: 7,
            reason: EndReason::Signal,
            exit_code: None,
            signal_name: Some("SIGSEGV".to_owned()),
            sender: Some(Sender { pid: Some(9), comm: "bash".to_owned(), uid: 5 }),
            core_dumped: true,
            oom_limit_bytes: Some(64 << 20),
            forks_refused: Some(12),
            cpu_throttled_seconds: Some(2.5),
            cpu_seconds: Some(1.25),
            memory_peak_bytes: Some(3 << 20),
            uptime_seconds: 61.0,
            output: vec!["oops".to_owned()],
        };
        let text = entry(&end);
        assert!(text.starts_with("2001-02-03 04:05:06 ("), "{text}");
        let rest = "ago)  SIGSEGV (core dumped) after 1m 1s\n    pid 7  cpu 1.2s  peak memory 3.0 MiB\n    SIGSEGV from \
                    bash (pid 9, uid 5); core dumped\n    out of memory at --worker-memory-max (64 MiB)\n    12 forks refused by \
                    a limit of processes\n    waited for CPU time at --worker-cpu-max for 2.5s\n    oops\n";
        assert!(text.ends_with(rest), "{text}");
        let restarts = Restarts { exit: 3, reload: 2, ..Restarts::default() };
        assert_eq!(counts(&restarts), "5 replacements: 3 exit, 2 reload");
        assert_eq!(counts(&Restarts::default()), "no worker was replaced");
    }
}
