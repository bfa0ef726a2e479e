//! Builds the spawn template from the configuration, and starts workers from it.

use std::ffi::{CString, OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;

use anyhow::Context;
use rustix::fs::{Mode, OFlags};
use rustix::process::Rlimit;
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::config::{Capabilities, Config, Identity, Login, Orphans, ReadyMode, Share, Stdin};
use crate::policy::WorkerId;
use crate::share::InheritedListeners;
use crate::sys::capabilities::{OwnCapabilities, WorkerCapabilities};
use crate::sys::handover::{Fd, Incoming, Outgoing};
use crate::sys::notify::NotifySocket;
use crate::sys::seccomp::{self, Calls, Filter};
use crate::sys::spawn::{
    Directory, FinishedLaunch, Launch, SpawnArgs, SpawnError, SpawnStep, SpawnTemplate, Spawned, Spawner,
};
use crate::sys::{fds, memfd, path_lookup};
use crate::upgrade;

/// The descriptor of standard output.
const STDOUT: i32 = 1;

/// The directories in which a command without a slash is searched if `PATH` is not set; execvp(3).
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// The variables that the supervisor sets for its workers, and their meaning for the documentation. Its own values of these
/// are not passed on.
const SET: [(&[&str], &str); 7] = [
    (&["PPID"], "the supervisor's pid"),
    (&["WORKER_INDEX"], "the slot, from 0 on; a replacement keeps it"),
    (&["RELOAD_INDEX"], "how many reloads there have been"),
    (
        &["NOTIFY_SOCKET"],
        "where `READY=1` goes, by the sd_notify protocol: a path that the workers' user and root can reach. A worker that \
         changes its root or its user by itself connects to it before",
    ),
    (&["PWD"], "the directory that the worker is in"),
    (
        &["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"],
        "the sockets of `--listen` and of systemd's socket activation, from descriptor 3 on",
    ),
    (
        &["PRELOAD_FILE"],
        "with `--preload`: the path of a read-only file with the standard output of the command, `/proc/self/fd/N`. N is the \
         number of a descriptor of it, after those of the sockets",
    ),
];

/// The variables of a login, which describe the supervisor's own user.
const OF_LOGIN: [&str; 4] = ["USER", "LOGNAME", "HOME", "SHELL"];

/// Their meaning for the documentation.
const MEANING_OF_LOGIN: &str = "with `--user`: from that user's entry, as with systemd's `User=`. A home that is empty or `/`, and \
     a shell that denies logins, are left out; an id without an entry has none of them. Without `--user`: the supervisor's";

/// Variables that were meant for the supervisor: a worker that had them would talk to the supervisor's service manager in
/// the supervisor's name.
const NOT_PASSED_ON: [&str; 6] =
    ["LISTEN_PIDFDID", "WATCHDOG_USEC", "WATCHDOG_PID", "MAINPID", "FDSTORE", upgrade::VARIABLE];

/// The variables of a worker, such as `` `LISTEN_FDS`, `LISTEN_PID` ``, and their meaning, for the documentation.
#[must_use]
pub fn worker_variables() -> Vec<(String, &'static str)> {
    let names = |names: &[&str]| names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let set = SET.iter().map(|(of, meaning)| (names(of), *meaning));
    set.chain([(names(&OF_LOGIN), MEANING_OF_LOGIN)]).collect()
}

/// Starts workers from one template.
#[derive(Debug)]
pub(super) struct Launcher {
    template: Arc<SpawnTemplate>,
    spawner: Spawner,
    command: String,
    directory: String,
    /// The preload command, and the number of the file with its output in a worker.
    preload: Option<Preload>,
    ready_fd: Option<i32>,
    /// The filter of the next workers, and the calls it intercepts. `None`: they get no filter.
    filter: Option<(Calls, Arc<Filter>)>,
    /// Whether workers get a filter at all.
    filters: bool,
    /// `LISTEN_FDNAMES` of the workers.
    listen_names: String,
}

/// What a supervisor hands over of it. The rest follows from the configuration.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct SavedLauncher {
    inherited: Vec<Fd>,
    listen_names: String,
    filters: bool,
    /// The limits of open files that the supervisor was started with; `None`: there is none.
    nofile: (Option<u64>, Option<u64>),
    /// The output of the current generation's preload command.
    #[serde(default)]
    preload: Option<Fd>,
}

