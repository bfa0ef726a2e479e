//! The configuration of the supervisor: plain, validated data, with no text left to parse.

mod capability_set;
mod share_rules;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use capability_set::Capabilities;
pub use share_rules::{AddressPattern, ShareRules};

/// Everything that the command line and the environment decide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The worker's command and its arguments; never empty.
    pub command: Vec<OsString>,
    /// How many workers run, 1 to [`MAX_WORKERS`].
    pub workers: u32,
    /// A worker that exits sooner than this after its start is replaced only after this time.
    pub throttle: Duration,
    /// The largest delay that consecutive early deaths of a slot can double to; at least `throttle`.
    pub throttle_max: Duration,
    /// The early deaths within a time that end the supervisor. `None`: it never gives up.
    pub give_up: Option<GiveUp>,
    /// The time from the stop signal to SIGKILL.
    pub kill_timeout: Duration,
    /// How long a worker that is out of rotation, its queue empty, still serves before the stop signal.
    pub drain: Duration,
    /// The signal that stops a worker.
    pub stop_signal: Signal,
    /// The processes that get the stop signal first.
    pub stop_group: StopGroup,
    /// When a worker counts as ready.
    pub ready: ReadyMode,
    /// The minimum time that a start can take. A late worker is stopped if another worker of its slot serves. If none does,
    /// it goes on starting.
    pub ready_timeout: Duration,
    /// How many slots a reload replaces at a time.
    pub reload_batch: Batch,
    /// The failed starts of one slot after which a reload fails; at least 1.
    pub reload_attempts: u32,
    /// How many starts of all supervisors of this user may be in progress at the same time. `None`: any number.
    pub start_gate: Option<u32>,
    /// The command that runs once for each generation before its first worker, and its arguments; never empty. `None`:
    /// there is none.
    pub preload: Option<Vec<OsString>>,
    /// The largest output of that command, in bytes; at least 1.
    pub preload_max: u64,
    /// What a reload does when the file of this program has changed.
    pub on_upgrade: OnUpgrade,
    /// The resource limits of a worker.
    pub limits: Limits,
    /// The limits of the cgroup of a worker.
    pub cgroup_limits: CgroupLimits,
    /// The path of the cgroup below which the workers' cgroups are made. `None`: the one that is delegated to the
    /// supervisor, if there is one.
    pub cgroup: Option<PathBuf>,
    /// The source of the measurements.
    pub monitor: Monitor,
    /// The processes whose resource use counts as the worker's.
    pub account: Scope,
    /// The signal that a worker gets when it passes 80 % of its memory limit.
    pub memory_high_signal: Option<Signal>,
    /// The sockets that the supervisor opens and passes to every worker.
    pub listen: Vec<Listen>,
    /// How the workers' own addresses are shared.
    pub share: Share,
    /// Which of those addresses are shared.
    pub share_rules: ShareRules,
    /// What happens to the workers when the supervisor is killed.
    pub orphans: Orphans,
    /// Whether to end processes of a killed supervisor that hold an address of this one.
    pub takeover: bool,
    /// Permission bits of every Unix socket that we hold. `None`: 664 for a socket of `--listen`, and the umask of the worker
    /// for its own.
    pub socket_mode: Option<u32>,
    /// Owner of every Unix socket that we hold; `None` leaves it unchanged.
    pub socket_owner: Option<Owner>,
    /// The user and groups of the workers. `None`: those of the supervisor.
    pub identity: Option<Identity>,
    /// The login variables of the workers' user. `None`: without `--user`.
    pub login: Option<Login>,
    /// The capabilities that the workers have in addition to those of their user and program.
    pub ambient: Capabilities,
    /// Whether the programs of a worker cannot gain privileges: prctl(2), `PR_SET_NO_NEW_PRIVS`.
    pub no_new_privs: bool,
    /// The workers' working directory, resolved again at every start; `None`: the supervisor's.
    pub chdir: Option<PathBuf>,
    /// The workers' umask; `None`: the supervisor's.
    pub umask: Option<u32>,
    /// The name of the instance. `None`: the base name of the command.
    pub name: Option<String>,
    /// The control socket.
    pub control: Control,
    /// The group that may use the control socket.
    pub control_group: Option<u32>,
    /// Where the metrics are served. `None`: nowhere.
    pub metrics: Option<ListenAddr>,
    /// The standard input of the workers.
    pub stdin: Stdin,
    /// The format of the log.
    pub log_format: LogFormat,
    /// The level of the log.
    pub verbosity: Verbosity,
}

/// `--control PATH|off`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control {
    /// In the first directory for it that can be used.
    Default,
    /// At this absolute path.
    At(PathBuf),
    /// There is none.
    Off,
}

/// The largest number of workers: three times that of the busiest hosts. A mistyped number cannot exhaust the pids of a
/// host.
pub const MAX_WORKERS: u32 = 100_000;

/// The resource limits of a worker, and how long it can exceed them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// CPU time in a second, in nanoseconds: 95 % are 950,000,000. `None`: no limit.
    pub max_cpu: Option<u64>,
    /// `max_cpu` is the default, which applies only to a single stuck loop.
    pub cpu_is_default: bool,
    /// The consecutive samples above `max_cpu` after which the worker is replaced; at least 1.
    pub cpu_failures: u32,
    /// Resident memory, in bytes. `None`: no limit.
    pub max_memory: Option<u64>,
    /// `max_memory` is the default, which is off for a program that exceeds it in the first sample.
    pub memory_is_default: bool,
    /// The consecutive samples above `max_memory` after which the worker is replaced; at least 1.
    pub memory_failures: u32,
    /// The time between two samples.
    pub interval: Duration,
    /// The time from ready to the first sample that counts.
    pub delay: Duration,
}

