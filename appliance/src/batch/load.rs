//! An image's URL -> its bytes, within bounds on time, size and number.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cloud_sync::blob::{BlobStore, TooLarge};
use cloud_sync::error::SyncResult;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::layout;
use super::patience::Patience;
use crate::config::FetchConfig;
use crate::fetch::{FetchError, Fetcher};

/// Memory is counted in pieces of so many bytes: a semaphore's permits are too few to count bytes.
const PIECE: usize = 1 << 10;

/// Loads the images of batches.
///
/// What is wrong with a URL fails its image. What is wrong with the appliance's own stores is waited for.
pub struct Loader {
    fetcher: Fetcher,
    own: Arc<dyn BlobStore>,
    buckets: BTreeMap<String, Arc<dyn BlobStore>>,
    limits: LoadLimits,
    slots: Semaphore,
    room: Arc<Semaphore>,
    patience: Arc<Patience>,
}

/// Bounds on loading.
#[derive(Clone, Debug)]
pub struct LoadLimits {
    /// Bytes of one image.
    pub max_bytes: usize,
    /// Bytes of all images that are held at once, waiting for a lane.
    pub max_inflight: u64,
    /// Images being loaded at once.
    pub loads: usize,
    /// Tries to load an image from somebody else's server.
    pub attempts: u32,
    /// Pause after the first try; it doubles, up to sixteen times as long.
    pub pause: Duration,
}

/// An image in memory, with its share of the memory that there is for images.
#[derive(Debug)]
pub struct Loaded {
    /// The encoded image.
    pub bytes: Bytes,
    _room: OwnedSemaphorePermit,
}

/// Why an image can't be loaded, and never will be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadFailure {
    /// The reason for programs.
    pub code: &'static str,
    /// The reason for people.
    pub error: String,
}

impl From<FetchError> for LoadFailure {
    fn from(error: FetchError) -> Self {
        Self { code: error.code(), error: error.to_string() }
    }
}

impl Loader {
    /// A loader. `own` holds the files of multipart batches. `buckets` are those that an `s3://` URL may name, each
    /// as a store without a prefix, for such a URL has the whole key.
    pub fn new(
        fetch: FetchConfig,
        limits: LoadLimits,
        own: Arc<dyn BlobStore>,
        buckets: BTreeMap<String, Arc<dyn BlobStore>>,
        patience: Arc<Patience>,
    ) -> Self {
        let loads = limits.loads.max(1);
        // An image must fit, or it would wait for room for ever.
        let room = usize::try_from(limits.max_inflight).unwrap_or(usize::MAX).max(limits.max_bytes);
        Self {
            fetcher: Fetcher::new(FetchConfig { max_concurrent: loads, ..fetch }, limits.max_bytes),
            own,
            buckets,
            slots: Semaphore::new(loads),
            room: Arc::new(Semaphore::new(pieces(room) as usize)),
            limits,
            patience,
        }
    }

    /// The bytes of the image at `url`, of the batch `request_id`.
    ///
    /// # Errors
    /// [`LoadFailure`] when it can't be had.
    pub async fn load(&self, request_id: &str, url: &str) -> Result<Loaded, LoadFailure> {
        if let Some(index) = url.strip_prefix("blob:") {
            let invalid = || invalid(format!("image_url: {url:?} names no file of this batch"));
            let index = index.parse::<u64>().map_err(|_| invalid())?;
            let key = layout::file_key(request_id, index).map_err(|_| invalid())?;
            let own = self.own.as_ref();
            return self.stored(url, || own.get(&key, self.limits.max_bytes as u64)).await;
        }
        match url.strip_prefix("s3://") {
            Some(path) => {
                let (store, key) = self.object(path)?;
                self.stored(url, || store.get_any(key, self.limits.max_bytes as u64)).await
            }
            None => self.fetched(url).await,
        }
    }

