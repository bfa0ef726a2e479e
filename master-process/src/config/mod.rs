//! What a run of the supervisor was asked to do: plain, validated data, no text left to parse.

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
    /// A worker that dies sooner than this after its start is replaced only when this has passed.
    pub throttle: Duration,
    /// The largest delay that consecutive early deaths of a slot can double to; at least `throttle`.
    pub throttle_max: Duration,
    /// So many early deaths within a time end the supervisor; `None`: never.
    pub give_up: Option<GiveUp>,
    /// From the stop signal to SIGKILL.
    pub kill_timeout: Duration,
    /// How long a worker that is out of rotation, its queue empty, still serves before the stop signal.
    pub drain: Duration,
    /// What asks a worker to drain and leave.
    pub stop_signal: Signal,
    /// Who gets it first.
    pub stop_group: StopGroup,
    /// When a worker counts as ready.
    pub ready: ReadyMode,
    /// How long a start may take at least. A worker that is late is stopped where another one of its slot serves; where
    /// none does, it goes on starting.
    pub ready_timeout: Duration,
    /// How many slots a reload replaces at a time.
    pub reload_batch: Batch,
    /// How many failed starts of one slot give a reload up; at least 1.
    pub reload_attempts: u32,
    /// What a worker may use.
    pub limits: Limits,
    /// What measures that.
    pub monitor: Monitor,
    /// Whose use counts as a worker's.
    pub account: Scope,
    /// What warns a worker that it passes 80 % of its memory limit.
    pub memory_high_signal: Option<Signal>,
    /// Sockets that the supervisor opens and hands to every worker.
    pub listen: Vec<Listen>,
    /// How the workers' own addresses are shared.
    pub share: Share,
    /// Which of those addresses are shared.
    pub share_rules: ShareRules,
    /// What becomes of the workers when the supervisor is killed.
    pub orphans: Orphans,
    /// Whether what an earlier supervisor has left behind is ended where it holds an address that is wanted.
    pub takeover: bool,
    /// Permission bits of every Unix socket that we hold; `None`: 664 for those of `--listen`, and what its umask leaves
    /// for a worker's own.
    pub socket_mode: Option<u32>,
    /// Owner of every Unix socket that we hold; `None` leaves it unchanged.
    pub socket_owner: Option<Owner>,
    /// Who the workers run as; `None`: as the supervisor does.
    pub identity: Option<Identity>,
    /// What the user database says of the workers' user; `None`: no user was asked for.
    pub login: Option<Login>,
    /// The capabilities that the workers have beyond what their user and program give them.
    pub ambient: Capabilities,
    /// Whether no program that a worker runs can gain rights: prctl(2), `PR_SET_NO_NEW_PRIVS`.
    pub no_new_privs: bool,
    /// The workers' working directory, resolved again at every start; `None`: the supervisor's.
    pub chdir: Option<PathBuf>,
    /// The workers' umask; `None`: the supervisor's.
    pub umask: Option<u32>,
    /// What the workers read as standard input.
    pub stdin: Stdin,
    /// How the supervisor writes its log.
    pub log_format: LogFormat,
    /// How much the supervisor says.
    pub verbosity: Verbosity,
}

/// The largest worker count that is accepted: three times what the busiest hosts run, far below where a
/// mistyped number exhausts a machine's pids.
pub const MAX_WORKERS: u32 = 100_000;

/// What a worker may use, and for how long more than that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// CPU time in a second, in nanoseconds: 95 % are 950,000,000; `None`: any.
    pub max_cpu: Option<u64>,
    /// `max_cpu` is the default: it holds only against a single loop that is stuck.
    pub cpu_gives_way: bool,
    /// So many samples in a row above that are too many; at least 1.
    pub cpu_failures: u32,
    /// Resident memory, in bytes; `None`: any.
    pub max_memory: Option<u64>,
    /// `max_memory` is the default: it is off for a program that exceeds it from the first.
    pub memory_gives_way: bool,
    /// So many samples in a row above that are too many; at least 1.
    pub memory_failures: u32,
    /// How often samples come.
    pub interval: Duration,
    /// How long after it became ready a worker is judged.
    pub delay: Duration,
}

