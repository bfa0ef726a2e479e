//! Whose a process is that holds an address: evidence in, a verdict out.

use rustix::process::Pid;

use crate::sys::notify::supervisor_of_address;
use crate::sys::peer::Environment;

/// What every process of a worker finds in its environment: the slot, the generation, and the supervisor's pid. `PPID` is the
/// pid of another process behind some shells, and missing behind others: so the path in `NOTIFY_SOCKET` counts before it.
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

/// A process from which another one descends, or whose number another one has noted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Other {
    pub(super) pid: Pid,
    pub(super) started: u64,
    /// Whether it runs a supervisor, as far as we may look.
    pub(super) is_supervisor: bool,
}

/// What is known of a process that holds an address.
#[derive(Debug, Clone)]
pub(super) struct Evidence {
    pub(super) pid: Pid,
    /// When it was started, in ticks since the machine was.
    pub(super) started: u64,
    pub(super) marks: Option<Marks>,
    /// Whether it lives in our PID namespace: the numbers in its marks mean nothing otherwise.
    pub(super) shares_pids: bool,
    /// From its parent on; `None`: they could not be followed to the first.
    pub(super) ancestors: Option<Vec<Other>>,
    /// Who has the number now that the marks name, zombies excepted.
    pub(super) recorded: Option<Other>,
}

/// Whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Ours, or one of our workers'.
    Ours,
    /// It belongs to a supervisor that lives, this one.
    OfLiving(Pid),
    /// An earlier supervisor has left it behind.
    Left(Marks),
    /// Anybody's.
    Stranger,
}

/// Decides whose a process is. It was left behind only if nothing speaks against it: a supervisor is an ancestor of all that its
/// workers start for as long as it lives, since orphans among them become its children.
pub(super) fn verdict(us: Pid, evidence: &Evidence) -> Verdict {
    let Some(ancestors) = &evidence.ancestors else { return Verdict::Stranger };
    let descends_from = |pid: Pid| ancestors.iter().any(|ancestor| ancestor.pid == pid);
    if evidence.pid == us || descends_from(us) {
        return Verdict::Ours;
    }
    if let Some(supervisor) = ancestors.iter().find(|ancestor| ancestor.is_supervisor) {
        return Verdict::OfLiving(supervisor.pid);
    }
    let Some(marks) = evidence.marks.filter(|_| evidence.shares_pids) else { return Verdict::Stranger };
    // A process that was started later only has the number of the one that is meant.
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

    /// What a supervisor of pid 40 has left, which is gone.
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
    fn a_worker_whose_supervisor_is_gone_was_left() {
        assert!(matches!(verdict_of(&left()), Verdict::Left(marks) if marks.supervisor == pid(40)));
        let reused = Evidence { recorded: Some(other(40, 101, true)), ..left() };
        assert!(matches!(verdict_of(&reused), Verdict::Left(_)), "the number is a later process's");
        let another = Evidence { recorded: Some(other(40, 90, false)), ..left() };
        assert!(matches!(verdict_of(&another), Verdict::Left(_)), "another program, and no ancestor");
    }

    #[test]
    fn a_worker_whose_supervisor_may_live_was_not_left() {
        let is_living =
            |evidence: Evidence, of| assert_eq!(verdict_of(&evidence), Verdict::OfLiving(pid(of)));
        is_living(Evidence { recorded: Some(other(40, 90, true)), ..left() }, 40);
        is_living(Evidence { recorded: Some(other(40, 100, true)), ..left() }, 40);
        // It runs under another name, and is a copy.
        let (supervisor, first) = (other(40, 90, false), other(1, 0, false));
        let renamed =
            Evidence { recorded: Some(supervisor), ancestors: Some(vec![supervisor, first]), ..left() };
        is_living(renamed, 40);
        // The marks are another one's: it has changed them, or an outer supervisor has adopted it.
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
    fn what_descends_from_us_is_ours_whatever_it_says() {
        let ancestors = Some(vec![other(70, 20, false), other(US, 10, true), other(30, 5, true)]);
        assert_eq!(verdict_of(&Evidence { ancestors, ..left() }), Verdict::Ours);
        assert_eq!(verdict_of(&Evidence { pid: pid(US), ..left() }), Verdict::Ours);
        // An earlier supervisor had our number.
        let marks = marks("PPID=900 WORKER_INDEX=0 RELOAD_INDEX=0");
        let recorded = Some(other(US, 500, true));
        assert!(matches!(verdict_of(&Evidence { marks, recorded, ..left() }), Verdict::Left(_)));
    }

    #[test]
    fn without_all_marks_or_all_knowledge_it_is_a_stranger() {
        let strangers = [
            Evidence { marks: None, ..left() },
            Evidence { shares_pids: false, ..left() },
            Evidence { ancestors: None, ..left() },
        ];
        for evidence in strangers {
            assert_eq!(verdict_of(&evidence), Verdict::Stranger, "{evidence:?}");
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
