//! The two meanings of a SIGHUP.

use std::time::Duration;

use crate::policy::{Hangup, Hangups, Time};

const MS: Duration = Duration::from_millis(1);

fn start() -> Time {
    Time::new(Duration::from_secs(1000))
}

/// Checks the terminal as often as requested, and returns the verdict and the time that it took. The terminal goes
/// after `goes`.
fn decide(hangups: &mut Hangups, from: Time, goes: Option<Duration>) -> (Hangup, Duration) {
    let mut now = from;
    let mut verdict = hangups.signal(now, true);
    for _ in 0..1000 {
        match verdict {
            Some(Hangup::LookAgain(wait)) => now = now.after(wait),
            Some(verdict) => return (verdict, now.since(from)),
            None => panic!("nothing waits"),
        }
        if goes.is_some_and(|goes| now.since(from) >= goes) {
            hangups.terminal_gone(now);
        }
        verdict = hangups.looked(now);
    }
    panic!("never decided");
}

#[test]
fn without_a_terminal_it_is_a_reload_whoever_sends_it() {
    for outlives in [false, true] {
        let mut hangups = Hangups::new(false, outlives);
        assert_eq!(hangups.signal(start(), true), Some(Hangup::Reload));
        assert_eq!(hangups.signal(start(), false), Some(Hangup::Reload));
    }
}

#[test]
fn from_anybody_else_it_is_a_reload_at_once_while_the_terminal_is_there() {
    let mut hangups = Hangups::new(true, false);
    assert_eq!(hangups.signal(start(), false), Some(Hangup::Reload));
}

#[test]
fn from_above_it_is_a_reload_when_the_terminal_stays() {
    let mut hangups = Hangups::new(true, false);
    let (verdict, after) = decide(&mut hangups, start(), None);
    assert_eq!(verdict, Hangup::Reload);
    assert!(after >= 400 * MS && after < 500 * MS, "{after:?}");
    assert_eq!(hangups.looked(start().after(after)), None, "each is decided once");
}

#[test]
fn from_above_it_is_a_stop_when_the_terminal_goes_a_moment_later() {
    let mut hangups = Hangups::new(true, false);
    assert_eq!(decide(&mut hangups, start(), Some(100 * MS)).0, Hangup::Stop);
}

#[test]
fn two_that_wait_are_one() {
    let mut hangups = Hangups::new(true, false);
    assert!(matches!(hangups.signal(start(), true), Some(Hangup::LookAgain(_))));
    assert_eq!(hangups.signal(start().after(MS), true), None);
}

#[test]
fn after_the_terminal_is_gone_it_is_a_stop_whoever_sends_it() {
    for from_above in [false, true] {
        let mut hangups = Hangups::new(true, false);
        hangups.terminal_gone(start());
        assert_eq!(hangups.signal(start().after(5000 * MS), from_above), Some(Hangup::Stop));
    }
}

#[test]
fn long_after_a_terminal_that_went_without_one_it_is_a_reload() {
    let mut hangups = Hangups::new(true, false);
    hangups.terminal_gone(start());
    hangups.terminal_gone(start().after(60_000 * MS));
    assert_eq!(hangups.signal(start().after(60_000 * MS), true), Some(Hangup::Reload));
}

#[test]
fn under_nohup_the_terminals_end_is_outlived_and_a_later_one_is_a_reload() {
    let mut hangups = Hangups::new(true, true);
    assert_eq!(decide(&mut hangups, start(), Some(100 * MS)).0, Hangup::Outlive);
    // The SIGHUP of the shell can follow that of the kernel.
    assert_eq!(hangups.signal(start().after(1000 * MS), true), Some(Hangup::Outlive));
    assert_eq!(hangups.signal(start().after(3000 * MS), true), Some(Hangup::Reload));
}

#[test]
fn under_nohup_it_is_a_reload_while_the_terminal_is_there() {
    let mut hangups = Hangups::new(true, true);
    assert_eq!(decide(&mut hangups, start(), None).0, Hangup::Reload);
    assert_eq!(hangups.signal(start(), false), Some(Hangup::Reload));
}
