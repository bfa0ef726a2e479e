//! Listeners that the service manager keeps for the next supervisor: `FDSTORE` of sd_notify(3).
//!
//! They survive a crash of the supervisor and its restart, and connections wait in them meanwhile. The name of each says
//! what it is: its kind, the slot whose next worker gets its queue, its number in the kernel's group, and its address.
//! A name is believed only as far as the socket confirms it.

use std::ffi::OsString;
use std::fmt;
use std::fmt::Write as _;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::address::{Key, Protocol};
use super::caller_socket::bound_key;
use super::core::{Scope, Socket, SocketId};
use super::report::Report;
use super::sockets::Sockets;
use super::unix::{Place, SocketFile};
use crate::config::{ListenAddr, ShareRules};
use crate::policy::Time;
use crate::sys::accept_queue;
use crate::sys::inet_diag;
use crate::sys::sockets::{self, Kind as SocketKind};

/// What the names of our sockets begin with, among those of socket units.
const PREFIX: &str = "mp-";

/// The longest name: `FDNAME_MAX` of systemd.
const MAX_NAME: usize = 255;

/// What a kept socket is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A worker's own listener in a group.
    Shard,
    /// A socket of `--listen`.
    Listen,
    /// The one listener of all workers.
    Shared,
    /// The socket at a path.
    Path,
}

const KINDS: [(Kind, &str); 4] =
    [(Kind::Shard, "shard"), (Kind::Listen, "listen"), (Kind::Shared, "shared"), (Kind::Path, "path")];

/// The name of a kept socket: `mp-shard/0/1/tcp/127.0.0.1/8080`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Name {
    pub(super) kind: Kind,
    slot: u32,
    /// The number in the kernel's group.
    pub(super) number: u32,
    address: String,
}

impl Name {
    /// The path in the address, if it is a Unix path.
    fn path(&self) -> Option<PathBuf> {
        Some(PathBuf::from(OsString::from_vec(decoded(self.address.strip_prefix("unix/")?)?)))
    }

    /// Reads a name; `None` if it is not one of ours.
    fn parse(text: &str) -> Option<Name> {
        let mut parts = text.strip_prefix(PREFIX)?.splitn(4, '/');
        let kind = parts.next()?;
        let kind = KINDS.iter().find(|(_, word)| *word == kind)?.0;
        let (slot, number) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        Some(Name { kind, slot, number, address: parts.next()?.to_owned() })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = KINDS.iter().find(|(kind, _)| *kind == self.kind).map_or("", |(_, word)| *word);
        write!(f, "{PREFIX}{word}/{}/{}/{}", self.slot, self.number, self.address)
    }
}

/// The address in the characters that a name can have: printable ASCII without the colon.
fn address_text(key: &Key) -> String {
    match key {
        Key::Inet { protocol, address, v6only, interface } => {
            let protocol = match protocol {
                Protocol::Tcp => "tcp",
                Protocol::Udp => "udp",
            };
            let ip = address.ip().to_string().replace(':', "_");
            let mut text = format!("{protocol}/{ip}/{}", address.port());
            if *v6only {
                text += "/v6only";
            }
            if *interface != 0 {
                let _infallible = write!(text, "/if{interface}");
            }
            text
        }
        Key::Unix { shown, .. } => format!("unix/{}", encoded(shown.as_os_str().as_bytes())),
        Key::Abstract(name) => format!("abstract/{}", encoded(name)),
    }
}

fn encoded(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        match byte {
            b'%' | b':' | ..=b' ' | 127.. => {
                let _infallible = write!(text, "%{byte:02x}");
            }
            plain => text.push(char::from(*plain)),
        }
    }
    text
}

/// The bytes of a text that [`encoded`] has written.
fn decoded(text: &str) -> Option<Vec<u8>> {
    let (mut bytes, mut rest) = (Vec::new(), text);
    while let Some((plain, after)) = rest.split_once('%') {
        bytes.extend(plain.bytes());
        let (hex, after) = after.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(hex, 16).ok()?);
        rest = after;
    }
    bytes.extend(rest.bytes());
    Some(bytes)
}

