//! Files of a version, fetched to the partial and held against what is known of them.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use cloud_sync::registry::{ModelRegistry, ModelVersion};

use super::paths::Listing;
use super::{Progress, PullError, PullLimits, blocking};
use crate::models::bundle::digest_of;
use crate::models::store::{link, open_regular};
use crate::models::{ModelStore, Partial, StoreError};

/// What is said of progress, and to whom.
pub(super) type Tell<'a> = &'a (dyn Fn(Progress) + Send + Sync);

/// A download under way.
pub(super) struct Download<'a> {
    pub(super) registry: &'a dyn ModelRegistry,
    pub(super) version: &'a ModelVersion,
    pub(super) store: &'a ModelStore,
    pub(super) limits: &'a PullLimits,
    pub(super) tell: Tell<'a>,
    pub(super) partial: &'a Partial,
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
    /// Looks before anything large is fetched whether these files are within bounds and fit on the disk.
    pub(super) fn check_room(&self, paths: &[String]) -> Result<(), PullError> {
        let listed = |path: &String| self.listing.get(path).copied().flatten().unwrap_or(0);
        let all = paths.iter().map(listed).fold(self.bytes, u64::saturating_add);
        if all > self.limits.max_bytes {
            return Err(PullError::TooLarge { bytes: all, limit: self.limits.max_bytes });
        }
        let here =
            |path: &String| fs::symlink_metadata(self.partial.file(path)).map_or(0, |found| found.len());
        let missing = paths.iter().map(|path| listed(path).saturating_sub(here(path)));
        Ok(self.store.check_room(missing.fold(0, u64::saturating_add), self.limits.keep_free)?)
    }

    /// Fetches a file, unless it is here already, and verifies it.
    pub(super) async fn fetch(&mut self, path: &str, expected: Option<&str>) -> Result<Fetched, PullError> {
        let at = self.partial.file(path);
        let listed = self.listing.get(path).copied().flatten();
        let left = self.limits.max_bytes.saturating_sub(self.bytes);
        let mut resumed = self.clear_way(&at)?;
        if let (true, Some(expected)) = (resumed, expected)
            && let Ok((bytes, sha256)) = measure(&at).await
            && sha256.eq_ignore_ascii_case(expected)
        {
            return Ok(self.fetched(path, at, bytes, sha256));
        }
        loop {
            let limit = listed.unwrap_or(left).min(left);
            let fetching = self.registry.fetch(self.version, path, &at, limit);
            fetching.await.map_err(PullError::Registry)?;
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
            fs::remove_file(&at).map_err(StoreError::at("can't be removed", &at))?;
            // What an earlier download left may be of another content: once more from the start.
            if !std::mem::take(&mut resumed) {
                return Err(fault);
            }
        }
    }

    /// A small text, in memory.
    pub(super) async fn text(&mut self, path: &str, longest: u64) -> Result<String, PullError> {
        let bytes = self.listing.get(path).copied().flatten().unwrap_or(0);
        if bytes > longest {
            return Err(PullError::TooLarge { bytes, limit: longest });
        }
        let Fetched { at, .. } = self.fetch(path, None).await?;
        let read = open_regular(&at).and_then(|mut file| {
            let length = file.metadata()?.len();
            let mut text = Vec::new();
            std::io::Read::read_to_end(&mut file, &mut text).map(|_| (length, text))
        });
        let (bytes, text) = read.map_err(StoreError::at("can't be read", &at))?;
        if bytes > longest {
            return Err(PullError::TooLarge { bytes, limit: longest });
        }
        String::from_utf8(text).map_err(|_| PullError::Unfit(format!("{path} is not UTF-8 text")))
    }

    /// Puts a fetched file in its place in the bundle.
    pub(super) fn stage(&self, stage: &Path, fetched: &Fetched, file: &str) -> Result<(), PullError> {
        let to = stage.join(file);
        let made = to.parent().map_or(Ok(()), fs::create_dir_all);
        match made.and_then(|()| link(&fetched.at, &to)) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                Err(PullError::Unfit(format!("two of its files would be {file} in the bundle")))
            }
            done => Ok(done.map_err(StoreError::at("can't be made", &to))?),
        }
    }

    fn fetched(&mut self, path: &str, at: PathBuf, bytes: u64, sha256: String) -> Fetched {
        self.bytes = self.bytes.saturating_add(bytes);
        (self.tell)(Progress::File { path: path.into(), bytes, so_far: self.bytes });
        Fetched { at, sha256 }
    }

    /// Whether a part of the file is here. What is no regular file is removed, so that nothing is written through it.
    fn clear_way(&self, at: &Path) -> Result<bool, PullError> {
        match fs::symlink_metadata(at) {
            Ok(found) if found.is_file() => Ok(true),
            Ok(_) => {
                fs::remove_file(at).map_err(StoreError::at("can't be removed", at))?;
                Ok(false)
            }
            Err(_) => Ok(false),
        }
    }
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
