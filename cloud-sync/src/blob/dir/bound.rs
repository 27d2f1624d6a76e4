//! A bound on what a directory store holds: what it takes on the disk is counted, and what does not fit is refused.

use std::error::Error;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use rustix::fs::{AtFlags, FileType, fstatvfs, statat, unlinkat};
use rustix::io::Errno;

use super::list;
use super::tree::Tree;
use crate::error::SyncError;

/// Files take whole blocks.
const BLOCK: u64 = 4096;
/// A count older than this is taken again before something is refused: an operator may have removed files.
const STALE: Duration = Duration::from_secs(30);
/// Shown while nothing has been counted.
const UNKNOWN: u64 = u64::MAX;

/// How much a [`DirStore`](super::DirStore) may hold.
#[derive(Debug, Clone, Copy)]
pub struct Bound {
    /// Bytes on the disk, at most.
    pub max_bytes: u64,
    /// Bytes of the file system that are left to others. An object of full share may take half of them.
    pub min_free: u64,
    /// The share of `max_bytes`, in percent, up to which an object of this key is put: where all of it is for the
    /// objects by which room comes back, nothing else can keep them out.
    pub share: fn(&str) -> u64,
}

/// How full a bounded store is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// What its objects take on the disk.
    pub bytes: u64,
    /// The bound on that.
    pub max_bytes: u64,
    /// What is free on the file system.
    pub free: u64,
    /// What of that is left to others.
    pub min_free: u64,
}

impl Room {
    /// Whether more than this share of the bound is taken, in percent, or what is left to others is being used up.
    #[must_use]
    pub fn is_short(&self, percent: u64) -> bool {
        self.bytes > part(self.max_bytes, percent) || self.free < self.min_free
    }
}

/// Why an object was not put: the store is at its bound. It is at the root of the error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{needed} bytes more do not fit: {} of at most {} bytes are taken, {} are free on the disk, of which {} are left to others",
    room.bytes, room.max_bytes, room.free, room.min_free
)]
pub struct StoreFull {
    /// Bytes of the object on the disk.
    pub needed: u64,
    /// How full the store is.
    pub room: Room,
}

impl StoreFull {
    /// Whether, and how, `error` is about a store without room.
    #[must_use]
    pub fn of(error: &SyncError) -> Option<&Self> {
        error.source()?.downcast_ref::<io::Error>()?.get_ref()?.downcast_ref()
    }
}

/// What a store holds, against its bound.
#[derive(Debug)]
pub(super) struct Account {
    bound: Bound,
    /// Locked while an object is put in its place or removed, so that a count misses none and none twice.
    held: Mutex<Held>,
    /// The bytes held, for readers that must not wait for a count.
    shown: AtomicU64,
}

#[derive(Debug, Default)]
struct Held {
    bytes: u64,
    /// Bytes of objects that are being written.
    reserved: u64,
    counted: Option<Instant>,
}

impl Account {
    pub(super) fn new(bound: Bound) -> Self {
        Self { bound, held: Mutex::default(), shown: UNKNOWN.into() }
    }

