//! Files of a version: fetched to the staging folder, and verified against what the registry and the manifest say.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cloud_sync::error::Link;
use cloud_sync::registry::{ModelRegistry, ModelVersion};
use inference::bundle::digest_of;

use super::paths::Listing;
use super::{Progress, PullError, PullLimits, blocking};
use crate::models::store::{link, open_regular};
use crate::models::{ModelStore, StagingDir, StoreError};

/// A callback for progress.
pub(super) type OnProgress<'a> = &'a (dyn Fn(Progress) + Send + Sync);

/// Attempts per file.
const MAX_ATTEMPTS: u32 = 10;
/// The pause after the first attempt; each further one is longer by as much.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// A download under way.
pub(super) struct Download<'a> {
    pub(super) registry: &'a dyn ModelRegistry,
    pub(super) version: &'a ModelVersion,
    pub(super) store: &'a ModelStore,
    pub(super) limits: &'a PullLimits,
    pub(super) progress: OnProgress<'a>,
    pub(super) staging: Arc<StagingDir>,
    pub(super) listing: Listing,
    /// Bytes of the files that are here.
    pub(super) bytes: u64,
}

/// A file that was fetched.
pub(super) struct Fetched {
    pub(super) at: PathBuf,
    pub(super) sha256: String,
}

