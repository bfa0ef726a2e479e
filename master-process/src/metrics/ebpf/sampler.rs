//! The program that measures, one for all supervisors of the host, and the maps that each of them has of its own.
//!
//! The kernel takes 2.5 ms to load it, half as long as a whole supervisor needs to start. So the first supervisor loads it, and
//! the others open it (`id_file.rs`). It has maps of maps, in which each supervisor has a row (`rows.rs`).

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use aya_obj::generated::{BPF_F_INNER_MAP, BPF_F_MMAPABLE, bpf_map_type};
use master_process_common::{Account, Control, Listener, Owner};

use super::load_error::LoadError;
use super::object::Loaded;
use super::rows::{Row, Rows};
use crate::sys::bpf::{self, Map, MapKind, Mapping};
use crate::sys::thread;

/// The program, in the object.
pub(super) const PROGRAM: &str = "run";
/// The map with the timer, in the object.
pub(super) const TICKER: &str = "TICKER";

/// The number of supervisors that share the program, a power of two. The next one loads another program, for itself.
pub(super) const HOST_ROWS: u32 = 1024;

/// The maps of one supervisor.
#[derive(Debug)]
pub(super) struct OwnMaps {
    pub(super) accounts: Map,
    pub(super) listeners: Map,
    pub(super) control: Map,
    pub(super) events: Map,
}

impl OwnMaps {
    /// For these numbers of accounts and listeners.
    ///
    /// # Errors
    /// EPERM without the privilege; ENOMEM.
    pub(super) fn new(accounts: u32, listeners: u32) -> Result<OwnMaps, LoadError> {
        let events = MapKind { number: bpf_map_type::BPF_MAP_TYPE_RINGBUF as u32, ..EVENTS };
        Ok(OwnMaps {
            accounts: array::<Account>("ACCOUNTS", accounts, BPF_F_INNER_MAP)?,
            listeners: array::<Listener>("LISTENERS", listeners, BPF_F_INNER_MAP)?,
            control: array::<Control>("CONTROL", 1, 0)?,
            events: Map::new("EVENTS", events).map_err(|error| refused("EVENTS", error))?,
        })
    }

    /// By the names of the maps of maps in the object.
    pub(super) fn by_name(&self) -> [(&'static str, &Map); 4] {
        [
            ("ACCOUNTS", &self.accounts),
            ("LISTENERS", &self.listeners),
            ("CONTROL", &self.control),
            ("EVENTS", &self.events),
        ]
    }
}

/// A ring buffer of one page.
const EVENTS: MapKind = MapKind { number: 0, key_size: 0, value_size: 0, entries: 4096, flags: 0 };

/// An array that can be mapped into memory.
fn array<T>(name: &str, entries: u32, flags: u32) -> Result<Map, LoadError> {
    let number = bpf_map_type::BPF_MAP_TYPE_ARRAY as u32;
    let value_size = u32::try_from(size_of::<T>()).map_err(|error| LoadError::new(name, error))?;
    let kind = MapKind { number, key_size: 4, value_size, entries, flags: BPF_F_MMAPABLE | flags };
    Map::new(name, kind).map_err(|error| refused(name, error))
}

fn refused(name: &str, error: io::Error) -> LoadError {
    LoadError::new(format_args!("bpf(BPF_MAP_CREATE) {name}"), error)
}

/// The number of [`Shared::ids`].
pub(super) const IDS: usize = 7;

/// The loaded program, and what a supervisor needs of it to take part.
#[derive(Debug)]
pub(super) struct Shared {
    sampler: Sampler,
    /// The maps of maps that stay as they are once they have been written.
    control_of_each: Map,
    events_of_each: Map,
    /// Which supervisor has which row.
    owners: Map,
}

/// The program, and what a supervisor keeps open of it.
#[derive(Debug)]
pub(super) struct Sampler {
    program: OwnedFd,
    /// The timer runs as long as this map is open.
    ticker: Map,
    accounts_of_each: Map,
    listeners_of_each: Map,
}

impl Shared {
    /// Takes what was loaded of the object, with so many rows.
    ///
    /// # Errors
    /// The object has other maps; ENOMEM.
    pub(super) fn new(loaded: &mut Loaded, rows: u32) -> Result<Shared, LoadError> {
        Ok(Shared {
            sampler: Sampler {
                program: loaded.take_program(PROGRAM)?,
                ticker: loaded.take_map(TICKER)?,
                accounts_of_each: loaded.take_map("ACCOUNTS")?,
                listeners_of_each: loaded.take_map("LISTENERS")?,
            },
            control_of_each: loaded.take_map("CONTROL")?,
            events_of_each: loaded.take_map("EVENTS")?,
            owners: array::<Owner>("OWNERS", rows, 0)?,
        })
    }