    /// Makes room for an object that is about to be written.
    pub(super) fn reserve(&self, tree: &Tree, key: &str, bytes: u64) -> io::Result<Reserved<'_>> {
        let needed = blocks(bytes);
        let share = (self.bound.share)(key).min(100);
        let mut held = self.counted(tree)?;
        let fits = |held: &Held| {
            held.bytes.saturating_add(held.reserved).saturating_add(needed)
                <= part(self.bound.max_bytes, share)
        };
        if !fits(&held) && held.counted.is_none_or(|at| at.elapsed() > STALE) {
            self.count(tree, &mut held)?;
        }
        let room = self.room_of(tree, held.bytes)?;
        let keep = if share == 100 { room.min_free / 2 } else { room.min_free };
        if !fits(&held) || room.free < keep.saturating_add(held.reserved).saturating_add(needed) {
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, StoreFull { needed, room }));
        }
        held.reserved += needed;
        Ok(Reserved { account: self, bytes: needed })
    }

    /// Removes an object; false when there is none.
    pub(super) fn remove(&self, folder: &OwnedFd, name: &str) -> rustix::io::Result<bool> {
        let mut held = self.held.lock();
        let bytes = taken(folder, name);
        let removed = unlink(folder, name)?;
        if removed {
            held.bytes = held.bytes.saturating_sub(bytes);
            self.show(&held);
        }
        Ok(removed)
    }

    /// How full it is, counted now if it never was or is to be counted again; that may take a while.
    pub(super) fn measure(&self, tree: &Tree, again: bool) -> io::Result<Room> {
        let mut held = self.counted(tree)?;
        if again && held.counted.is_none_or(|at| at.elapsed() > STALE) {
            self.count(tree, &mut held)?;
        }
        self.room_of(tree, held.bytes)
    }

    /// How full it is as far as that is known, at once.
    pub(super) fn room(&self, tree: &Tree) -> Option<Room> {
        let bytes = Some(self.shown.load(Ordering::Relaxed)).filter(|bytes| *bytes != UNKNOWN)?;
        self.room_of(tree, bytes).ok()
    }

    fn room_of(&self, tree: &Tree, bytes: u64) -> io::Result<Room> {
        let space = fstatvfs(tree.root()?)?;
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        Ok(Room { bytes, max_bytes: self.bound.max_bytes, free, min_free: self.bound.min_free })
    }

    fn counted(&self, tree: &Tree) -> io::Result<MutexGuard<'_, Held>> {
        let mut held = self.held.lock();
        if held.counted.is_none() {
            self.count(tree, &mut held)?;
        }
        Ok(held)
    }

    fn count(&self, tree: &Tree, held: &mut Held) -> io::Result<()> {
        let mut bytes = 0;
        list::each(tree, "", &mut |object| bytes += blocks(object.bytes))?;
        (held.bytes, held.counted) = (bytes, Some(Instant::now()));
        self.show(held);
        Ok(())
    }

    fn show(&self, held: &Held) {
        if held.counted.is_some() {
            self.shown.store(held.bytes, Ordering::Relaxed);
        }
    }
}

/// Room for an object that is being written; given back when it is dropped.
pub(super) struct Reserved<'a> {
    account: &'a Account,
    bytes: u64,
}

impl Reserved<'_> {
    /// Puts the object in its place by `rename`, and counts it for what it replaces.
    pub(super) fn place(
        &mut self,
        folder: &OwnedFd,
        name: &str,
        rename: impl FnOnce() -> rustix::io::Result<()>,
    ) -> rustix::io::Result<()> {
        let mut held = self.account.held.lock();
        let replaced = taken(folder, name);
        rename()?;
        held.bytes = held.bytes.saturating_add(self.bytes).saturating_sub(replaced);
        held.reserved = held.reserved.saturating_sub(std::mem::take(&mut self.bytes));
        self.account.show(&held);
        Ok(())
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if self.bytes > 0 {
            let mut held = self.account.held.lock();
            held.reserved = held.reserved.saturating_sub(self.bytes);
        }
    }
}

/// Removes a file; false when there is none.
pub(super) fn unlink(folder: &OwnedFd, name: &str) -> rustix::io::Result<bool> {
    match unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// What the file takes that has the name now; nothing if it is none.
fn taken(folder: &OwnedFd, name: &str) -> u64 {
    let Ok(stat) = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) else { return 0 };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => blocks(super::length(&stat)),
        _ => 0,
    }
}

fn blocks(bytes: u64) -> u64 {
    bytes.max(1).div_ceil(BLOCK).saturating_mul(BLOCK)
}

fn part(of: u64, percent: u64) -> u64 {
    of / 100 * percent + of % 100 * percent / 100
}
