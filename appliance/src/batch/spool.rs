//! Temporary files for what is too large for memory: request bodies and the files made of them, and copies of results.
//! Each is removed when its owner is dropped; what a killed process left is removed at the next start, unless another
//! process works in the same folder then.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, fallocate};
use tempfile::{Builder, NamedTempFile, TempPath};
use tokio::fs::File;

/// How the names of files of submissions begin.
const PREFIX: &str = "spool-";
/// How the names of files of results begin.
const RESULTS_PREFIX: &str = "results-";
/// Bytes of a drained file that are freed at once.
const DRAIN_BYTES: u64 = 1 << 20;

/// The spool can't be used: the disk is full, or the folder is not ours.
#[derive(Debug, thiserror::Error)]
#[error("the spool {} can't be used: {source}. Remedy: make room or choose another data_dir", dir.display())]
pub struct SpoolError {
    dir: PathBuf,
    source: io::Error,
}

/// A folder of temporary files. Clones are the same folder.
#[derive(Clone, Debug)]
pub struct Spool {
    dir: Arc<PathBuf>,
    /// The folder, locked shared for as long as a process works in it.
    _lock: Arc<fs::File>,
}

impl Spool {
    /// Makes the folder and removes what an earlier process left in it, unless another works in it now; blocking.
    ///
    /// # Errors
    /// When the folder can't be made or read.
    pub fn open(dir: PathBuf) -> Result<Self, SpoolError> {
        let clear = || {
            fs::create_dir_all(&dir)?;
            let lock = fs::File::open(&dir)?;
            if lock.try_lock().is_ok() {
                remove_files(&dir)?;
                lock.unlock()?;
            }
            // The exclusive lock is held only for as long as the removal takes. A file system without locks is used all
            // the same, and nothing is ever removed from it.
            let _ = lock.lock_shared();
            Ok(lock)
        };
        match clear() {
            Ok(lock) => Ok(Self { dir: Arc::new(dir), _lock: Arc::new(lock) }),
            Err(source) => Err(SpoolError { dir, source }),
        }
    }

    /// A new, empty file; blocking.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn create(&self) -> Result<NamedTempFile, SpoolError> {
        self.create_as(PREFIX)
    }

    fn create_as(&self, prefix: &str) -> Result<NamedTempFile, SpoolError> {
        Builder::new().prefix(prefix).tempfile_in(self.dir.as_path()).map_err(|e| self.failed(e))
    }

    async fn file_as(&self, prefix: &'static str) -> Result<NamedTempFile, SpoolError> {
        let spool = self.clone();
        let made = tokio::task::spawn_blocking(move || spool.create_as(prefix)).await;
        made.map_err(|e| self.failed(io::Error::other(e)))?
    }

    /// A new, empty file, open for writing, and its path, which removes it when dropped.
    ///
    /// # Errors
    /// When it can't be made.
    pub async fn file(&self) -> Result<(File, TempPath), SpoolError> {
        let (file, path) = self.file_as(PREFIX).await?.into_parts();
        Ok((File::from_std(file), path))
    }

    /// The path of a new, empty file for results, which removes it when dropped.
    pub(super) async fn results_file(&self) -> Result<TempPath, SpoolError> {
        Ok(self.file_as(RESULTS_PREFIX).await?.into_temp_path())
    }

    /// The error of an operation on one of the files.
    pub(super) fn failed(&self, source: io::Error) -> SpoolError {
        SpoolError { dir: self.dir.to_path_buf(), source }
    }
}

fn remove_files(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if [PREFIX, RESULTS_PREFIX].iter().any(|prefix| name.starts_with(prefix)) {
            match fs::remove_file(entry.path()) {
                // Its owner has removed it in the meantime.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                removed => removed?,
            }
        }
    }
    Ok(())
}

/// Reads a spooled file for the last time: what has been read is freed, so that a body and what is made of it are never on
/// the disk as a whole at once.
///
/// Nothing is lost by it: a submission that broke off was not acknowledged, and is sent again with its body.
#[derive(Debug)]
pub(super) struct Drain {
    file: fs::File,
    read: u64,
    freed: u64,
}

impl Drain {
    /// Opens a file; blocking.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Self::new(OpenOptions::new().read(true).write(true).open(path)?)
    }

    /// Continues with a file, open for writing too, from its current position; blocking.
    pub(super) fn new(mut file: fs::File) -> io::Result<Self> {
        let read = file.stream_position()?;
        Ok(Self { file, read, freed: 0 })
    }
}

impl Read for Drain {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.read += count as u64;
        let done = self.read - self.freed;
        if done >= DRAIN_BYTES || count == 0 && done > 0 {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            // A file system without hole punching keeps the file whole until it is removed.
            let _ = fallocate(&self.file, flags, self.freed, done);
            self.freed = self.read;
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[tokio::test]
    async fn files_go_with_their_owner_and_leftovers_at_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/spool");
        let spool = Spool::open(path.clone()).unwrap();
        let (_file, first) = spool.file().await.unwrap();
        let second = spool.create().unwrap();
        assert_eq!(fs::read_dir(&path).unwrap().count(), 2);
        drop((first, second));
        assert_eq!(fs::read_dir(&path).unwrap().count(), 0);

        for (name, content) in [
            ("spool-abc", "left by a killed process"),
            ("results-abc", "left by a killed worker"),
            ("somebody-elses", "not ours"),
        ] {
            fs::write(path.join(name), content).unwrap();
        }
        let left = || fs::read_dir(&path).unwrap().map(|e| e.unwrap().file_name()).collect::<Vec<_>>();
        // The files may be those of the process that still works in the folder.
        let second = Spool::open(path.clone()).unwrap();
        assert_eq!(left().len(), 3);
        drop((spool, second));
        let _first = Spool::open(path.clone()).unwrap();
        assert_eq!(left(), ["somebody-elses"]);
        let _second = Spool::open(path.clone()).unwrap();

        let error = Spool::open("/dev/null/spool".into()).unwrap_err().to_string();
        assert!(error.contains("/dev/null/spool") && error.contains("Remedy"), "{error}");
    }

    #[test]
    fn what_was_read_is_off_the_disk_and_the_rest_is_whole() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let bytes: Vec<u8> = (0..5_000_000_u32).map(|n| (n % 251) as u8 + 1).collect();
        std::fs::write(file.path(), &bytes).unwrap();
        let on_disk = || std::fs::metadata(file.path()).unwrap().blocks() * 512;
        let before = on_disk();
        let mut drain = Drain::open(file.path()).unwrap();
        let mut first = vec![0; 3_000_000];
        drain.read_exact(&mut first).unwrap();
        assert!(first == bytes[..first.len()]);
        assert!(on_disk() + (1 << 20) < before, "{} of {before} bytes are still there", on_disk());
        let mut rest = Vec::new();
        drain.read_to_end(&mut rest).unwrap();
        assert!(rest == bytes[first.len()..]);
        assert!(on_disk() < 1 << 20, "{} bytes are still there", on_disk());
    }
}
