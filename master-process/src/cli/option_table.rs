//! The one table of options: clap, the environment, `--help` and the documentation follow it.

use std::ffi::OsString;

use clap::builder::{OsStringValueParser, TypedValueParser, ValueParser};

use super::host::Host;
use super::usage_error::{Parsed, Reason};
use super::{addresses, users, values};
use crate::config::{LogFormat, Monitor, Orphans, Scope, Share, Stdin, StopGroup};

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

/// Makes the parser of a value. Some parsers resolve names on the host.
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
        meaning: "How many workers run. `max`: the CPUs this process may use (affinity and the cgroup's quota count); \
                  `auto`: one fewer, at least 1",
    },
    Opt {
        long: "throttle",
        short: None,
        kind: Kind::Value("DUR", |_| typed(values::duration)),
        variables: &["WORKER_THROTTLE"],
        unset: Unset::Default("1s"),
        meaning: "A worker that dies sooner than this after its start is replaced only when this has passed; one that \
                  lived longer, at once",
    },
    Opt {
        long: "throttle-max",
        short: None,
        kind: Kind::Value("DUR", |_| typed(values::duration)),
        variables: &[],
        unset: Unset::Default("30s"),
        meaning: "Consecutive early deaths in a slot double the delay up to this. Set it equal to the throttle for a \
                  constant delay; a longer throttle raises the default",
    },
    Opt {
        long: "give-up",
        short: None,
        kind: Kind::Value("N/DUR|off", |_| typed(values::give_up)),
        variables: &[],
        unset: Unset::Default("off"),
        meaning: "N early deaths within DUR, over all slots: stop everything and exit 70, for containers and CI",
    },
    Opt {
        long: "kill-timeout",
        short: None,
        kind: Kind::Value("DUR", |_| typed(values::duration)),
        variables: &["MAX_KILL_TIMEOUT"],
        unset: Unset::Default("5s"),
        meaning: "From the stop signal to SIGKILL",
    },
    Opt {
        long: "stop-signal",
        short: None,
        kind: Kind::Value("SIG", |_| typed(values::stop_signal)),
        variables: &[],
        unset: Unset::Default("TERM"),
        meaning: "The signal that stops a worker: a name with or without SIG, or a number",
    },
    Opt {
        long: "stop-group",
        short: None,
        kind: Kind::Value("leader|tree", |_| {
            choice(&[("leader", StopGroup::Leader), ("tree", StopGroup::Tree)])
        }),
        variables: &[],
        unset: Unset::Default("leader"),
        meaning: "Which processes get the stop signal first: a worker's first process, and the others of its tree when it has ended before them, or every process of its tree at once",
    },
    Opt {
        long: "ready",
        short: None,
        kind: Kind::Value("MODE", |host| typed(move |text| addresses::ready(text, host))),
        variables: &[],
        unset: Unset::Default("auto"),
        meaning: "When a worker counts as ready: `auto`, `listen`, `listen:ADDR,...`, `notify`, `notify:fd=N`, `alive:DUR` \
                  or `none`. `listen:` takes addresses as `--share-only` does, without ranges",
    },
    Opt {
        long: "ready-timeout",
        short: None,
        kind: Kind::Value("DUR", |_| typed(values::positive_duration)),
        variables: &[],
        unset: Unset::Default("60s"),
        meaning: "A worker that is not ready by then is stopped and counted as an early death if another one of its \
                  slot serves, as in a reload: that one stays. Else one line warns, and it goes on starting. A program that \
                  once needed longer has twice that, up to 1h. With `alive:DUR` the default counts from the end of DUR",
    },
    Opt {
        long: "reload-batch",
        short: None,
        kind: Kind::Value("N|N%|all", |_| typed(values::batch)),
        variables: &[],
        unset: Unset::Default("all"),
        meaning: "How many slots a reload replaces at a time",
    },
    Opt {
        long: "reload-attempts",
        short: None,
        kind: Kind::Value("N", |_| typed(values::count)),
        variables: &[],
        unset: Unset::Default("3"),
        meaning: "After this many failed new workers in a slot the reload fails, and the old workers keep serving",
    },
    Opt {
        long: "listen",
        short: None,
        kind: Kind::Repeated("ADDR", |host| typed(move |text| addresses::listen(text, host))),
        variables: &[],
        unset: Unset::Nothing("none"),
        meaning: "A socket that the supervisor opens and passes to every worker as `LISTEN_FDS` from fd 3 on: `3000`, \
                  `HOST:PORT`, `[::]:PORT`, `unix:/path`, or `NAME=ADDR` to name it. Repeat it for more; the variable \
                  separates by commas",
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
        meaning: "Workers that bind the same address share it. `slots`: each has a queue of its own, which a reload empties before the worker stops; `shared`: one queue for all; `off`: every worker binds for itself; \
                  `auto` is `slots`",
    },
    Opt {
        long: "share-only",
        short: None,
        kind: Kind::List("ADDR,...", |host| typed(move |text| addresses::pattern(text, host))),
        variables: &[],
        unset: Unset::Nothing("every address"),
        meaning: "Only these addresses are shared; every worker binds the others for itself: a port `3000` or a range \
                  `9100-9199` on any IP address, `IP:PORT`, `[::]:PORT`, `unix:/path` or `/path`, `@name` for an abstract \
                  Unix socket",
    },
    Opt {
        long: "no-share",
        short: None,
        kind: Kind::List("ADDR,...", |host| typed(move |text| addresses::pattern(text, host))),
        variables: &[],
        unset: Unset::Nothing("none"),
        meaning: "These addresses are not shared, also if `--share-only` names them",
    },
    Opt {
        long: "drain",
        short: None,
        kind: Kind::Value("DUR", |_| typed(values::duration)),
        variables: &[],
        unset: Unset::Default("200ms"),
        meaning: "How long an old worker, already out of rotation and its queue empty, still serves before the stop \
                  signal",
    },
    Opt {
        long: "orphans",
        short: None,
        kind: Kind::Value("kill|keep", |_| choice(&[("kill", Orphans::Kill), ("keep", Orphans::Keep)])),
        variables: &[],
        unset: Unset::Default("kill"),
        meaning: "What happens to the workers when the supervisor itself is killed: the kernel kills them, or they keep serving without a supervisor",
    },
    Opt {
        long: "takeover",
        short: None,
        kind: Kind::Switch,
        variables: &[],
        unset: Unset::Nothing(""),
        meaning: "Ends processes that a killed master-process has left behind, where they hold an address that is wanted: \
                  the stop signal, and SIGKILL after the kill time-out, at most 1s. Processes of a running \
                  master-process, of another user and of other programs are named and left alone",
    },
    Opt {
        long: "socket-mode",
        short: None,
        kind: Kind::Value("MODE", |_| typed(values::mode)),
        variables: &[],
        unset: Unset::Nothing("664 for --listen, the umask's for a worker's own"),
        meaning: "Permissions of every Unix socket that the supervisor holds, in octal",
    },
    Opt {
        long: "socket-owner",
        short: None,
        kind: Kind::Value("USER[:GROUP]", |host| typed(move |text| users::owner(text, host))),
        variables: &[],
        unset: Unset::Nothing("unchanged"),
        meaning: "Owner of every Unix socket that the supervisor holds, names or ids; `:GROUP` changes the group alone",
    },
    Opt {
        long: "max-memory",
        short: None,
        kind: Kind::Value("SIZE|off", |_| typed(values::size)),
        variables: &["MAX_MEMORY_ALLOWED_MB"],
        unset: Unset::Adaptive("1200MiB"),
        meaning: "Resident memory of one worker; before it is replaced its PSS decides. The default never replaces the workers \
                  of a program that is above it from the first. The variable of the Node.js module counts MiB where it has no unit",
    },
    Opt {
        long: "memory-failures",
        short: None,
        kind: Kind::Value("N", |_| typed(values::count)),
        variables: &["MEM_MONITOR_FAILURES"],
        unset: Unset::Default("10"),
        meaning: "The worker is replaced after this many samples in a row over the limit; its successor starts first",
    },
    Opt {
        long: "max-cpu",
        short: None,
        kind: Kind::Value("PERCENT|off", |_| typed(values::percent)),
        variables: &["MAX_CPU_ALLOWED"],
        unset: Unset::Adaptive("95"),
        meaning: "CPU time of one worker, in percent of one CPU as `top` counts. The default replaces only a worker that uses it \
                  in a single thread and hardly any elsewhere: a stuck event loop",
    },
    Opt {
        long: "cpu-failures",
        short: None,
        kind: Kind::Value("N", |_| typed(values::count)),
        variables: &["CPU_MONITOR_FAILURES", "CPU_MONITOR_FAILURE"],
        unset: Unset::Default("10"),
        meaning: "Likewise",
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
        meaning: "What measures the workers. `auto`: eBPF where it loads, else procfs, and one log line names the source and the reason",
    },
    Opt {
        long: "monitor-interval",
        short: None,
        kind: Kind::Value("DUR", |_| typed(values::interval)),
        variables: &[],
        unset: Unset::Default("2s"),
        meaning: "How often the workers are measured",
    },
    Opt {
        long: "monitor-delay",
        short: None,
        kind: Kind::Value("DUR", |_| typed(values::duration)),
        variables: &[],
        unset: Unset::Default("30s"),
        meaning: "How long after it became ready a worker is judged by what it uses",
    },
    Opt {
        long: "account",
        short: None,
        kind: Kind::Value("worker|tree", |_| choice(&[("worker", Scope::Worker), ("tree", Scope::Tree)])),
        variables: &[],
        unset: Unset::Default("tree"),
        meaning: "Whether what a worker's descendants use counts as the worker's",
    },
    Opt {
        long: "memory-high-signal",
        short: None,
        kind: Kind::Value("SIG", |_| typed(values::handled_signal)),
        variables: &[],
        unset: Unset::Nothing("none"),
        meaning: "Sent to a worker each time it passes 80 % of its memory limit",
    },
    Opt {
        long: "user",
        short: None,
        kind: Kind::Value("USER", |host| typed(move |text| users::account(text, host))),
        variables: &[],
        unset: Unset::Nothing("unchanged"),
        meaning: "The user of the workers, a name or an id, with the user's own groups and its `USER`, `LOGNAME`, `HOME` and `SHELL`",
    },
    Opt {
        long: "group",
        short: None,
        kind: Kind::Value("GROUP", |host| typed(move |text| users::group_id(text, host))),
        variables: &[],
        unset: Unset::Nothing("unchanged"),
        meaning: "The workers' group, a name or an id, instead of the user's first. Without a user: this group and no \
                  other",
    },
    Opt {
        long: "ambient",
        short: None,
        kind: Kind::List("CAPS", |_| typed(users::capability)),
        variables: &[],
        unset: Unset::Nothing("none"),
        meaning: "Capabilities that the workers have whatever their user, separated by commas: `net_bind_service` or \
                  `CAP_NET_BIND_SERVICE`. Every other inheritable and ambient capability of the supervisor is taken from \
                  them",
    },
    Opt {
        long: "no-new-privs",
        short: None,
        kind: Kind::Switch,
        variables: &[],
        unset: Unset::Nothing(""),
        meaning: "No worker can gain rights by a program that it runs: set-user-ID, set-group-ID and file capabilities have \
                  no effect. Sharing addresses needs this in any case where the supervisor does not have CAP_SYS_ADMIN",
    },
    Opt {
        long: "chdir",
        short: None,
        kind: Kind::Value("DIR", |host| typed(move |text| values::directory(text, host))),
        variables: &[],
        unset: Unset::Nothing("unchanged"),
        meaning: "The workers' directory, resolved again at every start, so that a `current` symlink is followed",
    },
    Opt {
        long: "umask",
        short: None,
        kind: Kind::Value("MODE", |_| typed(values::mode)),
        variables: &[],
        unset: Unset::Nothing("unchanged"),
        meaning: "The workers' umask, in octal",
    },
    Opt {
        long: "stdin",
        short: None,
        kind: Kind::Value("null|inherit", |_| choice(&[("null", Stdin::Null), ("inherit", Stdin::Inherit)])),
        variables: &[],
        unset: Unset::Default("null"),
        meaning: "What the workers read: nothing, or the supervisor's own input. A terminal is given to a single worker, as its foreground",
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
        meaning: "How the supervisor writes its log; `auto` depends on what standard error is",
    },
    Opt {
        long: "verbose",
        short: Some('v'),
        kind: Kind::Switch,
        variables: &["RUST_LOG", "DEBUG"],
        unset: Unset::Nothing(""),
        meaning: "Log more. So does `DEBUG=master-process` (or `*`); `RUST_LOG` takes `target=level` directives",
    },
    Opt {
        long: "quiet",
        short: Some('q'),
        kind: Kind::Switch,
        variables: &[],
        unset: Unset::Nothing(""),
        meaning: "Log only warnings and errors",
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
