//! Programs that start the server as a child, and programs that go into the background: the worker is all of it.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use master_process_tests::load::{self, Outcome};
use master_process_tests::supervisor::await_gone;
use master_process_tests::traffic::pass;
use master_process_tests::{Supervisor, process, profile};
use rustix::process::Signal;

use crate::network::{self, needs, path_of};
use crate::run::{OPTIONS, answers, load, supervised, text_of, write};

const PORT: u16 = 3000;

/// How long the requests take that a reload must not cut.
const SLOW: Duration = Duration::from_millis(1500);

const WORKERS: usize = 2;

/// Answers with its pid, and when asked to leave finishes what it is at.
fn server(folder: &Path) -> String {
    let slow = SLOW.as_millis();
    let text = format!(
        "const server = require('http').createServer((request, response) =>\n\
           setTimeout(() => response.end(String(process.pid)), request.url === '/slow' ? {slow} : 0));\n\
         process.on('SIGTERM', () => server.close(() => process.exit(0)));\n\
         server.listen({PORT}, '127.0.0.1');\n"
    );
    write(folder, "server.js", &text)
}

fn client(path: &'static str) -> impl Fn() -> Outcome + Clone + Send + 'static {
    move || load::get(std::net::SocketAddr::from(([127, 0, 0, 1], PORT)), path)
}

/// The servers that answer now.
fn who(supervisor: &Supervisor) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    supervisor.eventually("every worker answers", || {
        if let Outcome::Ok(pid) = client("/")() {
            seen.insert(pid);
        }
        seen.len() >= WORKERS
    });
    seen
}

/// Reloads under load, a killed first process, and the end.
fn is_one_worker(command: &[String]) {
    is_one_worker_in(&[], Vec::new(), command);
}

/// The same with more options, and with words in front of the supervisor's command line.
fn is_one_worker_in(options: &[&str], launcher: Vec<String>, command: &[String]) {
    network::enter();
    let supervisor = Supervisor::builder()
        .args(OPTIONS)
        .args(["-w", "2", "--kill-timeout", "30s"])
        .args(options)
        .wrap(launcher)
        .command(command)
        .spawn();
    answers(&supervisor, &client("/"));
    supervisor.await_workers(WORKERS);
    let mut old = who(&supervisor);
    let (slow, fast) = (load(4, &client("/slow")), load(4, &client("/")));
    for count in 1..=3 {
        pass(&supervisor, &fast, 50);
        reload(&supervisor, count);
        let new = who(&supervisor);
        assert!(new.is_disjoint(&old), "{old:?} answer after the reload: {new:?}");
        for pid in &old {
            await_gone(pid.parse().expect("a pid"));
        }
        old = new;
    }
    for (name, tally) in [("slow", slow.stop()), ("fast", fast.stop())] {
        println!("{name}: {tally}");
        assert_eq!(tally.lost() + tally.inexcusable(), 0, "{name}: {tally}");
        assert!(tally.served() > 0);
    }
    let first = *supervisor.await_workers(WORKERS).first().expect("two");
    process::signal(first, Signal::KILL);
    supervisor.eventually("it is replaced", || {
        let workers = supervisor.workers();
        workers.len() == WORKERS && !workers.contains(&first)
    });
    let new = who(&supervisor);
    let left: Vec<&String> = old.difference(&new).collect();
    assert!(left.len() <= 1, "{old:?} and {new:?}");
    for pid in left {
        await_gone(pid.parse().expect("a pid"));
    }
    assert_eq!(supervisor.stop(), 0);
    assert_eq!(supervisor.survivors(), Vec::<i32>::new());
}

