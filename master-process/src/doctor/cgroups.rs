//! The cgroup of each worker, and the limits that it can have.

use std::path::{Path, PathBuf};

use super::advice::{Manager, Setting};
use super::host::{self, Host};
use super::row::{Fix, Group, Row};
use crate::config::CgroupLimits;
use crate::driver::trial::{CgroupTrial, LimitsTrial, Trial};
use crate::sys::cgroup::{self, Controller, Undelegated, Unusable};

const GROUP: Group = Group::Processes;

/// What was found out without a worker.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub(super) undelegated: Option<Undelegated>,
    /// The controllers that version 1 has.
    pub(super) of_v1: Vec<Controller>,
    /// Those that are switched off by the kernel's command line.
    pub(super) disabled: Vec<Controller>,
}

impl Facts {
    pub(super) fn gather() -> Facts {
        let table = host::text("/proc/cgroups").unwrap_or_default();
        let (of_v1, disabled) = homes(&table);
        Facts { undelegated: cgroup::why_undelegated(), of_v1, disabled }
    }
}

/// The controllers that version 1 has, and those that are switched off, from `/proc/cgroups`: cgroups(7).
fn homes(table: &str) -> (Vec<Controller>, Vec<Controller>) {
    let column = |controller: Controller, number: usize| {
        let lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let line = lines.into_iter().find(|words| words.first() == Some(&controller.name()))?;
        line.get(number)?.parse::<u32>().ok()
    };
    let those = |number: usize, is_meant: fn(u32) -> bool| {
        let all = Controller::ALL.into_iter();
        all.filter(|controller| column(*controller, number).is_some_and(is_meant)).collect()
    };
    // The hierarchy of version 2 has the number 0.
    (those(1, |hierarchy| hierarchy != 0), those(3, |enabled| enabled == 0))
}

/// The rows about the worker that was started.
pub(super) fn rows(facts: &Facts, trial: &Trial, limits: &CgroupLimits, host: &Host) -> Vec<Row> {
    vec![
        of_worker(trial.cgroup.as_ref(), facts.undelegated, host),
        of_limits(&trial.limits, limits, facts, host.manager),
    ]
}

fn of_worker(
    made: Option<&Result<CgroupTrial, String>>,
    undelegated: Option<Undelegated>,
    host: &Host,
) -> Row {
    const CHECK: &str = "cgroup";
    const WITHOUT: &str = "none for the workers";
    const EFFECT: &str = "the processes of a worker are found by reading /proc";
    let is_delegated = made.is_some();
    let row = match made {
        Some(Ok(CgroupTrial { entered: true, kills: true })) => {
            Row::ok(GROUP, CHECK, "one for each worker, killed at once")
        }
        Some(Ok(CgroupTrial { entered: true, kills: false })) => {
            let why =
                "cgroup.kill is missing before Linux 5.14; the processes of a worker are killed one by one";
            Row::degraded(GROUP, CHECK, "one for each worker", why, Fix::kernel("5.14"))
        }
        Some(Ok(CgroupTrial { entered: false, .. })) => {
            let fix = Fix::by_hand("keep processes out of the parents of the supervisor's cgroup");
            let why = format!("a cgroup was made, and a worker cannot enter it; {EFFECT}");
            Row::degraded(GROUP, CHECK, WITHOUT, why, fix)
        }
        Some(Err(error)) => {
            let fix = Fix::by_hand("mount the cgroup file system so that the supervisor can write to it");
            let why = format!("the cgroup is delegated, and none can be made in it: {error}; {EFFECT}");
            Row::degraded(GROUP, CHECK, WITHOUT, why, fix)
        }
        None => {
            let undelegated = undelegated.unwrap_or(Undelegated::Unmarked);
            let why = format!("{undelegated}; {EFFECT}");
            Row::degraded(GROUP, CHECK, WITHOUT, why, delegate(undelegated, host.manager))
        }
    };
    row.with("is_delegated", is_delegated)
}

/// How to get a cgroup that can be divided.
fn delegate(undelegated: Undelegated, manager: Manager) -> Fix {
    match (undelegated, manager) {
        (Undelegated::NotMounted, _) => {
            Fix::by_hand("boot with systemd.unified_cgroup_hierarchy=1, or mount cgroup2 into the container")
        }
        (Undelegated::Root, Manager::Systemd) => {
            Fix::command("start it as a service with its own cgroup", "systemd-run -p Delegate=yes COMMAND")
        }
        (Undelegated::Root, Manager::Container | Manager::Other) | (Undelegated::Unmarked, _) => {
            manager.give(Setting::Delegation)
        }
    }
}

