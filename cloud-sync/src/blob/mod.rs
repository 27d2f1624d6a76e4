//! Objects under keys: a directory, or S3.
//!
//! Both implementations guarantee, and the contract suite checks on both: an object is seen whole or not at all, by
//! any reader at any time and after any crash; the newest put wins; what [`BlobStore::put`] has acknowledged is
//! durable; keys cannot lead out of the store.

mod dir;
mod s3;

use std::error::Error;
use std::fmt;
use std::path::Path;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use ulid::Ulid;

pub use dir::{Bound, DirStore, Room, StoreFull};
pub(crate) use s3::{Found, Reading};
pub use s3::{S3Config, S3Store};

use crate::check::Steps;
use crate::error::{Link, SyncError, SyncResult};

/// Maximum length of a key, in bytes (S3's own limit is 1024; a prefix may precede the key).
pub const MAX_KEY_BYTES: usize = 900;

/// Maximum length of a part of a key between slashes, in bytes: a file system allows names of 255.
pub const MAX_PART_BYTES: usize = 240;

/// The key of an object: parts of letters, digits and `-_.=+@~!,()` between single slashes; no part is `.` or `..` or
/// ends in the suffix of a file being written.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlobKey(String);

/// An invalid key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an object key: {key:?}: {reason}")]
pub struct InvalidKey {
    key: String,
    reason: &'static str,
}

impl BlobKey {
    /// Validates `key`.
    ///
    /// # Errors
    /// When it is empty or longer than [`MAX_KEY_BYTES`], or has an invalid part or character.
    pub fn new(key: impl Into<String>) -> Result<Self, InvalidKey> {
        let key = key.into();
        let allowed = |c: char| c.is_ascii_alphanumeric() || "/-_.=+@~!,()".contains(c);
        let reason = if key.is_empty() || key.len() > MAX_KEY_BYTES {
            "it must have 1 to 900 bytes"
        } else if !key.chars().all(allowed) {
            "it may hold letters, digits, slashes and -_.=+@~!,() only"
        } else if key.split('/').any(|part| matches!(part, "" | "." | "..") || part.ends_with(PARTIAL)) {
            "a part between slashes is empty, '.', '..' or ends in '.partial~'"
        } else if key.split('/').any(|part| part.len() > MAX_PART_BYTES) {
            "a part between slashes has more than 240 bytes"
        } else {
            return Ok(Self(key));
        };
        Err(InvalidKey { key: key.chars().take(200).collect(), reason })
    }

    /// The key as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BlobKey {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(&self.0)
    }
}

/// Suffix of files that are still being written.
pub(crate) const PARTIAL: &str = ".partial~";

/// Metadata of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobInfo {
    /// Its key.
    pub key: String,
    /// Its length.
    pub bytes: u64,
    /// When it was put.
    pub modified: Option<SystemTime>,
}

/// A page of a listing, in the byte order of the keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BlobPage {
    /// At most 1000 objects.
    pub objects: Vec<BlobInfo>,
    /// Token of the next page; `None` on the last.
    pub next: Option<String>,
}

/// A store of objects.
#[async_trait]
pub trait BlobStore: Send + Sync + fmt::Debug {
    /// Puts an object from memory, replacing any under the same key.
    ///
    /// # Errors
    /// When the store is unavailable, full, or refuses it. The old object, if any, is then still there.
    async fn put(&self, key: &BlobKey, bytes: Bytes, content_type: &str) -> SyncResult<()>;

    /// Puts the contents of a file; a large one in parts, a few at a time, so that memory
    /// stays bounded.
    ///
    /// # Errors
    /// As for [`BlobStore::put`], and when the file cannot be read.
    async fn put_file(&self, key: &BlobKey, file: &Path, content_type: &str) -> SyncResult<()>;

    /// Reads an object. `None` when there is none.
    ///
    /// # Errors
    /// When the store is unavailable; permanent when the object has more than `max_bytes`.
    async fn get(&self, key: &BlobKey, max_bytes: u64) -> SyncResult<Option<Bytes>>;

