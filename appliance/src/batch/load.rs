//! Loading an image by its URL, within bounds on time, size and concurrency.

mod buckets;
mod slots;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use cloud_sync::blob::{BlobStore, TooLarge};
use cloud_sync::error::SyncResult;

use super::image_url::{Source, shown, source};
use super::object_keys;
use super::retry::{self, Pause, RetryPolicy};
use crate::config::FetchConfig;
use crate::fetch::{FetchError, Fetcher};
use crate::memory::{BodyMemory, Reservation};

pub use buckets::{Buckets, OwnBucket};
use slots::Slots;

/// Loads the images of batches.
///
/// An error of a URL fails its image. An error of the appliance's own stores is waited out.
///
/// A load takes a slot first and then memory, and never waits for a slot while it holds memory: in another order two
/// loads could deadlock.
pub struct Loader {
    fetcher: Fetcher,
    own: Arc<dyn BlobStore>,
    buckets: Buckets,
    limits: LoadLimits,
    slots: Slots,
    size_estimate: SizeEstimate,
    retry: Arc<RetryPolicy>,
}

/// Bounds on loading.
#[derive(Clone, Debug)]
pub struct LoadLimits {
    /// Bytes per image.
    pub max_bytes: usize,
    /// Memory for images, shared with requests.
    pub memory: Arc<BodyMemory>,
    /// Images loaded at once.
    pub concurrent_fetches: usize,
    /// Attempts to load an image from a web server.
    pub attempts: u32,
    /// Pause after the first attempt; it doubles, up to sixteen times as long.
    pub pause: Duration,
}

/// What a store's refusal of an object may be about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Refusal {
    /// Only the store as a whole, since the appliance itself has put the object there.
    OwnObject,
    /// The store or the object: a client has named it.
    ForeignObject,
}

/// Why an image can't be loaded, and never will be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadFailure {
    /// The reason, for programs.
    pub code: &'static str,
    /// The reason, for people.
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
            size_estimate: SizeEstimate::default(),
            limits,
            retry,
        }
    }

    /// The bytes of the image at `url`, of the batch `request_id`. They hold their share of the memory until their last clone is
    /// dropped.
    ///
    /// # Errors
    /// [`LoadFailure`] when it can't be loaded.
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
                self.stored(request_id, url, Refusal::ForeignObject, get).await
            }
            Source::Web => self.fetched(request_id, url).await,
        }
    }

    /// Loads an object of a store that the appliance works with: an error that is not the object's is waited out.
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
        let (mut is_retry, mut paused) = (false, None);
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
            if refusal == Refusal::ForeignObject && !error.is_transient() {
                match self.buckets.serve().await {
                    Ok(()) if is_retry => {
                        let error = format!("image_url: {}", error.in_full());
                        return Err(LoadFailure { code: "fetch_failed", error });
                    }
                    // Credentials may have been fixed since the object was requested.
                    Ok(()) => {
                        is_retry = true;
                        continue;
                    }
                    Err(_) => is_retry = false,
                }
            }
            drop(slot);
            // Until the store is back the load only waits.
            paused.get_or_insert_with(Pause::begin);
            self.retry.pause(&mut backoff, "loading an image", &error).await;
        }
    }

    /// Reads an object into memory that is reserved before: the estimated size of an image, and where that is too
    /// little, the size that the store reports.
    async fn get_once<F>(&self, get: &(impl Fn(u64) -> F + Send + Sync)) -> SyncResult<Option<Bytes>>
    where
        F: Future<Output = SyncResult<Option<Bytes>>> + Send,
    {
        let max = self.limits.max_bytes;
        let mut bound = self.size_estimate.bytes().min(max);
        loop {
            let reserved = self.limits.memory.reserve_for_batch(bound).await;
            let error = match get(bound as u64).await {
                Ok(Some(bytes)) => {
                    self.size_estimate.record(bytes.len());
                    return Ok(Some(reserved.hold(bytes)));
                }
                Ok(None) => return Ok(None),
                Err(error) => error,
            };
            match TooLarge::of(&error).map(|large| usize::try_from(large.bytes).unwrap_or(usize::MAX)) {
                Some(bytes) if bound < max && bytes <= max => {
                    bound = bytes.max(bound.saturating_mul(2)).min(max);
                }
                _ => return Err(error),
            }
        }
    }

    /// Loads an image from a web server, with a bounded number of attempts where the error is transient.
    async fn fetched(&self, request_id: &str, url: &str) -> Result<Bytes, LoadFailure> {
        let longest = self.limits.pause.saturating_mul(16);
        let mut backoff = cloud_sync::backoff::Backoff::new(self.limits.pause, longest);
        loop {
            let slot = self.slots.acquire(request_id).await;
            let mut outcome = self.fetch_once(url, self.limits.memory.share_for_batch()).await;
            if let Err(FetchError::NoRoom) = outcome {
                // Others hold the memory: wait, holding none, for as much as the image may need.
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
                    retry::sleep(wait).await;
                }
            }
        }
    }

    async fn fetch_once(&self, url: &str, mut share: Reservation) -> Result<Bytes, FetchError> {
        let mut grow = |bytes: usize| share.grow_to(bytes).is_ok();
        let bytes = self.fetcher.fetch(url, Duration::MAX, &mut grow).await?;
        Ok(share.hold(bytes))
    }
}

fn invalid(error: String) -> LoadFailure {
    LoadFailure { code: "invalid_url", error }
}

/// Bytes assumed before any image was loaded.
const FIRST_ESTIMATE: usize = 1 << 20;
/// Smallest estimate.
const MIN_ESTIMATE: usize = 64 << 10;

/// Estimates the size of an image, before its length is known, from the largest of the images loaded lately.
#[derive(Debug)]
struct SizeEstimate(AtomicUsize);

impl Default for SizeEstimate {
    fn default() -> Self {
        Self(AtomicUsize::new(FIRST_ESTIMATE))
    }
}

impl SizeEstimate {
    /// Bytes that are enough for most images.
    fn bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Records the size of an image. A large one counts at once and decays slowly: too low an estimate costs another
    /// request, too high a one only memory for a while.
    fn record(&self, bytes: usize) {
        let with_margin = bytes.saturating_add(bytes / 4).max(MIN_ESTIMATE);
        let follow = |estimate: usize| Some(with_margin.max(estimate - estimate / 64));
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, follow);
    }
}

#[cfg(test)]
mod tests;
