//! Programs of several processes, those that start the server as a child, and those that go into the background: the
//! worker is all of it.

use std::path::Path;

use master_process_tests::load::{self, Outcome};
use master_process_tests::traffic::pass;
use master_process_tests::{process, skip};
use rustix::process::Signal;

use crate::built;
use crate::network::{self, needs, path_of};
use crate::one_worker::{Monitor, PORT, Program, Protocol, SLOW, Surroundings, User, reload, show};
use crate::run::{answers, load, supervised, text_of, words, write};

const PHP_FPM: &str = "php-fpm8.2";

/// A test for each surroundings of each program: `cargo test --test real wrappers -- --include-ignored` runs all of them. Those
/// that always run have every program with and without a cgroup, and each other column with several programs. A gunicorn
/// without threads takes twice as long as the others: its fast requests wait for the slow ones.
macro_rules! matrix {
    ($($name:ident, $program:ident, [$($need:expr),*]: $ra:ident $rb:ident $ua:ident $ub:ident | $cra:ident $crb:ident $cua:ident $cub:ident;)*) => {
        $(mod $name {
            use super::*;
            const NEEDS: &[&str] = &["ip", "setsid", "setpriv", $($need),*];
            case!($ra of_root_with_ebpf, $program, false, Root, Ebpf);
            case!($rb of_root_with_procfs, $program, false, Root, Procfs);
            case!($ua of_an_ordinary_user_with_ebpf, $program, false, Ordinary, Ebpf);
            case!($ub of_an_ordinary_user_with_procfs, $program, false, Ordinary, Procfs);
            case!($cra of_root_with_ebpf_in_a_cgroup, $program, true, Root, Ebpf);
            case!($crb of_root_with_procfs_in_a_cgroup, $program, true, Root, Procfs);
            case!($cua of_an_ordinary_user_with_ebpf_in_a_cgroup, $program, true, Ordinary, Ebpf);
            case!($cub of_an_ordinary_user_with_procfs_in_a_cgroup, $program, true, Ordinary, Procfs);
        })*
    };
}

macro_rules! case {
    (always $name:ident, $($rest:tt)*) => {
        #[test]
        fn $name() {
            case!(body $name, $($rest)*);
        }
    };
    (other $name:ident, $($rest:tt)*) => {
        #[test]
        #[ignore = "other surroundings of the same program are tested always"]
        fn $name() {
            case!(body $name, $($rest)*);
        }
    };
    (body $name:ident, $program:ident, $has_cgroup:expr, $user:ident, $monitor:ident) => {
        let name = concat!(stringify!($program), "::", stringify!($name));
        if let Some(reason) = network::missing(NEEDS).or_else(|| not_made(stringify!($program))) {
            skip!(name, reason);
        }
        let around = Surroundings { has_cgroup: $has_cgroup, user: User::$user, monitor: Monitor::$monitor };
        if let Err(reason) = show(around, $program) {
            skip!(name, reason);
        }
    };
}

// Columns: without a cgroup | in a cgroup; in each: root, ordinary user; of each: eBPF, procfs.
matrix! {
    npm_start_is_one_worker, npm, ["node", "npm"]:                       always other other other | other other other always;
    yarn_start_is_one_worker, yarn, ["node", "npm"]:                     other other other always | always other other other;
    a_shell_and_its_server_are_one_worker, shell, ["node"]:              other always other other | other other always other;
    dumb_init_and_its_server_are_one_worker, dumb_init, ["node", "dumb-init"]: other other always other | other always other other;
    tini_and_its_server_are_one_worker, tini, ["node", "tini"]:          always other other other | other other other always;
    a_server_in_its_own_session_is_its_workers, session, ["node"]:       other other other always | other other always other;
    a_detached_child_of_node_is_its_workers, detached, ["node"]:         other other always other | always other other other;
    a_gunicorn_of_two_processes_is_one_worker, gunicorn, ["python3"]:    other always other other | other other other always;
    a_gunicorn_without_threads_is_one_worker, gunicorn_without_threads, ["python3"]: other other other other | other other other other;
    an_nginx_in_the_foreground_is_one_worker, nginx, ["nginx"]:          other other always other | other always other other;
    a_php_fpm_is_one_worker, php_fpm, [PHP_FPM]:                         other other other always | always other other other;
    a_puma_of_two_processes_is_one_worker, puma, ["puma"]:               always other other other | other other always other;
    a_daemon_beside_a_foreground_program_is_the_same_worker, php_fpm_and_nginx, [PHP_FPM, "nginx"]: always other other other | other other other always;
}