impl SavedLauncher {
    /// The sockets of the workers, and the limits of open files.
    pub(super) fn take(&self, from: &mut Incoming) -> (InheritedListeners, Rlimit) {
        let sockets = self.inherited.iter().map(|fd| from.take(*fd)).collect();
        let (current, maximum) = self.nofile;
        (InheritedListeners::resumed(sockets, &self.listen_names), Rlimit { current, maximum })
    }
}

/// The preload command.
#[derive(Debug)]
struct Preload {
    template: Arc<SpawnTemplate>,
    command: String,
    /// The output of the current generation's command.
    output: Option<OwnedFd>,
    /// The descriptor of it in a worker.
    number: i32,
}

impl Launcher {
    pub(super) fn new(
        config: &Config,
        inherited: InheritedListeners,
        notify: &NotifySocket,
    ) -> anyhow::Result<Launcher> {
        let nofile = fds::raise_limit().context("setrlimit(RLIMIT_NOFILE)")?;
        Launcher::with_limit(config, inherited, notify, nofile)
    }

    /// The same for workers that get these limits of open files.
    pub(super) fn with_limit(
        config: &Config,
        inherited: InheritedListeners,
        notify: &NotifySocket,
        nofile: Rlimit,
    ) -> anyhow::Result<Launcher> {
        let ready_fd = match config.ready {
            ReadyMode::NotifyFd(fd) => Some(fd),
            ReadyMode::Auto
            | ReadyMode::Listen
            | ReadyMode::ListenOn(_)
            | ReadyMode::Notify
            | ReadyMode::Alive(_)
            | ReadyMode::None => None,
        };
        if let Some(fd) = ready_fd.filter(|fd| *fd < 3 + inherited.count()) {
            anyhow::bail!(
                "--ready notify:fd={fd}: descriptors 3 to {} are sockets handed over",
                2 + inherited.count()
            );
        }
        // This is above every descriptor number that a worker receives, so no descriptor is overwritten while it is
        // copied.
        let first_free = 3 + inherited.count();
        let lowest = first_free.max(ready_fd.map_or(0, |fd| fd + 1));
        // After the sockets, beside the descriptor that `--ready notify:fd=N` has chosen.
        let number = if ready_fd == Some(first_free) { first_free + 1 } else { first_free };
        let lowest = if config.preload.is_some() { lowest.max(number + 1) } else { lowest };
        let listen_names = inherited.names();
        let mut common = passed_on(std::env::vars_os(), config.login.as_ref());
        common.push(format!("PPID={}", std::process::id()).into());
        let environment = environment(common.clone(), &inherited, notify)?;
        let command = config.command.first().context("no command")?;
        let directory = directory(config)?;
        let named = directory.as_ref().map(|directory| directory.path.to_string_lossy().into_owned());
        let identity = config.identity.clone().filter(|identity| !is_ours(identity));
        let capabilities = capabilities(config.ambient, identity.as_ref())?;
        let nofile = Some(nofile);
        let preload = config.preload.as_deref().map(|words| -> anyhow::Result<Preload> {
            let command = words.first().context("no command")?;
            let template = SpawnTemplate {
                candidates: candidates(command, std::env::var_os("PATH").as_deref())?,
                argv: words.iter().map(|word| c_string(word)).collect::<Result<_, _>>()?,
                environment: common.iter().map(|text| c_string(text)).collect::<Result<_, _>>()?,
                directory: directory.clone(),
                umask: config.umask,
                capabilities,
                identity: identity.clone(),
                nofile,
                file_size: Some(config.preload_max),
                stdin: Some(open_null(3)?),
                inherited: Vec::new(),
                filter_needs_no_new_privs: false,
                no_new_privs: config.no_new_privs,
                // Nobody else uses its output.
                dies_with_us: true,
            };
            let command = command.to_string_lossy().into_owned();
            Ok(Preload { template: Arc::new(template), command, output: None, number })
        });
        let template = SpawnTemplate {
            candidates: candidates(command, std::env::var_os("PATH").as_deref())?,
            argv: config.command.iter().map(|argument| c_string(argument)).collect::<Result<_, _>>()?,
            environment,
            directory,
            umask: config.umask,
            capabilities,
            identity,
            nofile,
            file_size: None,
            stdin: match config.stdin {
                Stdin::Null => Some(open_null(lowest)?),
                Stdin::Inherit => None,
            },
            inherited: inherited.into_sockets(lowest).context("fcntl(F_DUPFD)")?,
            filter_needs_no_new_privs: !seccomp::may_filter_with_privileges(),
            no_new_privs: config.no_new_privs,
            dies_with_us: config.orphans == Orphans::Kill,
        };
        let watches_listen =
            matches!(config.ready, ReadyMode::Auto | ReadyMode::Listen | ReadyMode::ListenOn(_));
        Ok(Launcher {
            template: Arc::new(template),
            spawner: Spawner::new().context("mmap")?,
            command: command.to_string_lossy().into_owned(),
            directory: named.unwrap_or_default(),
            preload: preload.transpose()?,
            ready_fd,
            filter: None,
            filters: config.share != Share::Off || watches_listen,
            listen_names,
        })
    }

