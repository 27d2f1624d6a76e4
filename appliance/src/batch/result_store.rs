//! The result objects of batches in the blob store: the part of each chunk, and the one object of a finished batch.
//! Whatever reads, writes, joins, counts or lists them is here; [`lines`] is what is done to the lines themselves.
//!
//! Every method is a single attempt and may be repeated as a whole. The worker repeats it until the store is back
//! ([`super::retry`]); the API answers with the error.

mod lines;

use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use cloud_sync::batch_status::BatchSpec;
use cloud_sync::blob::{BlobInfo, BlobKey, BlobStore};
use cloud_sync::error::{Link, SyncError, SyncResult};
use cloud_sync::event::BatchItem;
use tempfile::TempPath;

pub(super) use lines::{Tally, failed, to_lines};

use super::image_url::{in_result, without_userinfo};
use super::message::BatchMessage;
use super::object_keys::parts_prefix;
use super::spool::{Spool, SpoolError};

/// Content type of result lines.
const NDJSON: &str = "application/x-ndjson";

/// The result objects in one blob store. Clones are the same store.
#[derive(Clone, Debug)]
pub struct ResultStore {
    blob: Arc<dyn BlobStore>,
    /// Where objects are copied to and put together.
    spool: Spool,
}

/// Why result objects can't be read or written.
#[derive(Debug, thiserror::Error)]
pub(super) enum ResultsError {
    #[error(transparent)]
    Blob(#[from] SyncError),
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// A copy in the spool.
    #[error("cannot use {} for batch results: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
}

impl From<ResultsError> for SyncError {
    /// A disk that is full now may have room later.
    fn from(error: ResultsError) -> Self {
        match error {
            ResultsError::Blob(error) => error,
            error => Self::transient(Link::Disk, "batch results can't be spooled").because(error),
        }
    }
}

/// What an object has for the images of a message.
pub(super) enum StoredResults {
    /// Their results.
    Match(Vec<BatchItem>),
    /// Results of other images: the id was used before.
    Foreign,
    /// No result lines: the object is damaged.
    Damaged,
    /// There is no object.
    Missing,
}

/// A results object under construction, after a part was appended.
pub(super) struct Appended {
    /// Its length in bytes.
    pub(super) length: u64,
    /// Lines of the part that were damaged and replaced by failures.
    pub(super) replaced: u64,
}

impl ResultStore {
    /// The results in `blob`; copies on disk go to `spool`.
    pub fn new(blob: Arc<dyn BlobStore>, spool: Spool) -> Self {
        Self { blob, spool }
    }

    /// An empty file for results, removed when the path is dropped.
    pub(super) async fn new_file(&self) -> Result<TempPath, ResultsError> {
        Ok(self.spool.results_file().await?)
    }

    /// Copies an object to a file; returns its length too. `None` when there is none.
    pub(super) async fn fetch(&self, key: &BlobKey) -> Result<Option<(TempPath, u64)>, ResultsError> {
        let file = self.new_file().await?;
        let bytes = self.blob.get_file(key, &file).await?;
        Ok(bytes.map(|bytes| (file, bytes)))
    }

    /// Writes result lines as an object.
    pub(super) async fn put(&self, key: &BlobKey, lines: Bytes) -> SyncResult<()> {
        self.blob.put(key, lines, NDJSON).await
    }

    /// Writes a file of result lines as an object.
    pub(super) async fn put_file(&self, key: &BlobKey, file: &Path) -> SyncResult<()> {
        self.blob.put_file(key, file, NDJSON).await
    }

    /// What the object under `key`, whose first line is the batch's image `first`, has for the images of the message.
    /// Results of a `cancelled` batch may cover only some of its images.
    pub(super) async fn stored(
        &self,
        key: &BlobKey,
        first: u64,
        message: &BatchMessage,
        cancelled: bool,
    ) -> Result<StoredResults, ResultsError> {
        let Some((file, _)) = self.fetch(key).await? else { return Ok(StoredResults::Missing) };
        let skip = usize::try_from(message.first - first).unwrap_or(usize::MAX);
        let take = message.image_urls.len();
        let images = message.first..message.first.saturating_add(take as u64);
        let wanted = images.clone();
        let read = move |path: &Path| match cancelled {
            true => lines::read_some(path, wanted).map(Some),
            false => lines::read_range(path, skip, take),
        };
        let Some(items) = on_disk(&file, read).await? else { return Ok(StoredResults::Damaged) };
        let complete = items.len() == take && images.zip(&items).all(|(index, item)| item.index == index);
        let fits = (complete || cancelled) && items.iter().all(|item| is_of(item, message));
        Ok(if fits { StoredResults::Match(items) } else { StoredResults::Foreign })
    }