/// A socket that the service manager kept, not checked yet.
#[derive(Debug)]
pub(super) struct KeptSocket {
    pub(super) name: Name,
    pub(super) fd: OwnedFd,
}

/// What the socket itself says.
#[derive(Debug)]
pub(super) struct Checked {
    pub(super) key: Key,
    pub(super) file: Option<SocketFile>,
}

impl KeptSocket {
    /// The socket, if its name is one of ours; otherwise the descriptor is given back.
    pub(super) fn new(name: &str, fd: OwnedFd) -> Result<KeptSocket, OwnedFd> {
        match Name::parse(name) {
            Some(name) => Ok(KeptSocket { name, fd }),
            None => Err(fd),
        }
    }

    /// Whether it is what its name says, and still of use.
    pub(super) fn check(&self) -> Result<Checked, &'static str> {
        let fd = self.fd.as_fd();
        if !sockets::is_listening(fd) {
            return Err("it does not listen");
        }
        let checked = match sockets::kind(fd) {
            Ok(SocketKind::Tcp { .. }) if !accept_queue::is_in_our_network(fd) => {
                return Err("it belongs to another network namespace");
            }
            Ok(SocketKind::Tcp { .. }) => {
                let key = bound_key(fd).ok_or("it has no address")?;
                Checked { key, file: None }
            }
            Ok(SocketKind::UnixStream) => match self.name.path() {
                Some(path) => unix_place(fd, &path)?,
                None => {
                    let name = sockets::abstract_name(fd).ok_or("it has no address")?;
                    Checked { key: Key::Abstract(name), file: None }
                }
            },
            Ok(SocketKind::Udp { .. } | SocketKind::Other) | Err(_) => return Err("it is of another kind"),
        };
        if address_text(&checked.key) != self.name.address {
            return Err("it has another address");
        }
        Ok(checked)
    }

    /// Whether it is in the way of an address that is to be bound.
    pub(super) fn blocks(&self, address: &ListenAddr) -> bool {
        let port = sockets::inet_address(self.fd.as_fd()).map(|address| address.port());
        match address {
            ListenAddr::Inet(address) => port == Some(address.port()),
            ListenAddr::Port(wanted) => port == Some(*wanted),
            ListenAddr::Unix(path) => self.name.path().as_ref() == Some(path),
        }
    }

    /// Whether it is the socket of this address of `--listen`.
    pub(super) fn is_of(&self, address: &ListenAddr, v6only: bool) -> bool {
        if self.name.kind != Kind::Listen {
            return false;
        }
        let Ok(checked) = self.check() else { return false };
        match (address, &checked.key) {
            (ListenAddr::Inet(address), key) => key.matches(&Key::tcp(*address, v6only)),
            (ListenAddr::Port(port), Key::Inet { address, v6only, interface: 0, .. }) => {
                address.ip().is_unspecified() && address.port() == *port && !v6only
            }
            (ListenAddr::Unix(path), key) => Place::own(path).is_ok_and(|place| key.matches(&place.key())),
            (ListenAddr::Port(_), _) => false,
        }
    }
}

/// The place of a Unix listener, which may have been bound under another name. The kernel knows to which socket a file
/// leads.
fn unix_place(fd: BorrowedFd<'_>, path: &Path) -> Result<Checked, &'static str> {
    let place = Place::own(path).map_err(|_gone| "its directory is gone")?;
    let (key, file) = (place.key(), place.present().ok_or("its path is gone")?);
    let (device, inode) = file.id().ok_or("its path is gone")?;
    let there =
        inet_diag::listeners_at_file(device, inode).map_err(|_| "the kernel does not list Unix sockets")?;
    let own = sockets::inode(fd).map_err(|_| "it is not open")?;
    if there.contains(&own) {
        Ok(Checked { key, file: Some(file) })
    } else {
        Err("its path leads to another socket")
    }
}

/// What the settings of this supervisor make of the sockets of an earlier one.
#[derive(Debug)]
pub(super) struct Restoring<'a> {
    /// The number of slots.
    pub(super) workers: u32,
    /// Whether addresses are shared at all.
    pub(super) shares: bool,
    /// Whether each worker has a listener of its own.
    pub(super) has_shards: bool,
    pub(super) rules: &'a ShareRules,
}