/// Why a program that comes from a registry of its language is not there.
fn not_made(program: &str) -> Option<String> {
    match program {
        "yarn" => built::yarn().err(),
        "gunicorn" | "gunicorn_without_threads" => built::python("gunicorn").err(),
        _ => None,
    }
}

/// Answers with its pid, and finishes its requests when it is asked to stop.
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

fn node() -> String {
    path_of("node")
}

fn list(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// A package whose start script is the server, in its folder.
fn package(folder: &Path, start: &[&str]) -> Program {
    let script = format!("{{\"name\": \"app\", \"scripts\": {{\"start\": \"node {}\"}}}}", server(folder));
    write(folder, "package.json", &script);
    let place = text_of(folder);
    let (home, cache) = (format!("HOME={place}"), format!("npm_config_cache={place}/cache"));
    Program::new(list(
        &[&[&path_of("env"), "-C", &place, "NO_UPDATE_NOTIFIER=1", &home, &cache], start].concat(),
    ))
}

fn npm(folder: &Path) -> Program {
    package(folder, &[&path_of("npm"), "start"])
}

fn yarn(folder: &Path) -> Program {
    let yarn = built::yarn().expect("it was made a moment ago");
    package(folder, &[&node(), &yarn, "--silent", "start"])
}

/// A shell that stays the parent of the server.
fn shell(folder: &Path) -> Program {
    Program::new(list(&[&path_of("sh"), "-c", &format!("{} {}; true", node(), server(folder))]))
}

fn dumb_init(folder: &Path) -> Program {
    Program::new(list(&[&path_of("dumb-init"), &node(), &server(folder)]))
}

/// As a subreaper, which it is where it is not process 1.
fn tini(folder: &Path) -> Program {
    Program::new(list(&[&path_of("tini"), "-s", "--", &node(), &server(folder)]))
}

/// setsid(1). It forks only where it leads a process group already, as every worker does.
fn session(folder: &Path) -> Program {
    Program::new(list(&[&path_of("setsid"), "--wait", &node(), &server(folder)]))
}

fn detached(folder: &Path) -> Program {
    let text = format!(
        "const child = require('child_process').spawn(process.execPath, [{:?}], {{detached: true, stdio: 'inherit'}});\n\
         child.on('exit', code => process.exit(code));\n",
        server(folder)
    );
    Program::new(list(&[&node(), &write(folder, "parent.js", &text)]))
}

/// A gunicorn of two processes with these options.
fn gunicorn_with(folder: &Path, options: &str) -> Program {
    let app = format!(
        "import os, time\n\
         def app(environ, start):\n    \
             if environ['PATH_INFO'] == '/slow': time.sleep({})\n    \
             body = str(os.getpid()).encode()\n    \
             start('200 OK', [('content-length', str(len(body)))])\n    \
             return [body]\n",
        SLOW.as_secs_f32()
    );
    write(folder, "app.py", &app);
    let options = format!(
        "--workers 2 {options} --bind 127.0.0.1:{PORT} --no-control-socket --chdir {} app:app",
        text_of(folder)
    );
    let gunicorn = built::python("gunicorn").expect("it was made a moment ago");
    Program { below: 2, ..Program::new([vec![gunicorn], words(&options)].concat()) }
}

fn gunicorn(folder: &Path) -> Program {
    gunicorn_with(folder, "--threads 4")
}

/// Each process has one request at a time.
fn gunicorn_without_threads(folder: &Path) -> Program {
    Program { capacity: 2, ..gunicorn_with(folder, "--worker-class sync") }
}

/// The head of an nginx's file, with everything that it writes in the folder.
fn nginx_head(folder: &Path) -> String {
    let place = text_of(folder);
    let kinds = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    let paths: String = kinds.iter().map(|kind| format!("{kind}_temp_path {place}/{kind}; ")).collect();
    format!(
        "pid {place}/nginx.pid; error_log {place}/nginx.log; events {{}}\n\
         http {{ access_log off; server_tokens off; {paths}"
    )
}

/// The file of an nginx that answers with the pid of its child. Of a slow answer it sends so many bytes a second that it
/// takes 2 to 4 s.
fn nginx_options(folder: &Path) -> String {
    let options = format!(
        "{} server {{ listen 127.0.0.1:{PORT};\n\
         location / {{ return 200 $pid; }} location /slow {{ limit_rate 35; return 200 $pid; }} }} }}\n",
        nginx_head(folder)
    );
    write(folder, "nginx.conf", &options)
}

fn nginx(folder: &Path) -> Program {
    let settings = "daemon off; master_process on; worker_processes 2;";
    let command = list(&[&path_of("nginx"), "-e", "stderr", "-c", &nginx_options(folder), "-g", settings]);
    Program { stop_signal: Signal::QUIT, below: 2, ..Program::new(command) }
}

/// The files of a php-fpm with four children that finish their requests when they get SIGQUIT, and its scripts that
/// answer with the pid, at once and slowly.
fn php_fpm_files(folder: &Path, port: u16) -> (String, Protocol) {
    let place = text_of(folder);
    let options = format!(
        "[global]\npid = {place}/fpm.pid\nerror_log = {place}/fpm.log\nprocess_control_timeout = 20s\n[www]\nuser = root\ngroup = root\n\
         listen = 127.0.0.1:{port}\npm = static\npm.max_children = 4\n"
    );
    let fast = write(folder, "fast.php", "<?php echo getmypid();");
    // In many steps: a signal ends the one that it comes in.
    let slow = format!(
        "<?php $end = hrtime(true) + {}; while (hrtime(true) < $end) usleep(10000); echo getmypid();",
        SLOW.as_nanos()
    );
    let slow = write(folder, "slow.php", &slow);
    (write(folder, "fpm.conf", &options), Protocol::FastCgi { fast, slow })
}

fn php_fpm(folder: &Path) -> Program {
    let (options, protocol) = php_fpm_files(folder, PORT);
    let command = list(&[&path_of(PHP_FPM), "-F", "-R", "-y", &options]);
    Program { protocol, stop_signal: Signal::QUIT, capacity: 2, below: 4, ..Program::new(command) }
}

/// A php-fpm and an nginx in front of it, started as entry points of containers do it.
fn php_fpm_and_nginx(folder: &Path) -> Program {
    const FPM: u16 = 9000;
    let (fpm, _) = php_fpm_files(folder, FPM);
    let place = text_of(folder);
    let nginx = format!(
        "{} server {{ listen 127.0.0.1:{PORT}; set $script fast; if ($uri = /slow) {{ set $script slow; }}\n\
         location / {{ fastcgi_pass 127.0.0.1:{FPM}; fastcgi_param REQUEST_METHOD $request_method;\n\
         fastcgi_param SCRIPT_FILENAME {place}/$script.php; }} }} }}\n",
        nginx_head(folder)
    );
    let nginx = write(folder, "nginx.conf", &nginx);
    let line = format!(
        "{} -D -R -y {fpm} && {} -e stderr -c {nginx} -g 'daemon off;'",
        path_of(PHP_FPM),
        path_of("nginx")
    );
    let program = Program {
        stop_signal: Signal::QUIT,
        capacity: 2,
        ..Program::new(list(&[&path_of("sh"), "-c", &line]))
    };
    Program { port: FPM, below: 2, daemon: Some("php-fpm"), ..program }
}

fn puma(folder: &Path) -> Program {
    let app = format!(
        "run ->(env) {{ sleep {} if env['PATH_INFO'] == '/slow'; b = Process.pid.to_s; \
         [200, {{ 'content-length' => b.size.to_s }}, [b]] }}\n",
        SLOW.as_secs_f32()
    );
    let app = write(folder, "config.ru", &app);
    let options =
        format!("--quiet --environment production -w 2 --threads 2:4 -b tcp://127.0.0.1:{PORT} {app}");
    Program { below: 2, ..Program::new([vec![path_of("puma")], words(&options)].concat()) }
}

#[test]
fn an_nginx_that_goes_into_the_background_is_the_worker() {
    const WORKERS: usize = 2;
    needs!("an_nginx_that_goes_into_the_background_is_the_worker", "nginx");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let nginx = nginx_options(folder.path());
    let client = || load::get(std::net::SocketAddr::from(([127, 0, 0, 1], PORT)), "/");
    network::enter();
    let supervisor = supervised(&["-w", "2"], &list(&[&path_of("nginx"), "-c", &nginx]));
    answers(&supervisor, &client);
    supervisor.eventually("one line for each says so", || {
        supervisor.logged(&["went into the background", "daemon off;"]).len() == WORKERS
    });
    let clients = load(4, &client);
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
    assert!(matches!(client(), Outcome::Ok(_)));
    assert_eq!(supervisor.stop(), 0);
    assert_eq!(supervisor.survivors(), Vec::<i32>::new());
}
