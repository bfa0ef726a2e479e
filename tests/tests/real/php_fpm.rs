//! php-fpm on a Unix path. Before it binds, it connects to the path, and gives up when another instance answers.

use std::path::Path;

use master_process_tests::load::Tally;
use master_process_tests::process;
use master_process_tests::traffic::pass;
use rustix::process::Signal;

use crate::fastcgi;
use crate::network::{self, needs, path_of};
use crate::run::{Client, answers, load, serves_and_reloads, supervised, text_of, write};

const PHP_FPM: &str = "php-fpm8.2";

/// Children of each php-fpm: how many requests it runs at a time.
const CHILDREN: u64 = 2;

fn command(folder: &Path) -> Vec<String> {
    let options = format!(
        "[global]\ndaemonize = no\nerror_log = /proc/self/fd/2\n[www]\nuser = root\ngroup = root\nlisten = {}\n\
         pm = static\npm.max_children = {CHILDREN}\n",
        text_of(&folder.join("php.sock"))
    );
    let options = write(folder, "php-fpm.conf", &options);
    vec![
        path_of(PHP_FPM),
        "--nodaemonize".into(),
        "--allow-to-run-as-root".into(),
        "--fpm-config".into(),
        options,
    ]
}

fn client(folder: &Path) -> impl Client + use<> {
    let script = write(folder, "pid.php", "<?php echo getmypid();");
    let socket = folder.join("php.sock");
    move || fastcgi::get(&socket, &script)
}

#[test]
fn one_php_fpm_loses_no_request_in_four_reloads() {
    needs!("one_php_fpm_loses_no_request_in_four_reloads", PHP_FPM);
    let folder = tempfile::tempdir().expect("a temporary folder");
    serves_and_reloads(1, 4, &command(folder.path()), &client(folder.path()));
}

#[test]
fn two_php_fpm_on_one_path_lose_no_request_in_four_reloads() {
    needs!("two_php_fpm_on_one_path_lose_no_request_in_four_reloads", PHP_FPM);
    let folder = tempfile::tempdir().expect("a temporary folder");
    serves_and_reloads(2, 4, &command(folder.path()), &client(folder.path()));
}

#[test]
fn kill_9_of_a_php_fpm_loses_only_what_it_was_at() {
    needs!("kill_9_of_a_php_fpm_loses_only_what_it_was_at", PHP_FPM);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let client = client(folder.path());
    network::enter();
    let supervisor = supervised(&[], &command(folder.path()));
    answers(&supervisor, &client);
    let clients = load(6, &client);
    for kills in 1..=3 {
        pass(&supervisor, &clients, 20);
        let victim = *supervisor.await_workers(1).first().expect("one");
        process::signal(victim, Signal::KILL);
        supervisor.eventually("it is replaced", || {
            let workers = supervisor.workers();
            workers.len() == 1 && !workers.contains(&victim)
        });
        pass(&supervisor, &clients, 20);
        let tally: Tally = clients.tally();
        assert_eq!(tally.inexcusable(), 0, "{tally}");
        assert!(tally.lost() <= CHILDREN * kills, "more than what {kills} workers were at: {tally}");
    }
    println!("{}", clients.stop());
    assert_eq!(supervisor.stop(), 0);
}
