//! Files that are being written: seen by nobody until they are whole and on disk, gone after a crash.

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

/// The folder of partial files below the root. One place, so that leftovers are found at once in a store
/// of a million objects; no key can lead into it, as no part of a key ends so.
const FOLDER: &str = PARTIAL;

const NOFOLLOW: AtFlags = AtFlags::SYMLINK_NOFOLLOW;

/// How often a place is looked for again that others take away meanwhile.
const TRIES: usize = 100;

/// A file that is being written. Dropped before [`Partial::finish`] it is removed.
///
/// It is locked as long as it lives: a lock ends with its process, so an unlocked file is a leftover.
pub(super) struct Partial {
    folder: OwnedFd,
    name: String,
    pub(super) file: File,
    renamed: bool,
}

impl Partial {
    /// A new empty file.
    pub(super) fn create(tree: &Tree) -> io::Result<Self> {
        for _ in 0..TRIES {
            let root = tree.root()?;
            match mkdirat(&root, FOLDER, Mode::from_raw_mode(0o777)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            let folder = below(&root, FOLDER)?;
            let name = format!("{}{PARTIAL}", Ulid::generate());
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let file = File::from(openat(&folder, name.as_str(), flags, Mode::from_raw_mode(0o666))?);
            // Another process that opens the store may take the file for a leftover before it is locked.
            let locked = flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok();
            let partial = Self { folder, name, file, renamed: false };
            if locked && fstat(&partial.file)?.st_nlink > 0 {
                return Ok(partial);
            }
        }
        Err(io::Error::other("no file could be made that is not taken away at once"))
    }

    /// Makes the file durable and puts it in its place, over what is there; counted where room was made for it.
    pub(super) fn finish(
        mut self,
        tree: &Tree,
        place: &Place,
        mut reserved: Option<Reserved<'_>>,
    ) -> io::Result<()> {
        durable::sync_file(&self.file)?;
        for _ in 0..TRIES {
            let folder = match tree.make_folder(place) {
                Ok(folder) => folder,
                // Another process removed one of the folders, empty as they were, between two steps.
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
                // The same, and the file itself is still there.
                Err(Errno::NOENT) if statat(&self.folder, self.name.as_str(), NOFOLLOW).is_ok() => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(io::Error::other("its folder was taken away again and again"))
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

/// Removes what a crash has left. Returns how many files.
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

/// Whether `name` is nobody's; removes it then.
fn is_leftover(folder: impl AsFd, name: &str) -> io::Result<bool> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = match openat(&folder, name, flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        // A file that has become an object between is not in this folder any more.
        Ok(()) => match unlinkat(&folder, name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(error.into()),
        },
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