fn of_limits(trial: &LimitsTrial, limits: &CgroupLimits, facts: &Facts, manager: Manager) -> Row {
    const CHECK: &str = "cgroup_limits";
    let asked = limits.options();
    let usable = match trial.usable.as_slice() {
        [] => "none".to_owned(),
        some => names(some),
    };
    let row = match &trial.refused {
        None if asked.is_empty() => {
            Row::unused(GROUP, CHECK, format!("no limit was asked for; usable: {usable}"))
        }
        None => Row::ok(GROUP, CHECK, format!("as asked for; usable: {usable}")),
        Some(error) => {
            let is_meant = |controller| match error {
                Unusable::NoController(..) => !trial.usable.contains(&controller),
                Unusable::Undelegated(_)
                | Unusable::NotCgroup(_)
                | Unusable::Occupied(..)
                | Unusable::Failed(..) => true,
            };
            let meant = asked.into_iter().filter(|(_, controller)| is_meant(*controller));
            let options: Vec<&str> = meant.map(|(option, _)| option).collect();
            let why = format!("{}: {error}", options.join(" and "));
            let missing = limits.controllers().into_iter().filter(|controller| is_meant(*controller));
            let fix = allow(error, &missing.collect::<Vec<_>>(), trial, facts, manager);
            Row::missing(GROUP, CHECK, "no supervisor can start", why, fix)
        }
    };
    let has = |controller| trial.usable.contains(&controller);
    row.with("has_memory", has(Controller::Memory))
        .with("has_cpu", has(Controller::Cpu))
        .with("has_pids", has(Controller::Pids))
}

fn names(controllers: &[Controller]) -> String {
    controllers.iter().map(|controller| controller.name()).collect::<Vec<_>>().join(", ")
}

/// What makes the limits possible. `missing`: the controllers that were asked for and are not there.
fn allow(
    error: &Unusable,
    missing: &[Controller],
    trial: &LimitsTrial,
    facts: &Facts,
    manager: Manager,
) -> Fix {
    let dir = match error {
        Unusable::Undelegated(why) => return delegate(*why, manager),
        Unusable::NotCgroup(_) => {
            return Fix::by_hand("name a directory below a mounted cgroup2 file system");
        }
        Unusable::Occupied(..) => {
            return Fix::by_hand(
                "move these processes into a cgroup of their own, or give the supervisor another one",
            );
        }
        Unusable::Failed(..) => {
            return Fix::by_hand("mount the cgroup file system so that the supervisor can write to it");
        }
        Unusable::NoController(_, dir) => dir,
    };
    let among = |of: &[Controller]| -> Vec<Controller> {
        missing.iter().copied().filter(|controller| of.contains(controller)).collect()
    };
    let (disabled, of_v1) = (among(&facts.disabled), among(&facts.of_v1));
    if !disabled.is_empty() {
        let words = |what: &str| {
            disabled.iter().map(|controller| format!("{what}={controller}")).collect::<Vec<_>>().join(" ")
        };
        let (without, with) = (words("cgroup_disable"), words("cgroup_enable"));
        return Fix::by_hand(format!("boot without {without} in the kernel's command line, or with {with}"));
    }
    if !of_v1.is_empty() {
        return Fix::by_hand(format!(
            "version 1 has {}: boot with systemd.unified_cgroup_hierarchy=1 cgroup_no_v1=all in the kernel's command line",
            names(&of_v1)
        ));
    }
    if trial.is_named {
        return enable(missing, &trial.closed);
    }
    let all = "Delegate=cpu memory pids";
    match manager {
        Manager::Systemd if is_of_user_manager(dir) => {
            Fix::command(format!("add to [Service] of user@.service: {all}"), "systemctl edit user@.service")
        }
        Manager::Systemd => {
            Fix::command(format!("add to [Service] of its unit: {all}"), "systemctl edit UNIT")
        }
        Manager::Container => {
            Fix::by_hand(format!("have the engine give the container these controllers: {}", names(missing)))
        }
        Manager::Other => enable(missing, &trial.closed),
    }
}

/// The command that gives the cgroup these controllers, from the top down.
fn enable(missing: &[Controller], closed: &[PathBuf]) -> Fix {
    let text = "as root: give it these controllers, cgroup by cgroup";
    let signs: Vec<String> = missing.iter().map(|controller| format!("+{controller}")).collect();
    let files: Vec<String> =
        closed.iter().map(|dir| dir.join("cgroup.subtree_control").display().to_string()).collect();
    Fix::command(text, format!("echo {} | tee {}", signs.join(" "), files.join(" ")))
}

