//! The sockets of generations at Unix paths: whom they go to, which of them is found, and when they are closed.

use std::io;

use super::address::Key;
use super::broker::Broker;
use super::generations::{self, Joins, Standing};
use super::table::{Held, Part};
use super::unix::SocketFile;

impl Broker {
    /// The generation that a reload under way leads to; none: there is no reload under way.
    pub fn set_target(&mut self, target: Option<u32>) {
        if self.target == target {
            return;
        }
        self.target = target;
        // Which socket is wanted at a path hangs on it.
        self.turn_where(|held| matches!(held.part, Part::Generation(_)));
    }

    /// A worker is asked to leave: it accepts no more, or not for long.
    pub fn dismiss(&mut self, serial: u64) {
        if let Some(member) = self.members.get_mut(serial) {
            member.dismissed = true;
        }
    }

    /// Which generation's socket of a path a worker gets.
    pub(super) fn generation_for(&mut self, key: &Key, own: u32) -> u32 {
        match generations::joins(own, self.target, &self.standings(key)) {
            Joins::Own => own,
            Joins::With(other) => other,
            Joins::Instead(other) => {
                if let Some(held) = self.table.find(key, Part::Generation(other)) {
                    held.part = Part::Generation(own);
                }
                own
            }
        }
    }

    fn standings(&self, key: &Key) -> Vec<Standing> {
        let standing = |held: &Held| {
            let Part::Generation(generation) = held.part else { return None };
            let users = || self.members.living().filter(|member| member.bound.contains(&held.inode));
            Some(Standing {
                inode: held.inode,
                generation,
                found: held.file.as_ref().is_some_and(SocketFile::is_found),
                listening: held.is_listening(),
                serving: users().filter(|member| member.serves).count(),
                staying: users().filter(|member| !member.serves && !member.dismissed).count(),
            })
        };
        self.table.iter().filter(|held| held.key.matches(key)).filter_map(standing).collect()
    }

    /// Puts the socket to the path that is wanted there.
    pub(super) fn rename(&mut self, key: &Key) -> io::Result<()> {
        let Some(wanted) = generations::wanted(self.target, &self.standings(key)) else {
            return Ok(());
        };
        let files = self.table.of_key(key).filter_map(|held| Some((held.inode, held.file.as_mut()?)));
        let (mut chosen, mut others): (Vec<_>, Vec<_>) = files.partition(|(inode, _)| *inode == wanted);
        let current = others.iter_mut().map(|(_, file)| &mut **file).find(|file| file.is_found());
        match chosen.pop() {
            Some((_, file)) if !file.is_found() => file.take_place_of(current),
            Some(_) | None => Ok(()),
        }
    }

    /// Closes the sockets that nobody finds and that nobody has. One in which somebody waits is kept for as long as
    /// a reload may start another worker for it.
    pub(super) fn drop_superseded(&mut self) {
        let superseded = |held: &&Held| {
            let Part::Generation(generation) = held.part else { return false };
            held.file.as_ref().is_some_and(|file| !file.is_found())
                && !self.members.living().any(|member| member.bound.contains(&held.inode))
                && !(self.target == Some(generation) && held.is_waited_for())
        };
        let inodes: Vec<u64> = self.table.iter().filter(superseded).map(|held| held.inode).collect();
        for inode in inodes {
            self.table.remove(inode);
        }
    }
}
