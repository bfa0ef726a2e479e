//! Two PostgreSQL servers on one port in one worker: the second finds it taken.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use master_process_tests::fixtures;

use crate::network::{self, needs, path_of};
use crate::run::{Alone, Running, supervised, text_of};

const PORT: &str = "5433";

/// Debian's servers, one folder for each version.
const VERSIONS: &str = "/usr/lib/postgresql";

/// The folder of the newest server's programs.
fn programs() -> Option<PathBuf> {
    let folders = fs::read_dir(VERSIONS).ok()?.flatten().map(|entry| entry.path().join("bin"));
    folders.filter(|folder| folder.join("initdb").exists()).max()
}

/// The server refuses to run as root.
fn as_postgres() -> Vec<String> {
    vec![path_of("runuser"), "-u".into(), "postgres".into(), "--".into()]
}

fn run(words: &[String]) {
    let output = Command::new(&words[0]).args(&words[1..]).output().expect("the program can be run");
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A cluster of databases to copy.
fn template(programs: &Path, folder: &Path) {
    run(&[path_of("chown"), "postgres".into(), text_of(folder)]);
    let mut words = as_postgres();
    words.push(text_of(&programs.join("initdb")));
    words.extend(["--no-sync", "--auth=trust", "--no-locale", "--wal-segsize=1", "-D"].map(str::to_owned));
    words.push(text_of(&folder.join("template")));
    run(&words);
}

/// The script with two clusters of its own: a server that was killed leaves lock files in its cluster.
fn two_servers(programs: &Path, folder: &Path, name: &str) -> Vec<String> {
    let own = folder.join(name);
    fs::create_dir(&own).expect("the folder is the test's own");
    run(&[path_of("chown"), "postgres".into(), text_of(&own)]);
    for cluster in ["first", "second"] {
        run(&[path_of("cp"), "-a".into(), text_of(&folder.join("template")), text_of(&own.join(cluster))]);
    }
    let script = text_of(&fixtures::folder().join("two_postgres.sh"));
    vec!["sh".into(), script, text_of(programs), text_of(&own), PORT.into()]
}

fn second_is_refused(program: &impl Running, programs: &Path) {
    program.said("end");
    let lines = program.lines();
    assert!(lines.iter().any(|line| line == "second 1"), "{lines:#?}");
    assert!(
        lines.iter().any(|line| line.contains("could not bind") && line.contains("Address already in use")),
        "{lines:#?}"
    );
    let ready = programs.join("pg_isready");
    let status = Command::new(ready).args(["--quiet", "-h", "127.0.0.1", "-p", PORT]).status();
    assert!(status.is_ok_and(|status| status.success()), "the first goes on serving");
}

#[test]
fn the_second_postgres_of_one_worker_finds_the_port_taken() {
    needs!("the_second_postgres_of_one_worker_finds_the_port_taken", "runuser", VERSIONS);
    let programs = programs().expect("a version of it is installed");
    let folder = tempfile::tempdir().expect("a temporary folder");
    template(&programs, folder.path());
    println!("alone");
    network::enter();
    let mut command = as_postgres();
    command.extend(two_servers(&programs, folder.path(), "alone"));
    let alone = Alone::start(&command, &[]);
    second_is_refused(&alone, &programs);
    drop(alone);
    println!("as a worker");
    network::enter();
    let command = two_servers(&programs, folder.path(), "worker");
    let supervisor = supervised(&["--user", "postgres"], &command);
    second_is_refused(&supervisor, &programs);
    assert_eq!(supervisor.stop(), 0);
}
