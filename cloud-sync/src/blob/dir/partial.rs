//! Files that are being written: invisible until they are whole and on disk, removed after a crash.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dir, FlockOperation, Mode, OFlags, flock, fstat, mkdirat, openat, renameat, statat, unlinkat,
};
use rustix::io::Errno;
use ulid::Ulid;

use super::bound::Reserved;
use super::tree::{Place, Tree, below};
use crate::blob::PARTIAL;
use crate::durable;

/// The folder of partial files below the root. A single one, so that leftovers are found at once in a store of a
/// million objects; no key can lead into it, because no part of a key has this suffix.
const FOLDER: &str = PARTIAL;

const NOFOLLOW: AtFlags = AtFlags::SYMLINK_NOFOLLOW;

/// Maximum attempts for a folder that other processes remove meanwhile.
const MAX_ATTEMPTS: usize = 100;

/// A file that is being written. If dropped before [`Partial::finish`] it is removed.
///
/// It is locked as long as it lives: a lock ends with its process, so an unlocked file is a leftover.
pub(super) struct Partial {
    folder: OwnedFd,
    name: String,
    pub(super) file: File,
    renamed: bool,
}

impl Partial {
    /// Creates an empty file.
    pub(super) fn create(tree: &Tree) -> io::Result<Self> {
        for _ in 0..MAX_ATTEMPTS {
            let root = tree.root()?;
            match mkdirat(&root, FOLDER, Mode::from_raw_mode(0o777)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            let folder = below(&root, FOLDER)?;
            let name = format!("{}{PARTIAL}", Ulid::generate());
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let file = File::from(openat(&folder, name.as_str(), flags, Mode::from_raw_mode(0o666))?);
            // Another process that opens the store may remove the file as a leftover before it is locked.
            let locked = flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok();
            let partial = Self { folder, name, file, renamed: false };
            if locked && fstat(&partial.file)?.st_nlink > 0 {
                return Ok(partial);
            }
        }
        Err(io::Error::other("each new file was removed by another process"))
    }

    /// Makes the file durable and places it, replacing any existing one; counted where space was reserved for it.
    pub(super) fn finish(
        mut self,
        tree: &Tree,
        place: &Place,
        mut reserved: Option<Reserved<'_>>,
    ) -> io::Result<()> {
        durable::sync_file(&self.file)?;
        for _ in 0..MAX_ATTEMPTS {
            let folder = match tree.make_folder(place) {
                Ok(folder) => folder,
                // Another process removed one of the folders, which was empty, between two steps.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let rename = || renameat(&self.folder, self.name.as_str(), &folder, place.file.as_str());
            let placed = match &mut reserved {
                Some(reserved) => reserved.place(&folder, &place.file, rename),
                None => rename(),
            };
            match placed {
                Ok(()) => {
                    self.renamed = true;
                    return durable::sync_open_dir(&folder);
                }
                // The same, and the file itself still exists.
                Err(Errno::NOENT) if statat(&self.folder, self.name.as_str(), NOFOLLOW).is_ok() => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(io::Error::other("its folder was repeatedly removed by another process"))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.renamed {
            // A leftover is harmless and removed at the next start.
            let _ = unlinkat(&self.folder, self.name.as_str(), AtFlags::empty());
        }
    }
}

/// Removes leftovers of a crash. Returns the number of files.
pub(super) fn clean(tree: &Tree) -> io::Result<usize> {
    let folder = match below(&tree.root()?, FOLDER) {
        Ok(folder) => folder,
        Err(Errno::NOENT) => return Ok(0),
        Err(error) => return Err(error.into()),
    };
    let mut removed = 0;
    for entry in Dir::read_from(&folder)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().to_str() else { continue };
        if name.ends_with(PARTIAL) && is_leftover(folder.as_fd(), name)? {
            removed += 1;
        }
    }
    Ok(removed)
}

/// Whether `name` is a leftover; it is then removed.
fn is_leftover(folder: impl AsFd, name: &str) -> io::Result<bool> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = match openat(&folder, name, flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        // A file that was placed meanwhile is not in this folder any more.
        Ok(()) => match unlinkat(&folder, name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(error.into()),
        },
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
