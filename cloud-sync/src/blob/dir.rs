//! Objects as files in a directory.

mod bound;
mod list;
mod partial;
mod tree;

use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use rustix::fs::{FileType, Mode, OFlags, Stat, fstat, openat};
use rustix::io::Errno;
use url::Url;

use bound::Account;
use partial::Partial;
use tree::{Place, Tree};

pub use bound::{Bound, Room, StoreFull};

use super::{BlobInfo, BlobKey, BlobPage, BlobStore};
use crate::check::{CheckStep, Steps};
use crate::durable;
use crate::error::{Link, SyncError, SyncResult};

/// A store in a directory of this machine. Clones are the same store; several processes may share the directory.
///
/// An object is one file, named like its key (where the last part of the key has no dot, or another part has one, a
/// `$` is appended to that part's name). Files that the store has not created are not listed.
#[derive(Debug, Clone)]
pub struct DirStore {
    tree: Arc<Tree>,
    /// Accounting of its contents, where they are limited.
    account: Option<Arc<Account>>,
}

impl DirStore {
    /// Opens the store in a directory, which is created if it does not exist, and removes partially written files
    /// that a crash has left. It reads and writes the disk: for the start of a process.
    ///
    /// # Errors
    /// When the directory cannot be created or read.
    pub fn open(path: impl AsRef<Path>) -> SyncResult<Self> {
        let path = path.as_ref();
        let failed = |error| failure(format!("cannot open the store in {}", path.display()), error);
        durable::create_dir_all(path).map_err(failed)?;
        let tree = Tree::new(path.canonicalize().map_err(failed)?);
        let removed = partial::clean(&tree).map_err(failed)?;
        if removed > 0 {
            tracing::info!(path = %path.display(), removed, "removed partially written files of a crash");
        }
        Ok(Self { tree: Arc::new(tree), account: None })
    }

    /// Like [`DirStore::open`], with a limit on its contents. Existing objects are counted at the first put, not now.
    /// The limit holds for this store and its clones; no other may put into the directory.
    ///
    /// # Errors
    /// As for [`DirStore::open`].
    pub fn open_bounded(path: impl AsRef<Path>, bound: Bound) -> SyncResult<Self> {
        Ok(Self { account: Some(Arc::new(Account::new(bound))), ..Self::open(path)? })
    }

    /// Usage of a bounded store, once it is known.
    #[must_use]
    pub fn room(&self) -> Option<Room> {
        self.account.as_ref()?.room(&self.tree)
    }

    /// Usage of a bounded store, counted if it was not before or, with `again`, if that was long ago: files may have
    /// been removed by hand. `None` for a store without a limit.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub async fn measure(&self, again: bool) -> SyncResult<Option<Room>> {
        let account = self.account.clone();
        let measure = move |tree: &Tree| account.map(|account| account.measure(tree, again)).transpose();
        self.on_disk("count", "", measure).await
    }

    /// Up to `count` of the oldest objects whose keys begin with `prefix`, the oldest first.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub async fn oldest(&self, prefix: &str, count: usize) -> SyncResult<Vec<BlobInfo>> {
        let begin = prefix.to_owned();
        self.on_disk("list", prefix, move |tree| {
            let mut oldest = BinaryHeap::with_capacity(count + 1);
            list::each(tree, &begin, &mut |object| {
                oldest.push((object.modified, object.key, object.bytes));
                if oldest.len() > count {
                    oldest.pop();
                }
            })?;
            let oldest = oldest.into_sorted_vec().into_iter();
            Ok(oldest.map(|(modified, key, bytes)| BlobInfo { key, bytes, modified }).collect())
        })
        .await
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.tree.root
    }

    /// Checks what a user of the store needs: puts an object, reads it, removes it.
    pub async fn check(&self) -> Vec<CheckStep> {
        let mut steps = Steps::default();
        super::probe(self, Link::Disk, &mut steps).await;
        steps.finish()
    }

    /// Runs `work` on a blocking thread; `what` names the operation on `key`.
    async fn on_disk<T: Send + 'static>(
        &self,
        what: &'static str,
        key: &str,
        work: impl FnOnce(&Tree) -> io::Result<T> + Send + 'static,
    ) -> SyncResult<T> {
        let tree = Arc::clone(&self.tree);
        let result = tokio::task::spawn_blocking(move || work(&tree)).await;
        let result = result.unwrap_or_else(|lost| Err(io::Error::other(lost)));
        result.map_err(|error| failure(format!("cannot {what} {key:?} in {}", self.path().display()), error))
    }

    async fn write(
        &self,
        key: &BlobKey,
        bytes: u64,
        fill: impl FnOnce(&mut File) -> io::Result<()> + Send + 'static,
    ) -> SyncResult<()> {
        let (place, account, name) = (Place::of(key), self.account.clone(), key.as_str().to_owned());
        self.on_disk("write", key.as_str(), move |tree| {
            let room = account.as_ref().map(|account| account.reserve(tree, &name, bytes)).transpose()?;
            let mut partial = Partial::create(tree)?;
            fill(&mut partial.file)?;
            partial.finish(tree, &place, room)
        })
        .await
    }
}

#[async_trait]
impl BlobStore for DirStore {
    async fn put(&self, key: &BlobKey, bytes: Bytes, _content_type: &str) -> SyncResult<()> {
        self.write(key, bytes.len() as u64, move |file| file.write_all(&bytes)).await
    }

