//! Stores in memory for tests, each call of which can be made to fail: queue, state and blobs as their contracts say.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use cloud_sync::batch_status::{
    BatchOutcome, BatchPhase, BatchSpec, BatchStatus, BatchStatusStore, ChunkDone, ChunkStart, Created,
    WorkStarts,
};
use cloud_sync::blob::{BlobInfo, BlobKey, BlobPage, BlobStore};
use cloud_sync::error::{Link, SyncError, SyncResult};
use cloud_sync::queue::{Delivery, JobQueue, NewJob, QueueFull, QueueStats, ResultRecord, Settled};
use parking_lot::Mutex;

use super::BatchStores;

/// Calls that fail, by name, with the remaining number of failures.
#[derive(Debug, Default)]
pub(crate) struct Faults(Mutex<HashMap<&'static str, u32>>);

impl Faults {
    pub(crate) fn fail(&self, call: &'static str, times: u32) {
        self.0.lock().insert(call, times);
    }

    fn check(&self, call: &'static str, link: Link) -> SyncResult<()> {
        match self.0.lock().get_mut(call) {
            Some(times) if *times > 0 => {
                *times -= 1;
                Err(SyncError::transient(link, format!("{call} at 10.20.30.40 did not answer")))
            }
            _ => Ok(()),
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct MemoryState {
    pub(crate) batches: Mutex<HashMap<String, BatchStatus>>,
    pub(crate) faults: Faults,
    pub(crate) calls: AtomicU64,
}

#[derive(Debug, Default)]
pub(crate) struct MemoryBlob {
    pub(crate) objects: Mutex<BTreeMap<String, Bytes>>,
    pub(crate) faults: Faults,
}

#[derive(Debug, Default)]
pub(crate) struct MemoryQueue {
    pub(crate) jobs: Mutex<Vec<NewJob>>,
    /// Bytes that it may hold; 0 is without a bound.
    pub(crate) limit: AtomicU64,
    /// Fails once, after this many jobs, which are in the queue then; 0 is never.
    pub(crate) breaks_after: AtomicU64,
}

/// All three stores.
#[derive(Debug, Default, Clone)]
pub(crate) struct MemoryStores {
    pub(crate) queue: Arc<MemoryQueue>,
    pub(crate) state: Arc<MemoryState>,
    pub(crate) blob: Arc<MemoryBlob>,
}

impl MemoryStores {
    pub(crate) fn stores(&self) -> BatchStores {
        let Self { queue, state, blob } = self.clone();
        BatchStores { queue, state, blob }
    }

    /// What a worker leaves of a batch that it has finished.
    pub(crate) fn finish(&self, id: &str, lines: &str, results: Option<&str>) {
        self.blob.objects.lock().insert(format!("results/{id}.jsonl"), lines.to_owned().into());
        let ok = lines.matches(r#""status":"ok""#).count() as u64;
        let mut batches = self.state.batches.lock();
        let status = batches.get_mut(id).unwrap();
        status.phase = match status.phase {
            BatchPhase::Cancelled => BatchPhase::Cancelled,
            _ if ok > 0 => BatchPhase::Completed,
            _ => BatchPhase::Failed,
        };
        status.outcome = Some(BatchOutcome {
            phase: status.phase,
            completed: ok,
            failed: lines.lines().count() as u64 - ok,
            results_uri: format!("memory://results/{id}.jsonl"),
            results: results.map(str::to_owned),
        });
    }
}

/// A batch that was created just now.
pub(crate) fn status(spec: &BatchSpec) -> BatchStatus {
    let now = SystemTime::now();
    BatchStatus {
        spec: spec.clone(),
        phase: BatchPhase::Queued,
        submitted: false,
        completed: 0,
        failed: 0,
        chunks_done: 0,
        created: now,
        updated: now,
        outcome: None,
    }
}

/// What `finish_batch` does to a batch.
pub(crate) fn finish(status: &mut BatchStatus, outcome: &BatchOutcome) -> BatchPhase {
    if status.outcome.is_none() {
        if status.phase != BatchPhase::Cancelled {
            status.phase = outcome.phase;
        }
        status.submitted = true;
        status.outcome = Some(outcome.clone());
    }
    status.phase
}

/// What `cancel_batch` does to a batch.
pub(crate) fn cancel(status: &mut BatchStatus) -> BatchStatus {
    if status.outcome.is_none() {
        status.phase = BatchPhase::Cancelled;
    }
    status.clone()
}

#[async_trait]
impl BatchStatusStore for MemoryState {
    async fn create_batch(&self, spec: &BatchSpec) -> SyncResult<Created> {
        self.faults.check("create_batch", Link::Redis)?;
        let mut batches = self.batches.lock();
        match batches.get(&spec.request_id) {
            Some(status) => Ok(Created::Existing(Box::new(status.clone()))),
            None => {
                batches.insert(spec.request_id.clone(), status(spec));
                Ok(Created::New)
            }
        }
    }

    async fn batch_submitted(&self, id: &str) -> SyncResult<()> {
        self.faults.check("batch_submitted", Link::Redis)?;
        if let Some(status) = self.batches.lock().get_mut(id) {
            status.submitted = true;
        }
        Ok(())
    }

    async fn start_chunk(&self, spec: &BatchSpec, _: u32) -> SyncResult<ChunkStart> {
        let mut batches = self.batches.lock();
        let created = !batches.contains_key(&spec.request_id);
        let status = batches.entry(spec.request_id.clone()).or_insert_with(|| status(spec));
        status.phase = BatchPhase::Processing;
        Ok(ChunkStart { created, done_by: None, finished: false, cancelled: false })
    }

    async fn complete_chunk(&self, _: &BatchSpec, _: u32, _: &str, _: u64, _: u64) -> SyncResult<ChunkDone> {
        Err(SyncError::permanent(Link::Redis, "no worker runs on this store"))
    }

    async fn finish_batch(&self, spec: &BatchSpec, outcome: &BatchOutcome) -> SyncResult<BatchPhase> {
        self.faults.check("finish_batch", Link::Redis)?;
        let mut batches = self.batches.lock();
        let status = batches.entry(spec.request_id.clone()).or_insert_with(|| status(spec));
        Ok(finish(status, outcome))
    }

    async fn cancel_batch(&self, spec: &BatchSpec) -> SyncResult<BatchStatus> {
        self.faults.check("cancel_batch", Link::Redis)?;
        let mut batches = self.batches.lock();
        let status = batches.entry(spec.request_id.clone()).or_insert_with(|| status(spec));
        Ok(cancel(status))
    }

    async fn batch(&self, id: &str) -> SyncResult<Option<BatchStatus>> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.faults.check("batch", Link::Redis)?;
        Ok(self.batches.lock().get(id).cloned())
    }

    async fn forget_batch(&self, id: &str) -> SyncResult<()> {
        self.faults.check("forget_batch", Link::Redis)?;
        self.batches.lock().remove(id);
        Ok(())
    }

    async fn work_starts(&self, _: &str) -> SyncResult<WorkStarts> {
        Err(SyncError::permanent(Link::Redis, "no worker runs on this store"))
    }

    async fn begin_work(&self, _: &str, _: Option<u64>, _: u64) -> SyncResult<()> {
        Err(SyncError::permanent(Link::Redis, "no worker runs on this store"))
    }

    async fn end_work(&self, _: &str, _: Option<u64>) -> SyncResult<()> {
        Err(SyncError::permanent(Link::Redis, "no worker runs on this store"))
    }
}

#[async_trait]
impl BlobStore for MemoryBlob {
    async fn put(&self, key: &BlobKey, bytes: Bytes, _: &str) -> SyncResult<()> {
        self.faults.check("put", Link::S3)?;
        self.objects.lock().insert(key.to_string(), bytes);
        Ok(())
    }

    async fn put_file(&self, key: &BlobKey, file: &Path, _: &str) -> SyncResult<()> {
        self.faults.check("put_file", Link::S3)?;
        let bytes = std::fs::read(file).unwrap();
        self.objects.lock().insert(key.to_string(), bytes.into());
        Ok(())
    }

    async fn get(&self, key: &BlobKey, max_bytes: u64) -> SyncResult<Option<Bytes>> {
        self.faults.check("get", Link::S3)?;
        let found = self.objects.lock().get(key.as_str()).cloned();
        match found {
            Some(bytes) if bytes.len() as u64 > max_bytes => {
                Err(SyncError::permanent(Link::S3, format!("{key} has more than {max_bytes} bytes")))
            }
            found => Ok(found),
        }
    }

    async fn get_file(&self, key: &BlobKey, file: &Path) -> SyncResult<Option<u64>> {
        self.faults.check("get_file", Link::S3)?;
        let Some(bytes) = self.objects.lock().get(key.as_str()).cloned() else { return Ok(None) };
        std::fs::write(file, &bytes).unwrap();
        Ok(Some(bytes.len() as u64))
    }

    async fn head(&self, key: &BlobKey) -> SyncResult<Option<BlobInfo>> {
        self.faults.check("head", Link::S3)?;
        let objects = self.objects.lock();
        Ok(objects.get(key.as_str()).map(|bytes| info(key.as_str(), bytes)))
    }

    async fn list(&self, prefix: &str, next: Option<&str>) -> SyncResult<BlobPage> {
        self.faults.check("list", Link::S3)?;
        // Small pages, so that listings have several.
        let objects = self.objects.lock();
        let from = next.unwrap_or(prefix);
        let mut found: Vec<_> = objects
            .range(from.to_owned()..)
            .take_while(|(key, _)| key.starts_with(prefix))
            .take(3)
            .map(|(key, bytes)| info(key, bytes))
            .collect();
        let next = if found.len() == 3 { found.pop().map(|object| object.key) } else { None };
        Ok(BlobPage { objects: found, next })
    }

    async fn delete(&self, key: &BlobKey) -> SyncResult<()> {
        self.faults.check("delete", Link::S3)?;
        self.objects.lock().remove(key.as_str());
        Ok(())
    }

    fn uri(&self, key: &BlobKey) -> String {
        format!("memory://{key}")
    }
}

fn info(key: &str, bytes: &Bytes) -> BlobInfo {
    let modified = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    BlobInfo { key: key.to_owned(), bytes: bytes.len() as u64, modified: Some(modified) }
}

#[async_trait]
impl JobQueue for MemoryQueue {
    async fn submit(&self, jobs: &mut (dyn Iterator<Item = SyncResult<NewJob>> + Send)) -> SyncResult<u64> {
        let breaks_after = self.breaks_after.swap(0, Ordering::Relaxed);
        let limit = self.limit.load(Ordering::Relaxed);
        let (mut taken, mut bytes) = (Vec::new(), 0);
        for job in jobs {
            let job = job?;
            bytes += job.payload.len() as u64;
            if limit > 0 && bytes > limit {
                // A bound of less than a message stands for a queue that the batch will never fit into.
                let full = if limit < 100 { SyncError::permanent } else { SyncError::transient };
                let reason = QueueFull { waiting: 0, needed: bytes, max_bytes: limit };
                return Err(full(Link::Disk, "the queue is full".to_owned()).because(reason));
            }
            taken.push(job);
            if taken.len() as u64 == breaks_after {
                self.jobs.lock().extend(taken);
                return Err(SyncError::transient(Link::Kafka, "10.20.30.40:9093 went away"));
            }
        }
        let count = taken.len() as u64;
        self.jobs.lock().extend(taken);
        Ok(count)
    }

    async fn receive(&self, _: Duration) -> SyncResult<Option<Delivery>> {
        Ok(None)
    }

    async fn settle(&self, _: &Delivery, _: Vec<ResultRecord>) -> SyncResult<Settled> {
        Ok(Settled::Lost)
    }

    async fn release(&self, _: Delivery) {}

    fn stats(&self) -> QueueStats {
        QueueStats::default()
    }

    async fn close(&self) {}
}