    fn object<'a>(&self, path: &'a str) -> Result<(&dyn BlobStore, &'a str), LoadFailure> {
        let Some((bucket, key)) = path.split_once('/') else {
            return Err(invalid("image_url: it must be s3://bucket/key".into()));
        };
        let Some(store) = self.buckets.get(bucket) else {
            let error = format!(
                "image_url: bucket {bucket:?} is not one that images may come from; an operator can allow it in \
                 s3.allow_buckets"
            );
            return Err(LoadFailure { code: "url_refused", error });
        };
        // A server may take such parts for steps out of the bucket.
        if key.is_empty() || key.split('/').any(|part| matches!(part, "." | "..")) {
            return Err(invalid(
                "image_url: it must be s3://bucket/key, with no part that is . or ..".into(),
            ));
        }
        Ok((store.as_ref(), key))
    }

    /// An object of a store that the appliance works with: while the store is away the image waits.
    async fn stored<F>(&self, url: &str, get: impl Fn() -> F + Send) -> Result<Loaded, LoadFailure>
    where
        F: Future<Output = SyncResult<Option<Bytes>>> + Send,
    {
        let _slot = self.slots.acquire().await;
        match self.patience.outlast("loading an image", get).await {
            Ok(Some(bytes)) => {
                let room = self.reserve(bytes.len()).await?;
                Ok(Loaded { bytes, _room: room })
            }
            Ok(None) => Err(LoadFailure {
                code: "not_found",
                error: format!("image_url: there is no object at {url}"),
            }),
            Err(refused) => {
                let code = if TooLarge::of(&refused).is_some() { "image_too_large" } else { "fetch_failed" };
                Err(LoadFailure { code, error: format!("image_url: {}", refused.in_full()) })
            }
        }
    }

    /// An image of somebody else's server, tried a few times if that may help.
    async fn fetched(&self, url: &str) -> Result<Loaded, LoadFailure> {
        let longest = self.limits.pause.saturating_mul(16);
        let mut backoff = cloud_sync::backoff::Backoff::new(self.limits.pause, longest);
        let mut reserved = None;
        loop {
            let slot = self.slots.acquire().await;
            let outcome = self.fetch_once(url, reserved.take()).await;
            drop(slot);
            match outcome {
                Ok(loaded) => return Ok(loaded),
                // Others hold the memory: it waits, with nothing in hand, for all that the image may need.
                Err(FetchError::NoRoom) => reserved = Some(self.reserve(self.limits.max_bytes).await?),
                Err(error) if !error.is_transient() => return Err(error.into()),
                Err(error) => {
                    let wait = backoff.fail();
                    if backoff.failures() >= self.limits.attempts.max(1) {
                        let error = format!("{error} (tried {} times)", backoff.failures());
                        return Err(LoadFailure { code: "fetch_failed", error });
                    }
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }

    async fn fetch_once(
        &self,
        url: &str,
        reserved: Option<OwnedSemaphorePermit>,
    ) -> Result<Loaded, FetchError> {
        let mut held = reserved;
        let mut grow = |bytes: usize| {
            let have = held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
            let more = pieces(bytes).saturating_sub(u32::try_from(have).unwrap_or(u32::MAX));
            if more == 0 {
                return true;
            }
            let Ok(more) = Arc::clone(&self.room).try_acquire_many_owned(more) else { return false };
            match &mut held {
                Some(held) => held.merge(more),
                none => *none = Some(more),
            }
            true
        };
        let bytes = self.fetcher.fetch(url, Duration::MAX, &mut grow).await?;
        let mut room = match held {
            Some(room) => room,
            // An empty body asks for no memory.
            None => Arc::clone(&self.room).try_acquire_many_owned(0).map_err(|_| FetchError::NoRoom)?,
        };
        let extra = room.num_permits().saturating_sub(pieces(bytes.len()) as usize);
        drop(room.split(extra));
        Ok(Loaded { bytes, _room: room })
    }

    async fn reserve(&self, bytes: usize) -> Result<OwnedSemaphorePermit, LoadFailure> {
        let room = Arc::clone(&self.room).acquire_many_owned(pieces(bytes)).await;
        // Nobody closes the semaphore.
        room.map_err(|e| LoadFailure { code: "overloaded", error: e.to_string() })
    }
}

fn invalid(error: String) -> LoadFailure {
    LoadFailure { code: "invalid_url", error }
}

fn pieces(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(PIECE)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
