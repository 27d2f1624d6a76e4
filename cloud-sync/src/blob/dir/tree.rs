//! The folders of a directory store: found part by part, never through a symbolic link; and how parts of a key are named
//! on disk, so that an object `a` and an object `a/b` can both exist.
//!
//! A file system cannot have a file and a folder of one name. A rule on the name alone keeps
//! them apart without access to the disk: file names are expected to contain a dot and folder names
//! not to, and an unexpected name gets a `$`, which no key contains. `2026-05-01/photo.jpg` is unchanged;
//! the object `a` is the file `a$`, the folder of `a.b/c` is `a.b$`.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use parking_lot::Mutex;
use rustix::fs::{AtFlags, Mode, OFlags, mkdirat, open, openat, unlinkat};
use rustix::io::Errno;

use crate::blob::BlobKey;
use crate::durable;

/// Maximum number of folders that are remembered as durable; then the set is cleared.
const MAX_REMEMBERED: usize = 4096;

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// The directory tree of a store.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) root: PathBuf,
    /// Folders whose entry in their parent is known to be on disk. The lock also serializes creating and removing
    /// folders, so that the set stays true.
    durable: Mutex<HashSet<String>>,
}

/// Location of an object: the path of its folder below the root, and the name of its file.
pub(super) struct Place {
    folders: Vec<String>,
    pub(super) file: String,
}

impl Place {
    pub(super) fn of(key: &BlobKey) -> Self {
        let mut parts: Vec<&str> = key.as_str().split('/').collect();
        let last = parts.pop().unwrap_or_default();
        Self { folders: parts.into_iter().map(folder_name).collect(), file: file_name(last) }
    }

    /// The path below the root.
    pub(super) fn relative(&self) -> PathBuf {
        self.folders.iter().chain([&self.file]).collect()
    }
}

impl Tree {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root, durable: Mutex::default() }
    }

    /// Opens the root. Each time: a disk that was unmounted must not look like an empty store.
    pub(super) fn root(&self) -> io::Result<OwnedFd> {
        open(&self.root, FOLDER, Mode::empty()).map_err(|error| match error {
            // Otherwise it would count as a missing object.
            Errno::NOENT => io::Error::other(format!("the store's folder {} is gone", self.root.display())),
            other => other.into(),
        })
    }

    /// The folder of an object; `None` when it does not exist.
    pub(super) fn folder(&self, place: &Place) -> io::Result<Option<OwnedFd>> {
        let mut folder = self.root()?;
        for name in &place.folders {
            match below(&folder, name) {
                Ok(next) => folder = next,
                Err(Errno::NOENT) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Some(folder))
    }

    /// The folder of an object, created durably if it does not exist.
    pub(super) fn make_folder(&self, place: &Place) -> io::Result<OwnedFd> {
        let path = place.folders.join("/");
        if self.durable.lock().contains(&path)
            && let Some(folder) = self.folder(place)?
        {
            return Ok(folder);
        }
        let mut durable = self.durable.lock();
        let mut folder = self.root()?;
        let mut path = String::new();
        for name in &place.folders {
            path.push_str(name);
            let made = match mkdirat(&folder, name.as_str(), Mode::from_raw_mode(0o777)) {
                Ok(()) => true,
                Err(Errno::EXIST) => false,
                Err(error) => return Err(error.into()),
            };
            let next = below(&folder, name)?;
            // Another process may have created it just now, and not have synced it yet.
            if made || !durable.contains(&path) {
                durable::sync_open_dir(&folder)?;
                if durable.len() >= MAX_REMEMBERED {
                    durable.clear();
                }
                durable.insert(path.clone());
            }
            path.push('/');
            folder = next;
        }
        Ok(folder)
    }

    /// Removes the empty folders of an object, starting with the innermost.
    pub(super) fn prune(&self, place: &Place) -> io::Result<()> {
        let mut durable = self.durable.lock();
        let mut chain = vec![self.root()?];
        for name in &place.folders {
            match chain.last().map(|folder| below(folder, name)) {
                Some(Ok(next)) => chain.push(next),
                _ => return Ok(()),
            }
        }
        for depth in (0..place.folders.len()).rev() {
            match unlinkat(&chain[depth], place.folders[depth].as_str(), AtFlags::REMOVEDIR) {
                Ok(()) => durable.remove(&place.folders[..=depth].join("/")),
                Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOENT) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
        }
        Ok(())
    }
}

/// Opens a folder in a folder. A symbolic link is an error: it could lead out of the store.
pub(super) fn below(folder: impl AsFd, name: &str) -> rustix::io::Result<OwnedFd> {
    openat(folder, name, FOLDER | OFlags::NOFOLLOW, Mode::empty())
}

/// Marks an unexpected name.
const MARK: char = '$';

/// The file of an object whose key ends in `part`.
fn file_name(part: &str) -> String {
    if part.contains('.') { part.to_owned() } else { format!("{part}{MARK}") }
}

/// The folder of keys that continue after `part`.
fn folder_name(part: &str) -> String {
    if part.contains('.') { format!("{part}{MARK}") } else { part.to_owned() }
}

/// The part that a file stands for; `None` when the store did not create it.
pub(super) fn part_of_file(name: &str) -> Option<&str> {
    let part = name.strip_suffix(MARK).unwrap_or(name);
    (file_name(part) == name).then_some(part)
}

/// The part that a folder stands for; `None` when the store did not create it.
pub(super) fn part_of_folder(name: &str) -> Option<&str> {
    let part = name.strip_suffix(MARK).unwrap_or(name);
    (folder_name(part) == name).then_some(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_folders_never_share_a_name_and_lead_back_to_their_part() {
        let parts = ["a", "a.b", "2026-05-01", "photo.jpg", "10.0.0.5", "a=b", ".hidden", "a~"];
        for part in parts {
            assert_eq!(part_of_file(&file_name(part)), Some(part));
            assert_eq!(part_of_folder(&folder_name(part)), Some(part));
            for other in parts {
                assert_ne!(file_name(part), folder_name(other));
            }
        }
        assert_eq!(
            (file_name("photo.jpg").as_str(), folder_name("dock-3").as_str()),
            ("photo.jpg", "dock-3")
        );
        assert_eq!((part_of_file("stray"), part_of_file("a.b$"), part_of_folder("a$")), (None, None, None));
    }
}
