//! Files for what is too large for memory and needed for a moment only: bodies on their way in, results on their way
//! out. Each is removed when its owner lets go of it; what a killed process left is removed at the next start, unless
//! another process works in the same folder then.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::{Builder, NamedTempFile, TempPath};
use tokio::fs::File;

const PREFIX: &str = "spool-";
/// What the names of results on their way begin with.
pub(super) const RESULTS_PREFIX: &str = "results-";

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
    /// The folder, locked for as long as somebody works in it.
    _lock: Arc<fs::File>,
}

impl Spool {
    /// Makes the folder and removes what an earlier process left in it, unless it has company; blocking.
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
            // Who has the folder to itself holds it for the blink of an eye only. A file system without locks is used all
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
        Builder::new().prefix(PREFIX).tempfile_in(self.dir.as_path()).map_err(|e| self.failed(e))
    }

    /// A new, empty file, open for writing, and its path, which removes it when dropped.
    ///
    /// # Errors
    /// When it can't be made.
    pub async fn file(&self) -> Result<(File, TempPath), SpoolError> {
        let spool = self.clone();
        let made = tokio::task::spawn_blocking(move || spool.create()).await;
        let (file, path) = made.map_err(|e| self.failed(io::Error::other(e)))??.into_parts();
        Ok((File::from_std(file), path))
    }

    /// The folder.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
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
                // Its owner was on the way out and has just removed it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                removed => removed?,
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
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
        // The files may be those of the one that is still there.
        let company = Spool::open(path.clone()).unwrap();
        assert_eq!(left().len(), 3);
        drop((spool, company));
        let _first = Spool::open(path.clone()).unwrap();
        assert_eq!(left(), ["somebody-elses"]);
        let _second = Spool::open(path.clone()).unwrap();

        let error = Spool::open("/dev/null/spool".into()).unwrap_err().to_string();
        assert!(error.contains("/dev/null/spool") && error.contains("Remedy"), "{error}");
    }
}
