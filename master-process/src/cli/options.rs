//! The one table of options: clap, the resolver, `--help` and the README all follow it.

/// One option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opt {
    /// The flag, without its dashes.
    pub long: &'static str,
    /// The flag's one letter, where it has one.
    pub short: Option<char>,
    /// What stands behind the flag.
    pub kind: Kind,
    /// Variables that are looked at after our own, the first that is set wins.
    pub variables: &'static [&'static str],
    /// What holds where nobody says anything.
    pub unset: Unset,
    /// For people, in Markdown.
    pub meaning: &'static str,
}

/// What stands behind a flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One value of this form.
    Value(&'static str),
    /// Any number of values of this form: the flag is repeated, the variable separates by commas.
    Values(&'static str),
    /// Nothing.
    Switch,
    /// Nothing: prints the help.
    Help,
    /// Nothing: prints the version.
    Version,
}

/// What holds where nobody says anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unset {
    /// This text, parsed like a user's.
    Default(&'static str),
    /// This text, parsed like a user's; a limit that holds less strictly than one that somebody gives.
    GivesWay(&'static str),
    /// No value; the text says to people what that means, and may be empty.
    Nothing(&'static str),
}

impl Opt {
    /// The form of the value, for the options that take one.
    #[must_use]
    pub fn value(&self) -> Option<&'static str> {
        match self.kind {
            Kind::Value(form) | Kind::Values(form) => Some(form),
            Kind::Switch | Kind::Help | Kind::Version => None,
        }
    }

    /// Our own variable, for the options that take a value.
    #[must_use]
    pub fn own_variable(&self) -> Option<String> {
        let name = self.long.replace('-', "_").to_ascii_uppercase();
        self.value().map(|_| format!("MASTER_PROCESS_{name}"))
    }

    /// Every variable that is looked at, in the order of precedence.
    #[must_use]
    pub fn all_variables(&self) -> Vec<String> {
        self.own_variable().into_iter().chain(self.variables.iter().map(|name| (*name).to_owned())).collect()
    }
}

/// The option of this name.
pub(super) fn find(long: &str) -> Option<&'static Opt> {
    OPTIONS.iter().find(|opt| opt.long == long)
}

/// Every option of this version, in the order of the help.
pub const OPTIONS: &[Opt] = &[
    Opt {
        long: "workers",
        short: Some('w'),
        kind: Kind::Value("N|max|auto"),
        variables: &["WORKERS"],
        unset: Unset::Default("1"),
        meaning: "How many workers run. `max`: the CPUs this process may use (affinity and the cgroup's quota count); \
                  `auto`: one fewer, at least 1",
    },
    Opt {
        long: "throttle",
        short: None,
        kind: Kind::Value("DUR"),
        variables: &["WORKER_THROTTLE"],
        unset: Unset::Default("1s"),
        meaning: "A worker that dies sooner than this after its start is replaced only when this has passed; one that \
                  lived longer, at once",
    },
    Opt {
        long: "throttle-max",
        short: None,
        kind: Kind::Value("DUR"),
        variables: &[],
        unset: Unset::Default("30s"),
        meaning: "Consecutive early deaths in a slot double the delay up to this. Set it equal to the throttle for a \
                  constant delay; a longer throttle raises the default",
    },
    Opt {
        long: "give-up",
        short: None,
        kind: Kind::Value("N/DUR|off"),
        variables: &[],
        unset: Unset::Default("off"),
        meaning: "N early deaths within DUR, over all slots: stop everything and exit 70, for containers and CI",
    },
    Opt {
        long: "kill-timeout",
        short: None,
        kind: Kind::Value("DUR"),
        variables: &["MAX_KILL_TIMEOUT"],
        unset: Unset::Default("5s"),
        meaning: "From the stop signal to SIGKILL",
    },
    Opt {
        long: "stop-signal",
        short: None,
        kind: Kind::Value("SIG"),
        variables: &[],
        unset: Unset::Default("TERM"),
        meaning: "What asks a worker to drain and leave: a name with or without SIG, or a number",
    },
    Opt {
        long: "stop-group",
        short: None,
        kind: Kind::Value("leader|tree"),
        variables: &[],
        unset: Unset::Default("leader"),
        meaning: "Who gets the stop signal first: a worker's first process, and the others of its tree when that has left \
                  before them, or every process of its tree at once",
    },
    Opt {
        long: "ready",
        short: None,
        kind: Kind::Value("MODE"),
        variables: &[],
        unset: Unset::Default("auto"),
        meaning: "When a worker counts as ready: `auto`, `listen`, `listen:ADDR,...`, `notify`, `notify:fd=N`, `alive:DUR` \
                  or `none`. `listen:` takes addresses as `--share-only` does, without ranges",
    },
    Opt {
        long: "ready-timeout",
        short: None,
        kind: Kind::Value("DUR"),
        variables: &[],
        unset: Unset::Default("60s"),
        meaning: "A worker that is not ready by then is stopped and counted as an early death if another one of its \
                  slot serves, as in a reload: that one stays. Else one line warns, and it goes on starting. A program that \
                  once needed longer has twice that, up to 1h. With `alive:DUR` the default counts from the end of DUR",
    },
    Opt {
        long: "reload-batch",
        short: None,
        kind: Kind::Value("N|N%|all"),
        variables: &[],
        unset: Unset::Default("all"),
        meaning: "How many slots a reload replaces at a time",
    },
    Opt {
        long: "reload-attempts",
        short: None,
        kind: Kind::Value("N"),
        variables: &[],
        unset: Unset::Default("3"),
        meaning: "A slot whose new worker failed this often gives the reload up: what is old stays and serves",
    },
    Opt {
        long: "listen",
        short: None,
        kind: Kind::Values("ADDR"),
        variables: &[],
        unset: Unset::Nothing("none"),
        meaning: "A socket that the supervisor opens and hands to every worker as `LISTEN_FDS` from fd 3 on: `3000`, \
                  `HOST:PORT`, `[::]:PORT`, `unix:/path`, or `NAME=ADDR` to name it. Repeat it for more; the variable \
                  separates by commas",
    },
    Opt {
        long: "share",
        short: None,
        kind: Kind::Value("auto|slots|shared|off"),
        variables: &[],
        unset: Unset::Default("auto"),
        meaning: "Workers that bind the same address share it without knowing. `slots`: each has a queue of its own, which a \
                  reload empties before the worker goes; `shared`: one queue for all; `off`: every worker binds for itself; \
                  `auto` is `slots`",
    },
    Opt {
        long: "share-only",
        short: None,
        kind: Kind::Values("ADDR,..."),
        variables: &[],
        unset: Unset::Nothing("every address"),
        meaning: "Only these addresses are shared; every worker binds the others for itself: a port `3000` or a range \
                  `9100-9199` on any IP address, `IP:PORT`, `[::]:PORT`, `unix:/path` or `/path`, `@name` for an abstract \
                  Unix socket",
    },
    Opt {
        long: "no-share",
        short: None,
        kind: Kind::Values("ADDR,..."),
        variables: &[],
        unset: Unset::Nothing("none"),
        meaning: "These addresses are not shared, also if `--share-only` names them",
    },
    Opt {
        long: "drain",
        short: None,
        kind: Kind::Value("DUR"),
        variables: &[],
        unset: Unset::Default("200ms"),
        meaning: "How long an old worker, already out of rotation and its queue empty, still serves before the stop \
                  signal",
    },
    Opt {
        long: "orphans",
        short: None,
        kind: Kind::Value("kill|keep"),
        variables: &[],
        unset: Unset::Default("kill"),
        meaning: "What becomes of the workers when the supervisor itself is killed: the kernel kills them, or they \
                  serve on with nobody to replace them",
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
        kind: Kind::Value("MODE"),
        variables: &[],
        unset: Unset::Nothing("664 for --listen, the umask's for a worker's own"),
        meaning: "Permissions of every Unix socket that the supervisor holds, in octal",
    },
    Opt {
        long: "socket-owner",
        short: None,
        kind: Kind::Value("USER[:GROUP]"),
        variables: &[],
        unset: Unset::Nothing("unchanged"),
        meaning: "Owner of every Unix socket that the supervisor holds, names or ids; `:GROUP` changes the group alone",
    },
    Opt {
        long: "max-memory",
        short: None,
        kind: Kind::Value("SIZE|off"),
        variables: &["MAX_MEMORY_ALLOWED_MB"],
        unset: Unset::GivesWay("1200MiB"),
        meaning: "Resident memory of one worker; before it is replaced its PSS decides. The default never replaces the workers \
                  of a program that is above it from the first. The ancestor's variable counts MiB where it has no unit",
    },
    Opt {
        long: "memory-failures",
        short: None,
        kind: Kind::Value("N"),
        variables: &["MEM_MONITOR_FAILURES"],
        unset: Unset::Default("10"),
        meaning: "So many samples in a row over it, and the worker is replaced: its successor starts first",
    },
    Opt {
        long: "max-cpu",
        short: None,
        kind: Kind::Value("PERCENT|off"),
        variables: &["MAX_CPU_ALLOWED"],
        unset: Unset::GivesWay("95"),
        meaning: "CPU time of one worker, in percent of one CPU as `top` counts. The default replaces only a worker that uses it \
                  in a single thread and hardly any elsewhere: an event loop that is stuck",
    },
    Opt {
        long: "cpu-failures",
        short: None,
        kind: Kind::Value("N"),
        variables: &["CPU_MONITOR_FAILURES", "CPU_MONITOR_FAILURE"],
        unset: Unset::Default("10"),
        meaning: "Likewise",
    },
    Opt {
        long: "monitor",
        short: None,
        kind: Kind::Value("auto|ebpf|procfs|off"),
        variables: &[],
        unset: Unset::Default("auto"),
        meaning: "What measures the workers. `auto`: eBPF where it loads, else procfs, and one line says which and why",
    },
    Opt {
        long: "monitor-interval",
        short: None,
        kind: Kind::Value("DUR"),
        variables: &[],
        unset: Unset::Default("2s"),
        meaning: "How often the workers are measured",
    },
    Opt {
        long: "monitor-delay",
        short: None,
        kind: Kind::Value("DUR"),
        variables: &[],
        unset: Unset::Default("30s"),
        meaning: "How long after it became ready a worker is judged by what it uses",
    },
    Opt {
        long: "account",
        short: None,
        kind: Kind::Value("worker|tree"),
        variables: &[],
        unset: Unset::Default("tree"),
        meaning: "Whether what a worker's descendants use counts as the worker's",
    },
    Opt {
        long: "memory-high-signal",
        short: None,
        kind: Kind::Value("SIG"),
        variables: &[],
        unset: Unset::Nothing("none"),
        meaning: "Sent to a worker each time it passes 80 % of its memory limit",
    },
    Opt {
        long: "user",
        short: None,
        kind: Kind::Value("USER"),
        variables: &[],
        unset: Unset::Nothing("unchanged"),
        meaning: "Who the workers run as, a name or an id, with the user's own groups and its `USER`, `LOGNAME`, `HOME` and `SHELL`",
    },
    Opt {
        long: "group",
        short: None,
        kind: Kind::Value("GROUP"),
        variables: &[],
        unset: Unset::Nothing("unchanged"),
        meaning: "The workers' group, a name or an id, instead of the user's first. Without a user: this group and no \
                  other",
    },
    Opt {
        long: "ambient",
        short: None,
        kind: Kind::Values("CAPS"),
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
        kind: Kind::Value("DIR"),
        variables: &[],
        unset: Unset::Nothing("unchanged"),
        meaning: "The workers' directory, resolved again at every start, so that a `current` symlink is followed",
    },
    Opt {
        long: "umask",
        short: None,
        kind: Kind::Value("MODE"),
        variables: &[],
        unset: Unset::Nothing("unchanged"),
        meaning: "The workers' umask, in octal",
    },
    Opt {
        long: "stdin",
        short: None,
        kind: Kind::Value("null|inherit"),
        variables: &[],
        unset: Unset::Default("null"),
        meaning: "What the workers read: nothing, or the supervisor's own input. A terminal is given to a single worker, as its foreground",
    },
    Opt {
        long: "log-format",
        short: None,
        kind: Kind::Value("auto|pretty|json|journald"),
        variables: &[],
        unset: Unset::Default("auto"),
        meaning: "How the supervisor writes its log; `auto` goes by what standard error is",
    },
    Opt {
        long: "verbose",
        short: Some('v'),
        kind: Kind::Switch,
        variables: &["RUST_LOG", "DEBUG"],
        unset: Unset::Nothing(""),
        meaning: "Say more. So does `DEBUG=master-process` (or `*`); `RUST_LOG` takes `target=level` directives",
    },
    Opt {
        long: "quiet",
        short: Some('q'),
        kind: Kind::Switch,
        variables: &[],
        unset: Unset::Nothing(""),
        meaning: "Say only warnings and errors",
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
