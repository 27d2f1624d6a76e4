//! A simulated disk that loses unsynced writes when power fails.
//!
//! It observes a directory while a store works in it: at each fsync it records what is durable from then on, and
//! before each it keeps a [`KillPoint`], from which the directory can be restored as it may look if power had failed
//! there: with everything undone since the last fsync of each file and directory, or with a part of it.
//!
//! For tests; the whole directory is read at each fsync.

#![allow(clippy::expect_used, reason = "tests are the only callers")]

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

/// Bytes that a disk writes atomically.
const SECTOR: usize = 512;

static WATCHING: Mutex<Vec<Weak<SimulatedDisk>>> = Mutex::new(Vec::new());

/// What a loss of power leaves of the unsynced operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing: every operation after the last fsync is undone.
    Undone,
    /// Names, but not the bytes of files: a journal of metadata only.
    Names,
    /// Bytes of files, but no created, changed or removed name.
    Bytes,
    /// Random sectors of files, and the names of random directories, with this seed.
    Some(u64),
    /// All of it: the process was killed.
    All,
}

impl Outcome {
    /// One of each kind, and a few seeds.
    pub const EACH: [Self; 7] =
        [Self::Undone, Self::Names, Self::Bytes, Self::Some(1), Self::Some(2), Self::Some(3), Self::All];
}

type Content = Arc<Vec<u8>>;

/// Directories and files by their inodes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Tree {
    dirs: HashMap<u64, BTreeMap<OsString, u64>>,
    files: HashMap<u64, Content>,
}

/// A moment at which power may fail.
#[derive(Debug)]
pub struct KillPoint {
    /// Number of steps acknowledged until then.
    pub acknowledged: usize,
    root: u64,
    durable: Tree,
    current: Tree,
}

#[derive(Debug, Default)]
struct State {
    durable: Tree,
    /// Files that a durable name may refer to: while they are open no other file gets their inode.
    held: Vec<OwnedFd>,
    kills: Vec<KillPoint>,
}

/// Observes one directory.
#[derive(Debug)]
pub struct SimulatedDisk {
    path: PathBuf,
    root: u64,
    acknowledged: AtomicUsize,
    state: Mutex<State>,
}

impl SimulatedDisk {
    /// Starts to observe a directory. Its current contents count as durable.
    ///
    /// # Panics
    /// When the directory can't be read.
    #[must_use]
    pub fn watch(dir: &Path) -> Arc<Self> {
        let path = dir.canonicalize().expect("the directory is there");
        let root = fs::metadata(&path).expect("the directory is there").ino();
        let disk = Self { path, root, acknowledged: AtomicUsize::new(0), state: Mutex::default() };
        let mut paths = Vec::new();
        let durable = disk.read(&mut paths);
        let held = paths.iter().filter_map(|path| File::open(path).ok()).map(OwnedFd::from).collect();
        *disk.state.lock() = State { durable, held, kills: Vec::new() };
        let disk = Arc::new(disk);
        let mut watching = WATCHING.lock();
        watching.retain(|other| other.strong_count() > 0);
        watching.push(Arc::downgrade(&disk));
        disk
    }

    /// Acknowledges another step of the test: its effect must survive any later loss of power.
    pub fn acknowledge(&self) {
        self.acknowledged.fetch_add(1, Ordering::SeqCst);
    }

    /// The kill points so far, and one for now.
    pub fn kill_points(&self) -> Vec<KillPoint> {
        self.keep_kill_point();
        std::mem::take(&mut self.state.lock().kills)
    }

