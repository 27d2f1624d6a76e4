//! Stores in memory that can be cut off before and after every call, and that can be away.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use cloud_sync::batch_status::{
    BatchOutcome, BatchPhase, BatchSpec, BatchStatus, BatchStatusStore, ChunkDone, ChunkStart, Created,
    WorkStarts,
};
use cloud_sync::blob::{BlobInfo, BlobKey, BlobPage, BlobStore, TooLarge};
use cloud_sync::error::{Link, SyncError, SyncResult};
use cloud_sync::queue::{Delivery, JobQueue, NewJob, QueueStats, ResultRecord, Settled};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::batch::testing::{cancel, finish, status};

/// Where a crash happens: at the passage of this number, before or after a call's effect.
#[derive(Debug)]
pub(super) struct Trip {
    left: AtomicI64,
    pub(super) tripped: Notify,
    /// Calls that fail from now on because their store is away.
    pub(super) outage: AtomicUsize,
    pub(super) calls: AtomicUsize,
    /// Whether calls panic.
    pub(super) faulty: AtomicBool,
}

impl Trip {
    pub(super) fn at(passage: i64) -> Arc<Self> {
        Arc::new(Self {
            left: AtomicI64::new(passage),
            tripped: Notify::new(),
            outage: AtomicUsize::new(0),
            calls: AtomicUsize::new(0),
            faulty: AtomicBool::new(false),
        })
    }

    async fn pass(&self) {
        if self.left.fetch_sub(1, Ordering::SeqCst) == 0 {
            self.tripped.notify_one();
        }
        if self.left.load(Ordering::SeqCst) < 0 {
            // From the crash on no call returns, as in a process that is gone.
            std::future::pending::<()>().await;
        }
    }

    async fn call(&self, link: Link) -> SyncResult<()> {
        self.pass().await;
        self.calls.fetch_add(1, Ordering::SeqCst);
        assert!(!self.faulty.load(Ordering::SeqCst), "simulated fault");
        let away = self.outage.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if away.is_ok() { Err(SyncError::transient(link, "temporarily away")) } else { Ok(()) }
    }
}

/// All stores of one world; they outlive the workers.
#[derive(Debug, Default)]
pub(super) struct Stores {
    pub(super) jobs: Mutex<VecDeque<(String, Bytes)>>,
    pub(super) out: Mutex<HashMap<String, Bytes>>,
    pub(super) settled: Mutex<HashSet<String>>,
    pub(super) published: Mutex<Vec<ResultRecord>>,
    pub(super) objects: Mutex<BTreeMap<String, Bytes>>,
    pub(super) batches: Mutex<HashMap<String, Batch>>,
    pub(super) changed: Notify,
    /// The batches as they were when the first chunk was done: what a replica may have.
    pub(super) older: Mutex<Option<HashMap<String, Batch>>>,
    /// A chunk whose start makes the worker panic, `panics` more times.
    pub(super) panics_on: Mutex<Option<(String, u32)>>,
    pub(super) panics: AtomicUsize,
    /// Starts of the work on messages, by their positions.
    pub(super) work: Mutex<HashMap<String, WorkStarts>>,
    /// Starts of the work on single images so far.
    pub(super) begun: AtomicUsize,
    /// An object that another worker overwrites right after it was written.
    pub(super) overwritten: Mutex<Option<(String, Bytes)>>,
    /// An object that can't be written.
    pub(super) refused: Mutex<Option<String>>,
    next: AtomicUsize,
}

#[derive(Debug, Clone)]
pub(super) struct Batch {
    pub(super) status: BatchStatus,
    owners: HashMap<u32, String>,
}

impl Stores {
    pub(super) fn send(&self, payload: impl Into<Bytes>) -> String {
        let position = format!("requests-0-{}", self.next.fetch_add(1, Ordering::SeqCst));
        self.jobs.lock().push_back((position.clone(), payload.into()));
        position
    }

    /// Redelivers the messages in flight, as after a crash.
    pub(super) fn recover(&self) {
        let mut out: Vec<_> = self.out.lock().drain().collect();
        out.sort();
        self.jobs.lock().extend(out);
    }

    pub(super) fn is_idle(&self) -> bool {
        self.jobs.lock().is_empty() && self.out.lock().is_empty()
    }

    pub(super) fn object(&self, key: &str) -> Option<Bytes> {
        self.objects.lock().get(key).cloned()
    }

    fn with<T>(&self, spec: &BatchSpec, work: impl FnOnce(&mut Batch, bool) -> T) -> T {
        let mut batches = self.batches.lock();
        let created = !batches.contains_key(&spec.request_id);
        let batch = batches.entry(spec.request_id.clone()).or_insert_with(|| Batch {
            status: BatchStatus { submitted: true, updated: UNIX_EPOCH, ..status(spec) },
            owners: HashMap::new(),
        });
        work(batch, created)
    }
}

