//! The body of an object, read with bounds on its length and its time.

use std::path::Path;
use std::time::Duration;

use aws_sdk_s3::primitives::ByteStream;
use bytes::Bytes;
use tokio::fs::File;
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, timeout_at};

use crate::blob::too_large;
use crate::error::{Link, SyncError, SyncResult};

/// Longest wait for more of a body.
const IDLE: Duration = Duration::from_secs(20);

/// Time for a body of `bytes` beyond what an empty one gets, at the least rate that is waited for: 32 KiB/s.
pub(super) fn time_for(bytes: u64) -> Duration {
    Duration::from_millis(bytes.div_ceil(32))
}

/// A body that comes in.
pub(super) struct Download<'a> {
    pub(super) uri: &'a str,
    pub(super) body: ByteStream,
    /// Its length, as the storage has announced it.
    pub(super) length: Option<u64>,
    /// When it must be through.
    pub(super) deadline: Instant,
}

/// The next piece of the object `uri`, as it comes off the network; `deadline` is for all of it.
pub(super) async fn next_piece(
    uri: &str,
    body: &mut ByteStream,
    deadline: Instant,
) -> SyncResult<Option<Bytes>> {
    let until = deadline.min(Instant::now() + IDLE);
    let failed = || SyncError::transient(Link::S3, format!("cannot read {uri} to its end"));
    match timeout_at(until, body.next()).await {
        Ok(None) => Ok(None),
        Ok(Some(Ok(piece))) => Ok(Some(piece)),
        Ok(Some(Err(error))) => Err(failed().because(error)),
        Err(_) => Err(failed().because("it comes too slowly")),
    }
}

impl Download<'_> {
    /// The next piece, as it comes off the network.
    async fn next(&mut self) -> SyncResult<Option<Bytes>> {
        next_piece(self.uri, &mut self.body, self.deadline).await
    }

    /// All of it, in memory.
    pub(super) async fn whole(mut self, max_bytes: u64) -> SyncResult<Bytes> {
        let over = |bytes| too_large(Link::S3, self.uri, bytes, max_bytes);
        if let Some(length) = self.length.filter(|length| *length > max_bytes) {
            return Err(over(length));
        }
        let Some(first) = self.next().await? else {
            return self.complete(0).map(|()| Bytes::new());
        };
        // A small object often comes in one piece, which needs no copy.
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

    /// All of it, into a file.
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
    /// When there were not as many bytes as announced.
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