    /// Reads an object by its whole key, without the prefix of this store, which may contain any characters that the
    /// store allows: for objects of other producers. `None` when there is none.
    ///
    /// # Errors
    /// As for [`BlobStore::get`], and when the store has no such keys.
    async fn get_any(&self, key: &str, max_bytes: u64) -> SyncResult<Option<Bytes>> {
        match BlobKey::new(key) {
            Ok(key) => self.get(&key, max_bytes).await,
            Err(invalid) => Err(SyncError::permanent(Link::Disk, invalid.to_string())),
        }
    }

    /// Copies an object into a file that it creates or overwrites, in bounded memory. Returns its bytes, `None` when
    /// there is no such object.
    ///
    /// # Errors
    /// When the store is unavailable or the file cannot be written. The file may then hold a part.
    async fn get_file(&self, key: &BlobKey, file: &Path) -> SyncResult<Option<u64>>;

    /// Metadata of an object, `None` when there is none.
    ///
    /// # Errors
    /// When the store is unavailable.
    async fn head(&self, key: &BlobKey) -> SyncResult<Option<BlobInfo>>;

    /// The objects whose keys begin with `prefix`; `next` is the token from the previous page.
    ///
    /// # Errors
    /// When the store is unavailable.
    async fn list(&self, prefix: &str, next: Option<&str>) -> SyncResult<BlobPage>;

    /// Removes an object; a missing one counts as removed.
    ///
    /// # Errors
    /// When the store is unavailable or refuses.
    async fn delete(&self, key: &BlobKey) -> SyncResult<()>;

    /// The URI of an object: `s3://bucket/key` or `file:///...`.
    fn uri(&self, key: &BlobKey) -> String;
}

/// Opens a file that is to become an object, and returns its length.
pub(crate) async fn open_source(path: &Path) -> SyncResult<(std::fs::File, u64)> {
    let failed = || SyncError::permanent(Link::Disk, format!("cannot read {}", path.display()));
    let file = tokio::fs::File::open(path).await.map_err(|error| failed().because(error))?;
    let metadata = file.metadata().await.map_err(|error| failed().because(error))?;
    if !metadata.is_file() {
        return Err(failed().because("it is not a regular file"));
    }
    Ok((file.into_std().await, metadata.len()))
}

/// Why an object was not read: it is larger than the caller allows. It is the source of the error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it has {bytes} bytes or more, {bound} are allowed")]
pub struct TooLarge {
    /// Its bytes, as far as they were read.
    pub bytes: u64,
    /// The limit.
    pub bound: u64,
}

impl TooLarge {
    /// The `TooLarge` that is the source of `error`, if any.
    #[must_use]
    pub fn of(error: &SyncError) -> Option<&Self> {
        error.source().and_then(<dyn Error>::downcast_ref)
    }
}

/// The error of an object that is too large to be read whole.
pub(crate) fn too_large(link: Link, uri: &str, bytes: u64, bound: u64) -> SyncError {
    SyncError::permanent(link, format!("{uri} can't be read whole")).because(TooLarge { bytes, bound })
}

/// Puts a small object, reads it, and removes it: each a step of a check.
pub(crate) async fn probe(store: &dyn BlobStore, link: Link, steps: &mut Steps) {
    let name = format!("weir-check/{}.txt", Ulid::generate());
    let Ok(key) = BlobKey::new(name) else { return };
    let content = Bytes::from_static(b"Written by a check of this link, which removes it again.\n");
    let uri = store.uri(&key);
    let put = store.put(&key, content.clone(), "text/plain").await;
    if steps.note("put an object", put, |()| uri.clone()).is_none() {
        return;
    }
    let got = store.get(&key, 4096).await.and_then(|got| match got {
        Some(got) if got == content => Ok(got.len()),
        other => {
            let found = other.map_or_else(|| "nothing".into(), |got| format!("{} other bytes", got.len()));
            let what = format!("{uri} was put and {found} came back: does another program write there?");
            Err(SyncError::permanent(link, what))
        }
    });
    steps.note("get it and compare", got, |bytes| format!("{bytes} bytes, the same"));
    // Also after a failed get, to leave nothing behind.
    let deleted = store.delete(&key).await;
    steps.note("remove it", deleted, |()| "done".into());
}
