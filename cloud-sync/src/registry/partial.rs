//! A file that is being fetched: an interrupted fetch is resumed by the next call, if its source is the same.

use std::io::{self, SeekFrom};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tokio::fs::{File, OpenOptions};
use tokio::io::{AsyncSeekExt, AsyncWriteExt};
use tokio::task::spawn_blocking;

use crate::blob::TooLarge;
use crate::durable;
use crate::error::{Link, SyncError, SyncResult};

/// After a crash the file is resumed from a multiple of this: bytes written after the last sync may have been lost
/// although the length is right.
const STEP: u64 = 4 << 20;
/// Bytes between two syncs. Few, because other writers that sync meanwhile, such as a request for its event, wait for
/// these too.
const FLUSH: u64 = 512 << 10;
const _: () = assert!(STEP.is_multiple_of(FLUSH));

/// Source of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Origin {
    /// Its location.
    pub(super) source: String,
    /// Identifies its content there: an ETag, or a time and a number.
    pub(super) content: String,
}

/// What an earlier call has left.
#[derive(Debug)]
pub(super) struct Left {
    pub(super) origin: Origin,
    /// Number of valid bytes.
    pub(super) bytes: u64,
}

/// Limits on the size of a file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    /// The caller's limit, in bytes.
    pub(super) limit: u64,
    /// The size listed by the registry, in bytes.
    pub(super) listed: Option<u64>,
}

impl Size {
    /// # Errors
    /// Permanent when `bytes` of `what` exceed a limit.
    pub(super) fn check(&self, link: Link, what: &str, bytes: u64) -> SyncResult<()> {
        if bytes > self.limit {
            let error = SyncError::permanent(link, format!("{what} is too large"));
            return Err(error.because(TooLarge { bytes, bound: self.limit }));
        }
        match self.listed {
            Some(listed) if bytes > listed => {
                let text = format!("{what} has at least {bytes} bytes, it is listed with {listed}");
                Err(SyncError::permanent(link, text))
            }
            _ => Ok(()),
        }
    }
}

/// A file that is being written.
pub(super) struct Partial {
    path: PathBuf,
    file: File,
    at: u64,
    synced: u64,
}

impl Partial {
    /// What an earlier call has left for `path`; `None` when there is nothing to resume.
    pub(super) async fn left(path: &Path) -> Option<Left> {
        let origin = tokio::fs::read(note_of(path)).await.ok()?;
        let origin = serde_json::from_slice(&origin).ok()?;
        let found = tokio::fs::symlink_metadata(path).await.ok().filter(std::fs::Metadata::is_file)?;
        let bytes = found.len().saturating_sub(1) / STEP * STEP;
        (bytes > 0).then_some(Left { origin, bytes })
    }

    /// Starts `path` from the beginning.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) async fn begin(path: &Path, origin: Option<&Origin>) -> SyncResult<Self> {
        let begun = async {
            let note = note_of(path);
            remove(&note).await?;
            // A new file: an abandoned call may still write to the old one.
            remove(path).await?;
            let file = OpenOptions::new().create_new(true).write(true).open(path).await?;
            if let Some(origin) = origin {
                tokio::fs::write(&note, serde_json::to_vec(origin)?).await?;
            }
            Ok(file)
        };
        let file = begun.await.map_err(|error| unwritable(path, error))?;
        Ok(Self { path: path.to_owned(), file, at: 0, synced: 0 })
    }

    /// Resumes what was left.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) async fn resume(path: &Path, left: &Left) -> SyncResult<Self> {
        let opened = async {
            let mut file = OpenOptions::new().write(true).open(path).await?;
            file.set_len(left.bytes).await?;
            file.seek(SeekFrom::Start(left.bytes)).await?;
            Ok(file)
        };
        let file = opened.await.map_err(|error| unwritable(path, error))?;
        Ok(Self { path: path.to_owned(), file, at: left.bytes, synced: left.bytes })
    }

    /// Bytes so far.
    pub(super) fn bytes(&self) -> u64 {
        self.at
    }

    /// Appends a chunk.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) async fn write(&mut self, mut piece: &[u8]) -> SyncResult<()> {
        while !piece.is_empty() {
            let room = usize::try_from(self.synced + FLUSH - self.at).unwrap_or(usize::MAX);
            let (now, later) = piece.split_at(room.min(piece.len()));
            self.file.write_all(now).await.map_err(|error| unwritable(&self.path, error))?;
            self.at += now.len() as u64;
            piece = later;
            if self.at == self.synced + FLUSH {
                self.sync().await?;
            }
        }
        Ok(())
    }

    /// The file is complete: makes it durable.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) async fn finish(mut self) -> SyncResult<()> {
        self.sync().await?;
        remove(&note_of(&self.path)).await.map_err(|error| unwritable(&self.path, error))
    }

    /// The fetch was interrupted: leaves the file for the next call.
    pub(super) async fn leave(mut self) {
        // On an error the next call finds fewer bytes.
        let _ = self.file.flush().await;
    }

    async fn sync(&mut self) -> SyncResult<()> {
        self.synced = self.at;
        let synced = async {
            self.file.flush().await?;
            let file = self.file.as_fd().try_clone_to_owned()?;
            spawn_blocking(move || durable::sync_data(file)).await?
        };
        synced.await.map_err(|error| unwritable(&self.path, error))
    }
}

/// Path of the note about the source of `path`.
fn note_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(crate::blob::PARTIAL);
    name.into()
}

async fn remove(path: &Path) -> io::Result<()> {
    match tokio::fs::remove_file(path).await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn unwritable(path: &Path, error: io::Error) -> SyncError {
    let what = format!("cannot write {}", path.display());
    match error.kind() {
        // Space may be freed.
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => SyncError::transient(Link::Disk, what),
        // A failure of this machine's disk, not of the request.
        _ => SyncError::permanent(Link::Disk, what).of_the_link(),
    }
    .because(error)
}
