//! Files for what is too large for memory and needed for a moment only: bodies on their way in, results on their way
//! out. Each is removed when its owner lets go of it; what a killed process left is removed at the next start.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tempfile::{Builder, NamedTempFile, TempPath};
use tokio::fs::File;

const PREFIX: &str = "spool-";

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
}

impl Spool {
    /// Makes the folder and removes what an earlier process left in it; blocking. One process at a time may have it.
    ///
    /// # Errors
    /// When the folder can't be made or read.
    pub fn open(dir: PathBuf) -> Result<Self, SpoolError> {
        let clear = || {
            fs::create_dir_all(&dir)?;
            for entry in fs::read_dir(&dir)? {
                let entry = entry?;
                if entry.file_name().to_string_lossy().starts_with(PREFIX) {
                    fs::remove_file(entry.path())?;
                }
            }
            Ok(())
        };
        match clear() {
            Ok(()) => Ok(Self { dir: Arc::new(dir) }),
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

    /// The error of an operation on one of the files.
    pub(super) fn failed(&self, source: io::Error) -> SpoolError {
        SpoolError { dir: self.dir.to_path_buf(), source }
    }
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

        fs::write(path.join("spool-abc"), "left by a killed process").unwrap();
        fs::write(path.join("somebody-elses"), "not ours").unwrap();
        Spool::open(path.clone()).unwrap();
        let left: Vec<_> = fs::read_dir(&path).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["somebody-elses"]);

        let error = Spool::open("/dev/null/spool".into()).unwrap_err().to_string();
        assert!(error.contains("/dev/null/spool") && error.contains("Remedy"), "{error}");
    }
}
