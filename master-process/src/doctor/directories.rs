//! The directories in which supervisors have their control sockets and the places of the start gate.

use std::path::{Path, PathBuf};

use rustix::fs::{Mode, stat};
use rustix::net::SocketAddrUnix;

use super::advice::Setting;
use super::host::Host;
use super::row::{Fix, Group, Row};
use crate::config::{Config, Control};
use crate::control;
use crate::sys::control_socket::Claim;
use crate::sys::runtime_directory::ROOT;
use crate::sys::start_places::{self, Places};

const GROUP: Group = Group::Processes;

/// What was found out.
#[derive(Debug)]
pub(super) struct Facts {
    control: ControlFacts,
    gate: GateFacts,
}

/// Where the control socket can be.
#[derive(Debug)]
enum ControlFacts {
    /// Not wanted.
    Off,
    /// In this directory. `has_group`: members of a group are to reach it.
    In { directory: Directory, has_group: bool },
    /// Nowhere, for these reasons. `is_fatal`: the user has chosen the name or the path, so a supervisor does not start.
    Nowhere { failed: Vec<String>, is_fatal: bool },
}

/// The places of the start gate.
#[derive(Debug)]
enum GateFacts {
    /// Not wanted.
    Off,
    /// This user has no directory for them.
    NoDirectory,
    /// They can be used.
    In(Directory, usize),
    /// They cannot: the directory, what is wrong, and with what.
    Unusable { directory: PathBuf, path: PathBuf, why: String },
}

/// A directory, and who may change it. What does not exist would be made.
#[derive(Debug, PartialEq, Eq)]
struct Directory {
    path: PathBuf,
    mode: u32,
    uid: u32,
}

impl Facts {
    pub(super) fn gather(config: &Config) -> Facts {
        Facts { control: try_control(config), gate: try_gate(config) }
    }
}

/// Removes a directory that a trial has made.
struct MadeByTrial(Option<PathBuf>);

impl MadeByTrial {
    fn watch(path: &Path) -> MadeByTrial {
        MadeByTrial(path.symlink_metadata().is_err().then(|| path.to_owned()))
    }
}

impl Drop for MadeByTrial {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _in_use_or_not_made = std::fs::remove_dir(path);
        }
    }
}

fn try_control(config: &Config) -> ControlFacts {
    let is_fatal = config.name.is_some() || matches!(config.control, Control::At(_));
    let (directories, name) = match &config.control {
        Control::Off => return ControlFacts::Off,
        Control::Default => (control::directories(|name| std::env::var_os(name)), config.name.as_deref()),
        Control::At(path) => {
            if SocketAddrUnix::new(path).is_err() {
                let why = format!("{}: the path is too long for a socket", path.display());
                return ControlFacts::Nowhere { failed: vec![why], is_fatal };
            }
            (path.parent().map(Path::to_owned).into_iter().collect(), None)
        }
    };
    // The name itself may be that of a supervisor that runs. The trial's is as long.
    let length = name.map_or(control::MAX_NAME, str::len);
    let probe = format!("{:.<length$}", format!("doctor-{}", std::process::id()));
    let mut failed = Vec::new();
    for directory in directories {
        match try_directory(&directory, &control::file_name(&probe)) {
            Ok(directory) => {
                return ControlFacts::In { directory, has_group: config.control_group.is_some() };
            }
            Err(why) => failed.push(format!("{}: {why}", directory.display())),
        }
    }
    ControlFacts::Nowhere { failed, is_fatal }
}

/// Does what a start does, up to the socket itself.
fn try_directory(path: &Path, file: &str) -> Result<Directory, String> {
    let _made = MadeByTrial::watch(path);
    let is_root = rustix::process::geteuid().is_root();
    control::create(path, is_root).map_err(|error| format!("mkdir: {error}"))?;
    let _claim = Claim::take(&path.join(file)).map_err(|error| error.to_string())?;
    Directory::of(path).map_err(|error| error.to_string())
}

fn try_gate(config: &Config) -> GateFacts {
    let Some(count) = config.start_gate else { return GateFacts::Off };
    let Some(path) = start_places::directory() else { return GateFacts::NoDirectory };
    let places = Places::new(path.clone(), count);
    let _made = MadeByTrial::watch(&path);
    match places.check() {
        Ok(()) => match Directory::of(&path) {
            Ok(found) => GateFacts::In(found, places.count()),
            Err(error) => GateFacts::Unusable { directory: path.clone(), path, why: error.to_string() },
        },
        Err(unusable) => GateFacts::Unusable {
            directory: path,
            path: unusable.path().to_owned(),
            why: unusable.to_string(),
        },
    }
}

