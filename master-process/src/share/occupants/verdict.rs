//! The owner of a process that holds an address, decided from evidence.

use rustix::process::Pid;

use crate::sys::notify::supervisor_of_address;
use crate::sys::peer::Environment;

/// The marks in the environment of a worker's processes: slot, generation, and the supervisor's pid. Some shells set
/// `PPID` to the pid of another process, and others remove it, so the path in `NOTIFY_SOCKET` counts first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Marks {
    pub(super) supervisor: Pid,
    /// `WORKER_INDEX` and `RELOAD_INDEX`.
    worker: (u32, u32),
}

impl Marks {
    pub(super) fn read(environment: &Environment) -> Option<Marks> {
        let number = |name| environment.number(name);
        let parent = || Pid::from_raw(i32::try_from(number("PPID")?).ok().filter(|pid| *pid > 0)?);
        let supervisor = environment.get("NOTIFY_SOCKET").and_then(supervisor_of_address).or_else(parent)?;
        Some(Marks { supervisor, worker: (number("WORKER_INDEX")?, number("RELOAD_INDEX")?) })
    }
}

/// An ancestor of a process, or the process that now has a recorded pid.
#[derive(Debug, Clone, Copy)]
pub(super) struct Other {
    pub(super) pid: Pid,
    pub(super) started: u64,
    /// Whether it runs a supervisor, as far as can be seen.
    pub(super) is_supervisor: bool,
}

/// The evidence about a process that holds an address.
#[derive(Debug, Clone)]
pub(super) struct Evidence {
    pub(super) pid: Pid,
    /// Its start time, in clock ticks after boot.
    pub(super) started: u64,
    pub(super) marks: Option<Marks>,
    /// Whether it is in our PID namespace; otherwise the pids in its marks mean nothing.
    pub(super) shares_pids: bool,
    /// Its ancestors, from its parent on; `None`: they could not be followed to the first process.
    pub(super) ancestors: Option<Vec<Other>>,
    /// The process that now has the pid in the marks; `None` also for a zombie.
    pub(super) recorded: Option<Other>,
}

/// The owner of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is this supervisor, or belongs to one of its workers.
    Ours,
    /// It belongs to the running supervisor with this pid.
    OfLiving(Pid),
    /// An earlier supervisor has left it.
    Left(Marks),
    /// It belongs to no supervisor, or its owner is unknown.
    Unrelated,
}

