//! Programs of several processes, those that start the server as a child, and those that go into the background: the
//! worker is all of it.

use std::collections::BTreeSet;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

use master_process_tests::cgroup::Place;
use master_process_tests::load::{self, Load, Outcome};
use master_process_tests::supervisor::await_gone;
use master_process_tests::traffic::pass;
use master_process_tests::{Supervisor, TIMEOUT, eventually, process, profile, skip};
use rustix::process::Signal;

use crate::built;
use crate::network::{self, needs, path_of};
use crate::run::{Alone, OPTIONS, answers, load, supervised, text_of, words, write};

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

/// The inode numbers of the connections to this port that somebody has accepted, and not closed.
fn accepted(port: u16) -> Vec<u64> {
    const ESTABLISHED: &str = "01";
    // Of this thread's network; proc_net_tcp in the kernel's documentation.
    let table = std::fs::read_to_string("/proc/thread-self/net/tcp").unwrap_or_default();
    let fields = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let to_port = |field: &Vec<&str>| {
        field.get(1).is_some_and(|local| local.ends_with(&format!(":{port:04X}")))
            && field.get(3) == Some(&ESTABLISHED)
    };
    let inodes = fields.filter(to_port).filter_map(|field| field.get(9)?.parse().ok());
    inodes.filter(|inode| *inode != 0).collect()
}

/// Slow requests that somebody is at.
struct Slow(Vec<JoinHandle<Outcome>>);

impl Slow {
    /// `port`: where those are accepted who work on them.
    fn begin(count: usize, port: u16) -> Slow {
        eventually(TIMEOUT, "the earlier ones are answered", || accepted(port).is_empty());
        let clients = (0..count).map(|_| std::thread::spawn(client("/slow"))).collect();
        eventually(TIMEOUT, "all are accepted", || accepted(port).len() >= count);
        Slow(clients)
    }

    /// How many were not answered.
    fn lost(self) -> usize {
        let outcomes = self.0.into_iter().map(|client| client.join().expect("it does not panic"));
        outcomes
            .filter(|outcome| {
                let is_lost = !matches!(outcome, Outcome::Ok(_));
                if is_lost {
                    println!("a slow request: {outcome:?}");
                }
                is_lost
            })
            .count()
    }
}

/// A program whose every worker is several processes.
struct Program<'a> {
    options: &'a [&'a str],
    /// Words in front of the supervisor's command line.
    launcher: Vec<String>,
    command: Vec<String>,
    /// So many slow requests one worker takes at a time.
    capacity: usize,
    /// Where its processes take them.
    port: u16,
    reloads: u32,
    /// How many processes are below the first one of a worker, at least: some answer before all of them are there.
    below: usize,
    /// The name of a daemon that a worker starts beside its first process.
    daemon: Option<&'static str>,
    /// Whether it answers what it is at when its first process is killed.
    outlives_the_first: bool,
}

