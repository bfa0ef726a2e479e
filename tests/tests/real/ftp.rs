//! FTP servers: they bind a port for every passive transfer, or bind one and then connect for every active one.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use master_process_tests::load::Outcome;
use master_process_tests::{always, fixtures};

use crate::ftp_client::{Mode, Session, outcome};
use crate::network::{self, needs, path_of};
use crate::run::{Alone, Running, answers, serves_and_reloads, supervised, text_of, write};

const PORT: u16 = 8021;

fn server() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], PORT))
}

#[test]
fn pyftpdlib_lists_a_folder_and_loses_no_session_in_four_reloads() {
    needs!(
        "pyftpdlib_lists_a_folder_and_loses_no_session_in_four_reloads",
        "python3",
        "/usr/lib/python3/dist-packages/pyftpdlib"
    );
    let folder = tempfile::tempdir().expect("a temporary folder");
    write(folder.path(), "only.txt", "content");
    let script = text_of(&fixtures::folder().join("ftp_server.py"));
    let command = [fixtures::python(), script, PORT.to_string(), text_of(folder.path())];
    let client = || {
        let listed = || -> io::Result<String> {
            let mut session = Session::open(server())?;
            let data = session.prepare(Mode::Passive)?;
            let data = session.begin(data, "NLST")?;
            let names = session.finish(data)?;
            let names = String::from_utf8_lossy(&names).into_owned();
            if names.trim() != "only.txt" {
                return Err(io::Error::other(names));
            }
            let banner = session.banner.clone();
            session.quit()?;
            Ok(banner)
        };
        listed().map_or_else(|error| outcome(&error), Outcome::Ok)
    };
    serves_and_reloads(1, 4, &command, &client);
}

/// Few enough for sessions that open a port at the same time to try the same one: three in four rounds of
/// [`SESSIONS`]. Many enough for vsftpd, which tries ten of them at random, to find a free one: all but one in 100,000.
const PASSIVE_PORTS: (u16, u16) = (9200, 9259);

/// The number of files, and of sessions at a time.
const SESSIONS: usize = 15;

/// More than the buffers hold of a connection whose client does not read: no transfer ends before all have begun.
const FILE_SIZE: usize = 1_000_000;

/// What file number `number` holds: no part of it is in another file.
fn content(number: usize) -> Vec<u8> {
    format!("file {number:04}\n").into_bytes().repeat(FILE_SIZE / 10)
}

fn vsftpd(folder: &Path) -> Vec<String> {
    let files = folder.join("files");
    fs::create_dir_all(&files).expect("the folder is the test's own");
    fs::create_dir_all(folder.join("empty")).expect("the folder is the test's own");
    for number in 0..SESSIONS {
        fs::write(files.join(number.to_string()), content(number)).expect("the folder is the test's own");
    }
    // The server changes its user, and the temporary folder is for the test's alone.
    let open = fs::Permissions::from_mode(0o755);
    fs::set_permissions(folder, open).expect("the folder is the test's own");
    let (files, empty) = (text_of(&files), text_of(&folder.join("empty")));
    let (low, high) = PASSIVE_PORTS;
    let options = format!(
        "listen=YES\nlisten_address=127.0.0.1\nlisten_port={PORT}\nbackground=NO\nanonymous_enable=YES\n\
         no_anon_password=NO\nanon_root={files}\nsecure_chroot_dir={empty}\nconnect_from_port_20=YES\n\
         pasv_min_port={low}\npasv_max_port={high}\nxferlog_enable=NO\n"
    );
    vec![path_of("vsftpd"), write(folder, "vsftpd.conf", &options)]
}

/// Runs `act` for each of the sessions at once.
fn at_once<I: Send, O: Send>(sessions: Vec<I>, act: impl Fn(usize, I) -> io::Result<O> + Sync) -> Vec<O> {
    let results: Vec<io::Result<O>> = std::thread::scope(|scope| {
        let act = &act;
        let start = |(number, session)| scope.spawn(move || act(number, session));
        let threads: Vec<_> = sessions.into_iter().enumerate().map(start).collect();
        threads.into_iter().map(|thread| thread.join().expect("sessions return what failed")).collect()
    });
    let failed: Vec<&io::Error> = results.iter().filter_map(|result| result.as_ref().err()).collect();
    assert!(failed.is_empty(), "{} of {} sessions failed: {failed:#?}", failed.len(), results.len());
    results.into_iter().flatten().collect()
}

/// [`SESSIONS`] sessions at a time, each with a file of its own. All have the port of their transfer before the first
/// one begins, and all transfers have begun before the first one ends.
fn downloads(mode: Mode, count: usize) {
    for _ in 0..count.div_ceil(SESSIONS) {
        let prepared = at_once(vec![(); SESSIONS], |_, ()| {
            let mut session = Session::open(server())?;
            let data = session.prepare(mode)?;
            Ok((session, data))
        });
        let begun = at_once(prepared, |number, (mut session, data)| {
            let data = session.begin(data, &format!("RETR {number}"))?;
            Ok((session, data))
        });
        at_once(begun, |number, (mut session, data)| {
            let bytes = session.finish(data)?;
            session.quit()?;
            if bytes == content(number) {
                return Ok(());
            }
            let start = String::from_utf8_lossy(&bytes[..bytes.len().min(10)]).into_owned();
            Err(io::Error::other(format!("file {number} is {} bytes that begin with {start:?}", bytes.len())))
        });
    }
}

fn greets() -> Outcome {
    Session::open(server())
        .and_then(Session::quit)
        .map_or_else(|error| outcome(&error), |()| Outcome::Ok(String::new()))
}

/// What a worker binds first well after it was ready is not shared: how long "well after" is for certain.
const WELL_AFTER: Duration = Duration::from_secs(11);

fn vsftpd_transfers(mode: Mode, count: usize, options: &[&str]) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let command = vsftpd(folder.path());
    println!("alone");
    network::enter();
    let alone = Alone::start(&command, &[]);
    answers(&alone, &greets);
    downloads(mode, count);
    drop(alone);

    println!("as a worker");
    network::enter();
    let supervisor = supervised(options, &command);
    answers(&supervisor, &greets);
    if !options.contains(&"--no-share") {
        always(WELL_AFTER, "it runs", || supervisor.is_running());
    }
    downloads(mode, count);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn thirty_of_thirty_active_transfers_of_vsftpd_bring_their_own_file() {
    needs!("thirty_of_thirty_active_transfers_of_vsftpd_bring_their_own_file", "vsftpd");
    vsftpd_transfers(Mode::Active, 30, &[]);
}

#[test]
fn sixty_of_sixty_passive_transfers_of_vsftpd_bring_their_own_file() {
    needs!("sixty_of_sixty_passive_transfers_of_vsftpd_bring_their_own_file", "vsftpd");
    vsftpd_transfers(Mode::Passive, 60, &[]);
}

#[test]
fn sixty_of_sixty_passive_transfers_of_two_vsftpd_bring_their_own_file() {
    needs!("sixty_of_sixty_passive_transfers_of_two_vsftpd_bring_their_own_file", "vsftpd");
    vsftpd_transfers(Mode::Passive, 60, &["-w", "2"]);
}

#[test]
fn passive_ports_that_are_not_to_be_shared_serve_two_vsftpd() {
    needs!("passive_ports_that_are_not_to_be_shared_serve_two_vsftpd", "vsftpd");
    let (low, high) = PASSIVE_PORTS;
    vsftpd_transfers(Mode::Passive, 60, &["-w", "2", "--no-share", &format!("{low}-{high}")]);
}
