//! The one table of options: clap, the environment, `--help` and the documentation follow it.

use std::ffi::OsString;

use clap::builder::{OsStringValueParser, TypedValueParser, ValueParser};

use super::host::Host;
use super::usage_error::{Parsed, Reason};
use super::{addresses, users, values};
use crate::config::{LogFormat, Monitor, OnUpgrade, Orphans, Scope, Share, Stdin, StopGroup};

/// One option.
#[derive(Debug, Clone, Copy)]
pub(super) struct Opt {
    /// The flag, without its dashes.
    pub(super) long: &'static str,
    /// The short flag.
    pub(super) short: Option<char>,
    /// What follows the flag.
    pub(super) kind: Kind,
    /// The older variables, in order of precedence. The option's own variable comes before them.
    pub(super) variables: &'static [&'static str],
    /// What applies without a flag and without a variable.
    pub(super) unset: Unset,
    /// The documentation, in Markdown.
    pub(super) meaning: &'static str,
}

/// What follows a flag. The text is the form of the value.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    /// One value.
    Value(&'static str, Parser),
    /// One value, and the flag can be repeated. The variable separates the values by commas.
    Repeated(&'static str, Parser),
    /// Values separated by commas, and the flag can be repeated.
    List(&'static str, Parser),
    /// Nothing.
    Switch,
    /// Nothing: prints the help.
    Help,
    /// Nothing: prints the version.
    Version,
}

/// Makes the parser of a value. Some parsers look names up on the host.
pub(super) type Parser = fn(&'static dyn Host) -> ValueParser;

/// What applies without a flag and without a variable.
#[derive(Debug, Clone, Copy)]
pub(super) enum Unset {
    /// This value.
    Default(&'static str),
    /// This value, as a limit that is less strict than one that the user sets.
    Adaptive(&'static str),
    /// No value. The text documents what that means, and may be empty.
    Nothing(&'static str),
}

impl Opt {
    /// The form of the value, for the options that take one.
    pub(super) fn value(&self) -> Option<&'static str> {
        match self.kind {
            Kind::Value(form, _) | Kind::Repeated(form, _) | Kind::List(form, _) => Some(form),
            Kind::Switch | Kind::Help | Kind::Version => None,
        }
    }

    /// The option's own variable, for the options that take a value.
    pub(super) fn own_variable(&self) -> Option<String> {
        let name = self.long.replace('-', "_").to_ascii_uppercase();
        self.value().map(|_| format!("MASTER_PROCESS_{name}"))
    }

    /// Every variable of the option, in order of precedence.
    pub(super) fn all_variables(&self) -> Vec<String> {
        self.own_variable().into_iter().chain(self.variables.iter().map(|name| (*name).to_owned())).collect()
    }
}

/// The option with this flag.
pub(super) fn find(long: &str) -> Option<&'static Opt> {
    OPTIONS.iter().find(|opt| opt.long == long)
}

/// A parser of UTF-8 text. clap's own does not name the flag of a value that is not UTF-8.
fn typed<T: Clone + Send + Sync + 'static>(
    parse: impl Fn(&str) -> Parsed<T> + Clone + Send + Sync + 'static,
) -> ValueParser {
    OsStringValueParser::new()
        .try_map(move |raw: OsString| match raw.to_str() {
            Some(text) => parse(text),
            None => Err(Reason::from("not UTF-8; expected plain text")),
        })
        .into()
}

/// A parser of the words of `choices`.
fn choice<T: Copy + Send + Sync + 'static>(choices: &'static [(&'static str, T)]) -> ValueParser {
    typed(move |text| values::choice(text, choices))
}

/// Every option, in the order of the help.
pub(super) const OPTIONS: &[Opt] = &[
    Opt {
        long: "workers",
        short: Some('w'),
        kind: Kind::Value("N|max|auto", |host| typed(move |text| values::workers(text, || host.cpus()))),
        variables: &["WORKERS"],
        unset: Unset::Default("1"),
        meaning: "Number of workers. `max`: the CPUs that this process may use, by its affinity and the \
                  quota of its cgroup; `auto`: one fewer, at least 1",
    },
    Opt {
        long: "throttle",
        short: None,
        kind: Kind::Value("DUR", |_| typed(values::duration)),
        variables: &["WORKER_THROTTLE"],
        unset: Unset::Default("1s"),
        meaning: "Shortest time from one start of a worker to the next in its slot. A worker that exits \
                  sooner is replaced when this time has passed, and one that ran longer is replaced at once",
    },
    Opt {
        long: "throttle-max",
        short: None,
        kind: Kind::Value("DUR", |_| typed(values::duration)),
        variables: &[],
        unset: Unset::Default("30s"),
        meaning: "Each further early exit in a slot doubles the delay, up to this. With the value of \
                  `--throttle` the delay is constant. A longer `--throttle` raises the default",
    },
    Opt {
        long: "give-up",
        short: None,
        kind: Kind::Value("N/DUR|off", |_| typed(values::give_up)),
        variables: &[],
        unset: Unset::Default("off"),
        meaning: "After N early exits within DUR, counted over all slots, stop all workers and exit with \
                  code 70; for containers and CI",
    },
    Opt {
        long: "kill-timeout",
        short: None,
        kind: Kind::Value("DUR", |_| typed(values::duration)),
        variables: &["MAX_KILL_TIMEOUT"],
        unset: Unset::Default("5s"),
        meaning: "Time from the stop signal to SIGKILL",
    },
    Opt {
        long: "stop-signal",
        short: None,
        kind: Kind::Value("SIG", |_| typed(values::stop_signal)),
        variables: &[],
        unset: Unset::Default("TERM"),
        meaning: "Signal that asks a worker to stop: a name, with or without SIG, or a number",
    },
    Opt {
        long: "stop-group",
        short: None,
        kind: Kind::Value("leader|tree", |_| {
            choice(&[("leader", StopGroup::Leader), ("tree", StopGroup::Tree)])
        }),
        variables: &[],
        unset: Unset::Default("leader"),
        meaning: "Processes that get the stop signal. `leader`: the first process of a worker, and the \
                  others if it exits before them; `tree`: all processes of the worker at once",
    },
    Opt {
        long: "ready",
        short: None,
        kind: Kind::Value("MODE", |host| typed(move |text| addresses::ready(text, host))),
        variables: &[],
        unset: Unset::Default("auto"),
        meaning: "When a worker is ready: `auto`, `listen`, `listen:ADDR,...`, `notify`, `notify:fd=N`, \
                  `alive:DUR` or `none`. `listen:` takes addresses as `--share-only` does, but no ranges",
    },
    Opt {
        long: "ready-timeout",
        short: None,
        kind: Kind::Value("DUR", |_| typed(values::positive_duration)),
        variables: &[],
        unset: Unset::Default("60s"),
        meaning: "Time until a worker must be ready. A worker that is late is stopped, as an early exit, if \
                  another worker of its slot serves, as in a reload. If none does, one warning is logged and \
                  the start continues. A program that has needed longer before has twice that time, up to \
                  1h. With `alive:DUR` the default is counted from the end of DUR",
    },
    Opt {
        long: "reload-batch",
        short: None,
        kind: Kind::Value("N|N%|all", |_| typed(values::batch)),
        variables: &[],
        unset: Unset::Default("all"),
        meaning: "Number of slots that a reload replaces at a time",
    },
    Opt {
        long: "reload-attempts",
        short: None,
        kind: Kind::Value("N", |_| typed(values::count)),
        variables: &[],
        unset: Unset::Default("3"),
        meaning: "Failed starts of new workers in one slot after which a reload fails; the old workers keep \
                  serving",
    },
    Opt {
        long: "start-gate",
        short: None,
        kind: Kind::Value("N|off", |_| typed(values::start_gate)),
        variables: &[],
        unset: Unset::Nothing("2 for each CPU of the host"),
        meaning: "Number of workers that all supervisors of the host, or of one user, start at the same time. \
                  A start waits for 2min at most, and the replacement of a crashed worker for the time of \
                  `--throttle`. A supervisor is not limited while no other one starts workers",
    },
    Opt {
        long: "preload",
        short: None,
        kind: Kind::Value("CMD", |_| typed(values::command_line)),
        variables: &[],
        unset: Unset::Nothing("none"),
        meaning: "Command that runs once for each generation, before its first worker. Each worker of the \
                  generation gets its standard output as a file: `PRELOAD_FILE`. If it fails, or does not end \
                  within `--ready-timeout`, the reload fails. The words are split as in a shell; nothing is \
                  expanded, and no shell runs: `sh -c '...'` starts one",
    },
    Opt {
        long: "preload-max",
        short: None,
        kind: Kind::Value("SIZE", |_| typed(values::limit)),
        variables: &[],
        unset: Unset::Default("1GiB"),
        meaning: "Largest standard output of the command of `--preload`, and of any other file that it writes",
    },
    Opt {
        long: "listen",
        short: None,
        kind: Kind::Repeated("ADDR", |host| typed(move |text| addresses::listen(text, host))),
        variables: &[],
        unset: Unset::Nothing("none"),
        meaning: "Socket that the supervisor opens and passes to every worker, from descriptor 3 on \
                  (`LISTEN_FDS`): `3000`, `HOST:PORT`, `[::]:PORT`, `unix:/path`, or `NAME=ADDR` to give it \
                  a name. In the variable, commas separate several",
    },
    Opt {
        long: "share",
        short: None,
        kind: Kind::Value("auto|slots|shared|off", |_| {
            choice(&[
                ("auto", Share::Auto),
                ("slots", Share::Slots),
                ("shared", Share::Shared),
                ("off", Share::Off),
            ])
        }),
        variables: &[],
        unset: Unset::Default("auto"),
        meaning: "How workers share an address that several of them bind. `slots`: each has its own queue, \
                  which is empty before a reload stops the worker; `shared`: one queue for all; `off`: each \
                  worker binds for itself; `auto`: `slots`",
    },
    Opt {
        long: "share-only",
        short: None,
        kind: Kind::List("ADDR,...", |host| typed(move |text| addresses::pattern(text, host))),
        variables: &[],
        unset: Unset::Nothing("every address"),
        meaning: "Share these addresses only. A port `3000` or a range `9100-9199` on any IP address, \
                  `IP:PORT`, `[::]:PORT`, `unix:/path` or `/path`, `@name` for an abstract Unix socket. Each \
                  worker binds all other addresses for itself",
    },
    Opt {
        long: "no-share",
        short: None,
        kind: Kind::List("ADDR,...", |host| typed(move |text| addresses::pattern(text, host))),
        variables: &[],
        unset: Unset::Nothing("none"),
        meaning: "Do not share these addresses, even if `--share-only` includes them",
    },
    Opt {
        long: "drain",
        short: None,
        kind: Kind::Value("DUR", |_| typed(values::duration)),
        variables: &[],
        unset: Unset::Default("200ms"),
        meaning: "Time that an old worker keeps serving its connections before the stop signal, once it gets \
                  no new ones and its queue is empty",
    },
    Opt {
        long: "on-upgrade",
        short: None,
        kind: Kind::Value("exec|exit|ignore", |_| {
            choice(&[("exec", OnUpgrade::Exec), ("exit", OnUpgrade::Exit), ("ignore", OnUpgrade::Ignore)])
        }),
        variables: &[],
        unset: Unset::Default("exec"),
        meaning: "What a reload does when the file of this program has changed. `exec`: the new program takes over with the \
                  same pid, and the workers are not touched by that; `exit`: stop every worker and exit with 1, so that a \
                  service manager starts the new program; `ignore`: nothing",
    },
    Opt {
        long: "orphans",
        short: None,
        kind: Kind::Value("kill|keep", |_| choice(&[("kill", Orphans::Kill), ("keep", Orphans::Keep)])),
        variables: &[],
        unset: Unset::Default("kill"),
        meaning: "What happens to the workers if the supervisor is killed. `kill`: the kernel kills them; \
                  `keep`: they keep serving, and none is replaced",
    },
    Opt {
        long: "takeover",
        short: None,
        kind: Kind::Switch,
        variables: &[],
        unset: Unset::Nothing(""),
        meaning: "Stop processes that a killed master-process left behind, if they hold an address that is \
                  needed: with the stop signal, and with SIGKILL after the kill time-out, 1s at most. \
                  Processes of a running master-process, of another user or of another program are reported \
                  and not touched",
    },
    Opt {
        long: "socket-mode",
        short: None,
        kind: Kind::Value("MODE", |_| typed(values::mode)),
        variables: &[],
        unset: Unset::Nothing("664 for --listen, by the umask for a worker's own"),
        meaning: "Permissions of each Unix socket that the supervisor holds, in octal",
    },
    Opt {
        long: "socket-owner",
        short: None,
        kind: Kind::Value("USER[:GROUP]", |host| typed(move |text| users::owner(text, host))),
        variables: &[],
        unset: Unset::Nothing("unchanged"),
        meaning: "Owner of each Unix socket that the supervisor holds, by name or id; `:GROUP` changes the \
                  group only",
    },
    Opt {
        long: "max-memory",
        short: None,
        kind: Kind::Value("SIZE|off", |_| typed(values::size)),
        variables: &["MAX_MEMORY_ALLOWED_MB"],
        unset: Unset::Adaptive("1200MiB"),
        meaning: "Limit for the resident memory of a worker. Before a worker is replaced, its PSS is \
                  measured, and decides. The default does not replace workers of a program that exceeds it \
                  from the start. `MAX_MEMORY_ALLOWED_MB` is in MiB if it has no unit",
    },
    Opt {
        long: "memory-failures",
        short: None,
        kind: Kind::Value("N", |_| typed(values::count)),
        variables: &["MEM_MONITOR_FAILURES"],
        unset: Unset::Default("10"),
        meaning: "Consecutive samples above `--max-memory` after which a worker is replaced; the new worker \
                  starts first",
    },
    Opt {
        long: "max-cpu",
        short: None,
        kind: Kind::Value("PERCENT|off", |_| typed(values::percent)),
        variables: &["MAX_CPU_ALLOWED"],
        unset: Unset::Adaptive("95"),
        meaning: "Limit for the CPU time of a worker, in percent of one CPU, as `top` counts. The default \
                  replaces only a worker that spends it in one thread and almost none in others, such as a \
                  stuck event loop",
    },
    Opt {
        long: "cpu-failures",
        short: None,
        kind: Kind::Value("N", |_| typed(values::count)),
        variables: &["CPU_MONITOR_FAILURES", "CPU_MONITOR_FAILURE"],
        unset: Unset::Default("10"),
        meaning: "Consecutive samples above `--max-cpu` after which a worker is replaced; the new worker \
                  starts first",
    },
    Opt {
        long: "monitor",
        short: None,
        kind: Kind::Value("auto|ebpf|procfs|off", |_| {
            choice(&[
                ("auto", Monitor::Auto),
                ("ebpf", Monitor::Ebpf),
                ("procfs", Monitor::Procfs),
                ("off", Monitor::Off),
            ])
        }),
        variables: &[],
        unset: Unset::Default("auto"),
        meaning: "What measures the workers. `auto`: eBPF, or procfs if eBPF is unavailable; the log says \
                  which, and why",
    },
    Opt {
        long: "monitor-interval",
        short: None,
        kind: Kind::Value("DUR", |_| typed(values::interval)),
        variables: &[],
        unset: Unset::Default("2s"),
        meaning: "Time from one sample of the workers to the next",
    },
    Opt {
        long: "monitor-delay",
        short: None,
        kind: Kind::Value("DUR", |_| typed(values::duration)),
        variables: &[],
        unset: Unset::Default("30s"),
        meaning: "Time after a worker is ready until the limits apply to it",
    },
    Opt {
        long: "account",
        short: None,
        kind: Kind::Value("worker|tree", |_| choice(&[("worker", Scope::Worker), ("tree", Scope::Tree)])),
        variables: &[],
        unset: Unset::Default("tree"),
        meaning: "What counts as a worker's CPU time and memory. `worker`: that of its first process; \
                  `tree`: that of all its descendants as well",
    },
    Opt {
        long: "memory-high-signal",
        short: None,
        kind: Kind::Value("SIG", |_| typed(values::handled_signal)),
        variables: &[],
        unset: Unset::Nothing("none"),
        meaning: "Signal that a worker gets each time its memory rises above 80 % of `--max-memory`",
    },
    Opt {
        long: "worker-memory-max",
        short: None,
        kind: Kind::Value("SIZE|off", |_| typed(values::cgroup_memory)),
        variables: &[],
        unset: Unset::Default("off"),
        meaning: "Memory of the cgroup of a worker, as systemd's `MemoryMax=`: when more is needed, the kernel \
                  kills all processes of this worker. Takes a cgroup that is delegated to the supervisor \
                  (`Delegate=yes`), or `--cgroup`",
    },
    Opt {
        long: "worker-memory-high",
        short: None,
        kind: Kind::Value("SIZE|off", |_| typed(values::cgroup_memory)),
        variables: &[],
        unset: Unset::Default("off"),
        meaning: "Memory above which the kernel slows a worker down and takes memory back from it, as \
                  systemd's `MemoryHigh=`; at most `--worker-memory-max`",
    },
    Opt {
        long: "worker-cpu-max",
        short: None,
        kind: Kind::Value("PERCENT|off", |_| typed(values::cgroup_cpu)),
        variables: &[],
        unset: Unset::Default("off"),
        meaning: "CPU time of all processes of a worker together, in percent of one CPU, as systemd's \
                  `CPUQuota=`: they wait while it is used up. At least 1%",
    },
    Opt {
        long: "worker-pids-max",
        short: None,
        kind: Kind::Value("N|off", |_| typed(values::cgroup_pids)),
        variables: &[],
        unset: Unset::Default("off"),
        meaning: "Processes and threads of a worker, as systemd's `TasksMax=`: it cannot start more",
    },
    Opt {
        long: "cgroup",
        short: None,
        kind: Kind::Value("PATH", |_| typed(values::cgroup_path)),
        variables: &[],
        unset: Unset::Nothing("the cgroup that is delegated to the supervisor, if there is one"),
        meaning: "Path of the cgroup below which each worker gets one, such as `/sys/fs/cgroup/app`. It is made \
                  if its parent exists. For root where no service manager delegates a cgroup",
    },
    Opt {
        long: "user",
        short: None,
        kind: Kind::Value("USER", |host| typed(move |text| users::account(text, host))),
        variables: &[],
        unset: Unset::Nothing("unchanged"),
        meaning: "User of the workers, by name or id. They have the groups of this user and its `USER`, \
                  `LOGNAME`, `HOME` and `SHELL`",
    },
    Opt {
        long: "group",
        short: None,
        kind: Kind::Value("GROUP", |host| typed(move |text| users::group_id(text, host))),
        variables: &[],
        unset: Unset::Nothing("unchanged"),
        meaning: "Group of the workers, by name or id, instead of the first group of `--user`. Without \
                  `--user` it is their only group",
    },
    Opt {
        long: "ambient",
        short: None,
        kind: Kind::List("CAPS", |_| typed(users::capability)),
        variables: &[],
        unset: Unset::Nothing("none"),
        meaning: "Capabilities that the workers keep, whatever their user, separated by commas: \
                  `net_bind_service` or `CAP_NET_BIND_SERVICE`. They get no other inheritable or ambient \
                  capability of the supervisor",
    },
    Opt {
        long: "no-new-privs",
        short: None,
        kind: Kind::Switch,
        variables: &[],
        unset: Unset::Nothing(""),
        meaning: "Do not let workers gain privileges from programs that they execute: set-user-ID, \
                  set-group-ID and file capabilities have no effect. Always on if addresses are shared and \
                  the supervisor does not have CAP_SYS_ADMIN",
    },
    Opt {
        long: "chdir",
        short: None,
        kind: Kind::Value("DIR", |host| typed(move |text| values::directory(text, host))),
        variables: &[],
        unset: Unset::Nothing("unchanged"),
        meaning: "Working directory of the workers. It is resolved again at each start, so a changed \
                  `current` symlink takes effect",
    },
    Opt {
        long: "umask",
        short: None,
        kind: Kind::Value("MODE", |_| typed(values::mode)),
        variables: &[],
        unset: Unset::Nothing("unchanged"),
        meaning: "Umask of the workers, in octal",
    },
    Opt {
        long: "stdin",
        short: None,
        kind: Kind::Value("null|inherit", |_| choice(&[("null", Stdin::Null), ("inherit", Stdin::Inherit)])),
        variables: &[],
        unset: Unset::Default("null"),
        meaning: "Standard input of the workers. `null`: `/dev/null`; `inherit`: that of the supervisor. A \
                  terminal is given to a worker that is the only one, as its foreground process",
    },
    Opt {
        long: "name",
        short: None,
        kind: Kind::Value("NAME", |_| typed(values::instance_name)),
        variables: &[],
        unset: Unset::Nothing("base name of the command"),
        meaning: "Name of this instance for `master-process status` and the other commands. It is an error \
                  if a running supervisor has it. The default gets a number if it is taken",
    },
    Opt {
        long: "control",
        short: None,
        kind: Kind::Value("PATH|off", |host| typed(move |text| values::control(text, host))),
        variables: &[],
        unset: Unset::Nothing(
            "NAME.sock in `$RUNTIME_DIRECTORY`, `/run/master-process` or `$XDG_RUNTIME_DIR/master-process`",
        ),
        meaning: "Path of the control socket, which the commands use. `off`: there is none",
    },
    Opt {
        long: "control-group",
        short: None,
        kind: Kind::Value("GROUP", |host| typed(move |text| users::group_id(text, host))),
        variables: &[],
        unset: Unset::Nothing("none"),
        meaning: "Group, by name or id, whose members may use the control socket besides root and the user \
                  of the supervisor",
    },
    Opt {
        long: "metrics",
        short: None,
        kind: Kind::Value("ADDR|off", |host| typed(move |text| addresses::metrics(text, host))),
        variables: &[],
        unset: Unset::Default("off"),
        meaning: "Serve `/metrics`, `/healthz` and `/readyz` over HTTP: a port, `HOST:PORT` or `unix:/path`. Whoever \
                  can connect can read them",
    },
    Opt {
        long: "log-format",
        short: None,
        kind: Kind::Value("auto|pretty|json|journald", |_| {
            choice(&[
                ("auto", LogFormat::Auto),
                ("pretty", LogFormat::Pretty),
                ("json", LogFormat::Json),
                ("journald", LogFormat::Journald),
            ])
        }),
        variables: &[],
        unset: Unset::Default("auto"),
        meaning: "Format of the log. `auto` depends on what standard error is",
    },
    Opt {
        long: "verbose",
        short: Some('v'),
        kind: Kind::Switch,
        variables: &["RUST_LOG", "DEBUG"],
        unset: Unset::Nothing(""),
        meaning: "Log more. `DEBUG=master-process` (or `*`) does the same; `RUST_LOG` takes `target=level` \
                  directives",
    },
    Opt {
        long: "quiet",
        short: Some('q'),
        kind: Kind::Switch,
        variables: &[],
        unset: Unset::Nothing(""),
        meaning: "Log warnings and errors only",
    },
    Opt {
        long: "help",
        short: Some('h'),
        kind: Kind::Help,
        variables: &[],
        unset: Unset::Nothing(""),
        meaning: "Print this help",
    },
    Opt {
        long: "version",
        short: Some('V'),
        kind: Kind::Version,
        variables: &[],
        unset: Unset::Nothing(""),
        meaning: "Print the version",
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_flag_letter_or_variable_is_used_twice() {
        let mut names: Vec<String> = Vec::new();
        for opt in OPTIONS {
            names.push(format!("--{}", opt.long));
            names.extend(opt.short.map(|short| format!("-{short}")));
            names.extend(opt.all_variables());
        }
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count, "{names:?}");
    }

    #[test]
    fn own_variable_is_the_flag_in_capitals() {
        let name = find("ready-timeout").and_then(Opt::own_variable);
        assert_eq!(name.as_deref(), Some("MASTER_PROCESS_READY_TIMEOUT"));
    }

    #[test]
    fn a_switch_has_no_variable_of_its_own() {
        assert_eq!(find("quiet").and_then(Opt::own_variable), None);
    }
}