impl Program<'_> {
    fn new(command: &[String]) -> Program<'static> {
        Program {
            options: &[],
            launcher: Vec::new(),
            command: command.to_vec(),
            capacity: 4,
            port: PORT,
            reloads: 3,
            below: 1,
            daemon: None,
            outlives_the_first: true,
        }
    }

    /// By itself: how many of the slow requests that it is at are lost when its first process gets this signal.
    fn loses_alone(&self, signal: Signal) -> usize {
        network::enter();
        let alone = Alone::start(&self.command, &[]);
        answers(&alone, &client("/"));
        let slow = Slow::begin(self.capacity, self.port);
        let others = alone.descendants();
        process::signal(alone.pid(), signal);
        let lost = slow.lost();
        others.into_iter().for_each(process::kill_exactly);
        println!("alone, {signal:?}: {lost} of {} lost", self.capacity);
        lost
    }

    /// Reloads under load, a killed first process, and the end.
    fn is_one_worker(&self) {
        network::enter();
        let supervisor = Supervisor::builder()
            .args(OPTIONS)
            .args(["-w", "2", "--kill-timeout", "30s"])
            .args(self.options)
            .wrap(self.launcher.clone())
            .command(&self.command)
            .spawn();
        answers(&supervisor, &client("/"));
        who_answer(&supervisor);
        supervisor.eventually("all are there", || {
            self.firsts(&supervisor).into_iter().all(|first| process::descendants(first).len() >= self.below)
        });
        let processes = supervisor.survivors().len();
        self.is_reloaded(&supervisor);
        supervisor.eventually("as many as before", || supervisor.survivors().len() == processes);
        self.loses_its_first(&supervisor);
        supervisor.eventually("as many as before", || supervisor.survivors().len() == processes);
        let slow = Slow::begin(self.capacity, self.port);
        assert_eq!(supervisor.stop(), 0);
        assert_eq!(slow.lost(), 0, "what it is at when it is stopped");
        assert_eq!(supervisor.survivors(), Vec::<i32>::new());
    }

    /// The first processes of the workers.
    fn firsts(&self, supervisor: &Supervisor) -> BTreeSet<i32> {
        let mut all = supervisor.workers();
        all.retain(|pid| !self.daemon.is_some_and(|name| comm(*pid).starts_with(name)));
        all
    }

    fn is_reloaded(&self, supervisor: &Supervisor) {
        let (slow, fast) = (load(self.capacity, &client("/slow")), load(4, &client("/")));
        for count in 1..=self.reloads {
            pass(supervisor, &fast, 30);
            let old: BTreeSet<i32> = supervisor.survivors().into_iter().collect();
            reload(supervisor, count);
            let new = who_answer(supervisor);
            assert!(new.is_disjoint(&old), "{old:?} answer after the reload: {new:?}");
            old.into_iter().for_each(await_gone);
        }
        for (name, clients) in [("slow", slow), ("fast", fast)] {
            assert!(nothing_is_lost(name, clients) > 0);
        }
    }

    /// The first process of a worker that is at something is killed.
    fn loses_its_first(&self, supervisor: &Supervisor) {
        let all_of = |first: i32| {
            let below = process::descendants(first).into_iter().map(|process| process.pid);
            std::iter::once(first).chain(below).collect::<BTreeSet<i32>>()
        };
        let (slow, first) = supervisor.until("a worker is at a slow request", || {
            let slow = Slow::begin(self.capacity, self.port);
            let taken: Vec<String> = accepted(PORT).iter().map(|inode| format!("socket:[{inode}]")).collect();
            let is_at_one = |pid: i32| {
                let open = process::descriptors(pid);
                open.iter().any(|(_, file)| taken.iter().any(|one| file.as_os_str() == one.as_str()))
            };
            let firsts = self.firsts(supervisor);
            let first = firsts.into_iter().find(|first| all_of(*first).into_iter().any(is_at_one));
            let Some(first) = first else {
                // A busy machine took longer to look than they to be answered.
                assert_eq!(slow.lost(), 0);
                return None;
            };
            Some((slow, first))
        });
        let its = all_of(first);
        let fast = load(4, &client("/"));
        pass(supervisor, &fast, 10);
        process::signal(first, Signal::KILL);
        supervisor.eventually("it is replaced", || {
            let firsts = self.firsts(supervisor);
            firsts.len() == WORKERS && firsts.is_disjoint(&its)
        });
        let new = who_answer(supervisor);
        assert!(new.is_disjoint(&its), "{its:?} answer: {new:?}");
        its.into_iter().for_each(await_gone);
        pass(supervisor, &fast, 30);
        if self.outlives_the_first {
            nothing_is_lost("fast, while a first process is killed", fast);
            assert_eq!(slow.lost(), 0, "what it was at when its first process was killed");
        } else {
            // What the killed one was at, one request of each client at most.
            let tally = fast.stop();
            assert!(tally.lost() <= 4 && tally.inexcusable() == 0, "{tally}");
            slow.lost();
        }
    }
}

/// Ends a load of which every request must have been answered. How many.
fn nothing_is_lost(name: &str, clients: Load) -> u64 {
    let tally = clients.stop();
    println!("{name}: {tally}");
    assert_eq!(tally.lost() + tally.inexcusable(), 0, "{name}: {tally}");
    tally.served()
}