impl Restoring<'_> {
    /// Which workers are to have a socket.
    fn scope(&self, name: &Name, key: &Key) -> Result<Scope, &'static str> {
        let is_shared = self.shares
            && match key {
                Key::Inet { address, .. } => self.rules.shares_inet(*address),
                Key::Unix { shown, .. } => self.rules.shares_path(shown),
                Key::Abstract(name) => self.rules.shares_abstract(name),
            };
        match (name.kind, key) {
            (Kind::Listen, _) => Err("--listen does not name it any more"),
            _ if !is_shared => Err("its address is not shared any more"),
            (Kind::Path | Kind::Shared, Key::Unix { .. }) if self.has_shards => Ok(Scope::Generation(0)),
            (Kind::Shard | Kind::Shared, Key::Inet { .. }) if self.has_shards => Ok(Scope::Shard),
            (Kind::Shard | Kind::Shared | Kind::Path, _) => Ok(Scope::Shared),
        }
    }

    fn slots(&self, name: &Name, scope: Scope) -> Vec<u32> {
        match scope {
            // There may be fewer slots than before.
            Scope::Shard => vec![name.slot % self.workers.max(1)],
            Scope::Shared | Scope::Generation(_) => (0..self.workers).collect(),
        }
    }
}

/// A socket of an earlier supervisor that was checked.
struct Usable {
    socket: KeptSocket,
    id: SocketId,
    checked: Checked,
    scope: Scope,
}

impl Sockets {
    /// Takes over the listeners of an earlier supervisor. Until workers listen at their addresses, connections wait in
    /// them.
    pub(super) fn restore(&mut self, kept: Vec<KeptSocket>, restoring: &Restoring<'_>) {
        let mut usable: Vec<Usable> = Vec::new();
        for socket in kept {
            let Ok(id) = sockets::inode(socket.fd.as_fd()) else { continue };
            if self.core.socket(id).is_some() || usable.iter().any(|other| other.id == id) {
                // The same socket under a second name.
                continue;
            }
            let checked = socket.check().and_then(|checked| {
                let scope = restoring.scope(&socket.name, &checked.key)?;
                let is_other = |other: &Usable| {
                    other.checked.key.matches(&checked.key)
                        && (scope != Scope::Shard || other.socket.name.number == socket.name.number)
                };
                if usable.iter().any(is_other) {
                    Err("another one takes its place")
                } else {
                    Ok((checked, scope))
                }
            });
            match checked {
                Ok((checked, scope)) => usable.push(Usable { socket, id, checked, scope }),
                Err(why) => self.reject(&socket, why),
            }
        }
        usable.sort_by_key(|usable| usable.socket.name.number);
        for key in distinct_keys(&usable) {
            self.restore_address(&key, &mut usable, restoring);
        }
    }

    fn restore_address(&mut self, key: &Key, usable: &mut Vec<Usable>, restoring: &Restoring<'_>) {
        let mut order: Vec<(u32, SocketId)> = self.take_listen_numbers(key);
        let of_listen = order.first().copied();
        let is_here = |usable: &mut Usable| usable.checked.key.matches(key);
        let mut here: Vec<Usable> = usable.extract_if(.., is_here).collect();
        order.extend(here.iter().map(|usable| (usable.socket.name.number, usable.id)));
        order.sort_unstable();
        // A member of the group that was not kept has closed, and the numbers of the others are not known any more.
        // One socket alone has the first number.
        let is_whole = order.iter().zip(0..).all(|((number, _), expected)| *number == expected);
        let is_shard = here.first().is_some_and(|usable| usable.scope == Scope::Shard);
        if is_shard && !is_whole {
            order = of_listen.or(order.first().copied()).into_iter().collect();
            let first = order.first().map(|(_, id)| *id);
            for lost in here.extract_if(.., |usable| Some(usable.id) != first) {
                self.reject(&lost.socket, "another socket of its address was not kept");
            }
        }
        let (mut count, order) = (0, order.into_iter().map(|(_, id)| id).collect());
        for Usable { socket, id, mut checked, scope } in here {
            if let Some(file) = &mut checked.file {
                file.take_charge();
            }
            let slots = restoring.slots(&socket.name, scope);
            let reuseport = sockets::is_reuseport(socket.fd.as_fd());
            let backlog = accept_queue::of_tcp(socket.fd.as_fd());
            let backlog = backlog.map(|queue| i32::try_from(queue.limit).unwrap_or(i32::MAX));
            self.restored.push((id, sockets::owner(socket.fd.as_fd())));
            self.core.add_restored(id, key, scope, slots, reuseport);
            self.keep(id, socket.fd, backlog, checked.file);
            count += 1;
        }
        if is_shard {
            self.core.restore_order(key, order);
        }
        if count > 0 {
            self.report(Report::Restored { address: key.to_string(), count });
        }
    }

