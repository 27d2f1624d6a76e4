//! Results as lines of an object, and as records of the results topic.

use std::io::BufReader;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use cloud_sync::blob::BlobKey;
use cloud_sync::error::{Link, SyncError, SyncResult};
use cloud_sync::event::{BatchItem, BatchSummary, EVENT_VERSION, Event, EventBody, ItemOutcome};
use cloud_sync::queue::{Delivery, ResultRecord};
use tempfile::TempPath;
use ulid::Ulid;

use super::{ChunkError, Worker};
use crate::batch::image_url::{in_result, without_userinfo};
use crate::batch::lines::{Line, next_line};
use crate::batch::message::BatchMessage;
use crate::batch::spool::RESULTS_PREFIX;

/// How results of each kind are labelled in the blob store.
pub(super) const LINES: &str = "application/x-ndjson";

/// What an object has for the images of a message.
pub(super) enum Kept {
    /// Their results.
    Theirs(Vec<BatchItem>),
    /// Results of other images: the id was used before.
    Others,
    /// What is no results: it was damaged.
    Damaged,
    /// Nothing.
    Nothing,
}

/// Results counted by what became of the images.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) completed: u64,
    pub(super) failed: u64,
    /// The lines as one JSON array, where they are few.
    pub(super) inline: Option<String>,
}

/// One line an image, in their order.
pub(super) fn lines(items: &[BatchItem]) -> Result<Bytes, serde_json::Error> {
    let mut lines = Vec::with_capacity(items.len() * 512);
    for item in items {
        serde_json::to_writer(&mut lines, item)?;
        lines.push(b'\n');
    }
    Ok(lines.into())
}

impl Tally {
    /// Counts results, and keeps them too if there are at most `inline` of them.
    pub(super) fn of(items: &[BatchItem], inline: u64) -> Result<Self, serde_json::Error> {
        let failed =
            items.iter().filter(|item| matches!(item.outcome, ItemOutcome::Failed { .. })).count() as u64;
        let few = items.len() as u64 <= inline;
        let inline = few.then(|| serde_json::to_string(items)).transpose()?;
        Ok(Self { completed: items.len() as u64 - failed, failed, inline })
    }

    /// Counts the lines of a file, and keeps them too if there are at most `inline` of them. A line that is damaged
    /// tells of an image that has no result.
    pub(super) fn of_file(file: &Path, inline: u64) -> std::io::Result<Self> {
        let mut tally = Self::default();
        let (mut kept, mut damaged): (Vec<String>, bool) = (Vec::new(), false);
        let (mut file, mut line) = (BufReader::new(std::fs::File::open(file)?), Vec::new());
        while next_line(&mut file, &mut line)? {
            let result = Line::parse(&line);
            damaged |= result.is_none();
            match result {
                Some(result) if result.is_ok() => tally.completed += 1,
                _ => tally.failed += 1,
            }
            if tally.images() <= inline {
                kept.push(String::from_utf8_lossy(&line).into_owned());
            }
        }
        let few = tally.images() <= inline && !damaged;
        tally.inline = few.then(|| format!("[{}]", kept.join(",")));
        Ok(tally)
    }

    pub(super) fn images(&self) -> u64 {
        self.completed + self.failed
    }
}

impl Worker {
    /// A file for results on their way, removed when it is dropped.
    pub(super) async fn spool_file(&self) -> TempPath {
        let make = || {
            on_disk(self.settings.spool.dir().to_path_buf(), |dir| {
                Ok(tempfile::Builder::new().prefix(RESULTS_PREFIX).tempfile_in(dir)?.into_temp_path())
            })
        };
        self.retry.retry_forever("making a file for results", make).await
    }

    /// An object as a file; None when there is none.
    pub(super) async fn spooled(&self, key: &BlobKey) -> Option<TempPath> {
        let file = self.spool_file().await;
        let got = self.retry.retry_forever("reading results", || self.blob.get_file(key, &file)).await;
        got.map(|_| file)
    }

