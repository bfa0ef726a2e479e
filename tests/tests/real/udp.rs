//! Servers of datagrams. A flow is a client's connected socket: its datagrams have the same two addresses.

use std::collections::BTreeSet;
use std::io;
use std::net::UdpSocket;
use std::time::Duration;

use master_process_tests::load::{Load, Outcome};
use master_process_tests::traffic::pass;
use master_process_tests::{Supervisor, TIMEOUT, await_some, fixtures, scaled};

use crate::network::{self, needs, path_of};
use crate::run::{Alone, PACE, Running, supervised, text_of, words};

/// The request, and where its answer has the pid.
#[derive(Clone, Copy)]
pub(crate) struct Protocol {
    pub(crate) port: u16,
    pub(crate) query: &'static [u8],
    pub(crate) pid: fn(&[u8]) -> Option<i32>,
}

/// How long a client waits for an answer before it repeats the request, as a resolver does.
const TRY: Duration = Duration::from_secs(1);

/// Datagrams may be lost: a client repeats a request once before it counts a request as failed.
const TRIES: usize = 2;

/// A client's socket.
pub(crate) struct Flow {
    socket: UdpSocket,
    protocol: Protocol,
}

impl Flow {
    pub(crate) fn open(protocol: Protocol) -> Flow {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket of any port");
        socket.connect(("127.0.0.1", protocol.port)).expect("it has only to remember the address");
        Flow { socket, protocol }
    }

    fn attempt(&self) -> io::Result<i32> {
        // What came too late for the last request is no answer to this one.
        self.socket.set_nonblocking(true)?;
        let mut answer = [0; 65536];
        while self.socket.recv(&mut answer).is_ok() {}
        self.socket.set_nonblocking(false)?;
        self.socket.set_read_timeout(Some(scaled(TRY)))?;
        self.socket.send(self.protocol.query)?;
        let length = self.socket.recv(&mut answer)?;
        let answer = &answer[..length];
        (self.protocol.pid)(answer)
            .ok_or_else(|| io::Error::other(String::from_utf8_lossy(answer).into_owned()))
    }

    /// One request, asked again if nothing came.
    pub(crate) fn ask(&self) -> Outcome {
        let mut last = Outcome::Timeout;
        for _ in 0..TRIES {
            match self.attempt() {
                Ok(pid) => return Outcome::Ok(pid.to_string()),
                Err(error) => last = Outcome::of(&error),
            }
        }
        last
    }

    fn pid(&self) -> Option<i32> {
        if let Outcome::Ok(pid) = self.ask() { pid.parse().ok() } else { None }
    }
}

/// The answers of all flows, in their order; `None` where one has no answer.
fn pids(flows: &[Flow]) -> Option<Vec<i32>> {
    flows.iter().map(Flow::pid).collect()
}

/// Clients enough that a worker without one of them is a fault, not chance: less than once in a million by a hash.
const FLOWS: usize = 64;

const WORKERS: usize = 4;

/// Sends requests until all workers answer: each flow has the same answer three times in a row.
fn distributed(supervisor: &Supervisor, flows: &[Flow]) -> Vec<i32> {
    supervisor.until("each flow has a worker of its own", || {
        let first = pids(flows)?;
        let distinct: BTreeSet<&i32> = first.iter().collect();
        let stays = || pids(flows).is_some_and(|again| again == first);
        (distinct.len() >= WORKERS - 1 && stays() && stays()).then_some(first)
    })
}

fn serves_flows(protocol: Protocol, command: &[String]) {
    println!("alone");
    network::enter();
    let alone = Alone::start(command, &[]);
    let flow = Flow::open(protocol);
    alone.wait_for("it answers", || flow.pid());
    for _ in 0..50 {
        assert_eq!(flow.pid(), Some(alone.pid()));
    }
    drop(alone);

    println!("as {WORKERS} workers");
    network::enter();
    let supervisor = supervised(&["-w", &WORKERS.to_string()], command);
    let workers = supervisor.await_workers(WORKERS);
    let flows: Vec<Flow> = (0..FLOWS).map(|_| Flow::open(protocol)).collect();
    let owners = distributed(&supervisor, &flows);
    for _ in 0..10 {
        assert_eq!(pids(&flows), Some(owners.clone()), "a flow stays with its worker");
    }
    let answered: BTreeSet<i32> = owners.into_iter().collect();
    assert!(answered.is_subset(&workers) && answered.len() >= WORKERS - 1, "{answered:?} of {workers:?}");

    let clients = Load::repeat(8, || {
        let flow = Flow::open(protocol);
        move || {
            std::thread::sleep(PACE);
            flow.ask()
        }
    });
    pass(&supervisor, &clients, 50);
    for _ in 0..4 {
        let new = supervisor.reload(WORKERS);
        // Also those that had an old worker.
        let answered: Option<BTreeSet<i32>> = pids(&flows).map(|pids| pids.into_iter().collect());
        let answered = answered.expect("every flow is answered after a reload");
        assert!(answered.is_subset(&new) && answered.len() >= WORKERS - 1, "{answered:?} of {new:?}");
        pass(&supervisor, &clients, 50);
    }
    let tally = clients.stop();
    println!("4 reloads: {tally}");
    assert_eq!(tally.lost() + tally.inexcusable(), 0, "{tally}");
    assert_eq!(supervisor.stop(), 0);
    let free = || UdpSocket::bind(("127.0.0.1", protocol.port)).ok();
    drop(await_some(TIMEOUT, "the port is free after the end", free));
}

#[test]
fn four_servers_of_datagrams_keep_their_flows_and_lose_none_in_four_reloads() {
    needs!("four_servers_of_datagrams_keep_their_flows_and_lose_none_in_four_reloads", "python3");
    let script = text_of(&fixtures::folder().join("udp_echo.py"));
    let protocol = Protocol {
        port: 5300,
        query: b"who",
        pid: |answer| std::str::from_utf8(answer).ok()?.strip_prefix("who ")?.parse().ok(),
    };
    let command = [fixtures::python(), "-S".into(), "-E".into(), script, protocol.port.to_string()];
    serves_flows(protocol, &command);
}

/// A query for the TXT record of `pid`: RFC 1035, 4.1.
const DNS_QUERY: &[u8] = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03pid\x00\x00\x10\x00\x01";

/// The answer ends with the only string of its only record.
fn dns_pid(answer: &[u8]) -> Option<i32> {
    let digits = answer.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
    std::str::from_utf8(&answer[answer.len() - digits..]).ok()?.parse().ok()
}

#[test]
fn four_dnsmasq_keep_their_flows_and_lose_none_in_four_reloads() {
    needs!("four_dnsmasq_keep_their_flows_and_lose_none_in_four_reloads", "dnsmasq");
    let protocol = Protocol { port: 5300, query: DNS_QUERY, pid: dns_pid };
    let options = format!(
        "--keep-in-foreground --port={} --listen-address=127.0.0.1 --bind-interfaces --no-resolv --no-hosts \
         --conf-file=/dev/null --user=root --pid-file",
        protocol.port
    );
    let mut command = fixtures::shell("exec \"$@\" --txt-record=pid,$$");
    command.extend(["sh".into(), path_of("dnsmasq")]);
    command.extend(words(&options));
    serves_flows(protocol, &command);
}