    /// Closes a kept socket. The service manager closes its copy a little later; until then the address would be taken.
    fn reject(&mut self, socket: &KeptSocket, why: &'static str) {
        sockets::shut_down(socket.fd.as_fd());
        self.report(Report::NotRestored { name: socket.name.to_string(), why });
    }

    /// Closes what an earlier supervisor left and no worker has: the workers bind for themselves.
    pub(super) fn give_up_restored(&mut self, now: Time) {
        let restored = std::mem::take(&mut self.restored);
        restored.into_iter().for_each(|(id, _)| self.core.give_up(id));
        self.reconcile(now);
    }

    /// A process of this user binds an address. The kernel would refuse it beside sockets of another user, so what an
    /// earlier supervisor left of those is closed.
    pub(super) fn yield_restored(&mut self, now: Time, key: &Key, uid: u32) {
        if self.restored.is_empty() {
            return;
        }
        let core = &mut self.core;
        let is_in_the_way = |id: SocketId| {
            core.socket(id).is_some_and(|socket| socket.users.is_empty() && socket.key.overlaps(key))
        };
        let of_others: Vec<SocketId> = self
            .restored
            .extract_if(.., |(id, owner)| *owner != Some(uid) && is_in_the_way(*id))
            .map(|(id, _)| id)
            .collect();
        if !of_others.is_empty() {
            of_others.into_iter().for_each(|id| core.give_up(id));
            self.reconcile(now);
        }
    }

    /// The sockets for the service manager to keep, each with its name.
    pub(super) fn kept(&self) -> Vec<(String, SocketId)> {
        let listeners =
            self.core.sockets().iter().filter(|socket| socket.active && !socket.key.is_datagram());
        let with_names = listeners.filter(|socket| self.copies.get(socket.id).is_some());
        let mut kept: Vec<(String, SocketId)> =
            with_names.filter_map(|socket| Some((self.name_of(socket)?, socket.id))).collect();
        kept.retain(|(name, _)| name.len() < MAX_NAME);
        kept.sort();
        kept
    }

    fn name_of(&self, socket: &Socket) -> Option<String> {
        let is_listen = self.permanent(socket.id).is_some();
        if self.permanent(socket.id).is_some_and(|permanent| permanent.external) {
            // It belongs to a socket unit.
            return None;
        }
        let kind = match socket.scope {
            _ if is_listen => Kind::Listen,
            Scope::Shard => Kind::Shard,
            Scope::Shared => Kind::Shared,
            // Of a path's sockets only the one that clients reach can be found again.
            Scope::Generation(_) if self.copies.file(socket.id).is_some_and(SocketFile::is_at_path) => {
                Kind::Path
            }
            Scope::Generation(_) => return None,
        };
        let user = socket.users.first().and_then(|user| self.core.workers().slot_of(*user));
        let slot = user.or_else(|| socket.awaited_by.first().copied()).unwrap_or(0);
        let slot = if kind == Kind::Shard { slot } else { 0 };
        let number = self.core.number(socket).and_then(|number| u32::try_from(number).ok()).unwrap_or(0);
        let address = match (&socket.key, self.copies.file(socket.id)) {
            (Key::Unix { folder, name, .. }, Some(file)) => {
                let shown = file.place().absolute();
                address_text(&Key::Unix { folder: *folder, name: name.clone(), shown })
            }
            (key, _) => address_text(key),
        };
        Some(Name { kind, slot, number, address }.to_string())
    }
}

