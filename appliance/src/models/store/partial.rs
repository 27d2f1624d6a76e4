//! A download under way: files under names of our own choosing, so that no path of a registry is ever one on this disk.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use inference::bundle::hex;
use sha2::{Digest, Sha256};

use super::{ModelStore, Origin, PARTIAL, StoreError, disk};

/// The download of one registered version. Nobody else works on it as long as this lives.
#[derive(Debug)]
pub struct Partial {
    dir: PathBuf,
    _lock: File,
}

impl ModelStore {
    /// The download of `origin`, gone on with where an earlier one ended; `None` while somebody else works on it.
    ///
    /// # Errors
    /// [`StoreError`] when its folder can't be made or locked.
    pub fn partial(&self, origin: &Origin) -> Result<Option<Partial>, StoreError> {
        let parts = [&origin.source, &origin.name, &origin.version].map(String::as_str);
        let dir = self.root().join(PARTIAL).join(name_of(&parts.join("\0")));
        let failed = |error| StoreError::at("can't be made or locked", &dir)(error);
        loop {
            match fs::create_dir(&dir) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
                _ => {}
            }
            match lock_dir(&dir) {
                Ok(Some(lock)) => return Ok(Some(Partial { dir: dir.clone(), _lock: lock })),
                Ok(None) => return Ok(None),
                // Somebody was done with it, or gave it up, between the two steps.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed(error)),
            }
        }
    }
}

impl Partial {
    /// Where the file that the registry knows as `path` is downloaded to.
    pub fn file(&self, path: &str) -> PathBuf {
        self.dir.join(name_of(path))
    }

    /// An empty folder in which the bundle is put together; blocking.
    ///
    /// # Errors
    /// [`StoreError`] when it can't be made.
    pub fn stage(&self) -> Result<PathBuf, StoreError> {
        let stage = self.stage_dir();
        let made = disk::remove(&stage).and_then(|()| fs::create_dir(&stage));
        made.map_err(StoreError::at("can't be made", &stage))?;
        Ok(stage)
    }

    pub(super) fn stage_dir(&self) -> PathBuf {
        self.dir.join("stage")
    }

    /// Removes what was downloaded; blocking. The lock stays with this value.
    pub fn discard(&self) {
        if let Err(error) = disk::remove(&self.dir) {
            tracing::warn!(path = %self.dir.display(), %error, "what was downloaded of a model can't be removed");
        }
    }
}

fn name_of(text: &str) -> String {
    hex(&Sha256::digest(text.as_bytes()))
}

/// Locks a folder; `None` while somebody else has it. The lock ends with the process.
pub(super) fn lock_dir(dir: &Path) -> io::Result<Option<File>> {
    let lock = File::open(dir)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    // Another folder may have the name by now, and another process the lock of that one.
    match fs::symlink_metadata(dir)?.ino() == lock.metadata()?.ino() {
        true => Ok(Some(lock)),
        false => Err(io::ErrorKind::NotFound.into()),
    }
}
