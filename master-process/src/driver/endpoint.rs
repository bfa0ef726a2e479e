//! The metrics in the loop: `/metrics`, `/healthz` and `/readyz`. Without `--metrics` nothing of it is there.

use super::context::{ClientCheck, Context, Deferred, Token};
use super::control::Control;
use crate::config::Config;
use crate::control::NextAccept;
use crate::exposition;
use crate::http::{Listener, Page, Response, SavedServer, Server};
use crate::sys::handover::{Incoming, Outgoing};

/// The endpoint.
#[derive(Debug)]
pub struct Endpoint {
    server: Option<Box<Server>>,
    check: ClientCheck,
}

impl Endpoint {
    /// Opens the socket of `--metrics`.
    ///
    /// # Errors
    /// It cannot be had.
    pub fn new(config: &Config) -> anyhow::Result<Endpoint> {
        let open = |address| Listener::open(address, config.control_group);
        let listener =
            config.metrics.as_ref().map(open).transpose().map_err(|error| error.context("--metrics"))?;
        let server = listener.map(|listener| Box::new(Server::new(listener)));
        Ok(Endpoint { server, check: ClientCheck::default() })
    }

    pub(super) fn save(&self, out: &mut Outgoing) -> Option<SavedServer> {
        self.server.as_ref().map(|server| server.save(out))
    }

    /// Goes on with its clients. [`begin`](Self::begin) comes next.
    pub(super) fn resume(saved: Option<SavedServer>, from: &mut Incoming) -> Endpoint {
        let server = saved.map(|server| Box::new(Server::resume(server, from)));
        Endpoint { server, check: ClientCheck::default() }
    }

    /// Begins to answer. To be called once.
    pub(super) fn begin(&mut self, cx: &mut Context) {
        let now = cx.now();
        let Some(server) = &mut self.server else { return };
        cx.watch(server.listener(), Token::Metrics);
        // Those that the supervisor before has accepted.
        for number in server.clients() {
            server.event(now, number, &mut cx.poller, token);
        }
    }

    /// Accepts clients.
    pub(super) fn accept(&mut self, cx: &mut Context) {
        let (now, Some(server)) = (cx.now(), &mut self.server) else { return };
        match server.accept(now, &mut cx.poller, token) {
            NextAccept::Watch => cx.watch(server.listener(), Token::Metrics),
            NextAccept::After(pause) => cx.schedule(pause, Deferred::AcceptScrapers),
        }
    }

    /// Handles an event of a client.
    pub(super) fn client(&mut self, cx: &mut Context, number: u64) {
        let now = cx.now();
        if let Some(server) = &mut self.server {
            server.event(now, number, &mut cx.poller, token);
        }
    }

    /// Answers a request. Returns whether there is more to do without waiting.
    pub(super) fn after_round(&mut self, cx: &mut Context, control: &Control) -> bool {
        let (now, Some(server)) = (cx.now(), &mut self.server) else { return false };
        if let Some(asked) = server.take_request(now, &mut cx.poller, token) {
            let response = respond(cx, control, asked.page);
            server.answer(cx.now(), asked.client, &response, &mut cx.poller, token);
        }
        let more = server.has_work();
        self.schedule_check(cx);
        more
    }

    /// Cuts off the clients that take too long.
    pub(super) fn check_times(&mut self, cx: &mut Context) {
        let now = cx.now();
        self.check = ClientCheck::default();
        if let Some(server) = &mut self.server {
            server.check_times(now, &mut cx.poller, token);
        }
        self.schedule_check(cx);
    }

    fn schedule_check(&mut self, cx: &mut Context) {
        let due = self.server.as_ref().and_then(|server| server.next_due());
        self.check.schedule(cx, due, Deferred::Scrapers);
    }
}

fn token(number: u64) -> u64 {
    Token::Scraper(number).encode()
}

fn respond(cx: &mut Context, control: &Control, page: Page) -> Response {
    match page {
        Page::Health => Response::line(200, "ok"),
        Page::Ready => match exposition::not_ready(&control.snapshot(cx)) {
            None => Response::line(200, "ready"),
            Some(why) => Response::line(503, &why),
        },
        Page::Metrics(format) => Response {
            status: 200,
            content_type: format.content_type(),
            body: exposition::one(control.snapshot(cx), format),
        },
    }
}
