//! Addresses that no other test uses.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::net::sockopt::{set_socket_reuseaddr, set_socket_reuseport};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, socket_with};
use tempfile::TempDir;

/// The lowest port given out: not privileged, below the range of outgoing connections, and not among those that people
/// use for what they develop: a server on every address of the machine would be in the way.
const FIRST_PORT: u16 = 6200;

/// A TCP address of this test alone.
///
/// The loopback network has an address for each process id, and no two processes that live at the same time in a pid
/// namespace have the same id. So the address needs no reservation, and the port is only a counter within the process.
/// A port that the kernel chooses would be worse: it lies in the range of outgoing connections, and to keep it reserved
/// takes a socket on the very address that the program under test binds, which some tests count or search for.
#[must_use]
pub fn tcp() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(FIRST_PORT);
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    // Pids have at most 22 bits; 64 and up keeps clear of 127.0.0.1 and what people run there.
    let ip = Ipv4Addr::new(127, 64 | (high & 63), middle, low);
    SocketAddr::from((ip, NEXT.fetch_add(1, Ordering::Relaxed)))
}

/// Another address of this test alone, with the port of one that [`tcp`] gave.
///
/// # Panics
/// When the address is not one of [`tcp`].
#[must_use]
pub fn beside(address: SocketAddr) -> SocketAddr {
    let SocketAddr::V4(address) = address else { panic!("{address} is not an address of these tests") };
    let [net, high, middle, low] = address.ip().octets();
    // `tcp` has this bit clear in all of its addresses.
    SocketAddr::from(([net, high | 0x80, middle, low], address.port()))
}

/// A port for a program that binds every address, where only the port distinguishes tests.
///
/// The kernel chooses a port that nothing uses, and a socket keeps it reserved until this process ends. The socket is
/// bound and does not listen, and it allows its address to be reused: a server with `SO_REUSEADDR` can bind the port and
/// listen on it. The kernel never gives a port in use to a process that asks for any port, nor to an outgoing connection,
/// so the reservation holds against every other test. Only IPv4 is bound, because one that is bound in either family is
/// not given out in the other, and some programs bind IPv6 without `SO_REUSEADDR`.
///
/// # Panics
/// When no port is free.
#[must_use]
pub fn wildcard_port() -> u16 {
    static RESERVED: Mutex<Vec<OwnedFd>> = Mutex::new(Vec::new());
    let (socket, port) = reserve().expect("a free port");
    RESERVED.lock().unwrap_or_else(PoisonError::into_inner).push(socket);
    port
}

fn reserve() -> std::io::Result<(OwnedFd, u16)> {
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_reuseaddr(&socket, true)?;
    // For servers with a socket for each worker.
    set_socket_reuseport(&socket, true)?;
    bind(&socket, &SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0))?;
    let address = SocketAddrV4::try_from(getsockname(&socket)?)?;
    Ok((socket, address.port()))
}

/// A path for a Unix socket, alone in a folder that goes with the first value.
///
/// # Panics
/// When no folder can be made.
#[must_use]
pub fn unix() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("app.sock");
    (folder, path)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::io::{BufRead, BufReader, Read};
    use std::net::TcpListener;
    use std::process::{Child, Command, Stdio};

    use super::*;

    #[test]
    fn a_server_can_listen_on_a_reserved_port() {
        let port = wildcard_port();
        // The standard library sets SO_REUSEADDR.
        let listener =
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).expect("the port is reserved for this");
        drop(listener);
        drop(TcpListener::bind((std::net::Ipv6Addr::UNSPECIFIED, port)).expect("for both families, too"));
    }

    const COUNT: usize = 200;

    /// Set for the processes of [`two_processes_never_have_the_same_port`].
    const RESERVES: &str = "MASTER_PROCESS_TESTS_RESERVES";

    #[test]
    fn two_processes_never_have_the_same_port() {
        if std::env::var_os(RESERVES).is_some() {
            let ports: Vec<String> = (0..COUNT).map(|_| wildcard_port().to_string()).collect();
            println!("\nports {}", ports.join(" "));
            // Holds them until the other one has its own.
            let _ = std::io::stdin().read(&mut [0]);
            return;
        }
        let reserving = || {
            Command::new(std::env::current_exe().expect("this test"))
                .args(["--exact", "address::tests::two_processes_never_have_the_same_port", "--nocapture"])
                .env(RESERVES, "1")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("this test runs once more")
        };
        // At the same time: neither has finished when the other begins.
        let mut both = [reserving(), reserving()];
        let ports: Vec<String> = both.iter_mut().flat_map(ports).collect();
        for child in &mut both {
            drop(child.stdin.take());
            assert!(child.wait().expect("it is a child").success());
        }
        assert_eq!(ports.len(), 2 * COUNT);
        assert_eq!(ports.iter().collect::<BTreeSet<_>>().len(), 2 * COUNT, "{ports:?}");
    }

    fn ports(child: &mut Child) -> Vec<String> {
        let lines = BufReader::new(child.stdout.as_mut().expect("a pipe")).lines();
        lines
            .map_while(Result::ok)
            .find_map(|line| Some(line.strip_prefix("ports ")?.split(' ').map(str::to_owned).collect()))
            .expect("it prints its ports")
    }
}