    pub(super) fn save(&self, out: &mut Outgoing) -> SavedLauncher {
        let nofile = self.template.nofile.as_ref();
        SavedLauncher {
            inherited: self.template.inherited.iter().map(|socket| out.keep(socket.as_fd())).collect(),
            listen_names: self.listen_names.clone(),
            filters: self.filters,
            nofile: nofile.map_or((None, None), |limits| (limits.current, limits.maximum)),
            preload: self
                .preload
                .as_ref()
                .and_then(|of| of.output.as_ref())
                .map(|file| out.keep(file.as_fd())),
        }
    }

    /// Goes on without filters if the supervisor before did, and with the output of its preload command.
    pub(super) fn resume(&mut self, saved: &SavedLauncher, from: &mut Incoming) {
        self.filters &= saved.filters;
        if let Some(output) = saved.preload {
            self.use_output(from.take(output));
        }
    }

    /// The command as messages name it.
    pub(super) fn command(&self) -> &str {
        &self.command
    }

    /// The working directory as messages name it.
    pub(super) fn directory(&self) -> &str {
        &self.directory
    }

    /// Sets the calls that the filters of the next workers intercept.
    pub(super) fn set_filter(&mut self, calls: Calls) {
        let is_known = self.filter.as_ref().is_some_and(|(known, _)| *known == calls);
        if self.filters && !is_known {
            self.filter = Some((calls, Arc::new(Filter::new(calls))));
        }
    }

    /// Continues without filters after the kernel refused one. The program runs, but its sockets are not shared.
    pub(super) fn disable_filter(&mut self, error: &SpawnError) {
        self.filter = None;
        if !std::mem::replace(&mut self.filters, false) {
            // Another start that was in progress has already logged this.
            return;
        }
        let why = why_no_filter(error);
        warn!("seccomp unavailable: {why}; ports are not shared, except --listen sockets");
    }

    /// Begins the start of a worker, in the given cgroup, if any, and in the foreground or the background of the
    /// terminal. Also returns the readiness pipe, if the worker uses one.
    pub(super) fn start(
        &mut self,
        worker: WorkerId,
        generation: u32,
        cgroup: Option<OwnedFd>,
        foreground: bool,
    ) -> Result<(Launch, Option<OwnedFd>), SpawnError> {
        let mut extra = Vec::new();
        let ready_pipe = match self.ready_fd {
            None => None,
            Some(at) => {
                let (reader, writer) = self.pipe(at)?;
                extra.push((writer, at));
                Some(reader)
            }
        };
        let mut environment =
            vec![variable("RELOAD_INDEX", generation), variable("WORKER_INDEX", worker.slot)];
        if let Some(Preload { output: Some(output), number, .. }) = &self.preload {
            let lowest = self.ready_fd.map_or(0, |fd| fd).max(*number) + 1;
            let file = memfd::open_for_reading(output.as_fd()).and_then(|file| fds::move_from(file, lowest));
            extra.push((file.map_err(|error| descriptor_error(&error))?, *number));
            environment.push(variable("PRELOAD_FILE", memfd::path(*number)));
        }
        let filter = self.filter.as_ref().map(|(_, filter)| Arc::clone(filter));
        let args = SpawnArgs { filter, environment, extra, cgroup, foreground };
        let launch = self.spawner.start(&self.template, args)?;
        Ok((launch, ready_pipe))
    }