fn distinct_keys(usable: &[Usable]) -> Vec<Key> {
    let mut keys: Vec<Key> = Vec::new();
    for usable in usable {
        if !keys.iter().any(|key| key.matches(&usable.checked.key)) {
            keys.push(usable.checked.key.clone());
        }
    }
    keys
}

/// The name and the inode number of each socket that the service manager kept.
pub(super) fn named(kept: &[KeptSocket]) -> io::Result<Vec<(String, SocketId)>> {
    kept.iter().map(|socket| Ok((socket.name.to_string(), sockets::inode(socket.fd.as_fd())?))).collect()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn kept(name: &str, socket: impl Into<OwnedFd>) -> KeptSocket {
        KeptSocket::new(name, socket.into()).expect("a name of ours")
    }

    #[test]
    fn a_name_is_read_as_it_was_written() {
        for text in [
            "mp-shard/3/1/tcp/127.0.0.1/80",
            "mp-listen/0/0/tcp/__1/80/v6only/if2",
            "mp-path/0/0/unix//run/a",
        ] {
            assert_eq!(Name::parse(text).map(|name| name.to_string()).as_deref(), Some(text));
        }
        for other in
            ["http", "mp-", "mp-other/0/0/tcp/1/2", "mp-shard/x/0/tcp/1/2", "mp-shard/0/0", "mp-shard/-1/0/a"]
        {
            assert_eq!(Name::parse(other), None, "{other}");
        }
    }

    #[test]
    fn an_address_is_printable_without_a_colon() {
        let v6 = Key::tcp("[::1]:80".parse().expect("an address"), true);
        assert_eq!(address_text(&v6), "tcp/__1/80/v6only");
        let odd = "/run/a:b%c d\u{e4}";
        let text = encoded(odd.as_bytes());
        assert_eq!(text, "/run/a%3ab%25c%20d%c3%a4");
        assert_eq!(decoded(&text).as_deref(), Some(odd.as_bytes()));
        assert_eq!((decoded("%"), decoded("%4"), decoded("%zz")), (None, None, None));
    }

    #[test]
    fn a_tcp_listener_is_checked_against_its_name() {
        let listener = || TcpListener::bind("127.0.0.1:0").expect("bound");
        let (right, wrong) = (listener(), listener());
        let name = format!("mp-shard/0/0/tcp/127.0.0.1/{}", right.local_addr().expect("it has one").port());
        assert!(kept(&name, right).check().is_ok());
        assert_eq!(kept(&name, wrong).check().err(), Some("it has another address"));
        let bound = sockets::bind_tcp("127.0.0.1:0".parse().expect("an address"), sockets::Tcp::default());
        assert_eq!(kept(&name, bound.expect("bound")).check().err(), Some("it does not listen"));
    }

    #[test]
    fn a_unix_listener_is_known_by_its_file_under_any_name() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = |name: &str| folder.path().join(name);
        let name = format!("mp-path/0/0/unix/{}", path("app.sock").display());
        let first = UnixListener::bind(path(".beside")).expect("bound");
        std::fs::rename(path(".beside"), path("app.sock")).expect("ours");
        let first = kept(&name, first);
        match first.check() {
            Ok(checked) => assert!(checked.file.is_some_and(|file| file.is_at_path())),
            // A kernel without unix_diag.
            Err(why) => return assert_eq!(why, "the kernel does not list Unix sockets"),
        }
        let _second = UnixListener::bind(path(".other")).expect("bound");
        std::fs::rename(path(".other"), path("app.sock")).expect("ours");
        assert_eq!(first.check().err(), Some("its path leads to another socket"));
        std::fs::remove_file(path("app.sock")).expect("ours");
        assert_eq!(first.check().err(), Some("its path is gone"));
    }
}