/// Whether a cgroup is below that of the service manager of a user.
fn is_of_user_manager(dir: &Path) -> bool {
    let mut parts = dir.components().map(|part| part.as_os_str().to_string_lossy());
    parts.any(|part| part.starts_with("user@") && part.ends_with(".service"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::row::State;

    const ASKED: CgroupLimits =
        CgroupLimits { memory_max: Some(1 << 30), memory_high: None, cpu_max: None, pids_max: Some(50) };

    fn host() -> Host {
        Host::with(u64::MAX, false)
    }

    fn trial(usable: &[Controller], refused: Option<Unusable>) -> LimitsTrial {
        LimitsTrial { usable: usable.to_vec(), refused, is_named: false, closed: Vec::new() }
    }

    fn without_memory(dir: &str) -> LimitsTrial {
        let missing = Unusable::NoController(Controller::Memory, dir.into());
        trial(&[Controller::Pids], Some(missing))
    }

    fn fix_of(trial: &LimitsTrial, facts: &Facts, manager: Manager) -> Fix {
        of_limits(trial, &ASKED, facts, manager).problem.expect("a problem").fix
    }

    #[test]
    fn a_cgroup_that_is_not_delegated_has_its_reason() {
        let why = |of| of_worker(None, Some(of), &host()).problem.expect("a problem").why;
        assert!(why(Undelegated::NotMounted).contains("not mounted"));
        assert!(why(Undelegated::Root).contains("root cgroup"));
        assert!(why(Undelegated::Unmarked).contains("not delegated"));
        let all = Ok(CgroupTrial { entered: true, kills: true });
        assert_eq!(of_worker(Some(&all), None, &host()).state, State::Ok);
    }

    #[test]
    fn controllers_are_told_apart_also_without_a_limit() {
        let two = trial(&[Controller::Memory, Controller::Pids], None);
        let row = of_limits(&two, &CgroupLimits::default(), &Facts::default(), Manager::Systemd);
        assert_eq!(
            (row.state, row.uses.as_str()),
            (State::Unused, "no limit was asked for; usable: memory, pids")
        );
        let has = [("has_memory", true.into()), ("has_cpu", false.into()), ("has_pids", true.into())];
        assert_eq!(row.values, has);
        let row = of_limits(&two, &ASKED, &Facts::default(), Manager::Systemd);
        assert_eq!((row.state, row.uses.as_str()), (State::Ok, "as asked for; usable: memory, pids"));
        let none = of_limits(&trial(&[], None), &CgroupLimits::default(), &Facts::default(), Manager::Other);
        assert_eq!(none.uses, "no limit was asked for; usable: none");
    }

    #[test]
    fn a_limit_that_cannot_be_set_names_its_options_and_its_controller() {
        let row = of_limits(&without_memory("/sys/fs/cgroup/a"), &ASKED, &Facts::default(), Manager::Systemd);
        assert_eq!(row.state, State::Missing);
        let why = row.problem.expect("a problem").why;
        let expected = "--worker-memory-max: the memory controller is not enabled for /sys/fs/cgroup/a; expected \
                        memory in /sys/fs/cgroup/cgroup.subtree_control";
        assert_eq!(why, expected);
        let undelegated = trial(&[], Some(Unusable::Undelegated(Undelegated::Unmarked)));
        let row = of_limits(&undelegated, &ASKED, &Facts::default(), Manager::Systemd);
        let problem = row.problem.expect("a problem");
        assert!(
            problem.why.starts_with("--worker-memory-max and --worker-pids-max: the cgroup is not delegated")
        );
        assert!(problem.fix.text.ends_with("Delegate=yes"), "{:?}", problem.fix);
    }

    #[test]
    fn the_advice_fits_whoever_has_the_controller() {
        let fix = |dir, facts: &Facts, manager| fix_of(&without_memory(dir), facts, manager);
        let service = "/sys/fs/cgroup/system.slice/a.service";
        let command = |fix: Fix| fix.command.unwrap_or_default();
        let none = Facts::default();
        assert_eq!(command(fix(service, &none, Manager::Systemd)), "systemctl edit UNIT");
        let user = "/sys/fs/cgroup/user.slice/user-7.slice/user@7.service/app.slice/a.service";
        assert_eq!(command(fix(user, &none, Manager::Systemd)), "systemctl edit user@.service");
        let v1 = Facts { of_v1: vec![Controller::Memory, Controller::Cpu], ..Facts::default() };
        let text = fix(service, &v1, Manager::Systemd).text;
        assert!(text.starts_with("version 1 has memory: boot with "), "{text}");
        let off = Facts { disabled: vec![Controller::Memory], ..Facts::default() };
        let text = fix(service, &off, Manager::Systemd).text;
        assert!(
            text.contains(" cgroup_disable=memory ") && text.ends_with(" cgroup_enable=memory"),
            "{text}"
        );
    }

    #[test]
    fn a_named_cgroup_gets_its_controllers_by_one_command() {
        let closed = ["/sys/fs/cgroup", "/sys/fs/cgroup/a"].map(PathBuf::from).to_vec();
        let trial = LimitsTrial { is_named: true, closed, ..without_memory("/sys/fs/cgroup/a/b") };
        let expected = "echo +memory | tee /sys/fs/cgroup/cgroup.subtree_control \
                        /sys/fs/cgroup/a/cgroup.subtree_control";
        let fix = fix_of(&trial, &Facts::default(), Manager::Systemd);
        assert_eq!(fix.command.as_deref(), Some(expected));
    }

    #[test]
    fn the_hierarchy_of_a_controller_is_read() {
        let table = "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpuset\t3\t1\t1\ncpu\t0\t1\t1\nmemory\t4\t55\t1\n\
                     pids\t0\t1\t0\n";
        assert_eq!(homes(table), (vec![Controller::Memory], vec![Controller::Pids]));
        assert_eq!(homes(""), (vec![], vec![]));
    }
}
