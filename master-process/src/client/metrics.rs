//! `metrics`: serves the metrics of all instances of the host. One exporter, instead of a port for each supervisor.

use std::time::{Duration, Instant};

use clap::{Arg, ArgAction, ArgMatches, Command};

use super::connection::{Connection, Failure};
use super::exit::{codes, usage};
use super::{find, show};
use crate::cli;
use crate::config::{ListenAddr, LogFormat, Verbosity};
use crate::control::{NextAccept, Request};
use crate::exposition::{self, Instance};
use crate::http::{Listener, Page, Response, Server};
use crate::policy::Time;
use crate::report;
use crate::sys::poller::Poller;

/// The token of the listening socket. Those of clients are their numbers, from 1 on.
const LISTENER: u64 = 0;

pub(super) fn arguments(command: Command) -> Command {
    let all = Arg::new("all")
        .long("all")
        .required(true)
        .action(ArgAction::SetTrue)
        .help("All instances: a single one serves its metrics itself, with the option --metrics");
    let listen = Arg::new("listen")
        .long("listen")
        .required(true)
        .value_name("ADDR")
        .value_parser(|text: &str| cli::address(text))
        .help("Where to serve them: a port, HOST:PORT or unix:/path");
    command.arg(all).arg(listen)
}

pub(super) fn run(matches: &ArgMatches) -> Result<u8, Failure> {
    let Some(address) = matches.get_one::<ListenAddr>("listen") else {
        return Ok(usage(&"metrics: missing --listen"));
    };
    report::start_logging(LogFormat::Auto, &Verbosity::Normal);
    let failed = |error: anyhow::Error| Failure::new(codes::UNKNOWN, format!("--listen: {error:#}"));
    let listener = Listener::open(address, None).map_err(failed)?;
    let poller = Poller::epoll().map_err(|error| failed(error.into()))?;
    serve(Server::new(listener), poller)
}

/// Serves for ever.
fn serve(mut server: Server, mut poller: Poller) -> Result<u8, Failure> {
    let failed =
        |error: std::io::Error| Failure::new(codes::UNKNOWN, format!("cannot wait for events: {error}"));
    let token = |client: u64| client;
    let epoch = Instant::now();
    let now = || Time::new(epoch.elapsed());
    // When to accept again without an event.
    let (mut ready, mut accept_at) = (Vec::new(), None::<Time>);
    poller.watch(server.listener(), LISTENER).map_err(failed)?;
    loop {
        let due = [server.next_due(), accept_at].into_iter().flatten().min();
        let limit = if server.has_work() { Some(Duration::ZERO) } else { due.map(|due| due.since(now())) };
        poller.wait(limit, &mut ready).map_err(failed)?;
        if accept_at.is_some_and(|at| at <= now()) {
            ready.push(LISTENER);
        }
        for event in ready.drain(..) {
            if event == LISTENER {
                accept_at = match server.accept(now(), &mut poller, token) {
                    NextAccept::After(pause) => Some(now().after(pause)),
                    NextAccept::Watch => {
                        poller.watch(server.listener(), LISTENER).map_err(failed)?;
                        None
                    }
                };
            } else {
                server.event(now(), event, &mut poller, token);
            }
        }
        if let Some(asked) = server.take_request(now(), &mut poller, token) {
            let response = respond(asked.page);
            server.answer(now(), asked.client, &response, &mut poller, token);
        }
        server.check_times(now(), &mut poller, token);
    }
}

fn respond(page: Page) -> Response {
    match page {
        Page::Health => Response::line(200, "ok"),
        // Which of the instances should be ready is not known here: an alert can say it.
        Page::Ready => Response::line(200, "ready"),
        Page::Metrics(format) => Response {
            status: 200,
            content_type: format.content_type(),
            body: exposition::all(instances(), format),
        },
    }
}

/// Asks all instances. They work on their answers at the same time.
fn instances() -> Vec<Instance> {
    let (mut running, failed) = find::all();
    let sent: Vec<Result<(), Failure>> = running.iter_mut().map(|of| of.send(Request::Status)).collect();
    let asked = running.into_iter().zip(sent).map(|(connection, sent)| answer(connection, sent));
    let failed = failed.into_iter().map(|(name, _)| Instance { name: show::plain(&name), snapshot: None });
    let mut all: Vec<Instance> = asked.chain(failed).collect();
    // Two sockets in two directories can have one name, and a series can occur only once.
    all.sort_by(|one, other| {
        (&one.name, one.snapshot.is_none()).cmp(&(&other.name, other.snapshot.is_none()))
    });
    let names: Vec<String> = all.iter().map(|instance| instance.name.clone()).collect();
    for (at, instance) in all.iter_mut().enumerate() {
        let earlier = names[..at].iter().rev().take_while(|name| **name == instance.name).count();
        if earlier > 0 {
            instance.name = format!("{}@{}", instance.name, earlier + 1);
        }
    }
    all
}

fn answer(mut connection: Connection, sent: Result<(), Failure>) -> Instance {
    let name = show::plain(&connection.name());
    let reply = sent.and_then(|()| connection.answer());
    Instance { name, snapshot: reply.ok().and_then(|(reply, _)| reply.status).map(|status| *status) }
}