/// `--on-upgrade`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnUpgrade {
    /// The changed program takes over in place.
    Exec,
    /// All workers stop, and the supervisor exits with 1, so that the service manager starts the changed program.
    Exit,
    /// Nothing.
    Ignore,
}

/// The limits of the cgroup of a worker, which the kernel enforces. `None`: no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CgroupLimits {
    /// Memory in bytes. The kernel kills all processes of a worker that needs more.
    pub memory_max: Option<u64>,
    /// Memory in bytes. The kernel slows a worker that uses more down, and takes back what it can.
    pub memory_high: Option<u64>,
    /// CPU time in a second, in nanoseconds, of all processes of a worker together. They wait when they have used it.
    pub cpu_max: Option<u64>,
    /// Processes and threads. A worker cannot start more.
    pub pids_max: Option<u32>,
}

/// `--monitor`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Monitor {
    /// `Ebpf` if it loads, else `Procfs`.
    Auto,
    /// eBPF programs in the kernel. An error if they do not load.
    Ebpf,
    /// The files of `/proc`.
    Procfs,
    /// No measurements.
    Off,
}

/// `--account`: the processes whose resource use counts as the worker's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The worker's first process.
    Worker,
    /// The worker's first process and its descendants.
    Tree,
}

/// A signal's number, 1 to 64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signal(pub i32);

/// `--give-up N/DUR`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GiveUp {
    /// The number of early deaths over all slots; at least 1.
    pub deaths: u32,
    /// The time that they are within.
    pub within: Duration,
}

/// `--ready MODE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadyMode {
    /// The first of `Listen` and `Notify`, or ten seconds of life for a program that never does either.
    Auto,
    /// The worker has called `listen(2)` on a stream socket, and listens on every address of its predecessor.
    Listen,
    /// The worker listens on all of these; never empty, and without ranges of ports.
    ListenOn(Vec<AddressPattern>),
    /// `READY=1` on `NOTIFY_SOCKET`.
    Notify,
    /// A newline on this descriptor of the worker, 3 or higher.
    NotifyFd(i32),
    /// The worker has run for this time.
    Alive(Duration),
    /// Immediately.
    None,
}

/// `--reload-batch N|N%|all`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Batch {
    /// Every slot at once.
    All,
    /// This number of slots; at least 1.
    Slots(u32),
    /// This percentage of the slots, 1 to 100, rounded up.
    Percent(u32),
}

impl Batch {
    /// The number of slots that a reload replaces at a time, out of `slots`; at least 1.
    #[must_use]
    pub fn of(self, slots: usize) -> usize {
        match self {
            Batch::All => slots.max(1),
            Batch::Slots(n) => usize::try_from(n).unwrap_or(usize::MAX).max(1),
            Batch::Percent(p) => {
                (slots.saturating_mul(usize::try_from(p).unwrap_or(100))).div_ceil(100).max(1)
            }
        }
    }
}

/// `--listen [NAME=]ADDR`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// The name in `LISTEN_FDNAMES`.
    pub name: Option<String>,
    /// The address.
    pub addr: ListenAddr,
    /// The text that the user wrote, for messages.
    pub text: String,
}

/// An address of `--listen`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAddr {
    /// A port on every IP address: IPv6 and IPv4 on one socket if the host has IPv6.
    Port(u16),
    /// One address and port.
    Inet(SocketAddr),
    /// A Unix stream socket at an absolute path.
    Unix(PathBuf),
}

/// `--share MODE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// The best mode of this host: `Slots` for TCP.
    Auto,
    /// One socket for each slot, which outlives its workers.
    Slots,
    /// One socket for all workers.
    Shared,
    /// Every worker binds for itself.
    Off,
}

/// `--stop-group leader|tree`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopGroup {
    /// The first process of a worker. The others get it when the first has exited.
    Leader,
    /// Every process of the worker's tree.
    Tree,
}

/// `--orphans MODE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Orphans {
    /// The kernel kills them.
    Kill,
    /// The workers continue to serve, without a supervisor that replaces them.
    Keep,
}

/// The owner of a socket file. `None` leaves that part unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// User id.
    pub uid: Option<u32>,
    /// Group id.
    pub gid: Option<u32>,
}

/// The user and groups of a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// User id; `None`: unchanged.
    pub uid: Option<u32>,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// `USER`, `LOGNAME`, `HOME` and `SHELL` of the workers' user. `None` leaves a variable unset: the value for the user of
/// the supervisor would be wrong.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Login {
    /// Login name.
    pub name: Option<String>,
    /// Home directory, an absolute path.
    pub home: Option<String>,
    /// Login shell, an absolute path.
    pub shell: Option<String>,
}

/// `--stdin MODE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stdin {
    /// `/dev/null`.
    Null,
    /// The supervisor's own.
    Inherit,
}

/// `--log-format FORMAT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// The format for standard error: journal, terminal, or another file.
    Auto,
    /// Readable text.
    Pretty,
    /// One JSON object per line.
    Json,
    /// Readable text after the priority for the journal.
    Journald,
}

/// The level of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verbosity {
    /// `-q`: warnings and errors.
    Quiet,
    /// The normal messages.
    Normal,
    /// `-v` or `DEBUG=master-process`: debug messages as well.
    Verbose,
    /// `RUST_LOG`: validated `target=level` directives, separated by commas.
    Filter(String),
}
