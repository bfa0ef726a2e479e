//! The image of `packaging/container`: its root, made by the script that the Containerfile runs, in what an engine makes of
//! it. The engine is `unshare`.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use master_process_tests::load::{self, Outcome};
use master_process_tests::supervisor::binary;
use master_process_tests::{TIMEOUT, address, await_some, eventually, fixtures, process, profile, skip};
use rustix::process::Signal;

/// The program in the image.
const PROGRAM: &str = "/usr/local/bin/master-process";

/// A running container, which goes with this value.
struct Container {
    engine: Child,
    root: tempfile::TempDir,
}

impl Drop for Container {
    fn drop(&mut self) {
        // Its first process goes with it, and the namespace with that.
        let _gone = self.engine.kill();
        let _gone = self.engine.wait();
    }
}

impl Container {
    /// Runs the image with one more program in it, `/app`.
    fn start(app: &Path, options: &[&str], listen: SocketAddr) -> Container {
        let root = tempfile::tempdir().expect("a temporary folder");
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).expect("ours");
        let script = fixtures::repository().join("packaging/container/root.sh");
        let made = Command::new("sh").arg(script).arg(binary()).arg(root.path()).status();
        assert!(made.expect("a shell").success(), "the root of the image is made");
        copy_libraries(root.path());
        fs::copy(app, root.path().join("app")).expect("the program is there");
        let words = profile::container(root.path().to_str().expect("UTF-8"));
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg(PROGRAM).args(options).args(["--", "/app"]);
        command.env("LISTEN", listen.to_string()).env("XDG_RUNTIME_DIR", "/run/app");
        let engine = command.stdout(Stdio::null()).spawn().expect("unshare");
        Container { engine, root }
    }

    /// The first process of the container, once it is the supervisor.
    fn first(&self) -> i32 {
        let engine = i32::try_from(self.engine.id()).expect("pids are small");
        await_some(TIMEOUT, "the supervisor runs", || {
            let first = process::children(engine).first()?.pid;
            process::executable(first).filter(|file| file.ends_with("master-process")).map(|_| first)
        })
    }
}

/// Where the binary under test is not static, what it is linked with.
fn copy_libraries(root: &Path) {
    let listed = Command::new("ldd").arg(binary()).output().expect("ldd");
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    for library in text.split_whitespace().filter(|word| word.starts_with('/')) {
        let to = root.join(&library[1..]);
        fs::create_dir_all(to.parent().expect("a folder")).expect("ours");
        fs::copy(library, to).expect("it is there");
    }
}

#[test]
fn the_image_serves_reloads_and_stops_as_pid_1_with_a_read_only_root() {
    if !profile::can_contain() {
        skip!("no container can be made");
    }
    let Some(app) = fixtures::go_server() else { skip!("Go is not installed") };
    let (listen, metrics) = (address::tcp(), address::tcp());
    let at = metrics.to_string();
    let options =
        ["-w", "2", "--throttle", "100ms", "--kill-timeout", "20s", "--metrics", &at, "--name", "app"];
    let container = Container::start(Path::new(&app[0]), &options, listen);
    let answers = |path: &str| matches!(load::get(metrics, path), Outcome::Ok(_));
    eventually(TIMEOUT, "every slot is ready", || answers("/readyz"));
    assert!(answers("/healthz"));
    let first = container.first();
    assert!(process::status(first, "NSpid").is_some_and(|pids| pids.ends_with("\t1")));
    let write = fs::write(format!("/proc/{first}/root/new"), "");
    assert!(write.is_err(), "its root is read-only: {}", container.root.path().display());

    // As `kubectl exec` does it.
    let pid = first.to_string();
    let inside = ["--target", &pid, "--mount", "--pid", "--root", "--wd", PROGRAM];
    let status = Command::new("nsenter").args(inside).arg("status").output().expect("nsenter");
    assert!(status.status.success(), "{status:?}");

    let before = load::who(listen).expect("it serves");
    process::signal(first, Signal::HUP);
    eventually(TIMEOUT, "another worker answers", || load::who(listen).is_some_and(|now| now != before));
    process::signal(first, Signal::TERM);
    let mut container = container;
    let status = await_some(TIMEOUT, "it ends", || container.engine.try_wait().expect("ours"));
    assert_eq!(status.code(), Some(0));
}