/// The stores as one worker reaches them.
#[derive(Debug, Clone)]
pub(super) struct Reach {
    pub(super) stores: Arc<Stores>,
    pub(super) trip: Arc<Trip>,
}

#[async_trait]
impl JobQueue for Reach {
    async fn submit(&self, _: &mut (dyn Iterator<Item = SyncResult<NewJob>> + Send)) -> SyncResult<u64> {
        Err(SyncError::permanent(Link::Kafka, "not part of these tests"))
    }

    async fn receive(&self, wait: Duration) -> SyncResult<Option<Delivery>> {
        let Some((position, payload)) = self.stores.jobs.lock().pop_front() else {
            tokio::time::sleep(wait.min(Duration::from_millis(5))).await;
            return Ok(None);
        };
        self.stores.out.lock().insert(position.clone(), payload.clone());
        let time = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        Ok(Some(Delivery::new(position, payload, Some(time))))
    }

    async fn settle(&self, delivery: &Delivery, results: Vec<ResultRecord>) -> SyncResult<Settled> {
        self.trip.call(Link::Kafka).await?;
        if self.stores.out.lock().remove(&delivery.position).is_none() {
            return Ok(Settled::Lost);
        }
        if results.iter().any(|result| result.payload.len() > 100_000) {
            self.stores.out.lock().insert(delivery.position.clone(), delivery.payload.clone());
            let id = &results.iter().find(|r| r.payload.len() > 100_000).unwrap().id;
            return Err(SyncError::permanent(Link::Kafka, "a result is too large").of_record(id));
        }
        self.stores.settled.lock().insert(delivery.position.clone());
        self.stores.published.lock().extend(results);
        self.stores.changed.notify_one();
        self.trip.pass().await;
        Ok(Settled::Done)
    }

    async fn release(&self, delivery: Delivery) {
        self.stores.out.lock().remove(&delivery.position);
        self.stores.jobs.lock().push_back((delivery.position, delivery.payload));
    }

    fn stats(&self) -> QueueStats {
        QueueStats::default()
    }

    async fn close(&self) {}
}

#[async_trait]
impl BatchStatusStore for Reach {
    async fn create_batch(&self, spec: &BatchSpec) -> SyncResult<Created> {
        self.stores.with(spec, |_, _| ());
        Ok(Created::New)
    }

    async fn batch_submitted(&self, _: &str) -> SyncResult<()> {
        Ok(())
    }

    async fn start_chunk(&self, spec: &BatchSpec, chunk: u32) -> SyncResult<ChunkStart> {
        if *self.stores.panics_on.lock() == Some((spec.request_id.clone(), chunk)) {
            let left = self
                .stores
                .panics
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
            assert!(left.is_err(), "simulated fault");
        }
        self.trip.call(Link::Redis).await?;
        let start = self.stores.with(spec, |batch, created| {
            if batch.status.phase == BatchPhase::Queued {
                batch.status.phase = BatchPhase::Processing;
            }
            let (done_by, finished) = (batch.owners.get(&chunk).cloned(), batch.status.outcome.is_some());
            let cancelled = batch.status.phase == BatchPhase::Cancelled;
            ChunkStart { created, done_by, finished, cancelled }
        });
        self.trip.pass().await;
        Ok(start)
    }

    async fn complete_chunk(
        &self,
        spec: &BatchSpec,
        chunk: u32,
        position: &str,
        completed: u64,
        failed: u64,
    ) -> SyncResult<ChunkDone> {
        self.trip.call(Link::Redis).await?;
        let done = self.stores.with(spec, |batch, _| {
            let before = batch.owners.len();
            let owner = batch.owners.entry(chunk).or_insert_with(|| position.to_owned()).clone();
            if batch.owners.len() > before {
                batch.status.chunks_done += 1;
                batch.status.completed += completed;
                batch.status.failed += failed;
            }
            let (chunks_done, outcome) = (batch.status.chunks_done, &batch.status.outcome);
            let to_finish = chunks_done == spec.chunks && outcome.is_none();
            ChunkDone { owner, chunks_done, to_finish }
        });
        {
            let mut older = self.stores.older.lock();
            older.get_or_insert_with(|| self.stores.batches.lock().clone());
        }
        self.trip.pass().await;
        Ok(done)
    }

    async fn finish_batch(&self, spec: &BatchSpec, outcome: &BatchOutcome) -> SyncResult<BatchPhase> {
        self.trip.call(Link::Redis).await?;
        let phase = self.stores.with(spec, |batch, _| finish(&mut batch.status, outcome));
        self.trip.pass().await;
        Ok(phase)
    }