    /// Begins the start of the preload command of a generation, in the given cgroup, if any. It writes to `output`.
    pub(super) fn start_preload(
        &mut self,
        generation: u32,
        output: OwnedFd,
        cgroup: Option<OwnedFd>,
    ) -> Result<Launch, SpawnError> {
        let Some(Preload { template, .. }) = &self.preload else {
            return Err(SpawnError::new(SpawnStep::Exec, libc::ENOENT));
        };
        let output = fds::move_from(output, 3).map_err(|error| descriptor_error(&error))?;
        let environment = vec![variable("RELOAD_INDEX", generation)];
        let args = SpawnArgs { environment, extra: vec![(output, STDOUT)], cgroup, ..SpawnArgs::default() };
        self.spawner.start(&Arc::clone(template), args)
    }

    /// The next workers get this output of the preload command.
    pub(super) fn use_output(&mut self, output: OwnedFd) {
        if let Some(preload) = &mut self.preload {
            preload.output = Some(output);
        }
    }

    /// The preload command as messages name it.
    pub(super) fn preload_command(&self) -> &str {
        self.preload.as_ref().map_or("", |preload| &preload.command)
    }

    /// The result of a finished start.
    pub(super) fn result(&mut self, over: FinishedLaunch) -> Result<Spawned, SpawnError> {
        self.spawner.result(over)
    }

    /// No start follows soon.
    pub(super) fn rest(&mut self) {
        self.spawner.release_stacks();
    }

    fn pipe(&self, at: i32) -> Result<(OwnedFd, OwnedFd), SpawnError> {
        let failed = |errno: i32| SpawnError::new(SpawnStep::Descriptor, errno);
        let flags = rustix::pipe::PipeFlags::CLOEXEC;
        let (reader, writer) =
            rustix::pipe::pipe_with(flags).map_err(|error| failed(error.raw_os_error()))?;
        // Only the reader is nonblocking: the worker chooses the mode of the writer.
        let made = crate::sys::sockets::set_nonblocking(reader.as_fd(), true)
            .and_then(|()| fds::move_from(writer, at + 1))
            .map_err(|error| failed(error.raw_os_error().unwrap_or(libc::EMFILE)))?;
        Ok((reader, made))
    }
}

fn variable(name: &str, value: impl std::fmt::Display) -> CString {
    CString::new(format!("{name}={value}")).unwrap_or_default()
}

fn descriptor_error(error: &std::io::Error) -> SpawnError {
    SpawnError::new(SpawnStep::Descriptor, error.raw_os_error().unwrap_or(libc::EMFILE))
}

/// Why the kernel refused a filter.
pub(super) fn why_no_filter(error: &SpawnError) -> String {
    match error.errno {
        libc::EBUSY => "another supervisor's filter is already active".to_owned(),
        errno => std::io::Error::from_raw_os_error(errno).to_string(),
    }
}

/// The capability sets of the workers. `None`: they need no change.
fn capabilities(
    ambient: Capabilities,
    identity: Option<&Identity>,
) -> anyhow::Result<Option<WorkerCapabilities>> {
    let own = OwnCapabilities::read().context("capget")?;
    let missing = own.lacks(ambient);
    anyhow::ensure!(
        missing.is_empty(),
        "--ambient: the supervisor itself does not have {missing}; start it as root or with these capabilities"
    );
    Ok(WorkerCapabilities::new(&own, ambient, identity))
}

/// Whether the supervisor already has the identity of the workers, and lacks the privilege to change it.
fn is_ours(identity: &Identity) -> bool {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    !uid.is_root() && identity.uid.is_none_or(|wanted| wanted == uid.as_raw()) && identity.gid == gid.as_raw()
}

fn open_null(lowest: i32) -> anyhow::Result<OwnedFd> {
    let null = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    fds::move_from(null.context("open /dev/null")?, lowest).context("fcntl(F_DUPFD)")
}

fn c_string(text: &OsStr) -> anyhow::Result<CString> {
    Ok(CString::new(text.as_bytes())?)
}

/// The paths that `execvp(3)` would try.
fn candidates(command: &OsStr, path: Option<&OsStr>) -> anyhow::Result<Vec<CString>> {
    if command.as_bytes().contains(&b'/') {
        return Ok(vec![c_string(command)?]);
    }
    std::env::split_paths(path.unwrap_or(OsStr::new(DEFAULT_PATH)))
        .map(|folder| if folder.as_os_str().is_empty() { ".".into() } else { folder })
        .map(|folder| c_string(folder.join(command).as_os_str()))
        .collect()
}