/// The processes that answer, once somebody of each worker has.
fn who_answer(supervisor: &Supervisor) -> BTreeSet<i32> {
    let (ours, mut seen, mut workers) = (supervisor.pid(), BTreeSet::new(), BTreeSet::new());
    supervisor.eventually("every worker answers", || {
        let answer = client("/")();
        if let Outcome::Ok(pid) = answer {
            let pid: i32 = pid.trim().parse().expect("a pid");
            seen.insert(pid);
            let parent = |pid: &i32| process::stat(*pid).map(|stat| stat.ppid);
            let line = std::iter::successors(Some(pid), parent);
            workers.extend(line.take_while(|pid| *pid != ours && *pid > 1).last());
        }
        workers.len() >= WORKERS
    });
    seen
}

/// A program that finishes what it is at, whoever of it is asked to leave or killed.
fn is_one_worker(command: &[String]) {
    Program::new(command).is_one_worker();
}

fn node() -> String {
    path_of("node")
}

fn list(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// A shell that stays the parent of the server.
fn shell(folder: &Path) -> Vec<String> {
    list(&["sh", "-c", &format!("{} {}; true", node(), server(folder))])
}

/// setsid(1). It forks only where it leads a process group already, as every worker does.
fn session(folder: &Path) -> Vec<String> {
    list(&[&path_of("setsid"), "--wait", &node(), &server(folder)])
}

fn ordinary(command: Vec<String>) -> Program<'static> {
    Program { launcher: profile::launcher(Some(profile::ordinary_user()), &[]), ..Program::new(&command) }
}

#[test]
fn a_shell_and_its_server_are_one_worker() {
    needs!("a_shell_and_its_server_are_one_worker", "node");
    let folder = tempfile::tempdir().expect("a temporary folder");
    is_one_worker(&shell(folder.path()));
}

#[test]
fn a_shell_and_its_server_are_one_worker_where_procfs_measures() {
    needs!("a_shell_and_its_server_are_one_worker_where_procfs_measures", "node");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let options = &["--monitor", "procfs"];
    Program { options, ..Program::new(&shell(folder.path())) }.is_one_worker();
}

#[test]
fn a_shell_and_its_server_are_one_worker_of_an_ordinary_user() {
    needs!("a_shell_and_its_server_are_one_worker_of_an_ordinary_user", "node");
    let folder = tempfile::tempdir().expect("a temporary folder");
    open_to_all(folder.path());
    ordinary(shell(folder.path())).is_one_worker();
}

#[test]
fn a_detached_child_of_node_is_its_workers_for_an_ordinary_user() {
    needs!("a_detached_child_of_node_is_its_workers_for_an_ordinary_user", "node");
    let folder = tempfile::tempdir().expect("a temporary folder");
    open_to_all(folder.path());
    ordinary(detached(folder.path())).is_one_worker();
}

fn open_to_all(folder: &Path) {
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(folder, mode).expect("the folder is the test's own");
}

/// A package whose start script is the server, in its folder.
fn package(folder: &Path, start: &[&str]) -> Vec<String> {
    let script = format!("{{\"name\": \"app\", \"scripts\": {{\"start\": \"node {}\"}}}}", server(folder));
    write(folder, "package.json", &script);
    let cache = format!("npm_config_cache={}", text_of(&folder.join("cache")));
    list(&[&["env", "-C", &text_of(folder), "NO_UPDATE_NOTIFIER=1", &cache], start].concat())
}

#[test]
fn npm_start_is_one_worker() {
    needs!("npm_start_is_one_worker", "node", "npm");
    let folder = tempfile::tempdir().expect("a temporary folder");
    is_one_worker(&package(folder.path(), &[&path_of("npm"), "start"]));
}

#[test]
fn yarn_start_is_one_worker() {
    needs!("yarn_start_is_one_worker", "node", "npm");
    let yarn = match built::yarn() {
        Ok(yarn) => yarn,
        Err(reason) => skip!("yarn_start_is_one_worker", reason),
    };
    let folder = tempfile::tempdir().expect("a temporary folder");
    is_one_worker(&package(folder.path(), &[&node(), &yarn, "--silent", "start"]));
}

#[test]
fn dumb_init_and_its_server_are_one_worker() {
    needs!("dumb_init_and_its_server_are_one_worker", "node", "dumb-init");
    let folder = tempfile::tempdir().expect("a temporary folder");
    is_one_worker(&list(&[&path_of("dumb-init"), &node(), &server(folder.path())]));
}

