//! An image's URL -> its bytes, within bounds on time, size and number.

mod buckets;
mod slots;
mod usual;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cloud_sync::blob::{BlobStore, TooLarge};
use cloud_sync::error::SyncResult;

use super::image_url::{Source, shown, source};
use super::object_keys;
use super::pausing::{self, Pause};
use super::retry::RetryPolicy;
use crate::config::FetchConfig;
use crate::fetch::{FetchError, Fetcher};
use crate::memory::{BodyMemory, Share};

pub use buckets::{Buckets, OwnBucket};
use slots::Slots;
use usual::Usual;

/// Loads the images of batches.
///
/// What is wrong with a URL fails its image. What is wrong with the appliance's own stores is waited for.
///
/// A load takes a slot first and then memory, and never waits for a slot with memory in hand: in another order two loads
/// could wait for each other.
pub struct Loader {
    fetcher: Fetcher,
    own: Arc<dyn BlobStore>,
    buckets: Buckets,
    limits: LoadLimits,
    slots: Slots,
    usual: Usual,
    retry: Arc<RetryPolicy>,
}

/// Bounds on loading.
#[derive(Clone, Debug)]
pub struct LoadLimits {
    /// Bytes of one image.
    pub max_bytes: usize,
    /// Memory for images, which requests share.
    pub memory: Arc<BodyMemory>,
    /// Images being loaded at once.
    pub concurrent_fetches: usize,
    /// Tries to load an image from somebody else's server.
    pub attempts: u32,
    /// Pause after the first try; it doubles, up to sixteen times as long.
    pub pause: Duration,
}