    async fn put_file(&self, key: &BlobKey, file: &Path, _content_type: &str) -> SyncResult<()> {
        let (from, bytes) = super::open_source(file).await?;
        // Nothing is reserved for what the file grows by while it is copied.
        self.write(key, bytes, move |to| io::copy(&mut from.take(bytes), to).map(drop)).await
    }

    async fn get(&self, key: &BlobKey, max_bytes: u64) -> SyncResult<Option<Bytes>> {
        let place = Place::of(key);
        let read = self.on_disk("read", key.as_str(), move |tree| {
            let Some((file, stat)) = open(tree, &place)? else { return Ok(None) };
            let bytes = length(&stat);
            if bytes > max_bytes {
                return Ok(Some(Err(bytes)));
            }
            let mut content = Vec::with_capacity(usize::try_from(bytes).map_err(io::Error::other)?);
            // One byte more shows that the file is being written in place.
            file.take(max_bytes.saturating_add(1)).read_to_end(&mut content)?;
            let bytes = content.len() as u64;
            Ok(Some(if bytes > max_bytes { Err(bytes) } else { Ok(Bytes::from(content)) }))
        });
        match read.await? {
            None => Ok(None),
            Some(Ok(content)) => Ok(Some(content)),
            Some(Err(bytes)) => Err(super::too_large(Link::Disk, &self.uri(key), bytes, max_bytes)),
        }
    }

    async fn get_file(&self, key: &BlobKey, file: &Path) -> SyncResult<Option<u64>> {
        let place = Place::of(key);
        let opened = self.on_disk("read", key.as_str(), move |tree| open(tree, &place)).await?;
        let Some((mut from, _)) = opened else { return Ok(None) };
        let failed = |error| failure(format!("cannot write {}", file.display()), error);
        let to = tokio::fs::File::create(file).await.map_err(failed)?;
        let mut to = to.into_std().await;
        self.on_disk("copy", key.as_str(), move |_| io::copy(&mut from, &mut to).map(Some)).await
    }

    async fn head(&self, key: &BlobKey) -> SyncResult<Option<BlobInfo>> {
        let (place, name) = (Place::of(key), key.as_str().to_owned());
        self.on_disk("look at", key.as_str(), move |tree| {
            let found = open(tree, &place)?;
            Ok(found.map(|(_, stat)| BlobInfo { key: name, bytes: length(&stat), modified: modified(&stat) }))
        })
        .await
    }

    async fn list(&self, prefix: &str, next: Option<&str>) -> SyncResult<BlobPage> {
        let (begin, after) = (prefix.to_owned(), next.map(str::to_owned));
        self.on_disk("list", prefix, move |tree| list::page(tree, &begin, after.as_deref())).await
    }

    async fn delete(&self, key: &BlobKey) -> SyncResult<()> {
        let (place, account) = (Place::of(key), self.account.clone());
        self.on_disk("remove", key.as_str(), move |tree| {
            let Some(folder) = tree.folder(&place)? else { return Ok(()) };
            let removed = match &account {
                Some(account) => account.remove(&folder, &place.file)?,
                None => bound::unlink(&folder, &place.file)?,
            };
            if removed {
                durable::sync_open_dir(&folder)?;
            }
            tree.prune(&place)
        })
        .await
    }

    fn uri(&self, key: &BlobKey) -> String {
        let path: PathBuf = self.path().join(Place::of(key).relative());
        // The root is absolute since `open`, so there is always a URL.
        Url::from_file_path(&path).map_or_else(|()| path.display().to_string(), String::from)
    }
}

/// Opens the file of an object; `None` when there is none.
fn open(tree: &Tree, place: &Place) -> io::Result<Option<(File, Stat)>> {
    let Some(folder) = tree.folder(place)? else { return Ok(None) };
    // Non-blocking: a named pipe in its place must not block the thread.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match openat(folder, place.file.as_str(), flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let stat = fstat(&file)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    Ok(Some((File::from(file), stat)))
}

fn length(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or_default()
}

fn modified(stat: &Stat) -> Option<SystemTime> {
    let seconds = u64::try_from(stat.st_mtime).ok()?;
    let nanos = u32::try_from(stat.st_mtime_nsec).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanos))
}

/// Remedy where the store finds a file that it has not created.
const FOREIGN_FILE: &str = "a file or a symbolic link is where a folder or an object should be; remove it";

/// Classifies an error of the disk.
fn failure(what: String, error: io::Error) -> SyncError {
    use io::ErrorKind as Kind;
    let remedy = match error.kind() {
        Kind::StorageFull | Kind::QuotaExceeded => Some("free some space"),
        Kind::FileTooLarge => Some("it is more than the file system or the limits of this process allow"),
        Kind::PermissionDenied => Some("give this user the right to read and write there"),
        Kind::ReadOnlyFilesystem => Some("mount it writable"),
        Kind::NotADirectory => Some(FOREIGN_FILE),
        _ if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => Some(FOREIGN_FILE),
        Kind::IsADirectory => Some("a folder that the store has not created is in its place; remove it"),
        Kind::CrossesDevices => Some("the whole store must be on one file system"),
        Kind::InvalidInput | Kind::NotFound | Kind::InvalidFilename => None,
        // The others (input/output errors, no memory, too many open files) may be temporary.
        _ => return SyncError::transient(Link::Disk, what).because(error),
    };
    let what = remedy.map_or_else(|| what.clone(), |remedy| format!("{what} ({remedy})"));
    match error.kind() {
        Kind::StorageFull | Kind::QuotaExceeded => SyncError::transient(Link::Disk, what).because(error),
        _ => SyncError::permanent(Link::Disk, what).because(error),
    }
}

#[cfg(test)]
mod tests;