#[test]
fn tini_as_a_subreaper_and_its_server_are_one_worker() {
    needs!("tini_as_a_subreaper_and_its_server_are_one_worker", "node", "tini");
    let folder = tempfile::tempdir().expect("a temporary folder");
    is_one_worker(&list(&[&path_of("tini"), "-s", "--", &node(), &server(folder.path())]));
}

#[test]
fn a_server_in_a_session_of_its_own_is_its_workers() {
    needs!("a_server_in_a_session_of_its_own_is_its_workers", "node", "setsid");
    let folder = tempfile::tempdir().expect("a temporary folder");
    is_one_worker(&session(folder.path()));
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
    list(&[&node(), &write(folder, "parent.js", &text)])
}

/// The file of an nginx that answers with the pid of its child, so many bytes a second.
fn nginx_options(folder: &Path) -> String {
    let place = text_of(folder);
    let options = format!(
        "pid {place}/nginx.pid; error_log {place}/nginx.log; events {{}}\n\
         http {{ access_log off; server_tokens off; server {{ listen 127.0.0.1:{PORT};\n\
         location / {{ return 200 $pid; }} location /slow {{ limit_rate 60; return 200 $pid; }} }} }}\n"
    );
    write(folder, "nginx.conf", &options)
}

/// HUP, until the supervisor says that this reload of it is complete.
fn reload(supervisor: &Supervisor, count: u32) {
    supervisor.signal(Signal::HUP);
    let line = format!("reload {count} complete after");
    supervisor.eventually(&line, || !supervisor.logged(&[&line]).is_empty());
}

/// Two php-fpm children and an nginx in front of them, started as entry points of containers do it. Both finish what they
/// are at when they get SIGQUIT.
#[test]
fn a_daemon_beside_a_foreground_program_is_the_same_worker() {
    const FPM: u16 = 9000;
    needs!("a_daemon_beside_a_foreground_program_is_the_same_worker", "php-fpm8.2", "nginx");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let place = text_of(folder.path());
    let slow = SLOW.as_micros();
    let script = format!("<?php if ($_SERVER['REQUEST_URI'] === '/slow') usleep({slow}); echo getmypid();");
    let script = write(folder.path(), "pid.php", &script);
    let fpm = format!(
        "[global]\npid = {place}/fpm.pid\nerror_log = {place}/fpm.log\nprocess_control_timeout = 20s\n[www]\nuser = root\ngroup = root\n\
         listen = 127.0.0.1:{FPM}\npm = static\npm.max_children = 2\n"
    );
    let fpm = write(folder.path(), "fpm.conf", &fpm);
    let nginx = format!(
        "pid {place}/nginx.pid; error_log {place}/nginx.log; events {{}}\n\
         http {{ access_log off; server {{ listen 127.0.0.1:{PORT}; location / {{ fastcgi_pass 127.0.0.1:{FPM};\n\
         fastcgi_param SCRIPT_FILENAME {script}; fastcgi_param REQUEST_METHOD $request_method;\n\
         fastcgi_param REQUEST_URI $request_uri; }} }} }}\n"
    );
    let nginx = write(folder.path(), "nginx.conf", &nginx);
    let line = format!(
        "{} -D -R -y {fpm} && {} -c {nginx} -g 'daemon off;'",
        path_of("php-fpm8.2"),
        path_of("nginx")
    );
    let command = list(&["sh", "-c", &line]);
    let options = &["--stop-signal", "QUIT"];
    let daemon = Some("php-fpm");
    Program { options, capacity: 2, port: FPM, below: 2, daemon, ..Program::new(&command) }.is_one_worker();
}

#[test]
fn an_nginx_in_the_foreground_is_one_worker() {
    needs!("an_nginx_in_the_foreground_is_one_worker", "nginx");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let nginx = nginx_options(folder.path());
    let settings = "daemon off; master_process on; worker_processes 2;";
    let command = list(&[&path_of("nginx"), "-c", &nginx, "-g", settings]);
    let options = &["--stop-signal", "QUIT"];
    let program = Program { options, below: 2, ..Program::new(&command) };
    assert_eq!(program.loses_alone(Signal::KILL), 0, "its children live on");
    program.is_one_worker();
}

