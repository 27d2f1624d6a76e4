//! Objects in S3, or in any storage with the same protocol.

mod download;
mod failure;
mod settings;
mod upload;

use std::error::Error;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::primitives::DateTime;
use bytes::Bytes;
use tokio::time::Instant;

use download::{Download, time_for};
pub(crate) use download::{Found, Reading};
use failure::{Failure, classify, is_missing};
pub use settings::S3Config;
use upload::{Source, Upload};

use super::{BlobInfo, BlobKey, BlobPage, BlobStore};
use crate::check::{CheckStep, Steps};
use crate::error::{Link, SyncError, SyncResult};
use crate::health::LinkHealth;

/// Maximum length of a key in S3.
const MAX_S3_KEY: usize = 1024;

/// A bucket, or the objects under a prefix of it. Clones are the same store with the same connections.
#[derive(Clone)]
pub struct S3Store {
    client: Client,
    bucket: String,
    /// Empty, or ending with a slash.
    prefix: String,
    connect_timeout: Duration,
    attempt_timeout: Duration,
    health: LinkHealth,
    /// Whether others decide which objects are read, so that a refusal or a missing object says nothing about the
    /// link.
    for_others: bool,
}

impl fmt::Debug for S3Store {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "S3Store(s3://{}/{})", self.bucket, self.prefix)
    }
}

impl S3Store {
    /// A store that is not connected yet. Its calls update `health`.
    ///
    /// # Errors
    /// When a setting is invalid, or a configured file cannot be read.
    pub async fn open(config: S3Config, health: LinkHealth) -> SyncResult<Self> {
        bucket_name(&config.bucket)?;
        let prefix = config.key_prefix()?;
        let client = config.client().await?;
        let S3Config { bucket, connect_timeout, attempt_timeout, .. } = config;
        Ok(Self { client, bucket, prefix, connect_timeout, attempt_timeout, health, for_others: false })
    }

    /// The prefix of all keys: empty, or ending with a slash.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// A bucket of the same storage, with the same connections and without a prefix, for objects of other producers.
    /// Refusals there do not affect the link's health, and nothing is written.
    ///
    /// # Errors
    /// When the name of the bucket is invalid.
    pub fn bucket(&self, name: &str) -> SyncResult<Self> {
        bucket_name(name)?;
        Ok(Self { bucket: name.to_owned(), prefix: String::new(), for_others: true, ..self.clone() })
    }

    /// Reads an object by its whole key, which may contain any characters that S3 allows: the prefix of this store is
    /// not prepended. `None` when there is none.
    ///
    /// # Errors
    /// As for [`BlobStore::get`], and when S3 has no such keys.
    pub async fn get_any(&self, key: &str, max_bytes: u64) -> SyncResult<Option<Bytes>> {
        if key.is_empty() || key.len() > MAX_S3_KEY {
            let what = format!("a key has 1 to {MAX_S3_KEY} bytes, not {}", key.len());
            return Err(SyncError::permanent(Link::S3, what));
        }
        let result = self.read(key, max_bytes).await;
        self.note(result)
    }

    /// Checks what a user of the store needs: puts an object, reads it, removes it.
    pub async fn check(&self) -> Vec<CheckStep> {
        let mut steps = Steps::default();
        super::probe(self, Link::S3, &mut steps).await;
        steps.finish()
    }

    /// Checks what reading from another bucket needs: lists it, and starts to read the first object. Writes nothing.
    pub async fn check_reading(&self) -> Vec<CheckStep> {
        let mut steps = Steps::default();
        let listed = self.list("", None).await;
        let of_page = |page: &BlobPage| match page.objects.len() {
            0 => "it is empty".to_owned(),
            _ => "it has objects".to_owned(),
        };
        let Some(page) = steps.note("list it", listed, of_page) else { return steps.finish() };
        if let Some(first) = page.objects.first() {
            let key = self.prefix.clone() + &first.key;
            let uri = self.uri_of(&key);
            // The body is not read: it may be large.
            let got = self.begin(&key, &uri).await.map(|_| ());
            steps.note("get an object", self.note(got), |()| uri.clone());
        }
        steps.finish()
    }

    async fn read(&self, key: &str, max_bytes: u64) -> Result<Option<Bytes>, Failure> {
        let uri = self.uri_of(key);
        let mut retried = false;
        loop {
            let Some(download) = self.begin(key, &uri).await? else { return Ok(None) };
            match download.whole(max_bytes).await {
                // The client itself retries until the response begins, not when it breaks off.
                Err(error) if error.is_transient() && !retried => retried = true,
                done => return Ok(Some(done?)),
            }
        }
    }