    /// Reads the current tree, and the paths of its files.
    fn read(&self, paths: &mut Vec<PathBuf>) -> Tree {
        let mut tree = Tree::default();
        let mut dirs = vec![self.path.clone()];
        while let Some(dir) = dirs.pop() {
            let Ok(about) = fs::metadata(&dir) else { continue };
            tree.dirs.insert(about.ino(), listing(&dir));
            paths.push(dir.clone());
            for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
                let Ok(about) = entry.metadata() else { continue };
                if about.is_dir() {
                    dirs.push(entry.path());
                } else if let Ok(bytes) = fs::read(entry.path()) {
                    tree.files.insert(about.ino(), Arc::new(bytes));
                    paths.push(entry.path());
                }
            }
        }
        tree
    }

    fn keep_kill_point(&self) {
        // In this order: what was acknowledged is durable by then, and nothing that is synced and present is missing
        // from what is durable, whatever other threads sync meanwhile.
        let acknowledged = self.acknowledged.load(Ordering::SeqCst);
        let mut current = self.read(&mut Vec::new());
        loop {
            // Another thread may be writing.
            let again = self.read(&mut Vec::new());
            if again == current {
                break;
            }
            current = again;
        }
        let mut state = self.state.lock();
        let durable = state.durable.clone();
        state.kills.push(KillPoint { acknowledged, root: self.root, durable, current });
    }

    fn note(&self, fd: &impl AsFd, path: &Path) {
        let Ok(file) = fd.as_fd().try_clone_to_owned().map(File::from) else { return };
        let Ok(about) = file.metadata() else { return };
        if about.is_dir() {
            let names = listing(path);
            for name in names.keys() {
                if let Ok(file) = File::open(path.join(name)) {
                    self.state.lock().held.push(file.into());
                }
            }
            self.state.lock().durable.dirs.insert(about.ino(), names);
        } else if let Some(bytes) = bytes_of(&file) {
            let mut state = self.state.lock();
            state.durable.files.insert(about.ino(), Arc::new(bytes));
            state.held.push(file.into());
        }
    }
}

/// The bytes of an open file, also where it is open for writing only.
fn bytes_of(file: &File) -> Option<Vec<u8>> {
    let again = File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?;
    let mut bytes = vec![0; usize::try_from(again.metadata().ok()?.len()).ok()?];
    again.read_exact_at(&mut bytes, 0).ok()?;
    Some(bytes)
}

fn listing(dir: &Path) -> BTreeMap<OsString, u64> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some((entry.file_name(), entry.metadata().ok()?.ino()))).collect()
}

/// The observed disk that contains an open file or directory, and its path.
pub(super) fn before(fd: &impl AsFd) -> Option<(Arc<SimulatedDisk>, PathBuf)> {
    let watching: Vec<_> = WATCHING.lock().iter().filter_map(Weak::upgrade).collect();
    if watching.is_empty() {
        return None;
    }
    let path = fs::read_link(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())).ok()?;
    let disk = watching.into_iter().find(|disk| path.starts_with(&disk.path))?;
    disk.keep_kill_point();
    Some((disk, path))
}

pub(super) fn after(seen: Option<(Arc<SimulatedDisk>, PathBuf)>, fd: &impl AsFd) {
    if let Some((disk, path)) = seen {
        disk.note(fd, &path);
    }
}

/// Calls `check` with a directory for each kill point and each outcome, as a loss of power would have left it, and
/// with the number of steps acknowledged by then.
///
/// # Panics
/// When there are no kill points, or on errors of this machine's disk.
pub fn after_each_loss(points: &[KillPoint], mut check: impl FnMut(&Path, usize, Outcome)) {
    assert!(points.len() > 1, "nothing was ever synced");
    for point in points {
        for outcome in Outcome::EACH {
            let to = std::env::temp_dir().join(format!("weir-lost-writes-{}", ulid::Ulid::generate()));
            fs::create_dir(&to).expect("the copy can be made");
            point.restore(outcome, &to);
            check(&to, point.acknowledged, outcome);
            fs::remove_dir_all(&to).expect("the copy can be removed");
        }
    }
}

impl KillPoint {
    /// Restores the directory into the empty directory `to`, as it may be after the loss of power.
    ///
    /// # Panics
    /// When `to` can't be written.
    pub fn restore(&self, outcome: Outcome, to: &Path) {
        self.restore_dir(self.root, outcome, to);
    }

    fn restore_dir(&self, dir: u64, outcome: Outcome, to: &Path) {
        let keeps_names = match outcome {
            Outcome::Undone | Outcome::Bytes => false,
            Outcome::Names | Outcome::All => true,
            Outcome::Some(seed) => coin(seed, dir),
        };
        let names = if keeps_names { &self.current.dirs } else { &self.durable.dirs };
        for (name, child) in names.get(&dir).into_iter().flatten() {
            let path = to.join(name);
            if self.current.dirs.contains_key(child) || self.durable.dirs.contains_key(child) {
                fs::create_dir(&path).expect("the copy can be written");
                self.restore_dir(*child, outcome, &path);
            } else {
                fs::write(&path, self.content(*child, outcome)).expect("the copy can be written");
            }
        }
    }