/// Decides the owner of a process. It counts as left behind only if no evidence contradicts that. While a supervisor
/// lives, it is an ancestor of all processes that its workers start, because it adopts their orphans.
pub(super) fn verdict(us: Pid, evidence: &Evidence) -> Verdict {
    let Some(ancestors) = &evidence.ancestors else { return Verdict::Unrelated };
    let descends_from = |pid: Pid| ancestors.iter().any(|ancestor| ancestor.pid == pid);
    if evidence.pid == us || descends_from(us) {
        return Verdict::Ours;
    }
    if let Some(supervisor) = ancestors.iter().find(|ancestor| ancestor.is_supervisor) {
        return Verdict::OfLiving(supervisor.pid);
    }
    let Some(marks) = evidence.marks.filter(|_| evidence.shares_pids) else { return Verdict::Unrelated };
    // A process that started later has only reused the supervisor's pid.
    let may_be_meant = |other: &Other| {
        other.started <= evidence.started && (other.is_supervisor || descends_from(other.pid))
    };
    match evidence.recorded.filter(may_be_meant) {
        Some(supervisor) => Verdict::OfLiving(supervisor.pid),
        None => Verdict::Left(marks),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: i32 = 900;

    fn pid(number: i32) -> Pid {
        Pid::from_raw(number).expect("not 0")
    }

    fn other(number: i32, started: u64, is_supervisor: bool) -> Other {
        Other { pid: pid(number), started, is_supervisor }
    }

    fn marks(text: &str) -> Option<Marks> {
        Marks::read(&Environment::new(text.replace(' ', "\0").as_bytes()))
    }

    /// A process left by a supervisor with pid 40, which has ended.
    fn left() -> Evidence {
        Evidence {
            pid: pid(50),
            started: 100,
            marks: marks("PPID=40 WORKER_INDEX=0 RELOAD_INDEX=2"),
            shares_pids: true,
            ancestors: Some(vec![other(1, 0, false)]),
            recorded: None,
        }
    }

    fn verdict_of(evidence: &Evidence) -> Verdict {
        verdict(pid(US), evidence)
    }

    #[test]
    fn a_worker_whose_supervisor_has_ended_was_left() {
        assert!(matches!(verdict_of(&left()), Verdict::Left(marks) if marks.supervisor == pid(40)));
        let reused = Evidence { recorded: Some(other(40, 101, true)), ..left() };
        assert!(matches!(verdict_of(&reused), Verdict::Left(_)), "the pid was reused");
        let another = Evidence { recorded: Some(other(40, 90, false)), ..left() };
        assert!(matches!(verdict_of(&another), Verdict::Left(_)), "another program, and no ancestor");
    }

    #[test]
    fn a_worker_whose_supervisor_may_live_was_not_left() {
        let is_living =
            |evidence: Evidence, of| assert_eq!(verdict_of(&evidence), Verdict::OfLiving(pid(of)));
        is_living(Evidence { recorded: Some(other(40, 90, true)), ..left() }, 40);
        is_living(Evidence { recorded: Some(other(40, 100, true)), ..left() }, 40);
        // The supervisor's executable is a copy with another name.
        let (supervisor, first) = (other(40, 90, false), other(1, 0, false));
        let renamed =
            Evidence { recorded: Some(supervisor), ancestors: Some(vec![supervisor, first]), ..left() };
        is_living(renamed, 40);
        // The marks name another supervisor: the process has changed them, or an outer supervisor has adopted it.
        let adopted = Some(vec![other(60, 10, false), other(30, 5, true), first]);
        is_living(Evidence { ancestors: adopted.clone(), ..left() }, 30);
        is_living(Evidence { ancestors: adopted, marks: None, ..left() }, 30);
    }

    #[test]
    fn a_supervisor_is_named_by_its_notify_socket_before_a_parent_is() {
        let socket = "NOTIFY_SOCKET=/run/master-process/master-process-41-0123456789abcdef/notify";
        let of = |text: String| {
            marks(&format!("WORKER_INDEX=0 RELOAD_INDEX=2 {text}")).map(|marks| marks.supervisor)
        };
        assert_eq!(of(socket.to_owned()), Some(pid(41)));
        assert_eq!(of(format!("PPID=40 {socket}")), Some(pid(41)));
        assert_eq!(of("PPID=40 NOTIFY_SOCKET=@00001".to_owned()), Some(pid(40)));
        assert_eq!(of("NOTIFY_SOCKET=@00001".to_owned()), None);
    }

    #[test]
    fn a_descendant_of_ours_is_ours_whatever_its_environment_says() {
        let ancestors = Some(vec![other(70, 20, false), other(US, 10, true), other(30, 5, true)]);
        assert_eq!(verdict_of(&Evidence { ancestors, ..left() }), Verdict::Ours);
        assert_eq!(verdict_of(&Evidence { pid: pid(US), ..left() }), Verdict::Ours);
        // An earlier supervisor had our pid.
        let marks = marks("PPID=900 WORKER_INDEX=0 RELOAD_INDEX=0");
        let recorded = Some(other(US, 500, true));
        assert!(matches!(verdict_of(&Evidence { marks, recorded, ..left() }), Verdict::Left(_)));
    }

    #[test]
    fn without_all_marks_or_all_knowledge_it_is_a_stranger() {
        let unrelated = [
            Evidence { marks: None, ..left() },
            Evidence { shares_pids: false, ..left() },
            Evidence { ancestors: None, ..left() },
        ];
        for evidence in unrelated {
            assert_eq!(verdict_of(&evidence), Verdict::Unrelated, "{evidence:?}");
        }
        for text in [
            "PPID=40 WORKER_INDEX=0",
            "PPID=0 WORKER_INDEX=0 RELOAD_INDEX=0",
            "A=1",
            "WORKER_INDEX=0 RELOAD_INDEX=0",
        ] {
            assert_eq!(marks(text), None, "{text}");
        }
    }
}
