//! A network of a test's own: no port of another test, no route to anywhere. And what the kernel's network can do.

use std::fs;
use std::io::{self, ErrorKind, Read};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::process::Command;

use rustix::net::{AddressFamily, SocketType, sockopt};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::fixtures;
use crate::wait::{TIMEOUT, await_some};

/// Brings the loopback interface up: SIOCSIFFLAGS with IFF_UP, then the command that follows. `ip` need not be there.
pub const LOOPBACK_UP: &str = "
import fcntl, socket, struct
fcntl.ioctl(socket.socket(socket.AF_INET, socket.SOCK_DGRAM), 0x8914, struct.pack('16sH14x', b'lo', 1))";

/// Moves the calling thread into a new network namespace with nothing but a loopback interface. Whatever it starts from
/// then on, threads and processes, is in there too.
///
/// # Errors
/// When this user may not make one: the reason.
///
/// # Panics
/// When the loopback interface cannot be brought up in it.
pub fn enter_own() -> Result<(), String> {
    // SAFETY: only the network namespace is left. The descriptor table, which is what makes the call dangerous, stays shared.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }
        .map_err(|error| format!("no network namespace: {error}"))?;
    let up = Command::new(fixtures::python()).args(["-S", "-E", "-c", LOOPBACK_UP]).status();
    assert!(up.expect("python runs").success(), "the loopback interface of a new network can be brought up");
    Ok(())
}

/// The setting of a network namespace by which queues move without a program; ip-sysctl.rst.
const MIGRATE_REQ: &str = "/proc/sys/net/ipv4/tcp_migrate_req";

/// Whether the kernel can move what waits in the queue of a listener that closes to another one of the same address.
/// Both ways of telling it to, this setting and an eBPF program, came with Linux 5.14; some kernels before have the
/// setting without effect. So it is tried, in a network of its own. Where that cannot be tried, as without
/// root, the answer is yes: a test that runs for nothing fails, one that is left out is not noticed.
///
/// # Panics
/// When a connection is neither moved nor reset.
#[must_use]
pub fn kernel_moves_queues() -> bool {
    let tried = std::thread::spawn(|| enter_own().ok().and_then(|()| moves_queues_when_told().ok()));
    tried.join().expect("each connection has an end").unwrap_or(true)
}

fn moves_queues_when_told() -> io::Result<bool> {
    match fs::write(MIGRATE_REQ, "1") {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        told => told?,
    }
    let listener = |port| -> io::Result<TcpListener> {
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
        sockopt::set_socket_reuseport(&socket, true)?;
        rustix::net::bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))?;
        rustix::net::listen(&socket, 1)?;
        Ok(socket.into())
    };
    let closing = listener(0)?;
    let address = closing.local_addr()?;
    let mut client = TcpStream::connect(address)?;
    let remaining = listener(address.port())?;
    drop(closing);
    remaining.set_nonblocking(true)?;
    client.set_nonblocking(true)?;
    let reset = |client: &mut TcpStream| {
        client.read(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
    };
    Ok(await_some(TIMEOUT, "the connection is moved or reset", || {
        let moved = remaining.accept().is_ok();
        (moved || reset(&mut client)).then_some(moved)
    }))
}