    fn content(&self, file: u64, outcome: Outcome) -> Vec<u8> {
        let old = self.durable.files.get(&file).cloned().unwrap_or_default();
        let new = self.current.files.get(&file).unwrap_or(&old);
        match outcome {
            Outcome::Undone | Outcome::Names => old.to_vec(),
            Outcome::Bytes | Outcome::All => new.to_vec(),
            Outcome::Some(seed) => {
                let length = if coin(seed, file) { old.len() } else { new.len() };
                let mut bytes = vec![0; length];
                for (index, sector) in bytes.chunks_mut(SECTOR).enumerate() {
                    let at = index * SECTOR;
                    let from = if coin(seed ^ file, index as u64) { &old } else { new };
                    let from = from.get(at..).unwrap_or_default();
                    let kept = from.len().min(sector.len());
                    sector[..kept].copy_from_slice(&from[..kept]);
                }
                bytes
            }
        }
    }
}

fn coin(seed: u64, of: u64) -> bool {
    let mixed = (seed.wrapping_mul(0xd6e8_feb8_6659_fd93) ^ of).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed >> 40 & 1 == 1
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::durable;

    fn after(point: &KillPoint, outcome: Outcome) -> BTreeMap<OsString, Vec<u8>> {
        let to = tempfile::tempdir().unwrap();
        point.restore(outcome, to.path());
        let entries = fs::read_dir(to.path()).unwrap().map(Result::unwrap);
        entries.map(|entry| (entry.file_name(), fs::read(entry.path()).unwrap_or_default())).collect()
    }

    #[test]
    fn a_name_and_bytes_are_lost_until_each_is_forced() {
        let dir = tempfile::tempdir().unwrap();
        let disk = SimulatedDisk::watch(dir.path());
        let mut file = File::create(dir.path().join("a")).unwrap();
        file.write_all(b"one").unwrap();
        durable::sync_file(&file).unwrap();
        file.write_all(b"two").unwrap();
        durable::sync_dir(dir.path()).unwrap();
        fs::rename(dir.path().join("a"), dir.path().join("b")).unwrap();
        let points = disk.kill_points();
        let of = |at: usize, outcome| after(&points[at], outcome);
        let one = |name: &str, bytes: &[u8]| BTreeMap::from([(OsString::from(name), bytes.to_vec())]);
        // Before the first fsync, the second, and at the end.
        assert_eq!(points.len(), 3);
        assert_eq!((of(0, Outcome::Undone), of(0, Outcome::Names)), (BTreeMap::new(), one("a", b"")));
        assert_eq!((of(1, Outcome::Undone), of(1, Outcome::Names)), (BTreeMap::new(), one("a", b"one")));
        assert_eq!((of(2, Outcome::Undone), of(2, Outcome::Names)), (one("a", b"one"), one("b", b"one")));
        assert_eq!((of(2, Outcome::Bytes), of(2, Outcome::All)), (one("a", b"onetwo"), one("b", b"onetwo")));
    }

    #[test]
    fn what_is_replaced_is_the_old_or_the_new_whatever_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let disk = SimulatedDisk::watch(dir.path());
        let home = dir.path().join("some/where");
        durable::create_dir_all(&home).unwrap();
        for version in 1..=3_u8 {
            durable::replace(&home.join("x"), "x.tmp", &[version; 2000]).unwrap();
            disk.acknowledge();
        }
        let points = disk.kill_points();
        assert!(points.len() > 6);
        after_each_loss(&points, |dir, acknowledged, outcome| {
            let found = fs::read(dir.join("some/where/x")).ok();
            let version = found.as_ref().map_or(0, |bytes| bytes[0]);
            assert!(found.is_none_or(|bytes| bytes == [version; 2000]), "torn");
            let least = acknowledged as u8;
            assert!((least..=least + 1).contains(&version), "{version} of {least}: {outcome:?}");
        });
    }
}
