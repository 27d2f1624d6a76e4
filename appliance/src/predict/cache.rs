//! The content cache and single flight. The cache is local to the process, and in front of a cache that several processes share,
//! where one is configured.
//!
//! The shared cache is the only remote service on the path of a request. It has a timeout of a few milliseconds; after a
//! failure it is not used for a second, and values are stored in it after the answer.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cloud_sync::cache::{CacheStats, ContentCache, EmbeddedCache};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout_at;

use super::PredictService;
use crate::serving::{ClassificationError, Computed, LoadedModel, Outcome, OutcomeCache, Run};
use crate::telemetry::CacheOutcome;

/// How long the shared cache is not used after an error or a timeout.
const PAUSE: Duration = Duration::from_secs(1);
/// Concurrent writes to the shared cache; more are dropped.
const MAX_CONCURRENT_PUTS: usize = 64;

/// The content cache.
pub struct PredictionCache {
    local: EmbeddedCache,
    shared: Option<Shared>,
}

struct Shared {
    store: Arc<dyn ContentCache>,
    timeout: Duration,
    began: Instant,
    /// End of the pause, in milliseconds since `began`.
    paused_until_ms: AtomicU64,
    puts: Arc<Semaphore>,
}

impl PredictionCache {
    /// A cache in this process only.
    pub fn local(local: EmbeddedCache) -> Self {
        Self { local, shared: None }
    }

    /// A cache in this process in front of a shared one, which has to answer within `timeout`.
    pub fn shared(local: EmbeddedCache, store: Arc<dyn ContentCache>, timeout: Duration) -> Self {
        let puts = Arc::new(Semaphore::new(MAX_CONCURRENT_PUTS));
        let shared =
            Shared { store, timeout, began: Instant::now(), paused_until_ms: AtomicU64::new(0), puts };
        Self { local, shared: Some(shared) }
    }

    /// The value in the local cache.
    pub fn get_local(&self, key: &[u8; 32]) -> Option<Bytes> {
        self.local.get(key)
    }

    /// The value in the shared cache, which is then kept locally for `ttl`.
    pub async fn get_shared(&self, key: &[u8; 32], ttl: Duration) -> Option<Bytes> {
        let shared = self.shared.as_ref().filter(|shared| !shared.is_paused())?;
        match tokio::time::timeout(shared.timeout, shared.store.get(key)).await {
            Ok(Ok(found)) => {
                let value = found?;
                self.local.put(key, value.clone(), ttl);
                Some(value)
            }
            Ok(Err(_)) | Err(_) => {
                shared.pause();
                None
            }
        }
    }

    /// Stores a value locally, and in the shared cache in the background.
    pub fn put(&self, key: &[u8; 32], value: Bytes, ttl: Duration) {
        self.local.put(key, value.clone(), ttl);
        let Some(shared) = self.shared.as_ref().filter(|shared| !shared.is_paused()) else { return };
        let Ok(permit) = Arc::clone(&shared.puts).try_acquire_owned() else { return };
        let (store, key) = (Arc::clone(&shared.store), *key);
        tokio::spawn(async move {
            // A value that is not stored is computed again by another process; the store's health shows the failure.
            let _ = store.put(&key, value, ttl).await;
            drop(permit);
        });
    }

    /// Statistics of the local cache.
    pub fn stats(&self) -> CacheStats {
        self.local.stats()
    }
}

impl Shared {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn is_paused(&self) -> bool {
        self.now_ms() < self.paused_until_ms.load(Ordering::Relaxed)
    }

    fn pause(&self) {
        let pause = u64::try_from(PAUSE.as_millis()).unwrap_or(u64::MAX);
        self.paused_until_ms.store(self.now_ms().saturating_add(pause), Ordering::Relaxed);
    }
}

type Key = [u8; 32];
/// The shared result: an outcome, or an error that every request with the same image would run into.
type SharedResult = Result<Arc<Outcome>, Arc<ClassificationError>>;
type Table = Mutex<HashMap<Key, watch::Receiver<Option<SharedResult>>>>;

/// Single flight: of concurrent requests with the same image, one computes it and the others wait for its result. These are the
/// images that are being computed.
#[derive(Default)]
pub struct SingleFlight {
    table: Arc<Table>,
}

enum Role {
    /// Computes. If the leader is dropped without a result, the followers wake up and one of them leads.
    Leader(Leader),
    /// Waits for the leader.
    Follower(Follower),
}

struct Leader {
    table: Arc<Table>,
    key: Key,
    sender: watch::Sender<Option<SharedResult>>,
}

struct Follower(watch::Receiver<Option<SharedResult>>);

impl SingleFlight {
    fn join(&self, key: &Key) -> Role {
        let mut table = self.table.lock();
        if let Some(receiver) = table.get(key) {
            return Role::Follower(Follower(receiver.clone()));
        }
        let (sender, receiver) = watch::channel(None);
        table.insert(*key, receiver);
        Role::Leader(Leader { table: Arc::clone(&self.table), key: *key, sender })
    }
}