impl Directory {
    fn of(path: &Path) -> std::io::Result<Directory> {
        let of = stat(path)?;
        let mode = Mode::from_raw_mode(of.st_mode).as_raw_mode();
        Ok(Directory { path: path.to_owned(), mode, uid: of.st_uid })
    }

    /// `/run/master-process (root, 0755)`.
    fn words(&self) -> String {
        let owner = if self.uid == 0 { "root".to_owned() } else { format!("uid {}", self.uid) };
        format!("{} ({owner}, {:04o})", self.path.display(), self.mode)
    }
}

/// The rows.
pub(super) fn rows(facts: &Facts, host: &Host) -> Vec<Row> {
    vec![control_row(&facts.control, host), gate_row(&facts.gate, host)]
}

fn control_row(facts: &ControlFacts, host: &Host) -> Row {
    const CHECK: &str = "control_dir";
    match facts {
        ControlFacts::Off => Row::unused(GROUP, CHECK, "no control socket: --control off"),
        ControlFacts::In { directory, has_group } => {
            let uses = directory.words();
            let (path, mode) = (directory.path.display(), Mode::from_raw_mode(directory.mode));
            let row = if mode.contains(Mode::WOTH) {
                let why = "every local user can write to it, and can have the name of the socket before the supervisor";
                let fix = if mode.contains(Mode::SVTX) {
                    // Like /tmp, it is meant for all users.
                    Fix::by_hand(
                        "name a path in a directory that only this user can write to: --control PATH",
                    )
                } else {
                    Fix::command("let nobody else write to it", format!("chmod o-w {path}"))
                };
                Row::degraded(GROUP, CHECK, uses, why, fix)
            } else if *has_group && !mode.contains(Mode::XOTH) {
                let why = "the members of --control-group cannot reach the socket in it";
                let fix = Fix::command("let others search it", format!("chmod o+x {path}"));
                Row::degraded(GROUP, CHECK, uses, why, fix)
            } else {
                Row::ok(GROUP, CHECK, uses)
            };
            with_directory(row, directory)
        }
        ControlFacts::Nowhere { failed, is_fatal } => {
            let uses = if *is_fatal { "no supervisor can start" } else { "no control socket" };
            let effect =
                if *is_fatal { "" } else { "; status and the other commands cannot reach the supervisor" };
            let why = if failed.is_empty() { "no directory".to_owned() } else { failed.join("; ") };
            let fix = host.manager.give(Setting::RuntimeDirectory);
            Row::missing(GROUP, CHECK, uses, format!("{why}{effect}"), fix)
        }
    }
}

fn gate_row(facts: &GateFacts, host: &Host) -> Row {
    const CHECK: &str = "start_gate";
    const EFFECT: &str = "supervisors that start at the same moment do not take turns";
    const WITHOUT: &str = "all workers start at once";
    match facts {
        GateFacts::Off => Row::unused(GROUP, CHECK, "no turns: --start-gate off"),
        GateFacts::In(directory, count) => {
            let row = Row::ok(GROUP, CHECK, format!("{count} places in {}", directory.words()));
            with_directory(row.with("places", *count), directory)
        }
        GateFacts::NoDirectory => {
            let why = format!("XDG_RUNTIME_DIR is not set; {EFFECT}");
            let fix = Fix::command(
                "name a directory that only this user can write to, the same one for all its supervisors",
                "export XDG_RUNTIME_DIR=DIRECTORY",
            );
            Row::degraded(GROUP, CHECK, WITHOUT, why, fix)
        }
        GateFacts::Unusable { directory, path, why } => {
            let fix = if path != directory {
                Fix::command("remove it; the next start makes it anew", format!("rm {}", path.display()))
            } else if directory.exists() {
                let (shown, uid) = (directory.display(), host.uid);
                let command = format!("chown {uid} {shown} && chmod go-w {shown}");
                Fix::command("let this user have it, and nobody else write to it", command)
            } else if directory == Path::new(ROOT) {
                host.manager.give(Setting::RuntimeDirectory)
            } else {
                let base = directory.parent().unwrap_or(directory).display();
                Fix::command(
                    "make the directory that XDG_RUNTIME_DIR names",
                    format!("mkdir -p -m 700 {base}"),
                )
            };
            Row::degraded(GROUP, CHECK, WITHOUT, format!("{why}; {EFFECT}"), fix)
        }
    }
}