impl Download<'_> {
    /// Checks, before anything large is fetched, whether these files are within limits and fit on the disk.
    pub(super) async fn check_room(&self, paths: &[String]) -> Result<(), PullError> {
        let listed = |path: &String| self.listing.get(path).copied().flatten().unwrap_or(0);
        let all = paths.iter().map(listed).fold(self.bytes, u64::saturating_add);
        if all > self.limits.max_bytes {
            return Err(PullError::TooLarge { bytes: all, limit: self.limits.max_bytes });
        }
        let files: Vec<(PathBuf, u64)> =
            paths.iter().map(|path| (self.staging.file(path), listed(path))).collect();
        let (store, keep_free) = (self.store.clone(), self.limits.keep_free);
        blocking(move || {
            let here = |at: &Path| fs::symlink_metadata(at).map_or(0, |found| found.len());
            let missing = files.iter().map(|(at, listed)| listed.saturating_sub(here(at)));
            Ok(store.check_room(missing.fold(0, u64::saturating_add), keep_free)?)
        })
        .await
    }

    /// Fetches a file, unless it is here already, and verifies it. `expected` is its hex SHA-256.
    pub(super) async fn fetch(&mut self, path: &str, expected: Option<&str>) -> Result<Fetched, PullError> {
        let at = self.staging.file(path);
        let listed = self.listing.get(path).copied().flatten();
        let left = self.limits.max_bytes.saturating_sub(self.bytes);
        let mut resumed = clear_way(&self.staging, &at).await?;
        if let (true, Some(expected)) = (resumed, expected)
            && let Ok((bytes, sha256)) = measure(&at).await
            && sha256.eq_ignore_ascii_case(expected)
        {
            return Ok(self.fetched(path, at, bytes, sha256));
        }
        loop {
            let limit = listed.unwrap_or(left).min(left);
            self.transfer(path, &at, limit).await?;
            let (bytes, sha256) = measure(&at).await?;
            let fault = if listed.is_some_and(|listed| listed != bytes) {
                PullError::Size { file: path.into(), found: bytes, listed: listed.unwrap_or(0) }
            } else if let Some(expected) = expected.filter(|e| !e.eq_ignore_ascii_case(&sha256)) {
                PullError::Digest { file: path.into(), found: sha256, expected: expected.to_lowercase() }
            } else if bytes > left {
                PullError::TooLarge { bytes: self.bytes.saturating_add(bytes), limit: self.limits.max_bytes }
            } else {
                return Ok(self.fetched(path, at, bytes, sha256));
            };
            remove(&self.staging, &at).await?;
            // What an earlier download left may be of another content: try once more from the start.
            if !std::mem::take(&mut resumed) {
                return Err(fault);
            }
        }
    }

    /// Has the registry fetch a file. An interrupted transfer is resumed, or started again where the registry can't resume,
    /// as long as each attempt makes progress.
    async fn transfer(&self, path: &str, at: &Path, limit: u64) -> Result<(), PullError> {
        let (mut most, mut attempts) = (0, 0);
        loop {
            let Err(error) = self.registry.fetch(self.version, path, at, limit).await else { return Ok(()) };
            attempts += 1;
            let here = tokio::fs::symlink_metadata(at).await.map_or(0, |found| found.len());
            let further = here > most;
            most = most.max(here);
            let of_the_link = error.is_transient() && error.link() != Link::Disk;
            if !of_the_link || attempts == MAX_ATTEMPTS || (attempts > 1 && !further) {
                return Err(PullError::Registry(error));
            }
            tracing::warn!(
                path,
                bytes = here,
                error = error.in_full(),
                "a download was interrupted; resuming it"
            );
            tokio::time::sleep(RETRY_PAUSE * attempts).await;
        }
    }

    /// Fetches a small text of at most `limit` bytes.
    pub(super) async fn text(&mut self, path: &str, limit: u64) -> Result<String, PullError> {
        let bytes = self.listing.get(path).copied().flatten().unwrap_or(0);
        if bytes > limit {
            return Err(PullError::TooLarge { bytes, limit });
        }
        let Fetched { at, .. } = self.fetch(path, None).await?;
        let staging = Arc::clone(&self.staging);
        let (bytes, text) = blocking(move || {
            let _lock = staging;
            let read = open_regular(&at).and_then(|mut file| {
                let length = file.metadata()?.len();
                let mut text = Vec::new();
                std::io::Read::read_to_end(&mut file, &mut text).map(|_| (length, text))
            });
            Ok(read.map_err(StoreError::at("can't be read", &at))?)
        })
        .await?;
        if bytes > limit {
            return Err(PullError::TooLarge { bytes, limit });
        }
        String::from_utf8(text).map_err(|_| PullError::Unfit(format!("{path} is not UTF-8 text")))
    }

    /// Links a fetched file to its place in the bundle.
    pub(super) async fn stage(&self, stage: &Path, fetched: &Fetched, file: &str) -> Result<(), PullError> {
        let (from, to, file) = (fetched.at.clone(), stage.join(file), file.to_owned());
        let staging = Arc::clone(&self.staging);
        blocking(move || {
            let _lock = staging;
            let made = to.parent().map_or(Ok(()), fs::create_dir_all);
            match made.and_then(|()| link(&from, &to)) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    Err(PullError::Unfit(format!("two of its files would be {file} in the bundle")))
                }
                done => Ok(done.map_err(StoreError::at("can't be made", &to))?),
            }
        })
        .await
    }

    /// Writes a text to its place in the bundle.
    pub(super) async fn write(&self, stage: &Path, file: &str, text: String) -> Result<(), PullError> {
        let (to, staging) = (stage.join(file), Arc::clone(&self.staging));
        blocking(move || {
            let _lock = staging;
            Ok(fs::write(&to, text).map_err(StoreError::at("can't be written", &to))?)
        })
        .await
    }

    fn fetched(&mut self, path: &str, at: PathBuf, bytes: u64, sha256: String) -> Fetched {
        self.bytes = self.bytes.saturating_add(bytes);
        (self.progress)(Progress::File { path: path.into(), bytes, so_far: self.bytes });
        Fetched { at, sha256 }
    }
}

/// Whether a part of the file is here. Anything but a regular file is removed, so that nothing is written through it.
async fn clear_way(staging: &Arc<StagingDir>, at: &Path) -> Result<bool, PullError> {
    match tokio::fs::symlink_metadata(at).await {
        Ok(found) if found.is_file() => Ok(true),
        Ok(_) => remove(staging, at).await.map(|()| false),
        Err(_) => Ok(false),
    }
}

/// The staging folder is moved along, as with all that changes its files: it stays locked until the change is done, also when
/// the pull is cancelled.
async fn remove(staging: &Arc<StagingDir>, at: &Path) -> Result<(), PullError> {
    let (staging, at) = (Arc::clone(staging), at.to_path_buf());
    blocking(move || {
        let _lock = staging;
        Ok(fs::remove_file(&at).map_err(StoreError::at("can't be removed", &at))?)
    })
    .await
}

/// Bytes and digest of a regular file.
async fn measure(at: &Path) -> Result<(u64, String), PullError> {
    let path = at.to_path_buf();
    blocking(move || {
        let measured = open_regular(&path).and_then(|file| Ok((file.metadata()?.len(), digest_of(file)?)));
        Ok(measured.map_err(StoreError::at("can't be read", &path))?)
    })
    .await
}
