//! Erlang's distribution: each node takes the first free port of a range, registers with a name server, and the nodes connect.

use std::collections::BTreeSet;
use std::process::Command;

use master_process_tests::{TIMEOUT, await_some, fixtures};

use crate::network::{self, needs, path_of};
use crate::run::{Alone, Running, supervised};

const NODES: usize = 3;
const PORTS: (u16, u16) = (9100, 9109);

/// Pings all nodes, itself included, until they all answer, and prints its name and how many others it is connected to.
const PING: &str = "Ping = fun Again() -> \
     Nodes = [list_to_atom(\"n\" ++ integer_to_list(I) ++ \"@localhost\") || I <- lists:seq(0, 2)], \
     case lists:all(fun(Node) -> net_adm:ping(Node) =:= pong end, Nodes) of \
       true -> io:format(\"connected ~s ~p~n\", [node(), length(nodes())]); \
       false -> timer:sleep(100), Again() end end, Ping().";

fn node() -> Vec<String> {
    let (low, high) = PORTS;
    // The name server is the machine's, as Debian's service is, and not a part of the node that is started first.
    let mut command = fixtures::shell(&format!(
        "exec \"$0\" -sname n$WORKER_INDEX@localhost -setcookie test -noinput -start_epmd false -kernel \
         inet_dist_listen_min {low} inet_dist_listen_max {high} prevent_overlapping_partitions false -eval \"$1\""
    ));
    command.extend([path_of("erl"), PING.into()]);
    command
}

/// The ports of the nodes, from the name server.
fn ports() -> BTreeSet<u16> {
    let output = Command::new(path_of("epmd")).arg("-names").output().expect("epmd can be run");
    let names = String::from_utf8_lossy(&output.stdout).into_owned();
    names.lines().filter_map(|line| line.split(" at port ").nth(1)?.trim().parse().ok()).collect()
}

fn name_server() -> Alone {
    network::enter();
    let server = Alone::start(&[path_of("epmd")], &[]);
    server.wait_for("the name server answers", || {
        Command::new(path_of("epmd")).arg("-names").output().ok().filter(|output| output.status.success())
    });
    server
}

fn are_connected(lines: impl Fn() -> Vec<String>) {
    let expected: BTreeSet<String> =
        (0..NODES).map(|node| format!("connected n{node}@localhost 2")).collect();
    await_some(TIMEOUT, "three nodes are connected", || {
        let lines: BTreeSet<String> = lines().into_iter().collect();
        lines.is_superset(&expected).then_some(())
    });
    let ports = ports();
    assert_eq!(ports.len(), NODES, "each has a port of its own: {ports:?}");
    assert!(ports.iter().all(|port| (PORTS.0..=PORTS.1).contains(port)), "{ports:?}");
}

#[test]
fn three_erlang_nodes_take_three_ports_and_connect() {
    needs!("three_erlang_nodes_take_three_ports_and_connect", "erl", "epmd");
    println!("alone");
    let names = name_server();
    let start = |index: usize| Alone::start(&node(), &[("WORKER_INDEX", &index.to_string())]);
    let nodes: Vec<Alone> = (0..NODES).map(start).collect();
    are_connected(|| nodes.iter().flat_map(Running::lines).collect());
    drop((nodes, names));

    println!("as workers");
    let _names = name_server();
    let (low, high) = PORTS;
    let supervisor = supervised(&["-w", "3", "--no-share", &format!("{low}-{high}")], &node());
    are_connected(|| supervisor.output());
    assert_eq!(supervisor.workers().len(), NODES);
    assert_eq!(supervisor.stop(), 0);
}