fn with_directory(row: Row, directory: &Directory) -> Row {
    row.with("directory", directory.path.display().to_string())
        .with("mode", format!("{:04o}", directory.mode))
        .with("owner_uid", directory.uid)
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::doctor::row::State;

    fn host() -> Host {
        Host::with(0, false)
    }

    #[test]
    fn a_directory_is_made_and_tried_and_nothing_remains() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("master-process");
        let found = try_directory(&path, "a.sock").expect("it can be made");
        assert_eq!((found.mode & 0o777, &found.path), (0o700, &path));
        assert!(!path.exists());
        std::fs::create_dir(&path).expect("made");
        std::fs::set_permissions(&path, Permissions::from_mode(0o777)).expect("ours");
        let found = try_directory(&path, "a.sock").expect("it can be used");
        assert_eq!(std::fs::read_dir(&path).expect("still there").count(), 0);
        let shown = path.display();
        let fix = |mode: u32, has_group: bool| {
            let directory = Directory { path: path.clone(), mode, uid: found.uid };
            let row = control_row(&ControlFacts::In { directory, has_group }, &host());
            row.problem.map(|problem| problem.fix.command)
        };
        assert_eq!(fix(0o777, false), Some(Some(format!("chmod o-w {shown}"))));
        assert_eq!(fix(0o1777, false), Some(None), "no command for a directory like /tmp");
        assert_eq!(fix(0o700, true), Some(Some(format!("chmod o+x {shown}"))));
        assert_eq!((fix(0o700, false), fix(0o755, true)), (None, None));
        std::fs::remove_dir(&path).expect("empty");
        std::fs::write(&path, "").expect("written");
        assert!(try_directory(&path, "a.sock").expect_err("a file").contains("open: Not a directory"));
    }

    #[test]
    fn a_path_that_was_chosen_is_needed_and_any_directory_is_not() {
        let control = Control::At(PathBuf::from("/nowhere/at/all.sock"));
        let facts = try_control(&Config { control, ..crate::doctor::tests::config() });
        let row = control_row(&facts, &host());
        assert_eq!((row.state, row.uses.as_str()), (State::Missing, "no supervisor can start"));
        assert!(row.problem.expect("a problem").why.contains("/nowhere/at: open: No such file"));
        let long = Control::At(PathBuf::from("/x".repeat(80)));
        let facts = try_control(&Config { control: long, ..crate::doctor::tests::config() });
        let why = control_row(&facts, &host()).problem.expect("a problem").why;
        assert!(why.contains("too long for a socket"), "{why}");
        let failed = vec!["/run/master-process: mkdir: Permission denied (os error 13)".to_owned()];
        let row = control_row(&ControlFacts::Nowhere { failed, is_fatal: false }, &host());
        assert_eq!((row.state, row.uses.as_str()), (State::Missing, "no control socket"));
        assert!(row.problem.expect("a problem").fix.text.ends_with("RuntimeDirectory=NAME"));
        let off = try_control(&Config { control: Control::Off, ..crate::doctor::tests::config() });
        assert_eq!(control_row(&off, &host()).state, State::Unused);
    }

    #[test]
    fn the_advice_for_the_gate_is_about_what_cannot_be_used() {
        let folder = tempfile::tempdir().expect("a folder");
        let command = |path: &Path| {
            let (directory, why) = (folder.path().to_owned(), "no".to_owned());
            let row = gate_row(&GateFacts::Unusable { directory, path: path.to_owned(), why }, &host());
            assert_eq!(row.state, State::Degraded);
            row.problem.expect("a problem").fix.command.expect("a command")
        };
        let shown = folder.path().display();
        assert_eq!(command(folder.path()), format!("chown 1 {shown} && chmod go-w {shown}"));
        assert_eq!(command(&folder.path().join("start-0")), format!("rm {shown}/start-0"));
        assert_eq!(gate_row(&GateFacts::Off, &host()).state, State::Unused);
        let none = gate_row(&GateFacts::NoDirectory, &host());
        assert_eq!((none.state, none.uses.as_str()), (State::Degraded, "all workers start at once"));
    }
}