/// `--monitor`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Monitor {
    /// `Ebpf` where that can be had, else `Procfs`.
    Auto,
    /// The kernel tells.
    Ebpf,
    /// The supervisor reads.
    Procfs,
    /// Nobody measures.
    Off,
}

/// `--account`: whose use counts as a worker's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Its own alone.
    Worker,
    /// Its own and its descendants'.
    Tree,
}

/// A signal's number, 1 to 64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signal(pub i32);

/// `--give-up N/DUR`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GiveUp {
    /// So many early deaths over all slots; at least 1.
    pub deaths: u32,
    /// Within this time.
    pub within: Duration,
}

/// `--ready MODE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadyMode {
    /// Whichever comes first of `Listen` and `Notify`; ten seconds of life where the program never does either.
    Auto,
    /// The worker has called `listen(2)` on a stream socket, and listens wherever its predecessor does.
    Listen,
    /// The worker listens on all of these; never empty, and without ranges of ports.
    ListenOn(Vec<AddressPattern>),
    /// `READY=1` on `NOTIFY_SOCKET`.
    Notify,
    /// A newline on this descriptor of the worker, 3 or higher.
    NotifyFd(i32),
    /// The worker has lived that long.
    Alive(Duration),
    /// At once.
    None,
}

/// `--reload-batch N|N%|all`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Batch {
    /// Every slot at once.
    All,
    /// So many slots; at least 1.
    Slots(u32),
    /// So many percent of the slots, 1 to 100, rounded up.
    Percent(u32),
}

/// `--listen [NAME=]ADDR`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// What `LISTEN_FDNAMES` calls it.
    pub name: Option<String>,
    /// Where it listens.
    pub addr: ListenAddr,
    /// What the user wrote, for messages.
    pub text: String,
}

/// An address of `--listen`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAddr {
    /// A port on every address, IPv6 and IPv4 on one socket where the host has IPv6.
    Port(u16),
    /// One address and port.
    Inet(SocketAddr),
    /// A Unix stream socket at an absolute path.
    Unix(PathBuf),
}

/// `--share MODE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// The best that this host has: `Slots` for TCP.
    Auto,
    /// A socket for each slot, kept over its workers.
    Slots,
    /// One socket for all workers.
    Shared,
    /// Every worker binds for itself.
    Off,
}

/// `--stop-group WHO`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopGroup {
    /// The first process of a worker; the others when that has left before them.
    Leader,
    /// Every process of its tree.
    Tree,
}

/// `--orphans MODE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Orphans {
    /// The kernel kills them.
    Kill,
    /// They serve on, without anybody who replaces them.
    Keep,
}

/// Who owns a socket file; `None` leaves that half unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// User id.
    pub uid: Option<u32>,
    /// Group id.
    pub gid: Option<u32>,
}

/// Who a worker runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// User id; `None`: unchanged.
    pub uid: Option<u32>,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// What a login of the workers' user would set `USER`, `LOGNAME`, `HOME` and `SHELL` to. `None` leaves a variable unset:
/// that of the supervisor's user is wrong in any case.
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
    /// By what standard error is: journal, terminal, or something else.
    Auto,
    /// For people.
    Pretty,
    /// One JSON object a line.
    Json,
    /// For people, with the journal's priority in front.
    Journald,
}

/// How much is logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verbosity {
    /// `-q`: warnings and errors.
    Quiet,
    /// What a person wants to read.
    Normal,
    /// `-v` or `DEBUG=master-process`: what a person who looks for a fault wants to read.
    Verbose,
    /// `RUST_LOG`: its text, `target=level` directives separated by commas, already validated.
    Filter(String),
}