    async fn cancel_batch(&self, spec: &BatchSpec) -> SyncResult<BatchStatus> {
        self.trip.call(Link::Redis).await?;
        let status = self.stores.with(spec, |batch, _| cancel(&mut batch.status));
        self.trip.pass().await;
        Ok(status)
    }

    async fn batch(&self, request_id: &str) -> SyncResult<Option<BatchStatus>> {
        self.trip.call(Link::Redis).await?;
        Ok(self.stores.batches.lock().get(request_id).map(|batch| batch.status.clone()))
    }

    async fn forget_batch(&self, _: &str) -> SyncResult<()> {
        Ok(())
    }

    async fn work_starts(&self, position: &str) -> SyncResult<WorkStarts> {
        self.trip.call(Link::Redis).await?;
        Ok(self.stores.work.lock().get(position).cloned().unwrap_or_default().so_far())
    }

    async fn begin_work(&self, position: &str, image: Option<u64>, step: u64) -> SyncResult<()> {
        self.trip.call(Link::Redis).await?;
        self.stores.work.lock().entry(position.to_owned()).or_default().begin(image, step);
        self.stores.begun.fetch_add(usize::from(image.is_some()), Ordering::SeqCst);
        self.trip.pass().await;
        Ok(())
    }

    async fn end_work(&self, position: &str, step: Option<u64>) -> SyncResult<()> {
        self.trip.call(Link::Redis).await?;
        {
            let mut work = self.stores.work.lock();
            match (step, work.get_mut(position)) {
                (None, _) => drop(work.remove(position)),
                (Some(step), Some(starts)) => starts.revert(step),
                (Some(_), None) => {}
            }
        }
        self.trip.pass().await;
        Ok(())
    }
}

#[async_trait]
impl BlobStore for Reach {
    async fn put(&self, key: &BlobKey, bytes: Bytes, _: &str) -> SyncResult<()> {
        self.trip.call(Link::S3).await?;
        if self.stores.refused.lock().as_deref() == Some(key.as_str()) {
            return Err(SyncError::transient(Link::S3, "temporarily away"));
        }
        let other = self.stores.overwritten.lock().clone();
        let bytes = other.filter(|(of, _)| of == key.as_str()).map_or(bytes, |(_, other)| other);
        self.stores.objects.lock().insert(key.to_string(), bytes);
        self.trip.pass().await;
        Ok(())
    }

    async fn put_file(&self, key: &BlobKey, file: &Path, content_type: &str) -> SyncResult<()> {
        let bytes = std::fs::read(file).unwrap();
        BlobStore::put(self, key, bytes.into(), content_type).await
    }

    async fn get(&self, key: &BlobKey, max_bytes: u64) -> SyncResult<Option<Bytes>> {
        self.trip.call(Link::S3).await?;
        match self.stores.object(key.as_str()) {
            Some(bytes) if bytes.len() as u64 > max_bytes => {
                let too_large = TooLarge { bytes: bytes.len() as u64, bound: max_bytes };
                Err(SyncError::permanent(Link::S3, format!("{key} can't be read")).because(too_large))
            }
            found => Ok(found),
        }
    }

    async fn get_file(&self, key: &BlobKey, file: &Path) -> SyncResult<Option<u64>> {
        let found = BlobStore::get(self, key, u64::MAX).await?;
        Ok(found.map(|bytes| {
            std::fs::write(file, &bytes).unwrap();
            bytes.len() as u64
        }))
    }

    async fn head(&self, key: &BlobKey) -> SyncResult<Option<BlobInfo>> {
        self.trip.call(Link::S3).await?;
        let info =
            |bytes: Bytes| BlobInfo { key: key.to_string(), bytes: bytes.len() as u64, modified: None };
        Ok(self.stores.object(key.as_str()).map(info))
    }

    async fn list(&self, prefix: &str, _: Option<&str>) -> SyncResult<BlobPage> {
        self.trip.call(Link::S3).await?;
        let objects = self.stores.objects.lock();
        let objects = objects.iter().filter(|(key, _)| key.starts_with(prefix)).map(|(key, bytes)| {
            BlobInfo { key: key.clone(), bytes: bytes.len() as u64, modified: Some(SystemTime::UNIX_EPOCH) }
        });
        Ok(BlobPage { objects: objects.collect(), next: None })
    }

    async fn delete(&self, key: &BlobKey) -> SyncResult<()> {
        self.trip.call(Link::S3).await?;
        self.stores.objects.lock().remove(key.as_str());
        self.trip.pass().await;
        Ok(())
    }

    fn uri(&self, key: &BlobKey) -> String {
        format!("memory://{key}")
    }
}
