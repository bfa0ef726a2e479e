//! What a worker is started with: its user's variables.

use std::fs;

use master_process_tests::supervisor::Builder;
use master_process_tests::{Supervisor, fixtures, process, profile, skip};

/// The variables of a login, as a supervisor of another user has them.
fn as_somebody_else() -> Builder {
    Supervisor::builder()
        .env("HOME", "/tmp/of-the-supervisor")
        .env("USER", "supervisor")
        .env("LOGNAME", "supervisor")
        .env("SHELL", "/bin/of-the-supervisor")
        .command(fixtures::worker(&["env"]))
}

/// `USER`, `LOGNAME`, `HOME` and `SHELL` of a worker.
fn login_of(builder: Builder) -> [Option<String>; 4] {
    let supervisor = builder.spawn();
    let environment = supervisor.await_environment(|_| true);
    let value = |name: &str| environment[name].as_str().map(str::to_owned);
    let login = ["USER", "LOGNAME", "HOME", "SHELL"].map(value);
    assert_eq!(supervisor.stop(), 0);
    login
}

/// A field of a user's entry in `/etc/passwd`.
fn entry(user: &str, field: usize) -> String {
    let text = fs::read_to_string("/etc/passwd").expect("every host has it");
    let mut entries = text.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let found = entries.find(|fields| fields[0] == user).expect("the user is there");
    found[field].to_owned()
}

#[test]
fn a_user_brings_its_home_name_and_shell() {
    let name = "a_user_brings_its_home_name_and_shell";
    if !process::is_root() {
        skip!(name, "to become another user takes root");
    }
    let text = |text: &str| Some(text.to_owned());
    let root = [text("root"), text("root"), text(&entry("root", 5)), text(&entry("root", 6))];
    assert_eq!(login_of(as_somebody_else().args(["--user", "root"])), root);
    assert_eq!(login_of(as_somebody_else().args(["--user", "0"])), root, "the same user by its id");
    // Its shell is one that lets nobody in.
    let nobody = login_of(as_somebody_else().args(["--user", "nobody"]));
    assert_eq!(nobody, [text("nobody"), text("nobody"), text(&entry("nobody", 5)), None]);
}

#[test]
fn an_id_without_an_entry_has_nobodys_home() {
    let name = "an_id_without_an_entry_has_nobodys_home";
    if !process::is_root() {
        skip!(name, "to become another user takes root");
    }
    let id = profile::ordinary_user().to_string();
    let login = login_of(as_somebody_else().args(["--user", &id, "--group", &id]));
    assert_eq!(login, [None, None, None, None]);
}

#[test]
fn without_a_user_the_variables_stay() {
    let text = |text: &str| Some(text.to_owned());
    let expected = [
        text("supervisor"),
        text("supervisor"),
        text("/tmp/of-the-supervisor"),
        text("/bin/of-the-supervisor"),
    ];
    assert_eq!(login_of(as_somebody_else()), expected);
    if process::is_root() {
        assert_eq!(login_of(as_somebody_else().args(["--group", "0"])), expected);
    }
}