    /// Counts the results in an object; see [`ResultStore::count`]. `None` when there is none.
    pub(super) async fn tally(&self, key: &BlobKey, inline: u64) -> Result<Option<Tally>, ResultsError> {
        match self.fetch(key).await? {
            Some((file, _)) => self.count(&file, inline).await.map(Some),
            None => Ok(None),
        }
    }

    /// Counts the results in a file, and keeps them too if there are at most `inline` of them.
    pub(super) async fn count(&self, file: &Path, inline: u64) -> Result<Tally, ResultsError> {
        on_disk(file, move |file| Tally::of_file(file, inline)).await
    }

    /// The parts of a batch, in the order of their chunks, page by page.
    pub(super) fn parts(&self, id: &str) -> Listing<'_> {
        Listing::new(self.blob.as_ref(), parts_prefix(id))
    }

    /// Removes the parts of a batch, which are needed only until it is finished.
    pub(super) async fn delete_parts(&self, id: &str) -> SyncResult<()> {
        delete_prefix(self.blob.as_ref(), &parts_prefix(id)).await.map(drop)
    }

    /// Appends a part to the results under construction in `whole`, of which the first `length` bytes are valid: what
    /// lies behind them is left over from an attempt that failed midway.
    pub(super) async fn append(
        &self,
        whole: &Path,
        length: u64,
        part: &Path,
        spec: &BatchSpec,
        chunk: u32,
    ) -> Result<Appended, ResultsError> {
        let (part, spec) = (part.to_path_buf(), spec.clone());
        let append = move |whole: &Path| {
            let to = OpenOptions::new().append(true).open(whole)?;
            to.set_len(length)?;
            let replaced = lines::append(&part, &to, &spec, chunk)?;
            Ok(Appended { length: to.metadata()?.len(), replaced })
        };
        on_disk(whole, append).await
    }
}

/// Whether a result is of an image of the message.
fn is_of(item: &BatchItem, message: &BatchMessage) -> bool {
    let offset = usize::try_from(item.index - message.first).unwrap_or(usize::MAX);
    let is_its = |url: &String| {
        // An earlier version kept the whole of every URL.
        item.image_url == in_result(&item.outcome, url) || item.image_url == without_userinfo(url)
    };
    item.request_id == message.spec.request_id && message.image_urls.get(offset).is_some_and(is_its)
}

/// Runs blocking work on a file, on a thread for such work.
async fn on_disk<T: Send + 'static>(
    file: &Path,
    work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
) -> Result<T, ResultsError> {
    let path = file.to_path_buf();
    let done = tokio::task::spawn_blocking(move || work(&path)).await.map_err(io::Error::other).flatten();
    done.map_err(|source| ResultsError::File { path: file.to_path_buf(), source })
}

/// The objects under a prefix, page by page.
pub(super) struct Listing<'a> {
    blob: &'a dyn BlobStore,
    prefix: String,
    next: Option<String>,
    is_over: bool,
}

impl<'a> Listing<'a> {
    fn new(blob: &'a dyn BlobStore, prefix: String) -> Self {
        Self { blob, prefix, next: None, is_over: false }
    }

    /// The next page; `None` after the last. After an error the same page is listed again.
    pub(super) async fn next_page(&mut self) -> SyncResult<Option<Vec<BlobInfo>>> {
        if self.is_over {
            return Ok(None);
        }
        let page = self.blob.list(&self.prefix, self.next.as_deref()).await?;
        self.next = page.next;
        self.is_over = self.next.is_none();
        Ok(Some(page.objects))
    }
}

/// Removes every object whose key begins with `prefix`. Returns how many there were.
///
/// # Errors
/// When the store is out of reach or refuses.
pub(super) async fn delete_prefix(blob: &dyn BlobStore, prefix: &str) -> SyncResult<u64> {
    let mut removed = 0;
    let mut listing = Listing::new(blob, prefix.to_owned());
    while let Some(objects) = listing.next_page().await? {
        for object in objects {
            // An object whose name is not a valid key is not one of ours.
            let Ok(key) = BlobKey::new(object.key) else { continue };
            blob.delete(&key).await?;
            removed += 1;
        }
    }
    Ok(removed)
}