fn node() -> String {
    path_of("node")
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[test]
fn a_shell_and_its_server_are_one_worker() {
    needs!("a_shell_and_its_server_are_one_worker", "node");
    let folder = tempfile::tempdir().expect("a temporary folder");
    is_one_worker(&words(&["sh", "-c", &format!("{} {}; true", node(), server(folder.path()))]));
}

#[test]
fn a_shell_and_its_server_are_one_worker_where_procfs_measures() {
    needs!("a_shell_and_its_server_are_one_worker_where_procfs_measures", "node");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let command = words(&["sh", "-c", &format!("{} {}; true", node(), server(folder.path()))]);
    is_one_worker_in(&["--monitor", "procfs"], Vec::new(), &command);
}

#[test]
fn a_shell_and_its_server_are_one_worker_of_an_ordinary_user() {
    needs!("a_shell_and_its_server_are_one_worker_of_an_ordinary_user", "node");
    let folder = tempfile::tempdir().expect("a temporary folder");
    open_to_all(folder.path());
    let command = words(&["sh", "-c", &format!("{} {}; true", node(), server(folder.path()))]);
    is_one_worker_in(&[], profile::launcher(Some(profile::ordinary_user()), &[]), &command);
}

#[test]
fn a_detached_child_of_node_is_its_workers_for_an_ordinary_user() {
    needs!("a_detached_child_of_node_is_its_workers_for_an_ordinary_user", "node");
    let folder = tempfile::tempdir().expect("a temporary folder");
    open_to_all(folder.path());
    is_one_worker_in(&[], profile::launcher(Some(profile::ordinary_user()), &[]), &detached(folder.path()));
}

fn open_to_all(folder: &Path) {
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(folder, mode).expect("the folder is the test's own");
}

#[test]
fn npm_start_is_one_worker() {
    needs!("npm_start_is_one_worker", "node", "npm");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let script =
        format!("{{\"name\": \"app\", \"scripts\": {{\"start\": \"node {}\"}}}}", server(folder.path()));
    write(folder.path(), "package.json", &script);
    let npm = path_of("npm");
    let (place, cache) = (text_of(folder.path()), text_of(&folder.path().join("cache")));
    is_one_worker(&words(&[
        "env",
        "-C",
        &place,
        "NO_UPDATE_NOTIFIER=1",
        &format!("npm_config_cache={cache}"),
        &npm,
        "start",
    ]));
}

#[test]
fn dumb_init_and_its_server_are_one_worker() {
    needs!("dumb_init_and_its_server_are_one_worker", "node", "dumb-init");
    let folder = tempfile::tempdir().expect("a temporary folder");
    is_one_worker(&words(&[&path_of("dumb-init"), &node(), &server(folder.path())]));
}

#[test]
fn tini_as_a_subreaper_and_its_server_are_one_worker() {
    needs!("tini_as_a_subreaper_and_its_server_are_one_worker", "node", "tini");
    let folder = tempfile::tempdir().expect("a temporary folder");
    is_one_worker(&words(&[&path_of("tini"), "-s", "--", &node(), &server(folder.path())]));
}

#[test]
fn a_server_in_a_session_of_its_own_is_its_workers() {
    needs!("a_server_in_a_session_of_its_own_is_its_workers", "node", "setsid");
    let folder = tempfile::tempdir().expect("a temporary folder");
    // It forks only where it leads a process group already, as every worker does.
    is_one_worker(&words(&[&path_of("setsid"), "--wait", &node(), &server(folder.path())]));
}

#[test]
fn a_detached_child_of_node_is_its_workers() {
    needs!("a_detached_child_of_node_is_its_workers", "node");
    let folder = tempfile::tempdir().expect("a temporary folder");
    is_one_worker(&detached(folder.path()));
}

fn detached(folder: &Path) -> Vec<String> {
    let text = format!(
        "const child = require('child_process').spawn(process.execPath, [{:?}], {{detached: true, stdio: 'inherit'}});\n\
         child.on('exit', code => process.exit(code));\n",
        server(folder)
    );
    words(&[&node(), &write(folder, "parent.js", &text)])
}

/// The file of an nginx that answers with the pid of its child.
fn nginx_options(folder: &Path) -> String {
    let place = text_of(folder);
    let options = format!(
        "pid {place}/nginx.pid; error_log {place}/nginx.log; events {{}}\n\
         http {{ access_log off; server {{ listen 127.0.0.1:{PORT}; return 200 $pid; }} }}\n"
    );
    write(folder, "nginx.conf", &options)
}

/// HUP, until the supervisor says that this reload of it is complete.
fn reload(supervisor: &Supervisor, count: u32) {
    supervisor.signal(Signal::HUP);
    let line = format!("reload {count} complete after");
    supervisor.eventually(&line, || !supervisor.logged(&[&line]).is_empty());
}

/// Two php-fpm children and an nginx, started as entry points of containers do it.
#[test]
fn a_daemon_beside_a_foreground_program_is_the_same_worker() {
    needs!("a_daemon_beside_a_foreground_program_is_the_same_worker", "php-fpm8.2", "nginx");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let place = text_of(folder.path());
    let fpm = write(
        folder.path(),
        "fpm.conf",
        &format!(
            "[global]\npid = {place}/fpm.pid\nerror_log = {place}/fpm.log\n[www]\nuser = root\ngroup = root\n\
             listen = 127.0.0.1:9000\npm = static\npm.max_children = 2\n"
        ),
    );
    let nginx = nginx_options(folder.path());
    let line = format!(
        "{} -D -R -y {fpm} && {} -c {nginx} -g 'daemon off;'",
        path_of("php-fpm8.2"),
        path_of("nginx")
    );
    network::enter();
    let supervisor = supervised(&[], &words(&["sh", "-c", &line]));
    answers(&supervisor, &client("/"));
    let running = |name: &str| {
        let name = name.to_owned();
        supervisor.survivors().into_iter().filter(move |pid| comm(*pid).starts_with(&name)).count()
    };
    supervisor.eventually("one set of both", || (running("php-fpm"), running("nginx")) == (3, 2));
    for count in 1..=3 {
        reload(&supervisor, count);
        supervisor.eventually("one set of both", || (running("php-fpm"), running("nginx")) == (3, 2));
    }
    assert!(matches!(client("/")(), Outcome::Ok(_)));
    assert_eq!(supervisor.stop(), 0);
    assert_eq!(supervisor.survivors(), Vec::<i32>::new());
}

fn comm(pid: i32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default()
}

#[test]
fn an_nginx_that_goes_into_the_background_is_the_worker() {
    needs!("an_nginx_that_goes_into_the_background_is_the_worker", "nginx");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let nginx = nginx_options(folder.path());
    network::enter();
    let supervisor = supervised(&["-w", "2"], &words(&[&path_of("nginx"), "-c", &nginx]));
    answers(&supervisor, &client("/"));
    supervisor.eventually("one line for each says so", || {
        supervisor.logged(&["went into the background", "daemon off;"]).len() == WORKERS
    });
    let clients = load(4, &client("/"));
    for count in 1..=3 {
        pass(&supervisor, &clients, 50);
        reload(&supervisor, count);
    }
    pass(&supervisor, &clients, 50);
    let tally = clients.stop();
    assert_eq!(tally.lost() + tally.inexcusable(), 0, "{tally}");
    supervisor.eventually("a master and a child of each", || supervisor.survivors().len() == 2 * WORKERS);
    // A daemon that crashes is a worker that crashes.
    let daemon = *supervisor.await_workers(WORKERS).first().expect("two");
    process::signal(daemon, Signal::KILL);
    supervisor.eventually("it is replaced, and its child is gone", || {
        let (workers, all) = (supervisor.workers(), supervisor.survivors());
        workers.len() == WORKERS && !workers.contains(&daemon) && all.len() == 2 * WORKERS
    });
    assert!(matches!(client("/")(), Outcome::Ok(_)));
    assert_eq!(supervisor.stop(), 0);
    assert_eq!(supervisor.survivors(), Vec::<i32>::new());
}