    /// Opens the program with these ids, which another supervisor has loaded.
    ///
    /// # Errors
    /// There is none; EPERM without CAP_SYS_ADMIN.
    pub(super) fn open(ids: [u32; IDS]) -> io::Result<Shared> {
        let [program, ticker, accounts, listeners, control, events, owners] = ids;
        let of_maps = |id| {
            let map = bpf::map_by_id(id)?;
            let is_one = map.kind().number == bpf_map_type::BPF_MAP_TYPE_ARRAY_OF_MAPS as u32;
            if is_one { Ok(map) } else { Err(io::Error::from(io::ErrorKind::NotFound)) }
        };
        Ok(Shared {
            sampler: Sampler {
                program: bpf::program_by_id(program)?,
                ticker: bpf::map_by_id(ticker)?,
                accounts_of_each: of_maps(accounts)?,
                listeners_of_each: of_maps(listeners)?,
            },
            control_of_each: of_maps(control)?,
            events_of_each: of_maps(events)?,
            owners: bpf::map_by_id(owners)?,
        })
    }

    /// The ids by which [`Self::open`] finds it.
    ///
    /// # Errors
    /// Those of reading `/proc/self/fdinfo`.
    pub(super) fn ids(&self) -> io::Result<[u32; IDS]> {
        let Shared { sampler, control_of_each, events_of_each, owners } = self;
        let Sampler { program, ticker, accounts_of_each, listeners_of_each } = sampler;
        let mut ids = [bpf::id_of(program.as_fd(), "prog_id")?; IDS];
        let maps = [ticker, accounts_of_each, listeners_of_each, control_of_each, events_of_each, owners];
        for (id, map) in ids.iter_mut().skip(1).zip(maps) {
            *id = bpf::id_of(map.as_fd(), "map_id")?;
        }
        Ok(ids)
    }

    /// Takes a row; `None` if there is none left.
    ///
    /// # Errors
    /// Those of mmap(2).
    pub(super) fn take_row(&self) -> Result<Option<Row>, LoadError> {
        let owners = Mapping::new(&self.owners).map_err(|error| LoadError::new("mmap OWNERS", error))?;
        Ok(Rows::new(owners).take())
    }

    /// Has the program find these maps in a row. For each of them this thread sleeps some ten milliseconds: the kernel waits until no
    /// program uses what was there before.
    ///
    /// # Errors
    /// Those of bpf(2).
    pub(super) fn enter(self, row: &Row, own: &OwnMaps) -> Result<Sampler, LoadError> {
        let Shared { sampler, control_of_each, events_of_each, owners: _ } = self;
        let of_each =
            [&sampler.accounts_of_each, &sampler.listeners_of_each, &control_of_each, &events_of_each];
        for (of_each, (name, own)) in of_each.into_iter().zip(own.by_name()) {
            put(of_each, row.number(), own)
                .map_err(|error| LoadError::new(format_args!("bpf(BPF_MAP_UPDATE_ELEM) {name}"), error))?;
        }
        Ok(sampler)
    }
}

impl Sampler {
    /// Has the program find larger maps in a row, from now on or soon: a thread waits for the kernel.
    ///
    /// # Errors
    /// EMFILE; EAGAIN if there can be no thread.
    pub(super) fn replace(&self, row: &Row, accounts: Map, listeners: Map) -> io::Result<()> {
        let (accounts_of_each, listeners_of_each) =
            (self.accounts_of_each.try_clone()?, self.listeners_of_each.try_clone()?);
        let row = row.number();
        thread::spawn("accounts", 64 * 1024, move || {
            for (of_each, own) in [(accounts_of_each, accounts), (listeners_of_each, listeners)] {
                if let Err(error) = put(&of_each, row, &own) {
                    tracing::debug!("bpf(BPF_MAP_UPDATE_ELEM): {error}");
                }
            }
        })
    }

    /// Runs the program for a row.
    ///
    /// # Errors
    /// Those of bpf(2).
    pub(super) fn run(&self, row: &Row) -> io::Result<()> {
        bpf::run(self.program.as_fd(), row.number().into())
    }
}

/// Puts a map into a map of maps.
fn put(of_each: &Map, row: u32, own: &Map) -> io::Result<()> {
    of_each.update(&row.to_ne_bytes(), &own.as_fd().as_raw_fd().to_ne_bytes())
}