    /// What the object under `key`, whose first line is the batch's image `from`, has for the images of the message.
    /// Those of a batch that is `cancelled` may be only some.
    pub(super) async fn kept(
        &self,
        key: &BlobKey,
        from: u64,
        message: &BatchMessage,
        cancelled: bool,
    ) -> Kept {
        let Some(file) = self.spooled(key).await else { return Kept::Nothing };
        let skip = usize::try_from(message.first - from).unwrap_or(usize::MAX);
        let take = message.image_urls.len();
        let images = message.first..message.first.saturating_add(take as u64);
        let path = file.to_path_buf();
        let read = || {
            let images = images.clone();
            on_disk(path.clone(), move |path| match cancelled {
                true => read_some(path, images).map(Some),
                false => read_items(path, skip, take),
            })
        };
        let Some(items) = self.retry.retry_forever("reading results", read).await else {
            return Kept::Damaged;
        };
        let complete = items.len() == take && images.zip(&items).all(|(index, item)| item.index == index);
        let fits = (complete || cancelled)
            && items.iter().all(|item| {
                let offset = usize::try_from(item.index - message.first).unwrap_or(usize::MAX);
                item.request_id == message.spec.request_id
                    && message.image_urls.get(offset).is_some_and(|url| {
                        // An earlier version kept the whole of every URL.
                        item.image_url == in_result(&item.outcome, url)
                            || item.image_url == without_userinfo(url)
                    })
            });
        if fits { Kept::Theirs(items) } else { Kept::Others }
    }

    /// The results of a message as records; the same message makes the same ids, whoever works on it.
    pub(super) fn records(
        &self,
        delivery: &Delivery,
        message: &BatchMessage,
        items: Vec<BatchItem>,
    ) -> Result<Vec<ResultRecord>, ChunkError> {
        let key = key_of(message);
        let seed = |item: &BatchItem| item.index.to_le_bytes();
        let record = |item: BatchItem| {
            let id = id_of(delivery, message, &seed(&item));
            self.record(id, key, EventBody::BatchItem(item))
        };
        items.into_iter().map(record).collect()
    }

    /// The record that a batch is finished.
    pub(super) fn summary(
        &self,
        delivery: &Delivery,
        message: &BatchMessage,
        summary: BatchSummary,
    ) -> Result<ResultRecord, ChunkError> {
        self.record(id_of(delivery, message, b"batch"), key_of(message), EventBody::Batch(summary))
    }

    fn record(&self, id: Ulid, key: &str, body: EventBody) -> Result<ResultRecord, ChunkError> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let time = UNIX_EPOCH + Duration::from_millis(millis(since));
        let event = Event { v: EVENT_VERSION, id, time, node: self.settings.node.clone(), body };
        Ok(ResultRecord { id: id.to_string(), key: key.to_owned(), payload: event.to_json()?.into() })
    }
}

/// The results of one camera keep their order, and else those of one batch.
fn key_of(message: &BatchMessage) -> &str {
    message.camera.as_deref().unwrap_or(&message.spec.request_id)
}

/// Time of the submission, then 80 bits that depend on the batch and `seed` alone.
fn id_of(delivery: &Delivery, message: &BatchMessage, seed: &[u8]) -> Ulid {
    let time = message.submitted().or(delivery.time).unwrap_or(UNIX_EPOCH);
    let mut hasher = blake3::Hasher::new();
    hasher.update(message.spec.request_id.as_bytes()).update(&[0]).update(seed);
    let mut random = [0; 16];
    hasher.finalize_xof().fill(&mut random[6..]);
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ulid::from_parts(millis(since), u128::from_be_bytes(random))
}

fn millis(since: Duration) -> u64 {
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// None when the lines are no results.
fn read_items(path: &Path, skip: usize, take: usize) -> std::io::Result<Option<Vec<BatchItem>>> {
    let (mut file, mut line) = (BufReader::new(std::fs::File::open(path)?), Vec::new());
    let (mut items, mut at) = (Vec::new(), 0);
    while items.len() < take && next_line(&mut file, &mut line)? {
        at += 1;
        if at <= skip {
            continue;
        }
        match serde_json::from_slice(&line) {
            Ok(item) => items.push(item),
            Err(_) => return Ok(None),
        }
    }
    Ok(Some(items))
}

/// The results of `images` that are there; what is damaged counts as not there.
fn read_some(path: &Path, images: Range<u64>) -> std::io::Result<Vec<BatchItem>> {
    let (mut file, mut line) = (BufReader::new(std::fs::File::open(path)?), Vec::new());
    let mut items = Vec::new();
    while next_line(&mut file, &mut line)? {
        let theirs = Line::parse(&line).is_some_and(|line| images.contains(&line.index));
        if theirs && let Ok(item) = serde_json::from_slice(&line) {
            items.push(item);
        }
    }
    Ok(items)
}

/// Runs what blocks on a thread that may; a disk that is full now may have room later.
pub(super) async fn on_disk<T: Send + 'static>(
    path: PathBuf,
    work: impl FnOnce(&Path) -> std::io::Result<T> + Send + 'static,
) -> SyncResult<T> {
    let named = path.clone();
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
        let what = format!("cannot use {} for results on their way", named.display());
        SyncError::transient(Link::Disk, what).because(error)
    };
    match tokio::task::spawn_blocking(move || work(&path)).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(failed(error.into())),
        Err(error) => Err(failed(error.into())),
    }
}
