//! Choosing the source of the measurements.

use crate::config::Monitor;

/// The chosen source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chosen {
    /// A timer in the kernel.
    Ebpf,
    /// The files of `/proc`.
    Procfs,
    /// Nothing is measured.
    Off,
}

/// The result of trying a source; `Err` has the reason, as the end of a sentence.
pub(super) type Fact = Result<(), String>;

/// The chosen source, and the message about it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Decision {
    pub(super) chosen: Chosen,
    pub(super) says: Option<String>,
}

/// Chooses a source, or fails if the requested one is unavailable. A source is tried only if it can be chosen:
/// loading the programs takes time.
pub(super) fn decide(
    wish: Monitor,
    ebpf: impl FnOnce() -> Fact,
    procfs: impl FnOnce() -> Fact,
) -> Result<Decision, String> {
    let chosen = |chosen, says: &str| Ok(Decision { chosen, says: Some(says.to_owned()) });
    let unloaded = match wish {
        Monitor::Off => return Ok(Decision { chosen: Chosen::Off, says: None }),
        Monitor::Procfs => None,
        Monitor::Ebpf | Monitor::Auto => match ebpf() {
            Ok(()) => return chosen(Chosen::Ebpf, "monitor: eBPF"),
            Err(why) if wish == Monitor::Ebpf => return Err(why),
            Err(why) => Some(why),
        },
    };
    match (procfs(), unloaded) {
        (Ok(()), None) => chosen(Chosen::Procfs, "monitor: procfs"),
        (Ok(()), Some(why)) => chosen(Chosen::Procfs, &format!("monitor: procfs; eBPF unavailable: {why}")),
        (Err(why), None) => Err(why),
        (Err(unread), Some(unloaded)) => chosen(
            Chosen::Off,
            &format!("monitor: off; eBPF unavailable: {unloaded}; procfs unavailable: {unread}"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO: fn() -> Fact = || Err("no".to_owned());
    const YES: fn() -> Fact = || Ok(());

    fn unasked() -> Fact {
        panic!("nobody wants to know")
    }

    fn says(decision: &Result<Decision, String>) -> &str {
        decision.as_ref().ok().and_then(|decision| decision.says.as_deref()).unwrap_or_default()
    }

    #[test]
    fn auto_takes_ebpf_where_it_loads() {
        let decision = decide(Monitor::Auto, YES, unasked);
        assert_eq!(says(&decision), "monitor: eBPF");
        assert_eq!(decision.map(|decision| decision.chosen), Ok(Chosen::Ebpf));
    }

    #[test]
    fn auto_takes_procfs_where_ebpf_does_not_load_and_says_why() {
        let decision = decide(Monitor::Auto, NO, YES);
        assert_eq!(says(&decision), "monitor: procfs; eBPF unavailable: no");
        assert_eq!(decision.map(|decision| decision.chosen), Ok(Chosen::Procfs));
    }

    #[test]
    fn auto_goes_on_without_either() {
        let decision = decide(Monitor::Auto, NO, NO);
        assert!(says(&decision).starts_with("monitor: off; eBPF unavailable: no; procfs unavailable: no"));
        assert_eq!(decision.map(|decision| decision.chosen), Ok(Chosen::Off));
    }

    #[test]
    fn what_was_asked_for_and_cannot_be_had_is_an_error() {
        assert_eq!(decide(Monitor::Ebpf, NO, unasked), Err("no".to_owned()));
        assert_eq!(decide(Monitor::Procfs, unasked, NO), Err("no".to_owned()));
    }

    #[test]
    fn what_was_asked_for_is_taken() {
        let chosen = |decision: Result<Decision, String>| decision.map(|decision| decision.chosen);
        assert_eq!(chosen(decide(Monitor::Ebpf, YES, unasked)), Ok(Chosen::Ebpf));
        assert_eq!(chosen(decide(Monitor::Procfs, unasked, YES)), Ok(Chosen::Procfs));
        assert_eq!(decide(Monitor::Off, unasked, unasked), Ok(Decision { chosen: Chosen::Off, says: None }));
    }
}
