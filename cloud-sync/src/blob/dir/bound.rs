//! A limit on the contents of a directory store: their disk usage is counted, and what does not fit is refused.

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
/// An older count is repeated before an object is refused: files may have been removed by hand.
const STALE: Duration = Duration::from_secs(30);
/// Placeholder while nothing has been counted.
const UNKNOWN: u64 = u64::MAX;

/// Limits of a [`DirStore`](super::DirStore).
#[derive(Debug, Clone, Copy)]
pub struct Bound {
    /// Maximum bytes on the disk.
    pub max_bytes: u64,
    /// Bytes of the file system that are left to others. An object of full share may take half of them.
    pub min_free: u64,
    /// The share of `max_bytes`, in percent, up to which an object of this key is put: objects with the full share,
    /// by which space is freed, cannot be blocked by others.
    pub share: fn(&str) -> u64,
}

/// Usage of a bounded store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Disk usage of its objects.
    pub bytes: u64,
    /// Its limit.
    pub max_bytes: u64,
    /// Free bytes of the file system.
    pub free: u64,
    /// Free bytes that are left to others.
    pub min_free: u64,
}

impl Room {
    /// Whether more than this share of the limit is used, in percent, or the bytes left to others are being used up.
    #[must_use]
    pub fn is_short(&self, percent: u64) -> bool {
        self.bytes > part(self.max_bytes, percent) || self.free < self.min_free
    }
}

/// Why an object was not put: the store is at its limit. It is at the root of the error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{needed} more bytes do not fit: {} of at most {} bytes are used, {} are free on the disk, of which {} are left to others",
    room.bytes, room.max_bytes, room.free, room.min_free
)]
pub struct StoreFull {
    /// Disk usage of the object.
    pub needed: u64,
    /// Usage of the store.
    pub room: Room,
}

impl StoreFull {
    /// The `StoreFull` at the root of `error`, if any.
    #[must_use]
    pub fn of(error: &SyncError) -> Option<&Self> {
        error.source()?.downcast_ref::<io::Error>()?.get_ref()?.downcast_ref()
    }
}

/// Usage of a store, against its limit.
#[derive(Debug)]
pub(super) struct Account {
    bound: Bound,
    /// Locked while an object is placed or removed, so that a count sees each exactly once.
    held: Mutex<Held>,
    /// The bytes used, for readers that must not wait for a count.
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

    /// Reserves space for an object that is about to be written.
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

    /// Usage, counted now if it never was or is to be counted again; that may take a while.
    pub(super) fn measure(&self, tree: &Tree, again: bool) -> io::Result<Room> {
        let mut held = self.counted(tree)?;
        if again && held.counted.is_none_or(|at| at.elapsed() > STALE) {
            self.count(tree, &mut held)?;
        }
        self.room_of(tree, held.bytes)
    }

    /// Usage as far as it is known, without waiting.
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

/// Space for an object that is being written; released when it is dropped.
pub(super) struct Reserved<'a> {
    account: &'a Account,
    bytes: u64,
}

impl Reserved<'_> {
    /// Places the object by `rename`, and counts it for what it replaces.
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

/// Disk usage of the file with this name; 0 if there is none.
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