/// `--chdir`, or the directory in which the supervisor was started, by the path that its parent used: a deployment may
/// replace the directory at that path.
fn directory(config: &Config) -> anyhow::Result<Option<Directory>> {
    let (path, optional) = match &config.chdir {
        Some(path) => (path.clone(), false),
        None => match path_lookup::working_directory(std::env::var_os("PWD").as_deref()) {
            Ok(path) => (path, true),
            Err(_removed) => return Ok(None),
        },
    };
    let path = path.as_os_str();
    Ok(Some(Directory { path: c_string(path)?, variable: c_string(&pair("PWD".as_ref(), path))?, optional }))
}

/// The environment of all workers, except the variables of their directory. `common` is what all that the supervisor starts has.
fn environment(
    common: Vec<OsString>,
    inherited: &InheritedListeners,
    notify: &NotifySocket,
) -> anyhow::Result<Vec<CString>> {
    let mut environment = common;
    environment.push(pair(OsStr::new("NOTIFY_SOCKET"), OsStr::from_bytes(&notify.address())));
    if inherited.count() > 0 {
        environment.push(format!("LISTEN_FDS={}", inherited.count()).into());
        environment.push(format!("LISTEN_FDNAMES={}", inherited.names()).into());
    }
    environment.iter().map(|text| c_string(text)).collect()
}

/// The supervisor's variables without those that describe the supervisor itself, and with those of the workers' user.
fn passed_on(inherited: impl Iterator<Item = (OsString, OsString)>, login: Option<&Login>) -> Vec<OsString> {
    let replaced = if login.is_some() { OF_LOGIN.as_slice() } else { &[] };
    let set = || SET.iter().flat_map(|(names, _)| names.iter());
    let is_ours = |name: &OsStr| NOT_PASSED_ON.iter().chain(replaced).chain(set()).any(|ours| name == *ours);
    let mut variables: Vec<OsString> =
        inherited.filter(|(name, _)| !is_ours(name)).map(|(name, value)| pair(&name, &value)).collect();
    if let Some(Login { name, home, shell }) = login {
        let values = [name, name, home, shell];
        let known =
            OF_LOGIN.into_iter().zip(values).filter_map(|(name, value)| Some((name, value.as_ref()?)));
        variables.extend(known.map(|(name, value)| pair(OsStr::new(name), OsStr::new(value))));
    }
    variables
}

fn pair(name: &OsStr, value: &OsStr) -> OsString {
    OsString::from_vec([name.as_bytes(), b"=", value.as_bytes()].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_variable_that_the_supervisor_sets_is_passed_on() {
        let names = SET.iter().flat_map(|(names, _)| names.iter()).chain(&NOT_PASSED_ON);
        let variables = names.map(|name| (OsString::from(name), OsString::from("1")));
        assert!(passed_on(variables, None).is_empty());
    }

    #[test]
    fn a_user_replaces_the_variables_of_a_login() {
        let inherited = || {
            let variables = [
                ("HOME", "/root"),
                ("USER", "root"),
                ("SHELL", "/bin/zsh"),
                ("LANG", "C"),
                ("PPID", "1"),
                ("PWD", "/"),
            ];
            variables.into_iter().map(|(name, value)| (OsString::from(name), OsString::from(value)))
        };
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(
            passed_on(inherited(), None),
            ["HOME=/root", "USER=root", "SHELL=/bin/zsh", "LANG=C"],
            "without a user nothing changes"
        );
        let deploy = Login { name: text("deploy"), home: text("/home/deploy"), shell: None };
        assert_eq!(
            passed_on(inherited(), Some(&deploy)),
            ["LANG=C", "USER=deploy", "LOGNAME=deploy", "HOME=/home/deploy"]
        );
        assert_eq!(passed_on(inherited(), Some(&Login::default())), ["LANG=C"], "an id without an entry");
    }

    #[test]
    fn a_command_with_a_slash_is_used_unchanged_and_others_are_searched_in_path() {
        let paths = |command: &str, path: Option<&str>| {
            let found = candidates(OsStr::new(command), path.map(OsStr::new)).expect("no zero bytes");
            found.into_iter().map(|path| path.into_string().expect("ASCII")).collect::<Vec<_>>()
        };
        assert_eq!(paths("./app", Some("/usr/bin")), ["./app"]);
        assert_eq!(paths("app", Some("/a:/b")), ["/a/app", "/b/app"]);
        assert_eq!(paths("app", Some("/a::/b")), ["/a/app", "./app", "/b/app"]);
        assert_eq!(paths("app", None), ["/bin/app", "/usr/bin/app"]);
    }
}
