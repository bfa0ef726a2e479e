//! `events`: what has happened, and with `-f` what happens.

use clap::{Arg, ArgAction, ArgMatches, Command};

use super::connection::{Failure, Received};
use super::exit::codes;
use super::{arguments, find, show, status};
use crate::control::{Event, Line, Request};

pub(super) fn arguments(command: Command) -> Command {
    let follow = Arg::new("follow")
        .short('f')
        .long("follow")
        .action(ArgAction::SetTrue)
        .help("Go on with each new event, until the supervisor ends");
    let since = Arg::new("since")
        .long("since")
        .value_name("SEQ")
        .value_parser(|text: &str| arguments::number(text, 0u64, "the number of an event"))
        .help("Only the events after this number");
    arguments::of_one(command).arg(follow).arg(since)
}

pub(super) fn run(matches: &ArgMatches) -> Result<u8, Failure> {
    let follow = matches.get_flag("follow");
    let since = matches.get_one::<u64>("since").copied().unwrap_or_default();
    let json = matches.get_flag("json");
    let mut connection = find::connect(matches)?;
    connection.send(Request::Events { since, follow })?;
    loop {
        match connection.receive(None)? {
            Received::Line(Line::Event(event), text) => {
                show::print(&if json {
                    format!("{text}\n")
                } else {
                    show::wrapped(&line(&event), show::columns(), INDENT)
                });
            }
            Received::Line(Line::Reply(reply), _) => {
                if let Some(error) = reply.error {
                    return Err(Failure::new(codes::UNKNOWN, error.message));
                }
                if reply.end_of_events.is_some() {
                    return Ok(codes::OK);
                }
            }
            Received::Nothing => {}
            Received::End if follow => return Ok(codes::OK),
            Received::End => {
                return Err(Failure::new(codes::UNKNOWN, "the supervisor has closed the connection"));
            }
        }
    }
}

/// Where the further lines of an event begin that is longer than the terminal is wide: after the time.
const INDENT: usize = 13;

/// An event as a line for people.
pub(super) fn line(event: &Event) -> String {
    if let Some(missed) = event.missed {
        return format!("{:12} {missed} events were missed: this reader is too slow", "");
    }
    let time = event.time.get(11..23).unwrap_or(&event.time);
    let mut words = vec![time.to_owned(), event.event.clone()];
    let mut add = |text: Option<String>| words.extend(text);
    add(event.reload.map(|number| format!("reload {number}")));
    add(event.slot.map(|slot| format!("slot {slot}")));
    add(event.pid.map(|pid| format!("pid {pid}")));
    add(event.replaces_pid.map(|pid| format!("replaces {pid}")));
    add(event.slots_total.map(|slots| format!("{slots} slots")));
    add(event.from.zip(event.to).map(|(from, to)| format!("from {from} to {to}")));
    add(event.after_seconds.map(|after| format!("after {}", show::tenths(after))));
    add(event.superseded_by.map(|by| format!("by reload {by}")));
    add(event.address.clone().map(|address| format!("on {address}")));
    add(event.queue_length.map(|length| format!("{length} queued")));
    add(event.limit.clone().map(|limit| format!("over its {limit} limit")));
    add(event.wait_seconds.map(|wait| format!("starts in {}", show::tenths(wait))));
    add(event.monitor.clone());
    add(event.limits_paused.map(|paused| format!("limits {}", if paused { "paused" } else { "resumed" })));
    add(event.end.as_ref().map(status::ended));
    add(event.message.as_deref().map(show::plain));
    add(event.error.as_ref().map(|error| show::plain(&error.message)));
    add(event.by.as_deref().map(|by| format!("({})", show::plain(by))));
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_a_line_with_what_it_has() {
        let ready = Event {
            time: "2026-11-29T10:48:18.961Z".to_owned(),
            seq: 10,
            event: "worker.ready".to_owned(),
            slot: Some(0),
            pid: Some(2971),
            after_seconds: Some(0.799),
            replaces_pid: Some(2573),
            ..Event::default()
        };
        assert_eq!(line(&ready), "10:48:18.961 worker.ready slot 0 pid 2971 replaces 2573 after 0.8s");
        let missed = Event { event: "missed".to_owned(), missed: Some(7), seq: 9, ..Event::default() };
        assert!(line(&missed).contains("7 events were missed"));
    }
}