impl Leader {
    fn complete(self, result: SharedResult) {
        self.sender.send_replace(Some(result));
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        // Before the sender is dropped: a follower that its end wakes up must not find this entry again.
        self.table.lock().remove(&self.key);
    }
}

impl Follower {
    /// The leader's result, or `None` if the leader was dropped without one.
    async fn result(mut self) -> Option<SharedResult> {
        match self.0.wait_for(Option::is_some).await {
            Ok(result) => result.clone(),
            Err(_) => None,
        }
    }
}

/// Cache and single flight for one request's image. The key contains the version.
pub(super) struct RequestCache<'a> {
    pub(super) service: &'a PredictService,
    pub(super) digest: &'a blake3::Hash,
}

impl RequestCache<'_> {
    fn cached(&self, model: &LoadedModel, key: &[u8; 32]) -> Option<Computed> {
        self.hit(model, &self.service.cache.get_local(key)?)
    }

    fn hit(&self, model: &LoadedModel, value: &[u8]) -> Option<Computed> {
        let outcome: Outcome = serde_json::from_slice(value).ok()?;
        // A value that another process has written is checked.
        if outcome.scores.len() != model.model.labels.len() {
            return None;
        }
        self.service.metrics.cache(CacheOutcome::Hit);
        Some(Computed { outcome: Arc::new(outcome), timing: None })
    }
}

impl OutcomeCache for RequestCache<'_> {
    async fn get_or_compute(&self, run: Run<'_>) -> Result<Computed, ClassificationError> {
        let service = self.service;
        let Some(ttl) = service.settings.cache_ttl else { return run.compute().await };
        let model = run.model;
        let key = &model.model.cache_key(self.digest);
        loop {
            if let Some(hit) = self.cached(model, key) {
                return Ok(hit);
            }
            match service.flights.join(key) {
                Role::Leader(leader) => {
                    // Another leader may have completed between the lookup above and the join.
                    if let Some(hit) = self.cached(model, key) {
                        return Ok(hit);
                    }
                    if let Some(value) = service.cache.get_shared(key, ttl).await
                        && let Some(hit) = self.hit(model, &value)
                    {
                        leader.complete(Ok(Arc::clone(&hit.outcome)));
                        return Ok(hit);
                    }
                    service.metrics.cache(CacheOutcome::Miss);
                    let computed = match run.compute().await {
                        Ok(computed) => computed,
                        Err(error) if error.is_of_the_image() => {
                            let error = Arc::new(error);
                            leader.complete(Err(Arc::clone(&error)));
                            return Err(ClassificationError::Shared(error));
                        }
                        Err(error) => return Err(error),
                    };
                    if let Ok(bytes) = serde_json::to_vec(&*computed.outcome) {
                        service.cache.put(key, bytes.into(), ttl);
                    }
                    leader.complete(Ok(Arc::clone(&computed.outcome)));
                    return Ok(computed);
                }
                Role::Follower(follower) => {
                    let result = follower.result();
                    let result = match run.deadline() {
                        Some(deadline) => timeout_at(deadline.into(), result)
                            .await
                            .map_err(|_| ClassificationError::DeadlineExceeded)?,
                        None => result.await,
                    };
                    if let Some(result) = result {
                        service.metrics.cache(CacheOutcome::Shared);
                        let outcome = result.map_err(ClassificationError::Shared)?;
                        return Ok(Computed { outcome, timing: None });
                    }
                    // The leader was refused, late or cancelled; one of its followers leads now.
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn outcome(score: f32) -> Arc<Outcome> {
        Arc::new(Outcome { format: "jpeg".into(), width: 1, height: 1, scores: vec![score] })
    }

    #[tokio::test]
    async fn followers_get_the_leaders_result() {
        let flights = SingleFlight::default();
        let Role::Leader(leader) = flights.join(&[1; 32]) else { panic!("the first must lead") };
        let Role::Follower(first) = flights.join(&[1; 32]) else { panic!("the second must follow") };
        let Role::Follower(second) = flights.join(&[1; 32]) else { panic!("the third must follow") };
        assert!(matches!(flights.join(&[2; 32]), Role::Leader(_)), "another image has another leader");
        let waiting = tokio::spawn(first.result());
        leader.complete(Ok(outcome(0.5)));
        assert_eq!(waiting.await.unwrap().unwrap().unwrap().scores, [0.5]);
        assert_eq!(second.result().await.unwrap().unwrap().scores, [0.5], "also for a late follower");
        assert!(matches!(flights.join(&[1; 32]), Role::Leader(_)), "a completed flight has ended");
    }

    #[tokio::test]
    async fn a_leader_that_is_dropped_wakes_its_followers() {
        let flights = SingleFlight::default();
        let Role::Leader(leader) = flights.join(&[1; 32]) else { panic!("the first must lead") };
        let Role::Follower(follower) = flights.join(&[1; 32]) else { panic!("the second must follow") };
        drop(leader);
        let result = tokio::time::timeout(Duration::from_secs(5), follower.result()).await;
        assert!(result.expect("the follower waits for a leader that is gone").is_none());
        assert!(matches!(flights.join(&[1; 32]), Role::Leader(_)));
    }
}
