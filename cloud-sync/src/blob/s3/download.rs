//! The body of an object, read within limits on its length and its time, from the start or from a later byte.

use std::path::Path;
use std::time::Duration;

use aws_sdk_s3::primitives::ByteStream;
use bytes::Bytes;
use tokio::fs::File;
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, timeout_at};

use super::failure::{Failure, classify, is_missing};
use super::{MAX_S3_KEY, S3Store};
use crate::blob::too_large;
use crate::error::{Link, SyncError, SyncResult};

/// Maximum wait for more of a body.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);

/// Time for a body of `bytes` beyond that of an empty one, at the minimum rate of 32 KiB/s.
pub(super) fn time_for(bytes: u64) -> Duration {
    Duration::from_millis(bytes.div_ceil(32))
}

/// A body that is being received.
pub(super) struct Download<'a> {
    pub(super) uri: &'a str,
    pub(super) body: ByteStream,
    /// Its length, as announced by the storage.
    pub(super) length: Option<u64>,
    /// Deadline of the whole body.
    pub(super) deadline: Instant,
}

/// The next chunk of the object `uri`, as it arrives; `deadline` is for all of it.
pub(super) async fn next_piece(
    uri: &str,
    body: &mut ByteStream,
    deadline: Instant,
) -> SyncResult<Option<Bytes>> {
    let until = deadline.min(Instant::now() + IDLE_TIMEOUT);
    let failed = || SyncError::transient(Link::S3, format!("cannot read {uri} to its end"));
    match timeout_at(until, body.next()).await {
        Ok(None) => Ok(None),
        Ok(Some(Ok(piece))) => Ok(Some(piece)),
        Ok(Some(Err(error))) => Err(failed().because(error)),
        Err(_) => Err(failed().because("it arrives too slowly")),
    }
}

impl Download<'_> {
    /// The next chunk, as it arrives.
    async fn next(&mut self) -> SyncResult<Option<Bytes>> {
        next_piece(self.uri, &mut self.body, self.deadline).await
    }

    /// Reads all of it into memory.
    pub(super) async fn whole(mut self, max_bytes: u64) -> SyncResult<Bytes> {
        let over = |bytes| too_large(Link::S3, self.uri, bytes, max_bytes);
        if let Some(length) = self.length.filter(|length| *length > max_bytes) {
            return Err(over(length));
        }
        let Some(first) = self.next().await? else {
            return self.complete(0).map(|()| Bytes::new());
        };
        // A small object often arrives in one chunk, which needs no copy.
        if self.length == Some(first.len() as u64) {
            return Ok(first);
        }
        let room = usize::try_from(self.length.unwrap_or(0)).unwrap_or(0);
        let mut content = Vec::with_capacity(room.max(first.len()));
        content.extend_from_slice(&first);
        while let Some(piece) = self.next().await? {
            let bytes = content.len() as u64 + piece.len() as u64;
            if bytes > max_bytes {
                return Err(too_large(Link::S3, self.uri, bytes, max_bytes));
            }
            content.extend_from_slice(&piece);
        }
        self.complete(content.len() as u64)?;
        Ok(content.into())
    }

    /// Writes all of it to a file.
    pub(super) async fn into_file(mut self, path: &Path) -> SyncResult<u64> {
        let failed = || SyncError::permanent(Link::Disk, format!("cannot write {}", path.display()));
        let mut file = File::create(path).await.map_err(|error| failed().because(error))?;
        let mut bytes = 0;
        while let Some(piece) = self.next().await? {
            file.write_all(&piece).await.map_err(|error| failed().because(error))?;
            bytes += piece.len() as u64;
        }
        file.flush().await.map_err(|error| failed().because(error))?;
        self.complete(bytes).map(|()| bytes)
    }

    /// # Errors
    /// When fewer or more bytes arrived than announced.
    fn complete(&self, bytes: u64) -> SyncResult<()> {
        match self.length {
            Some(length) if length != bytes => {
                let what = format!("{} broke off after {bytes} of {length} bytes", self.uri);
                Err(SyncError::transient(Link::S3, what))
            }
            _ => Ok(()),
        }
    }
}

/// What was found under a key.
pub(crate) enum Found {
    /// No object.
    Nothing,
    /// Another object than the requested one, or a shorter one.
    Another,
    /// The object, from the requested byte on.
    Body(Reading),
}

/// The rest of an object, as it is received.
pub(crate) struct Reading {
    uri: String,
    body: ByteStream,
    deadline: Instant,
    /// Identifies this content of the object.
    pub(crate) etag: Option<String>,
    /// Bytes of the whole object, if the storage reports them.
    pub(crate) total: Option<u64>,
}

impl Reading {
    /// The next chunk.
    ///
    /// # Errors
    /// Transient when it breaks off, or arrives too slowly.
    pub(crate) async fn next(&mut self) -> SyncResult<Option<Bytes>> {
        next_piece(&self.uri, &mut self.body, self.deadline).await
    }
}

impl S3Store {
    /// Reads an object by its whole key from byte `from` on; with `etag` only that content.
    ///
    /// # Errors
    /// When the storage is unavailable or refuses.
    pub(crate) async fn read_from(&self, key: &str, from: u64, etag: Option<&str>) -> SyncResult<Found> {
        if key.is_empty() || key.len() > MAX_S3_KEY {
            let what = format!("a key has 1 to {MAX_S3_KEY} bytes, not {}", key.len());
            return Err(SyncError::permanent(Link::S3, what));
        }
        let result = self.begin_from(key, from, etag).await;
        self.note(result)
    }

    async fn begin_from(&self, key: &str, from: u64, etag: Option<&str>) -> Result<Found, Failure> {
        let uri = self.uri_of(key);
        let ask = self.client.get_object().bucket(&self.bucket).key(key);
        let ask = ask.set_if_match(etag.map(str::to_owned));
        let ask = ask.set_range((from > 0).then(|| format!("bytes={from}-")));
        let found = match ask.send().await {
            Ok(found) => found,
            Err(error) if is_missing(&error) => return Ok(Found::Nothing),
            Err(error) => {
                let status = error.raw_response().map(|response| response.status().as_u16());
                return match status {
                    Some(412 | 416) => Ok(Found::Another),
                    _ => Err(classify(format!("cannot get {uri}"), error)),
                };
            }
        };
        let etag_now = found.e_tag;
        // Not every storage supports conditions and ranges.
        let other = etag.is_some() && etag != etag_now.as_deref();
        let from_elsewhere = from > 0
            && !found
                .content_range
                .as_deref()
                .is_some_and(|range| range.starts_with(&format!("bytes {from}-")));
        if other || from_elsewhere {
            return Ok(Found::Another);
        }
        let rest = found.content_length.and_then(|length| u64::try_from(length).ok());
        let deadline = Instant::now() + self.attempt_timeout + time_for(rest.unwrap_or(1 << 30));
        let total = rest.map(|rest| rest + from);
        Ok(Found::Body(Reading { uri, body: found.body, deadline, etag: etag_now, total }))
    }
}
