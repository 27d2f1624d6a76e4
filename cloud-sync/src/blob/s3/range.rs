//! An object read from some byte on, for whoever goes on with what an earlier call has left.

use aws_sdk_s3::primitives::ByteStream;
use bytes::Bytes;
use tokio::time::Instant;

use super::download::{next_piece, time_for};
use super::failure::{Failure, classify, is_missing};
use super::{MAX_S3_KEY, S3Store};
use crate::error::{Link, SyncError, SyncResult};

/// What was found under a key.
pub(crate) enum Found {
    /// No object.
    Nothing,
    /// Another object than the one that was asked for, or a shorter one.
    Another,
    /// The object, from the byte that was asked for.
    Body(Reading),
}

/// The rest of an object, as it comes in.
pub(crate) struct Reading {
    uri: String,
    body: ByteStream,
    deadline: Instant,
    /// What names this content of the object.
    pub(crate) etag: Option<String>,
    /// Bytes of the whole object, where the storage says.
    pub(crate) total: Option<u64>,
}

impl Reading {
    /// The next piece.
    ///
    /// # Errors
    /// Transient when it breaks off, or comes too slowly.
    pub(crate) async fn next(&mut self) -> SyncResult<Option<Bytes>> {
        next_piece(&self.uri, &mut self.body, self.deadline).await
    }
}

impl S3Store {
    /// An object by its whole key from byte `from` on; with `etag` only the content that it names.
    ///
    /// # Errors
    /// When the storage is out of reach or refuses.
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
        // Not every storage knows conditions and ranges.
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
