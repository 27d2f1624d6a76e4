//! Uploads to S3: small objects in one request, large ones in parts.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_s3::config::Builder;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::error::ProvideErrorMetadata;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};

use tokio::runtime::Handle;

use super::S3Store;
use super::download::time_for;
use super::failure::{Failure, classify};
use crate::blob::open_source;
use crate::error::{Link, SyncError};

/// Larger objects are uploaded in parts.
const SINGLE: u64 = 16 << 20;

/// Minimum bytes of a part.
const MIN_PART_BYTES: u64 = 8 << 20;

/// Maximum number of parts of an object, S3's own limit.
const MAX_PARTS: u64 = 10_000;

/// Concurrent parts: three saturate a link that one leaves partly idle, and they bound the memory.
const MAX_CONCURRENT_PARTS: usize = 3;

/// Waits before the attempts to abort a failed upload.
const ABORT_WAITS: [Duration; 3] = [Duration::ZERO, Duration::from_secs(1), Duration::from_secs(5)];

/// Content of an object.
pub(super) enum Source {
    Memory(Bytes),
    File(Arc<File>, u64),
}

impl Source {
    /// The current content of a file.
    pub(super) async fn open(path: &Path) -> Result<Self, SyncError> {
        let (file, length) = open_source(path).await?;
        Ok(Self::File(Arc::new(file), length))
    }

    fn length(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::File(_, length) => *length,
        }
    }

    /// `length` bytes from `from` on.
    async fn part(&self, from: u64, length: u64) -> Result<Bytes, SyncError> {
        let failed = || SyncError::permanent(Link::Disk, "cannot read a part of the file to be uploaded");
        // Parts are within the content, which is in memory or of which only one part is.
        let (Ok(begin), Ok(size)) = (usize::try_from(from), usize::try_from(length)) else {
            return Err(failed().because("it is too large for this machine"));
        };
        match self {
            Self::Memory(bytes) => Ok(bytes.slice(begin..begin + size)),
            Self::File(file, _) => {
                let file = Arc::clone(file);
                let read = tokio::task::spawn_blocking(move || {
                    let mut part = vec![0; size];
                    file.read_exact_at(&mut part, from).map(|()| Bytes::from(part))
                });
                let read = read.await.map_err(|lost| failed().because(lost))?;
                read.map_err(|error| failed().because(error))
            }
        }
    }
}

/// An object being uploaded.
pub(super) struct Upload<'a> {
    pub(super) store: &'a S3Store,
    pub(super) key: &'a str,
    pub(super) content_type: &'a str,
}