/// What a store's refusal may be about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Refusal {
    /// The store as a whole, whatever it says: the appliance has put the object there itself.
    OwnObject,
    /// The store or the object: somebody else has named it.
    Unknown,
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
    /// A loader. `own` holds the files of multipart batches, `buckets` what `s3://` URLs may name.
    pub fn new(
        fetch: FetchConfig,
        limits: LoadLimits,
        own: Arc<dyn BlobStore>,
        buckets: Buckets,
        retry: Arc<RetryPolicy>,
    ) -> Self {
        let loads = limits.concurrent_fetches.max(1);
        Self {
            fetcher: Fetcher::new(FetchConfig { max_concurrent: loads, ..fetch }, limits.max_bytes),
            own,
            buckets,
            slots: Slots::new(loads),
            usual: Usual::default(),
            limits,
            retry,
        }
    }

    /// The bytes of the image at `url`, of the batch `request_id`. They hold their share of the memory until their last clone is
    /// dropped.
    ///
    /// # Errors
    /// [`LoadFailure`] when it can't be had.
    pub async fn load(&self, request_id: &str, url: &str) -> Result<Bytes, LoadFailure> {
        if let Some(index) = url.strip_prefix("blob:") {
            let invalid = || invalid(format!("image_url: {:?} names no file of this batch", shown(url)));
            let index = index.parse::<u64>().map_err(|_| invalid())?;
            let key = object_keys::file_key(request_id, index).map_err(|_| invalid())?;
            let own = |bound| self.own.get(&key, bound);
            return self.stored(request_id, url, Refusal::OwnObject, own).await;
        }
        match source(url).map_err(|reason| invalid(format!("image_url: {reason}")))? {
            Source::Object { bucket, key } => {
                let store = self.buckets.store(bucket, key)?;
                let get = |bound| store.get_any(key, bound);
                self.stored(request_id, url, Refusal::Unknown, get).await
            }
            Source::Web => self.fetched(request_id, url).await,
        }
    }

    /// An object of a store that the appliance works with: what isn't the object's own fault is waited for.
    async fn stored<F>(
        &self,
        request_id: &str,
        url: &str,
        refusal: Refusal,
        get: impl Fn(u64) -> F + Send + Sync,
    ) -> Result<Bytes, LoadFailure>
    where
        F: Future<Output = SyncResult<Option<Bytes>>> + Send,
    {
        let mut backoff = self.retry.backoff();
        let (mut again, mut paused) = (false, None);
        loop {
            let slot = self.slots.acquire(request_id).await;
            let error = match self.get_once(&get).await {
                Ok(Some(loaded)) => {
                    drop(slot);
                    if let Some(paused) = paused {
                        Pause::end(paused).await;
                    }
                    return Ok(loaded);
                }
                Ok(None) => {
                    let error = format!("image_url: there is no object at {}", shown(url));
                    return Err(LoadFailure { code: "not_found", error });
                }
                Err(error) => error,
            };
            if TooLarge::of(&error).is_some() {
                let limit = self.limits.max_bytes;
                let error = format!("image_url: the object at {} is larger than {limit} bytes", shown(url));
                return Err(LoadFailure { code: "image_too_large", error });
            }
            if refusal == Refusal::Unknown && !error.is_transient() {
                match self.buckets.serve().await {
                    Ok(()) if again => {
                        let error = format!("image_url: {}", error.in_full());
                        return Err(LoadFailure { code: "fetch_failed", error });
                    }
                    // Keys may have been mended since the object was asked for.
                    Ok(()) => {
                        again = true;
                        continue;
                    }
                    Err(_) => again = false,
                }
            }
            drop(slot);
            // Until the store is back it is nothing but waiting.
            paused.get_or_insert_with(Pause::begin);
            self.retry.pause(&mut backoff, "loading an image", &error).await;
        }
    }

    /// Reads an object into room that is taken before: for as much as is usual, and where that is too little, for as
    /// much as the store says that it takes.
    async fn get_once<F>(&self, get: &(impl Fn(u64) -> F + Send + Sync)) -> SyncResult<Option<Bytes>>
    where
        F: Future<Output = SyncResult<Option<Bytes>>> + Send,
    {
        let most = self.limits.max_bytes;
        let mut bound = self.usual.bytes().min(most);
        loop {
            let room = self.limits.memory.reserve_for_batch(bound).await;
            let error = match get(bound as u64).await {
                Ok(Some(bytes)) => {
                    self.usual.note(bytes.len());
                    return Ok(Some(room.hold(bytes)));
                }
                Ok(None) => return Ok(None),
                Err(error) => error,
            };
            match TooLarge::of(&error).map(|large| usize::try_from(large.bytes).unwrap_or(usize::MAX)) {
                Some(bytes) if bound < most && bytes <= most => {
                    bound = bytes.max(bound.saturating_mul(2)).min(most);
                }
                _ => return Err(error),
            }
        }
    }

    /// An image of somebody else's server, tried a few times if that may help.
    async fn fetched(&self, request_id: &str, url: &str) -> Result<Bytes, LoadFailure> {
        let longest = self.limits.pause.saturating_mul(16);
        let mut backoff = cloud_sync::backoff::Backoff::new(self.limits.pause, longest);
        loop {
            let slot = self.slots.acquire(request_id).await;
            let mut outcome = self.fetch_once(url, self.limits.memory.share_for_batch()).await;
            if let Err(FetchError::NoRoom) = outcome {
                // Others hold the memory: it waits, with none in hand, for all that the image may need.
                let reserved = self.limits.memory.reserve_for_batch(self.limits.max_bytes).await;
                outcome = self.fetch_once(url, reserved).await;
            }
            drop(slot);
            match outcome {
                Ok(loaded) => return Ok(loaded),
                Err(error) if !error.is_transient() => return Err(error.into()),
                Err(error) => {
                    let wait = backoff.fail();
                    if backoff.failures() >= self.limits.attempts.max(1) {
                        let error = format!("{error} (tried {} times)", backoff.failures());
                        return Err(LoadFailure { code: "fetch_failed", error });
                    }
                    pausing::sleep(wait).await;
                }
            }
        }
    }

    async fn fetch_once(&self, url: &str, mut share: Share) -> Result<Bytes, FetchError> {
        let mut grow = |bytes: usize| share.grow_to(bytes).is_ok();
        let bytes = self.fetcher.fetch(url, Duration::MAX, &mut grow).await?;
        Ok(share.hold(bytes))
    }
}

fn invalid(error: String) -> LoadFailure {
    LoadFailure { code: "invalid_url", error }
}

#[cfg(test)]
mod tests;
