//! Files of the store: operations that hold across a power cut, files that are opened without following a link, and the
//! staging folders of downloads.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use cloud_sync::durable;
use inference::bundle::hex;
use rustix::fs::{Mode, OFlags};
use sha2::{Digest, Sha256};

use super::{ModelStore, Origin, PARTIAL, StoreError};

/// Prefixes of names that are not yet, or no longer, part of the store.
pub(super) const NEW: &str = ".new-";
pub(super) const GONE: &str = ".gone-";

/// A regular file, for reading. A link in its place, or anything else, is an error.
pub(in crate::models) fn open_regular(path: &Path) -> io::Result<File> {
    // Without NONBLOCK, opening a named pipe would wait for its writer.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file")),
    }
}

/// Links a file to another name, or copies it where the file system has no links.
pub(in crate::models) fn link(from: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(from, to) {
        Ok(()) => Ok(()),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::AlreadyExists) => {
            Err(error)
        }
        Err(_) => {
            let mut copy = File::options().write(true).create_new(true).open(to)?;
            let done = io::copy(&mut open_regular(from)?, &mut copy).and_then(|_| durable::sync_file(&copy));
            if done.is_err() {
                let _ = fs::remove_file(to);
            }
            done
        }
    }
}

/// Removes a folder with its content, or a file, if it exists.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Names in a folder that are UTF-8; the store creates no others.
pub(super) fn names(dir: &Path) -> Result<Vec<String>, StoreError> {
    let failed = StoreError::at("can't be listed", dir);
    let listed = fs::read_dir(dir).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    Ok(listed.map_err(failed)?.iter().filter_map(|entry| entry.file_name().into_string().ok()).collect())
}

/// Bytes that this user may still write on the file system of `dir`.
pub(super) fn free_bytes(dir: &Path) -> io::Result<u64> {
    let space = rustix::fs::statvfs(dir)?;
    Ok(space.f_bavail.saturating_mul(space.f_frsize))
}

/// The folder of the download of one registered version, locked while this lives. Its files have names of our own choosing,
/// so that no path of a registry ever becomes one on this disk.
#[derive(Debug)]
pub struct StagingDir {
    dir: PathBuf,
    _lock: File,
}

impl ModelStore {
    /// The staging folder of `origin`, with what an earlier download left; `None` while another download has it locked.
    ///
    /// # Errors
    /// [`StoreError`] when its folder can't be made or locked.
    pub fn staging_dir(&self, origin: &Origin) -> Result<Option<StagingDir>, StoreError> {
        let parts = [&origin.source, &origin.name, &origin.version].map(String::as_str);
        let dir = self.root().join(PARTIAL).join(name_of(&parts.join("\0")));
        let failed = |error| StoreError::at("can't be made or locked", &dir)(error);
        loop {
            match fs::create_dir(&dir) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
                _ => {}
            }
            match lock_dir(&dir) {
                Ok(Some(lock)) => return Ok(Some(StagingDir { dir: dir.clone(), _lock: lock })),
                Ok(None) => return Ok(None),
                // Another download removed it between the two steps.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed(error)),
            }
        }
    }
}

impl StagingDir {
    /// Where the file that the registry knows as `path` is downloaded to.
    pub fn file(&self, path: &str) -> PathBuf {
        self.dir.join(name_of(path))
    }

    /// An empty folder in which the bundle is assembled; blocking.
    ///
    /// # Errors
    /// [`StoreError`] when it can't be made.
    pub fn stage(&self) -> Result<PathBuf, StoreError> {
        let stage = self.stage_dir();
        let made = remove(&stage).and_then(|()| fs::create_dir(&stage));
        made.map_err(StoreError::at("can't be made", &stage))?;
        Ok(stage)
    }

    pub(super) fn stage_dir(&self) -> PathBuf {
        self.dir.join("stage")
    }

    /// Removes what was downloaded; blocking. The lock stays with this value.
    pub fn discard(&self) {
        if let Err(error) = remove(&self.dir) {
            tracing::warn!(path = %self.dir.display(), %error, "the files of a download can't be removed");
        }
    }
}

fn name_of(text: &str) -> String {
    hex(&Sha256::digest(text.as_bytes()))
}

/// Locks a folder; `None` while another process or task has it locked. The lock ends with the process.
pub(super) fn lock_dir(dir: &Path) -> io::Result<Option<File>> {
    let lock = File::open(dir)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    // Another folder may have the name by now, locked by another process.
    match fs::symlink_metadata(dir)?.ino() == lock.metadata()?.ino() {
        true => Ok(Some(lock)),
        false => Err(io::ErrorKind::NotFound.into()),
    }
}