impl Upload<'_> {
    pub(super) async fn send(&self, source: Source) -> Result<(), Failure> {
        let length = source.length();
        if length > SINGLE {
            return self.in_parts(&source, length).await;
        }
        let body = source.part(0, length).await?;
        let put = self.store.client.put_object().bucket(&self.store.bucket).key(self.key);
        let put = put.content_type(self.content_type).body(ByteStream::from(body));
        let sent = match self.timeout(length) {
            Some(config) => put.customize().config_override(config).send().await,
            None => put.send().await,
        };
        sent.map(drop).map_err(|error| classify(self.failed(), error))
    }

    async fn in_parts(&self, source: &Source, length: u64) -> Result<(), Failure> {
        let S3Store { client, bucket, .. } = self.store;
        let mut begun = self.begin().await?;
        let id = begun.id.clone().unwrap_or_default();
        let size = MIN_PART_BYTES.max(length.div_ceil(MAX_PARTS));
        let parts: Result<Vec<CompletedPart>, Failure> = stream::iter(0..length.div_ceil(size))
            .map(|n| self.part(source, &id, n, n * size, size.min(length - n * size)))
            .buffered(MAX_CONCURRENT_PARTS)
            .try_collect()
            .await;
        let done = match parts {
            Ok(parts) => {
                let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
                let complete = client.complete_multipart_upload().bucket(bucket).key(self.key);
                let complete = complete.upload_id(&id).multipart_upload(parts).customize();
                // The storage assembles the parts before it responds.
                let complete = complete.config_override(self.timeout(length).unwrap_or_default());
                complete.send().await.map(drop).map_err(|error| classify(self.failed(), error))
            }
            Err(error) => Err(error),
        };
        if done.is_ok() {
            begun.id = None;
        }
        done
    }

    /// Starts a multipart upload. The call completes even when the caller is cancelled: only the holder of the id can
    /// abort the upload.
    async fn begin(&self) -> Result<MultipartUpload, Failure> {
        let (store, key, failed) = (self.store.clone(), self.key.to_owned(), self.failed());
        let begin = self.store.client.create_multipart_upload().bucket(&self.store.bucket).key(self.key);
        let begin = begin.content_type(self.content_type);
        let task = tokio::spawn(async move {
            let begun = begin.send().await.map_err(|error| classify(failed.clone(), error))?;
            match begun.upload_id {
                Some(id) => Ok(MultipartUpload { store, key, id: Some(id) }),
                None => {
                    let what = format!("{failed}: the storage started an upload without an id");
                    Err(SyncError::permanent(Link::S3, what).into())
                }
            }
        });
        task.await
            .unwrap_or_else(|lost| Err(SyncError::transient(Link::S3, self.failed()).because(lost).into()))
    }

    async fn part(
        &self,
        source: &Source,
        id: &str,
        n: u64,
        from: u64,
        length: u64,
    ) -> Result<CompletedPart, Failure> {
        let body = source.part(from, length).await?;
        // S3 counts from 1; there are at most 10,000.
        let number = i32::try_from(n + 1).unwrap_or(i32::MAX);
        let part = self.store.client.upload_part().bucket(&self.store.bucket).key(self.key);
        let part = part.upload_id(id).part_number(number).body(ByteStream::from(body)).customize();
        let part = part.config_override(self.timeout(length).unwrap_or_default()).send().await;
        let part = part.map_err(|error| classify(format!("{} (part {number})", self.failed()), error))?;
        Ok(CompletedPart::builder().part_number(number).set_e_tag(part.e_tag).build())
    }

    /// Additional time for a body of this size; none if the default timeout suffices.
    fn timeout(&self, bytes: u64) -> Option<Builder> {
        const DEFAULT_BYTES: u64 = 256 << 10;
        (bytes > DEFAULT_BYTES).then(|| {
            let timeouts = TimeoutConfig::builder()
                .connect_timeout(self.store.connect_timeout)
                .operation_attempt_timeout(self.store.attempt_timeout + time_for(bytes));
            Builder::new().timeout_config(timeouts.build())
        })
    }

    fn failed(&self) -> String {
        format!("cannot put s3://{}/{}", self.store.bucket, self.key)
    }
}

/// A multipart upload in progress: the storage stores (and bills) its parts until it is completed or aborted.
struct MultipartUpload {
    store: S3Store,
    key: String,
    id: Option<String>,
}

impl MultipartUpload {
    /// Aborts the upload. If that fails the parts are left to the bucket's lifecycle rule.
    async fn abort(store: &S3Store, key: &str, id: &str) {
        // As S3 advises: a part in flight may arrive after the abort, so abort again.
        for pause in ABORT_WAITS {
            tokio::time::sleep(pause).await;
            let abort = store.client.abort_multipart_upload().bucket(&store.bucket).key(key).upload_id(id);
            let Err(error) = abort.send().await else { continue };
            if error.as_service_error().and_then(ProvideErrorMetadata::code) == Some("NoSuchUpload") {
                return;
            }
            let what = format!("cannot abort the upload of s3://{}/{key}", store.bucket);
            let error = classify(what, error).error;
            tracing::warn!(
                error = error.in_full(),
                "cannot abort an upload; parts may remain in the storage"
            );
        }
    }
}

impl Drop for MultipartUpload {
    /// It has failed, or its caller was cancelled.
    fn drop(&mut self) {
        if let (Some(id), Ok(runtime)) = (self.id.take(), Handle::try_current()) {
            let (store, key) = (self.store.clone(), std::mem::take(&mut self.key));
            runtime.spawn(async move { Self::abort(&store, &key, &id).await });
        }
    }
}