#[test]
fn a_gunicorn_of_two_processes_is_one_worker() {
    needs!("a_gunicorn_of_two_processes_is_one_worker", "python3");
    let gunicorn = match built::python("gunicorn") {
        Ok(gunicorn) => gunicorn,
        Err(reason) => skip!("a_gunicorn_of_two_processes_is_one_worker", reason),
    };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let app = format!(
        "import os, time\n\
         def app(environ, start):\n    \
             if environ['PATH_INFO'] == '/slow': time.sleep({})\n    \
             body = str(os.getpid()).encode()\n    \
             start('200 OK', [('content-length', str(len(body)))])\n    \
             return [body]\n",
        SLOW.as_secs_f32()
    );
    write(folder.path(), "app.py", &app);
    let options = format!(
        "--workers 2 --bind 127.0.0.1:{PORT} --no-control-socket --chdir {} app:app",
        text_of(folder.path())
    );
    let command = [vec![gunicorn], words(&options)].concat();
    // Each process is at one request.
    let program = Program { capacity: 2, below: 2, reloads: 2, ..Program::new(&command) };
    assert_eq!(program.loses_alone(Signal::TERM), 0, "it finishes what it is at");
    assert_eq!(program.loses_alone(Signal::KILL), 0, "its children notice, and finish what they are at");
    program.is_one_worker();
}

#[test]
fn a_puma_of_two_processes_is_one_worker() {
    needs!("a_puma_of_two_processes_is_one_worker", "puma");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let app = format!(
        "run ->(env) {{ sleep {} if env['PATH_INFO'] == '/slow'; b = Process.pid.to_s; \
         [200, {{ 'content-length' => b.size.to_s }}, [b]] }}\n",
        SLOW.as_secs_f32()
    );
    let app = write(folder.path(), "config.ru", &app);
    let options =
        format!("--quiet --environment production -w 2 --threads 2:4 -b tcp://127.0.0.1:{PORT} {app}");
    let command = [vec![path_of("puma")], words(&options)].concat();
    let program = Program { below: 2, ..Program::new(&command) };
    assert_eq!(program.loses_alone(Signal::TERM), 0, "it finishes what it is at");
    // Its children end at once when their parent is gone.
    let outlives_the_first = program.loses_alone(Signal::KILL) == 0;
    Program { outlives_the_first, ..program }.is_one_worker();
}

/// The supervisor is in a cgroup that is delegated to it, and each of its workers in one of its own.
fn is_one_worker_in_a_cgroup(name: &str, command: &[String]) {
    let Some(place) = Place::make(true) else { skip!(name, "no cgroup can be made") };
    Program { launcher: place.launcher(), reloads: 1, ..Program::new(command) }.is_one_worker();
    assert!(place.is_empty(), "{:?}", place.workers());
}

#[test]
fn a_shell_and_its_server_are_one_worker_in_a_cgroup() {
    needs!("a_shell_and_its_server_are_one_worker_in_a_cgroup", "node");
    let folder = tempfile::tempdir().expect("a temporary folder");
    is_one_worker_in_a_cgroup("a_shell_and_its_server_are_one_worker_in_a_cgroup", &shell(folder.path()));
}

#[test]
fn a_server_in_a_session_of_its_own_is_its_workers_in_a_cgroup() {
    needs!("a_server_in_a_session_of_its_own_is_its_workers_in_a_cgroup", "node", "setsid");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let name = "a_server_in_a_session_of_its_own_is_its_workers_in_a_cgroup";
    is_one_worker_in_a_cgroup(name, &session(folder.path()));
}

#[test]
fn a_detached_child_of_node_is_its_workers_in_a_cgroup() {
    needs!("a_detached_child_of_node_is_its_workers_in_a_cgroup", "node");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let name = "a_detached_child_of_node_is_its_workers_in_a_cgroup";
    is_one_worker_in_a_cgroup(name, &detached(folder.path()));
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
    let supervisor = supervised(&["-w", "2"], &list(&[&path_of("nginx"), "-c", &nginx]));
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