    /// Requests an object; the body is not read yet.
    async fn begin<'a>(&self, key: &str, uri: &'a str) -> Result<Option<Download<'a>>, Failure> {
        match self.client.get_object().bucket(&self.bucket).key(key).send().await {
            Ok(found) => {
                let length = found.content_length.and_then(|length| u64::try_from(length).ok());
                let deadline = Instant::now() + self.attempt_timeout + time_for(length.unwrap_or(1 << 30));
                Ok(Some(Download { uri, body: found.body, length, deadline }))
            }
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(classify(format!("cannot get {uri}"), error)),
        }
    }

    async fn write(&self, key: &BlobKey, source: Source, content_type: &str) -> SyncResult<()> {
        let key = self.full(key);
        let result = Upload { store: self, key: &key, content_type }.send(source).await;
        self.note(result)
    }

    fn full(&self, key: &BlobKey) -> String {
        format!("{}{key}", self.prefix)
    }

    fn uri_of(&self, key: &str) -> String {
        format!("s3://{}/{key}", self.bucket)
    }

    fn note<T>(&self, result: Result<T, Failure>) -> SyncResult<T> {
        if self.for_others {
            return self.note_for_others(result.map_err(|failure| failure.error));
        }
        self.health.note(result.map_err(|Failure { error, of_the_link }| {
            // Refused keys are permanent, and still a failure of the link.
            if of_the_link && !error.is_transient() && self.health.failed(&error) {
                tracing::warn!(link = "s3", error = error.in_full(), "the link is down");
            }
            error
        }))
    }

    fn note_for_others<T>(&self, result: SyncResult<T>) -> SyncResult<T> {
        let seen = match &result {
            Ok(_) => Ok(()),
            Err(error) if error.is_transient() => {
                let seen = SyncError::transient(Link::S3, format!("cannot read from s3://{}", self.bucket));
                Err(match error.source() {
                    Some(source) => seen.because(source.to_string()),
                    None => seen,
                })
            }
            Err(_) => return result,
        };
        // Only the effect on the health is wanted.
        let _ = self.health.note(seen);
        result
    }
}

#[async_trait]
impl BlobStore for S3Store {
    async fn put(&self, key: &BlobKey, bytes: Bytes, content_type: &str) -> SyncResult<()> {
        self.write(key, Source::Memory(bytes), content_type).await
    }

    async fn put_file(&self, key: &BlobKey, file: &Path, content_type: &str) -> SyncResult<()> {
        self.write(key, Source::open(file).await?, content_type).await
    }

    async fn get(&self, key: &BlobKey, max_bytes: u64) -> SyncResult<Option<Bytes>> {
        self.get_any(&self.full(key), max_bytes).await
    }

    async fn get_any(&self, key: &str, max_bytes: u64) -> SyncResult<Option<Bytes>> {
        Self::get_any(self, key, max_bytes).await
    }

    async fn get_file(&self, key: &BlobKey, file: &Path) -> SyncResult<Option<u64>> {
        let key = self.full(key);
        let uri = self.uri_of(&key);
        let result = match self.begin(&key, &uri).await {
            Ok(Some(download)) => download.into_file(file).await.map(Some).map_err(Failure::from),
            Ok(None) => Ok(None),
            Err(error) => Err(error),
        };
        // A file that cannot be written says nothing about the storage.
        if let Err(Failure { error, .. }) = &result
            && error.link() == Link::Disk
        {
            return result.map_err(|failure| failure.error);
        }
        self.note(result)
    }

    async fn head(&self, key: &BlobKey) -> SyncResult<Option<BlobInfo>> {
        let full = self.full(key);
        let result = match self.client.head_object().bucket(&self.bucket).key(&full).send().await {
            Ok(found) => Ok(Some(BlobInfo {
                key: key.as_str().to_owned(),
                bytes: found.content_length.and_then(|length| u64::try_from(length).ok()).unwrap_or(0),
                modified: found.last_modified.and_then(system_time),
            })),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(classify(format!("cannot query {}", self.uri_of(&full)), error)),
        };
        self.note(result)
    }

    async fn list(&self, prefix: &str, next: Option<&str>) -> SyncResult<BlobPage> {
        let begin = format!("{}{prefix}", self.prefix);
        let list = self.client.list_objects_v2().bucket(&self.bucket).prefix(&begin).max_keys(1000);
        let list = list.set_start_after(next.map(|next| format!("{}{next}", self.prefix)));
        let result = list
            .send()
            .await
            .map_err(|error| classify(format!("cannot list {}", self.uri_of(&begin)), error));
        let found = self.note(result)?;
        let more = found.is_truncated.unwrap_or(false);
        let mut last = None;
        let mut objects = Vec::new();
        for object in found.contents.unwrap_or_default() {
            let Some(key) = object.key.as_deref().and_then(|key| key.strip_prefix(&self.prefix)) else {
                continue;
            };
            last = Some(key.to_owned());
            // An object that consoles create to show an empty folder.
            if !key.is_empty() && !key.ends_with('/') {
                let bytes = object.size.and_then(|size| u64::try_from(size).ok()).unwrap_or(0);
                let modified = object.last_modified.and_then(system_time);
                objects.push(BlobInfo { key: key.to_owned(), bytes, modified });
            }
        }
        // The last key, not the storage's own token: a page remains valid at any later time.
        Ok(BlobPage { objects, next: last.filter(|_| more) })
    }

    async fn delete(&self, key: &BlobKey) -> SyncResult<()> {
        let key = self.full(key);
        let result = match self.client.delete_object().bucket(&self.bucket).key(&key).send().await {
            Ok(_) => Ok(()),
            Err(error) if is_missing(&error) => Ok(()),
            Err(error) => Err(classify(format!("cannot remove {}", self.uri_of(&key)), error)),
        };
        self.note(result)
    }

    fn uri(&self, key: &BlobKey) -> String {
        self.uri_of(&self.full(key))
    }
}

/// # Errors
/// When the name of the bucket is invalid (Amazon's rules for buckets; the name is part of a path or a host).
fn bucket_name(name: &str) -> SyncResult<()> {
    let bytes = name.as_bytes();
    let edge = |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-');
    let good = (3..=63).contains(&bytes.len())
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(inner)
        && !name.contains("..");
    if good {
        return Ok(());
    }
    let name: String = name.chars().take(100).collect();
    let what = format!(
        "{name:?} is not a valid bucket name: it has 3 to 63 lower-case letters, digits, dots and hyphens"
    );
    Err(SyncError::permanent(Link::S3, what))
}

fn system_time(time: DateTime) -> Option<std::time::SystemTime> {
    std::time::SystemTime::try_from(time).ok()
}
